"""Fake card behind the fake vendor libraries, and the transactions expected of the driver.

A `FakeCard` is the memory and kernel of an emulated device with a log of every transaction. The
fakes (`fake_xrt`, `fake_pyxrt`, `fake_remote_board`, `fake_zynq`) have the vendors' interfaces,
nothing else, and call a card. `Expected` derives the driver's transactions from the contract and
the kernel's arguments alone.
"""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from llama_pynq.emulation import container, hwh, memory, xclbin
from llama_pynq.emulation.build import emulated_overlay
from llama_pynq.emulation.container import Container
from llama_pynq.emulation.design import BANK_STRIDE, Bank
from llama_pynq.emulation.device import EmulatedDevice
from llama_pynq.emulation.hwh import data_registers
from llama_pynq.kernel import abi, limits, registers
from llama_pynq.measure import selftest

PLACEHOLDER = 4096  # bytes of a placeholder buffer, before the size is known
CTRL, START, CONTINUE = "CTRL", 0x01, 0x10
IO_BUFFERS = ("request", "results", "logits", "activations", "model", "profile")


def banked_overlay(path: Path, tags: tuple[str, ...], bank_of: dict[str, str]) -> Path:
    """Write the installed kernel as an .xclbin with other banks.

    Parameters
    ----------
    path : Path
        Path of the new file.
    tags : tuple of str
        Tags of MEM_TOPOLOGY, in order.
    bank_of : dict
        Bank tag per kernel pointer, by buffer name.
    """
    source = emulated_overlay(".xclbin")
    contents = xclbin.read(source.read_bytes(), str(source))
    buffers = {a.name: a.buffer for a in registers.arguments(2, 2)}
    design = dataclasses.replace(
        contents.design,
        banks=tuple(Bank(tag, BANK_STRIDE * (i + 1)) for i, tag in enumerate(tags)),
        arguments=tuple(
            dataclasses.replace(a, bank=bank_of[buffers[a.name]] if a.is_pointer else None)
            for a in contents.design.arguments
        ),
    )
    path.write_bytes(xclbin.write(container.pack(Container(design, contents.payloads)), design))
    return path


_AS_ZYNQ_7000 = (
    (r"zynq_ultra_ps_e:3.4", "processing_system7:5.5"),
    (r"zynq_ultra_ps_e", "processing_system7"),
    (r"M_AXI_HPM0_FPD", "M_AXI_GP0"),
    (r"PSU__FPGA_PL(\d)_ENABLE", r"PCW_FPGA_FCLK\1_ENABLE"),
    (r"PSU__CRL_APB__PL(\d)_REF_CTRL__DIVISOR", r"PCW_FCLK\1_PERIPHERAL_DIVISOR"),
    (r"PSU__CRL_APB__PL(\d)_REF_CTRL__SRCSEL", r"PCW_FCLK\1_PERIPHERAL_CLKSRC"),
    (r"PSU__CRL_APB__PL(\d)_REF_CTRL__ACT_", r"PCW_ACT_FPGA\1_PERIPHERAL_"),
)


def zynq_overlay(folder: Path, parameters: dict[str, str], zynq_7000: bool = False) -> Path:
    """Write the installed kernel as llama.bit and llama.hwh, with more processor parameters."""
    source = emulated_overlay(".bit")
    contents = hwh.read_bit(source.read_bytes(), str(source))
    text = source.with_suffix(".hwh").read_text()
    for pattern, new in _AS_ZYNQ_7000 if zynq_7000 else ():
        text = re.sub(pattern, new, text)
    for key in parameters:  # a second one of the same name would be ignored
        text = "".join(
            line for line in text.splitlines(keepends=True) if f'NAME="{key}"' not in line
        )
    more = "".join(f'<PARAMETER NAME="{k}" VALUE="{v}" />' for k, v in parameters.items())
    head, end, tail = text.rpartition("</PARAMETERS>")
    metadata = (head + more + end + tail).encode()
    digest = hashlib.sha256(metadata).hexdigest()
    contents = dataclasses.replace(contents, metadata_sha256=digest)
    (folder / "llama.hwh").write_bytes(metadata)
    (folder / "llama.bit").write_bytes(hwh.write_bit(container.pack(contents)))
    return folder / "llama.bit"


