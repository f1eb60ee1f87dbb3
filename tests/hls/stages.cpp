// C functions around the kernel's stages, for tests/hls/test_stages.py.
//
// Each sets flush-to-zero as the emulator does. Arrays are row-major without padding.

#include "compute.h"

using namespace kernel;

#define STAGE extern "C" __attribute__((visibility("default"))) void

namespace {

// Too large for a caller's stack.
Workspace workspace;
QuantizedRows quantized;
float wide[kMaxRows][kMaxQkv];
float narrow[kMaxRows][kMaxDim];
BlockSums tile_sums;
RopeRow rope;

void CopyQuantized(int rows, int groups, int group_size, int8_t* q, float* scale, int32_t* offset) {
  for (int row = 0; row < rows; ++row) {
    for (int i = 0; i < groups * group_size; ++i) {
      q[row * groups * group_size + i] = quantized.q[row][i / kMinGroup][i % kMinGroup];
    }
    for (int g = 0; g < groups; ++g) {
      scale[row * groups + g] = quantized.scale[row][g];
      offset[row * groups + g] = quantized.offset[row][g];
    }
  }
}

}  // namespace

STAGE stage_limits(int32_t* out) {
  const int limits[] = {kMaxRows, kTileRows, kChannels, kTopLogits,
                        kMaxDim,  kMaxQkv,   kKvPorts,  kKvBeatBytes};
  for (int i = 0; i < 8; ++i) out[i] = limits[i];
}

// x * 1 inside FlushToZero and after it: the guard must restore the caller's mode.
STAGE stage_flush(const float* x, float* during, float* after) {
  volatile float one = 1.0f;
  {
    const FlushToZero flush;
    *during = *x * one;
  }
  *after = *x * one;
}

STAGE stage_exp(const float* x, int n, float* y) {
  const FlushToZero flush;
  for (int i = 0; i < n; ++i) y[i] = Exp(x[i]);
}

STAGE stage_log(const float* x, int n, float* y) {
  const FlushToZero flush;
  for (int i = 0; i < n; ++i) y[i] = Log(x[i]);
}

STAGE stage_cos_sin(const uint32_t* phase, int n, float* cosine, float* sine) {
  const FlushToZero flush;
  for (int i = 0; i < n; ++i) CosSin(phase[i], cosine[i], sine[i]);
}

STAGE stage_round(const float* x, int n, float* y) {
  const FlushToZero flush;
  for (int i = 0; i < n; ++i) y[i] = RoundToEven(x[i]);
}

STAGE stage_tree_sum(const float* x, int n, int leaves, float* y) {
  const FlushToZero flush;
  for (int i = 0; i < n; ++i) {
    float lanes[kReduceLanes], block[kBlock];
    for (int j = 0; j < leaves; ++j) (leaves == kBlock ? block : lanes)[j] = x[i * leaves + j];
    y[i] = leaves == kBlock ? TreeSum(block) : TreeSum(lanes);
  }
}

STAGE stage_gumbel_noise(const uint32_t* seed_and_position, const uint32_t* ids, int n, float* y) {
  const FlushToZero flush;
  const uint32_t* s = seed_and_position;
  const uint32_t key = NoiseKey(s[0], s[1], s[2]);
  for (int i = 0; i < n; ++i) y[i] = GumbelNoise(key, ids[i]);
}

STAGE stage_quantize(const float* x, int rows, int n, int group_size, int8_t* q, float* scale,
                     int32_t* offset) {
  const FlushToZero flush;
  for (int row = 0; row < rows; ++row) QuantizeRow(x + row * n, n, group_size, row, quantized);
  CopyQuantized(rows, (n + group_size - 1) / group_size, group_size, q, scale, offset);
}

STAGE stage_sum_of_squares(const float* x, int n, float* y) {
  const FlushToZero flush;
  *y = SumOfSquares(x, n);
}

