// Attention over the KV cache, one block of positions at a time, with an online softmax: no
// array is as long as the context.
//
// The cache is dealt out to ports by heads, and each port has an engine of its own. Rows of one
// sequence that follow one another are a team: a block is read once for all of them. What this
// call computes stays on chip and is laid over the blocks, so memory is never read back early.
#pragma once

#include "quantize.h"
#include "shims/shims.h"

namespace kernel {

constexpr float kLowest = -1e30f;  // a score that any other exceeds

typedef KvReader KvReaders[kKvPorts];
typedef KvWriter KvWriters[kKvPorts];

// Keys and values of this call as int8, where the cache is.
struct QuantizedKv {
  int8_t q[kMaxRows][2 * kMaxDim];
  float scale[kMaxRows][2 * kMaxDim / 2];  // a head has two values at least
};

// An int8 cache is an option; rounding for it has a fourth of the lanes, to save area.
constexpr int kRoundLanes = kVectorLanes > 4 ? kVectorLanes / 4 : 1;

// Rounds one head's vector to what the cache will hold of it: integers, and their scale.
inline void RoundHead(float* x, int head_size, int8_t* q, float& scale) {
#pragma HLS INLINE
  uint32_t largest_bits = 0;
LARGEST_IN_HEAD:
  for (int i = 0; i < head_size; i += kRoundLanes) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT min = 48 / kRoundLanes max = kMaxHeadSize / kRoundLanes
    for (int j = 0; j < kRoundLanes; ++j) {
#pragma HLS UNROLL
      const uint32_t magnitude = i + j < head_size ? BitsOf(x[i + j]) & 0x7fffffffu : 0u;
      largest_bits = magnitude > largest_bits ? magnitude : largest_bits;
    }
  }
  const GroupScale group = ScaleOf(largest_bits);
ROUND_HEAD:
  for (int i = 0; i < head_size; i += kRoundLanes) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT min = 48 / kRoundLanes max = kMaxHeadSize / kRoundLanes
    for (int j = 0; j < kRoundLanes; ++j) {
#pragma HLS UNROLL
      if (i + j < head_size) {
        const int32_t value = RoundToInt8(x[i + j] * group.up);
        q[i + j] = static_cast<int8_t>(value);
        x[i + j] = static_cast<float>(value);
      }
    }
  }
  scale = group.scale;
}

// Rounds this call's keys and values, so that they count the same now and once they are read back.
inline void RoundKv(const Step& step, float (*qkv)[kMaxQkv], QuantizedKv& kv) {
#pragma HLS INLINE off
  const Shape& s = step.shape;
ROUND_ROWS:
  for (int row = 0; row < step.n_rows; ++row) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kMaxRows
  ROUND_HEADS:
    for (int h = 0; h < 2 * s.n_kv_heads; ++h) {
#pragma HLS LOOP_TRIPCOUNT min = 12 max = 64
      const int at = h * s.head_size;
      RoundHead(qkv[row] + s.dim + at, s.head_size, kv.q[row] + at, kv.scale[row][h]);
    }
  }
}

// Keys or values of a block of one head, on chip.
typedef float HeadBlock[kBlock][kMaxHeadSize + kHeadPad];

// Values of a head a cycle, whoever reads or writes them.
constexpr int kKvLanes = kKvBeatWords > kAttentionLanes ? kKvBeatWords : kAttentionLanes;

// What an int8 key or value of each position is multiplied by, once for all of its elements; of
// float32 it is 1.
typedef float BlockScales[kBlock];

// Queries of a team and what comes of them; this call's keys, or values, of one head.
typedef float QueryRows[kQueries][kMaxHeadSize];
typedef float FreshRows[kMaxRows][kMaxHeadSize];
typedef float FreshScales[kMaxRows][2];

// Where an engine works: some query heads of each row of the team, row after row. Where there is no
// such kv head, no queries and no blocks.
struct TeamPlace {
  Team team;
  int layer, kv_head;
  int queries, blocks;
  int stride;              // head_stride
  int position[kQueries];  // of each query

  // Positions of a block that a query may look at; none or less: it has not come that far.
  int Seen(int query, int block) const { return position[query] + 1 - block * kBlock; }
};

