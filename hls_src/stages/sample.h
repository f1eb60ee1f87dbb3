// Logits to a token, as they arrive: the top logits, two log-sum-exps, and Gumbel-max.
#pragma once

#include "call.h"
#include "epilogues.h"

namespace kernel {

// Online log-sum-exp over blocks of kBlock, in order.
struct LogSumExp {
  float maximum, total;

  void Add(const float (&values)[kBlock]) {
#pragma HLS INLINE
    float larger = maximum;
    float terms[kBlock];
#pragma HLS ARRAY_PARTITION variable = terms complete
    for (int i = 0; i < kBlock; ++i) {
#pragma HLS UNROLL
      larger = values[i] > larger ? values[i] : larger;
    }
    for (int i = 0; i < kBlock; ++i) {
#pragma HLS PIPELINE II = 1
      terms[i] = Exp(values[i] - larger);
    }
    const float shrink = Exp(maximum - larger);
    total = total * shrink + TreeSum(terms);
    maximum = larger;
  }
  float Value() const { return maximum + Log(total); }
};

struct RowSampler {
  float top_logit[kTopLogits];
  int top_id[kTopLogits];
  LogSumExp plain, tempered;
  float best_score, best_logit;
  int best_id;
};

constexpr float kNoLogit = -3e38f;

inline void StartSampler(RowSampler& s) {
CLEAR_TOP:
  for (int i = 0; i < kTopLogits; ++i) {
#pragma HLS PIPELINE II = 1
    s.top_logit[i] = kNoLogit;
    s.top_id[i] = -1;
  }
  s.plain.maximum = kLowest;
  s.plain.total = 0.0f;
  s.tempered.maximum = kLowest;
  s.tempered.total = 0.0f;
  s.best_score = kNoLogit;
  s.best_logit = kNoLogit;
  s.best_id = -1;
}

// A shift register that keeps itself sorted; of equals, the earlier id stays ahead.
inline void InsertTop(float logit, int id, RowSampler& s) {
#pragma HLS INLINE
INSERT:
  for (int i = kTopLogits - 1; i >= 0; --i) {
#pragma HLS UNROLL
    const bool above_left = i > 0 && logit > s.top_logit[i > 0 ? i - 1 : 0];
    const bool above_here = logit > s.top_logit[i];
    s.top_logit[i] =
        above_left ? s.top_logit[i > 0 ? i - 1 : 0] : (above_here ? logit : s.top_logit[i]);
    s.top_id[i] = above_left ? s.top_id[i > 0 ? i - 1 : 0] : (above_here ? id : s.top_id[i]);
  }
}

// One of each row, and the logits of a block that is not whole yet.
struct Sampler {
  RowSampler rows[kMaxRows];
  float block[kMaxRows][kBlock];
};

inline void StartSamplers(int rows, Sampler& sampler) {
#pragma HLS INLINE off
START_ROWS:
  for (int row = 0; row < rows; ++row) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kMaxRows
    StartSampler(sampler.rows[row]);
  }
}

// kBlock logits of a row, the vocabulary's `first_id` and following.
inline void SampleBlock(const Step& step, int row, int first_id, float* full, Sampler& sampler) {
#pragma HLS INLINE off
  RowSampler& s = sampler.rows[row];
  const int left = step.shape.vocab_size - first_id;
  const int valid = left < kBlock ? left : kBlock;
  const float temperature = step.rows[row].temperature;
  const bool warm = temperature > 0.0f;
  const bool choose = warm && (step.rows[row].flags & kRowHostChooses) == 0;
  const float divisor = warm ? temperature : 1.0f;
  const uint32_t key = NoiseKey(step.rows[row].seed_low, step.rows[row].seed_high,
                                static_cast<uint32_t>(step.rows[row].position));
  float logits[kBlock], tempered[kBlock];
  float largest = kLowest;
MASK:
  for (int i = 0; i < kBlock; ++i) {
#pragma HLS PIPELINE II = 1
    logits[i] = i < valid ? sampler.block[row][i] : kLowest;
    tempered[i] = i < valid ? logits[i] / divisor : kLowest;
    largest = logits[i] > largest ? logits[i] : largest;
  }
  s.plain.Add(logits);
  if (warm) s.tempered.Add(tempered);
  if (largest > s.top_logit[kTopLogits - 1]) {
  TOP:
    for (int i = 0; i < valid; ++i) {
#pragma HLS PIPELINE II = 1
      if (logits[i] > s.top_logit[kTopLogits - 1]) InsertTop(logits[i], first_id + i, s);
    }
  }
  if (choose) {
    float scores[kBlock];
  NOISE:
    for (int i = 0; i < kBlock; ++i) {
#pragma HLS PIPELINE II = 1
      scores[i] = tempered[i] + GumbelNoise(key, static_cast<uint32_t>(first_id + i));
    }
  BEST:
    for (int i = 0; i < valid; ++i) {
#pragma HLS PIPELINE II = 1
      if (scores[i] > s.best_score) {
        s.best_score = scores[i];
        s.best_logit = logits[i];
        s.best_id = first_id + i;
      }
    }
  }
  if ((step.rows[row].flags & kRowFullLogits) != 0) {
    const int64_t base = static_cast<int64_t>(row) * step.shape.vocab_size + first_id;
  FULL:
    for (int i = 0; i < valid; ++i) {
#pragma HLS PIPELINE II = 1
      full[base + i] = logits[i];
    }
  }
}

