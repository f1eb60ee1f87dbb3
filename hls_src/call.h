// One call of the kernel: what the host asked for, and how far it has come.
#pragma once

#include "cache.h"
#include "float_math.h"

namespace kernel {

// Outside, logit / temperature leaves the range that the noise and the sums are made for.
constexpr float kMinTemperature = 1e-4f;
constexpr float kMaxTemperature = 1e6f;

struct Row {
  int token, position, slot, flags;
  uint32_t seed_low, seed_high;
  float temperature;
  int top_k;
  float top_p, min_p;  // 1 and 0 are off
  bool active;         // false once the row has stopped, or when it only prefilled
};

// Some rows that follow one another.
struct RowSpan {
  int first, n;
};

// What every process of one step needs to know; copied to each.
struct Step {
  Shape shape;
  Layout layout;
  Row rows[kMaxRows];
  int n_rows;
  Team teams[kMaxRows];  // of the active rows, in their order
  int n_teams;
  int sampling[kMaxRows];  // the rows that the classifier's logits are for, in their order
  int n_sampling;
  int index;  // of the step in the call
  int layer_begin, layer_end;
  bool embed, classify, profile, activations_in, activations_out;
  int n_stop_tokens;
  int stop_tokens[kMaxStopTokens];
};

inline bool Samples(const Row& r) {
  return r.active && (r.flags & kRowSample) != 0;
}

// What a step came to; the call takes it over before the next.
struct Outcome {
  int token[kMaxRows];
  bool stopped[kMaxRows];
  int error, detail;
};

struct Call {
  Step step;
  int n_steps;
  uint32_t sequence;
  int error, detail;
};

inline void Fail(Call& call, int error, int detail) {
  if (call.error == kErrorNone) {
    call.error = error;
    call.detail = detail;
  }
}

inline int WordInt(const uint32_t* words, int index) {
  return static_cast<int>(words[index]);
}

inline bool Within(int value, int low, int high) {
  return value >= low && value <= high;
}

// The descriptor's shape, or the index of its first word that is over a limit.
inline void ReadShape(const uint32_t* model, Call& call) {
  Shape& s = call.step.shape;
  if (model[kModelMagic] != kMagic || WordInt(model, kModelAbi) != kAbiVersion) {
    Fail(call, kErrorModelMagic, WordInt(model, kModelAbi));
  }
  s.dim = WordInt(model, kModelDim);
  s.hidden_dim = WordInt(model, kModelHiddenDim);
  s.n_layers = WordInt(model, kModelLayers);
  s.n_heads = WordInt(model, kModelHeads);
  s.n_kv_heads = WordInt(model, kModelKvHeads);
  s.vocab_size = WordInt(model, kModelVocabSize);
  s.seq_len = WordInt(model, kModelSeqLen);
  s.group_size = WordInt(model, kModelGroupSize);
  s.tied = WordInt(model, kModelTied) != 0;
  s.slots = WordInt(model, kModelSlots);
  if (!Within(s.dim, 1, kMaxDim)) Fail(call, kErrorModelShape, kModelDim);
  if (!Within(s.hidden_dim, 1, kMaxHiddenDim)) Fail(call, kErrorModelShape, kModelHiddenDim);
  if (!Within(s.n_layers, 1, kMaxLayers)) Fail(call, kErrorModelShape, kModelLayers);
  if (!Within(s.n_heads, 1, s.dim)) Fail(call, kErrorModelShape, kModelHeads);
  if (!Within(s.n_kv_heads, 1, s.n_heads)) Fail(call, kErrorModelShape, kModelKvHeads);
  if (!Within(s.vocab_size, 1, 1 << 20)) Fail(call, kErrorModelShape, kModelVocabSize);
  if (!Within(s.seq_len, 1, kMaxSeqLen)) Fail(call, kErrorModelShape, kModelSeqLen);
  if (s.group_size != kMinGroup && s.group_size != kMaxGroup) {
    Fail(call, kErrorModelShape, kModelGroupSize);
  }
  if (!Within(s.slots, 1, 1 << 16)) Fail(call, kErrorModelShape, kModelSlots);
  const int weight_bits = WordInt(model, kModelWeightBits);
  s.int4 = weight_bits == 4;
  if ((weight_bits != 8 && !s.int4) || (s.int4 && s.group_size != kMaxGroup)) {
    Fail(call, kErrorModelShape, kModelWeightBits);
  }
  s.row_bytes = s.int4 ? kMaxGroup / 2 : s.group_size;
  const int kv_bits = WordInt(model, kModelKvBits);
  if (kv_bits != 32 && kv_bits != 8) Fail(call, kErrorModelShape, kModelKvBits);
  if (call.error == kErrorNone) {
    s.head_size = s.dim / s.n_heads;
    s.kv_dim = s.head_size * s.n_kv_heads;
    s.head_stride = RoundUp(s.head_size, kReduceLanes);
    s.head_units = s.head_stride == s.head_size ? s.head_size / kReduceLanes : 0;
    if (!PlaceKv(kv_bits == 8, s)) Fail(call, kErrorModelShape, kModelSlots);
    s.dim_groups = RoundUp(s.dim, s.group_size) / s.group_size;
    s.hidden_groups = RoundUp(s.hidden_dim, s.group_size) / s.group_size;
    if (s.head_size * s.n_heads != s.dim || s.head_size % 2 != 0 || s.head_size > kMaxHeadSize) {
      Fail(call, kErrorModelShape, kModelHeads);
    }
    if (s.n_heads % s.n_kv_heads != 0) Fail(call, kErrorModelShape, kModelKvHeads);
  }
}

inline void ReadRow(const uint32_t* request, int index, Call& call) {
  const int base = kRequestRowBase + index * kRowWords;
  const Shape& s = call.step.shape;
  Row& row = call.step.rows[index];
  row.token = WordInt(request, base + kRowToken);
  row.position = WordInt(request, base + kRowPosition);
  row.slot = WordInt(request, base + kRowSlot);
  row.flags = WordInt(request, base + kRowFlags);
  row.seed_low = request[base + kRowSeedLow];
  row.seed_high = request[base + kRowSeedHigh];
  row.temperature = FloatOf(request[base + kRowTemperature]);
  row.top_k = WordInt(request, base + kRowTopK);
  row.top_p = FloatOf(request[base + kRowTopP]);
  row.min_p = FloatOf(request[base + kRowMinP]);
  row.active = true;
  if (!Within(row.token, 0, s.vocab_size - 1)) Fail(call, kErrorToken, index);
  if (!Within(row.position, 0, s.seq_len - 1)) Fail(call, kErrorPosition, index);
  if (!Within(row.slot, 0, s.slots - 1)) Fail(call, kErrorSlot, index);
  // Written so that NaN fails.
  const bool warm = row.temperature >= kMinTemperature && row.temperature <= kMaxTemperature;
  if (!warm && row.temperature != 0.0f) Fail(call, kErrorTemperature, index);
  const bool mass = row.top_p >= 0.0f && row.top_p <= 1.0f;
  const bool share = row.min_p >= 0.0f && row.min_p < 1.0f;
  if (row.top_k < 0 || !mass || !share) Fail(call, kErrorTruncation, index);
  if (row.top_p == 0.0f) row.top_p = 1.0f;
EARLIER_ROWS:
  for (int i = 0; i < kMaxRows; ++i) {
    const Row& other = call.step.rows[i];
    if (i < index && other.slot == row.slot && other.position == row.position) {
      Fail(call, kErrorDuplicateRow, index);
    }
  }
}

// Reads and checks the whole request. On an error the call does no step.
inline void ReadCall(const uint32_t* request, const uint32_t* model, uint32_t command,
                     uint32_t sequence, Call& call) {
  Step& step = call.step;
  call.error = kErrorNone;
  call.detail = 0;
  call.sequence = sequence;
  call.n_steps = 0;
  step.index = 0;
  if (command != kCommandRun) {
    if (command != kCommandDescribe) Fail(call, kErrorCommand, static_cast<int>(command));
    return;
  }
  ReadShape(model, call);
  step.n_rows = WordInt(request, kRequestRows);
  step.layer_begin = WordInt(request, kRequestLayerBegin);
  step.layer_end = WordInt(request, kRequestLayerEnd);
  call.n_steps = WordInt(request, kRequestSteps);
  step.n_stop_tokens = WordInt(request, kRequestStopTokens);
  const int flags = WordInt(request, kRequestFlags);
  step.profile = (flags & kFlagProfile) != 0;
  step.activations_in = (flags & kFlagActivationsIn) != 0;
  step.activations_out = (flags & kFlagActivationsOut) != 0;
  step.embed = !step.activations_in;
  step.classify = false;

  const bool whole = step.layer_begin == 0 && step.layer_end == step.shape.n_layers;
  if (!Within(step.n_rows, 1, kMaxRows)) Fail(call, kErrorRows, step.n_rows);
  if (!Within(call.n_steps, 1, kMaxSteps)) Fail(call, kErrorSteps, call.n_steps);
  if (call.n_steps > 1 && (!whole || step.activations_in)) Fail(call, kErrorSteps, call.n_steps);
  if (!Within(step.layer_begin, 0, step.layer_end) ||
      !Within(step.layer_end, 0, step.shape.n_layers) ||
      (step.layer_begin > 0 && !step.activations_in)) {
    Fail(call, kErrorLayers, step.layer_begin);
  }
  if (!Within(step.n_stop_tokens, 0, kMaxStopTokens)) {
    Fail(call, kErrorStopTokens, step.n_stop_tokens);
  }
  if (call.error != kErrorNone) return;
  step.layout = PlanLayout(step.shape);
STOP_LIST:
  for (int i = 0; i < kMaxStopTokens; ++i) {
    step.stop_tokens[i] = i < step.n_stop_tokens ? WordInt(request, kRequestStopList + i) : -1;
  }
READ_ROWS:
  for (int i = 0; i < step.n_rows; ++i) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kMaxRows
    ReadRow(request, i, call);
    if (step.rows[i].flags & kRowSample) step.classify = true;
  }
  step.classify = step.classify && step.layer_end == step.shape.n_layers;
}

