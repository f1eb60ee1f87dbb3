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

// kTileRows rows of one group, as words: exact int32 dot products with every row.
template <int kGroupSize>
inline void DotRows(WeightPort& port, int first_word, const QuantizedRows& in, int group, int rows,
                    int32_t (&dots)[kMaxRows][kTileRows]) {
  constexpr int kRowsPerWord = kWordBytes / kGroupSize;
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
  for (int w = 0; w < kTileRows / kRowsPerWord; ++w) {
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
        dots[row][w] = total;
      } else {
        int32_t low = 0;
        for (int i = 0; i < kWordBytes / 2; ++i) {
#pragma HLS UNROLL
          low += static_cast<int32_t>(word.b[i]) * static_cast<int32_t>(operand[row][i]);
        }
        dots[row][2 * w] = low;
        dots[row][2 * w + 1] = total - low;
      }
    }
  }
}

// The rows' scales follow their values; groups add in ascending order.
inline void ScaleRows(WeightPort& port, int first_word, const QuantizedRows& in, int group,
                      int rows, const int32_t (&dots)[kMaxRows][kTileRows], TileSums& sums) {
#pragma HLS INLINE off
  float scales[kTileRows];
#pragma HLS ARRAY_PARTITION variable = scales complete
READ_SCALES:
  for (int w = 0; w < kScaleWords; ++w) {
#pragma HLS PIPELINE II = kWordBeats
    const Word& word = port.Read(first_word + w);
    for (int i = 0; i < kWordBytes / 4; ++i) {
#pragma HLS UNROLL
      scales[w * (kWordBytes / 4) + i] = WordFloat(word, i);
    }
  }
SCALE_ROWS:
  for (int row = 0; row < ActiveRows(rows); ++row) {
    const float row_scale = in.scale[row][group];
    const int32_t offset = in.offset[row][group];
    for (int r = 0; r < kTileRows; ++r) {
#pragma HLS PIPELINE II = 1
      const float dot = static_cast<float>(dots[row][r] - offset);
      const float scaled = (dot * scales[r]) * row_scale;
      sums[row][r] = sums[row][r] + scaled;
    }
  }
}

template <int kGroupSize>
inline void DotTile(WeightPort& port, int first_word, const QuantizedRows& in, int groups, int rows,
                    TileSums& sums) {
#pragma HLS INLINE off
  constexpr int kValueWords = kTileRows * kGroupSize / kWordBytes;
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
    int32_t dots[kMaxRows][kTileRows];
#pragma HLS ARRAY_PARTITION variable = dots complete dim = 1
    const int first = first_word + g * (kValueWords + kScaleWords);
    DotRows<kGroupSize>(port, first, in, g, rows, dots);
    ScaleRows(port, first + kValueWords, in, g, rows, dots, sums);
  }
}

// Tile i of those in flight: one engine's work.
struct TileTask {
  WeightPort* ports;
  const QuantizedRows& in;
  TileSums* sums;
  int first_tile, tile_words, groups, group_size, rows;
  const int* base;  // word of wave 0, per channel

  void operator()(int i) const {
#pragma HLS INLINE
    const int channel = i % kChannels;
    const int wave = (first_tile + i) / kChannels;
    const int word = base[channel] + wave * tile_words;
    if (group_size == kMaxGroup) {
      DotTile<kMaxGroup>(ports[channel], word, in, groups, rows, sums[i]);
    } else {
      DotTile<kMinGroup>(ports[channel], word, in, groups, rows, sums[i]);
    }
  }
};

// epilogue.Take(tile, sums) sees the tiles in ascending order.
template <typename Epilogue>
inline void MatVec(WeightPort (&ports)[kChannels], const Matrix& m, const int (&base)[kChannels],
                   const QuantizedRows& in, int group_size, int rows,
                   TileSums (&sums)[kTilesInFlight], Epilogue& epilogue) {
#pragma HLS INLINE off
  const int tiles = m.waves * kChannels;
WAVES:
  for (int first = 0; first < tiles; first += kTilesInFlight) {
#pragma HLS DATAFLOW
#pragma HLS LOOP_TRIPCOUNT min = 2 max = 500
    const int n = tiles - first < kTilesInFlight ? tiles - first : kTilesInFlight;
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