// A block's positions from memory, on their way into its arrays.
struct BlockPlace {
  KvReader& port;
  const Shape& s;
  int from;  // beat of the first position
  HeadBlock& keys;
  HeadBlock& values;
  BlockScales& key_scale;
  BlockScales& value_scale;
};

// A float32 beat of a record: of its key, half 0, or its value.
struct FetchFloat {
  const BlockPlace& to;

  LLAMA_HOST_INLINE void operator()(int position, int half, int part) const {
#pragma HLS INLINE
    const int index = position * to.s.kv_record_beats + half * to.s.kv_half_beats + part;
    const KvBeat& beat = to.port.Read(to.from + index);
    const bool is_key = half == 0;
    const int d = part * kKvBeatWords;
    if (is_key && part == 0) {
      to.key_scale[position] = 1.0f;
      to.value_scale[position] = 1.0f;
    }
    // All of it is read before any is written, which g++ then does in whole vectors.
    float piece[kKvBeatWords];
    for (int i = 0; i < kKvBeatWords; ++i) {
#pragma HLS UNROLL
      piece[i] = beat.f[i];
    }
    for (int i = 0; i < kKvBeatWords; ++i) {
#pragma HLS UNROLL
      if (is_key) {
        to.keys[position][d + i] = piece[i];
      } else {
        to.values[position][d + i] = piece[i];
      }
    }
  }
};

// A quarter of an int8 one: no more values a cycle than float32 has, and the scales' beat takes as
// long as another.
struct FetchInt8 {
  const BlockPlace& to;
  KvBeat& beat;

  LLAMA_HOST_INLINE void operator()(int position, int part, int quarter) const {
#pragma HLS INLINE
    if (quarter == 0) beat = to.port.Read(to.from + position * to.s.kv_record_beats + part);
    const int at = part - to.s.kv_scale_beats;
    if (at < 0) {
      to.key_scale[position] = beat.f[0];
      to.value_scale[position] = beat.f[1];
    } else {
      const bool is_key = at < to.s.kv_half_beats;
      const int d = (is_key ? at : at - to.s.kv_half_beats) * kKvBeatBytes + quarter * kKvBeatWords;
      float piece[kKvBeatWords];
      for (int i = 0; i < kKvBeatWords; ++i) {
#pragma HLS UNROLL
        piece[i] = static_cast<float>(static_cast<int8_t>(BitsOf(beat.f[i]) >> 8 * quarter));
      }
      for (int i = 0; i < kKvBeatWords; ++i) {
#pragma HLS UNROLL
        if (is_key) {
          to.keys[position][d + i] = piece[i];
        } else {
          to.values[position][d + i] = piece[i];
        }
      }
    }
  }
};

// A block's positions from memory, then what this call computes over them.
inline void FetchBlock(KvReader& port, const Step& step, const TeamPlace& place, int block_index,
                       const FreshRows& fresh_key, const FreshRows& fresh_value,
                       const FreshScales& fresh_scale, HeadBlock& keys, HeadBlock& values,
                       BlockScales& key_scale, BlockScales& value_scale) {
#pragma HLS INLINE off
  const Shape& s = step.shape;
  const int positions = BlockPositions(place.team, block_index);
  const int from = KvBeatOf(s, place.team.slot, place.layer, place.kv_head, block_index * kBlock);
  const BlockPlace to = {port, s, from, keys, values, key_scale, value_scale};
  if (s.kv_int8) {
    KvBeat beat = {};
    const FetchInt8 fetch = {to, beat};
    ForEach(positions, s.kv_record_beats, 4, fetch);
  } else {
    const FetchFloat fetch = {to};
    ForEach(positions, 2, s.kv_half_beats, fetch);
  }
  // Weights of what is not there are zero, and zero times zero is.
CLEAR_VALUES:
  for (int t = positions; t < kBlock; ++t) {
#pragma HLS LOOP_TRIPCOUNT min = 0 max = kBlock - 1
    value_scale[t] = 0.0f;
  CLEAR_VALUE:
    for (int d = 0; d < s.head_stride; d += kReduceLanes) {
#pragma HLS PIPELINE II = kReduceLanes / kAttentionLanes
#pragma HLS LOOP_TRIPCOUNT min = 3 max = 8
      for (int j = 0; j < kReduceLanes; ++j) {
#pragma HLS UNROLL
        values[t][d + j] = 0.0f;
      }
    }
  }
OVERLAY:
  for (int row = 0; row < step.n_rows; ++row) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kMaxRows
    const Row& r = step.rows[row];
    if (r.active && r.slot == place.team.slot && r.position / kBlock == block_index) {
      const int t = r.position % kBlock;
      key_scale[t] = fresh_scale[row][0];
      value_scale[t] = fresh_scale[row][1];
    OVERLAY_ROW:
      for (int d = 0; d < s.head_stride; d += kReduceLanes) {
#pragma HLS PIPELINE II = kReduceLanes / kAttentionLanes
#pragma HLS LOOP_TRIPCOUNT min = 3 max = 8
        for (int j = 0; j < kReduceLanes; ++j) {
#pragma HLS UNROLL
          keys[t][d + j] = fresh_key[row][d + j];
          values[t][d + j] = fresh_value[row][d + j];
        }
      }
    }
  }
}

