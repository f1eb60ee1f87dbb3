// Attention over the KV cache, one block of positions at a time, with an online softmax: no
// array is as long as the context.
//
// This call's keys and values are on chip. Blocks come from memory in one burst each, and the
// positions that this call computes are laid over them, so memory is never read back early.
#pragma once

#include "call.h"
#include "shims/shims.h"

namespace kernel {

constexpr float kLowest = -1e30f;  // a score that any other exceeds

typedef float HeadBlock[kBlock][kMaxHeadSize];

// First KvBeat of a block's keys; its values follow.
inline int64_t KvBlockBeat(const Shape& s, int slot, int layer, int kv_head, int block) {
  const int blocks = (s.seq_len + kBlock - 1) / kBlock;
  const int64_t index =
      ((static_cast<int64_t>(slot) * s.n_layers + layer) * s.n_kv_heads + kv_head) * blocks + block;
  return index * (2 * kBlock * (s.head_stride / kReduceLanes));
}

inline void ReadHeadBlock(const KvBeat* cache, int64_t beat, int beats_per_head, HeadBlock& out) {
#pragma HLS INLINE off
READ_POSITIONS:
  for (int t = 0; t < kBlock; ++t) {
    for (int i = 0; i < beats_per_head; ++i) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT min = 3 max = 8
      const KvBeat& line = cache[beat + t * beats_per_head + i];
      for (int j = 0; j < kReduceLanes; ++j) {
#pragma HLS UNROLL
        out[t][i * kReduceLanes + j] = line.f[j];
      }
    }
  }
}

// One row's keys or values of one layer into the cache.
inline void WriteHead(KvBeat* cache, int64_t beat, const float* head, int head_size, int stride) {
#pragma HLS INLINE off
WRITE_HEAD:
  for (int i = 0; i < stride; i += kReduceLanes) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT min = 3 max = 8
    KvBeat line;
    for (int j = 0; j < kReduceLanes; ++j) {
#pragma HLS UNROLL
      line.f[j] = i + j < head_size ? head[i + j] : 0.0f;
    }
    cache[beat + i / kReduceLanes] = line;
  }
}

// Element i goes to partial sum i % kReduceLanes; both vectors are zero past their end.
inline float DotHead(const float* a, const float* b, int stride) {
#pragma HLS INLINE
  float lane[kReduceLanes];
#pragma HLS ARRAY_PARTITION variable = lane complete
  for (int j = 0; j < kReduceLanes; ++j) {
#pragma HLS UNROLL
    lane[j] = a[j] * b[j];
  }
DOT_HEAD:
  for (int i = kReduceLanes; i < stride; i += kReduceLanes) {
#pragma HLS LOOP_TRIPCOUNT min = 2 max = 7
    for (int j = 0; j < kReduceLanes; ++j) {
#pragma HLS UNROLL
      lane[j] = lane[j] + a[i + j] * b[i + j];
    }
  }
  return TreeSum(lane);
}

// Running softmax of one query head: maximum, sum of exponentials, weighted values.
struct Online {
  float maximum, total;
  float values[kMaxHeadSize];
};

inline void AttendBlock(const float* query, const HeadBlock& keys, const HeadBlock& values,
                        int valid, int head_stride, float root, Online& state) {
#pragma HLS INLINE off
  float scores[kBlock];
  float weights[kBlock];
#pragma HLS ARRAY_PARTITION variable = weights complete
  float maximum = state.maximum;
SCORES:
  for (int t = 0; t < valid; ++t) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kBlock
    const float dot = DotHead(query, keys[t], head_stride);
    scores[t] = dot / root;
    maximum = scores[t] > maximum ? scores[t] : maximum;
  }
WEIGHTS:
  for (int t = 0; t < kBlock; ++t) {
#pragma HLS PIPELINE II = 1
    const float score = t < valid ? scores[t] : kLowest;
    weights[t] = Exp(score - maximum);
  }
  const float shrink = Exp(state.maximum - maximum);
  state.maximum = maximum;
  state.total = state.total * shrink + TreeSum(weights);
SHRINK:
  for (int d = 0; d < head_stride; ++d) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT min = 48 max = 128
    state.values[d] = state.values[d] * shrink;
  }
VALUES:
  for (int t = 0; t < valid; ++t) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kBlock
    for (int d = 0; d < head_stride; ++d) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT min = 48 max = 128
#pragma HLS DEPENDENCE variable = state.values inter false
      state.values[d] = state.values[d] + weights[t] * values[t][d];
    }
  }
}

