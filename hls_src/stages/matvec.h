// Weights times activations. A weight word is read once and meets every row of the call.
//
// An engine computes kEngineTiles tiles in lockstep: one of every channel on fabric, where the
// activations of a group are read once for all of them; one on the host, where each thread is
// an engine. Group by group it streams a tile's words into exact dot products, and scales and
// adds those while the next group streams in.
#pragma once

#include "quantize.h"
#include "shims/shims.h"

namespace kernel {

typedef WeightPort WeightPorts[kChannels];
// Banks of a tile's sums: what is added a cycle, or taken from there.
constexpr int kSumBanks = kVectorLanes > kScaleLanes ? kVectorLanes : kScaleLanes;

typedef float TileSums[kMaxRows][kTileRows];
typedef TileSums BlockSums[kWavesInFlight][kChannels];

inline Word ReadWord(WeightPort& port, int index) {
#pragma HLS INLINE
  Word word;
READ_WORD:
  for (int b = 0; b < kWordBeats; ++b) {
    const Beat& beat = port.Read(index, b);
    for (int i = 0; i < kBeatBytes; ++i) {
#pragma HLS UNROLL
      word.b[b * kBeatBytes + i] = beat.b[i];
    }
  }
  return word;
}

// Cycles in which a group's sums are scaled and added.
constexpr int kScaleSlots = kTileRows / kScaleLanes;

// What two groups of the engine's tiles come to: dot products, and the weights' scales. One is
// streamed in while the other is scaled and added.
struct GroupDots {
  int32_t dots[2][kEngineTiles][kMaxRows][kTileRows];
  float scales[2][kEngineTiles][kTileRows];
};

// Where an engine's tiles lie; the fabric's streams need not be told.
struct EnginePlace {
  int first_channel;
  int word[kEngineTiles];
};

template <int kBytes>
LLAMA_HOST_INLINE int32_t DotBytes(const uint8_t* weights, const int8_t* x) {
#pragma HLS INLINE
  int32_t sum = 0;
  for (int i = 0; i < kBytes; ++i) {
#pragma HLS UNROLL
    sum += static_cast<int32_t>(weights[i]) * static_cast<int32_t>(x[i]);
  }
  return sum;
}

// What the high nibbles of kBytes come to: they meet the other half of the group.
template <int kBytes>
LLAMA_HOST_INLINE int32_t DotHigh(const uint8_t* weights, const int8_t* x) {
#pragma HLS INLINE
  uint8_t high[kBytes];
#pragma HLS ARRAY_PARTITION variable = high complete
  for (int i = 0; i < kBytes; ++i) {
#pragma HLS UNROLL
    high[i] = weights[i] >> 4;
  }
  return DotBytes<kBytes>(high, x + kMinGroup);
}

// kBytes of weights times the activations of kProductRows rows: x, and y if there are two. Where a
// byte holds two weights, the low ones use the same multipliers.
template <int kBytes>
LLAMA_HOST_INLINE void Dot(const uint8_t* weights, const int8_t* x, const int8_t*, bool int4,
                           int32_t (&sums)[1]) {
#pragma HLS INLINE
  if (int4 || !kKnownFormat) {
    // All in one sum: on the host each ends in additions across a vector.
    uint8_t both[2 * kBytes];
    int8_t with[2 * kBytes];
#pragma HLS ARRAY_PARTITION variable = both complete
#pragma HLS ARRAY_PARTITION variable = with complete
    for (int i = 0; i < kBytes; ++i) {
#pragma HLS UNROLL
      both[i] = int4 ? weights[i] & 15 : weights[i];
      both[kBytes + i] = int4 ? weights[i] >> 4 : 0;
      with[i] = x[i];
      with[kBytes + i] = int4 ? x[kMinGroup + i] : 0;
    }
    sums[0] = DotBytes<2 * kBytes>(both, with);
  } else {
    sums[0] = DotBytes<kBytes>(weights, x);
  }
}

// Two rows in the halves of one product, as a DSP48E2 multiplies 27 bits by 18 (AMD, WP486). Four
// products fit before the halves would meet: they are below 2^15 each.
template <int kBytes>
LLAMA_HOST_INLINE void Dot(const uint8_t* weights, const int8_t* x, const int8_t* y, bool int4,
                           int32_t (&sums)[2]) {
#pragma HLS INLINE
  constexpr int64_t kUpper = 1 << 18;
  int32_t upper_sum = 0, lower_sum = 0;
  for (int i = 0; i < kBytes; i += 4) {
#pragma HLS UNROLL
    int64_t both = 0;
    for (int j = 0; j < 4; ++j) {
#pragma HLS UNROLL
      const uint8_t low = int4 ? weights[i + j] & 15 : weights[i + j];
      both += static_cast<int64_t>(low) * (x[i + j] * kUpper + y[i + j]);
    }
    const int64_t lower = ((both + kUpper / 2) & (kUpper - 1)) - kUpper / 2;
    lower_sum += static_cast<int32_t>(lower);
    upper_sum += static_cast<int32_t>((both - lower) >> 18);
  }
  if (int4) {
    upper_sum += DotHigh<kBytes>(weights, x);
    lower_sum += DotHigh<kBytes>(weights, y);
  }
  sums[0] = upper_sum;
  sums[1] = lower_sum;
}

// Scales and adds some rows of group `g`; groups come in ascending order.
LLAMA_HOST_INLINE void ScaleLanes(const GroupDots& done, int parity, const Format& format,
                                  const QuantizedRows& in, int g, int slot, int rows,
                                  TileSums (&sums)[kEngineTiles]) {
#pragma HLS INLINE
  for (int e = 0; e < kEngineTiles; ++e) {
#pragma HLS UNROLL
    for (int row = 0; row < ActiveRows(rows); ++row) {
#pragma HLS UNROLL
      const float row_scale = in.scale[row][g];
      // 128 times the sum of x, or 8 times, which is exact.
      const int32_t offset = in.offset[row][g] >> (format.int4 ? 4 : 0);
      for (int lane = 0; lane < kScaleLanes; ++lane) {
#pragma HLS UNROLL
        const int r = slot * kScaleLanes + lane;
        const float dot = static_cast<float>(done.dots[parity][e][row][r] - offset);
        const float scaled = (dot * done.scales[parity][e][r]) * row_scale;
        sums[e][row][r] = (g == 0 ? 0.0f : sums[e][row][r]) + scaled;
      }
    }
  }
}

// One beat of every tile: it meets every row of the call, or is scales.
struct EngineBeat {
  WeightPorts& ports;
  const EnginePlace& place;
  const Format& format;
  const QuantizedRows& in;
  int groups, rows;
  int8_t (&operand)[kMaxRows][kMaxGroup];    // the group's activations
  int32_t (&first)[kEngineTiles][kMaxRows];  // sums of a word's first half
  int32_t (&second)[kEngineTiles][kMaxRows];
  GroupDots& group_dots;
  TileSums (&sums)[kEngineWaves][kEngineTiles];

