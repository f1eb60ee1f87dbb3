// The host's engines: threads that share a counter of tasks.
#pragma once

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace kernel {

// Subnormal inputs and results are zero, as in AMD's float cores; restored on destruction.
class FlushToZero {
 public:
  FlushToZero() : saved_(Get()) { Set(saved_ | kFlushBits); }
  ~FlushToZero() { Set(saved_); }
  FlushToZero(const FlushToZero&) = delete;
  FlushToZero& operator=(const FlushToZero&) = delete;

 private:
#if defined(__x86_64__)
  typedef unsigned int Control;
  static constexpr Control kFlushBits = 0x8040;  // MXCSR: FZ, DAZ
  static Control Get() { return __builtin_ia32_stmxcsr(); }
  static void Set(Control c) { __builtin_ia32_ldmxcsr(c); }
#elif defined(__arm__)
  typedef unsigned int Control;
  static constexpr Control kFlushBits = 1u << 24;  // FPSCR: FZ
  static Control Get() {
    Control c;
    __asm__ volatile("vmrs %0, fpscr" : "=r"(c));
    return c;
  }
  static void Set(Control c) { __asm__ volatile("vmsr fpscr, %0" : : "r"(c)); }
#elif defined(__aarch64__)
  typedef unsigned long Control;
  static constexpr Control kFlushBits = 1ul << 24;  // FPCR: FZ
  static Control Get() {
    Control c;
    __asm__ volatile("mrs %0, fpcr" : "=r"(c));
    return c;
  }
  static void Set(Control c) { __asm__ volatile("msr fpcr, %0" : : "r"(c)); }
#else
#error "this processor's flush-to-zero control is not known: add it to host/thread_pool.h"
#endif
  Control saved_;
};

class ThreadPool {
 public:
  // `threads` includes the caller of Run.
  explicit ThreadPool(int threads) {
    for (int i = 1; i < threads; ++i) {
      try {
        workers_.emplace_back([this] { Work(); });
      } catch (const std::system_error&) {
        break;  // the system has no more threads to give: these will do
      }
    }
  }

  ~ThreadPool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      leaving_ = true;
      epoch_.fetch_add(1);
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  // The pool of the thread that runs the kernel; one without workers elsewhere.
  static ThreadPool& Current() {
    static ThreadPool alone(1);
    return Slot() != nullptr ? *Slot() : alone;
  }
  static void SetCurrent(ThreadPool* pool) { Slot() = pool; }

  int Threads() const { return static_cast<int>(workers_.size()) + 1; }

  template <typename Task>
  void Run(int n, const Task& task) {
    if (workers_.empty() || n < 2) {
      for (int i = 0; i < n; ++i) task(i);
      return;
    }
    least_ = n / (16 * Threads()) > 0 ? n / (16 * Threads()) : 1;
    total_ = n;
    next_.store(0, std::memory_order_relaxed);
    call_ = [](const void* context, int i) { (*static_cast<const Task*>(context))(i); };
    context_ = &task;
    gate_.fetch_and(~kClosed, std::memory_order_release);
    epoch_.fetch_add(1);  // before sleepers_ is read: either sees the other
    if (sleepers_.load() > 0) {
      std::lock_guard<std::mutex> lock(mutex_);
      wake_.notify_all();
    }
    Share();
    // Only workers that came are waited for: one that the system has no core for may come late.
    gate_.fetch_or(kClosed, std::memory_order_relaxed);
    for (int spins = 0; gate_.load(std::memory_order_acquire) != kClosed; ++spins) Pause(spins);
  }

 private:
  static ThreadPool*& Slot() {
    static thread_local ThreadPool* pool = nullptr;
    return pool;
  }

  static void Pause(int spins) {
    if (spins > kSpins) {
      std::this_thread::yield();
    } else {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
  }

  // Half of what would be a thread's fair share of the rest, again and again: neighbours in memory
  // stay together, and a thread held up elsewhere does not hold up the others for long.
  void Share() {
    int first = next_.load(std::memory_order_relaxed);
    while (first < total_) {
      const int half = (total_ - first) / (2 * Threads());
      const int share = half > least_ ? half : least_;
      const int end = share < total_ - first ? first + share : total_;
      if (next_.compare_exchange_weak(first, end, std::memory_order_relaxed)) {
        for (int i = first; i < end; ++i) call_(context_, i);
        first = next_.load(std::memory_order_relaxed);
      }
    }
  }

  void Work() {
    const FlushToZero flush;
    unsigned seen = 0;
    for (;;) {
      for (int spins = 0; epoch_.load(std::memory_order_acquire) == seen; ++spins) {
        if (spins < 2 * kSpins) {
          Pause(spins);
        } else {
          std::unique_lock<std::mutex> lock(mutex_);
          sleepers_.fetch_add(1);
          wake_.wait(lock, [&] { return epoch_.load() != seen; });
          sleepers_.fetch_sub(1);
        }
      }
      seen = epoch_.load(std::memory_order_acquire);
      if (leaving_) return;
      if ((gate_.fetch_add(1, std::memory_order_acquire) & kClosed) == 0) Share();
      gate_.fetch_sub(1, std::memory_order_release);
    }
  }

  static constexpr int kSpins = 2000;
  static constexpr unsigned kClosed = 1u << 31;
  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<unsigned> epoch_{0};
  std::atomic<unsigned> gate_{kClosed};  // workers inside; those that come when it is closed leave
  std::atomic<int> next_{0}, sleepers_{0};
  std::atomic<bool> leaving_{false};
  int least_ = 1, total_ = 0;
  void (*call_)(const void*, int) = nullptr;
  const void* context_ = nullptr;
};

}  // namespace kernel