STAGE stage_normalize(const float* x, const float* weight, int n, float* y) {
  const FlushToZero flush;
  NormalizeRow(x, weight, n, y);
}

// Multiplies packed weights by quantised rows; stores the sums in `out`, or adds them to it.
STAGE stage_mat_vec(const uint8_t* const* channels, int out_rows, int columns, int group_size,
                    int bits, const int8_t* q, const float* scale, int rows, int add, float* out) {
  const FlushToZero flush;
  const int groups = (columns + group_size - 1) / group_size;
  for (int row = 0; row < rows; ++row) {
    for (int g = 0; g < groups; ++g) {
      int32_t sum = 0;
      for (int i = g * group_size; i < (g + 1) * group_size; ++i) {
        const int8_t value = q[row * groups * group_size + i];
        workspace.quantized.q[row][i / kMinGroup][i % kMinGroup] = value;
        sum += value;
      }
      workspace.quantized.scale[row][g] = scale[row * groups + g];
      workspace.quantized.offset[row][g] = 128 * sum;
    }
  }
  for (int row = 0; row < rows && add; ++row) {
    for (int i = 0; i < out_rows; ++i) workspace.x[row][i] = out[row * out_rows + i];
  }
  Step step = {};
  step.shape.dim = out_rows;
  step.n_rows = rows;
  WeightPorts ports;
  for (int c = 0; c < kChannels; ++c) {
    Load(reinterpret_cast<const Beat*>(channels[c]), c, step, ports[c]);
  }
  int words = 0;
  MatVecJob job = {};
  job.format.group_size = group_size;
  job.format.row_bytes = group_size * bits / 8;
  job.format.int4 = bits == 4;
  job.matrix = PlaceMatrix(out_rows, columns, group_size, job.format.row_bytes, words);
  job.rows = rows;
  job.epilogue = add ? kResidual : kKeep;
  MatVec(job, step, ports, nullptr, workspace);
  for (int row = 0; row < rows; ++row) {
    for (int i = 0; i < out_rows; ++i)
      out[row * out_rows + i] = add ? workspace.x[row][i] : workspace.qkv[row][i];
  }
}

// Feeds sums as the tiles of W1 and W3 deliver them; units past hidden_dim hold garbage.
STAGE stage_gate(const float* gate, const float* up, int rows, int hidden_dim, int group_size,
                 int8_t* q, float* scale, int32_t* offset) {
  const FlushToZero flush;
  const int groups = (hidden_dim + group_size - 1) / group_size;
  const int waves = (2 * RoundUp(groups * group_size, kTileRows) + kWaveRows - 1) / kWaveRows;
  for (int first = 0; first < waves * kChannels; first += kTilesInFlight) {
    const int left = waves * kChannels - first;
    const int tiles = left < kTilesInFlight ? left : kTilesInFlight;
    for (int t = 0; t < tiles; ++t) {
      for (int row = 0; row < rows; ++row) {
        for (int r = 0; r < kTileRows; ++r) {
          const int unit = (first + t) / 2 * kTileRows + r;
          const float* source = t % 2 == 0 ? gate : up;
          tile_sums[t / kChannels][t % kChannels][row][r] =
              unit < hidden_dim ? source[row * hidden_dim + unit] : 1e30f;
        }
      }
    }
    GateTiles(first, tiles, tile_sums, hidden_dim, group_size, {0, rows}, workspace.gate,
              quantized);
  }
  CopyQuantized(rows, groups, group_size, q, scale, offset);
}

STAGE stage_rotate(const uint64_t* turns, int position, int heads, int head_size, float* x) {
  const FlushToZero flush;
  MakeRopeRow(turns, head_size / 2, position, rope);
  RotateHeads(rope, heads, head_size, x);
}

