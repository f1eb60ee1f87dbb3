// What the kernel and its driver agree on: every buffer, word by word.
//
// llama_pynq/kernel/abi.py repeats the constants of this file; a test keeps the two in step.
// All buffers are arrays of 32-bit little-endian words unless a type says otherwise.
#pragma once

#include <cstdint>

#include "config.h"

namespace kernel {

constexpr uint32_t kMagic = 0x4C4C4D41;  // "LLMA"
constexpr int kAbiVersion = 3;

// Scalar argument `command`.
constexpr int kCommandDescribe = 0;  // write the self-description, touch nothing else
constexpr int kCommandRun = 1;

// ---- request: host to kernel ---------------------------------------------------------
constexpr int kRequestRows = 0;
constexpr int kRequestSteps = 1;
constexpr int kRequestLayerBegin = 2;
constexpr int kRequestLayerEnd = 3;
constexpr int kRequestFlags = 4;
constexpr int kRequestStopTokens = 5;
constexpr int kRequestAbort = 16;  // a line of its own; aborts the call whose sequence it holds
constexpr int kRequestStopList = 32;
constexpr int kMaxStopTokens = 16;
constexpr int kRequestRowBase = 48;
constexpr int kRowWords = 10;
constexpr int kRequestWords = kRequestRowBase + kRowWords * kMaxRows;

// Request flags.
constexpr int kFlagProfile = 1;         // record stage times
constexpr int kFlagActivationsIn = 2;   // start from the activations buffer, not the embedding
constexpr int kFlagActivationsOut = 4;  // write the residual stream after the last layer

// Row words.
constexpr int kRowToken = 0;
constexpr int kRowPosition = 1;
constexpr int kRowSlot = 2;
constexpr int kRowFlags = 3;
constexpr int kRowSeedLow = 4;
constexpr int kRowSeedHigh = 5;
constexpr int kRowTemperature = 6;  // float32 bits; 0 is greedy, else 1e-4 to 1e6
// Truncation, where the temperature is not 0; 0 is off. A top_p of 1 is off, too.
constexpr int kRowTopK = 7;  // the most probable tokens
constexpr int kRowTopP = 8;  // float32 bits: the fewest of them that have this much of the mass
constexpr int kRowMinP = 9;  // float32 bits, below 1: those this probable beside the best

// Row flags.
constexpr int kRowSample = 1;       // run the classifier, return a token and the top logits
constexpr int kRowFullLogits = 2;   // burst this row's logits out as well
constexpr int kRowHostChooses = 4;  // no noise; the row ends with this step, and the host picks

// ---- model: host to kernel, once per load --------------------------------------------
constexpr int kModelMagic = 0;
constexpr int kModelAbi = 1;
constexpr int kModelDim = 2;
constexpr int kModelHiddenDim = 3;
constexpr int kModelLayers = 4;
constexpr int kModelHeads = 5;
constexpr int kModelKvHeads = 6;
constexpr int kModelVocabSize = 7;
constexpr int kModelSeqLen = 8;
constexpr int kModelGroupSize = 9;
constexpr int kModelTied = 10;
constexpr int kModelRopeTheta = 11;  // float32 bits, for the record: the table below is used
constexpr int kModelSlots = 12;
constexpr int kModelWeightBits = 13;  // 8 or 4
constexpr int kModelKvBits = 14;      // 32: float32, or 8
constexpr int kModelRopeTable = 16;   // head_size / 2 pairs (low, high): turns per position * 2^64
constexpr int kModelWords = kModelRopeTable + kMaxHeadSize;

// ---- results: kernel to host ---------------------------------------------------------
constexpr int kStatusMagic = 0;
constexpr int kStatusAbi = 1;
constexpr int kStatusState = 2;
constexpr int kStatusError = 3;
constexpr int kStatusDetail = 4;     // the row, field or token the error is about
constexpr int kStatusSteps = 5;      // steps done
constexpr int kStatusSequence = 15;  // written last: the call is complete when it matches
constexpr int kStatusWords = 16;

constexpr int kStateDone = 1;
constexpr int kStateAborted = 2;
constexpr int kStateError = 3;

constexpr int kErrorNone = 0;
constexpr int kErrorCommand = 1;
constexpr int kErrorModelMagic = 2;
constexpr int kErrorModelShape = 3;
constexpr int kErrorRows = 4;
constexpr int kErrorSteps = 5;
constexpr int kErrorLayers = 6;
constexpr int kErrorToken = 7;
constexpr int kErrorPosition = 8;
constexpr int kErrorSlot = 9;
constexpr int kErrorDuplicateRow = 10;
constexpr int kErrorTemperature = 11;
constexpr int kErrorStopTokens = 12;
constexpr int kErrorNotFinite = 13;
constexpr int kErrorTruncation = 14;

// Self-description, after the status words.
constexpr int kDescribeChannels = 16;
constexpr int kDescribeBeatBytes = 17;
constexpr int kDescribeTileRows = 18;
constexpr int kDescribeMaxRows = 19;
constexpr int kDescribeMaxSteps = 20;
constexpr int kDescribeMaxDim = 21;
constexpr int kDescribeMaxHiddenDim = 22;
constexpr int kDescribeMaxHeadSize = 23;
constexpr int kDescribeMaxLayers = 24;
constexpr int kDescribeMaxSeqLen = 25;
constexpr int kDescribeTopLogits = 26;
constexpr int kDescribeClockMhz = 27;
constexpr int kDescribeMaxStopTokens = 28;
constexpr int kDescribeMaxStepEvents = 29;
constexpr int kDescribeKvPorts = 30;
constexpr int kDescribeKvBeatBytes = 31;
constexpr int kDescribeBoard = 32;  // 16 bytes, zero-padded
constexpr int kDescribeWords = 36;

// One result per step and row, at kStatusWords + (step * n_rows + row) * kResultWords.
constexpr int kResultToken = 0;
constexpr int kResultPosition = 1;
constexpr int kResultLse = 2;             // float32: log sum exp(logit)
constexpr int kResultLseTemperature = 3;  // float32: log sum exp(logit / temperature)
constexpr int kResultLogit = 4;           // float32: the token's own
constexpr int kResultKept = 5;            // tokens that truncation left to choose from
constexpr int kResultTop = 8;             // kTopLogits pairs (token id, float32 logit), best first
// Instead of a token. None: the row did not sample in this step, and only its position is valid.
// Undecided: truncation keeps more than the top logits; the row ends, and the host picks.
constexpr int kTokenNone = -1;
constexpr int kTokenUndecided = -2;
constexpr int kResultWords = kResultTop + 2 * kTopLogits;
constexpr int kResultsWords = kStatusWords + kMaxSteps * kMaxRows * kResultWords;

// ---- profile: kernel to host ---------------------------------------------------------
// One record per step: the number of events, then pairs (stage | layer << 8, ticks since
// the step began). A stage lasts until the next event; kStageEnd closes the step.
constexpr int kMaxStepEvents = 4096;
static_assert(8 * kMaxLayers + 5 <= kMaxStepEvents, "a step's stages fit its record");
static_assert(kResultsWords <= kCosimWords && kMaxRows * kMaxDim <= kCosimWords,
              "cosimulation sees all of a call's words");
constexpr int kProfileStepWords = 2 + 2 * kMaxStepEvents;
constexpr int kProfileWords = kProfileStepWords * kMaxSteps;

constexpr int kStageEmbed = 0;
constexpr int kStageAttentionNorm = 1;
constexpr int kStageQkv = 2;
constexpr int kStageRope = 3;
constexpr int kStageAttention = 4;
constexpr int kStageAttentionOut = 5;
constexpr int kStageFfnNorm = 6;
constexpr int kStageGateUp = 7;
constexpr int kStageDown = 8;
constexpr int kStageFinalNorm = 9;
constexpr int kStageClassifier = 10;
constexpr int kStageSample = 11;
constexpr int kStageEnd = 12;

// ---- kv_cache_0 ... ------------------------------------------------------------------
// Each port's memory, [slot][layer][head of the port][position][record]: see cache.h. The
// kernel has two pointers to it, kv_read_p and kv_write_p: what a step reads of the positions it
// writes, it replaces with what is on chip.

}  // namespace kernel
