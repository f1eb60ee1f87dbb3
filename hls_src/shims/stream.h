// Fabric: an hls::stream per weight channel, unrolled engines, a cycle counter.
// g++ compiles this file too (-DLLAMA_STREAMS, tests/hls/hls_stream.h), which checks that the
// loaders send every word in the order in which compute reads it.
#pragma once

#include <hls_stream.h>

#include "call.h"
#include "tile.h"

namespace kernel {

#define LLAMA_HOST_INLINE inline
#define LLAMA_HOST_UNROLL
constexpr int kEngineTiles = kChannels;
constexpr int kEngineWaves = kWavesInFlight;
constexpr int kEngineHeads = kKvPorts;
constexpr int kHeadPad = 0;
constexpr int kScaleAfter = 0;
constexpr bool kKnownFormat = false;
constexpr int kSampleBlocks = kTilesInFlight;  // two loops over all there are

struct WeightPort {
  hls::stream<Beat, kWeightFifoBeats> beats;

  Beat Read(int, int) {
#pragma HLS INLINE
    return beats.read();
  }
};

struct KvReader {
  hls::stream<KvBeat, kKvFifoBeats> beats;

  KvBeat Read(int) {
#pragma HLS INLINE
    return beats.read();
  }
};

typedef KvReader& RunReader;
inline RunReader ReadRun(KvReader (&ports)[kKvPorts], int port, const KvRun&, const KvRun&) {
#pragma HLS INLINE
  return ports[port];
}

struct KvWriter {
  hls::stream<KvBeat, kKvWriteBeats> beats;

  void Write(int, const KvBeat& beat) {
#pragma HLS INLINE
    beats.write(beat);
  }
};

template <typename Engine>
inline void ForFormat(const Format& format, int rows, const Engine& engine) {
#pragma HLS INLINE
  engine(format, rows);
}

template <typename T>
using PerRow = T[kMaxRows];

// There is one task, and it fills all the sums.
template <typename T>
inline T (&OfTask(T (&all)[kEngineWaves][kEngineTiles], int)) [kEngineWaves][kEngineTiles] {
#pragma HLS INLINE
  return all;
}

// One loop from the first wave's first beat to the last one's last: no pipeline is drained between.
template <typename Body, typename Sums>
inline void ForBeats(int waves, const GroupLoop& loop, const Body& body, Sums& sums) {
#pragma HLS INLINE
  BeatAt at = {0, 0, 0, 0, 0, false};
  const int words = loop.groups * loop.words - (loop.half_tail ? loop.words - loop.tail_words : 0);
BEATS:
  for (int n = 0; n < waves * words * kWordBeats; ++n) {
#pragma HLS PIPELINE II = 1
#pragma HLS DEPENDENCE variable = sums inter RAW distance = kTileRows / kScaleLanes true
#pragma HLS LOOP_TRIPCOUNT min = 192 max = 8192
    const bool last_group = at.group + 1 == loop.groups;
    at.half = last_group && loop.half_tail;
    (void)sums;  // named for the dependence alone
    body(at);
    const bool beats_done = at.beat + 1 == kWordBeats;
    const bool words_done = beats_done && at.word + 1 == (at.half ? loop.tail_words : loop.words);
    const bool groups_done = words_done && last_group;
    at.beat = beats_done ? 0 : at.beat + 1;
    at.word = words_done ? 0 : (beats_done ? at.word + 1 : at.word);
    at.group = groups_done ? 0 : (words_done ? at.group + 1 : at.group);
    at.wave = groups_done ? at.wave + 1 : at.wave;
    at.count = words_done ? at.count + 1 : at.count;
  }
}

// One loop: HLS would not flatten inner ones of unknown length, and drain them every time.
template <typename Body>
inline void ForEach(int outer, int middle, int inner, const Body& body) {
#pragma HLS INLINE
  int i = 0, j = 0, k = 0;
EACH:
  for (int n = 0; n < outer * middle * inner; ++n) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT min = 192 max = 1024
    body(i, j, k);
    const bool inner_done = k + 1 == inner;
    const bool middle_done = inner_done && j + 1 == middle;
    k = inner_done ? 0 : k + 1;
    j = middle_done ? 0 : (inner_done ? j + 1 : j);
    i = middle_done ? i + 1 : i;
  }
}

