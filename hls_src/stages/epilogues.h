// What becomes of a matrix's sums, a block of tiles at a time: kept, added to the residual
// stream, gated and quantised, or sampled (sample.h). In a block, tiles and rows follow one
// another down one pipeline.
#pragma once

#include "matvec.h"

namespace kernel {

// Which tile and row of a block an epilogue's loop has come to: one loop, so that HLS has no
// inner one of unknown length to drain.
struct Item {
  int tile, row;

  void Next(int rows) {
#pragma HLS INLINE
    const bool last = row + 1 == rows;
    tile = last ? tile + 1 : tile;
    row = last ? 0 : row + 1;
  }
};

// out[row][i] = sum
inline void KeepTiles(int first_tile, int tiles, const BlockSums& sums, int n, int rows,
                      float (*out)[kMaxQkv]) {
#pragma HLS INLINE
  Item at = {0, 0};
KEEP:
  for (int item = 0; item < tiles * rows; ++item) {
#pragma HLS PIPELINE II = kTileRows / kVectorLanes
#pragma HLS LOOP_TRIPCOUNT min = kChannels max = kTilesInFlight * kMaxRows
    for (int r = 0; r < kTileRows; ++r) {
#pragma HLS UNROLL
      const int i = (first_tile + at.tile) * kTileRows + r;
      if (i < n) out[at.row][i] = sums[at.tile][at.row][r];
    }
    at.Next(rows);
  }
}

// x[row][i] += sum
inline void AddTiles(int first_tile, int tiles, const BlockSums& sums, int n, int rows,
                     float (*x)[kMaxDim]) {
#pragma HLS INLINE
  Item at = {0, 0};
ADD:
  for (int item = 0; item < tiles * rows; ++item) {
#pragma HLS PIPELINE II = kTileRows / kVectorLanes
#pragma HLS LOOP_TRIPCOUNT min = kChannels max = kTilesInFlight * kMaxRows
#pragma HLS DEPENDENCE variable = x inter false
    for (int r = 0; r < kTileRows; ++r) {
#pragma HLS UNROLL
      const int i = (first_tile + at.tile) * kTileRows + r;
      if (i < n) x[at.row][i] = x[at.row][i] + sums[at.tile][at.row][r];
    }
    at.Next(rows);
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
  Item at = {0, 0};  // a pair of tiles
GATE:
  for (int item = 0; item < tiles / 2 * rows; ++item) {
#pragma HLS PIPELINE II = kGateCycles
#pragma HLS LOOP_TRIPCOUNT min = kChannels / 2 max = kTilesInFlight / 2 * kMaxRows
    for (int r = 0; r < kTileRows; ++r) {
#pragma HLS UNROLL
      const float g = sums[2 * at.tile][at.row][r];
      const float bottom = 1.0f + Exp(-g);
      const float silu = g / bottom;
      const int unit = first + at.tile * kTileRows + r;
      state.units[at.row][unit % kGateUnits] = silu * sums[2 * at.tile + 1][at.row][r];
    }
    at.Next(rows);
  }
  // Groups that end in this block; they may have begun in the one before.
  const bool wide = group_size == kMaxGroup;
  const int first_group = wide ? first / kMaxGroup : first / kMinGroup;
  const int groups = (wide ? end / kMaxGroup : end / kMinGroup) - first_group;
  at.tile = first_group;
QUANTIZE_HIDDEN:
  for (int item = 0; item < groups * rows; ++item) {
#pragma HLS PIPELINE II = kMaxGroup / kVectorLanes
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kGateUnits / kMinGroup * kMaxRows
    const int half = wide ? 2 * at.tile : at.tile;
    if (half * kMinGroup < hidden_dim) {
      QuantizeInto(state.units[at.row], half % (kGateUnits / kMinGroup), hidden_dim, group_size,
                   at.row, at.tile, out);
    }
    at.Next(rows);
  }
}

}  // namespace kernel
