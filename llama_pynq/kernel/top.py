"""Generator of the kernel's C++ top function, from a board's config header."""

from __future__ import annotations

from pathlib import Path

from llama_pynq.kernel.config import board_constants, kv_in_uram
from llama_pynq.kernel.registers import Argument, board_arguments

_URAM = "#pragma HLS BIND_STORAGE variable = {} type = ram_2p impl = uram\n"
_URAM_FIFO = "#pragma HLS BIND_STORAGE variable = {} type = fifo impl = uram\n"

_TOP = """\
// Generated from {board} by llama_pynq/kernel/top.py: do not edit.
#include "compute.h"

#if defined(__GNUC__) && !defined(__SYNTHESIS__)
#define LLAMA_TOP extern "C" __attribute__((visibility("default")))
#else
#define LLAMA_TOP extern "C"
#endif

namespace kernel {{

// Loaders run ahead of compute; the profile process counts cycles beside it.
static void RunStep({parameters},
                    const Step step, Outcome& outcome, Workspace& workspace) {{
#pragma HLS DATAFLOW
#pragma HLS ARRAY_PARTITION variable = step.rows complete
#pragma HLS ARRAY_PARTITION variable = step.teams complete
#pragma HLS ARRAY_PARTITION variable = step.sampling complete
#pragma HLS ARRAY_PARTITION variable = step.stop_tokens complete
#pragma HLS STABLE variable = step
  WeightPorts ports;
{fifo_storage}  KvReaders kv_readers;
{kv_storage}  KvWriters kv_writers;
  EventPort events;
  OpenEvents(step, profile, events);
{loads}
  Compute(step, model, results, logits, activations, ports, kv_readers, kv_writers, events,
          outcome, workspace);
{stores}
  RecordEvents(step, events, profile);
}}

}}  // namespace kernel

LLAMA_TOP void llama({top_parameters}) {{
{pragmas}
  using namespace kernel;
  Call call;
  Workspace workspace;
#pragma HLS ARRAY_PARTITION variable = call.step.rows complete
#pragma HLS ARRAY_PARTITION variable = call.step.teams complete
#pragma HLS ARRAY_PARTITION variable = call.step.sampling complete
#pragma HLS ARRAY_PARTITION variable = workspace.quantized.q complete dim = 1
#pragma HLS ARRAY_RESHAPE variable = workspace.quantized.q complete dim = 3
#pragma HLS ARRAY_PARTITION variable = workspace.quantized.scale complete dim = 1
#pragma HLS ARRAY_PARTITION variable = workspace.quantized.offset complete dim = 1
#pragma HLS ARRAY_PARTITION variable = workspace.hidden.q complete dim = 1
#pragma HLS ARRAY_RESHAPE variable = workspace.hidden.q complete dim = 3
#pragma HLS ARRAY_PARTITION variable = workspace.sampler.top_order complete dim = 0
#pragma HLS ARRAY_PARTITION variable = workspace.sampler.top_id complete dim = 0
#pragma HLS ARRAY_PARTITION variable = workspace.sampler.plain_maximum complete
#pragma HLS ARRAY_PARTITION variable = workspace.sampler.plain_total complete
#pragma HLS ARRAY_PARTITION variable = workspace.sampler.tempered_maximum complete
#pragma HLS ARRAY_PARTITION variable = workspace.sampler.tempered_total complete
#pragma HLS ARRAY_PARTITION variable = workspace.sampler.best_score complete
#pragma HLS ARRAY_PARTITION variable = workspace.x cyclic factor = kVectorLanes dim = 2
#pragma HLS ARRAY_PARTITION variable = workspace.normed cyclic factor = kVectorLanes dim = 2
#pragma HLS ARRAY_PARTITION variable = workspace.qkv cyclic factor = kVectorLanes dim = 2
#pragma HLS ARRAY_PARTITION variable = workspace.norm_weight cyclic factor = kReduceLanes
#pragma HLS ARRAY_PARTITION variable = workspace.gate.units cyclic factor = kVectorLanes dim = 2
{storage}  ReadCall(request, model, command, sequence, call);
  if (command == kCommandDescribe) WriteDescription(results);
  bool running = call.error == kErrorNone && call.n_steps > 0;
  bool aborted = false;
STEPS:
  while (running) {{
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kMaxSteps
    aborted = AbortAsked(request, sequence);
    if (!aborted) {{
      PlanRows(call.step);
      Outcome outcome;
      RunStep({names}, call.step, outcome, workspace);
      TakeOver(outcome, call);
    }}
    bool active = false;
  ANY_ROW:
    for (int row = 0; row < call.step.n_rows; ++row) {{
#pragma HLS LOOP_TRIPCOUNT min = 1 max = kMaxRows
      active = active || call.step.rows[row].active;
    }}
    running = active && !aborted && call.error == kErrorNone && call.step.index < call.n_steps;
  }}
  WriteStatus(results, call,
              call.error != kErrorNone ? kStateError : (aborted ? kStateAborted : kStateDone));
}}

#ifndef __SYNTHESIS__
// The emulated device hands over the arguments as 64-bit words, in order.
void CallTop(const uint64_t* args) {{
  using namespace kernel;
  llama({unpacked});
}}
#endif
"""


