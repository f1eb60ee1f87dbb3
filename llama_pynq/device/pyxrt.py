"""Alveo cards on PYNQ 3.1 and newer, which has no support for them: through XRT's own `pyxrt`.

`PyxrtDevice` is a `pynq.Device` over the Python module that comes with XRT. PYNQ 3.0.1 drives cards
itself (up to XRT 2.16); where it does, this class finds none, so that no card is listed twice.

``pyxrt`` starts kernels and gives no access to their registers (its sources up to XRT 2.23, in
Xilinx/XRT ``src/python/pybind11/src/pyxrt.cpp``). So this module keeps a copy of the register file
that PYNQ's drivers write, and AP_START passes the arguments to XRT as one run. XRT writes them to
the kernel, starts it, and acknowledges its end, AP_CONTINUE included.

XRT 2.12 (2021.2) and newer have the parts of ``pyxrt`` that are used here, with two exceptions that
are used where they exist: ``enumerate_devices``, since 2.17 (2024.1), and ``hw_context`` with a
mode, since 2.23 (2026.1), which deprecates ``load_xclbin``.

Not yet run on a card.
"""

from __future__ import annotations

import importlib
import math
import weakref
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike
from pynq.buffer import PynqBuffer
from pynq.pl_server.device import Device

from llama_pynq.device import bitfiles
from llama_pynq.device.memory_bank import MemoryBank
from llama_pynq.errors import DeviceBusy, DeviceMemoryError, KernelError, KernelTimeout
from llama_pynq.kernel.control import ControlUnit
from llama_pynq.kernel.registers import CONTROL_OFFSET

_MAX_CARDS = 64
_CARD_NAMES = "xilinx_"  # prefix of every Alveo platform's name; pyxrt lists AMD's NPUs, too
_FAILED = ("ERROR", "ABORT", "TIMEOUT", "NORESPONSE", "SKERROR", "SKCRASHED")

# Runs that never ended, with their XRT buffers. Never freed: the kernel may still write them.
_abandoned: list[Any] = []


def _pyxrt() -> ModuleType | None:
    """Import XRT's module; None if it is missing, or if PYNQ drives cards itself."""
    try:
        from pynq._3rdparty import xrt  # PYNQ 3.0.1's own binding

        if xrt.XRT_SUPPORTED:
            return None
    except ImportError:
        pass
    try:
        return importlib.import_module("pyxrt")
    except ImportError:
        return None


class _Buffer:
    """An XRT buffer object; `bo` is None once it was given back."""

    def __init__(self, bo: Any) -> None:
        self.bo = bo


class PyxrtMemory(MemoryBank):
    """A memory bank of a card, such as ``overlay.HBM0``; a target of `pynq.allocate`."""

    def allocate(
        self, shape: int | tuple[int, ...], dtype: DTypeLike, cacheable: int = 0
    ) -> PynqBuffer:
        """Allocate a buffer in this bank; `pynq.allocate` calls it.

        Parameters
        ----------
        shape : int or tuple of int
        dtype : data type
        cacheable : int
            Ignored; part of PYNQ's interface. A card's memory is separate from the host's.

        Raises
        ------
        DeviceMemoryError
            If XRT has no room in the bank.
        """
        dtype = np.dtype(dtype)
        elements = math.prod(shape) if isinstance(shape, tuple | list) else int(shape)
        return self.device._allocate(self, shape, dtype, elements * dtype.itemsize)

    def return_pointer(self, holder: _Buffer) -> None:
        """Called by PYNQ when a buffer is freed or collected."""
        self.device._forget(holder)


