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

// Rounds one head's vector to what the cache will hold of it.
inline void RoundHead(float* x, int head_size, int8_t* q, float& scale) {
#pragma HLS INLINE
  uint32_t largest_bits = 0;
LARGEST_IN_HEAD:
  for (int i = 0; i < head_size; i += kVectorLanes) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT min = 48 / kVectorLanes max = kMaxHeadSize / kVectorLanes
    for (int j = 0; j < kVectorLanes; ++j) {
#pragma HLS UNROLL
      const uint32_t magnitude = i + j < head_size ? BitsOf(x[i + j]) & 0x7fffffffu : 0u;
      largest_bits = magnitude > largest_bits ? magnitude : largest_bits;
    }
  }
  const GroupScale group = ScaleOf(largest_bits);
ROUND_HEAD:
  for (int i = 0; i < head_size; i += kVectorLanes) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT min = 48 / kVectorLanes max = kMaxHeadSize / kVectorLanes
    for (int j = 0; j < kVectorLanes; ++j) {
#pragma HLS UNROLL
      if (i + j < head_size) {
        const int32_t value = RoundToInt8(x[i + j] * group.up);
        q[i + j] = static_cast<int8_t>(value);
        x[i + j] = static_cast<float>(value) * group.scale;
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
typedef float HeadBlock[kBlock][kMaxHeadSize];

// Values of a head a cycle, whoever reads or writes them.
constexpr int kKvLanes = kKvBeatWords > kAttentionLanes ? kKvBeatWords : kAttentionLanes;

// Queries of a team and what comes of them; this call's keys, or values, of one head.
typedef float QueryRows[kQueries][kMaxHeadSize];
typedef float FreshRows[kMaxRows][kMaxHeadSize];

// Where an engine works: `heads` query heads of each row of the team, row after row. Where there is
// no such kv head, no queries and no blocks.
struct TeamPlace {
  Team team;
  int layer, kv_head;
  int first_head, heads;  // query heads of the kv head
  int queries, blocks;

  // Positions of a block that a query may look at; none or less: it has not come that far.
  int Seen(const Step& step, int query, int block) const {
    return step.rows[team.first + query / heads].position + 1 - block * kBlock;
  }
};

// A float32 beat of a record on its way into a block.
struct FetchFloat {
  KvReader& port;
  const Shape& s;
  int from;
  HeadBlock& keys;
  HeadBlock& values;

  LLAMA_HOST_INLINE void operator()(int position, int part, int) const {
#pragma HLS INLINE
    const KvBeat beat = port.Read(from + position * s.kv_record_beats + part);
    const int d = (part < s.kv_half_beats ? part : part - s.kv_half_beats) * kKvBeatWords;
    for (int i = 0; i < kKvBeatWords; ++i) {
#pragma HLS UNROLL
      if (part < s.kv_half_beats) {
        keys[position][d + i] = beat.f[i];
      } else {
        values[position][d + i] = beat.f[i];
      }
    }
  }
};

// A quarter of an int8 one: no more multipliers than float32 has values a cycle.
struct FetchInt8 {
  KvReader& port;
  const Shape& s;
  int from;
  KvBeat& beat;
  float (&scales)[2];
  HeadBlock& keys;
  HeadBlock& values;

  LLAMA_HOST_INLINE void operator()(int position, int part, int quarter) const {
#pragma HLS INLINE
    if (quarter == 0) beat = port.Read(from + position * s.kv_record_beats + part);
    const int at = part - s.kv_scale_beats;
    if (at < 0) {
      scales[0] = beat.f[0];
      scales[1] = beat.f[1];
    } else {
      const bool is_key = at < s.kv_half_beats;
      const int d = (is_key ? at : at - s.kv_half_beats) * kKvBeatBytes + quarter * kKvBeatWords;
      const float scale = scales[is_key ? 0 : 1];
      float piece[kKvBeatWords];
      for (int i = 0; i < kKvBeatWords; ++i) {
#pragma HLS UNROLL
        const int8_t q = static_cast<int8_t>(BitsOf(beat.f[i]) >> 8 * quarter);
        piece[i] = static_cast<float>(q) * scale;
      }
      for (int i = 0; i < kKvBeatWords; ++i) {
#pragma HLS UNROLL
        if (is_key) {
          keys[position][d + i] = piece[i];
        } else {
          values[position][d + i] = piece[i];
        }
      }
    }
  }
};

// A block's positions from memory, then what this call computes over them.
inline void FetchBlock(KvReader& port, const Step& step, const TeamPlace& place, int block_index,
                       const FreshRows& fresh_key, const FreshRows& fresh_value, HeadBlock& keys,
                       HeadBlock& values) {
#pragma HLS INLINE off
  const Shape& s = step.shape;
  const int positions = BlockPositions(place.team, block_index);
  const int from = KvBeatOf(s, place.team.slot, place.layer, place.kv_head, block_index * kBlock);
  if (s.kv_int8) {
    KvBeat beat = {};
    float scales[2] = {};
    const FetchInt8 fetch = {port, s, from, beat, scales, keys, values};
    ForEach(positions, s.kv_record_beats, 4, fetch);
  } else {
    const FetchFloat fetch = {port, s, from, keys, values};
    ForEach(positions, s.kv_record_beats, 1, fetch);
  }
  // Weights of what is not there are zero, and zero times zero is.
CLEAR_VALUES:
  for (int t = positions; t < kBlock; ++t) {
#pragma HLS LOOP_TRIPCOUNT min = 0 max = kBlock - 1
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
      for (int d = 0; d < s.head_stride; d += kReduceLanes) {
#pragma HLS PIPELINE II = kReduceLanes / kAttentionLanes
#pragma HLS LOOP_TRIPCOUNT min = 3 max = 8
        for (int j = 0; j < kReduceLanes; ++j) {
#pragma HLS UNROLL
          keys[r.position % kBlock][d + j] = fresh_key[row][d + j];
          values[r.position % kBlock][d + j] = fresh_value[row][d + j];
        }
      }
    }
  }
}

// query . keys[t] of every position of the block. Element i goes to partial sum
// i % kReduceLanes; both vectors are zero past their end. The positions alternate, so that an
// adder is asked for the same sum only after kBlock others.
inline void DotBlock(const float (&query)[kMaxHeadSize], const HeadBlock& keys, int stride,
                     float (&dots)[kBlock]) {
#pragma HLS INLINE off
  float lanes[kBlock][kReduceLanes];
#pragma HLS ARRAY_PARTITION variable = lanes cyclic factor = kAttentionLanes dim = 2
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
DOT_SUMS:
  for (int t = 0; t < kBlock; ++t) {
#pragma HLS PIPELINE II = kReduceLanes / kAttentionLanes
    dots[t] = TreeSum(lanes[t]);
  }
}

typedef float BlockRows[kQueries][kBlock];

inline void DotQueries(const Step& step, const TeamPlace& place, int block_index,
                       const QueryRows& query, const HeadBlock& keys, BlockRows& dots) {
#pragma HLS INLINE off
DOT_QUERIES:
  for (int q = 0; q < place.queries; ++q) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kQueries
    if (place.Seen(step, q, block_index) > 0) {
      DotBlock(query[q], keys, step.shape.head_stride, dots[q]);
    }
  }
}

