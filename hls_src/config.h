// The board being compiled for, the constants of the arithmetic, and the rules both obey.
#pragma once

#include <cstdint>

#ifndef LLAMA_BOARD_HEADER
#define LLAMA_BOARD_HEADER "boards/host.h"
#endif
#include LLAMA_BOARD_HEADER

namespace kernel {

// Part of the specification: changing one of these changes the bits of every result.
constexpr int kReduceLanes = 16;  // partial sums of a float dot product, then a tree
constexpr int kNormSums = 256;    // partial sums of a norm, then a tree
constexpr int kValueSums = 8;     // partial sums of a block's weighted values, then a tree
constexpr int kBlock = 32;        // positions or logits that one online-softmax step takes
constexpr int kMaxGroup = 64;     // int8 values that share a scale: 32 or 64, chosen at run time
constexpr int kMinGroup = 32;
constexpr float kRmsEpsilon = 1e-5f;  // llama2.c, run.c, rmsnorm()

// A weight word: one row's group of 64, or two rows' groups of 32.
constexpr int kWordBytes = kMaxGroup;
constexpr int kWordBeats = kWordBytes / kBeatBytes;
constexpr int kScaleWords = kTileRows * 4 / kWordBytes;
constexpr int kWaveRows = kTileRows * kChannels;  // output rows of one tile on every channel
constexpr int kTilesInFlight = kWavesInFlight * kChannels;

constexpr int kKvBeatWords = kKvBeatBytes / 4;
constexpr int kKvWriteBeats = 32;  // on their way to memory: a record or two

constexpr int RoundUp(int n, int multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

constexpr int kMaxIn = RoundUp(kMaxHiddenDim > kMaxDim ? kMaxHiddenDim : kMaxDim, kMaxGroup);
constexpr int kMaxInGroups = kMaxIn / kMinGroup;
constexpr int kMaxQkv = 3 * kMaxDim;  // n_kv_heads <= n_heads

// Depths that only cosimulation reads: of streams, and of the rest's words.
constexpr int kCosimBeats = 1 << 16;
constexpr int kCosimWords = 1 << 19;

static_assert(kWordBytes % kBeatBytes == 0, "a weight word is a whole number of beats");
static_assert(kTileRows == 16 || kTileRows == 32, "scales fill whole words, tiles fill blocks");
// From one addition to a partial sum in memory to the next: read, add, write.
constexpr int kAccumulateCycles = kFaddLatency + (kFaddLatency > 1) * 4;
static_assert(kTileRows / kScaleLanes >= kAccumulateCycles,
              "a row's sum is back before the next group is added to it: II=1");
static_assert(kChannels % 2 == 0, "a wave holds W1 and W3 tiles in pairs");
static_assert(kWaveRows % kBlock == 0, "a wave holds whole blocks of logits");
static_assert(kMaxHeadSize % kReduceLanes == 0, "heads are padded to whole reductions");
static_assert(kMaxHeadSize % 64 == 0 && kKvBeatBytes <= 64, "a head's beats fit its array");
static_assert(!kSharedMasters || (kKvPorts <= kChannels && kKvBeatBytes == kBeatBytes),
              "a KV port goes through the master of a channel as wide");
static_assert(kKvBeatBytes % 8 == 0, "a beat holds the scales of a key and a value");
static_assert(kReduceLanes % kAttentionLanes == 0, "lanes never meet one partial sum twice");
static_assert(kNormSums % kVectorLanes == 0 && kNormSums / kVectorLanes >= kAccumulateCycles,
              "a norm's partial sum is back before it is added to again: II=1");
static_assert(kBlock >= kAccumulateCycles, "nor is a dot product's");
static_assert(kMinGroup % kVectorLanes == 0 && kTileRows % kVectorLanes == 0, "whole vectors");
static_assert(kVectorLanes % 2 == 0, "rope takes pairs");
static_assert(kBlock % kValueSums == 0, "a block's values are whole rounds of partial sums");
static_assert(kMaxRows >= 1 && kMaxRows <= 32, "rows are unrolled");
static_assert(kProductRows == 1 || (kProductRows == 2 && kMaxRows % 2 == 0),
              "rows share a multiplier in pairs");
static_assert(kMaxGroup == 2 * kMinGroup, "a word holds one group or two");
static_assert(kTileRows % kScaleLanes == 0, "whole steps of scaling");
static_assert(kReadBurstBeats * kBeatBytes <= 4096 && kReadBurstBeats * kKvBeatBytes <= 4096,
              "AXI bursts end at 4 KiB");
static_assert(sizeof(kBoardName) <= 17, "the name is described in 16 bytes");
static_assert(kTopLogits >= 1, "greedy sampling reads the first of the top logits");

struct alignas(kBeatBytes) Beat {
  uint8_t b[kBeatBytes];
};
struct alignas(kWordBytes) Word {
  uint8_t b[kWordBytes];
};
struct alignas(kKvBeatBytes) KvBeat {
  float f[kKvBeatWords];  // or the bits of four int8 values each
};

}  // namespace kernel
