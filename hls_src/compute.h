// The layer loop.
#pragma once

#include "stages/attention.h"
#include "stages/epilogues.h"
#include "stages/matvec.h"
#include "stages/quantize.h"
#include "stages/rmsnorm.h"
#include "stages/rope.h"
#include "stages/sample.h"

namespace kernel {

// On-chip memory of the compute process.
struct Workspace {
  float x[kMaxRows][kMaxDim];       // residual stream
  float normed[kMaxRows][kMaxDim];  // normalised, or attention's output
  float qkv[kMaxRows][kMaxQkv];     // queries, keys, values of this call
  float norm_weight[kMaxIn];
  QuantizedKv kv;
  QuantizedRows quantized;  // what the engines read
  QuantizedRows hidden;     // gated units, on their way there
  GateState gate;
  Sampler sampler;
  RopeRow rope[kMaxRows];
  uint64_t rope_turns[kMaxHeadSize / 2];
  float root;  // of head_size
};

inline void Mark(EventPort& events, const Step& step, int stage, int layer) {
#pragma HLS INLINE
  if (step.profile) events.Mark(stage, layer);
}

// A word of a channel that is known only at run time.
inline Word ReadFrom(WeightPorts& ports, int channel, int index) {
#pragma HLS INLINE
  Word word;
CHANNELS:
  for (int c = 0; c < kChannels; ++c) {
#pragma HLS UNROLL
    if (c == channel) word = ReadWord(ports[c], index);
  }
  return word;
}

inline void ReadNorm(WeightPorts& ports, int first_word, int words, float* weight) {
#pragma HLS INLINE off
READ_NORM:
  for (int w = 0; w < words; ++w) {
#pragma HLS PIPELINE II = kWordBeats
#pragma HLS LOOP_TRIPCOUNT min = 18 max = 256
    const Word word = ReadWord(ports[0], first_word + w);
    for (int i = 0; i < kWordBytes / 4; ++i) {
#pragma HLS UNROLL
      weight[w * (kWordBytes / 4) + i] = WordFloat(word, i);
    }
  }
}

// x[row] = the token's row of the embedding, dequantised.
inline void Embed(const Step& step, WeightPorts& ports, Workspace& ws) {
#pragma HLS INLINE off
  const Shape& s = step.shape;
ROWS:
  for (int row = 0; row < step.n_rows; ++row) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kMaxRows
    if (step.rows[row].active) {
    GROUPS:
      for (int g = 0; g < s.dim_groups; ++g) {
#pragma HLS LOOP_TRIPCOUNT min = 9 max = 64
        const int tile = step.rows[row].token / kTileRows;
        const int channel = tile % kChannels;
        const int tail = TailBase(step.layout, s, channel);
        const RowWords at =
            FindRow(step.layout.embedding, tail, step.rows[row].token, g, s.row_bytes);
        const Word values = ReadFrom(ports, channel, at.values);
#pragma HLS ARRAY_PARTITION variable = values.b complete
        const Word scales = ReadFrom(ports, channel, at.scales);
#pragma HLS ARRAY_PARTITION variable = scales.b complete
        const float scale = WordFloat(scales, at.scale_index);
      DEQUANTIZE:
        for (int i = 0; i < s.group_size; i += kVectorLanes) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT min = 32 / kVectorLanes max = 64 / kVectorLanes
          for (int j = 0; j < kVectorLanes; ++j) {
#pragma HLS UNROLL
            // Of half a group, what follows is beyond dim.
            const int at_byte = at.offset + (s.int4 ? i % kMinGroup : i) + j;
            const int byte = values.b[at_byte % kWordBytes];
            const int nibble = i < kMinGroup ? byte & 15 : byte >> 4;
            const int d = g * s.group_size + i + j;
            const float value = static_cast<float>(s.int4 ? nibble - 8 : byte - 128);
            if (d < s.dim) ws.x[row][d] = value * scale;
          }
        }
      }
    }
  }
}

// What a float of a small stage weighs beside the products that ParallelRows counts.
constexpr int kMoveMacs = 4, kVectorMacs = 64;

struct NormalizeTask {
  const Step& step;
  bool sampling;  // of the rows that sample, next to one another; else of all
  Workspace& ws;

