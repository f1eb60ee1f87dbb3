// How many bytes a call needs behind each pointer, by the kernel's own reading of the call.
//
// The kernel is told addresses, not sizes. The emulated device knows the sizes, and starts no call
// that would leave a buffer.
#pragma once

#include <cstring>

#include "call.h"

namespace kernel {

// Arguments of the top function, in order: llama_pynq/kernel/registers.py.
constexpr int kRequestArgument = 0;
constexpr int kResultsArgument = 1;
constexpr int kLogitsArgument = 2;
constexpr int kActivationsArgument = 3;
constexpr int kModelArgument = 4;
constexpr int kProfileArgument = 5;
constexpr int kKvArgument = 6;  // of each port: read, write
constexpr int kWeightsArgument = kKvArgument + 2 * kKvPorts;
constexpr int kCommandArgument = kWeightsArgument + kChannels;
constexpr int kSequenceArgument = kCommandArgument + 1;

// The kernel's copy of what it is told: what was checked is what it reads, whatever the host writes
// meanwhile.
struct ToldWords {
  uint32_t request[kRequestWords];
  uint32_t model[kModelWords];
};

struct CallBytes {
  int64_t of[kCommandArgument];
};

// What is read before anything is known of the call: of the request, only the rows it has.
inline CallBytes FirstBytes(const uint64_t* args, const uint64_t* sizes) {
  CallBytes need = {};
  need.of[kResultsArgument] = 4 * kStatusWords;
  const uint32_t command = static_cast<uint32_t>(args[kCommandArgument]);
  if (command == kCommandDescribe) need.of[kResultsArgument] = 4 * kDescribeWords;
  if (command == kCommandRun) {
    need.of[kModelArgument] = 4 * kModelRopeTable;
    need.of[kRequestArgument] = 4 * kRequestRowBase;
    if (sizes[kRequestArgument] >= 4 * kRequestRowBase) {
      const uint32_t* request = reinterpret_cast<const uint32_t*>(args[kRequestArgument]);
      const int rows = WordInt(request, kRequestRows);
      if (Within(rows, 1, kMaxRows)) need.of[kRequestArgument] += 4 * rows * kRowWords;
    }
  }
  return need;
}

// What a call needs that the kernel accepts; else no more than its status.
inline void AddBytesOfSteps(const Call& call, CallBytes& need) {
  const Step& step = call.step;
  const Shape& s = step.shape;
  if (call.error != kErrorNone || call.n_steps < 1) return;
  need.of[kModelArgument] = 4 * (kModelRopeTable + s.head_size);
  need.of[kResultsArgument] =
      4 * (kStatusWords + int64_t{call.n_steps} * step.n_rows * kResultWords);
  for (int row = 0; row < step.n_rows; ++row) {
    const Row& r = step.rows[row];
    if (step.classify && Samples(r) && (r.flags & kRowFullLogits) != 0) {
      need.of[kLogitsArgument] = int64_t{4} * (row + 1) * s.vocab_size;
    }
  }
  if (step.activations_in || step.activations_out) {
    need.of[kActivationsArgument] = int64_t{4} * step.n_rows * s.dim;
  }
  if (step.profile) need.of[kProfileArgument] = int64_t{4} * call.n_steps * kProfileStepWords;
  const int64_t kv = int64_t{s.slots} * s.kv_slot_beats * kKvBeatBytes;
  for (int i = kKvArgument; i < kWeightsArgument; ++i) need.of[i] = kv;
  const Layout& plan = step.layout;
  const int tables = s.tied ? 1 : 2;
  for (int c = 0; c < kChannels; ++c) {
    const int norms = c == 0 ? 2 * s.n_layers + 1 : 0;
    const int64_t words = int64_t{s.n_layers} * plan.layer_words +
                          int64_t{norms} * plan.norm_words +
                          int64_t{tables} * MatrixWords(plan.classifier, s.row_bytes);
    need.of[kWeightsArgument + c] = words * kWordBytes;
  }
}

// The first argument whose buffer is too small, or -1.
inline int FirstShort(const CallBytes& need, const uint64_t* sizes) {
  for (int i = 0; i < kCommandArgument; ++i) {
    if (static_cast<uint64_t>(need.of[i]) > sizes[i]) return i;
  }
  return -1;
}

inline void CopyWords(uint64_t from, uint64_t bytes, uint32_t* to, size_t most) {
  std::memcpy(to, reinterpret_cast<const void*>(from), bytes < most ? bytes : most);
}

// Copies what the kernel is told to `told`, and checks the call that it makes: the first argument
// whose buffer is too small, and in `needed` the bytes it needs; or -1.
inline int CheckCall(const uint64_t* args, const uint64_t* sizes, ToldWords& told,
                     uint64_t& needed) {
  CallBytes need = FirstBytes(args, sizes);
  int at = FirstShort(need, sizes);
  if (at < 0 && static_cast<uint32_t>(args[kCommandArgument]) == kCommandRun) {
    told = ToldWords();
    CopyWords(args[kRequestArgument], need.of[kRequestArgument], told.request, sizeof told.request);
    CopyWords(args[kModelArgument], sizes[kModelArgument], told.model, sizeof told.model);
    Call call = {};
    ReadCall(told.request, told.model, kCommandRun, 0, call);
    AddBytesOfSteps(call, need);
    at = FirstShort(need, sizes);
  }
  if (at >= 0) needed = static_cast<uint64_t>(need.of[at]);
  return at;
}

}  // namespace kernel