class FakeCard:
    """Memory, registers and kernel of an emulated device, with a log of every transaction.

    Attributes
    ----------
    log : list of tuple
        Transactions in order; `Expected` yields the same tuples.
    ddr : int
        Base address of the buffers on a device without banks.
    programmed : bool
        Whether a download reprograms a fabric that already holds the same file; XRT does not.
    """

    ddr = 0x8_0000_0000

    def __init__(self, programmed: bool = True) -> None:
        self.device = EmulatedDevice(threads=1, name="behind", trust=True)
        self.programmed = programmed
        self.log: list[tuple[Any, ...]] = []
        self.base = 0
        self._held = b""
        self._folder = Path(tempfile.mkdtemp(prefix="card_"))
        self._names: dict[int, str] = {}
        self._pointers: dict[int, str] = {}
        self._low: dict[int, int] = {}
        self._buffer_of: dict[str, str] = {}
        self._live: dict[int, memory.Allocation] = {}
        self._called: dict[int, str] = {}

    def load(self, data: bytes, suffix: str, metadata: bytes = b"") -> None:
        """Program the fabric with the bytes of an overlay file."""
        self.log.append(("download",))
        if data == self._held and not self.programmed:
            return
        path = self._folder / f"llama{suffix}"
        path.write_bytes(data)
        if metadata:
            path.with_suffix(".hwh").write_bytes(metadata)
        self.device.download(SimpleNamespace(bitfile_name=str(path), partial=False))
        design = self.device.design
        self.base = design.base_address
        self._held = data
        self._names = {r.offset: r.name for r in data_registers(design)} | {0: CTRL}
        self._pointers = {a.offset: a.name for a in design.arguments if a.is_pointer}
        self._buffer_of = {a.name: a.buffer for a in registers.arguments(64, 64)}
        self.banks = [bank.tag for bank in design.banks] or ["PSDDR"]
        self._bases = [bank.base_address for bank in design.banks] or [self.ddr]

    # ---- memory ----------------------------------------------------------------------

    def allocate(self, n_bytes: int, bank: int = 0) -> memory.Allocation:
        allocation = self.device.memory.allocate(n_bytes, self.banks[bank], self._bases[bank])
        self._live[allocation.address] = allocation
        self.log.append(("allocate", self.banks[bank], n_bytes))
        return allocation

    def free(self, allocation: memory.Allocation) -> None:
        self.log.append(("free", self._called.pop(allocation.address, "unnamed")))
        del self._live[allocation.address]
        self.device.memory.free(allocation)

    def sync(
        self, allocation: memory.Allocation, to: bool, host: int, offset: int, size: int
    ) -> None:
        """Copy `size` bytes at `offset` between the buffer and its host copy at `host`."""
        assert not allocation.freed and 0 <= offset <= offset + size <= allocation.n_bytes
        name = self._called.get(allocation.address, "unnamed")
        self.log.append(("to card" if to else "from card", name, offset, size))
        ends = allocation.device_pointer + offset, host + offset
        ctypes.memmove(*(ends if to else ends[::-1]), size)

    # ---- registers -------------------------------------------------------------------

    def read(self, address: int) -> int:
        word = int.from_bytes(self.device.read_registers(address, 4), "little")
        event = ("read", self._names.get(address - self.base, hex(address)))
        if self.log[-1:] != [event]:  # log a poll once: the number of reads depends on speed
            self.log.append(event)
        return word

    def write(self, address: int, value: int) -> None:
        offset = address - self.base
        self.device.write_registers(address, value.to_bytes(4, "little"))
        if offset in self._pointers:
            self._low[offset] = value
        elif offset - 4 in self._pointers:
            self.point(self._pointers[offset - 4], value << 32 | self._low.pop(offset - 4))
        else:
            self.log.append(("write", self._names.get(offset, hex(address)), value))

    def point(self, argument: str, address: int) -> None:
        """Log a pointer argument of the kernel."""
        allocation = self._live[address]  # KeyError unless it is the start of a live buffer
        self._called[address] = self._buffer_of[argument]
        self.log.append(("point", argument, allocation.bank, allocation.n_bytes))


