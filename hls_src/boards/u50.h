// Alveo U50 (VU35P): 32 HBM2 pseudo-channels.
// Not yet synthesised: the clock and the limits are budgets, not results.
#pragma once

namespace kernel {

constexpr char kBoardName[] = "u50";
constexpr int kClockMhz = 300;

// Weight memory.
constexpr int kChannels = 24;  // and two more masters: the shell takes 30
constexpr int kBeatBytes = 64;
constexpr int kTileRows = 16;
constexpr int kScaleLanes = 1;     // sums that an engine scales a cycle, for every row
constexpr int kProductRows = 1;    // rows whose products share a multiplier
constexpr int kWavesInFlight = 8;  // that engines go through before they are collected

// KV cache.
constexpr int kKvPorts = 12;
constexpr int kKvBeatBytes = 64;
constexpr int kSharedMasters = 1;   // 1: KV port p goes through weight channel p's AXI master
constexpr int kAttentionLanes = 8;  // products a cycle of a port's engine
constexpr int kScoreCycles = 4;     // of a score, and of its exponential
constexpr int kQueries = 1;         // that share a block of keys and values

constexpr int kUltraRam = 1;  // 1: the part has it, and large memories go there

// Small stages.
constexpr int kVectorLanes = 16;   // values of a vector a cycle
constexpr int kGateCycles = 4;     // for a tile of hidden units
constexpr int kSampleCycles = 12;  // for kBlock logits

// Limits of the model and of one call.
constexpr int kMaxRows = 1;  // two take 92% of the LUTs by llama_pynq/estimate/resources.py
constexpr int kMaxSteps = 64;
constexpr int kMaxDim = 4096;
constexpr int kMaxHiddenDim = 11008;
constexpr int kMaxHeadSize = 128;
constexpr int kMaxLayers = 128;
constexpr int kMaxSeqLen = 16384;
constexpr int kTopLogits = 32;

// Beats on the way from memory: loaders go on while compute is busy with something else.
constexpr int kWeightFifoBeats = 4096;
constexpr int kKvFifoBeats = 2048;

// Burst shape of a weight port, and the float adder, in cycles.
constexpr int kReadLatency = 64;
constexpr int kReadBurstBeats = 64;
constexpr int kReadOutstanding = 8;
constexpr int kFaddLatency = 8;

}  // namespace kernel
