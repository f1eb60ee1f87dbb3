"""The design of an emulated overlay: its registers, block protocol and memory banks.

The writers of ``.xclbin`` and ``.hwh`` metadata turn a `Design` into the form that PYNQ reads.
The container that replaces the bitstream carries the same `Design`, so the device decodes
addresses as real hardware would, whatever the metadata says.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from llama_pynq.kernel import registers
from llama_pynq.kernel.registers import Argument

PROTOCOLS = ("ap_ctrl_hs", "ap_ctrl_chain")

XCLBIN_BASE_ADDRESS = 0x0180_0000
ZYNQ_BASE_ADDRESS = 0xA000_0000
ADDRESS_RANGE = 0x1_0000

BANK_STRIDE = 0x40_0000_0000
"""Distance between the address windows of two banks, as on Alveo; no bank is larger."""


@dataclass(frozen=True)
class Bank:
    """A memory bank: its tag in MEM_TOPOLOGY and the first address of its window."""

    tag: str
    base_address: int


@dataclass(frozen=True)
class PlacedArgument(Argument):
    """A kernel argument with its place in the register file.

    Parameters
    ----------
    offset : int
        Byte offset of the first word.
    size_bits : int
        32 or 64.
    bank : str or None
        Tag of the only bank that this pointer can reach; None where memory is not banked.
    """

    offset: int = 0
    size_bits: int = 32
    bank: str | None = None


@dataclass(frozen=True)
class Design:
    """An emulated design: block protocol, register file, memory banks and clock."""

    protocol: str
    base_address: int
    address_range: int
    arguments: tuple[PlacedArgument, ...]
    banks: tuple[Bank, ...]
    clock_mhz: int


def _arguments(args: tuple[Argument, ...], bank_of: dict[str, str]) -> tuple[PlacedArgument, ...]:
    return tuple(
        PlacedArgument(
            **asdict(arg),
            offset=register.offset,
            size_bits=register.size_bits,
            bank=bank_of.get(arg.name),
        )
        for arg, register in zip(args, registers.registers(args), strict=True)
    )


def xclbin_design(
    channels: int, kv_ports: int, clock_mhz: int, shared_masters: bool = False
) -> Design:
    """An Alveo-like design: ap_ctrl_chain, one bank for io, one for each weight channel.

    The KV cache ports are assigned to the weight banks round-robin.
    """
    args = registers.arguments(channels, kv_ports, shared_masters)
    bank_of = {}
    for arg in args:
        if arg.is_pointer:
            kind, _, index = arg.name.rpartition("_")
            banked = kind in ("weights", "kv_read", "kv_write")
            bank_of[arg.name] = f"DDR[{int(index) % channels + 1 if banked else 0}]"
    banks = tuple(Bank(f"DDR[{i}]", BANK_STRIDE * (i + 1)) for i in range(channels + 1))
    return Design(
        "ap_ctrl_chain",
        XCLBIN_BASE_ADDRESS,
        ADDRESS_RANGE,
        _arguments(args, bank_of),
        banks,
        clock_mhz,
    )


def zynq_design(
    channels: int, kv_ports: int, clock_mhz: int, shared_masters: bool = False
) -> Design:
    """A Zynq-like design: ap_ctrl_hs, every port on the processor's one memory."""
    args = _arguments(registers.arguments(channels, kv_ports, shared_masters), {})
    return Design("ap_ctrl_hs", ZYNQ_BASE_ADDRESS, ADDRESS_RANGE, args, (), clock_mhz)
