// Not a real board: channels, rows, ports and queries that are not powers of two, for the tests.
#pragma once

namespace kernel {

constexpr char kBoardName[] = "odd";
constexpr int kClockMhz = 300;

// Weight memory.
constexpr int kChannels = 6;
constexpr int kBeatBytes = 32;
constexpr int kTileRows = 16;
constexpr int kScaleLanes = 1;     // sums that an engine scales per cycle, for every row
constexpr int kProductRows = 1;    // rows whose products share a multiplier
constexpr int kWavesInFlight = 1;  // waves that engines compute before the sums are collected

// KV cache.
constexpr int kKvPorts = 5;
constexpr int kKvBeatBytes = 16;
constexpr int kSharedMasters = 0;
constexpr int kAttentionLanes = 4;  // products per cycle of a port's engine
constexpr int kScoreCycles = 2;     // cycles of a score, and of its exponential
constexpr int kQueries = 3;         // queries that share a block of keys and values

constexpr int kUltraRam = 0;  // 1: the part has UltraRAM, used for large memories

// Small stages.
constexpr int kVectorLanes = 4;    // vector elements per cycle
constexpr int kGateCycles = 4;     // cycles per tile of hidden units
constexpr int kSampleCycles = 12;  // cycles per kBlock logits

// Limits of the model and of one call.
constexpr int kMaxRows = 3;
constexpr int kMaxSteps = 64;
constexpr int kMaxDim = 512;
constexpr int kMaxHiddenDim = 1024;
constexpr int kMaxHeadSize = 128;
constexpr int kMaxLayers = 128;
constexpr int kMaxSeqLen = 16384;
constexpr int kTopLogits = 5;

// FIFO depths in beats: loaders prefetch while compute is busy with other work.
constexpr int kWeightFifoBeats = 4096;
constexpr int kKvFifoBeats = 2048;

// Bursts of a weight port, and latency of the float adder in cycles.
constexpr int kReadLatency = 64;
constexpr int kReadBurstBeats = 64;
constexpr int kReadOutstanding = 8;
constexpr int kFaddLatency = 8;

}  // namespace kernel
