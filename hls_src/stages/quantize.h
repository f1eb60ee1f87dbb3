// Float activations to symmetric int8 in groups, as llama2.c's Q8_0 (runq.c, quantize()).
#pragma once

#include "float_math.h"

namespace kernel {

// One row of activations per call row, ready to meet the weights.
struct QuantizedRows {
  int8_t q[kMaxRows][kMaxIn];
  float scale[kMaxRows][kMaxInGroups];
  int32_t offset[kMaxRows][kMaxInGroups];  // 128 * sum(q): weights are stored as q + 128
};

// Groups this small quantise to zero, so that 127 / largest stays finite.
constexpr float kTinyGroup = 7.8886090522101181e-31f;  // 2^-100

// `n` values of one group; the rest of the group is padding. scale = max|x| / 127, and not
// finite where a value is not.
inline void QuantizeGroup(const float* x, int n, int group_size, int8_t* q, float& scale,
                          int32_t& offset) {
#pragma HLS INLINE off
  // The bits of magnitudes order as the magnitudes do, and NaN comes out largest: it reaches the
  // scale, and so the logits, instead of vanishing from a maximum of floats.
  uint32_t largest_bits = 0;
LARGEST:
  for (int i = 0; i < n; ++i) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT min = 32 max = 64
    const uint32_t magnitude = BitsOf(x[i]) & 0x7fffffffu;
    largest_bits = magnitude > largest_bits ? magnitude : largest_bits;
  }
  const float largest = FloatOf(largest_bits);
  const bool live = !(largest < kTinyGroup);
  const float up = live ? 127.0f / largest : 0.0f;
  int32_t sum = 0;
ROUND:
  for (int i = 0; i < n; ++i) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT min = 32 max = 64
    const float rounded = RoundToEven(x[i] * up);
    const bool number = rounded >= -128.0f && rounded <= 128.0f;  // NaN is not
    const int32_t value = number ? static_cast<int32_t>(rounded) : 0;
    q[i] = static_cast<int8_t>(value);
    sum += q[i];
  }
PAD:
  for (int i = n; i < group_size; ++i) {
#pragma HLS LOOP_TRIPCOUNT min = 0 max = 63
    q[i] = 0;
  }
  scale = live ? largest / 127.0f : 0.0f;
  offset = 128 * sum;
}

inline void QuantizeRow(const float* x, int n, int group_size, int row, QuantizedRows& out) {
#pragma HLS INLINE off
GROUPS:
  for (int g = 0; g * group_size < n; ++g) {
#pragma HLS LOOP_TRIPCOUNT min = 9 max = 64
    const int rest = n - g * group_size;
    QuantizeGroup(x + g * group_size, rest < group_size ? rest : group_size, group_size,
                  out.q[row] + g * group_size, out.scale[row][g], out.offset[row][g]);
  }
}

}  // namespace kernel