  void operator()(const RowSpan& rows) const {
#pragma HLS INLINE
  NORMALIZE_EACH:
    for (int row = rows.first; row < rows.first + rows.n; ++row) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kMaxRows
      const int from = sampling ? step.sampling[row] : row;
      NormalizeRow(ws.x[from], ws.norm_weight, step.shape.dim, ws.normed[row]);
    }
  }
};

inline void NormalizeRows(const Step& step, WeightPorts& ports, int norm_word, bool sampling,
                          Workspace& ws) {
#pragma HLS INLINE off
  ReadNorm(ports, norm_word, step.layout.norm_words, ws.norm_weight);
  const NormalizeTask normalize = {step, sampling, ws};
  const int rows = sampling ? step.n_sampling : step.n_rows;
  ParallelRows(rows, step.shape.dim * kVectorMacs, normalize);
}

struct QuantizeTask {
  const Step& step;
  Workspace& ws;

  void operator()(const RowSpan& rows) const {
#pragma HLS INLINE
  QUANTIZE_EACH:
    for (int row = rows.first; row < rows.first + rows.n; ++row) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kMaxRows
      QuantizeRow(ws.normed[row], step.shape.dim, step.shape.group_size, row, ws.quantized);
    }
  }
};

// What was normalised, or attended to, becomes what the engines read.
inline void QuantizeRows(const Step& step, int rows, Workspace& ws) {
#pragma HLS INLINE off
  const QuantizeTask quantize = {step, ws};
  ParallelRows(rows, step.shape.dim * kVectorMacs, quantize);
}

// A matrix of a layer; `norms` of channel 0 come before it.
inline MatVecJob LayerJob(const Step& step, int layer, const Matrix& m, int norms,
                          Epilogue epilogue) {
  MatVecJob job;
  job.matrix = m;
  job.format.group_size = step.shape.group_size;
  job.format.row_bytes = step.shape.row_bytes;
  job.format.int4 = step.shape.int4;
  job.rows = step.n_rows;
  job.epilogue = epilogue;
  for (int c = 0; c < kChannels; ++c) {
#pragma HLS UNROLL
    job.base[c] =
        LayerBase(step.layout, c, layer) + NormsBefore(step.layout, c, norms) + m.first_word;
  }
  return job;
}

// The classifier comes first after the layers. It is for the rows that sample.
inline MatVecJob TailJob(const Step& step, const Matrix& classifier) {
  MatVecJob job = LayerJob(step, step.shape.n_layers, classifier, 1, kSample);
  job.rows = step.n_sampling;
  return job;
}

struct CollectTask {
  const MatVecJob& job;
  const Step& step;
  const BlockSums& sums;
  int first, tiles;
  float* logits;
  float (*x)[kMaxDim];
  float (*qkv)[kMaxQkv];
  GateState& gate;
  QuantizedRows& hidden;
  Sampler& sampler;

  void operator()(const RowSpan& rows) const {
#pragma HLS INLINE
    const Shape& s = step.shape;
    switch (job.epilogue) {
      case kKeep:
        KeepTiles(first, tiles, sums, job.matrix.rows, rows, qkv);
        break;
      case kResidual:
        AddTiles(first, tiles, sums, s.dim, rows, x);
        break;
      case kGate:
        GateTiles(first, tiles, sums, s.hidden_dim, s.group_size, rows, gate, hidden);
        break;
      case kSample:
        SampleTiles(first, tiles, sums, rows, step, logits, sampler);
        break;
    }
  }
};

// The tiles of one block of waves, in ascending order.
inline void Collect(const MatVecJob& job, int block, const Step& step, const BlockSums& sums,
                    float* logits, float (*x)[kMaxDim], float (*qkv)[kMaxQkv], GateState& gate,
                    QuantizedRows& hidden, Sampler& sampler) {
#pragma HLS INLINE off
  const int first = block * kTilesInFlight;
  const int left = job.matrix.waves * kChannels - first;
  const int tiles = left < kTilesInFlight ? left : kTilesInFlight;
  const CollectTask collect = {job, step, sums, first,  tiles,  logits,
                               x,   qkv,  gate, hidden, sampler};
  const bool moves = job.epilogue == kKeep || job.epilogue == kResidual;
  ParallelRows(job.rows, tiles * kTileRows * (moves ? kMoveMacs : kVectorMacs), collect);
}

