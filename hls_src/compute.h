// The layer loop.
#pragma once

#include "stages/attention.h"
#include "stages/epilogues.h"
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
  QuantizedRows quantized;  // of width dim
  QuantizedRows hidden;     // of width hidden_dim
  RopeRow rope[kMaxRows];
  uint64_t rope_turns[kMaxHeadSize / 2];
};

typedef WeightPort WeightPorts[kChannels];

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
    if (c == channel) word = ports[c].Read(index);
  }
  return word;
}

inline void ReadNorm(WeightPorts& ports, int first_word, int words, float* weight) {
#pragma HLS INLINE off
READ_NORM:
  for (int w = 0; w < words; ++w) {
#pragma HLS PIPELINE II = kWordBeats
#pragma HLS LOOP_TRIPCOUNT min = 18 max = 256
    const Word& word = ports[0].Read(first_word + w);
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
            FindRow(step.layout.embedding, tail, step.rows[row].token, g, s.group_size);
        const Word values = ReadFrom(ports, channel, at.values);
        float dequantized[kMaxGroup];
        for (int i = 0; i < s.group_size; ++i) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT min = 32 max = 64
          dequantized[i] = static_cast<float>(static_cast<int>(values.b[at.offset + i]) - 128);
        }
        const Word scales = ReadFrom(ports, channel, at.scales);
        const float scale = WordFloat(scales, at.scale_index);
        for (int i = 0; i < s.group_size; ++i) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT min = 32 max = 64
          const int d = g * s.group_size + i;
          if (d < s.dim) ws.x[row][d] = dequantized[i] * scale;
        }
      }
    }
  }
}

inline void NormAndQuantize(const Step& step, WeightPorts& ports, int norm_word, Workspace& ws) {
#pragma HLS INLINE off
  const Shape& s = step.shape;
  ReadNorm(ports, norm_word, step.layout.norm_words, ws.norm_weight);
ROWS:
  for (int row = 0; row < step.n_rows; ++row) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kMaxRows
    NormalizeRow(ws.x[row], ws.norm_weight, s.dim, ws.normed[row]);
    QuantizeRow(ws.normed[row], s.dim, s.group_size, row, ws.quantized);
  }
}

struct Bases {
  int word[kChannels];
};

// Where a matrix of a layer begins in each channel; `norms` of channel 0 come before it.
inline Bases LayerWords(const Layout& plan, int layer, const Matrix& m, int norms) {
  Bases at;
  for (int c = 0; c < kChannels; ++c) {
    at.word[c] = LayerBase(plan, c, layer) + NormsBefore(plan, c, norms) + m.first_word;
  }
  return at;
}

inline void Layer(const Step& step, int layer, WeightPorts& ports, EventPort& events,
                  KvBeat* kv_cache, Workspace& ws) {
#pragma HLS INLINE off
  const Shape& s = step.shape;
  const Layout& plan = step.layout;
  const int rows = step.n_rows;
  const int group = s.group_size;
  const int base = LayerBase(plan, 0, layer);

  Mark(events, step, kStageAttentionNorm, layer);
  NormAndQuantize(step, ports, base, ws);

  Mark(events, step, kStageQkv, layer);
  StoreRows keep = {ws.qkv, plan.qkv.rows, rows};
  MatVec(ports, plan.qkv, LayerWords(plan, layer, plan.qkv, 1).word, ws.quantized, group, rows,
         keep);

  Mark(events, step, kStageRope, layer);
ROTATE:
  for (int row = 0; row < rows; ++row) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kMaxRows
    RotateHeads(ws.rope[row], s.n_heads + s.n_kv_heads, s.head_size, ws.qkv[row]);
  }

  Mark(events, step, kStageAttention, layer);
  Attend(step, layer, kv_cache, ws.qkv, ws.normed);

  Mark(events, step, kStageAttentionOut, layer);
QUANTIZE_ATTENTION:
  for (int row = 0; row < rows; ++row) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kMaxRows
    QuantizeRow(ws.normed[row], s.dim, group, row, ws.quantized);
  }
  AddRows residual = {ws.x, s.dim, rows};
  MatVec(ports, plan.attention_out, LayerWords(plan, layer, plan.attention_out, 1).word,
         ws.quantized, group, rows, residual);

  Mark(events, step, kStageFfnNorm, layer);
  const int ffn_norm = base + plan.norm_words + plan.gate_up.first_word;
  NormAndQuantize(step, ports, ffn_norm, ws);

  Mark(events, step, kStageGateUp, layer);
  GateAndQuantize gate(ws.hidden, s.hidden_dim, group, rows);
  MatVec(ports, plan.gate_up, LayerWords(plan, layer, plan.gate_up, 2).word, ws.quantized, group,
         rows, gate);

  Mark(events, step, kStageDown, layer);
  MatVec(ports, plan.down, LayerWords(plan, layer, plan.down, 2).word, ws.hidden, group, rows,
         residual);
}

inline void Classify(Call& call, WeightPorts& ports, EventPort& events, uint32_t* results,
                     float* logits, Workspace& ws) {
#pragma HLS INLINE off
  const Step& step = call.step;
  const Shape& s = step.shape;
  SampleRows sampler(step, logits);
  if (step.classify) {
    Mark(events, step, kStageFinalNorm, s.n_layers);
    NormAndQuantize(step, ports, TailBase(step.layout, s, 0) - step.layout.norm_words, ws);
    Mark(events, step, kStageClassifier, s.n_layers);
    Bases at;
    for (int c = 0; c < kChannels; ++c) at.word[c] = TailBase(step.layout, s, c);
    MatVec(ports, step.layout.classifier, at.word, ws.quantized, s.group_size, step.n_rows,
           sampler);
  }
  Mark(events, step, kStageSample, s.n_layers);
  FinishStep(sampler, call, results);
}

inline void CopyActivations(const Step& step, float* memory, bool out, Workspace& ws) {
#pragma HLS INLINE off
ROWS:
  for (int row = 0; row < step.n_rows; ++row) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kMaxRows
    for (int i = 0; i < step.shape.dim; ++i) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT min = 288 max = kMaxDim
      float& there = memory[row * step.shape.dim + i];
      if (out) {
        there = ws.x[row][i];
      } else {
        ws.x[row][i] = there;
      }
    }
  }
}

// Everything that is the same for all layers of a step.
inline void PrepareRows(const Step& step, const uint32_t* model, Workspace& ws) {
#pragma HLS INLINE off
  const int pairs = step.shape.head_size / 2;
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
inline void Compute(Call& call, const uint32_t* model, uint32_t* results, float* logits,
                    float* activations, KvBeat* kv_cache, WeightPorts& ports, EventPort& events,
                    Workspace& ws) {
#pragma HLS INLINE off
  const Step& step = call.step;
  Mark(events, step, kStageEmbed, 0);
  PrepareRows(step, model, ws);
  if (step.embed) {
    Embed(step, ports, ws);
  } else {
    CopyActivations(step, activations, false, ws);
  }
LAYERS:
  for (int layer = step.layer_begin; layer < step.layer_end; ++layer) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kMaxLayers
    Layer(step, layer, ports, events, kv_cache, ws);
  }
  if (step.activations_out) CopyActivations(step, activations, true, ws);
  Classify(call, ports, events, results, logits, ws);
  Mark(events, step, kStageEnd, step.shape.n_layers);
}

}  // namespace kernel