// The partial sums of query . keys[t] of every position of the block. Element i goes to partial sum
// i % kReduceLanes; both vectors are zero past their end. The positions alternate, so that an
// adder is asked for the same sum only after kBlock others.
typedef float BlockLanes[kBlock][kReduceLanes];

inline void DotBlock(const float (&query)[kMaxHeadSize], const HeadBlock& keys, int stride,
                     BlockLanes& lanes) {
#pragma HLS INLINE off
DOT_PARTS:
  for (int i = 0; i < stride; i += kAttentionLanes) {
#pragma HLS LOOP_TRIPCOUNT min = 48 / kAttentionLanes max = kMaxHeadSize / kAttentionLanes
  DOT:
    for (int t = 0; t < kBlock; ++t) {
#pragma HLS PIPELINE II = 1
#pragma HLS DEPENDENCE variable = lanes inter RAW distance = kBlock true
      for (int j = 0; j < kAttentionLanes; ++j) {
#pragma HLS UNROLL
        const int lane = i % kReduceLanes + j;
        const float product = query[i + j] * keys[t][i + j];
        lanes[t][lane] = i < kReduceLanes ? product : lanes[t][lane] + product;
      }
    }
  }
}

typedef BlockLanes LaneRows[kQueries];
typedef float BlockRows[kQueries][kBlock];
typedef float PerQuery[kQueries];

inline void DotQueries(const TeamPlace& place, int block_index, const QueryRows& query,
                       const HeadBlock& keys, LaneRows& lanes) {
#pragma HLS INLINE off
DOT_QUERIES:
  for (int q = 0; q < place.queries; ++q) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kQueries
    if (place.Seen(q, block_index) > 0) {
      DotBlock(query[q], keys, place.stride, lanes[q]);
    }
  }
}

// A partial sum is read kAttentionLanes at a time.
constexpr int kLaneReads = kReduceLanes / kAttentionLanes;
constexpr int kSumCycles = kScoreCycles > kLaneReads ? kScoreCycles : kLaneReads;

// Scores, and the largest of the blocks so far, before this one and with it.
inline void ScoreQueries(const TeamPlace& place, int block_index, const LaneRows& lanes,
                         const BlockScales& key_scale, float root, PerQuery& maximum,
                         BlockRows& scores, PerQuery& before, PerQuery& larger) {
#pragma HLS INLINE off
SCORE_QUERIES:
  for (int q = 0; q < place.queries; ++q) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kQueries
    const int seen = place.Seen(q, block_index);
    if (seen > 0) {
      float here[kBlock];
#pragma HLS ARRAY_PARTITION variable = here complete
    SCORES:
      for (int t = 0; t < kBlock; ++t) {
#pragma HLS PIPELINE II = kSumCycles
        const float dot = TreeSum(lanes[q][t]) * key_scale[t];
        // Beyond the query's own position lies whatever was there before.
        here[t] = t < seen ? dot / root : kLowest;
        scores[q][t] = here[t];
      }
      const float most = Largest(here);
      before[q] = maximum[q];
      larger[q] = most > maximum[q] ? most : maximum[q];
      maximum[q] = larger[q];
    }
  }
}

