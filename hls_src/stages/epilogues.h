// What becomes of a matrix's sums, a block of tiles at a time: kept, added to the residual
// stream, gated and quantised, or sampled (sample.h). In a block, tiles and rows follow one
// another down one pipeline.
#pragma once

#include "matvec.h"

namespace kernel {

typedef TileSums BlockSums[kTilesInFlight];

// out[row][i] = sum
inline void KeepTiles(int first_tile, int tiles, const BlockSums& sums, int n, int rows,
                      float (*out)[kMaxQkv]) {
#pragma HLS INLINE
KEEP_TILES:
  for (int t = 0; t < tiles; ++t) {
#pragma HLS LOOP_TRIPCOUNT min = kChannels max = kTilesInFlight
  KEEP:
    for (int row = 0; row < rows; ++row) {
#pragma HLS PIPELINE II = kTileRows / kVectorLanes
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kMaxRows
      for (int r = 0; r < kTileRows; ++r) {
#pragma HLS UNROLL
        const int i = (first_tile + t) * kTileRows + r;
        if (i < n) out[row][i] = sums[t][row][r];
      }
    }
  }
}

// x[row][i] += sum
inline void AddTiles(int first_tile, int tiles, const BlockSums& sums, int n, int rows,
                     float (*x)[kMaxDim]) {
#pragma HLS INLINE
ADD_TILES:
  for (int t = 0; t < tiles; ++t) {
#pragma HLS LOOP_TRIPCOUNT min = kChannels max = kTilesInFlight
  ADD:
    for (int row = 0; row < rows; ++row) {
#pragma HLS PIPELINE II = kTileRows / kVectorLanes
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kMaxRows
      for (int r = 0; r < kTileRows; ++r) {
#pragma HLS UNROLL
        const int i = (first_tile + t) * kTileRows + r;
        if (i < n) x[row][i] = x[row][i] + sums[t][row][r];
      }
    }
  }
}

// Gated hidden units that are not quantised yet: a block of tiles' worth, or a group that two
// blocks share.
constexpr int kGateUnits = RoundUp(kTilesInFlight / 2 * kTileRows, kMaxGroup);

struct GateState {
  float units[kMaxRows][kGateUnits];
};

// silu(w1 x) * (w3 x), quantised as soon as a group is whole: no float vector of hidden_dim.
inline void GateTiles(int first_tile, int tiles, const BlockSums& sums, int hidden_dim,
                      int group_size, int rows, GateState& state, QuantizedRows& out) {
#pragma HLS INLINE
  const int first = first_tile / 2 * kTileRows;  // hidden unit
  const int end = first + tiles / 2 * kTileRows;
GATE_TILES:
  for (int t = 0; t < tiles; t += 2) {
#pragma HLS LOOP_TRIPCOUNT min = kChannels / 2 max = kTilesInFlight / 2
  GATE:
    for (int row = 0; row < rows; ++row) {
#pragma HLS PIPELINE II = kGateCycles
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kMaxRows
      for (int r = 0; r < kTileRows; ++r) {
#pragma HLS UNROLL
        const float g = sums[t][row][r];
        const float bottom = 1.0f + Exp(-g);
        const float silu = g / bottom;
        const int unit = first + t / 2 * kTileRows + r;
        state.units[row][unit % kGateUnits] = silu * sums[t + 1][row][r];
      }
    }
  }
  // Groups that end in this block; they may have begun in the one before.
QUANTIZE_HIDDEN:
  for (int g = first / group_size; (g + 1) * group_size <= end; ++g) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kGateUnits / kMinGroup
  QUANTIZE_ROWS:
    for (int row = 0; row < rows; ++row) {
#pragma HLS PIPELINE II = kMaxGroup / kVectorLanes
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kMaxRows
      const int start = g * group_size;
      if (start < hidden_dim) {
        QuantizeInto(state.units[row] + start % kGateUnits, hidden_dim, group_size, row, g, out);
      }
    }
  }
}

}  // namespace kernel