# ---- expected transactions -------------------------------------------------------------------

Events = Iterator[tuple[Any, ...]]


class Expected:
    """Transactions expected of the driver.

    Parameters
    ----------
    banks : dict
        Bank per buffer name; default PSDDR.
    chained : bool
        ap_ctrl_chain: the driver acknowledges the end of each call.
    whole : bool
        Syncs transfer whole buffers.
    least : int
        Smallest allocation, bytes.
    """

    def __init__(
        self,
        limits: limits.KernelLimits,
        banks: dict[str, str],
        chained: bool,
        whole: bool,
        least: int = 1,
    ) -> None:
        self.limits, self.banks = limits, banks
        self.chained, self.whole, self.least = chained, whole, least
        self.arguments = registers.arguments(limits.channels, limits.kv_ports)
        self.caches = [f"kv_cache_{p}" for p in range(limits.kv_ports)]
        self.weights = [f"weights_{c}" for c in range(limits.channels)]
        self.buffers = [*IO_BUFFERS, *self.caches, *self.weights]

    def make(self, name: str, n_bytes: int) -> Events:
        bank, n_bytes = self.banks.get(name, "PSDDR"), self.size(n_bytes)
        yield ("allocate", bank, n_bytes)
        for argument in self.arguments:
            if argument.is_pointer and argument.buffer == name:
                yield ("point", argument.name, bank, n_bytes)

    def size(self, n_bytes: int) -> int:
        return max(n_bytes, self.least)

    def replace(self, name: str, n_bytes: int) -> Events:
        yield ("free", name)
        yield from self.make(name, n_bytes)

    def call(self, sequence: int, command: int) -> Events:
        yield ("write", "sequence", sequence)
        yield ("write", "command", command)
        yield ("write", CTRL, START)
        yield ("read", CTRL)
        if self.chained:
            yield ("write", CTRL, CONTINUE)

    @property
    def results_bytes(self) -> int:
        return 4 * self.limits.results_words

    def open(self, sequence: int) -> Events:
        """`LlamaOverlay()` after the download: a DESCRIBE call, then buffers of the final sizes."""
        limits = self.limits
        for name in self.buffers:
            yield from self.make(name, PLACEHOLDER)
        yield ("to card", "results", 0, self.size(PLACEHOLDER))
        yield from self.call(sequence, abi.COMMAND_DESCRIBE)
        yield ("from card", "results", 0, self.size(PLACEHOLDER))
        yield from self.replace("request", 4 * limits.request_words)
        yield from self.replace("results", self.results_bytes)
        yield from self.replace("activations", 4 * limits.max_rows * limits.max_dim)
        yield from self.replace("model", 4 * limits.model_words)

    def load(self, model: Any, slots: int) -> Events:
        """`load_model()`: weights, an empty KV cache of `slots` sequences, the model descriptor."""
        limits, packed = self.limits, model.packed
        for name in (*self.caches, "logits", *self.weights):
            yield from self.replace(name, PLACEHOLDER)
        for name, size in zip(self.weights, packed.sizes):
            yield from self.replace(name, size)
            yield ("to card", name, 0, self.size(size))
        yield from self.replace("logits", 4 * limits.max_rows * packed.config.vocab_size)
        for name in self.caches:
            yield from self.replace(name, PLACEHOLDER)
        for name in self.caches:
            yield from self.replace(name, limits.kv_port_bytes(packed.config, 32, slots))
        yield ("to card", "model", 0, self.size(4 * limits.model_words))

    def token(self, sequence: int, rows: int = 1) -> Events:
        """One RUN call of one step."""
        yield ("to card", "request", 0, self.size(4 * self.limits.request_words))
        yield from self.call(sequence, abi.COMMAND_RUN)
        size = 4 * abi.STATUS_WORDS + rows * self.limits.result_dtype.itemsize
        yield ("from card", "results", 0, self.results_bytes if self.whole else size)

    def drop(self) -> Events:
        """Free every buffer, sorted by name: the order does not matter."""
        for name in sorted(self.buffers):
            yield ("free", name)


