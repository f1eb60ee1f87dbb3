"""The kernel's argument list, and the registers that follow from it.

One description serves the Vitis flow (the generated top function with its INTERFACE
pragmas), the emulated overlays (register offsets in their metadata) and the g++ build
(the call into the compiled kernel). Standard library only: ``setup.py`` imports it in
an empty build environment.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

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
