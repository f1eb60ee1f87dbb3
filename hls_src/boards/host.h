// The emulated device: limits wide enough for any small Llama, no fabric to fit.
#pragma once

namespace kernel {

constexpr char kBoardName[] = "host";
constexpr int kClockMhz = 100;  // profile ticks are 10 ns of the host's clock

// Weight memory.
constexpr int kChannels = 2;
constexpr int kBeatBytes = 64;
constexpr int kTileRows = 32;
constexpr int kScaleLanes = 32;     // sums that an engine scales a cycle, for every row
constexpr int kProductRows = 1;     // rows whose products share a multiplier
constexpr int kWavesInFlight = 64;  // enough work between two joins of the host threads

// KV cache.
constexpr int kKvPorts = 2;
constexpr int kKvBeatBytes = 64;
constexpr int kSharedMasters = 0;    // 1: KV port p goes through weight channel p's AXI master
constexpr int kAttentionLanes = 16;  // products a cycle of a port's engine
constexpr int kScoreCycles = 1;      // of a score, and of its exponential
constexpr int kQueries = 16;         // that share a block of keys and values

constexpr int kUltraRam = 0;  // 1: the part has it, and large memories go there

// Small stages.
constexpr int kVectorLanes = 16;   // values of a vector a cycle
constexpr int kGateCycles = 32;    // for a tile of hidden units
constexpr int kSampleCycles = 32;  // for kBlock logits

// Limits of the model and of one call.
constexpr int kMaxRows = 32;
constexpr int kMaxSteps = 64;
constexpr int kMaxDim = 4096;
constexpr int kMaxHiddenDim = 14336;
constexpr int kMaxHeadSize = 256;
constexpr int kMaxLayers = 256;
constexpr int kMaxSeqLen = 32768;
constexpr int kTopLogits = 64;

// Beats on the way from memory: loaders go on while compute is busy with something else.
constexpr int kWeightFifoBeats = 2048;
constexpr int kKvFifoBeats = 512;

// Burst shape of a weight port, and the float adder, in cycles.
constexpr int kReadLatency = 64;
constexpr int kReadBurstBeats = 64;
constexpr int kReadOutstanding = 16;
constexpr int kFaddLatency = 1;

}  // namespace kernel
