"""The kernel's argument list, and what follows from it: registers and the top function.

One description serves the Vitis flow (the generated top function with its INTERFACE
pragmas), the emulated overlays (register offsets in their metadata) and the g++ build
(the call into the compiled kernel). Standard library only: ``setup.py`` imports it in
an empty build environment.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

IP_NAME = "llama"
"""Name of the kernel, of the IP cell and of the compute unit."""

VENDOR, LIBRARY, VERSION = "llama_pynq", "hls", "1.0"
VLNV = f"{VENDOR}:{LIBRARY}:{IP_NAME}:{VERSION}"
"""What the kernel is called in the catalogues of the tools: what the build asks for."""

VLNVS = (VLNV, f"xilinx.com:hls:{IP_NAME}:1.0")
"""Every VLNV the driver binds to.

The second is what Vitis HLS writes where it is not told another, and whether it is told for an .xo
as it is for an IP was not seen. Another's kernel of that name does no harm: the kernel says who it
is, `abi.MAGIC` and its ABI, before it is given anything to do.
"""

CONTROL_OFFSET = 0x00
"""s_axilite control register: AP_START, AP_DONE, AP_IDLE, AP_READY, AP_CONTINUE (UG1399)."""
AP_START, AP_DONE, AP_IDLE, AP_READY, AP_CONTINUE = 0x01, 0x02, 0x04, 0x08, 0x10

_FIRST_ARGUMENT_OFFSET = 0x10
_POINTER_STRIDE, _SCALAR_STRIDE = 12, 8  # UG1399: data word(s), then one reserved word


@dataclass(frozen=True)
class Argument:
    """One argument of the kernel's top function.

    Parameters
    ----------
    name : str
    ctype : str
        C type without the name, such as ``"const uint32_t*"``.
    bundle : str or None
        The m_axi bundle of a pointer; None for a scalar.
    depth : str
        Of a pointer: the constant that is its depth in cosimulation, in elements.
    """

    name: str
    ctype: str
    bundle: str | None
    depth: str = ""

    @property
    def is_pointer(self) -> bool:
        return self.bundle is not None

    @property
    def buffer(self) -> str:
        """Name of the memory it points at; the two pointers of a KV port share one."""
        return re.sub(r"^kv_(read|write)_", "kv_cache_", self.name)


@dataclass(frozen=True)
class Register:
    """Where an argument sits in the s_axilite register file, in bytes."""

    name: str
    offset: int
    size_bits: int


def arguments(channels: int, kv_ports: int, shared_masters: bool = False) -> tuple[Argument, ...]:
    """The kernel's arguments, in order.

    Parameters
    ----------
    channels, kv_ports : int
        The board's weight channels, and ports of its KV cache.
    shared_masters : bool
        A KV port goes through the AXI master of the weight channel of its number. Only the
        bundles depend on it.
    """
    io = "gmem_io"
    # Both of a port point at one memory: what the kernel reads of the positions that the same step
    # writes, it replaces with what is on chip.
    kv_bundle = "gmem_w" if shared_masters else "gmem_kv"
    cache = tuple(
        Argument(f"kv_{access}_{p}", ctype, f"{kv_bundle}{p}", "kCosimBeats")
        for p in range(kv_ports)
        for access, ctype in (("read", "const KvBeat*"), ("write", "KvBeat*"))
    )
    weights = tuple(
        Argument(f"weights_{c}", "const Beat*", f"gmem_w{c}", "kCosimBeats")
        for c in range(channels)
    )
    return (
        Argument("request", "const uint32_t*", io, "kCosimWords"),
        Argument("results", "uint32_t*", io, "kCosimWords"),
        Argument("logits", "float*", io, "kCosimWords"),
        Argument("activations", "float*", io, "kCosimWords"),
        Argument("model", "const uint32_t*", io, "kCosimWords"),
        Argument("profile", "uint32_t*", "gmem_profile", "kProfileWords"),
        *cache,
        *weights,
        Argument("command", "uint32_t", None),
        Argument("sequence", "uint32_t", None),
    )


def board_arguments(constants: dict[str, int]) -> tuple[Argument, ...]:
    """`arguments` of the kernel with these `board_constants`."""
    shared = bool(constants["kSharedMasters"])
    return arguments(constants["kChannels"], constants["kKvPorts"], shared)


def registers(args: tuple[Argument, ...]) -> tuple[Register, ...]:
    """Register offsets as Vitis HLS assigns them for 64-bit addresses (UG1399, s_axilite)."""
    offset = _FIRST_ARGUMENT_OFFSET
    result = []
    for arg in args:
        result.append(Register(arg.name, offset, 64 if arg.is_pointer else 32))
        offset += _POINTER_STRIDE if arg.is_pointer else _SCALAR_STRIDE
    return tuple(result)


def zynq_registers(args: tuple[Argument, ...]) -> tuple[Register, ...]:
    """The same register file as a Zynq .hwh lists it: a pointer is `name_1` and `name_2`."""
    result = []
    for register in registers(args):
        if register.size_bits == 32:
            result.append(register)
        else:
            result.append(Register(f"{register.name}_1", register.offset, 32))
            result.append(Register(f"{register.name}_2", register.offset + 4, 32))
    return tuple(result)


def board_constants(header: Path) -> dict[str, int]:
    """The ``constexpr int kName = value;`` lines of a board's config header.

    Raises
    ------
    ValueError
        If the header lacks kChannels, kKvPorts, kSharedMasters or kUltraRam.
    """
    found = re.findall(r"constexpr int (k\w+) = (\d+);", header.read_text(encoding="utf-8"))
    constants = {name: int(value) for name, value in found}
    for name in ("kChannels", "kKvPorts", "kSharedMasters", "kUltraRam"):
        if name not in constants:
            raise ValueError(f"{header} defines no 'constexpr int {name} = ...;'")
    return constants


def kv_in_uram(constants: dict[str, int]) -> bool:
    """Whether keys and values wait in UltraRAM: where a FIFO is deeper than a block RAM."""
    return bool(constants["kUltraRam"]) and constants.get("kKvFifoBeats", 0) > _BLOCK_RAM_DEPTH


def board_headers() -> dict[str, Path]:
    """Config headers of the kernel's source that is installed, by board name."""
    names = {}
    for folder in import_module("llama_pynq.hls_src").__path__:
        for header in sorted(Path(folder, "boards").glob("*.h")):
            found = re.search(r'kBoardName\[\] = "(.*)";', header.read_text(encoding="utf-8"))
            if found:
                names[found.group(1)] = header
    return names


_URAM = "#pragma HLS BIND_STORAGE variable = {} type = ram_2p impl = uram\n"
_URAM_FIFO = "#pragma HLS BIND_STORAGE variable = {} type = fifo impl = uram\n"
_BLOCK_RAM_DEPTH = 512  # at its widest (UG573)

_TOP = """\
// Generated from {board} by llama_pynq/kernel/registers.py: do not edit.
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
    """C++ source of the kernel's top function for one board.

    Parameters
    ----------
    header : Path
        The board's config header; it must define kChannels.

    Returns
    -------
    str
        The top function with its INTERFACE pragmas (UG1399), the dataflow region of one
        step, and, outside synthesis, the call that the emulated device makes.
    """
    constants = board_constants(header)
    channels, kv_ports = constants["kChannels"], constants["kKvPorts"]
    args = board_arguments(constants)
    pointers = [a for a in args if a.is_pointer]

    def declare(arg: Argument, space: str) -> str:
        scoped = arg.ctype.replace("Beat", f"{space}Beat").replace(f"Kv{space}", f"{space}Kv")
        return f"{scoped} {arg.name}"

    # All arguments of a bundle have the same options: else HLS takes none (UG1448, 200-466).
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
