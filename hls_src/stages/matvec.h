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

// What one group of the engine's tiles comes to: dot products, and the weights' scales.
struct GroupDots {
  int32_t dots[kEngineTiles][kMaxRows][kTileRows];
  float scales[kEngineTiles][kTileRows];
};

// Where an engine's tiles lie; the fabric's streams need not be told.
struct EnginePlace {
  int first_channel;
  int word[kEngineTiles];
};

// Reads kTileRows rows of one group of every tile, and meets them with every row of the call.
LLAMA_HOST_INLINE void DotRows(WeightPorts& ports, const EnginePlace& at, int first_word,
                               int group_size, const QuantizedRows& in, int group, int rows,
                               GroupDots& out) {
#pragma HLS INLINE off
  const bool wide = group_size == kMaxGroup;  // a word holds one row's group, else two rows'
  alignas(kWordBytes) int8_t operand[kMaxRows][kWordBytes];
#pragma HLS ARRAY_PARTITION variable = operand complete dim = 0
BROADCAST:
  for (int row = 0; row < ActiveRows(rows); ++row) {
#pragma HLS UNROLL
    for (int i = 0; i < kMinGroup; ++i) {
#pragma HLS UNROLL
      const int8_t* group_values = in.q[row] + group * group_size;
      operand[row][i] = group_values[i];
      operand[row][kMinGroup + i] = wide ? group_values[kMinGroup + i] : group_values[i];
    }
  }
  const int value_words = wide ? kTileRows : kTileRows / 2;
VALUE_WORDS:
  for (int w = 0; w < value_words; ++w) {
#pragma HLS LOOP_TRIPCOUNT min = kTileRows / 2 max = kTileRows
    int32_t total[kEngineTiles][kMaxRows];
    int32_t low[kEngineTiles][kMaxRows];
#pragma HLS ARRAY_PARTITION variable = total complete dim = 0
#pragma HLS ARRAY_PARTITION variable = low complete dim = 0
  VALUE_BEATS:
    for (int b = 0; b < kWordBeats; ++b) {
#pragma HLS PIPELINE II = 1
      for (int e = 0; e < kEngineTiles; ++e) {
#pragma HLS UNROLL
        const Beat& beat = ports[at.first_channel + e].Read(at.word[e] + first_word + w, b);
        for (int row = 0; row < ActiveRows(rows); ++row) {
#pragma HLS UNROLL
          int32_t sum = 0;
          for (int i = 0; i < kBeatBytes; ++i) {
#pragma HLS UNROLL
            sum += static_cast<int32_t>(beat.b[i]) *
                   static_cast<int32_t>(operand[row][b * kBeatBytes + i]);
          }
          // The word's first half: whole beats of it, or the first half of its only beat.
          int32_t half = b * kBeatBytes < kMinGroup ? sum : 0;
          if (kBeatBytes > kMinGroup && !wide) {
            half = 0;
            for (int i = 0; i < kMinGroup; ++i) {
#pragma HLS UNROLL
              half += static_cast<int32_t>(beat.b[i]) * static_cast<int32_t>(operand[row][i]);
            }
          }
          total[e][row] = (b == 0 ? 0 : total[e][row]) + sum;
          low[e][row] = (b == 0 ? 0 : low[e][row]) + half;
          if (b == kWordBeats - 1) {
            if (wide) {
              out.dots[e][row][w] = total[e][row];
            } else {
              out.dots[e][row][2 * w] = low[e][row];
              out.dots[e][row][2 * w + 1] = total[e][row] - low[e][row];
            }
          }
        }
      }
    }
  }
SCALE_WORDS:
  for (int w = 0; w < kScaleWords; ++w) {
#pragma HLS PIPELINE II = kWordBeats
    for (int e = 0; e < kEngineTiles; ++e) {
#pragma HLS UNROLL
      const int index = at.word[e] + first_word + value_words + w;
      const Word word = ReadWord(ports[at.first_channel + e], index);
      for (int i = 0; i < kWordBytes / 4; ++i) {
#pragma HLS UNROLL
        out.scales[e][w * (kWordBytes / 4) + i] = WordFloat(word, i);
      }
    }
  }
}