// Adders for a block's exponentials.
constexpr int kWeightLanes = kAttentionLanes < 4 ? kAttentionLanes : 4;

// Scores to weights, their sum over the blocks so far, and by how much what has been summed
// shrinks.
inline void WeighQueries(const TeamPlace& place, int block_index, const BlockRows& scores,
                         const PerQuery& before, const PerQuery& larger,
                         const BlockScales& value_scale, PerQuery& total, BlockRows& weights,
                         PerQuery& shrink) {
#pragma HLS INLINE off
WEIGH_QUERIES:
  for (int q = 0; q < place.queries; ++q) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kQueries
    if (place.Seen(q, block_index) > 0) {
      float terms[kBlock];
#pragma HLS ARRAY_PARTITION variable = terms complete
    WEIGHTS:
      for (int t = 0; t < kBlock; ++t) {
#pragma HLS PIPELINE II = kScoreCycles
        terms[t] = Exp(scores[q][t] - larger[q]);
        weights[q][t] = terms[t] * value_scale[t];
      }
      shrink[q] = Exp(before[q] - larger[q]);
      total[q] = total[q] * shrink[q] + SumInPlace<kWeightLanes>(terms);
    }
  }
}

// Adds the block's weighted values.
inline void SumBlock(const float (&weights)[kBlock], const HeadBlock& values, int stride,
                     float shrink, float (&sum)[kMaxHeadSize]) {
#pragma HLS INLINE off
VALUES:
  for (int i = 0; i < stride; i += kAttentionLanes) {
#pragma HLS PIPELINE II = kBlock
#pragma HLS LOOP_TRIPCOUNT min = 48 / kAttentionLanes max = kMaxHeadSize / kAttentionLanes
    float parts[kValueSums][kAttentionLanes];
#pragma HLS ARRAY_PARTITION variable = parts complete dim = 0
    for (int k = 0; k < kValueSums; ++k) {
#pragma HLS UNROLL
      for (int j = 0; j < kAttentionLanes; ++j) {
#pragma HLS UNROLL
        float part = 0.0f;
        for (int t = 0; t < kBlock; t += kValueSums) {
#pragma HLS UNROLL
          part = part + weights[t + k] * values[t + k][i + j];
        }
        parts[k][j] = part;
      }
    }
    for (int half = kValueSums / 2; half > 0; half /= 2) {
#pragma HLS UNROLL
      for (int k = 0; k < half; ++k) {
#pragma HLS UNROLL
        for (int j = 0; j < kAttentionLanes; ++j) {
#pragma HLS UNROLL
          parts[k][j] = parts[k][j] + parts[k + half][j];
        }
      }
    }
    for (int j = 0; j < kAttentionLanes; ++j) {
#pragma HLS UNROLL
      sum[i + j] = sum[i + j] * shrink + parts[0][j];
    }
  }
}

inline void SumQueries(const TeamPlace& place, int block_index, const BlockRows& weights,
                       const PerQuery& shrink, const HeadBlock& values, QueryRows& sums) {
#pragma HLS INLINE off
SUM_QUERIES:
  for (int q = 0; q < place.queries; ++q) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kQueries
    if (place.Seen(q, block_index) > 0) {
      SumBlock(weights[q], values, place.stride, shrink[q], sums[q]);
    }
  }
}