typedef hls::stream<Beat, kWeightFifoBeats> BeatStream;

inline void SendWords(const Beat* memory, int first_word, int words, BeatStream& beats) {
SEND_BEATS:
  for (int i = 0; i < words * kWordBeats; ++i) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT min = 1024 max = 1048576
    beats.write(memory[first_word * kWordBeats + i]);
  }
}

// What comes of a channel before the layers, and after them.
inline void SendEmbeddings(const Beat* memory, int channel, const Step& step, WeightPort& port) {
#pragma HLS INLINE
  const Layout& plan = step.layout;
  const Shape& s = step.shape;
  const int tail = TailBase(plan, s, channel);
  if (step.embed) {
  SEND_EMBEDDINGS:
    for (int row = 0; row < kMaxRows; ++row) {
      const int token = step.rows[row].token;
      if (row < step.n_rows && step.rows[row].active && token / kTileRows % kChannels == channel) {
      SEND_GROUPS:
        // Of each group two words, the values and the scales; requests follow one another.
        for (int n = 0; n < plan.embedding.groups * 2 * kWordBeats; ++n) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT min = 18 max = 512
          const int g = n / (2 * kWordBeats);
          const RowWords at = FindRow(plan.embedding, tail, token, g, s.row_bytes);
          const int word = n / kWordBeats % 2 == 0 ? at.values : at.scales;
          port.beats.write(memory[word * kWordBeats + n % kWordBeats]);
        }
      }
    }
  }
}

inline void SendTail(const Beat* memory, int channel, const Step& step, WeightPort& port) {
#pragma HLS INLINE
  const Layout& plan = step.layout;
  if (step.classify) {
    const int norm = NormsBefore(plan, channel, 1);
    const int words = norm + MatrixWords(plan.classifier, step.shape.row_bytes);
    SendWords(memory, TailBase(plan, step.shape, channel) - norm, words, port.beats);
  }
}

// A layer's keys and values in a port: every block, in the order in which its engine attends to it.
inline void SendKv(const KvBeat* memory, int port, const Step& step, int layer, KvReader& reader) {
#pragma HLS INLINE
  const Shape& s = step.shape;
  const int chunks = TeamChunks(s);
KV_HEADS:
  for (int head = port; head < s.n_kv_heads; head += kKvPorts) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = 8
  KV_TEAMS:
    for (int i = 0; i < step.n_teams * chunks; ++i) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kMaxRows
      // A team's blocks follow one another in memory.
      const Team& team = step.teams[i / chunks];
      const int from = KvBeatOf(s, team.slot, layer, head, 0);
    KV_BEATS:
      for (int n = 0; n < (team.last + 1) * s.kv_record_beats; ++n) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT min = 192 max = 32768
        reader.beats.write(memory[from + n]);
      }
    }
  }
}

// The only reader of weight channel `channel`. It knows nothing of the results: it runs ahead
// as far as the FIFO lets it, across matrices and layers.
inline void Load(const Beat* memory, int channel, const Step& step, WeightPort& port) {
#pragma HLS INLINE off
  SendEmbeddings(memory, channel, step, port);
  const int begin = LayerBase(step.layout, channel, step.layer_begin);
  const int end = LayerBase(step.layout, channel, step.layer_end);
  SendWords(memory, begin, end - begin, port.beats);
  SendTail(memory, channel, step, port);
}

// The only reader of a port's keys and values. What this step computes is on chip, so it may run
// ahead here too.
inline void LoadKv(const KvBeat* memory, int port, const Step& step, KvReader& reader) {
#pragma HLS INLINE off
KV_LAYERS:
  for (int layer = step.layer_begin; layer < step.layer_end; ++layer) {
#pragma HLS LOOP_TRIPCOUNT min = 6 max = kMaxLayers
    SendKv(memory, port, step, layer, reader);
  }
}

