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
constexpr int kHeadsAtOnce = 4;    // query heads of one kv head that share a block

// A block of one head as it lies in memory: keys, then values.
typedef float HeadBlock[2 * kBlock][kMaxHeadSize];

// First KvBeat of a block's keys; its values follow.
inline int64_t KvBlockBeat(const Shape& s, int slot, int layer, int kv_head, int block) {
  const int blocks = (s.seq_len + kBlock - 1) / kBlock;
  const int64_t index =
      ((static_cast<int64_t>(slot) * s.n_layers + layer) * s.n_kv_heads + kv_head) * blocks + block;
  return index * (2 * kBlock * (s.head_stride / kReduceLanes));
}

// One burst.
inline void ReadHeadBlock(const KvBeat* cache, int64_t beat, int beats_per_head, HeadBlock& out) {
#pragma HLS INLINE off
  int position = 0;
  int part = 0;
READ_BLOCK:
  for (int n = 0; n < 2 * kBlock * beats_per_head; ++n) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT min = 192 max = 512
    const KvBeat line = cache[beat + n];
    for (int j = 0; j < kReduceLanes; ++j) {
#pragma HLS UNROLL
      out[position][part * kReduceLanes + j] = line.f[j];
    }
    ++part;
    if (part == beats_per_head) {
      part = 0;
      ++position;
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

// query . keys[t] of every position of the block. Element i goes to partial sum
// i % kReduceLanes; both vectors are zero past their end. The positions alternate, so that an
// adder is asked for the same sum only after kBlock others.
inline void DotBlock(const float* query, const HeadBlock& block, int stride,
                     float (&dots)[kBlock]) {
#pragma HLS INLINE off
  float lanes[kBlock][kReduceLanes];
#pragma HLS ARRAY_PARTITION variable = lanes complete dim = 2
DOT_FIRST:
  for (int t = 0; t < kBlock; ++t) {
#pragma HLS PIPELINE II = 1
    for (int j = 0; j < kReduceLanes; ++j) {
#pragma HLS UNROLL
      lanes[t][j] = query[j] * block[t][j];
    }
  }
DOT_PARTS:
  for (int i = kReduceLanes; i < stride; i += kReduceLanes) {
#pragma HLS LOOP_TRIPCOUNT min = 2 max = 7
    for (int t = 0; t < kBlock; ++t) {
#pragma HLS PIPELINE II = 1
      for (int j = 0; j < kReduceLanes; ++j) {
#pragma HLS UNROLL
        lanes[t][j] = lanes[t][j] + query[i + j] * block[t][i + j];
      }
    }
  }
DOT_SUMS:
  for (int t = 0; t < kBlock; ++t) {
#pragma HLS PIPELINE II = 1
    dots[t] = TreeSum(lanes[t]);
  }
}

// Running softmax of one query head: maximum, sum of exponentials, weighted values.
struct Online {
  float maximum, total;
  float values[kMaxHeadSize];
};

inline void AttendBlock(const float* query, const HeadBlock& block, int valid, int head_stride,
                        float root, Online& state) {
#pragma HLS INLINE off
  float dots[kBlock];
  float scores[kBlock];
  float weights[kBlock];
#pragma HLS ARRAY_PARTITION variable = weights complete
  DotBlock(query, block, head_stride, dots);
  float maximum = state.maximum;
SCORES:
  for (int t = 0; t < kBlock; ++t) {
#pragma HLS PIPELINE II = 1
    // Beyond the row's own position lies whatever memory held.
    scores[t] = t < valid ? dots[t] / root : kLowest;
    maximum = scores[t] > maximum ? scores[t] : maximum;
  }
WEIGHTS:
  for (int t = 0; t < kBlock; ++t) {
#pragma HLS PIPELINE II = 1
    weights[t] = Exp(scores[t] - maximum);
  }
  const float shrink = Exp(state.maximum - maximum);
  state.maximum = maximum;
  state.total = state.total * shrink + TreeSum(weights);
SHRINK:
  for (int d = 0; d < head_stride; d += kReduceLanes) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT min = 3 max = 8
    for (int j = 0; j < kReduceLanes; ++j) {
#pragma HLS UNROLL
      state.values[d + j] = state.values[d + j] * shrink;
    }
  }
  // Never fewer parts than the adder has stages: a sum is back before it is asked for again.
  const int parts = head_stride / kReduceLanes;
  const int paced = parts > kFaddLatency + 2 ? parts : kFaddLatency + 2;
VALUES:
  for (int t = 0; t < valid; ++t) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kBlock
    for (int part = 0; part < paced; ++part) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT min = 10 max = 10
#pragma HLS DEPENDENCE variable = state.values inter false
      if (part < parts) {
        for (int j = 0; j < kReduceLanes; ++j) {
#pragma HLS UNROLL
          const int d = part * kReduceLanes + j;
          state.values[d] = state.values[d] + weights[t] * block[kBlock + t][d];
        }
      }
    }
  }
}