class _ComputeUnit:
    """A copy of a kernel's register file, and the XRT run behind it."""

    def __init__(self, device: PyxrtDevice, description: dict[str, Any], kernel: Any) -> None:
        self._device = weakref.proxy(device)
        self._kernel = kernel
        self._name = description["cu_name"]
        self._arguments = sorted(
            (r for r in description["registers"].values() if r.get("id") is not None),
            key=lambda r: r["id"],
        )
        self._words: dict[int, int] = {}
        self._run: Any = None
        self._given: dict[int, Any] = {}
        self._running = False
        self._control = ControlUnit(description["hw_control_protocol"], self._launch, self._ended)

    def read(self, offset: int) -> int:
        if offset == CONTROL_OFFSET:
            return self._control.read()
        return self._words.get(offset, 0)

    def write(self, offset: int, value: int) -> None:
        if offset == CONTROL_OFFSET:
            self._control.write(value)
        else:
            self._words[offset] = value

    def _launch(self) -> None:
        if self._run is None:
            self._run, self._given = self._device.pyxrt.run(self._kernel), {}
        for register in self._arguments:
            index, offset = register["id"], register["address_offset"]
            value: Any = self._words.get(offset, 0)
            if register["size"] == 64:
                value = self._device._buffer_at(
                    value | self._words.get(offset + 4, 0) << 32, self._name, index
                )
            elif value >= 1 << 31:
                value -= 1 << 32  # pyxrt takes a C int
            if self._given.get(index) != value:
                # XRT keeps arguments from run to run: set only those that changed.
                self._run.set_arg(index, value.bo if isinstance(value, _Buffer) else value)
                self._given[index] = value
        self._running = True
        self._run.start()

    def _ended(self) -> bool:
        if not self._running:
            return True  # it failed, and KernelError was raised
        # state() and not wait(): pyxrt waits with the GIL held.
        state, states = self._run.state(), self._device.pyxrt.ert_cmd_state
        if state == states.ERT_CMD_STATE_COMPLETED:
            self._run.wait()  # returns at once, and lets XRT start the run again
            self._running = False
            return True
        failed = {getattr(states, f"ERT_CMD_STATE_{name}"): name for name in _FAILED}
        if state not in failed:
            return False
        self._running, self._run, self._given = False, None, {}
        raise KernelError(
            f"XRT ended a call of {self._name} on {self._device.name} with state {failed[state]}. "
            "See dmesg; xbutil reset brings a card back"
        )

    def let_go(self, holder: _Buffer) -> None:
        """Drop the run that holds a buffer, so that XRT frees it now."""
        if any(given is holder for given in self._given.values()):
            self._drop_run()

    def _drop_run(self) -> None:
        if self._running:
            held = [v.bo for v in self._given.values() if isinstance(v, _Buffer)]
            _abandoned.append((self._run, held))
            self._device.stuck.append(self._run)
            self._running = False
        self._run, self._given = None, {}

    def close(self) -> None:
        """Release the kernel and its run; abandon a run that has not ended."""
        self._drop_run()
        self._kernel = None  # now, not when Python collects the cycle through _control


