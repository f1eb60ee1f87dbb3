// What becomes of a matrix's sums: kept, added to the residual stream, or gated and quantised.
#pragma once

#include "matvec.h"

namespace kernel {

// out[row][i] = sum
struct StoreRows {
  float (*out)[kMaxQkv];
  int n, rows;

  void Take(int tile, const TileSums& sums) {
#pragma HLS INLINE
  STORE:
    for (int row = 0; row < rows; ++row) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kMaxRows
      for (int r = 0; r < kTileRows; ++r) {
#pragma HLS PIPELINE II = 1
        const int i = tile * kTileRows + r;
        if (i < n) out[row][i] = sums[row][r];
      }
    }
  }
};

// x[row][i] += sum
struct AddRows {
  float (*x)[kMaxDim];
  int n, rows;

  void Take(int tile, const TileSums& sums) {
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
};

// silu(w1 x) * (w3 x), quantised as soon as a group is whole: no float vector of hidden_dim.
struct GateAndQuantize {
  QuantizedRows& out;
  int hidden_dim, group_size, rows;
  TileSums gate;
  float group[kMaxRows][kMaxGroup];

  GateAndQuantize(QuantizedRows& out_rows, int hidden, int size, int n)
      : out(out_rows), hidden_dim(hidden), group_size(size), rows(n) {}

  void Take(int tile, const TileSums& sums) {
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
          gate[row][r] = sums[row][r];
        } else {
          const float g = gate[row][r];
          const float bottom = 1.0f + Exp(-g);
          const float silu = g / bottom;
          group[row][in_group + r] = silu * sums[row][r];
        }
      }
      const int start = first + kTileRows - group_size;
      if (tile % 2 == 1 && group_done && start < hidden_dim) {
        const int rest = hidden_dim - start;
        const int g = start / group_size;
        QuantizeGroup(group[row], rest < group_size ? rest : group_size, group_size,
                      out.q[row] + start, out.scale[row][g], out.offset[row][g]);
      }
    }
  }
};

}  // namespace kernel
