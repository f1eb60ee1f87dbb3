// Weights times activations. A weight word is read once and meets every row of the call.
//
// An engine computes kEngineTiles tiles in lockstep: one of every channel on fabric, where the
// activations of a group are read once for all of them; one on the host, where each thread is
// an engine. Group by group it streams a tile's words into exact dot products, and scales and
// adds those while the next group streams in.
#pragma once

#include "quantize.h"
#include "shims/shims.h"

namespace kernel {

typedef WeightPort WeightPorts[kChannels];
typedef float TileSums[kMaxRows][kTileRows];

inline Word ReadWord(WeightPort& port, int index) {
#pragma HLS INLINE
  Word word;
READ_WORD:
  for (int b = 0; b < kWordBeats; ++b) {
    const Beat& beat = port.Read(index, b);
    for (int i = 0; i < kBeatBytes; ++i) {
#pragma HLS UNROLL
      word.b[b * kBeatBytes + i] = beat.b[i];
    }
  }
  return word;
}

// What some groups of the engine's tiles come to: dot products, and the weights' scales.
struct GroupDots {
  int32_t dots[kEngineTiles][kMaxRows][kGroupsInFlight][kTileRows];
  float scales[kEngineTiles][kGroupsInFlight][kTileRows];
};

// Where an engine's tiles lie; the fabric's streams need not be told.
struct EnginePlace {
  int first_channel;
  int word[kEngineTiles];
};

// kBytes weights times activations.
template <int kBytes>
LLAMA_HOST_INLINE int32_t DotBytes(const uint8_t* weights, const int8_t* x) {
#pragma HLS INLINE
  int32_t sum = 0;
  for (int i = 0; i < kBytes; ++i) {
#pragma HLS UNROLL
    sum += static_cast<int32_t>(weights[i]) * static_cast<int32_t>(x[i]);
  }
  return sum;
}

// The same where a byte holds two: the other half of the group is kMinGroup further on.
template <int kBytes>
LLAMA_HOST_INLINE int32_t DotNibbles(const uint8_t* weights, const int8_t* x) {
#pragma HLS INLINE
  int32_t sum = 0;
  for (int i = 0; i < kBytes; ++i) {
#pragma HLS UNROLL
    const uint8_t low = weights[i] & 15;
    sum += static_cast<int32_t>(low) * static_cast<int32_t>(x[i]);
  }
  for (int i = 0; i < kBytes; ++i) {
#pragma HLS UNROLL
    const uint8_t high = weights[i] >> 4;
    sum += static_cast<int32_t>(high) * static_cast<int32_t>(x[kMinGroup + i]);
  }
  return sum;
}

template <int kBytes>
LLAMA_HOST_INLINE int32_t Dot(const uint8_t* weights, const int8_t* x, bool int4) {
#pragma HLS INLINE
  return int4 ? DotNibbles<kBytes>(weights, x) : DotBytes<kBytes>(weights, x);
}

// One beat of every tile, at word `w` of group `g` of those in flight: it meets every row of the
// call, or is scales.
struct DotBeat {
  WeightPorts& ports;
  const EnginePlace& at;
  const Format& format;
  const QuantizedRows& in;
  int first_group, rows;
  int8_t (&operand)[kMaxRows][kMaxGroup];    // the group's activations
  int32_t (&first)[kEngineTiles][kMaxRows];  // sums of a word's first half
  int32_t (&second)[kEngineTiles][kMaxRows];
  GroupDots& out;