// From the first block to the last: one is fetched while those before it are multiplied, scored,
// weighed and summed.
inline void AttendBlocks(KvReader& port, const Step& step, const TeamPlace& place, float root,
                         const QueryRows& query, const FreshRows& fresh_key,
                         const FreshRows& fresh_value, const FreshScales& fresh_scale, int blocks,
                         PerQuery& maximum, PerQuery& total, QueryRows& sums) {
#pragma HLS INLINE off
BLOCKS:
  for (int b = 0; b < blocks; ++b) {
#pragma HLS DATAFLOW
#pragma HLS LOOP_TRIPCOUNT min = 1 max = 32
    alignas(kWordBytes) HeadBlock keys, values;
#pragma HLS ARRAY_PARTITION variable = keys cyclic factor = kKvLanes dim = 2
#pragma HLS ARRAY_PARTITION variable = values cyclic factor = kKvLanes dim = 2
    BlockScales key_scale, value_scale;
    LaneRows lanes;
#pragma HLS ARRAY_PARTITION variable = lanes cyclic factor = kAttentionLanes dim = 3
    BlockRows scores, weights;
#pragma HLS ARRAY_PARTITION variable = weights complete dim = 2
    PerQuery before, larger, shrink;
    // One more than there are processes from who writes to who reads.
#pragma HLS STREAM variable = key_scale type = pipo depth = 3
#pragma HLS STREAM variable = value_scale type = pipo depth = 4
#pragma HLS STREAM variable = values type = pipo depth = 5
    FetchBlock(port, step, place, b, fresh_key, fresh_value, fresh_scale, keys, values, key_scale,
               value_scale);
    DotQueries(place, b, query, keys, lanes);
    ScoreQueries(place, b, lanes, key_scale, root, maximum, scores, before, larger);
    WeighQueries(place, b, scores, before, larger, value_scale, total, weights, shrink);
    SumQueries(place, b, weights, shrink, values, sums);
  }
}

// One team and one kv head.
inline void AttendTeam(KvReader& port, const Step& step, const TeamPlace& place,
                       const QueryRows& query, const FreshRows& key, const FreshRows& value,
                       const FreshScales& scale, float root, QueryRows& out) {
#pragma HLS INLINE off
  const Shape& s = step.shape;
  PerQuery maximum, total;
  QueryRows sums;
#pragma HLS ARRAY_PARTITION variable = sums cyclic factor = kAttentionLanes dim = 2
START_QUERIES:
  for (int q = 0; q < place.queries; ++q) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kQueries
    maximum[q] = kLowest;
    total[q] = 0.0f;
  START_QUERY:
    for (int d = 0; d < s.head_stride; d += kAttentionLanes) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT min = 48 / kAttentionLanes max = kMaxHeadSize / kAttentionLanes
      for (int j = 0; j < kAttentionLanes; ++j) {
#pragma HLS UNROLL
        sums[q][d + j] = 0.0f;
      }
    }
  }
  AttendBlocks(port, step, place, root, query, key, value, scale, place.blocks, maximum, total,
               sums);
FINISH_QUERIES:
  for (int q = 0; q < place.queries; ++q) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kQueries
  FINISH_QUERY:
    for (int d = 0; d < s.head_size; ++d) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT min = 48 max = kMaxHeadSize
      out[q][d] = sums[q][d] / total[q];
    }
  }
}

// Where a head begins in a vector of heads. Of heads that are whole in units of kReduceLanes, HLS
// sees which bank an element is in, and takes kVectorLanes a cycle; else one.
template <bool kWhole>
inline int HeadBase(const Shape& s, int head) {
#pragma HLS INLINE
  return kWhole ? head * s.head_units * kReduceLanes : head * s.head_size;
}
template <bool kWhole>
struct HeadLanes {
  static constexpr int kLanes = kWhole ? kVectorLanes : 1;
};

// A part of a query of every engine, of what this call has computed of a key and a value, or of a
// result: engine after engine down one pipeline.
template <bool kWhole>
struct LoadQuery {
  const Shape& s;
  const TeamPlace (&places)[kEngineHeads];
  const float (&qkv)[kMaxQkv];
  int shared, head, q;  // query heads of a kv head, and which of them; which of the team's queries
  QueryRows (&query)[kEngineHeads];

  LLAMA_HOST_INLINE void operator()(int e, int part, int) const {
#pragma HLS INLINE
    const int from = HeadBase<kWhole>(s, places[e].kv_head * shared + head);
    for (int j = 0; j < HeadLanes<kWhole>::kLanes; ++j) {
#pragma HLS UNROLL
      const int d = part * HeadLanes<kWhole>::kLanes + j;
      query[e][q][d] = places[e].queries > 0 && d < s.head_size ? qkv[from + d] : 0.0f;
    }
  }
};

