// Top-k, top-p and min-p: which of the top logits a token may be, and the one that noise makes
// the best of them. Truncation only ever keeps the tokens up to some rank, so the top logits tell,
// unless it keeps more than there are.
#pragma once

#include "call.h"

namespace kernel {

inline bool Truncates(const Row& r) {
  return r.temperature > 0.0f && (r.flags & kRowHostChooses) == 0 &&
         (r.top_k > 0 || r.top_p < 1.0f || r.min_p > 0.0f);
}

// Whether the token is the best of the whole vocabulary with noise. What truncation leaves gets its
// noise afterwards.
inline bool ChoosesFromAll(const Row& r) {
  return r.temperature > 0.0f && (r.flags & kRowHostChooses) == 0 && !Truncates(r);
}

// An index into the top logits, and among how many they were; none if those are too few to tell.
struct TopChoice {
  int index, kept;
};

// Cycles of a top logit: a sum is back before it is added to again.
constexpr int kTruncateCycles =
    kSampleCycles / 4 > kAccumulateCycles ? kSampleCycles / 4 : kAccumulateCycles;

// `lse` is of logit / temperature over the whole vocabulary.
inline TopChoice ChooseFromTop(const Row& r, int vocab_size, float lse,
                               const int32_t (&top_order)[kTopLogits],
                               const int (&top_id)[kTopLogits]) {
#pragma HLS INLINE off
  float tempered[kTopLogits], weight[kTopLogits], mass[kTopLogits];
  const int there = vocab_size < kTopLogits ? vocab_size : kTopLogits;
  const bool limited = r.top_k > 0 && r.top_k < vocab_size;
  const int limit = limited ? r.top_k : vocab_size;
  const int most = limit < there ? limit : there;
  const float first = OfOrder(top_order[0]);
  const float best = first / r.temperature;
  float sum = 0.0f;
WEIGH_TOP:
  for (int i = 0; i < most; ++i) {
#pragma HLS PIPELINE II = kTruncateCycles
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kTopLogits
    const float logit = OfOrder(top_order[i]);
    tempered[i] = logit / r.temperature;
    weight[i] = Exp(tempered[i] - best);
    sum = sum + weight[i];
    mass[i] = sum;
  }
  // What top-k leaves is a distribution of its own.
  const float rest = lse - best;
  const float total = limited ? sum : Exp(rest);
  const bool nucleus = r.top_p < 1.0f;
  const float enough = r.top_p * total;
  const uint32_t key = NoiseKey(r.seed_low, r.seed_high, static_cast<uint32_t>(r.position));
  float best_score = 0.0f;
  TopChoice choice = {0, 0};
  bool more = true;
CHOOSE_TOP:
  for (int i = 0; i < most && more; ++i) {
#pragma HLS PIPELINE II = kTruncateCycles
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kTopLogits
    const bool likely = weight[i] >= r.min_p;
    const float score = tempered[i] + GumbelNoise(key, static_cast<uint32_t>(top_id[i]));
    if (likely) {
      choice.kept = i + 1;
      if (i == 0 || score > best_score) {
        best_score = score;
        choice.index = i;
      }
    }
    more = likely && !(nucleus && mass[i] >= enough);
  }
  if (limit > there && (more || (limited && nucleus))) choice.kept = 0;
  return choice;
}

}  // namespace kernel
