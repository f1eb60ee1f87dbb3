// Host: a zero-copy cursor into device memory, threads, and the host's clock.
#pragma once

#include <chrono>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "call.h"
#include "host/thread_pool.h"
#include "tile.h"

namespace kernel {

#define LLAMA_HOST_INLINE inline __attribute__((always_inline))
#define LLAMA_HOST_UNROLL _Pragma("GCC unroll 4")
constexpr int kEngineTiles = 1;
constexpr int kEngineWaves = 1;
constexpr int kEngineHeads = 1;
constexpr int kHeadPad = 16;
// Sums are stored one by one and scaled in whole vectors, for which a processor waits until all of
// them have reached its cache: they are given time.
constexpr int kScaleAfter = 12;
constexpr bool kKnownFormat = true;
constexpr int kSampleBlocks = 4;  // candidates are few once the top logits are known

// The host's loader: memory is asked for this many beats before they are used.
struct BeatsAhead {
  int weights, kv;
};

// Intel's processors leave alone some 20 to 40% of their memory's speed without (Xeon). AMD's up to
// Zen 4 reach it by themselves, and a token of 110 million weights takes them half as long again
// when asked (EPYC, Zen 4); Zen 5 takes twice as long when not (EPYC).
inline BeatsAhead AskAhead() {
#if defined(__x86_64__)
  constexpr unsigned int kAuth = 0x68747541;  // enticAMD
  constexpr unsigned int kZen5 = 0x1a;
  unsigned int leaves = 0, vendor = 0, signature = 0, unused = 0;
  if (__get_cpuid(0, &leaves, &vendor, &unused, &unused) && vendor == kAuth &&
      __get_cpuid(1, &signature, &unused, &unused, &unused)) {
    const unsigned int family = (signature >> 8 & 0xf) + (signature >> 20 & 0xff);
    return family < kZen5 ? BeatsAhead{0, 0} : BeatsAhead{128, 128};
  }
#endif
  return BeatsAhead{128, 32};
}

struct WeightPort {
  const Beat* beats;
  int ahead;

  const Beat& Read(int word, int beat) const {
    const Beat* at = beats + static_cast<int64_t>(word) * kWordBeats + beat;
    __builtin_prefetch(at + ahead);
    return *at;
  }
};

struct KvReader {
  const KvBeat* beats;
  int ahead;
  // What is asked for next; where this run ends, and where the next one begins.
  const KvBeat *ask, *end, *after;

  const KvBeat& Read(int index) {
    if (ahead > 0) {
      __builtin_prefetch(ask);
      ++ask;
      if (ask == end) ask = after;
    }
    return beats[index];
  }
};

// Nothing is asked for that lies between the runs, and a run does not begin with a wait.
typedef KvReader RunReader;
inline RunReader ReadRun(const KvReader (&ports)[kKvPorts], int port, const KvRun& run,
                         const KvRun& next) {
  RunReader reader = ports[port];
  const KvBeat* first = reader.beats + run.first;
  reader.end = first + run.beats;
  reader.after = ports[next.port].beats + next.first;
  reader.ask = run.beats > reader.ahead ? first + reader.ahead : reader.after;
  return reader;
}

struct KvWriter {
  KvBeat* beats;

  void Write(int index, const KvBeat& beat) const { beats[index] = beat; }
};

// Nothing to run ahead of: memory is already where compute reads it.
inline void Load(const Beat* memory, int, const Step&, WeightPort& port) {
  static const int ahead = AskAhead().weights;
  port.beats = memory;
  port.ahead = ahead;
}
inline void LoadKv(const KvBeat* memory, int, const Step&, KvReader& port) {
  static const int ahead = AskAhead().kv;
  port.beats = memory;
  port.ahead = ahead;
}
inline void LoadBoth(const Beat* memory, const KvBeat* kv_memory, int index, const Step& step,
                     WeightPort& port, KvReader& kv_port) {
  Load(memory, index, step, port);
  LoadKv(kv_memory, index, step, kv_port);
}
inline void PlaceKvWriter(KvBeat* memory, KvWriter& port) {
  port.beats = memory;
}
inline void StoreKv(KvBeat*, int, const Step&, KvWriter&) {}

// A row's value has a line of the cache to itself: threads that take a row each would pass it to
// and fro otherwise.
template <typename T>
struct PerRow {
  struct Line {
    T value;
    char rest[64 - sizeof(T)];
  };
  Line lines[kMaxRows];