  LLAMA_HOST_INLINE void operator()(int g, int w, int b) const {
#pragma HLS INLINE
    const bool wide = format.row_bytes == kWordBytes;  // a word holds one row's group, else two
    const int value_words = wide ? kTileRows : kTileRows / 2;
    const int group = first_group + g;
    if (w == 0 && b == 0) {
      for (int row = 0; row < ActiveRows(rows); ++row) {
#pragma HLS UNROLL
        for (int i = 0; i < kMinGroup; ++i) {
#pragma HLS UNROLL
          const int8_t* group_values = in.q[row] + group * format.group_size;
          operand[row][i] = group_values[i];
          operand[row][kMinGroup + i] =
              group_values[format.group_size == kMaxGroup ? kMinGroup + i : i];
        }
      }
    }
    for (int e = 0; e < kEngineTiles; ++e) {
#pragma HLS UNROLL
      const int word = at.word[e] + group * (value_words + kScaleWords) + w;
      const Beat& beat = ports[at.first_channel + e].Read(word, b);
      if (w < value_words) {
        for (int row = 0; row < ActiveRows(rows); ++row) {
#pragma HLS UNROLL
          const int from = wide ? b * kBeatBytes : b * kBeatBytes % kMinGroup;
          const int8_t* x = operand[row] + from;
          const bool in_first = b * kBeatBytes < kMinGroup;
          int32_t here = 0, there = 0;
          if (kBeatBytes <= kMinGroup || wide) {
            const int32_t sum = Dot<kBeatBytes>(beat.b, x, format.int4);
            here = in_first ? sum : 0;
            there = in_first ? 0 : sum;
          } else {
            here = Dot<kMinGroup>(beat.b, x, format.int4);
            there = Dot<kMinGroup>(beat.b + kBeatBytes - kMinGroup, x, format.int4);
          }
          first[e][row] = (b == 0 ? 0 : first[e][row]) + here;
          second[e][row] = (b == 0 ? 0 : second[e][row]) + there;
          if (b == kWordBeats - 1) {
            if (wide) {
              out.dots[e][row][g][w] = first[e][row] + second[e][row];
            } else {
              out.dots[e][row][g][2 * w] = first[e][row];
              out.dots[e][row][g][2 * w + 1] = second[e][row];
            }
          }
        }
      } else {
        for (int i = 0; i < kBeatBytes / 4; ++i) {
#pragma HLS UNROLL
          const int r = ((w - value_words) * kWordBeats + b) * (kBeatBytes / 4) + i;
          out.scales[e][g][r] = BytesFloat(beat.b, i);
        }
      }
    }
  }
};

// Streams in `groups` groups of every tile.
LLAMA_HOST_INLINE void DotGroups(WeightPorts& ports, const EnginePlace& at, const Format& format,
                                 const QuantizedRows& in, int first_group, int groups, int rows,
                                 GroupDots& out) {
#pragma HLS INLINE off
  alignas(kWordBytes) int8_t operand[kMaxRows][kMaxGroup];
  int32_t first[kEngineTiles][kMaxRows];
  int32_t second[kEngineTiles][kMaxRows];
#pragma HLS ARRAY_PARTITION variable = operand complete dim = 0
#pragma HLS ARRAY_PARTITION variable = first complete dim = 0
#pragma HLS ARRAY_PARTITION variable = second complete dim = 0
  const DotBeat dot = {ports, at, format, in, first_group, rows, operand, first, second, out};
  const int group_words = kTileRows * format.row_bytes / kWordBytes + kScaleWords;
  ForEach(groups, group_words, kWordBeats, dot);
}

// Scales the groups' dot products and adds them; groups come in ascending order.
LLAMA_HOST_INLINE void ScaleGroups(const GroupDots& in_dots, const Format& format,
                                   const QuantizedRows& in, int first_group, int groups, int rows,
                                   TileSums* sums) {
#pragma HLS INLINE off
  int g = 0, first = 0;
SCALE_ROWS:
  for (int n = 0; n < groups * (kTileRows / kScaleLanes); ++n) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT min = kTileRows / kScaleLanes max = 8 * kTileRows / kScaleLanes
#pragma HLS DEPENDENCE variable = sums inter false
    for (int e = 0; e < kEngineTiles; ++e) {
#pragma HLS UNROLL
      for (int row = 0; row < ActiveRows(rows); ++row) {
#pragma HLS UNROLL
        const float row_scale = in.scale[row][first_group + g];
        // 128 times the sum of x, or 8 times, which is exact.
        const int32_t offset = in.offset[row][first_group + g] >> (format.int4 ? 4 : 0);
        for (int lane = 0; lane < kScaleLanes; ++lane) {
#pragma HLS UNROLL
          const int r = first + lane;
          const float dot = static_cast<float>(in_dots.dots[e][row][g][r] - offset);
          const float scaled = (dot * in_dots.scales[e][g][r]) * row_scale;
          const float before = first_group + g == 0 ? 0.0f : sums[e][row][r];
          sums[e][row][r] = before + scaled;
        }
      }
    }
    const bool group_done = first + kScaleLanes == kTileRows;
    first = group_done ? 0 : first + kScaleLanes;
    g = group_done ? g + 1 : g;
  }
}