template <bool kWhole>
struct LoadFresh {
  const Shape& s;
  const TeamPlace (&places)[kEngineHeads];
  const float (&qkv)[kMaxQkv];
  const QuantizedKv& rounded;
  int row;
  FreshRows (&key)[kEngineHeads];
  FreshRows (&value)[kEngineHeads];
  FreshScales (&scale)[kEngineHeads];

  LLAMA_HOST_INLINE void operator()(int e, int part, int) const {
#pragma HLS INLINE
    const int head = places[e].kv_head;
    const int key_from = HeadBase<kWhole>(s, s.n_heads + head);
    const int value_from = HeadBase<kWhole>(s, s.n_heads + s.n_kv_heads + head);
    const bool there = places[e].queries > 0;
    if (part == 0) {
      const bool scaled = there && s.kv_int8;
      scale[e][row][0] = scaled ? rounded.scale[row][head] : 1.0f;
      scale[e][row][1] = scaled ? rounded.scale[row][head + s.n_kv_heads] : 1.0f;
    }
    for (int j = 0; j < HeadLanes<kWhole>::kLanes; ++j) {
#pragma HLS UNROLL
      const int d = part * HeadLanes<kWhole>::kLanes + j;
      const bool real = there && d < s.head_size;
      key[e][row][d] = real ? qkv[key_from + d] : 0.0f;
      value[e][row][d] = real ? qkv[value_from + d] : 0.0f;
    }
  }
};

template <bool kWhole>
struct StoreQuery {
  const Shape& s;
  const TeamPlace (&places)[kEngineHeads];
  const QueryRows (&from)[kEngineHeads];
  int shared, head, q;
  float (&out)[kMaxDim];

  LLAMA_HOST_INLINE void operator()(int e, int part, int) const {
#pragma HLS INLINE
    const int to = HeadBase<kWhole>(s, places[e].kv_head * shared + head);
    for (int j = 0; j < HeadLanes<kWhole>::kLanes; ++j) {
#pragma HLS UNROLL
      const int d = part * HeadLanes<kWhole>::kLanes + j;
      if (places[e].queries > 0 && d < s.head_size) out[to + d] = from[e][q][d];
    }
  }
};

// One team, and kEngineHeads kv heads side by side: the engines touch nothing of one another.
struct TeamTask {
  const Step& step;
  KvReaders& cache;
  const float (*qkv)[kMaxQkv];
  const QuantizedKv& rounded;
  float (*out)[kMaxDim];
  float root;                // of head_size
  int layer, heads, chunks;  // query heads of a kv head that a team takes at once, and how often
  int tasks;

  // What the first engine of a task reads.
  KvRun Run(int task) const {
#pragma HLS INLINE
    const int head = task / (chunks * step.n_teams) * kEngineHeads;
    return RunOf(step.shape, step.teams[task / chunks % step.n_teams], layer, head);
  }

