// Float activations to symmetric int8 in groups, as llama2.c's Q8_0 (runq.c, quantize()).
#pragma once

#include "float_math.h"

namespace kernel {

// One row of activations per call row, ready to meet the weights. Values lie in halves of the
// larger group, so that a group's place in memory is plain to HLS: one half, or two.
struct QuantizedRows {
  int8_t q[kMaxRows][kMaxIn / kMinGroup][kMinGroup];
  float scale[kMaxRows][kMaxInGroups];
  int32_t offset[kMaxRows][kMaxInGroups];  // 128 * sum(q): weights are stored as q + 128
};

// Groups this small quantise to zero, so that 127 / largest stays finite.
constexpr float kTinyGroup = 7.8886090522101181e-31f;  // 2^-100

struct GroupScale {
  float up, scale;  // 127 / largest and largest / 127
};

// Of the largest magnitude's bits. Bits of magnitudes order as the magnitudes do, and NaN comes
// out largest: it reaches the scale, and so the logits, instead of vanishing from a maximum of
// floats.
inline GroupScale ScaleOf(uint32_t largest_bits) {
#pragma HLS INLINE
  const float largest = FloatOf(largest_bits);
  const bool live = !(largest < kTinyGroup);
  GroupScale group;
  group.up = live ? 127.0f / largest : 0.0f;
  group.scale = live ? largest / 127.0f : 0.0f;
  return group;
}

inline int32_t RoundToInt8(float x) {
#pragma HLS INLINE
  // What RoundToEven adds leaves the integer in the low bits.
  const float shifted = x + kRoundMagic;
  const int32_t value = static_cast<int32_t>(BitsOf(shifted) - BitsOf(kRoundMagic));
  return value >= -128 && value <= 128 ? value : 0;  // NaN is far outside
}

// The first `n` of x from half `half` on, at most kMaxGroup, and zeros. scale = max|x| / 127, and
// not finite where a value is not; returns the sum of q.
inline int32_t QuantizeGroup(const float* x, int half, int n, int8_t (&q)[kMaxGroup],
                             float& scale) {
#pragma HLS INLINE
  uint32_t largest_bits = 0;
  float values[kMaxGroup];
#pragma HLS ARRAY_PARTITION variable = values complete
LARGEST:
  for (int i = 0; i < kMaxGroup; ++i) {
#pragma HLS UNROLL
    values[i] = i < n ? x[half * kMinGroup + i] : 0.0f;
    const uint32_t magnitude = BitsOf(values[i]) & 0x7fffffffu;
    largest_bits = magnitude > largest_bits ? magnitude : largest_bits;
  }
  const GroupScale group = ScaleOf(largest_bits);
  int32_t sum = 0;
ROUND:
  for (int i = 0; i < kMaxGroup; ++i) {
#pragma HLS UNROLL
    const int32_t value = RoundToInt8(values[i] * group.up);
    q[i] = static_cast<int8_t>(value);
    sum += q[i];
  }
  scale = group.scale;
  return sum;
}

// Group `g` of a row of `n` values; it begins at half `half` of x.
inline void QuantizeInto(const float* x, int half, int n, int group_size, int row, int g,
                         QuantizedRows& out) {
#pragma HLS INLINE
  const bool wide = group_size == kMaxGroup;
  const int rest = n - (wide ? g * kMaxGroup : g * kMinGroup);
  int8_t q[kMaxGroup];
#pragma HLS ARRAY_PARTITION variable = q complete
  const int32_t sum =
      QuantizeGroup(x, half, rest < group_size ? rest : group_size, q, out.scale[row][g]);
  out.offset[row][g] = 128 * sum;
  const int to = wide ? 2 * g : g;
STORE:
  for (int i = 0; i < kMinGroup; ++i) {
#pragma HLS UNROLL
    out.q[row][to][i] = q[i];
    if (wide) out.q[row][to + 1][i] = q[kMinGroup + i];
  }
}

// Groups follow one another down one pipeline.
inline void QuantizeRow(const float* x, int n, int group_size, int row, QuantizedRows& out) {
#pragma HLS INLINE off
GROUPS:
  for (int g = 0; g * group_size < n; ++g) {
#pragma HLS PIPELINE II = kMaxGroup / kVectorLanes
#pragma HLS LOOP_TRIPCOUNT min = 9 max = 64
    QuantizeInto(x, group_size == kMaxGroup ? 2 * g : g, n, group_size, row, g, out);
  }
}

}  // namespace kernel