  LLAMA_HOST_INLINE void operator()(const BeatAt& at) const {
#pragma HLS INLINE
    const bool narrow = format.row_bytes != kWordBytes;
    const bool two_rows = narrow || at.half;
    const int value_words = two_rows ? kTileRows / 2 : kTileRows;
    const int beat_of_group = at.word * kWordBeats + at.beat;
    const int slot = beat_of_group - kScaleAfter;
    const int parity = at.count % 2;
    if (at.count > 0 && slot >= 0 && slot < kScaleSlots) {
      const bool same_wave = kEngineWaves == 1 || at.group > 0;
      const int g = same_wave ? at.group - 1 : groups - 1;
      const int wave = same_wave ? at.wave : at.wave - 1;
      ScaleLanes(group_dots, 1 - parity, format, in, g, slot, rows, sums[wave]);
    }
    if (beat_of_group == 0) {
      for (int row = 0; row < RoundUp(ActiveRows(rows), kProductRows); ++row) {
#pragma HLS UNROLL
        const bool two = format.group_size == kMaxGroup;
        const int half = two ? 2 * at.group : at.group;
        for (int i = 0; i < kMinGroup; ++i) {
#pragma HLS UNROLL
          operand[row][i] = in.q[row][half][i];
          operand[row][kMinGroup + i] = in.q[row][two ? half + 1 : half][i];
        }
      }
    }
    for (int e = 0; e < kEngineTiles; ++e) {
#pragma HLS UNROLL
      if (at.word < value_words + kScaleWords) {
        const int channel = kEngineTiles == kChannels ? e : place.first_channel + e;
        const int word = place.word[e] + at.group * GroupWords(narrow) + at.word;
        const Beat& beat = ports[channel].Read(word, at.beat);
        if (at.word < value_words) {
          DotRows(beat, e, parity, at.word, at.beat, !two_rows);
        } else {
          for (int i = 0; i < kBeatBytes / 4; ++i) {
#pragma HLS UNROLL
            const int r = ((at.word - value_words) * kWordBeats + at.beat) * (kBeatBytes / 4) + i;
            group_dots.scales[parity][e][r] = BytesFloat(beat.b, i);
          }
        }
      }
    }
  }

