// What becomes of a matrix's sums, a block of tiles at a time: kept, added to the residual
// stream, gated and quantised, or sampled (sample.h). In a block, tiles and rows follow one
// another down one pipeline.
#pragma once

#include "matvec.h"

namespace kernel {

// Which piece of a wave, and which row, an epilogue's loop has come to; a piece is a tile, or a
// few. One loop, so that HLS has no inner one of unknown length to drain.
struct Item {
  int wave, piece, row;
  int index;  // of the piece in the block

  void Next(const RowSpan& rows, int pieces) {
#pragma HLS INLINE
    const bool row_done = row + 1 == rows.first + rows.n;
    const bool wave_done = row_done && piece + 1 == pieces;
    row = row_done ? rows.first : row + 1;
    piece = wave_done ? 0 : (row_done ? piece + 1 : piece);
    wave = wave_done ? wave + 1 : wave;
    index = row_done ? index + 1 : index;
  }
};

inline Item FirstItem(const RowSpan& rows) {
#pragma HLS INLINE
  const Item first = {0, 0, rows.first, 0};
  return first;
}

// out[row][i] = sum
inline void KeepTiles(int first_tile, int tiles, const BlockSums& sums, int n, RowSpan rows,
                      float (*out)[kMaxQkv]) {
#pragma HLS INLINE
  Item at = FirstItem(rows);
KEEP:
  for (int item = 0; item < tiles * rows.n; ++item) {
#pragma HLS PIPELINE II = kTileRows / kVectorLanes
#pragma HLS LOOP_TRIPCOUNT min = kChannels max = kTilesInFlight * kMaxRows
    for (int r = 0; r < kTileRows; ++r) {
#pragma HLS UNROLL
      const int i = (first_tile + at.index) * kTileRows + r;
      if (i < n) out[at.row][i] = sums[at.wave][at.piece][at.row][r];
    }
    at.Next(rows, kChannels);
  }
}

// x[row][i] += sum
inline void AddTiles(int first_tile, int tiles, const BlockSums& sums, int n, RowSpan rows,
                     float (*x)[kMaxDim]) {
#pragma HLS INLINE
  Item at = FirstItem(rows);
ADD:
  for (int item = 0; item < tiles * rows.n; ++item) {
#pragma HLS PIPELINE II = kTileRows / kVectorLanes
#pragma HLS LOOP_TRIPCOUNT min = kChannels max = kTilesInFlight * kMaxRows
#pragma HLS DEPENDENCE variable = x inter false
    for (int r = 0; r < kTileRows; ++r) {
#pragma HLS UNROLL
      const int i = (first_tile + at.index) * kTileRows + r;
      if (i < n) x[at.row][i] = x[at.row][i] + sums[at.wave][at.piece][at.row][r];
    }
    at.Next(rows, kChannels);
  }
}

// Gated hidden units that are not quantised yet: a block of tiles' worth, and what is left of a
// group that two blocks share. A ring.
constexpr int kGateUnits = RoundUp(kTilesInFlight / 2 * kTileRows, kMaxGroup) +
                           (kTilesInFlight / 2 * kTileRows % kMaxGroup == 0 ? 0 : kMaxGroup);
constexpr int kGateTiles = kGateUnits / kTileRows;
constexpr int kGateHalves = kGateUnits / kMinGroup;

struct GateState {
  float units[kMaxRows][kGateUnits];
};

// silu(w1 x) * (w3 x), quantised as soon as a group is whole: no float vector of hidden_dim.
inline void GateTiles(int first_tile, int tiles, const BlockSums& sums, int hidden_dim,
                      int group_size, RowSpan rows, GateState& state, QuantizedRows& out) {
#pragma HLS INLINE
  const int first = first_tile / 2 * kTileRows;  // hidden unit
  const int end = first + tiles / 2 * kTileRows;
  Item at = FirstItem(rows);               // a pair of tiles
  int slot = first_tile / 2 % kGateTiles;  // its place in the ring
GATE:
  for (int item = 0; item < tiles / 2 * rows.n; ++item) {
#pragma HLS PIPELINE II = kGateCycles
#pragma HLS LOOP_TRIPCOUNT min = kChannels / 2 max = kTilesInFlight / 2 * kMaxRows
    for (int r = 0; r < kTileRows; ++r) {
#pragma HLS UNROLL
      const float g = sums[at.wave][2 * at.piece][at.row][r];
      const float bottom = 1.0f + Exp(-g);
      const float silu = g / bottom;
      const float gated = silu * sums[at.wave][2 * at.piece + 1][at.row][r];
      state.units[at.row][slot * kTileRows + r] = gated;
    }
    if (at.row + 1 == rows.first + rows.n) slot = slot + 1 == kGateTiles ? 0 : slot + 1;
    at.Next(rows, kChannels / 2);
  }
  // Groups that end in this block; they may have begun in the one before.
  const bool wide = group_size == kMaxGroup;
  const int first_group = wide ? first / kMaxGroup : first / kMinGroup;
  const int groups = (wide ? end / kMaxGroup : end / kMinGroup) - first_group;
  int group = first_group, row = rows.first;
  int half = (wide ? 2 * first_group : first_group) % kGateHalves;
QUANTIZE_HIDDEN:
  for (int item = 0; item < groups * rows.n; ++item) {
#pragma HLS PIPELINE II = kMaxGroup / kVectorLanes
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kGateUnits / kMinGroup * kMaxRows
    if ((wide ? group * kMaxGroup : group * kMinGroup) < hidden_dim) {
      QuantizeInto(state.units[row], half, hidden_dim, group_size, row, group, out);
    }
    const bool row_done = row + 1 == rows.first + rows.n;
    const int next = half + (wide ? 2 : 1);
    row = row_done ? rows.first : row + 1;
    group = row_done ? group + 1 : group;
    half = row_done ? (next == kGateHalves ? 0 : next) : half;
  }
}

}  // namespace kernel
