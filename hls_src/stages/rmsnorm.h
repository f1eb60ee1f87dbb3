// y = x / sqrt(mean(x^2) + epsilon) * weight (llama2.c, run.c, rmsnorm()).
#pragma once

#include "float_math.h"

namespace kernel {

// Element i goes to partial sum i % kNormSums, so the order never depends on the lanes, and an
// adder is asked for the same sum only after it is done.
inline float SumOfSquares(const float* x, int n) {
#pragma HLS INLINE off
  float sums[kNormSums];
#pragma HLS ARRAY_PARTITION variable = sums cyclic factor = kVectorLanes
  const int end = n > kNormSums ? n : kNormSums;
  int at = 0;
SQUARES:
  for (int i = 0; i < end; i += kVectorLanes) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT min = 288 / kVectorLanes max = kMaxDim / kVectorLanes
#pragma HLS DEPENDENCE variable = sums inter RAW distance = kNormSums / kVectorLanes true
    for (int j = 0; j < kVectorLanes; ++j) {
#pragma HLS UNROLL
      const float value = i + j < n ? x[i + j] : 0.0f;
      const float square = value * value;
      sums[at + j] = i < kNormSums ? square : sums[at + j] + square;
    }
    at = at + kVectorLanes == kNormSums ? 0 : at + kVectorLanes;
  }
  return SumInPlace<kVectorLanes>(sums);
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
  for (int i = 0; i < n; i += kVectorLanes) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT min = 288 / kVectorLanes max = kMaxDim / kVectorLanes
    for (int j = 0; j < kVectorLanes; ++j) {
#pragma HLS UNROLL
      if (i + j < n) y[i + j] = (x[i + j] * factor) * weight[i + j];
    }
  }
}

}  // namespace kernel