// Adders for a block's exponentials.
constexpr int kWeightLanes = kAttentionLanes < 4 ? kAttentionLanes : 4;

// Running softmax: of the blocks so far, the largest score and the sum of exponentials.
struct Online {
  float maximum[kQueries], total[kQueries];
};

// Scores to weights, and by how much what has been summed so far shrinks.
inline void WeighQueries(const Step& step, const TeamPlace& place, int block_index,
                         const BlockRows& dots, float root, Online& online, BlockRows& weights,
                         float (&shrink)[kQueries]) {
#pragma HLS INLINE off
WEIGH_QUERIES:
  for (int q = 0; q < place.queries; ++q) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kQueries
    const int seen = place.Seen(step, q, block_index);
    if (seen > 0) {
      float scores[kBlock], terms[kBlock];
#pragma HLS ARRAY_PARTITION variable = scores complete
#pragma HLS ARRAY_PARTITION variable = terms complete
    SCORES:
      for (int t = 0; t < kBlock; ++t) {
#pragma HLS PIPELINE II = kScoreCycles
        // Beyond the query's own position lies whatever was there before.
        scores[t] = t < seen ? dots[q][t] / root : kLowest;
      }
      const float here = Largest(scores);
      const float larger = here > online.maximum[q] ? here : online.maximum[q];
    WEIGHTS:
      for (int t = 0; t < kBlock; ++t) {
#pragma HLS PIPELINE II = kScoreCycles
        terms[t] = Exp(scores[t] - larger);
        weights[q][t] = terms[t];
      }
      shrink[q] = Exp(online.maximum[q] - larger);
      online.maximum[q] = larger;
      online.total[q] = online.total[q] * shrink[q] + SumInPlace<kWeightLanes>(terms);
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

inline void SumQueries(const Step& step, const TeamPlace& place, int block_index,
                       const BlockRows& weights, const float (&shrink)[kQueries],
                       const HeadBlock& values, QueryRows& sums) {
#pragma HLS INLINE off
SUM_QUERIES:
  for (int q = 0; q < place.queries; ++q) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kQueries
    if (place.Seen(step, q, block_index) > 0) {
      SumBlock(weights[q], values, step.shape.head_stride, shrink[q], sums[q]);
    }
  }
}

// From the first block to the last: one is fetched while those before it are multiplied, weighed
// and summed.
inline void AttendBlocks(KvReader& port, const Step& step, const TeamPlace& place, float root,
                         const QueryRows& query, const FreshRows& fresh_key,
                         const FreshRows& fresh_value, int blocks, Online& online,
                         QueryRows& sums) {
#pragma HLS INLINE off
BLOCKS:
  for (int b = 0; b < blocks; ++b) {
#pragma HLS DATAFLOW
#pragma HLS LOOP_TRIPCOUNT min = 1 max = 32
    HeadBlock keys, values;
#pragma HLS ARRAY_PARTITION variable = keys cyclic factor = kKvLanes dim = 2
#pragma HLS ARRAY_PARTITION variable = values cyclic factor = kKvLanes dim = 2
    BlockRows dots, weights;
#pragma HLS ARRAY_PARTITION variable = weights complete dim = 2
    float shrink[kQueries];
    // Used two processes later: as deep as the way there.
#pragma HLS STREAM variable = values type = pipo depth = 4
    FetchBlock(port, step, place, b, fresh_key, fresh_value, keys, values);
    DotQueries(step, place, b, query, keys, dots);
    WeighQueries(step, place, b, dots, root, online, weights, shrink);
    SumQueries(step, place, b, weights, shrink, values, sums);
  }
}

// One team and one kv head.
inline void AttendTeam(KvReader& port, const Step& step, const TeamPlace& place,
                       const QueryRows& query, const FreshRows& key, const FreshRows& value,
                       QueryRows& out) {
#pragma HLS INLINE off
  const Shape& s = step.shape;
  const float head_size = static_cast<float>(s.head_size);
  const float root = sqrtf(head_size);
  Online online;
  QueryRows sums;
#pragma HLS ARRAY_PARTITION variable = sums cyclic factor = kAttentionLanes dim = 2
START_QUERIES:
  for (int q = 0; q < place.queries; ++q) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kQueries
    online.maximum[q] = kLowest;
    online.total[q] = 0.0f;
    for (int d = 0; d < s.head_stride; d += kAttentionLanes) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT min = 48 / kAttentionLanes max = kMaxHeadSize / kAttentionLanes
      for (int j = 0; j < kAttentionLanes; ++j) {
#pragma HLS UNROLL
        sums[q][d + j] = 0.0f;
      }
    }
  }
  AttendBlocks(port, step, place, root, query, key, value, place.blocks, online, sums);
