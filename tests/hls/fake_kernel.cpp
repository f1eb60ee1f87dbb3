// A fake kernel of one loop behind the emulator's four functions, to test the emulated device.
//
// Arguments: registers.arguments(kChannels, 1). `command` selects what a call does:
//   0  copy kWords request words to results, add 1 to each
//   1  write the first byte of each weight channel to results
//   2  the same as 0, but hang until the abort word (request[63]) is not zero
//   3  write the number of threads to results
// A call ends by writing `sequence` to results[kWords].

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>

#ifndef CHANNELS
#define CHANNELS 2
#endif

namespace {

constexpr int kWords = 16;
constexpr int kRequest = 0, kResults = 1, kFirstWeights = 8;
constexpr int kCommand = kFirstWeights + CHANNELS, kSequence = kCommand + 1;

struct Emulator {
  explicit Emulator(int n) : threads(n), worker([this] { Work(); }) {}

  void Work() {
    std::unique_lock<std::mutex> lock(mutex);
    for (;;) {
      changed.wait(lock, [this] { return busy || stop; });
      if (stop) return;
      lock.unlock();
      Run();
      lock.lock();
      busy = false;
      changed.notify_all();
    }
  }

  void Run() {
    auto* request = reinterpret_cast<const volatile uint32_t*>(args[kRequest]);
    auto* results = reinterpret_cast<volatile uint32_t*>(args[kResults]);
    const uint64_t command = args[kCommand];
    while (command == 2 && request[63] == 0)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    for (int i = 0; i < kWords; ++i) results[i] = request[i] + 1;
    for (int c = 0; command == 1 && c < CHANNELS; ++c) {
      results[c] = *reinterpret_cast<const uint8_t*>(args[kFirstWeights + c]);
    }
    if (command == 3) results[0] = threads;
    results[kWords] = static_cast<uint32_t>(args[kSequence]);
  }

  int threads;
  uint64_t args[kSequence + 1] = {};
  bool busy = false, stop = false;
  std::mutex mutex;
  std::condition_variable changed;
  std::thread worker;
};

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT void* emulator_new(int n_threads) {
  return new Emulator(n_threads);
}

EXPORT int emulator_start(void* e, const uint64_t* args) {
  auto* emulator = static_cast<Emulator*>(e);
  std::lock_guard<std::mutex> lock(emulator->mutex);
  if (emulator->busy) return -1;
  for (int i = 0; i <= kSequence; ++i) emulator->args[i] = args[i];
  emulator->busy = true;
  emulator->changed.notify_all();
  return 0;
}

EXPORT int emulator_wait(void* e, int timeout_us) {
  auto* emulator = static_cast<Emulator*>(e);
  std::unique_lock<std::mutex> lock(emulator->mutex);
  return emulator->changed.wait_for(lock, std::chrono::microseconds(timeout_us),
                                    [emulator] { return !emulator->busy; });
}

EXPORT void emulator_delete(void* e) {
  auto* emulator = static_cast<Emulator*>(e);
  {
    std::lock_guard<std::mutex> lock(emulator->mutex);
    emulator->stop = true;
    emulator->changed.notify_all();
  }
  emulator->worker.join();
  delete emulator;
}