// The one matrix product of the kernel: what is in ws.quantized meets a matrix. Engines fill one
// set of sums while the last one is collected.
inline void MatVecBlocks(const MatVecJob& job, const Step& step, int blocks, WeightPorts& ports,
                         float* logits, Workspace& ws) {
#pragma HLS INLINE off
BLOCKS:
  for (int block = 0; block < blocks; ++block) {
#pragma HLS DATAFLOW
#pragma HLS LOOP_TRIPCOUNT min = 2 max = 500
    BlockSums sums;
#pragma HLS ARRAY_PARTITION variable = sums complete dim = 2
#pragma HLS ARRAY_PARTITION variable = sums complete dim = 3
#pragma HLS ARRAY_PARTITION variable = sums cyclic factor = kSumBanks dim = 4
    RunEngines(ports, job, block, ws.quantized, sums);
    Collect(job, block, step, sums, logits, ws.x, ws.qkv, ws.gate, ws.hidden, ws.sampler);
  }
}

inline void MatVec(const MatVecJob& job, const Step& step, WeightPorts& ports, float* logits,
                   Workspace& ws) {
#pragma HLS INLINE off
  const int blocks = (job.matrix.waves + kWavesInFlight - 1) / kWavesInFlight;
  MatVecBlocks(job, step, blocks, ports, logits, ws);
}

// The gated units become what the engines read: a buffer has one writer and one reader.
inline void MoveHidden(const Step& step, Workspace& ws) {
#pragma HLS INLINE off
ROWS:
  for (int row = 0; row < step.n_rows; ++row) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kMaxRows
  GROUPS:
    for (int g = 0; g < step.shape.hidden_groups; ++g) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT min = 24 max = 176
      ws.quantized.scale[row][g] = ws.hidden.scale[row][g];
      ws.quantized.offset[row][g] = ws.hidden.offset[row][g];
    }
  VALUES:
    for (int half = 0; half * kMinGroup < step.shape.hidden_groups * step.shape.group_size;
         ++half) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT min = 24 max = 352
      for (int j = 0; j < kMinGroup; ++j) {
#pragma HLS UNROLL
        ws.quantized.q[row][half][j] = ws.hidden.q[row][half][j];
      }
    }
  }
}

inline void Layer(const Step& step, int layer, WeightPorts& ports, EventPort& events,
                  KvReaders& kv_readers, KvWriters& kv_writers, float* logits, Workspace& ws) {
#pragma HLS INLINE
  const Shape& s = step.shape;
  const Layout& plan = step.layout;
  const int base = LayerBase(plan, 0, layer);

  Mark(events, step, kStageAttentionNorm, layer);
  NormalizeRows(step, ports, base, false, ws);
  QuantizeRows(step, step.n_rows, ws);

  Mark(events, step, kStageQkv, layer);
  MatVec(LayerJob(step, layer, plan.qkv, 1, kKeep), step, ports, logits, ws);

  Mark(events, step, kStageRope, layer);
ROTATE:
  for (int row = 0; row < step.n_rows; ++row) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kMaxRows
    RotateHeads(ws.rope[row], s.n_heads + s.n_kv_heads, s.head_size, ws.qkv[row]);
  }

  Mark(events, step, kStageAttention, layer);
  if (s.kv_int8) RoundKv(step, ws.qkv, ws.kv);
  Attend(step, layer, kv_readers, ws.qkv, ws.kv, ws.root, ws.normed);
  WriteKv(step, layer, ws.qkv, ws.kv, kv_writers);

  Mark(events, step, kStageAttentionOut, layer);
  QuantizeRows(step, step.n_rows, ws);
  MatVec(LayerJob(step, layer, plan.attention_out, 1, kResidual), step, ports, logits, ws);

  Mark(events, step, kStageFfnNorm, layer);
  NormalizeRows(step, ports, base + plan.norm_words + plan.gate_up.first_word, false, ws);
  QuantizeRows(step, step.n_rows, ws);

  Mark(events, step, kStageGateUp, layer);
  MatVec(LayerJob(step, layer, plan.gate_up, 2, kGate), step, ports, logits, ws);

  Mark(events, step, kStageDown, layer);
  MoveHidden(step, ws);
  MatVec(LayerJob(step, layer, plan.down, 2, kResidual), step, ports, logits, ws);
}

