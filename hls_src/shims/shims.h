// What differs between fabric and host, and nothing else: how beats arrive and leave, how engines
// run side by side and loops are nested, and the clock that stamps events. No arithmetic.
//
//   Load(memory, channel, step, port)  streams a channel's beats in the order of their use
//   port.Read(word, beat)              the next of them; the numbers are its place in the channel
//   LoadKv, StoreKv, reader.Read, writer.Write   the same for keys and values
//   ReadRun(ports, port, run, next)    a reader of one run of beats, the numbers' place in the port
//   LoadBoth                           weights, keys and values in turn, with kSharedMasters
//   OfTask(sums, task)                 the part of an array that a task fills
//   ForEach(n, m, l, body)             body(i, j, k) of three nested loops
//   ForBeats(waves, loop, body, sums)  body(at) of every beat of an engine's tiles; it comes back
//                                      to one of the sums after kScaleSlots beats at the earliest
//   kEngineTiles                       tiles that one engine computes in lockstep
//   kEngineWaves                       and how often at most before they are collected
//   kEngineHeads                       kv heads attended to side by side by one task
//   kHeadPad                           floats between heads of a block: on the host, rows that are
//                                      a power of two apart would meet in few sets of its cache
//   kScaleAfter                        beats of a group before the last one's sums are scaled
//   kSampleBlocks                      blocks of logits taken at once, before those of them are
//                                      looked at that may be among the top ones
//   PerRow<T>                          an array of a T for each row
//   kKnownFormat                       whether an engine is compiled for one format, or for all
//   ForFormat(format, rows, engine)    engine(format, rows), for g++ with constants
//   ActiveRows(n)                      rows an engine computes: fabric never leaves one out
//   ParallelFor(n, macs, task)         task(0) ... task(n - 1), in any order; `macs` is what one
//                                      of them multiplies, for the host to weigh
//   ParallelRows(n, macs, task)        task(span) of the rows 0 ... n - 1: all of them, or some
//                                      in each of the host's threads
//   LLAMA_HOST_INLINE                  inlined by g++, which then knows the group size
//   LLAMA_HOST_UNROLL                  a loop over rows that g++ unrolls four times
//   events.Mark(stage, layer)          time stamp
#pragma once

#if defined(__SYNTHESIS__) || defined(LLAMA_STREAMS)
#include "shims/stream.h"
#else
#include "shims/host.h"
#endif
