// What becomes of a matrix's sums, tile by tile: kept, added to the residual stream, gated and
// quantised, or sampled (sample.h).
#pragma once

#include "matvec.h"

namespace kernel {

// out[row][i] = sum
inline void KeepTile(int tile, const TileSums& sums, int n, int rows, float (*out)[kMaxQkv]) {
#pragma HLS INLINE
KEEP:
  for (int row = 0; row < rows; ++row) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kMaxRows
    for (int r = 0; r < kTileRows; ++r) {
#pragma HLS PIPELINE II = 1
      const int i = tile * kTileRows + r;
      if (i < n) out[row][i] = sums[row][r];
    }
  }
}

// x[row][i] += sum
inline void AddTile(int tile, const TileSums& sums, int n, int rows, float (*x)[kMaxDim]) {
#pragma HLS INLINE
ADD:
  for (int row = 0; row < rows; ++row) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kMaxRows
    for (int r = 0; r < kTileRows; ++r) {
#pragma HLS PIPELINE II = 1
      const int i = tile * kTileRows + r;
      if (i < n) x[row][i] = x[row][i] + sums[row][r];
    }
  }
}

// Between the tiles of W1 and W3: one tile of gates, and the hidden units of an unfinished group.
struct GateState {
  TileSums gate;
  float group[kMaxRows][kMaxGroup];
};

// silu(w1 x) * (w3 x), quantised as soon as a group is whole: no float vector of hidden_dim.
inline void GateTile(int tile, const TileSums& sums, int hidden_dim, int group_size, int rows,
                     GateState& state, QuantizedRows& out) {
#pragma HLS INLINE
  const int first = tile / 2 * kTileRows;  // hidden unit
  const int in_group = first % group_size;
  const bool group_done = in_group + kTileRows == group_size;
ROWS:
  for (int row = 0; row < rows; ++row) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kMaxRows
  GATE:
    for (int r = 0; r < kTileRows; ++r) {
#pragma HLS PIPELINE II = 1
      if (tile % 2 == 0) {
        state.gate[row][r] = sums[row][r];
      } else {
        const float g = state.gate[row][r];
        const float bottom = 1.0f + Exp(-g);
        const float silu = g / bottom;
        state.group[row][in_group + r] = silu * sums[row][r];
      }
    }
    const int start = first + kTileRows - group_size;
    if (tile % 2 == 1 && group_done && start < hidden_dim) {
      const int rest = hidden_dim - start;
      const int g = start / group_size;
      QuantizeGroup(state.group[row], rest < group_size ? rest : group_size, group_size,
                    out.q[row] + start, out.scale[row][g], out.offset[row][g]);
    }
  }
}

}  // namespace kernel
