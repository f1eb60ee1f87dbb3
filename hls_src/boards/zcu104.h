// ZCU104 (XCZU7EV): four 128-bit HP ports into 64-bit DDR4-2133.
// Not yet synthesised: the clock and the limits are budgets, not results.
#pragma once

namespace kernel {

constexpr char kBoardName[] = "zcu104";
constexpr int kClockMhz = 300;

// Weight memory.
constexpr int kChannels = 4;
constexpr int kBeatBytes = 16;
constexpr int kTileRows = 32;
constexpr int kScaleLanes = 1;     // sums that an engine scales a cycle, for every row
constexpr int kProductRows = 2;    // rows whose products share a multiplier
constexpr int kWavesInFlight = 2;  // that engines go through before they are collected

// KV cache.
constexpr int kKvPorts = 3;
constexpr int kKvBeatBytes = 16;
constexpr int kSharedMasters = 0;   // 1: KV port p goes through weight channel p's AXI master
constexpr int kAttentionLanes = 4;  // products a cycle of a port's engine
constexpr int kScoreCycles = 8;     // of a score, and of its exponential
constexpr int kQueries = 2;         // that share a block of keys and values

constexpr int kUltraRam = 1;  // 1: the part has it, and large memories go there

// Small stages.
constexpr int kVectorLanes = 4;    // values of a vector a cycle
constexpr int kGateCycles = 128;   // for a tile of hidden units
constexpr int kSampleCycles = 64;  // for kBlock logits

// Limits of the model and of one call.
constexpr int kMaxRows = 4;
constexpr int kMaxSteps = 32;
constexpr int kMaxDim = 2048;
constexpr int kMaxHiddenDim = 5632;
constexpr int kMaxHeadSize = 128;
constexpr int kMaxLayers = 64;
constexpr int kMaxSeqLen = 8192;
constexpr int kTopLogits = 64;

// Beats on the way from memory: loaders go on while compute is busy with something else.
constexpr int kWeightFifoBeats = 4096;
constexpr int kKvFifoBeats = 512;

// Burst shape of a weight port, and the float adder, in cycles.
constexpr int kReadLatency = 64;
constexpr int kReadBurstBeats = 16;
constexpr int kReadOutstanding = 16;
constexpr int kFaddLatency = 8;

}  // namespace kernel
