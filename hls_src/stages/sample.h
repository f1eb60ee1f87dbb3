// Logits to a token, as they arrive: the top logits, two log-sum-exps, and Gumbel-max.
#pragma once

#include "call.h"
#include "epilogues.h"
#include "truncate.h"

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
    // e^0 is 1 to the bit, and few blocks exceed those before them: g++ skips the rest.
    const float shrink = larger > maximum ? Exp(maximum - larger) : 1.0f;
    total = total * shrink + TreeSum(terms);
    maximum = larger;
  }
  float Value() const { return maximum + Log(total); }
};

constexpr float kNoLogit = -3e38f;
constexpr uint32_t kQuietNan = 0x7fc00000;
constexpr int kTilesInBlock = kBlock / kTileRows;
constexpr int kBlocksInWave = kChannels / kTilesInBlock;
constexpr int kBlocksInFlight = kWavesInFlight * kBlocksInWave;

// What is known of each row's logits so far.
struct Sampler {
  int32_t top_order[kMaxRows][kTopLogits];  // OrderOf of the top logits
  int top_id[kMaxRows][kTopLogits];
  PerRow<float> plain_maximum, plain_total;
  PerRow<float> tempered_maximum, tempered_total;
  PerRow<float> best_score, best_logit;
  PerRow<int> best_id;
  // Of a block of tiles: which logits may be among the top ones, a bit for each of kBlock.
  uint32_t candidates[kMaxRows][kBlocksInFlight];
};

inline void StartSamplers(int rows, Sampler& s) {
#pragma HLS INLINE off
START_ROWS:
  for (int row = 0; row < rows; ++row) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kMaxRows
  CLEAR_TOP:
    for (int i = 0; i < kTopLogits; ++i) {
#pragma HLS UNROLL
      s.top_order[row][i] = OrderOf(kNoLogit);
      s.top_id[row][i] = -1;
    }
    s.plain_maximum[row] = kLowest;
    s.plain_total[row] = 0.0f;
    s.tempered_maximum[row] = kLowest;
    s.tempered_total[row] = 0.0f;
    s.best_score[row] = kNoLogit;
    s.best_logit[row] = kNoLogit;
    s.best_id[row] = -1;
  }
}

// A shift register that keeps itself sorted; of equals, the earlier id stays ahead.
inline void InsertTop(int32_t order, int id, int32_t (&top_order)[kTopLogits],
                      int (&top_id)[kTopLogits]) {
#pragma HLS INLINE
  int32_t orders[kTopLogits + 1];  // before, with one ahead that nothing exceeds
  int ids[kTopLogits + 1];
#pragma HLS ARRAY_PARTITION variable = orders complete
#pragma HLS ARRAY_PARTITION variable = ids complete
  orders[0] = 0x7fffffff;
  ids[0] = id;
COPY_TOP:
  for (int i = 0; i < kTopLogits; ++i) {
#pragma HLS UNROLL
    orders[i + 1] = top_order[i];
    ids[i + 1] = top_id[i];
  }
INSERT:
  for (int i = 0; i < kTopLogits; ++i) {
#pragma HLS UNROLL
    const bool above_left = order > orders[i];
    const bool above_here = order > orders[i + 1];
    top_order[i] = above_left ? orders[i] : (above_here ? order : orders[i + 1]);
    top_id[i] = above_left ? ids[i] : (above_here ? id : ids[i + 1]);
  }
}

// kBlock logits of a row, the vocabulary's `first_id` and following, of which `valid` are real:
// the sums of exponentials, and the token that noise makes the best. Returns the candidates for
// the top logits.
inline uint32_t TakeBlock(const float (&block)[kBlock], int first_id, int valid, const Step& step,
                          int row_index, Sampler& s) {
#pragma HLS INLINE
  const Row& row = step.rows[row_index];
  const bool warm = row.temperature > 0.0f;
  const float divisor = warm ? row.temperature : 1.0f;
  float logits[kBlock], tempered[kBlock];
#pragma HLS ARRAY_PARTITION variable = logits complete
#pragma HLS ARRAY_PARTITION variable = tempered complete
  const float least = OfOrder(s.top_order[row_index][kTopLogits - 1]);
  uint32_t candidates = 0;
  uint32_t overflow = 0;  // bit 31
MASK:
  for (int i = 0; i < kBlock; ++i) {
#pragma HLS UNROLL
    logits[i] = i < valid ? block[i] : kLowest;
    candidates |= static_cast<uint32_t>(i < valid && logits[i] > least) << i;
    // An exponent of infinity or NaN, all ones, carries.
    overflow |= (BitsOf(logits[i]) & 0x7fffffffu) + 0x00800000u;
  }
  LogSumExp plain = {s.plain_maximum[row_index], s.plain_total[row_index]};
  plain.Add(logits);
  s.plain_maximum[row_index] = plain.maximum;
  // A sum does not show a logit of -inf. NaN stays NaN, and FinishStep reports it.
  s.plain_total[row_index] = overflow >> 31 != 0 ? FloatOf(kQuietNan) : plain.total;
  if (warm) {
  TEMPER:
    for (int i = 0; i < kBlock; ++i) {
#pragma HLS UNROLL
      tempered[i] = i < valid ? logits[i] / divisor : kLowest;
    }
    LogSumExp sum = {s.tempered_maximum[row_index], s.tempered_total[row_index]};
    sum.Add(tempered);
    s.tempered_maximum[row_index] = sum.maximum;
    s.tempered_total[row_index] = sum.total;
  }
  if (ChoosesFromAll(row)) {
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
    if (best > s.best_score[row_index]) {
      s.best_score[row_index] = best;
    BEST:
      for (int i = kBlock - 1; i >= 0; --i) {
#pragma HLS UNROLL
        if (scores[i] == best) {
          s.best_logit[row_index] = logits[i];
          s.best_id[row_index] = first_id + i;
        }
      }
    }
  }
  return candidates;
}