// Both, through one AXI master: a master has one reader. In the order of use, so that it never
// waits for room that only what it has yet to bring would make.
inline void LoadBoth(const Beat* memory, const KvBeat* kv_memory, int index, const Step& step,
                     WeightPort& port, KvReader& reader) {
#pragma HLS INLINE off
  const Layout& plan = step.layout;
  SendEmbeddings(memory, index, step, port);
BOTH_LAYERS:
  for (int layer = step.layer_begin; layer < step.layer_end; ++layer) {
#pragma HLS LOOP_TRIPCOUNT min = 6 max = kMaxLayers
    const int begin = LayerBase(plan, index, layer);
    const int end = LayerBase(plan, index, layer + 1);
    const int attend = begin + NormsBefore(plan, index, 1) + plan.attention_out.first_word;
    SendWords(memory, begin, attend - begin, port.beats);
    SendKv(kv_memory, index, step, layer, reader);
    SendWords(memory, attend, end - attend, port.beats);
  }
  SendTail(memory, index, step, port);
}

inline void PlaceKvWriter(KvBeat*, KvWriter&) {
#pragma HLS INLINE
}

// The only writer: this step's records, in the order in which compute hands them over.
inline void StoreKv(KvBeat* memory, int port, const Step& step, KvWriter& writer) {
#pragma HLS INLINE off
  const Shape& s = step.shape;
STORE_LAYERS:
  for (int layer = step.layer_begin; layer < step.layer_end; ++layer) {
#pragma HLS LOOP_TRIPCOUNT min = 6 max = kMaxLayers
  STORE_ROWS:
    for (int row = 0; row < kMaxRows; ++row) {
      const Row& r = step.rows[row];
      if (row < step.n_rows && r.active) {
      STORE_HEADS:
        for (int head = port; head < s.n_kv_heads; head += kKvPorts) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = 8
          const int to = KvBeatOf(s, r.slot, layer, head, r.position);
        STORE_RECORD:
          for (int n = 0; n < s.kv_record_beats; ++n) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT min = 6 max = 64
            memory[to + n] = writer.beats.read();
          }
        }
      }
    }
  }
}

inline int ActiveRows(int) {
  return kMaxRows;
}

// One engine after the other: what runs side by side is inside an engine.
template <typename Task>
inline void ParallelFor(int n, int64_t, const Task& task) {
#pragma HLS INLINE
TASKS:
  for (int i = 0; i < n; ++i) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = 64
    task(i);
  }
}

// All of them down one pipeline.
template <typename Task>
inline void ParallelRows(int rows, int64_t, const Task& task) {
#pragma HLS INLINE
  const RowSpan all = {0, rows};
  task(all);
}

// Compute says what it begins; the profile process, which never waits, knows when.
struct EventPort {
  hls::stream<uint32_t, 64> events;

  void Mark(int stage, int layer) {
#pragma HLS INLINE
    events.write(static_cast<uint32_t>(stage | layer << 8));
  }
};

inline void OpenEvents(const Step&, uint32_t*, EventPort&) {
#pragma HLS INLINE
}

inline void RecordEvents(const Step& step, EventPort& port, uint32_t* profile) {
#pragma HLS INLINE off
  uint32_t event_of[kMaxStepEvents];
  uint32_t ticks_of[kMaxStepEvents];
  uint32_t ticks = 0;
  int n = 0;
  bool running = step.profile;
COUNT_CYCLES:
  while (running) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT min = 1000000 max = 1000000
    uint32_t event;
    if (port.events.read_nb(event)) {
      if (n < kMaxStepEvents) {
        event_of[n] = event;
        ticks_of[n] = ticks;
        ++n;
      }
      running = (event & 0xffu) != kStageEnd;
    }
    ++ticks;
  }
  if (step.profile) {
    const int base = step.index * kProfileStepWords;
    profile[base] = static_cast<uint32_t>(n);
  WRITE_RECORD:
    for (int i = 0; i < 2 * n; ++i) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT min = 256 max = 2048
      profile[base + 2 + i] = i % 2 == 0 ? event_of[i / 2] : ticks_of[i / 2];
    }
  }
}

}  // namespace kernel