// This call's keys and values of one kv head over what memory has of a block.
inline void OverlayBlock(const Step& step, int slot, int block_index, const float (*qkv)[kMaxQkv],
                         int key_at, HeadBlock& block) {
#pragma HLS INLINE off
  const Shape& s = step.shape;
OVERLAY:
  for (int row = 0; row < step.n_rows; ++row) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kMaxRows
    const Row& r = step.rows[row];
    if (r.active && r.slot == slot && r.position / kBlock == block_index) {
      for (int d = 0; d < s.head_stride; ++d) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT min = 48 max = 128
        const bool real = d < s.head_size;
        block[r.position % kBlock][d] = real ? qkv[row][key_at + d] : 0.0f;
        block[kBlock + r.position % kBlock][d] = real ? qkv[row][key_at + s.kv_dim + d] : 0.0f;
      }
    }
  }
}

// One row and one kv head: kHeadsAtOnce of its query heads share each block that is read.
inline void AttendHeads(const Step& step, const KvBeat* cache, const float (*qkv)[kMaxQkv],
                        float (*out)[kMaxDim], int layer, int row, int kv_head) {
#pragma HLS INLINE off
  const Shape& s = step.shape;
  const int position = step.rows[row].position;
  const int slot = step.rows[row].slot;
  const int group_heads = s.n_heads / s.n_kv_heads;
  const int beats = s.head_stride / kReduceLanes;
  const int key_at = s.dim + kv_head * s.head_size;
  const float head_size = static_cast<float>(s.head_size);
  const float root = sqrtf(head_size);
  HeadBlock block;
#pragma HLS ARRAY_PARTITION variable = block cyclic factor = kReduceLanes dim = 2
  float query[kHeadsAtOnce][kMaxHeadSize];
#pragma HLS ARRAY_PARTITION variable = query cyclic factor = kReduceLanes dim = 2
  Online state[kHeadsAtOnce];
#pragma HLS ARRAY_PARTITION variable = state->values cyclic factor = kReduceLanes
QUERY_HEADS:
  for (int first = 0; first < group_heads; first += kHeadsAtOnce) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = 4
    const int left_heads = group_heads - first;
    const int heads = left_heads < kHeadsAtOnce ? left_heads : kHeadsAtOnce;
    const int head_at = (kv_head * group_heads + first) * s.head_size;
  START_HEADS:
    for (int h = 0; h < heads; ++h) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kHeadsAtOnce
      state[h].maximum = kLowest;
      state[h].total = 0.0f;
      for (int d = 0; d < s.head_stride; ++d) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT min = 48 max = 128
        query[h][d] = d < s.head_size ? qkv[row][head_at + h * s.head_size + d] : 0.0f;
        state[h].values[d] = 0.0f;
      }
    }
  BLOCKS:
    for (int b = 0; b * kBlock <= position; ++b) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = 32
      ReadHeadBlock(cache, KvBlockBeat(s, slot, layer, kv_head, b), beats, block);
      OverlayBlock(step, slot, b, qkv, key_at, block);
      const int left = position + 1 - b * kBlock;
    HEADS:
      for (int h = 0; h < heads; ++h) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kHeadsAtOnce
        AttendBlock(query[h], block, left < kBlock ? left : kBlock, s.head_stride, root, state[h]);
      }
    }
  FINISH_HEADS:
    for (int h = 0; h < heads; ++h) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kHeadsAtOnce
      for (int d = 0; d < s.head_size; ++d) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT min = 48 max = 128
        out[row][head_at + h * s.head_size + d] = state[h].values[d] / state[h].total;
      }
    }
  }
}

struct HeadTask {
  const Step& step;
  const KvBeat* cache;
  const float (*qkv)[kMaxQkv];
  float (*out)[kMaxDim];
  int layer;

  void operator()(int task) const {
#pragma HLS INLINE
    const int row = task / step.shape.n_kv_heads;
    const int kv_head = task % step.shape.n_kv_heads;
    if (step.rows[row].active) AttendHeads(step, cache, qkv, out, layer, row, kv_head);
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
    const Row& r = step.rows[row];
    longest = r.active && r.position > longest ? r.position : longest;
  }
  // A float multiplication weighs as much as some eight of the int8 ones.
  const int64_t macs =
      static_cast<int64_t>(16 * s.head_size) * (longest + 1) * (s.n_heads / s.n_kv_heads);
  ParallelFor(step.n_rows * s.n_kv_heads, macs, heads);
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