// The next `blocks` blocks of every row, from `at` on.
inline void TakeBlocks(int first_tile, int blocks, const BlockSums& sums, RowSpan rows,
                       const Step& step, Item& at, Sampler& sampler) {
#pragma HLS INLINE
TAKE:
  for (int item = 0; item < blocks * rows.n; ++item) {
#pragma HLS PIPELINE II = kSampleCycles
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kBlocksInFlight * kMaxRows
    const int first_id = first_tile * kTileRows + at.index * kBlock;
    const int left = step.shape.vocab_size - first_id;
    uint32_t candidates = 0;
    if (left > 0) {
      float block[kBlock];
#pragma HLS ARRAY_PARTITION variable = block complete
      for (int i = 0; i < kBlock; ++i) {
#pragma HLS UNROLL
        const int tile = at.piece * kTilesInBlock + i / kTileRows;
        block[i] = sums[at.wave][tile][at.row][i % kTileRows];
      }
      const int row = step.sampling[at.row];
      candidates = TakeBlock(block, first_id, left < kBlock ? left : kBlock, step, row, sampler);
    }
    sampler.candidates[at.row][at.index] = candidates;
    at.Next(rows, kBlocksInWave);
  }
}

inline int LowestBit(uint32_t bits) {
#pragma HLS INLINE
  const uint32_t lowest = bits & (0u - bits);
  int index = 0;
LOWEST:
  for (int i = 0; i < 5; ++i) {
#pragma HLS UNROLL
    // Numbers whose bit i is set.
    const uint32_t with[] = {0xaaaaaaaau, 0xccccccccu, 0xf0f0f0f0u, 0xff00ff00u, 0xffff0000u};
    index |= (lowest & with[i]) != 0 ? 1 << i : 0;
  }
  return index;
}

// Few of a vocabulary ever get here, so they come one by one: in a cycle, the next candidate, or
// the next block's.
inline void InsertCandidates(int first_tile, int blocks, const BlockSums& sums, RowSpan rows,
                             const Step& step, Item& next, Sampler& sampler) {
#pragma HLS INLINE
  Item at = next;
  int left = blocks * rows.n;
  uint32_t candidates = 0;
TOP:
  while (left > 0 || candidates != 0) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kBlocksInFlight * kMaxRows * 2
    if (candidates == 0) {
      at = next;
      candidates = sampler.candidates[at.row][at.index];
      next.Next(rows, kBlocksInWave);
      --left;
    } else {
      const int i = LowestBit(candidates);
      const int tile = at.piece * kTilesInBlock + i / kTileRows;
      const float logit = sums[at.wave][tile][at.row][i % kTileRows];
      const int32_t order = OrderOf(logit);
      // The least is not what it was when the block was looked at.
      const int row = step.sampling[at.row];
      if (order > sampler.top_order[row][kTopLogits - 1]) {
        InsertTop(order, first_tile * kTileRows + at.index * kBlock + i, sampler.top_order[row],
                  sampler.top_id[row]);
      }
      candidates &= candidates - 1;
    }
  }
}