def top_function(header: Path) -> str:
    """Generate the C++ source of the kernel's top function for one board.

    Parameters
    ----------
    header : Path
        The board's config header; it must define kChannels.

    Returns
    -------
    str
        The top function with its INTERFACE pragmas (UG1399), the dataflow region of one
        step, and, outside synthesis, the entry point for the emulated device.
    """
    constants = board_constants(header)
    channels, kv_ports = constants["kChannels"], constants["kKvPorts"]
    args = board_arguments(constants)
    pointers = [a for a in args if a.is_pointer]

    def declare(arg: Argument, space: str) -> str:
        scoped = arg.ctype.replace("Beat", f"{space}Beat").replace(f"Kv{space}", f"{space}Kv")
        return f"{scoped} {arg.name}"

    # All arguments of a bundle need the same options, else HLS ignores them (UG1448, 200-466).
    pragmas = []
    for arg in pointers:
        streams = arg.name.startswith(("weights_", "kv_"))
        burst = (
            " latency = kernel::kReadLatency max_read_burst_length = kernel::kReadBurstBeats"
            " num_read_outstanding = kernel::kReadOutstanding"
            if streams
            else ""
        )
        pragmas.append(
            f"#pragma HLS INTERFACE m_axi port = {arg.name} offset = slave "
            f"bundle = {arg.bundle} depth = kernel::{arg.depth}{burst}"
        )
    pragmas += [f"#pragma HLS INTERFACE s_axilite port = {a.name}" for a in args]
    pragmas.append("#pragma HLS INTERFACE s_axilite port = return")
    shared = kv_ports if constants["kSharedMasters"] else 0
    loads = [
        f"  LoadBoth(weights_{p}, kv_read_{p}, {p}, step, ports[{p}], kv_readers[{p}]);"
        for p in range(shared)
    ]
    loads += [f"  Load(weights_{c}, {c}, step, ports[{c}]);" for c in range(shared, channels)]
    for p in range(kv_ports):
        if not shared:
            loads.append(f"  LoadKv(kv_read_{p}, {p}, step, kv_readers[{p}]);")
        loads.append(f"  PlaceKvWriter(kv_write_{p}, kv_writers[{p}]);")
    large = ("workspace.quantized.q", "workspace.hidden.q")
    unpacked = ",\n      ".join(
        f"reinterpret_cast<{a.ctype}>(args[{i}])"
        if a.is_pointer
        else f"static_cast<{a.ctype}>(args[{i}])"
        for i, a in enumerate(args)
    )
    return _TOP.format(
        board=header.name,
        parameters=", ".join(declare(a, "") for a in pointers if a.name != "request"),
        top_parameters=", ".join(declare(a, "kernel::") for a in args),
        loads="\n".join(loads),
        storage="".join(_URAM.format(what) for what in large if constants["kUltraRam"]),
        fifo_storage=_URAM_FIFO.format("ports") if constants["kUltraRam"] else "",
        kv_storage=_URAM_FIFO.format("kv_readers") if kv_in_uram(constants) else "",
        stores="\n".join(
            f"  StoreKv(kv_write_{p}, {p}, step, kv_writers[{p}]);" for p in range(kv_ports)
        ),
        pragmas="\n".join(pragmas),
        names=", ".join(a.name for a in pointers if a.name != "request"),
        unpacked=unpacked,
    )


if __name__ == "__main__":
    import sys

    sys.stdout.write(top_function(Path(sys.argv[1])))