  LLAMA_HOST_INLINE void DotRows(const Beat& beat, int e, int parity, int w, int b,
                                 bool wide) const {
#pragma HLS INLINE
    LLAMA_HOST_UNROLL
    for (int row = 0; row < ActiveRows(rows); row += kProductRows) {
#pragma HLS UNROLL
      const int from = wide ? b * kBeatBytes : b * kBeatBytes % kMinGroup;
      const int8_t* x = operand[row] + from;
      const int8_t* y = operand[row + kProductRows - 1] + from;
      const bool in_first = b * kBeatBytes < kMinGroup;
      int32_t here[kProductRows], there[kProductRows];
      if (kBeatBytes <= kMinGroup || wide) {
        int32_t sums[kProductRows];
        Dot<kBeatBytes>(beat.b, x, y, format.int4, sums);
        for (int i = 0; i < kProductRows; ++i) {
#pragma HLS UNROLL
          here[i] = in_first ? sums[i] : 0;
          there[i] = in_first ? 0 : sums[i];
        }
      } else {
        Dot<kMinGroup>(beat.b, x, y, format.int4, here);
        Dot<kMinGroup>(beat.b + kBeatBytes - kMinGroup, x, y, format.int4, there);
      }
      for (int i = 0; i < kProductRows; ++i) {
#pragma HLS UNROLL
        int32_t& left = first[e][row + i];
        int32_t& right = second[e][row + i];
        left = (b == 0 ? 0 : left) + here[i];
        right = (b == 0 ? 0 : right) + there[i];
        if (b == kWordBeats - 1) {
          int32_t (&dots)[kTileRows] = group_dots.dots[parity][e][row + i];
          if (wide) {
            dots[w] = left + right;
          } else {
            dots[2 * w] = left;
            dots[2 * w + 1] = right;
          }
        }
      }
    }
  }
};

// A tile of every engine, wave after wave, each from the first group to the last, in one loop over
// their beats.
LLAMA_HOST_INLINE void RunEngine(WeightPorts& ports, const EnginePlace& place, const Format& format,
                                 const QuantizedRows& in, const Matrix& matrix, int waves, int rows,
                                 TileSums (&sums)[kEngineWaves][kEngineTiles]) {
#pragma HLS INLINE off
  alignas(kWordBytes) int8_t operand[kMaxRows][kMaxGroup];
  int32_t first[kEngineTiles][kMaxRows];
  int32_t second[kEngineTiles][kMaxRows];
  GroupDots group_dots;
#pragma HLS ARRAY_PARTITION variable = operand complete dim = 0
#pragma HLS ARRAY_PARTITION variable = first complete dim = 0
#pragma HLS ARRAY_PARTITION variable = second complete dim = 0
#pragma HLS ARRAY_PARTITION variable = group_dots.dots complete dim = 1
#pragma HLS ARRAY_PARTITION variable = group_dots.dots complete dim = 2
#pragma HLS ARRAY_PARTITION variable = group_dots.dots complete dim = 3
#pragma HLS ARRAY_PARTITION variable = group_dots.dots cyclic factor = 2 dim = 4
#pragma HLS ARRAY_PARTITION variable = group_dots.scales complete dim = 1
#pragma HLS ARRAY_PARTITION variable = group_dots.scales complete dim = 2
#pragma HLS ARRAY_PARTITION variable = group_dots.scales cyclic factor = kBeatBytes / 4 dim = 3
  const EngineBeat beat = {ports,   place, format, in,         matrix.groups, rows,
                           operand, first, second, group_dots, sums};
  constexpr int kSlotWords = (kScaleAfter + kScaleSlots + kWordBeats - 1) / kWordBeats;
  const int words = GroupWords(format.row_bytes != kWordBytes), tail_words = GroupWords(true);
  GroupLoop loop;
  loop.groups = matrix.groups;
  loop.half_tail = matrix.half_tail;
  loop.words = words > kSlotWords ? words : kSlotWords;
  loop.tail_words = tail_words > kSlotWords ? tail_words : kSlotWords;
  ForBeats(waves, loop, beat, sums);
LAST_GROUP:
  for (int slot = 0; slot < kScaleSlots; ++slot) {
#pragma HLS PIPELINE II = 1
    ScaleLanes(group_dots, (waves * matrix.groups - 1) % 2, format, in, matrix.groups - 1, slot,
               rows, sums[waves - 1]);
  }
}

// A matrix and what becomes of its sums.
enum Epilogue { kKeep, kResidual, kGate, kSample };

struct MatVecJob {
  Matrix matrix;
  int base[kChannels];  // word of wave 0
  Format format;
  int rows;
  Epilogue epilogue;
};

struct FormatTask {
  WeightPorts& ports;
  const EnginePlace& place;
  const QuantizedRows& in;
  const Matrix& matrix;
  int waves;
  TileSums (&sums)[kEngineWaves][kEngineTiles];