// The rows move on to the next step.
inline void TakeOver(const Outcome& outcome, Call& call) {
MOVE_ROWS:
  for (int row = 0; row < call.step.n_rows; ++row) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kMaxRows
    Row& r = call.step.rows[row];
    if (r.active) {
      r.token = outcome.token[row];
      r.position = r.position + 1;
    }
    r.active = r.active && !outcome.stopped[row];
  }
  if (outcome.error != kErrorNone) Fail(call, outcome.error, outcome.detail);
  call.step.index = call.step.index + 1;
}

// The active rows' teams, and the rows that sample; before each step.
inline void PlanRows(Step& step) {
  const int most = TeamRows(step.shape);
  int n = 0, sampling = 0;
PLAN_ROWS:
  for (int row = 0; row < step.n_rows; ++row) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kMaxRows
    const Row& r = step.rows[row];
    if (r.active) {
      Team team = {row, 0, r.slot, 0};
      if (n > 0) {
        const Team& last = step.teams[n - 1];
        if (last.slot == r.slot && last.first + last.rows == row && last.rows < most) {
          team = last;
          --n;
        }
      }
      ++team.rows;
      if (r.position > team.last) team.last = r.position;
      step.teams[n] = team;
      ++n;
    }
    if (Samples(r)) {
      step.sampling[sampling] = row;
      ++sampling;
    }
  }
  step.n_teams = n;
  step.n_sampling = sampling;
}