// The classifier's epilogue. Tiles come in the order of the vocabulary; `full` is in memory.
inline void SampleTile(int tile, const TileSums& sums, const Step& step, float* full,
                       Sampler& sampler) {
#pragma HLS INLINE
  const int in_block = tile * kTileRows % kBlock;
ROWS:
  for (int row = 0; row < step.n_rows; ++row) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kMaxRows
    for (int r = 0; r < kTileRows; ++r) {
#pragma HLS UNROLL
      sampler.block[row][in_block + r] = sums[row][r];
    }
    if (in_block + kTileRows == kBlock && step.rows[row].active &&
        (step.rows[row].flags & kRowSample) != 0) {
      SampleBlock(step, row, tile * kTileRows - in_block, full, sampler);
    }
  }
}

// Writes every row's result of this step, and moves the rows on.
inline void FinishStep(const Sampler& sampler, Call& call, uint32_t* results) {
#pragma HLS INLINE off
  Step& step = call.step;
WRITE_RESULTS:
  for (int row = 0; row < step.n_rows; ++row) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kMaxRows
    Row& r = step.rows[row];
    const int base = kStatusWords + (step.index * step.n_rows + row) * kResultWords;
    const bool sampled = step.classify && r.active && (r.flags & kRowSample) != 0;
    int token = -1;
    if (sampled) {
      const RowSampler& s = sampler.rows[row];
      const float lse = s.plain.Value();
      const bool chosen = r.temperature > 0.0f && (r.flags & kRowHostChooses) == 0;
      token = chosen ? s.best_id : s.top_id[0];
      // Written so that NaN fails; Log would make a number of a total that is none.
      if (token < 0 || !(s.plain.total > 0.0f && lse > kLowest && lse < 3e38f)) {
        Fail(call, kErrorNotFinite, row);
      }
      results[base + kResultLse] = BitsOf(lse);
      results[base + kResultLogit] = BitsOf(chosen ? s.best_logit : s.top_logit[0]);
      results[base + kResultLseTemperature] =
          BitsOf(r.temperature > 0.0f ? s.tempered.Value() : lse);
    WRITE_TOP:
      for (int i = 0; i < kTopLogits; ++i) {
#pragma HLS PIPELINE II = 2
        results[base + kResultTop + 2 * i] = static_cast<uint32_t>(s.top_id[i]);
        results[base + kResultTop + 2 * i + 1] = BitsOf(s.top_logit[i]);
      }
    }
    results[base + kResultToken] = static_cast<uint32_t>(token);
    results[base + kResultPosition] = static_cast<uint32_t>(r.position);
    bool stopped = !sampled || token < 0 || r.position + 1 >= step.shape.seq_len ||
                   (r.flags & kRowHostChooses) != 0;
  STOP_TOKENS:
    for (int i = 0; i < kMaxStopTokens; ++i) {
#pragma HLS UNROLL
      if (i < call.n_stop_tokens && call.stop_tokens[i] == token) stopped = true;
    }
    if (r.active) {
      r.token = token;
      r.position = r.position + 1;
    }
    r.active = r.active && !stopped;
  }
}

}  // namespace kernel