inline void Classify(const Step& step, WeightPorts& ports, EventPort& events, uint32_t* results,
                     float* logits, Outcome& outcome, Workspace& ws) {
#pragma HLS INLINE
  const Shape& s = step.shape;
  if (step.classify) {
    Mark(events, step, kStageFinalNorm, s.n_layers);
    NormalizeRows(step, ports, TailBase(step.layout, s, 0) - step.layout.norm_words, true, ws);
    QuantizeRows(step, step.n_sampling, ws);

    Mark(events, step, kStageClassifier, s.n_layers);
    StartSamplers(step.n_rows, ws.sampler);
    MatVec(TailJob(step, step.layout.classifier), step, ports, logits, ws);
  }
  Mark(events, step, kStageSample, s.n_layers);
  FinishStep(ws.sampler, step, results, outcome);
}

inline void ReadActivations(const Step& step, const float* memory, Workspace& ws) {
#pragma HLS INLINE off
ROWS:
  for (int row = 0; row < step.n_rows; ++row) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kMaxRows
  READ_ROW:
    for (int i = 0; i < step.shape.dim; ++i) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT min = 288 max = kMaxDim
      ws.x[row][i] = memory[row * step.shape.dim + i];
    }
  }
}

inline void WriteActivations(const Step& step, float* memory, const Workspace& ws) {
#pragma HLS INLINE off
ROWS:
  for (int row = 0; row < step.n_rows; ++row) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kMaxRows
  WRITE_ROW:
    for (int i = 0; i < step.shape.dim; ++i) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT min = 288 max = kMaxDim
      memory[row * step.shape.dim + i] = ws.x[row][i];
    }
  }
}

// Everything that is the same for all layers of a step.
inline void PrepareRows(const Step& step, const uint32_t* model, Workspace& ws) {
#pragma HLS INLINE off
  const int pairs = step.shape.head_size / 2;
  const float head_size = static_cast<float>(step.shape.head_size);
  ws.root = sqrtf(head_size);
ROPE_TABLE:
  for (int i = 0; i < pairs; ++i) {
#pragma HLS PIPELINE II = 2
#pragma HLS LOOP_TRIPCOUNT min = 24 max = 64
    const uint64_t low = model[kModelRopeTable + 2 * i];
    const uint64_t high = model[kModelRopeTable + 2 * i + 1];
    ws.rope_turns[i] = high << 32 | low;
  }
ROWS:
  for (int row = 0; row < step.n_rows; ++row) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kMaxRows
    MakeRopeRow(ws.rope_turns, pairs, step.rows[row].position, ws.rope[row]);
  }
}

// One step: every active row through layers [layer_begin, layer_end).
inline void Compute(const Step& step, const uint32_t* model, uint32_t* results, float* logits,
                    float* activations, WeightPorts& ports, KvReaders& kv_readers,
                    KvWriters& kv_writers, EventPort& events, Outcome& outcome, Workspace& ws) {
#pragma HLS INLINE off
#pragma HLS ALLOCATION function instances = MatVec limit = 1
#pragma HLS ALLOCATION function instances = NormalizeRows limit = 1
#pragma HLS ALLOCATION function instances = QuantizeRows limit = 1
  Mark(events, step, kStageEmbed, 0);
  PrepareRows(step, model, ws);
  if (step.embed) {
    Embed(step, ports, ws);
  } else {
    ReadActivations(step, activations, ws);
  }
LAYERS:
  for (int layer = step.layer_begin; layer < step.layer_end; ++layer) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kMaxLayers
    Layer(step, layer, ports, events, kv_readers, kv_writers, logits, ws);
  }
  if (step.activations_out) WriteActivations(step, activations, ws);
  Classify(step, ports, events, results, logits, outcome, ws);
  Mark(events, step, kStageEnd, step.shape.n_layers);
}

}  // namespace kernel