class PyxrtDevice(Device):
    """An Alveo card, through ``pyxrt``.

    Parameters
    ----------
    index : int
        XRT's number of the card.
    """

    _probe_priority_ = 300  # after PYNQ's own devices, before the emulated one

    @classmethod
    def _probe_(cls) -> list[PyxrtDevice]:
        pyxrt = _pyxrt()
        if pyxrt is None or Path("/proc/device-tree/chosen/pynq_board").exists():
            return []  # on a Zynq, PYNQ 4 uses pyxrt itself
        count = pyxrt.enumerate_devices() if hasattr(pyxrt, "enumerate_devices") else _MAX_CARDS
        devices = []
        for index in range(count):
            try:
                device = cls(index)
            except RuntimeError:
                if hasattr(pyxrt, "enumerate_devices"):
                    continue  # a card that is not ready; those after it may be
                break
            if device.name.startswith(_CARD_NAMES):
                devices.append(device)
        return devices

    def __init__(self, index: int = 0) -> None:
        pyxrt = _pyxrt()
        if pyxrt is None:
            raise RuntimeError(
                "pyxrt cannot be imported, or PYNQ drives cards itself: source XRT's setup.sh (its "
                "python folder must be in PYTHONPATH, and built for this version of Python)"
            )
        # Name and tag as in PYNQ 3.0.1: a card has one lock, whichever of the two opens it.
        super().__init__(f"xrt{index}")
        self.pyxrt: Any = pyxrt
        self.handle = pyxrt.device(index)
        self.name: str = self.handle.get_info(pyxrt.xrt_info_device.name)
        self.bdf: str = self.handle.get_info(pyxrt.xrt_info_device.bdf)
        self.capabilities = {"REGISTER_RW": True, "CALLABLE": False, "PYXRT": True}
        self.mem_dict: dict[str, dict[str, Any]] = {}
        self._units: dict[int, tuple[int, _ComputeUnit]] = {}
        self._live: dict[int, _Buffer] = {}
        self.stuck: list[Any] = []  # runs that had not ended when their kernel was released

    def __repr__(self) -> str:
        return f"PyxrtDevice({self.tag[3:]}, {self.name!r} at {self.bdf})"

    # ---- metadata and download -------------------------------------------------------

    def get_bitfile_metadata(self, bitfile_name: str, partial: bool = False) -> Any:
        """The overlay's metadata, read by PYNQ's own parser.

        Raises
        ------
        OverlayMismatch
            If the file is damaged.
        """
        path = Path(bitfile_name)
        return bitfiles.parse_xclbin(bitfiles.read_overlay(path), str(path))

    def gen_cache(self, bitstream: Any, parser: Any = None) -> None:
        """Do nothing: PYNQ caches a board's metadata, but a card's is in the xclbin itself."""

    def download(self, bitstream: Any, parser: Any = None) -> None:
        """Load the xclbin and open its kernels for this process exclusively.

        XRT does not reprogram a card that already holds the same xclbin.

        Raises
        ------
        DeviceBusy
            If XRT refuses, as it does while another process uses the card.
        KernelTimeout
            If an earlier call never ended: its run still holds the kernel.
        """
        parser = parser or self.get_bitfile_metadata(bitstream.bitfile_name)
        self.free_bitstream()
        ended = self.pyxrt.ert_cmd_state.ERT_CMD_STATE_COMPLETED
        self.stuck = [run for run in self.stuck if run.state() != ended]
        if self.stuck:
            raise KernelTimeout(
                f"{self.name} at {self.bdf}: a call never ended, and XRT keeps the kernel for it. "
                f"Reset the card (xbutil reset --device {self.bdf}, which ends every program's use "
                "of it), and restart Python"
            )
        ips = list(parser.ip_dict.values())
        names = ["{0}:{{{2}}}".format(*ip["cu_name"].partition(":")) for ip in ips]
        try:
            kernels = self._load(bitstream.bitfile_name, names)
        except RuntimeError as error:
            raise DeviceBusy(
                f"XRT does not load {bitstream.bitfile_name} on {self.name} at {self.bdf}: "
                f"{error}. Does another program use the card, are buffers of another overlay still "
                "open in this one, or was the file built for another platform? xbutil examine tells"
            ) from error
        for ip, kernel in zip(ips, kernels, strict=True):
            self._units[ip["phys_addr"]] = ip["addr_range"], _ComputeUnit(self, ip, kernel)
        super().post_download(bitstream, parser)

    def _load(self, path: str, names: list[str]) -> list[Any]:
        """Load an xclbin, and open its compute units."""
        pyxrt = self.pyxrt
        modes = getattr(getattr(pyxrt, "hw_context", None), "access_mode", None)
        if modes is None:
            uuid, mode = self.handle.load_xclbin(path), pyxrt.kernel.cu_access_mode.exclusive
            return [pyxrt.kernel(self.handle, uuid, name, mode) for name in names]
        context = pyxrt.hw_context(self.handle, pyxrt.xclbin(path), modes.exclusive)
        return [pyxrt.kernel(context, name) for name in names]

    def free_bitstream(self) -> None:
        """Release the kernels; called by ``overlay.free()`` of PYNQ 3.0.1."""
        for _, unit in self._units.values():
            unit.close()
        self._units = {}

    def open_context(self, description: dict[str, Any], shared: bool = True) -> int:
        """Index of the compute unit, which `download` has opened."""
        return int(description["cu_index"])

    def close(self) -> None:
        """Release the kernels; PYNQ's own version warns."""
        self.free_bitstream()

    # ---- memory ----------------------------------------------------------------------

    def get_memory(self, description: dict[str, Any]) -> PyxrtMemory:
        """The memory bank that an entry of ``mem_dict`` describes."""
        return PyxrtMemory(self, description)

    def get_memory_by_idx(self, idx: int) -> PyxrtMemory:
        """The memory bank with this index in MEM_TOPOLOGY."""
        return self._memory("idx", idx)

    def get_memory_by_name(self, name: str) -> PyxrtMemory:
        """The memory bank with this tag, such as ``"HBM[0]"``."""
        return self._memory("tag", name)

    def _memory(self, key: str, value: int | str) -> PyxrtMemory:
        for bank in self.mem_dict.values():
            if bank[key] == value:
                return self.get_memory(bank)
        tags = ", ".join(bank["tag"] for bank in self.mem_dict.values())
        raise RuntimeError(f"{self.name} has no memory bank {value!r}, only {tags}.")

    @property
    def default_memory(self) -> PyxrtMemory:
        """The bank in use; an error if the overlay uses several, as XRT cannot choose."""
        used = [b for b in self.mem_dict.values() if b["used"] and not b["streaming"]]
        if len(used) != 1:
            raise RuntimeError(
                f"the overlay on {self.name} uses {len(used)} memory banks: say which, "
                "pynq.allocate(..., target=overlay.HBM0)"
            )
        return self.get_memory(used[0])

    def _allocate(
        self, memory: PyxrtMemory, shape: int | tuple[int, ...], dtype: np.dtype, n_bytes: int
    ) -> PynqBuffer:
        try:
            bo = self.pyxrt.bo(self.handle, n_bytes, self.pyxrt.bo.flags.normal, memory.idx)
        except RuntimeError as error:
            raise DeviceMemoryError(
                f"{self.name}: XRT has no room for {n_bytes / 2**20:.1f} MiB in bank {memory.tag}, "
                f"of {memory.size / 2**20:.0f} MiB ({error}). Use a smaller model or fewer slots"
            ) from error
        holder = _Buffer(bo)
        buffer = PynqBuffer(
            shape,
            dtype,
            buffer=bo.map(),
            bo=holder,
            device=self,
            device_address=bo.address(),
            coherent=False,
        )
        # These three attributes make PYNQ call return_pointer(), not XRT or munmap().
        buffer.memory = memory
        buffer.pointer = holder
        buffer.return_to = memory
        # Otherwise PYNQ would munmap() on the second free: freebuffer(), then garbage collection.
        buffer.freed = True
        self._live[int(buffer.device_address)] = holder
        return buffer

    def _forget(self, holder: _Buffer) -> None:
        if holder.bo is None:
            return
        for _, unit in self._units.values():
            unit.let_go(holder)
        self._live = {at: other for at, other in self._live.items() if other is not holder}
        holder.bo = None  # XRT frees it: nobody else holds it

    def _buffer_at(self, address: int, cu_name: str, index: int) -> _Buffer:
        holder = self._live.get(address)
        if holder is None:
            raise RuntimeError(
                f"AP_START refused: argument {index} of {cu_name} holds {address:#x}, where no "
                "live buffer begins. Write buffer.device_address to its register, both words"
            )
        return holder

    def flush(self, bo: _Buffer, offset: int, ptr: int, size: int) -> None:
        """Copy part of a buffer to the card; PYNQ's ``sync_to_device`` calls it."""
        self._sync(bo, self.pyxrt.xclBOSyncDirection.XCL_BO_SYNC_BO_TO_DEVICE, offset, size)

    def invalidate(self, bo: _Buffer, offset: int, ptr: int, size: int) -> None:
        """Copy part of a buffer from the card; PYNQ's ``sync_from_device`` calls it."""
        self._sync(bo, self.pyxrt.xclBOSyncDirection.XCL_BO_SYNC_BO_FROM_DEVICE, offset, size)

    @staticmethod
    def _sync(holder: _Buffer, direction: Any, offset: int, size: int) -> None:
        if holder.bo is None:
            raise RuntimeError("this buffer was freed: a sync needs a live one")
        holder.bo.sync(direction, size, offset)

    # ---- registers -------------------------------------------------------------------

    def _locate(self, address: int) -> tuple[_ComputeUnit, int]:
        for base, (length, unit) in self._units.items():
            if base <= address < base + length:
                return unit, address - base
        raise RuntimeError(
            f"there is no register at address {address:#x} of {self.name}: is an overlay on it?"
        )

    def read_registers(self, address: int, length: int) -> bytes:
        """Read `length` bytes of a kernel's register file; `pynq.MMIO` calls it."""
        unit, offset = self._locate(address)
        words = (unit.read(at) for at in range(offset, offset + length, 4))
        return b"".join(word.to_bytes(4, "little") for word in words)

    def write_registers(self, address: int, data: bytes) -> None:
        """Write words to a kernel's register file; AP_START starts a run of XRT's."""
        unit, offset = self._locate(address)
        data = bytes(data)
        for at in range(0, len(data), 4):
            unit.write(offset + at, int.from_bytes(data[at : at + 4], "little"))
