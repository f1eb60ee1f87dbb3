"""A fake Zynq board: PYNQ's own EmbeddedDevice, backed by one `FakeCard`.

XRT (its C library for PYNQ 3.0.1, `pyxrt` for PYNQ 4), /dev/mem, the FPGA manager's files and the
firmware folder are fakes; all else is PYNQ's. Host and device memory are separate, so a missing
sync shows like a missing cache flush on a board.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pynq.buffer
import pytest
from pynq._3rdparty import tinynumpy
from pynq.pl_server import embedded_device, xrt_device
from pynq.pl_server.device import Device
from pynq.pl_server.embedded_device import DEFAULT_XCLBIN, EmbeddedDevice
from support import fake_pyxrt
from support.fake_card import FakeCard, ProcessorRegisters, Zynq7000Registers
from support.fake_xrt import FakeXrtLibrary

from llama_pynq.emulation import hwh

PYNQ_3_0 = version("pynq").startswith("3.0.")


class _FakeZynqCard(FakeCard):
    """A card that the FPGA manager programs; XRT only gets its memory topology."""

    def load(self, data: bytes, suffix: str, metadata: bytes = b"") -> None:
        if suffix == ".bit":
            super().load(data, suffix, metadata)
        else:
            self.log.append(("memories",))

    def allocate(self, n_bytes: int, bank: int = 0) -> Any:
        return super().allocate(n_bytes)


class _Words:
    """Mapping of /dev/mem; forwards accesses to the card or the processor's registers."""

    def __init__(self, board: FakeZynqBoard, base: int) -> None:
        self._board, self._base = board, base

    def _where(self, offset: int) -> tuple[Any, int]:
        address, card = self._base + offset, self._board.card
        inside = card.base and card.base <= address < card.base + 0x10000
        return (card if inside else self._board.processor), address

    def read(self, offset: int, length: int) -> bytes:
        assert length == 4
        where, address = self._where(offset)
        return int(where.read(address)).to_bytes(4, "little")

    def write(self, offset: int, data: bytes) -> None:
        assert len(data) == 4
        where, address = self._where(offset)
        where.write(address, int.from_bytes(data, "little"))


class _Device(EmbeddedDevice):
    """PYNQ's device without access to Linux's files."""

    behind: FakeZynqBoard

    def mmap(self, base_addr: int, length: int) -> Any:
        hook = _Words(self.behind, base_addr)
        return tinynumpy.ndarray(shape=(length // 4,), dtype="u4", hook=hook)

    def shutdown(self) -> None:
        """Skip: PYNQ's asks the shutdown managers of an earlier overlay."""

    def gen_cache(self, bitstream: Any, parser: Any = None) -> None:
        """Skip: PYNQ's writes into its own package folder."""

    def set_axi_port_width(self, parser: Any) -> None:
        self.behind.program()
        super().set_axi_port_width(parser)


class FakeZynqBoard:
    """Fake board that replaces this computer's device during a test.

    Attributes
    ----------
    card : FakeCard
    processor : ProcessorRegisters
    device : pynq.pl_server.embedded_device.EmbeddedDevice
    """

    def __init__(
        self, patch: pytest.MonkeyPatch, folder: Path, processor: ProcessorRegisters | None = None
    ) -> None:
        self.card = _FakeZynqCard()
        self.processor = processor or ProcessorRegisters()
        arch = "aarch64"
        if isinstance(self.processor, Zynq7000Registers):
            arch, self.card.ddr = "armv7l", 0x1000_0000
        self._folder = folder
        self._bitstream = b""
        self._metadata = b""
        patch.setattr(embedded_device, "_create_xclbin", lambda memories: DEFAULT_XCLBIN)
        patch.setattr(embedded_device, "_preload_binfile", self._preload)
        patch.setattr(pynq.Clocks, "_real_instance", None, raising=False)
        patch.delattr(pynq.Clocks, "_real_instance")
        for attribute in ("BS_FPGA_MAN", "BS_FPGA_MAN_FLAGS"):
            patch.setattr(EmbeddedDevice, attribute, str(folder / attribute))
        patch.chdir(folder)  # PYNQ 4 leaves loaded.xclbin there
        if PYNQ_3_0:
            from pynq._3rdparty import xrt

            patch.setattr(xrt, "libc", FakeXrtLibrary(self.card, b"edge"))
            patch.setattr(xrt_device, "_xrt_version", (2, 13, 0))
            patch.setattr(xrt_device.asyncio, "get_event_loop", lambda: None)
            patch.setattr("pynq.ps.CPU_ARCH", arch)
        else:
            module = fake_pyxrt.make(self.card, name="edge")
            patch.setattr(xrt_device, "pyxrt", module, raising=False)
            # PYNQ unmaps a host copy that XRT unmaps as well; here only the fake does.
            unmap = SimpleNamespace(munmap=lambda pointer, length: 0)
            patch.setattr(pynq.buffer, "libc", unmap, raising=False)
            patch.setattr(pynq.buffer, "ctypes", fake_pyxrt.ctypes, raising=False)
        self.device = _Device()
        self.device.behind = self
        self.device.arch = arch
        patch.setattr(Device, "_active_device", self.device, raising=False)

    def _preload(self, bitstream: Any, parser: Any) -> None:
        bitstream.binfile_name = Path(bitstream.bitfile_name).stem + ".bin"
        self._bitstream = parser.bin_data
        self._metadata = Path(bitstream.bitfile_name).with_suffix(".hwh").read_bytes()

    def program(self) -> None:
        """Program the fabric, as the FPGA manager does when its firmware file is written."""
        assert (self._folder / "BS_FPGA_MAN").read_text() == "llama.bin"
        assert (self._folder / "BS_FPGA_MAN_FLAGS").read_text() == "0"  # full reconfiguration
        words = np.frombuffer(self._bitstream, "i4").byteswap().tobytes()
        self.card.load(hwh.write_bit(words), ".bit", self._metadata)