inline void WriteDescription(uint32_t* results) {
  results[kDescribeChannels] = kChannels;
  results[kDescribeBeatBytes] = kBeatBytes;
  results[kDescribeTileRows] = kTileRows;
  results[kDescribeMaxRows] = kMaxRows;
  results[kDescribeMaxSteps] = kMaxSteps;
  results[kDescribeMaxDim] = kMaxDim;
  results[kDescribeMaxHiddenDim] = kMaxHiddenDim;
  results[kDescribeMaxHeadSize] = kMaxHeadSize;
  results[kDescribeMaxLayers] = kMaxLayers;
  results[kDescribeMaxSeqLen] = kMaxSeqLen;
  results[kDescribeTopLogits] = kTopLogits;
  results[kDescribeClockMhz] = kClockMhz;
  results[kDescribeMaxStopTokens] = kMaxStopTokens;
  results[kDescribeMaxStepEvents] = kMaxStepEvents;
  results[kDescribeKvPorts] = kKvPorts;
  results[kDescribeKvBeatBytes] = kKvBeatBytes;
DESCRIBE_BOARD:
  for (int i = 0; i < 4; ++i) {
    uint32_t word = 0;
    for (int j = 0; j < 4; ++j) {
#pragma HLS UNROLL
      const unsigned k = 4 * i + j;
      const uint32_t c = k < sizeof(kBoardName) ? static_cast<uint8_t>(kBoardName[k]) : 0;
      word |= c << (8 * j);
    }
    results[kDescribeBoard + i] = word;
  }
}

// Volatile: the host may write the word while the call runs.
inline bool AbortAsked(const volatile uint32_t* request, uint32_t sequence) {
  return request[kRequestAbort] == sequence;
}

// The status words; the sequence number goes last, and completes the call.
inline void WriteStatus(uint32_t* results, const Call& call, int state) {
  results[kStatusMagic] = kMagic;
  results[kStatusAbi] = kAbiVersion;
  results[kStatusState] = static_cast<uint32_t>(state);
  results[kStatusError] = static_cast<uint32_t>(call.error);
  results[kStatusDetail] = static_cast<uint32_t>(call.detail);
  results[kStatusSteps] = static_cast<uint32_t>(call.step.index);
  results[kStatusSequence] = call.sequence;
}

}  // namespace kernel