// Scales one group's dot products and adds them; groups come in ascending order.
LLAMA_HOST_INLINE void ScaleRows(const GroupDots& in_dots, const QuantizedRows& in, int group,
                                 int rows, TileSums* sums) {
#pragma HLS INLINE off
SCALE_ROWS:
  for (int first = 0; first < kTileRows; first += kScaleLanes) {
#pragma HLS PIPELINE II = 1
    for (int e = 0; e < kEngineTiles; ++e) {
#pragma HLS UNROLL
      for (int row = 0; row < ActiveRows(rows); ++row) {
#pragma HLS UNROLL
        const float row_scale = in.scale[row][group];
        const int32_t offset = in.offset[row][group];
        for (int lane = 0; lane < kScaleLanes; ++lane) {
#pragma HLS UNROLL
          const int r = first + lane;
          const float dot = static_cast<float>(in_dots.dots[e][row][r] - offset);
          const float scaled = (dot * in_dots.scales[e][r]) * row_scale;
          sums[e][row][r] = sums[e][row][r] + scaled;
        }
      }
    }
  }
}

// One set of tiles, from the first group to the last.
LLAMA_HOST_INLINE void RunEngine(WeightPorts& ports, const EnginePlace& at, int group_size,
                                 const QuantizedRows& in, int groups, int rows, TileSums* sums) {
#pragma HLS INLINE off
CLEAR:
  for (int r = 0; r < kTileRows; ++r) {
#pragma HLS PIPELINE II = 1
    for (int e = 0; e < kEngineTiles; ++e) {
#pragma HLS UNROLL
      for (int row = 0; row < ActiveRows(rows); ++row) {
#pragma HLS UNROLL
        sums[e][row][r] = 0.0f;
      }
    }
  }
  const int group_words = kTileRows * group_size / kWordBytes + kScaleWords;
GROUPS:
  for (int g = 0; g < groups; ++g) {
#pragma HLS DATAFLOW
#pragma HLS LOOP_TRIPCOUNT min = 9 max = 224
    GroupDots group_dots;
#pragma HLS ARRAY_PARTITION variable = group_dots.dots complete dim = 1
#pragma HLS ARRAY_PARTITION variable = group_dots.dots complete dim = 2
#pragma HLS ARRAY_PARTITION variable = group_dots.dots cyclic factor = 2 dim = 3
#pragma HLS ARRAY_PARTITION variable = group_dots.scales complete dim = 0
    DotRows(ports, at, g * group_words, group_size, in, g, rows, group_dots);
    ScaleRows(group_dots, in, g, rows, sums);
  }
}

// A matrix and what becomes of its sums.
enum Epilogue { kKeep, kResidual, kGate, kSample };

struct MatVecJob {
  Matrix matrix;
  int base[kChannels];  // word of wave 0
  int group_size, rows;
  Epilogue epilogue;
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
      const int words = TileWords(job.matrix.groups, job.group_size);
      at.word[e] = job.base[at.first_channel + e] + tile / kChannels * words;
    }
    TileSums* mine = sums + i * kEngineTiles;
    const int groups = job.matrix.groups;
    // The host makes a copy for each group size; fabric has one.
    if (job.group_size == kMaxGroup) {
      RunEngine(ports, at, kMaxGroup, in, groups, job.rows, mine);
    } else {
      RunEngine(ports, at, kMinGroup, in, groups, job.rows, mine);
    }
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
  const int64_t macs = job.matrix.groups * job.group_size * kTileRows * job.rows;
  ParallelFor(tiles / kEngineTiles, macs, engine);
}

}  // namespace kernel