// `qkv` is (rows, dim + 2 kv_dim), `out` is (rows, dim); rows as in the request. `caches` holds the
// address of each port's memory. Writes this call's keys and values to the caches.
STAGE stage_attend(const uint32_t* request, const uint32_t* model, int layer,
                   uint32_t* const* caches, const float* qkv, float* out) {
  const FlushToZero flush;
  Call* call = new Call;
  ReadCall(request, model, kCommandRun, 1, *call);
  const Shape& s = call->step.shape;
  const int width = s.dim + 2 * s.kv_dim;
  for (int row = 0; row < call->step.n_rows; ++row) {
    for (int i = 0; i < width; ++i) wide[row][i] = qkv[row * width + i];
  }
  KvReaders readers;
  KvWriters writers;
  for (int p = 0; p < kKvPorts; ++p) {
    LoadKv(reinterpret_cast<const KvBeat*>(caches[p]), p, call->step, readers[p]);
    PlaceKvWriter(reinterpret_cast<KvBeat*>(caches[p]), writers[p]);
  }
  PlanRows(call->step);
  if (s.kv_int8) RoundKv(call->step, wide, workspace.kv);
  const float head_size = static_cast<float>(s.head_size);
  Attend(call->step, layer, readers, wide, workspace.kv, sqrtf(head_size), narrow);
  WriteKv(call->step, layer, wide, workspace.kv, writers);
  for (int row = 0; row < call->step.n_rows; ++row) {
    for (int i = 0; i < s.dim; ++i) out[row * s.dim + i] = narrow[row][i];
  }
  delete call;
}

STAGE stage_log_sum_exp(const float* x, int n, float* y) {
  const FlushToZero flush;
  LogSumExp sum = {kLowest, 0.0f};
  for (int first = 0; first < n; first += kBlock) {
    float block[kBlock];
    for (int i = 0; i < kBlock; ++i) block[i] = first + i < n ? x[first + i] : kLowest;
    sum.Add(block);
  }
  *y = sum.Value();
}

STAGE stage_insert_top(const float* logits, int n, int32_t* ids, float* top) {
  const FlushToZero flush;
  Sampler* sampler = new Sampler;
  StartSamplers(1, *sampler);
  for (int i = 0; i < n; ++i) {
    InsertTop(OrderOf(logits[i]), i, sampler->top_order[0], sampler->top_id[0]);
  }
  for (int i = 0; i < kTopLogits; ++i) {
    ids[i] = sampler->top_id[0][i];
    top[i] = OfOrder(sampler->top_order[0][i]);
  }
  delete sampler;
}

// End of a step: (rows, vocab_size) logits to result words, and the full logits if requested.
// Classifier rows past the vocabulary hold garbage.
STAGE stage_sample(const uint32_t* request, const uint32_t* model, const float* logits, float* full,
                   uint32_t* results) {
  const FlushToZero flush;
  Call* call = new Call;
  ReadCall(request, model, kCommandRun, 1, *call);
  const int vocab = call->step.shape.vocab_size;
  Sampler* sampler = new Sampler;
  PlanRows(call->step);
  StartSamplers(call->step.n_rows, *sampler);
  const int all = RoundUp(vocab, kWaveRows) / kTileRows;
  for (int first = 0; first < all; first += kTilesInFlight) {
    const int tiles = all - first < kTilesInFlight ? all - first : kTilesInFlight;
    for (int t = 0; t < tiles; ++t) {
      for (int i = 0; i < call->step.n_sampling; ++i) {
        const int row = call->step.sampling[i];
        for (int r = 0; r < kTileRows; ++r) {
          const int id = (first + t) * kTileRows + r;
          tile_sums[t / kChannels][t % kChannels][i][r] =
              id < vocab ? logits[row * vocab + id] : 1e30f;
        }
      }
    }
    SampleTiles(first, tiles, tile_sums, {0, call->step.n_sampling}, call->step, full, *sampler);
  }
  Outcome outcome;
  FinishStep(*sampler, call->step, results, outcome);
  TakeOver(outcome, *call);
  WriteStatus(results, *call, call->error != kErrorNone ? kStateError : kStateDone);
  delete sampler;
  delete call;
}
