// Stress test of ThreadPool: many short runs with more threads than cores. Each task must be done
// exactly once before Run returns, whichever threads are late.
#include <atomic>
#include <cstdio>

#include "host/thread_pool.h"

namespace {

constexpr int kMostTasks = 64;

struct CountTask {
  std::atomic<int>* times;
  int* result;
  int run;

  void operator()(int i) const {
    times[i].fetch_add(1, std::memory_order_relaxed);
    result[i] = run + i;
  }
};

}  // namespace

int main() {
  kernel::ThreadPool pool(8);
  std::atomic<int> times[kMostTasks];
  int result[kMostTasks] = {};
  for (int run = 0; run < 50000; ++run) {
    const int n = 1 + run * 7 % kMostTasks;
    for (std::atomic<int>& count : times) count = 0;
    pool.Run(n, CountTask{times, result, run});
    for (int i = 0; i < kMostTasks; ++i) {
      if (times[i] != (i < n ? 1 : 0) || (i < n && result[i] != run + i)) {
        std::printf("run %d: task %d of %d done %d times\n", run, i, n, times[i].load());
        return 1;
      }
    }
  }
}
