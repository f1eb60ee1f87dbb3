// Float32 arithmetic with the same bits in every build: no libm, no contraction, a fixed
// order of additions. Errors are the largest seen over the stated range, against float64.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "config.h"

namespace kernel {

inline uint32_t BitsOf(float x) {
  union {
    float f;
    uint32_t u;
  } value;
  value.f = x;
  return value.u;
}

inline float FloatOf(uint32_t bits) {
  union {
    uint32_t u;
    float f;
  } value;
  value.u = bits;
  return value.f;
}

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNotANumber = std::numeric_limits<float>::quiet_NaN();

// 1.5 * 2^23: adding it leaves no fraction bits, so the adder itself rounds to nearest even.
constexpr float kRoundMagic = 12582912.0f;
inline float RoundToEven(float x) {  // |x| < 2^22
  const float shifted = x + kRoundMagic;
  return shifted - kRoundMagic;
}

// ln 2 in two parts; the first has nine bits, so n * kLn2High is exact.
constexpr float kLn2High = 0.693359375f;
constexpr float kLn2Low = -0.000212194442f;
constexpr float kLog2E = 1.44269502f;
constexpr float kExpLowest = -86.0f;  // below, 0: the result would near the subnormals
constexpr float kExpHighest = 88.0f;

// e^x, relative error 1.2e-7 on [-86, 88].
inline float Exp(float x) {
#pragma HLS INLINE
  const float limited = x > kExpHighest ? kExpHighest : (x < kExpLowest ? kExpLowest : x);
  const float n = RoundToEven(limited * kLog2E);
  const float high = limited - n * kLn2High;
  const float r = high - n * kLn2Low;
  float p = 0.00139269268f;
  p = p * r + 0.00836377405f;
  p = p * r + 0.0416665487f;
  p = p * r + 0.166665733f;
  p = p * r + 0.5f;
  const float base = 1.0f + r;
  const float square = r * r;
  const float mantissa = base + square * p;
  const float value =
      FloatOf(BitsOf(mantissa) + (static_cast<uint32_t>(static_cast<int32_t>(n)) << 23));
  return x < kExpLowest ? 0.0f : value;
}

// ln x for normal x > 0, relative error 8.5e-8.
inline float Log(float x) {
#pragma HLS INLINE
  const uint32_t bits = BitsOf(x);
  const float m = FloatOf((bits & 0x7fffffu) | 0x3f800000u);
  const bool upper = m > 1.41421354f;  // sqrt(2)
  const float half = m * 0.5f;
  const float mantissa = upper ? half : m;
  const int32_t exponent = static_cast<int32_t>(bits >> 23) - 127 + (upper ? 1 : 0);
  const float e = static_cast<float>(exponent);
  const float f = mantissa - 1.0f;
  const float square = f * f;
  float p = -0.0790274367f;
  p = p * f + 0.126223192f;
  p = p * f + -0.129981831f;
  p = p * f + 0.142144963f;
  p = p * f + -0.166412815f;
  p = p * f + 0.200010449f;
  p = p * f + -0.25000307f;
  p = p * f + 0.333333313f;
  const float cube = f * square;
  float tail = cube * p;
  tail = tail + e * kLn2Low;
  tail = tail - 0.5f * square;
  const float sum = f + tail;
  return sum + e * kLn2High;
}

// cos and sin of a phase in turns * 2^32, absolute error 1.3e-7.
inline void CosSin(uint32_t phase, float& cosine, float& sine) {
#pragma HLS INLINE
  const uint32_t quadrant = (phase + 0x20000000u) >> 30;
  const int32_t rest = static_cast<int32_t>(phase - (quadrant << 30));  // within 1/8 turn
  const float a = static_cast<float>(rest) * 1.46291812e-09f;           // 2 pi / 2^32
  const float z = a * a;
  float s = -0.000195878907f;
  s = s * z + 0.00833274797f;
  s = s * z + -0.166666642f;
  const float az = a * z;
  const float near_sine = a + az * s;
  float c = 2.45479423e-05f;
  c = c * z + -0.00138883025f;
  c = c * z + 0.0416666642f;
  const float zz = z * z;
  const float base = 1.0f - 0.5f * z;
  const float near_cosine = base + zz * c;
  const bool swap = (quadrant & 1u) != 0;
  const float u = swap ? near_sine : near_cosine;
  const float v = swap ? near_cosine : near_sine;
  cosine = quadrant == 1 || quadrant == 2 ? -u : u;
  sine = quadrant >= 2 ? -v : v;
}

// Halves are added element by element until one is left.
template <int N>
struct Tree {
  static_assert(N % 2 == 0, "a tree has a power of two of leaves");

