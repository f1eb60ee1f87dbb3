// Rotary position embedding on pairs (2i, 2i + 1) of every head (llama2.c, run.c, forward()).
//
// The angle is position * theta^(-2i / head_size). It is kept in turns as a 64-bit fraction,
// so the product with the position wraps by itself and no range reduction is needed.
#pragma once

#include "float_math.h"

namespace kernel {

struct RopeRow {
  float cosine[kMaxHeadSize / 2];
  float sine[kMaxHeadSize / 2];
};

inline void MakeRopeRow(const uint64_t* turns, int pairs, int position, RopeRow& rope) {
#pragma HLS INLINE off
ANGLES:
  for (int i = 0; i < pairs; ++i) {
#pragma HLS PIPELINE II = 8
#pragma HLS LOOP_TRIPCOUNT min = 24 max = 64
    const uint64_t phase = turns[i] * static_cast<uint64_t>(position);
    CosSin(static_cast<uint32_t>(phase >> 32), rope.cosine[i], rope.sine[i]);
  }
}

// Turns the pairs of `heads` heads that follow one another in x.
inline void RotateHeads(const RopeRow& rope, int heads, int head_size, float* x) {
#pragma HLS INLINE off
  constexpr int kPairs = kVectorLanes / 2;
  const int pairs = head_size / 2;
  int in_head = 0;  // a pair's place in its head
PAIRS:
  for (int i = 0; i < heads * pairs; i += kPairs) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT min = 288 / kVectorLanes max = 2 * kMaxDim / kVectorLanes
#pragma HLS DEPENDENCE variable = x inter false
    for (int j = 0; j < kPairs; ++j) {
#pragma HLS UNROLL
      if (i + j < heads * pairs) {
        const int at = 2 * (i + j);
        const float a = x[at];
        const float b = x[at + 1];
        const float c = rope.cosine[in_head];
        const float s = rope.sine[in_head];
        const float ac = a * c, bs = b * s, as = a * s, bc = b * c;
        x[at] = ac - bs;
        x[at + 1] = as + bc;
      }
      in_head = in_head + 1 == pairs ? 0 : in_head + 1;
    }
  }
}

}  // namespace kernel
