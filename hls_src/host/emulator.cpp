// What the emulated device loads: the kernel on a thread of its own, started and awaited.
//
// The register file and its protocols are in llama_pynq/emulation/device.py; this is the
// fabric behind AP_START.
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>

#include "host/call_bytes.h"
#include "host/deep_thread.h"
#include "host/library.h"
#include "host/thread_pool.h"

// Generated beside the top function: unpacks the argument words and calls it.
void CallTop(const uint64_t* args);

namespace {

constexpr int kMaxArguments = 128;
constexpr int kSpins = 4000;                       // some 0.3 ms
constexpr size_t kStackBytes = size_t{256} << 20;  // on-chip memory lives here; pages come on use

class Emulator {
 public:
  enum Ended { kNot, kBefore, kMeanwhile };

  explicit Emulator(int threads) : threads_(threads) {
    const auto main = [](void* self) { static_cast<Emulator*>(self)->Main(); };
    started_ = thread_.Start(main, this, kStackBytes);
  }

  ~Emulator() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      leaving_ = true;
    }
    changed_.notify_all();
    thread_.Join();
  }

  bool started() const { return started_; }

  bool Start(const uint64_t* args) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (busy_) return false;
      for (int i = 0; i < kMaxArguments; ++i) args_[i] = args[i];
      busy_ = true;
    }
    changed_.notify_all();
    return true;
  }

  // As Start, if the call stays within its buffers: see emulator_start_within.
  int StartWithin(const uint64_t* args, const uint64_t* sizes, uint64_t* needed) {
    if (busy_) return -1;
    const kernel::FlushToZero flush;  // as the kernel will read it: a subnormal temperature is 0
    const int too_small = kernel::CheckCall(args, sizes, told_, *needed);
    if (too_small >= 0) return 1 + too_small;
    uint64_t own[kMaxArguments];
    for (int i = 0; i < kMaxArguments; ++i) own[i] = args[i];
    own[kernel::kRequestArgument] = reinterpret_cast<uint64_t>(told_.request);
    own[kernel::kModelArgument] = reinterpret_cast<uint64_t>(told_.model);
    return Start(own) ? 0 : -1;
  }

  uint32_t* AbortWord() { return &told_.request[kernel::kRequestAbort]; }

  Ended Wait(int timeout_us) {
    if (!busy_) return kBefore;
    std::unique_lock<std::mutex> lock(mutex_);
    const auto idle = [this] { return !busy_; };
    return done_.wait_for(lock, std::chrono::microseconds(timeout_us), idle) ? kMeanwhile : kNot;
  }

 private:
  // The next call of a text comes at once, and waking a thread takes as long as the host needs for
  // it. Spinning gives way: there may be no more cores than the threads that compute.
  void AwaitNext() const {
    for (int spins = 0; !busy_ && !leaving_ && spins < kSpins; ++spins) {
      if (spins % 16 == 0) std::this_thread::yield();
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
  }

  void Main() {
    const kernel::FlushToZero flush;
    kernel::ThreadPool pool(threads_);
    kernel::ThreadPool::SetCurrent(&pool);
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return busy_ || leaving_; });
      if (leaving_) return;
      lock.unlock();
      CallTop(args_);
      lock.lock();
      busy_ = false;
      lock.unlock();
      done_.notify_all();
      AwaitNext();
      lock.lock();
    }
  }

  const int threads_;
  kernel::DeepThread thread_;
  std::mutex mutex_;
  std::condition_variable changed_, done_;
  bool started_ = false;
  std::atomic<bool> busy_{false}, leaving_{false};
  uint64_t args_[kMaxArguments] = {};
  kernel::ToldWords told_ = {};
};

}  // namespace

LLAMA_EXPORT void* emulator_new(int threads) {
  Emulator* emulator = new Emulator(threads > 0 ? threads : 1);
  if (!emulator->started()) {
    delete emulator;
    return nullptr;
  }
  return emulator;
}

// `args` holds kMaxArguments words: host addresses for pointers, values for scalars. -1: still
// busy.
LLAMA_EXPORT int emulator_start(void* emulator, const uint64_t* args) {
  return static_cast<Emulator*>(emulator)->Start(args) ? 0 : -1;
}

// As emulator_start, for a driver that is not trusted: `sizes` holds the bytes behind each pointer.
// 1 + i: argument i needs `needed` bytes, more than are there, and nothing was started. The kernel
// reads its own copy of the request and of the model's descriptor, made here.
LLAMA_EXPORT int emulator_start_within(void* emulator, const uint64_t* args, const uint64_t* sizes,
                                       uint64_t* needed) {
  return static_cast<Emulator*>(emulator)->StartWithin(args, sizes, needed);
}

// The abort word in the copy of the request: the host's goes there while the kernel runs.
LLAMA_EXPORT uint32_t* emulator_abort_word(void* emulator) {
  return static_cast<Emulator*>(emulator)->AbortWord();
}

// 0 if the kernel still runs after `timeout_us`, 1 if it was idle before, 2 if it ended meanwhile.
LLAMA_EXPORT int emulator_wait(void* emulator, int timeout_us) {
  return static_cast<Emulator*>(emulator)->Wait(timeout_us);
}

LLAMA_EXPORT void emulator_delete(void* emulator) {
  delete static_cast<Emulator*>(emulator);
}
