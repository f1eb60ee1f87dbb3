// Weights times activations. A weight word is read once and meets every row of the call.
//
//   broadcast -> engine[channel] -> collect
//
// The engines are independent; what becomes of their sums is the epilogue's business.
#pragma once

#include "quantize.h"
#include "shims/shims.h"

namespace kernel {

typedef float TileSums[kMaxRows][kTileRows];

// What one group of a tile comes to: exact dot products, and the weights' scales.
struct GroupDots {
  int32_t dots[kMaxRows][kTileRows];
  float scales[kTileRows];
};

// Reads kTileRows rows of one group, and meets them with every row of the call.
template <int kGroupSize>
inline void DotRows(WeightPort& port, int first_word, const QuantizedRows& in, int group, int rows,
                    GroupDots& out) {
#pragma HLS INLINE off
  constexpr int kRowsPerWord = kWordBytes / kGroupSize;
  constexpr int kValueWords = kTileRows / kRowsPerWord;
  // One row's group, as often as it fits a word.
  alignas(kWordBytes) int8_t operand[kMaxRows][kWordBytes];
#pragma HLS ARRAY_PARTITION variable = operand complete dim = 0
BROADCAST:
  for (int row = 0; row < ActiveRows(rows); ++row) {
    for (int copy = 0; copy < kRowsPerWord; ++copy) {
#pragma HLS UNROLL
      for (int i = 0; i < kGroupSize; ++i) {
#pragma HLS UNROLL
        operand[row][copy * kGroupSize + i] = in.q[row][group * kGroupSize + i];
      }
    }
  }
DOT_WORDS:
  for (int w = 0; w < kValueWords; ++w) {
#pragma HLS PIPELINE II = kWordBeats
    const Word& word = port.Read(first_word + w);
    for (int row = 0; row < ActiveRows(rows); ++row) {
#pragma HLS UNROLL
      int32_t total = 0;
      for (int i = 0; i < kWordBytes; ++i) {
#pragma HLS UNROLL
        total += static_cast<int32_t>(word.b[i]) * static_cast<int32_t>(operand[row][i]);
      }
      if (kRowsPerWord == 1) {
        out.dots[row][w] = total;
      } else {
        int32_t low = 0;
        for (int i = 0; i < kWordBytes / 2; ++i) {
#pragma HLS UNROLL
          low += static_cast<int32_t>(word.b[i]) * static_cast<int32_t>(operand[row][i]);
        }
        out.dots[row][2 * w] = low;
        out.dots[row][2 * w + 1] = total - low;
      }
    }
  }
READ_SCALES:
  for (int w = 0; w < kScaleWords; ++w) {
#pragma HLS PIPELINE II = kWordBeats
    const Word& word = port.Read(first_word + kValueWords + w);
    for (int i = 0; i < kWordBytes / 4; ++i) {
#pragma HLS UNROLL
      out.scales[w * (kWordBytes / 4) + i] = WordFloat(word, i);
    }
  }
}

// Scales one group's dot products and adds them; groups come in ascending order.
inline void ScaleRows(const GroupDots& group_dots, const QuantizedRows& in, int group, int rows,
                      TileSums& sums) {
#pragma HLS INLINE off
SCALE_ROWS:
  for (int row = 0; row < ActiveRows(rows); ++row) {
    const float row_scale = in.scale[row][group];
    const int32_t offset = in.offset[row][group];
    for (int r = 0; r < kTileRows; ++r) {
#pragma HLS PIPELINE II = 1
      const float dot = static_cast<float>(group_dots.dots[row][r] - offset);
      const float scaled = (dot * group_dots.scales[r]) * row_scale;
      sums[row][r] = sums[row][r] + scaled;
    }
  }
}

template <int kGroupSize>
inline void DotTile(WeightPort& port, int first_word, const QuantizedRows& in, int groups, int rows,
                    TileSums& sums) {
#pragma HLS INLINE off
  constexpr int kGroupWords = kTileRows * kGroupSize / kWordBytes + kScaleWords;
CLEAR:
  for (int row = 0; row < ActiveRows(rows); ++row) {
    for (int r = 0; r < kTileRows; ++r) {
#pragma HLS PIPELINE II = 1
      sums[row][r] = 0.0f;
    }
  }
GROUPS:
  for (int g = 0; g < groups; ++g) {
#pragma HLS DATAFLOW
#pragma HLS LOOP_TRIPCOUNT min = 9 max = 224
    GroupDots group_dots;
#pragma HLS ARRAY_PARTITION variable = group_dots.dots complete dim = 1
    DotRows<kGroupSize>(port, first_word + g * kGroupWords, in, g, rows, group_dots);
    ScaleRows(group_dots, in, g, rows, sums);
  }
}

// Tile i of those in flight: one engine's work.
struct TileTask {
  WeightPort* ports;
  const QuantizedRows& in;
  TileSums* sums;
  int first_tile, tile_words, groups, group_size, rows;
  const int* base;  // word of wave 0, per channel

  void operator()(int channel, int i) const {
#pragma HLS INLINE
    const int wave = (first_tile + i) / kChannels;
    const int word = base[channel] + wave * tile_words;
    if (group_size == kMaxGroup) {
      DotTile<kMaxGroup>(ports[channel], word, in, groups, rows, sums[i]);
    } else {
      DotTile<kMinGroup>(ports[channel], word, in, groups, rows, sums[i]);
    }
  }
};

// Engines fill one set of sums while the epilogue takes the last one; epilogue.Take(tile, sums)
// sees the tiles in ascending order.
template <typename Epilogue>
inline void MatVec(WeightPort (&ports)[kChannels], const Matrix& m, const int (&base)[kChannels],
                   const QuantizedRows& in, int group_size, int rows, Epilogue& epilogue) {
#pragma HLS INLINE off
  const int tiles = m.waves * kChannels;
WAVES:
  for (int first = 0; first < tiles; first += kTilesInFlight) {
#pragma HLS DATAFLOW
#pragma HLS LOOP_TRIPCOUNT min = 2 max = 500
    const int n = tiles - first < kTilesInFlight ? tiles - first : kTilesInFlight;
    TileSums sums[kTilesInFlight];
    const TileTask engine = {ports,    in,         sums, first, TileWords(m.groups, group_size),
                             m.groups, group_size, rows, base};
    ParallelFor<kChannels>(n, m.groups * group_size * kTileRows * rows, engine);
  COLLECT:
    for (int i = 0; i < n; ++i) {
#pragma HLS LOOP_TRIPCOUNT min = kChannels max = kTilesInFlight
      epilogue.Take(first + i, sums[i]);
    }
  }
}

}  // namespace kernel
