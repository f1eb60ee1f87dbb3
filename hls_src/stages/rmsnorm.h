// y = x / sqrt(mean(x^2) + epsilon) * weight (llama2.c, run.c, rmsnorm()).
#pragma once

#include "float_math.h"

namespace kernel {

// Element i goes to partial sum i % kReduceLanes, so the order never depends on the width.
inline float SumOfSquares(const float* x, int n) {
#pragma HLS INLINE off
  float lane[kReduceLanes];
#pragma HLS ARRAY_PARTITION variable = lane complete
CLEAR:
  for (int j = 0; j < kReduceLanes; ++j) {
#pragma HLS UNROLL
    lane[j] = 0.0f;
  }
SQUARES:
  for (int i = 0; i < n; i += kReduceLanes) {
#pragma HLS PIPELINE II = kFaddLatency
#pragma HLS LOOP_TRIPCOUNT min = 18 max = 256
    for (int j = 0; j < kReduceLanes; ++j) {
#pragma HLS UNROLL
      const float value = i + j < n ? x[i + j] : 0.0f;
      lane[j] = lane[j] + value * value;
    }
  }
  return TreeSum(lane);
}

// The root of dim goes on top, so no reciprocal is formed: sqrt(n) / sqrt(sum + n epsilon).
inline void NormalizeRow(const float* x, const float* weight, int n, float* y) {
#pragma HLS INLINE off
  const float count = static_cast<float>(n);
  const float root_count = sqrtf(count);
  const float total = SumOfSquares(x, n) + count * kRmsEpsilon;
  const float root_total = sqrtf(total);
  // An overflow must not end as a row of zeros.
  const float factor = total < kInfinity ? root_count / root_total : kNotANumber;
SCALE:
  for (int i = 0; i < n; ++i) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT min = 288 max = 4096
    y[i] = (x[i] * factor) * weight[i];
  }
}

}  // namespace kernel