// One row and one kv head: all of its query heads.
struct HeadTask {
  const Step& step;
  const KvBeat* cache;
  const float (*qkv)[kMaxQkv];
  float (*out)[kMaxDim];
  int layer;

  void operator()(int, int task) const {
#pragma HLS INLINE off
    const Shape& s = step.shape;
    const int row = task / s.n_kv_heads;
    const int kv_head = task % s.n_kv_heads;
    if (!step.rows[row].active) return;
    const int position = step.rows[row].position;
    const int slot = step.rows[row].slot;
    const int group_heads = s.n_heads / s.n_kv_heads;
    const int beats = s.head_stride / kReduceLanes;
    const int key_at = s.dim + kv_head * s.head_size;
    const int value_at = key_at + s.kv_dim;
    const float head_size = static_cast<float>(s.head_size);
    const float root = sqrtf(head_size);
    HeadBlock keys, values;
    // One query head after the other: the block is small and stays close.
  QUERY_HEADS:
    for (int h = 0; h < group_heads; ++h) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = 8
      const int head_at = (kv_head * group_heads + h) * s.head_size;
      float query[kMaxHeadSize];
      Online state;
      state.maximum = kLowest;
      state.total = 0.0f;
    LOAD_QUERY:
      for (int d = 0; d < s.head_stride; ++d) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT min = 48 max = 128
        query[d] = d < s.head_size ? qkv[row][head_at + d] : 0.0f;
        state.values[d] = 0.0f;
      }
    BLOCKS:
      for (int block = 0; block * kBlock <= position; ++block) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = 32
        const int64_t beat = KvBlockBeat(s, slot, layer, kv_head, block);
        ReadHeadBlock(cache, beat, beats, keys);
        ReadHeadBlock(cache, beat + kBlock * beats, beats, values);
      OVERLAY:
        for (int other = 0; other < step.n_rows; ++other) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kMaxRows
          const Row& r = step.rows[other];
          if (r.active && r.slot == slot && r.position / kBlock == block) {
            for (int d = 0; d < s.head_stride; ++d) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT min = 48 max = 128
              const bool real = d < s.head_size;
              keys[r.position % kBlock][d] = real ? qkv[other][key_at + d] : 0.0f;
              values[r.position % kBlock][d] = real ? qkv[other][value_at + d] : 0.0f;
            }
          }
        }
        const int left = position + 1 - block * kBlock;
        AttendBlock(query, keys, values, left < kBlock ? left : kBlock, s.head_stride, root, state);
      }
    FINISH:
      for (int d = 0; d < s.head_size; ++d) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT min = 48 max = 128
        out[row][head_at + d] = state.values[d] / state.total;
      }
    }
  }
};

// out[row] = softmax(q k / sqrt(head_size)) v; then this call's keys and values go to memory.
inline void Attend(const Step& step, int layer, KvBeat* cache, const float (*qkv)[kMaxQkv],
                   float (*out)[kMaxDim]) {
#pragma HLS INLINE off
  const Shape& s = step.shape;
  const HeadTask heads = {step, cache, qkv, out, layer};
  int longest = 0;
LONGEST:
  for (int row = 0; row < step.n_rows; ++row) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kMaxRows
    longest = step.rows[row].position > longest ? step.rows[row].position : longest;
  }
  // A float multiplication weighs as much as some eight of the int8 ones.
  const int macs = 8 * 2 * (longest + 1) * s.head_size * (s.n_heads / s.n_kv_heads);
  ParallelFor<1>(step.n_rows * s.n_kv_heads, macs, heads);
WRITE_ROWS:
  for (int row = 0; row < step.n_rows; ++row) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kMaxRows
    if (step.rows[row].active) {
    WRITE_HEADS:
      for (int h = 0; h < s.n_kv_heads; ++h) {
#pragma HLS LOOP_TRIPCOUNT min = 6 max = 32
        const int position = step.rows[row].position;
        const int beats = s.head_stride / kReduceLanes;
        const int64_t block = KvBlockBeat(s, step.rows[row].slot, layer, h, position / kBlock);
        const int64_t key = block + (position % kBlock) * beats;
        const float* k = qkv[row] + s.dim + h * s.head_size;
        WriteHead(cache, key, k, s.head_size, s.head_stride);
        WriteHead(cache, key + kBlock * beats, k + s.kv_dim, s.head_size, s.head_stride);
      }
    }
  }
}

}  // namespace kernel