FINISH_QUERIES:
  for (int q = 0; q < place.queries; ++q) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kQueries
    for (int d = 0; d < s.head_size; ++d) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT min = 48 max = kMaxHeadSize
      out[q][d] = sums[q][d] / online.total[q];
    }
  }
}

// The team's queries of one kv head, and what this call has computed of its keys and values.
inline void LoadTeam(const Step& step, const TeamPlace& place, const float (*qkv)[kMaxQkv],
                     QueryRows& query, FreshRows& key, FreshRows& value) {
#pragma HLS INLINE
  const Shape& s = step.shape;
  const int head = place.kv_head * (s.n_heads / s.n_kv_heads) + place.first_head;
LOAD_QUERIES:
  for (int q = 0; q < place.queries; ++q) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kQueries
    const int row = place.team.first + q / place.heads;
    const int at = (head + q % place.heads) * s.head_size;
    for (int d = 0; d < s.head_stride; d += kVectorLanes) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT min = 48 / kVectorLanes max = kMaxHeadSize / kVectorLanes
      for (int j = 0; j < kVectorLanes; ++j) {
#pragma HLS UNROLL
        query[q][d + j] = d + j < s.head_size ? qkv[row][at + d + j] : 0.0f;
      }
    }
  }
LOAD_ROWS:
  for (int row = 0; row < step.n_rows; ++row) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kMaxRows
    const int at = s.dim + place.kv_head * s.head_size;
    if (step.rows[row].active && step.rows[row].slot == place.team.slot) {
      for (int d = 0; d < s.head_stride; d += kVectorLanes) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT min = 48 / kVectorLanes max = kMaxHeadSize / kVectorLanes
        for (int j = 0; j < kVectorLanes; ++j) {
#pragma HLS UNROLL
          const bool real = d + j < s.head_size;
          key[row][d + j] = real ? qkv[row][at + d + j] : 0.0f;
          value[row][d + j] = real ? qkv[row][at + s.kv_dim + d + j] : 0.0f;
        }
      }
    }
  }
}