  static float Sum(const float (&values)[N]) {
#pragma HLS INLINE
    float sums[N / 2];
#pragma HLS ARRAY_PARTITION variable = sums complete
    for (int i = 0; i < N / 2; ++i) {
#pragma HLS UNROLL
      sums[i] = values[i] + values[i + N / 2];
    }
    return Tree<N / 2>::Sum(sums);
  }
};

template <>
struct Tree<1> {
  static float Sum(const float (&values)[1]) {
#pragma HLS INLINE
    return values[0];
  }
};

template <int N>
inline float TreeSum(const float (&values)[N]) {
#pragma HLS INLINE
  return Tree<N>::Sum(values);
}

// The same sum with kLanes adders, level by level; takes the values with it.
template <int kLanes, int N>
inline float SumInPlace(float (&values)[N]) {
#pragma HLS INLINE
LEVELS:
  for (int half = N / 2; half > 0; half /= 2) {
  LEVEL:
    for (int i = 0; i < half; i += kLanes) {
// A bank is read twice and written.
#pragma HLS PIPELINE II = 2
#pragma HLS LOOP_TRIPCOUNT min = 1 max = N / 2 / kLanes
#pragma HLS DEPENDENCE variable = values inter false
      for (int j = 0; j < kLanes; ++j) {
#pragma HLS UNROLL
        if (i + j < half) values[i + j] = values[i + j] + values[i + j + half];
      }
    }
  }
  return values[0];
}

// The largest; of NaN it may be any other.
template <int N>
struct TreeMax {
  static float Of(const float (&values)[N]) {
#pragma HLS INLINE
    float larger[N / 2];
#pragma HLS ARRAY_PARTITION variable = larger complete
    for (int i = 0; i < N / 2; ++i) {
#pragma HLS UNROLL
      larger[i] = values[i] > values[i + N / 2] ? values[i] : values[i + N / 2];
    }
    return TreeMax<N / 2>::Of(larger);
  }
};

template <>
struct TreeMax<1> {
  static float Of(const float (&values)[1]) {
#pragma HLS INLINE
    return values[0];
  }
};

template <int N>
inline float Largest(const float (&values)[N]) {
#pragma HLS INLINE
  return TreeMax<N>::Of(values);
}

// Integers in the order of floats; zeros are one. Comparing them takes a fourth of what comparing
// floats does, and there is a comparison for each of the top logits.
inline int32_t OrderOf(float x) {
#pragma HLS INLINE
  const uint32_t bits = BitsOf(x);
  const int32_t magnitude = static_cast<int32_t>(bits & 0x7fffffffu);
  return (bits & 0x80000000u) != 0 ? -magnitude : magnitude;
}

inline float OfOrder(int32_t order) {
#pragma HLS INLINE
  const bool negative = order < 0;
  const uint32_t magnitude = static_cast<uint32_t>(negative ? -order : order);
  return FloatOf(negative ? magnitude | 0x80000000u : magnitude);
}

// Noise for Gumbel-max sampling: a hash of (seed, position, token id), so the same draw
// comes out whatever the order, the batch or the device.
inline uint32_t Mix(uint32_t h) {  // MurmurHash3's 32-bit finaliser
#pragma HLS INLINE
  h ^= h >> 16;
  h *= 0x85ebca6bu;
  h ^= h >> 13;
  h *= 0xc2b2ae35u;
  h ^= h >> 16;
  return h;
}

inline uint32_t NoiseKey(uint32_t seed_low, uint32_t seed_high, uint32_t position) {
  const uint32_t a = Mix(seed_low ^ 0x9e3779b9u);
  const uint32_t b = Mix(a ^ seed_high);
  return Mix(b ^ (position * 0x9e3779b9u));
}

inline float GumbelNoise(uint32_t key, uint32_t id) {
#pragma HLS INLINE
  const uint32_t h = Mix(key ^ (id * 0x9e3779b9u));
  // The middle of one of 2^23 equal intervals: never 0, never 1.
  const float u = static_cast<float>((h >> 9) * 2 + 1) * 5.96046448e-08f;
  const float e = -Log(u);
  return -Log(e);
}

}  // namespace kernel