  void operator()(int task) const {
#pragma HLS INLINE
    const Shape& s = step.shape;
    const int first_kv_head = task / (chunks * step.n_teams) * kEngineHeads;
    const int first_head = task % chunks * heads;
    const int shared = s.n_heads / s.n_kv_heads;
    const int left = shared - first_head;
    const int here = left < heads ? left : heads;
    const Team team = step.teams[task / chunks % step.n_teams];
    TeamPlace places[kEngineHeads];
    QueryRows query[kEngineHeads], result[kEngineHeads];
    FreshRows key[kEngineHeads], value[kEngineHeads];
    FreshScales scale[kEngineHeads];
#pragma HLS ARRAY_PARTITION variable = places complete
#pragma HLS ARRAY_PARTITION variable = query complete dim = 1
#pragma HLS ARRAY_PARTITION variable = query cyclic factor = kKvLanes dim = 3
#pragma HLS ARRAY_PARTITION variable = result complete dim = 1
#pragma HLS ARRAY_PARTITION variable = result cyclic factor = kVectorLanes dim = 3
#pragma HLS ARRAY_PARTITION variable = key complete dim = 1
#pragma HLS ARRAY_PARTITION variable = key cyclic factor = kKvLanes dim = 3
#pragma HLS ARRAY_PARTITION variable = value complete dim = 1
#pragma HLS ARRAY_PARTITION variable = value cyclic factor = kKvLanes dim = 3
#pragma HLS ARRAY_PARTITION variable = scale complete dim = 1
    int row_of[kQueries], head_of[kQueries];
    int row = team.first, head = 0;
  PLACE_QUERIES:
    for (int q = 0; q < kQueries; ++q) {
#pragma HLS UNROLL
      row_of[q] = row < kMaxRows ? row : 0;
      head_of[q] = first_head + head;
      const bool row_done = head + 1 == here;
      head = row_done ? 0 : head + 1;
      row = row_done ? row + 1 : row;
    }
  PLACE_ENGINES:
    for (int e = 0; e < kEngineHeads; ++e) {
#pragma HLS UNROLL
      places[e].team = team;
      places[e].layer = layer;
      places[e].kv_head = first_kv_head + e;
      const bool there = places[e].kv_head < s.n_kv_heads;
      places[e].queries = there ? team.rows * here : 0;
      places[e].blocks = there ? team.last / kBlock + 1 : 0;
      places[e].stride = s.head_stride;
      for (int q = 0; q < kQueries; ++q) {
#pragma HLS UNROLL
        places[e].position[q] = step.rows[row_of[q]].position;
      }
    }
    const int queries = team.rows * here;
    const bool whole = s.head_units > 0;
  LOAD_QUERIES:
    for (int q = 0; q < queries; ++q) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kQueries
      const float (&from)[kMaxQkv] = qkv[row_of[q]];
      if (whole) {
        const LoadQuery<true> load = {s, places, from, shared, head_of[q], q, query};
        ForEach(kEngineHeads, s.head_stride / kVectorLanes, 1, load);
      } else {
        const LoadQuery<false> load = {s, places, from, shared, head_of[q], q, query};
        ForEach(kEngineHeads, s.head_stride, 1, load);
      }
    }
  LOAD_ROWS:
    for (int r = 0; r < step.n_rows; ++r) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kMaxRows
      if (step.rows[r].active && step.rows[r].slot == team.slot) {
        if (whole) {
          const LoadFresh<true> load = {s, places, qkv[r], rounded, r, key, value, scale};
          ForEach(kEngineHeads, s.head_stride / kVectorLanes, 1, load);
        } else {
          const LoadFresh<false> load = {s, places, qkv[r], rounded, r, key, value, scale};
          ForEach(kEngineHeads, s.head_stride, 1, load);
        }
      }
    }
  ENGINES:
    for (int e = 0; e < kEngineHeads; ++e) {
#pragma HLS UNROLL
      // Never under a condition: calls that HLS can see are independent start together.
      const int port = kEngineHeads == kKvPorts ? e : places[e].kv_head % kKvPorts;
      RunReader reader = ReadRun(cache, port, Run(task), Run(task + 1 < tasks ? task + 1 : task));
      AttendTeam(reader, step, places[e], query[e], key[e], value[e], scale[e], root, result[e]);
    }
  STORE_QUERIES:
    for (int q = 0; q < queries; ++q) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kQueries
      float (&to)[kMaxDim] = out[row_of[q]];
      if (whole) {
        const StoreQuery<true> store = {s, places, result, shared, head_of[q], q, to};
        ForEach(kEngineHeads, s.head_stride / kVectorLanes, 1, store);
      } else {
        const StoreQuery<false> store = {s, places, result, shared, head_of[q], q, to};
        ForEach(kEngineHeads, s.head_stride, 1, store);
      }
    }
  }
};

// out[row] = softmax(q k / sqrt(head_size)) v
inline void Attend(const Step& step, int layer, KvReaders& cache, const float (*qkv)[kMaxQkv],
                   const QuantizedKv& rounded, float root, float (*out)[kMaxDim]) {
#pragma HLS INLINE off
  const Shape& s = step.shape;
  const int heads = TeamHeads(s);
  const int chunks = TeamChunks(s);
  const int groups = (s.n_kv_heads + kEngineHeads - 1) / kEngineHeads;
  const int tasks = groups * step.n_teams * chunks;
  const TeamTask teams = {step, cache, qkv, rounded, out, root, layer, heads, chunks, tasks};
  int positions = 0;
LONGEST:
  for (int i = 0; i < step.n_teams; ++i) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kMaxRows
    const int mine = step.teams[i].last + 1;
    positions = mine > positions ? mine : positions;
  }
  // A float multiplication weighs as much as some four of the int8 ones.
  ParallelFor(tasks, static_cast<int64_t>(8 * s.head_size) * heads * positions, teams);
}