inline void StoreTeam(const Step& step, const TeamPlace& place, const QueryRows& from,
                      float (*out)[kMaxDim]) {
#pragma HLS INLINE
  const Shape& s = step.shape;
  const int head = place.kv_head * (s.n_heads / s.n_kv_heads) + place.first_head;
STORE_QUERIES:
  for (int q = 0; q < place.queries; ++q) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kQueries
    const int row = place.team.first + q / place.heads;
    const int at = (head + q % place.heads) * s.head_size;
    for (int d = 0; d < s.head_size; d += kVectorLanes) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT min = 48 / kVectorLanes max = kMaxHeadSize / kVectorLanes
      for (int j = 0; j < kVectorLanes; ++j) {
#pragma HLS UNROLL
        if (d + j < s.head_size) out[row][at + d + j] = from[q][d + j];
      }
    }
  }
}

// One team, and kEngineHeads kv heads side by side: the engines touch nothing of one another.
struct TeamTask {
  const Step& step;
  KvReaders& cache;
  const float (*qkv)[kMaxQkv];
  float (*out)[kMaxDim];
  int layer, heads, chunks;  // query heads of a kv head that a team takes at once, and how often

  void operator()(int task) const {
#pragma HLS INLINE
    const int first_kv_head = task / (chunks * step.n_teams) * kEngineHeads;
    const int first_head = task % chunks * heads;
    const int left = step.shape.n_heads / step.shape.n_kv_heads - first_head;
    TeamPlace places[kEngineHeads];
    QueryRows query[kEngineHeads], result[kEngineHeads];
    FreshRows key[kEngineHeads], value[kEngineHeads];
#pragma HLS ARRAY_PARTITION variable = places complete
#pragma HLS ARRAY_PARTITION variable = query complete dim = 1
#pragma HLS ARRAY_PARTITION variable = query cyclic factor = kKvLanes dim = 3
#pragma HLS ARRAY_PARTITION variable = result complete dim = 1
#pragma HLS ARRAY_PARTITION variable = result cyclic factor = kVectorLanes dim = 3
#pragma HLS ARRAY_PARTITION variable = key complete dim = 1
#pragma HLS ARRAY_PARTITION variable = key cyclic factor = kKvLanes dim = 3
#pragma HLS ARRAY_PARTITION variable = value complete dim = 1
#pragma HLS ARRAY_PARTITION variable = value cyclic factor = kKvLanes dim = 3
  LOAD_ENGINES:
    for (int e = 0; e < kEngineHeads; ++e) {
      places[e].team = step.teams[task / chunks % step.n_teams];
      places[e].layer = layer;
      places[e].kv_head = first_kv_head + e;
      places[e].first_head = first_head;
      places[e].heads = left < heads ? left : heads;
      const bool there = places[e].kv_head < step.shape.n_kv_heads;
      places[e].queries = there ? places[e].team.rows * places[e].heads : 0;
      places[e].blocks = there ? places[e].team.last / kBlock + 1 : 0;
      if (there) LoadTeam(step, places[e], qkv, query[e], key[e], value[e]);
    }
  ENGINES:
    for (int e = 0; e < kEngineHeads; ++e) {
#pragma HLS UNROLL
      // Never under a condition: calls that HLS can see are independent start together.
      const int port = kEngineHeads == kKvPorts ? e : places[e].kv_head % kKvPorts;
      AttendTeam(cache[port], step, places[e], query[e], key[e], value[e], result[e]);
    }
  STORE_ENGINES:
    for (int e = 0; e < kEngineHeads; ++e) {
      StoreTeam(step, places[e], result[e], out);
    }
  }
};

