// PYNQ-Z1 and PYNQ-Z2 (XC7Z020): two 64-bit HP ports into 16-bit DDR3.
// Not yet synthesised: the clock and the limits are budgets, not results.
#pragma once

namespace kernel {

constexpr char kBoardName[] = "pynq-z2";
constexpr int kClockMhz = 142;

// Weight memory.
constexpr int kChannels = 2;
constexpr int kBeatBytes = 8;
constexpr int kTileRows = 32;
constexpr int kScaleLanes = 1;     // sums that an engine scales a cycle, for every row
constexpr int kProductRows = 1;    // rows whose products share a multiplier
constexpr int kWavesInFlight = 1;  // that engines go through before they are collected

// KV cache.
constexpr int kKvPorts = 1;
constexpr int kKvBeatBytes = 8;
constexpr int kSharedMasters = 0;   // 1: KV port p goes through weight channel p's AXI master
constexpr int kAttentionLanes = 2;  // products a cycle of a port's engine
constexpr int kScoreCycles = 16;    // of a score, and of its exponential
constexpr int kQueries = 2;         // that share a block of keys and values

constexpr int kUltraRam = 0;  // 1: the part has it, and large memories go there

// Small stages.
constexpr int kVectorLanes = 2;     // values of a vector a cycle
constexpr int kGateCycles = 512;    // for a tile of hidden units
constexpr int kSampleCycles = 512;  // for kBlock logits

// Limits of the model and of one call.
constexpr int kMaxRows = 1;
constexpr int kMaxSteps = 16;
constexpr int kMaxDim = 1024;
constexpr int kMaxHiddenDim = 2816;
constexpr int kMaxHeadSize = 128;
constexpr int kMaxLayers = 64;
constexpr int kMaxSeqLen = 4096;
constexpr int kTopLogits = 16;

// Beats on the way from memory: loaders go on while compute is busy with something else.
constexpr int kWeightFifoBeats = 2048;
constexpr int kKvFifoBeats = 512;

// Burst shape of a weight port, and the float adder, in cycles.
constexpr int kReadLatency = 40;
constexpr int kReadBurstBeats = 16;
constexpr int kReadOutstanding = 8;
constexpr int kFaddLatency = 5;

}  // namespace kernel