// One set of tiles, from the first group to the last: some groups are scaled while the next are
// streamed in.
LLAMA_HOST_INLINE void RunEngine(WeightPorts& ports, const EnginePlace& at, const Format& format,
                                 const QuantizedRows& in, int groups, int rows, TileSums* sums) {
#pragma HLS INLINE off
GROUPS:
  for (int first = 0; first < groups; first += kGroupsInFlight) {
#pragma HLS DATAFLOW
#pragma HLS LOOP_TRIPCOUNT min = 1 max = 28
    GroupDots group_dots;
#pragma HLS ARRAY_PARTITION variable = group_dots.dots complete dim = 1
#pragma HLS ARRAY_PARTITION variable = group_dots.dots complete dim = 2
#pragma HLS ARRAY_PARTITION variable = group_dots.dots cyclic factor = 2 dim = 4
#pragma HLS ARRAY_PARTITION variable = group_dots.scales complete dim = 1
#pragma HLS ARRAY_PARTITION variable = group_dots.scales cyclic factor = kBeatBytes / 4 dim = 3
    const int left = groups - first;
    const int n = left < kGroupsInFlight ? left : kGroupsInFlight;
    DotGroups(ports, at, format, in, first, n, rows, group_dots);
    ScaleGroups(group_dots, format, in, first, n, rows, sums);
  }
}

// A matrix and what becomes of its sums.
enum Epilogue { kKeep, kResidual, kGate, kSample };

struct MatVecJob {
  Matrix matrix;
  int base[kChannels];  // word of wave 0
  Format format;
  int rows;
  Epilogue epilogue;
};

struct FormatTask {
  WeightPorts& ports;
  const EnginePlace& at;
  const QuantizedRows& in;
  int groups, rows;
  TileSums* sums;

  LLAMA_HOST_INLINE void operator()(const Format& format) const {
#pragma HLS INLINE
    RunEngine(ports, at, format, in, groups, rows, sums);
  }
};

struct EngineTask {
  WeightPorts& ports;
  const MatVecJob& job;
  const QuantizedRows& in;
  TileSums* sums;
  int first_tile;

  void operator()(int i) const {
#pragma HLS INLINE
    const int tile = first_tile + i * kEngineTiles;
    EnginePlace at;
    at.first_channel = kEngineTiles == kChannels ? 0 : tile % kChannels;
    for (int e = 0; e < kEngineTiles; ++e) {
#pragma HLS UNROLL
      const int words = TileWords(job.matrix.groups, job.format.row_bytes);
      at.word[e] = job.base[at.first_channel + e] + tile / kChannels * words;
    }
    const FormatTask engine = {ports, at, in, job.matrix.groups, job.rows, sums + i * kEngineTiles};
    ForFormat(job.format, engine);
  }
};

// The tiles of one block of waves.
inline void RunEngines(WeightPorts& ports, const MatVecJob& job, int block, const QuantizedRows& in,
                       TileSums (&sums)[kTilesInFlight]) {
#pragma HLS INLINE off
#pragma HLS ALLOCATION function instances = RunEngine limit = 1
  const int first = block * kTilesInFlight;
  const int left = job.matrix.waves * kChannels - first;
  const int tiles = left < kTilesInFlight ? left : kTilesInFlight;
  const EngineTask engine = {ports, job, in, sums, first};
  const int64_t macs = job.matrix.groups * job.format.group_size * kTileRows * job.rows;
  ParallelFor(tiles / kEngineTiles, macs, engine);
}

}  // namespace kernel