// out[row] = softmax(q k / sqrt(head_size)) v
inline void Attend(const Step& step, int layer, KvReaders& cache, const float (*qkv)[kMaxQkv],
                   float (*out)[kMaxDim]) {
#pragma HLS INLINE off
  const Shape& s = step.shape;
  const int heads = TeamHeads(s);
  const int chunks = TeamChunks(s);
  const int groups = (s.n_kv_heads + kEngineHeads - 1) / kEngineHeads;
  const TeamTask teams = {step, cache, qkv, out, layer, heads, chunks};
  int positions = 0;
LONGEST:
  for (int i = 0; i < step.n_teams; ++i) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kMaxRows
    const int mine = step.teams[i].last + 1;
    positions = mine > positions ? mine : positions;
  }
  // A float multiplication weighs as much as some eight of the int8 ones.
  ParallelFor(groups * step.n_teams * chunks,
              static_cast<int64_t>(16 * s.head_size) * heads * positions, teams);
}

// This call's keys and values of a layer to memory.
inline void WriteKv(const Step& step, int layer, const float (*qkv)[kMaxQkv],
                    const QuantizedKv& rounded, KvWriters& cache) {
#pragma HLS INLINE off
  const Shape& s = step.shape;
WRITE_ROWS:
  for (int row = 0; row < step.n_rows; ++row) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kMaxRows
    const Row& r = step.rows[row];
    if (r.active) {
    WRITE_HEADS:
      for (int h = 0; h < s.n_kv_heads; ++h) {
#pragma HLS LOOP_TRIPCOUNT min = 6 max = 32
        const int to = KvBeatOf(s, r.slot, layer, h, r.position);
      WRITE_RECORD:
        for (int part = 0; part < s.kv_record_beats; ++part) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT min = 6 max = 64
          const int at = part - s.kv_scale_beats;
          const bool is_key = at < s.kv_half_beats;
          const int kv = (is_key ? 0 : s.kv_dim) + h * s.head_size;
          const int beat_of = is_key ? at : at - s.kv_half_beats;
          KvBeat beat;
          for (int i = 0; i < kKvBeatWords; ++i) {
#pragma HLS UNROLL
            float word = 0.0f;
            if (at < 0) {
              if (i < 2) word = rounded.scale[row][h + i * s.n_kv_heads];
            } else if (s.kv_int8) {
              uint32_t bits = 0;
              for (int k = 0; k < 4; ++k) {
#pragma HLS UNROLL
                const int d = beat_of * kKvBeatBytes + k * kKvBeatWords + i;
                const uint8_t q =
                    static_cast<uint8_t>(d < s.head_size ? rounded.q[row][kv + d] : 0);
                bits |= static_cast<uint32_t>(q) << 8 * k;
              }
              word = FloatOf(bits);
            } else {
              const int d = beat_of * kKvBeatWords + i;
              if (d < s.head_size) word = qkv[row][s.dim + kv + d];
            }
            beat.f[i] = word;
          }
          for (int p = 0; p < kKvPorts; ++p) {
#pragma HLS UNROLL
            if (p == h % kKvPorts) cache[p].Write(to + part, beat);
          }
        }
      }
    }
  }
}

}  // namespace kernel