  T& operator[](int row) { return lines[row].value; }
  const T& operator[](int row) const { return lines[row].value; }
};

// The sums that one task of many fills.
template <typename T>
inline T (&OfTask(T (&all)[kWavesInFlight][kChannels], int task))
    [kEngineWaves][kEngineTiles] { return *reinterpret_cast<T(*)[1][1]>(all[0] + task); }

// A group's words, in loops of their own where something else is done besides: the row alone is
// slow where g++ asks at every word.
template <typename Body>
LLAMA_HOST_INLINE void ForWords(int g, bool half, int words, const Body& body) {
  constexpr int kScaleWord = kScaleAfter / kWordBeats;
  static_assert(kScaleWord > 0, "activations are copied in one word, sums scaled in a later one");
  for (int b = 0; b < kWordBeats; ++b) body(BeatAt{0, g, g, 0, b, half});
  for (int w = 1; w < kScaleWord; ++w) {
    for (int b = 0; b < kWordBeats; ++b) body(BeatAt{0, g, g, w, b, half});
  }
  for (int b = 0; b < kWordBeats; ++b) body(BeatAt{0, g, g, kScaleWord, b, half});
  for (int w = kScaleWord + 1; w < words; ++w) {
    for (int b = 0; b < kWordBeats; ++b) body(BeatAt{0, g, g, w, b, half});
  }
}

// A task is one tile. g++ makes a loop of its own of the half group, if there is one.
template <typename Body, typename Sums>
LLAMA_HOST_INLINE void ForBeats(int, const GroupLoop& loop, const Body& body, Sums&) {
  const int whole = loop.half_tail ? loop.groups - 1 : loop.groups;
  for (int g = 0; g < whole; ++g) ForWords(g, false, loop.words, body);
  if (loop.half_tail) ForWords(whole, true, loop.tail_words, body);
}

// Nested, so that g++ sees what stays the same in the inner loops; of two in the middle it makes a
// loop each, without their conditions.
template <typename Body>
LLAMA_HOST_INLINE void ForEach(int outer, int middle, int inner, const Body& body) {
  for (int i = 0; i < outer; ++i) {
    if (middle == 2) {
      for (int k = 0; k < inner; ++k) body(i, 0, k);
      for (int k = 0; k < inner; ++k) body(i, 1, k);
    } else {
      for (int j = 0; j < middle; ++j) {
        for (int k = 0; k < inner; ++k) body(i, j, k);
      }
    }
  }
}

// g++ makes a copy of the engine for each format, and knows it in the innermost loop; and one for a
// row alone, for two and for four, of which there is no loop.
template <typename Engine>
LLAMA_HOST_INLINE void ForRows(const Format& format, int rows, const Engine& engine) {
  if (rows == 1) {
    engine(format, 1);
  } else if (rows == 2) {
    engine(format, 2);
  } else if (rows == 4) {
    engine(format, 4);
  } else {
    engine(format, rows);
  }
}
template <typename Engine>
LLAMA_HOST_INLINE void ForFormat(const Format& format, int rows, const Engine& engine) {
  if (format.int4) {
    ForRows(Format{kMaxGroup, kMinGroup, true}, rows, engine);
  } else if (format.group_size == kMaxGroup) {
    ForRows(Format{kMaxGroup, kMaxGroup, false}, rows, engine);
  } else {
    ForRows(Format{kMinGroup, kMinGroup, false}, rows, engine);
  }
}

inline int ActiveRows(int n) {
  return n;
}

// A call of the threads costs a microsecond or two: worth it where the work takes a few.
constexpr int64_t kWorthwhileMacs = 1 << 17;

template <typename Task>
inline void ParallelFor(int n, int64_t macs, const Task& task) {
  if (n * macs >= kWorthwhileMacs) {
    ThreadPool::Current().Run(n, task);
  } else {
    for (int i = 0; i < n; ++i) task(i);
  }
}

template <typename Task>
struct SpanTask {
  const Task& task;
  int rows, spans;

  void operator()(int i) const {
    const int first = i * rows / spans;
    task(RowSpan{first, (i + 1) * rows / spans - first});
  }
};

// A few spans for each thread: one that is held up elsewhere does not hold up the rest.
template <typename Task>
inline void ParallelRows(int rows, int64_t macs, const Task& task) {
  ThreadPool& pool = ThreadPool::Current();
  const int most = 2 * pool.Threads();
  const int spans = rows < most ? rows : most;
  if (pool.Threads() > 1 && rows > 1 && rows * macs >= kWorthwhileMacs) {
    pool.Run(spans, SpanTask<Task>{task, rows, spans});
  } else {
    task(RowSpan{0, rows});
  }
}

struct EventPort {
  uint32_t* record;  // of this step
  int n;
  std::chrono::steady_clock::time_point start;

  void Mark(int stage, int layer) {
    if (n < kMaxStepEvents) {
      const auto elapsed = std::chrono::steady_clock::now() - start;
      const auto ns = std::chrono::duration_cast<std::chrono::nanoseconds>(elapsed).count();
      const auto ticks = ns * kClockMhz / 1000;
      record[2 + 2 * n] = static_cast<uint32_t>(stage | layer << 8);
      record[3 + 2 * n] = static_cast<uint32_t>(ticks);
      ++n;
    }
  }
};

inline void OpenEvents(const Step& step, uint32_t* profile, EventPort& port) {
  port.record = profile + step.index * kProfileStepWords;
  port.n = 0;
  port.start = std::chrono::steady_clock::now();
}

inline void RecordEvents(const Step& step, EventPort& port, uint32_t*) {
  if (step.profile) port.record[0] = static_cast<uint32_t>(port.n);
}

}  // namespace kernel