  LLAMA_HOST_INLINE void operator()(const Format& format, int rows) const {
#pragma HLS INLINE
    RunEngine(ports, place, format, in, matrix, waves, rows, sums);
  }
};

struct EngineTask {
  WeightPorts& ports;
  const MatVecJob& job;
  const QuantizedRows& in;
  BlockSums& sums;
  int first_tile, waves;

  void operator()(int i) const {
#pragma HLS INLINE
    const int tile = first_tile + i * kEngineTiles;
    EnginePlace place;
    place.first_channel = kEngineTiles == kChannels ? 0 : tile % kChannels;
    for (int e = 0; e < kEngineTiles; ++e) {
#pragma HLS UNROLL
      const int words = TileWords(job.matrix, job.format.row_bytes);
      place.word[e] = job.base[place.first_channel + e] + tile / kChannels * words;
    }
    const FormatTask engine = {ports, place, in, job.matrix, waves, OfTask(sums, i)};
    ForFormat(job.format, job.rows, engine);
  }
};

// The tiles of one block of waves.
inline void RunEngines(WeightPorts& ports, const MatVecJob& job, int block, const QuantizedRows& in,
                       BlockSums& sums) {
#pragma HLS INLINE off
#pragma HLS ALLOCATION function instances = RunEngine limit = 1
  const int first = block * kTilesInFlight;
  const int left = job.matrix.waves * kChannels - first;
  const int tiles = left < kTilesInFlight ? left : kTilesInFlight;
  const int waves = tiles / kChannels < kEngineWaves ? tiles / kChannels : kEngineWaves;
  const EngineTask engine = {ports, job, in, sums, first, waves};
  const int64_t macs = job.matrix.groups * job.format.group_size * kTileRows * job.rows;
  ParallelFor(tiles / (waves * kEngineTiles), macs, engine);
}

}  // namespace kernel
