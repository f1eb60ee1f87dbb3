// The three things that differ between fabric and host, and nothing else: how weight words
// arrive, how independent tasks run side by side, and the clock that stamps events.
//
//   Load(memory, channel, step, port)   streams a channel's words in the order of their use
//   port.Read(word)                     the next of them; `word` is its place in the channel
//   ParallelFor<kEngines>(n, macs, task)  task(i % kEngines, i) for i < n, in any order; `macs` is
//   what
//                                       one task multiplies, for the host to weigh
//   ActiveRows(n)                       rows an engine computes: fabric never leaves one out
//   events.Mark(stage, layer)           time stamp
#pragma once

#if defined(__SYNTHESIS__) || defined(LLAMA_STREAMS)
#include "shims/stream.h"
#else
#include "shims/host.h"
#endif
