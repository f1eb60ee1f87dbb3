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
    const float here = Largest(values);
    const float larger = here > maximum ? here : maximum;
    float terms[kBlock];
#pragma HLS ARRAY_PARTITION variable = terms complete
    for (int i = 0; i < kBlock; ++i) {
#pragma HLS UNROLL
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

constexpr int kTilesInBlock = kBlock / kTileRows;
constexpr int kBlocksInFlight = kTilesInFlight / kTilesInBlock;

// One of each row, and which logits of a block of tiles may be among the top ones.
struct Sampler {
  RowSampler rows[kMaxRows];
  uint32_t candidates[kBlocksInFlight][kMaxRows];  // a bit for each of kBlock
};

inline void StartSamplers(int rows, Sampler& sampler) {
#pragma HLS INLINE off
START_ROWS:
  for (int row = 0; row < rows; ++row) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kMaxRows
    StartSampler(sampler.rows[row]);
  }
}

// kBlock logits of a row, the vocabulary's `first_id` and following, of which `valid` are real:
// the sums of exponentials, and the token that noise makes the best. Returns the candidates for
// the top logits.
inline uint32_t TakeBlock(const float (&block)[kBlock], int first_id, int valid, const Row& row,
                          RowSampler& s) {
#pragma HLS INLINE
  const bool warm = row.temperature > 0.0f;
  const bool choose = warm && (row.flags & kRowHostChooses) == 0;
  const float divisor = warm ? row.temperature : 1.0f;
  float logits[kBlock], tempered[kBlock];
#pragma HLS ARRAY_PARTITION variable = logits complete
#pragma HLS ARRAY_PARTITION variable = tempered complete
  const float least = s.top_logit[kTopLogits - 1];
  uint32_t candidates = 0;
MASK:
  for (int i = 0; i < kBlock; ++i) {
#pragma HLS UNROLL
    logits[i] = i < valid ? block[i] : kLowest;
    candidates |= static_cast<uint32_t>(i < valid && logits[i] > least) << i;
  }
  s.plain.Add(logits);
  if (warm) {
  TEMPER:
    for (int i = 0; i < kBlock; ++i) {
#pragma HLS UNROLL
      tempered[i] = i < valid ? logits[i] / divisor : kLowest;
    }
    s.tempered.Add(tempered);
  }
  if (choose) {
    const uint32_t key = NoiseKey(row.seed_low, row.seed_high, static_cast<uint32_t>(row.position));
    float scores[kBlock];
#pragma HLS ARRAY_PARTITION variable = scores complete
  NOISE:
    for (int i = 0; i < kBlock; ++i) {
#pragma HLS UNROLL
      scores[i] = tempered[i] + GumbelNoise(key, static_cast<uint32_t>(first_id + i));
    }
    // One comparison with the row's best; of equals, the earlier id.
    const float best = Largest(scores);
    if (best > s.best_score) {
      s.best_score = best;
    BEST:
      for (int i = kBlock - 1; i >= 0; --i) {
#pragma HLS UNROLL
        if (scores[i] == best) {
          s.best_logit = logits[i];
          s.best_id = first_id + i;
        }
      }
    }
  }
  return candidates;
}

// The classifier's epilogue. Tiles come in the order of the vocabulary; `full` is in memory.
inline void SampleTiles(int first_tile, int tiles, const BlockSums& sums, const Step& step,
                        float* full, Sampler& sampler) {
#pragma HLS INLINE
  const int vocab_size = step.shape.vocab_size;
  const int blocks = tiles / kTilesInBlock;
  Item at = {0, 0};  // a block of logits
TAKE:
  for (int item = 0; item < blocks * step.n_rows; ++item) {
#pragma HLS PIPELINE II = kSampleCycles
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kBlocksInFlight * kMaxRows
    const int first_id = first_tile * kTileRows + at.tile * kBlock;
    const int left = vocab_size - first_id;
    const Row& r = step.rows[at.row];
    uint32_t candidates = 0;
    if (r.active && (r.flags & kRowSample) != 0 && left > 0) {
      float block[kBlock];
#pragma HLS ARRAY_PARTITION variable = block complete
      for (int i = 0; i < kBlock; ++i) {
#pragma HLS UNROLL
        block[i] = sums[at.tile * kTilesInBlock + i / kTileRows][at.row][i % kTileRows];
      }
      candidates =
          TakeBlock(block, first_id, left < kBlock ? left : kBlock, r, sampler.rows[at.row]);
    }
    sampler.candidates[at.tile][at.row] = candidates;
    at.Next(step.n_rows);
  }
  // Few of a vocabulary ever get here, so they come one by one.
TOP_BLOCKS:
  for (int b = 0; b < blocks; ++b) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kBlocksInFlight
    for (int row = 0; row < step.n_rows; ++row) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kMaxRows
      uint32_t candidates = sampler.candidates[b][row];
    TOP:
      for (int i = 0; candidates != 0; ++i) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT min = 0 max = kBlock
        const float logit = sums[b * kTilesInBlock + i / kTileRows][row][i % kTileRows];
        RowSampler& s = sampler.rows[row];
        if ((candidates & 1u) != 0 && logit > s.top_logit[kTopLogits - 1]) {
          InsertTop(logit, first_tile * kTileRows + b * kBlock + i, s);
        }
        candidates >>= 1;
      }
    }
  }
FULL_ROWS:
  for (int row = 0; row < step.n_rows; ++row) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kMaxRows
    const Row& r = step.rows[row];
    if (r.active && (r.flags & kRowSample) != 0 && (r.flags & kRowFullLogits) != 0) {
      const int first_id = first_tile * kTileRows;
      const int left = vocab_size - first_id;
      const int n = left < tiles * kTileRows ? left : tiles * kTileRows;
      const int64_t base = static_cast<int64_t>(row) * vocab_size + first_id;
    FULL:
      for (int i = 0; i < n; ++i) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT min = kWaveRows max = kWaveRows
        full[base + i] = sums[i / kTileRows][row][i % kTileRows];
      }
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