inline void WriteBeat(const Step& step, int layer, int row, int head, int part, const KvBeat& beat,
                      KvWriters& cache) {
#pragma HLS INLINE
  const Row& r = step.rows[row];
  const int to = KvBeatOf(step.shape, r.slot, layer, head, r.position) + part;
  for (int p = 0; p < kKvPorts; ++p) {
#pragma HLS UNROLL
    if (p == head % kKvPorts) cache[p].Write(to, beat);
  }
}

// A beat of a record on its way to memory.
template <bool kWhole>
struct WriteFloat {
  const Step& step;
  int layer, row;
  const float (&qkv)[kMaxQkv];
  KvWriters& cache;

  LLAMA_HOST_INLINE void operator()(int head, int part, int) const {
#pragma HLS INLINE
    const Shape& s = step.shape;
    const bool is_key = part < s.kv_half_beats;
    const int of = s.n_heads + (is_key ? 0 : s.n_kv_heads) + head;
    const int from = HeadBase<kWhole>(s, of);
    const int beat_of = is_key ? part : part - s.kv_half_beats;
    KvBeat beat;
    for (int i = 0; i < kKvBeatWords; ++i) {
#pragma HLS UNROLL
      const int d = beat_of * kKvBeatWords + i;
      beat.f[i] = d < s.head_size ? qkv[from + d] : 0.0f;
    }
    WriteBeat(step, layer, row, head, part, beat, cache);
  }
};

// Of an int8 one; its bytes come from memories that are not made for it, so it takes its time.
struct WriteInt8 {
  const Step& step;
  int layer, row;
  const QuantizedKv& rounded;
  KvWriters& cache;

  LLAMA_HOST_INLINE void operator()(int head, int part, int) const {
#pragma HLS INLINE
    const Shape& s = step.shape;
    const int at = part - s.kv_scale_beats;
    const bool is_key = at < s.kv_half_beats;
    const int from = (is_key ? 0 : s.kv_dim) + head * s.head_size;
    const int beat_of = is_key ? at : at - s.kv_half_beats;
    KvBeat beat;
    for (int i = 0; i < kKvBeatWords; ++i) {
#pragma HLS UNROLL
      float word = 0.0f;
      if (at < 0) {
        if (i < 2) word = rounded.scale[row][head + i * s.n_kv_heads];
      } else {
        uint32_t bits = 0;
        for (int k = 0; k < 4; ++k) {
#pragma HLS UNROLL
          const int d = beat_of * kKvBeatBytes + k * kKvBeatWords + i;
          const uint8_t q = static_cast<uint8_t>(d < s.head_size ? rounded.q[row][from + d] : 0);
          bits |= static_cast<uint32_t>(q) << 8 * k;
        }
        word = FloatOf(bits);
      }
      beat.f[i] = word;
    }
    WriteBeat(step, layer, row, head, part, beat, cache);
  }
};

// This call's keys and values of a layer to memory.
inline void WriteKv(const Step& step, int layer, const float (*qkv)[kMaxQkv],
                    const QuantizedKv& rounded, KvWriters& cache) {
#pragma HLS INLINE off
  const Shape& s = step.shape;
WRITE_ROWS:
  for (int row = 0; row < step.n_rows; ++row) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kMaxRows
    if (step.rows[row].active) {
      if (s.kv_int8) {
        const WriteInt8 write = {step, layer, row, rounded, cache};
        ForEach(s.n_kv_heads, s.kv_record_beats, 1, write);
      } else if (s.head_units > 0) {
        const WriteFloat<true> write = {step, layer, row, qkv[row], cache};
        ForEach(s.n_kv_heads, s.kv_record_beats, 1, write);
      } else {
        const WriteFloat<false> write = {step, layer, row, qkv[row], cache};
        ForEach(s.n_kv_heads, s.kv_record_beats, 1, write);
      }
    }
  }
}

}  // namespace kernel