def split_frees(log: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Sort a log that must hold frees only."""
    assert {event[0] for event in log} <= {"free"}, log
    return sorted(log)


def story(overlay: Any) -> list[int]:
    """Generate tokens with several calls, of several rows and of several steps."""
    return overlay.generate("The little fox", max_new_tokens=12, temperature=0.8, seed=3).tokens


def self_tested(overlay: Any) -> Any:
    """Run the self-test, which must pass; returns its report."""
    found = selftest.run(overlay, None)
    assert found.passed, found.text()
    return found


def walk(overlay: Any, card: FakeCard, expected: Expected) -> None:
    """Load a model, generate a token and reset; compare each with the expected transactions."""
    driver = overlay.llama
    log = card.log
    model = overlay.load_model()
    assert log == list(expected.load(model, driver.slots))
    log.clear()
    overlay.generate("", max_new_tokens=1, temperature=0)
    assert log == list(expected.token(driver.handshake.sequence))
    log.clear()
    slots = driver.slots
    overlay.reset()
    sequence = driver.handshake.sequence
    n = len(expected.buffers)
    at = log.index(("read", CTRL))  # the idle check after the download
    assert split_frees(log[at + 1 : at + 1 + n]) == list(expected.drop())
    assert log[at + 1 + n :] == [*expected.open(sequence), *expected.load(model, slots)]
    del log[at + 1 :]


class ProcessorRegisters:
    """Fake clock and port registers of a Zynq UltraScale+, as the boot image leaves them.

    Parameters
    ----------
    pll_multiplier : int
        IOPLL frequency = multiplier x 33.333 MHz / 2.
    """

    PL0_REF_CTRL, IOPLL_CTRL = 0xFF5E00C0, 0xFF5E0020

    def __init__(self, pll_multiplier: int = 60) -> None:
        self.words = {
            self.IOPLL_CTRL: 1 << 16 | pll_multiplier << 8,
            self.PL0_REF_CTRL: 1 << 24 | 1 << 16 | 10 << 8,
        }

    def read(self, address: int) -> int:
        return self.words.get(address, 0)

    def write(self, address: int, value: int) -> None:
        self.words[address] = value

    @property
    def pl0_mhz(self) -> float:
        pll, clock = self.words[self.IOPLL_CTRL], self.words[self.PL0_REF_CTRL]
        return 33.333 * (pll >> 8 & 127) / 2 / ((clock >> 8 & 63) * (clock >> 16 & 63))


class Zynq7000Registers(ProcessorRegisters):
    """The same for a Zynq-7000: IO PLL frequency = multiplier x 50 MHz."""

    PL0_REF_CTRL, IOPLL_CTRL = 0xF8000170, 0xF8000108

    def __init__(self, pll_multiplier: int = 20) -> None:
        self.words = {
            self.IOPLL_CTRL: pll_multiplier << 12,
            self.PL0_REF_CTRL: 1 << 20 | 10 << 8,
        }

    @property
    def pl0_mhz(self) -> float:
        pll, clock = self.words[self.IOPLL_CTRL], self.words[self.PL0_REF_CTRL]
        return 50 * (pll >> 12 & 127) / ((clock >> 8 & 63) * (clock >> 20 & 63))


# A design for an IOPLL of 1500 MHz, with a 128-bit HP0 and a 32-bit HP1.
ZYNQ_PARAMETERS = {
    "PSU__CRL_APB__PL0_REF_CTRL__ACT_FREQMHZ": "300.000000",
    "PSU__CRL_APB__PL0_REF_CTRL__DIVISOR0": "5",
    "C_SAXIGP2_DATA_WIDTH": "128",
    "C_SAXIGP3_DATA_WIDTH": "32",
}
ZYNQ_7000_PARAMETERS = {
    "PCW_ACT_FPGA0_PERIPHERAL_FREQMHZ": "142.857132",
    "PCW_FCLK0_PERIPHERAL_DIVISOR0": "7",
}
HP_WIDTHS = {0xFD380000: 0, 0xFD380014: 0, 0xFD390000: 2, 0xFD390014: 2}
"""FABRIC_WIDTH of the AFIFM registers for these ports (AMD UG1087)."""