// To memory, of rows that ask for all of their logits.
inline void BurstLogits(int first_tile, int tiles, const BlockSums& sums, RowSpan rows,
                        const Step& step, float* full) {
#pragma HLS INLINE
FULL_ROWS:
  for (int i_row = rows.first; i_row < rows.first + rows.n; ++i_row) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kMaxRows
    const int row = step.sampling[i_row];
    if ((step.rows[row].flags & kRowFullLogits) != 0) {
      const int first_id = first_tile * kTileRows;
      const int left = step.shape.vocab_size - first_id;
      const int n = left < tiles * kTileRows ? left : tiles * kTileRows;
      const int64_t base = static_cast<int64_t>(row) * step.shape.vocab_size + first_id;
    FULL:
      for (int i = 0; i < n; ++i) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT min = kWaveRows max = kWaveRows
        const int tile = i / kTileRows;
        full[base + i] = sums[tile / kChannels][tile % kChannels][i_row][i % kTileRows];
      }
    }
  }
}

// The classifier's epilogue, of the sampling rows: step.sampling says which of the call's they are.
// Tiles come in the order of the vocabulary; `full` is in memory.
inline void SampleTiles(int first_tile, int tiles, const BlockSums& sums, RowSpan rows,
                        const Step& step, float* full, Sampler& sampler) {
#pragma HLS INLINE
  const int blocks = tiles / kTilesInBlock;
  Item take = FirstItem(rows), insert = take;  // a block of logits
BLOCKS:
  for (int block = 0; block < blocks; block += kSampleBlocks) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = 1
    const int left = blocks - block;
    const int n = left < kSampleBlocks ? left : kSampleBlocks;
    TakeBlocks(first_tile, n, sums, rows, step, take, sampler);
    InsertCandidates(first_tile, n, sums, rows, step, insert, sampler);
  }
  BurstLogits(first_tile, tiles, sums, rows, step, full);
}

// Writes every row's result of this step.
inline void FinishStep(const Sampler& sampler, const Step& step, uint32_t* results,
                       Outcome& outcome) {
#pragma HLS INLINE off
  int error = kErrorNone;
  int detail = 0;
WRITE_RESULTS:
  for (int row = 0; row < step.n_rows; ++row) {
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kMaxRows
    const Row& r = step.rows[row];
    const int base = kStatusWords + (step.index * step.n_rows + row) * kResultWords;
    const bool sampled = step.classify && Samples(r);
    int token = kTokenNone;
    if (sampled) {
      const LogSumExp plain = {sampler.plain_maximum[row], sampler.plain_total[row]};
      const LogSumExp tempered = {sampler.tempered_maximum[row], sampler.tempered_total[row]};
      const float lse = plain.Value();
      const float lse_tempered = r.temperature > 0.0f ? tempered.Value() : lse;
      const bool chosen = ChoosesFromAll(r);
      token = chosen ? sampler.best_id[row] : sampler.top_id[row][0];
      float logit = chosen ? sampler.best_logit[row] : OfOrder(sampler.top_order[row][0]);
      int kept = chosen ? step.shape.vocab_size : 1;
      // Written so that NaN fails; Log would make a number of a total that is none.
      const bool finite = plain.total > 0.0f && lse > kLowest && lse < 3e38f;
      if ((token < 0 || !finite) && error == kErrorNone) {
        error = kErrorNotFinite;
        detail = row;
      }
      if (Truncates(r) && error == kErrorNone) {
        const TopChoice choice = ChooseFromTop(r, step.shape.vocab_size, lse_tempered,
                                               sampler.top_order[row], sampler.top_id[row]);
        token = choice.kept > 0 ? sampler.top_id[row][choice.index] : kTokenUndecided;
        logit = OfOrder(sampler.top_order[row][choice.index]);
        kept = choice.kept;
      }
      results[base + kResultLse] = BitsOf(lse);
      results[base + kResultLseTemperature] = BitsOf(lse_tempered);
      results[base + kResultLogit] = BitsOf(logit);
      results[base + kResultKept] = static_cast<uint32_t>(kept);
    WRITE_TOP:
      for (int i = 0; i < kTopLogits; ++i) {
#pragma HLS PIPELINE II = 2
        results[base + kResultTop + 2 * i] = static_cast<uint32_t>(sampler.top_id[row][i]);
        results[base + kResultTop + 2 * i + 1] = BitsOf(OfOrder(sampler.top_order[row][i]));
      }
    }
    results[base + kResultToken] = static_cast<uint32_t>(token);
    results[base + kResultPosition] = static_cast<uint32_t>(r.position);
    bool stopped = !sampled || token < 0 || r.position + 1 >= step.shape.seq_len ||
                   (r.flags & kRowHostChooses) != 0;
  STOP_TOKENS:
    for (int i = 0; i < kMaxStopTokens; ++i) {
#pragma HLS UNROLL
      if (i < step.n_stop_tokens && step.stop_tokens[i] == token) stopped = true;
    }
    outcome.token[row] = token;
    outcome.stopped[row] = stopped;
  }
  outcome.error = error;
  outcome.detail = detail;
}

}  // namespace kernel
