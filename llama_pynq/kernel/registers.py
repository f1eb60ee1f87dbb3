"""Arguments of the kernel, and their register offsets.

One description serves the Vitis flow (the generated top function with its INTERFACE
pragmas), the emulated overlays (register offsets in their metadata) and the g++ build
(the call into the compiled kernel). Standard library only: ``setup.py`` imports this module
in an empty build environment.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

IP_NAME = "llama"
"""Name of the kernel, of the IP cell and of the compute unit."""

VENDOR, LIBRARY, VERSION = "llama_pynq", "hls", "1.0"
VLNV = f"{VENDOR}:{LIBRARY}:{IP_NAME}:{VERSION}"
"""VLNV that the build requests: the kernel's name in the tools' IP catalogues."""

VLNVS = (VLNV, f"xilinx.com:hls:{IP_NAME}:1.0")
"""VLNVs that the driver binds to.

The second is the default of Vitis HLS. Not tested: whether Vitis HLS applies the requested VLNV to
an .xo as it does to an IP. A foreign kernel of the same VLNV does no harm: the driver first has the
kernel describe itself, and checks `abi.MAGIC` and the ABI version.
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
        For a pointer: the constant that holds its cosimulation depth, in elements.
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
        """Name of the buffer it points to; the two pointers of a KV port share one."""
        return re.sub(r"^kv_(read|write)_", "kv_cache_", self.name)


@dataclass(frozen=True)
class Register:
    """An argument's place in the s_axilite register file; the offset is in bytes."""

    name: str
    offset: int
    size_bits: int


def arguments(channels: int, kv_ports: int, shared_masters: bool = False) -> tuple[Argument, ...]:
    """The kernel's arguments, in order.

    Parameters
    ----------
    channels, kv_ports : int
        Weight channels and KV cache ports of the board.
    shared_masters : bool
        True: KV port p uses the AXI master of weight channel p. Changes the bundles only.
    """
    io = "gmem_io"
    # Both pointers of a KV port address one buffer. Positions that the same step writes may be read
    # stale; the kernel replaces them with its on-chip copy.
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
    """`arguments` of a kernel with these `board_constants`."""
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
    """`registers` as a Zynq .hwh lists them: a pointer is two, `name_1` and `name_2`."""
    result = []
    for register in registers(args):
        if register.size_bits == 32:
            result.append(register)
        else:
            result.append(Register(f"{register.name}_1", register.offset, 32))
            result.append(Register(f"{register.name}_2", register.offset + 4, 32))
    return tuple(result)
