"""A PYNQ device without a board: registers, memory and a kernel compiled for this CPU."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pynq.buffer import PynqBuffer
from pynq.pl_server.device import Device

from llama_pynq.boards import MIB, board_key, boards
from llama_pynq.device import bitfiles
from llama_pynq.emulation import container, cpu, hwh, memory, overlay_file, trust
from llama_pynq.emulation.container import Container
from llama_pynq.emulation.design import PROTOCOLS, Design, PlacedArgument
from llama_pynq.emulation.emulator import Emulator, ShortBuffer
from llama_pynq.emulation.memory import DeviceMemory, EmulatedMemory
from llama_pynq.errors import KernelError, OverlayMismatch
from llama_pynq.kernel import abi, config, registers
from llama_pynq.kernel.control import ControlUnit
from llama_pynq.kernel.limits import KernelLimits
from llama_pynq.utils.files import BOARD_MARKS, user_path
from llama_pynq.utils.html import facts_table
from llama_pynq.utils.validate import flag, whole_number

POLL_US = 20_000
"""Longest time that a read of CTRL waits for a running kernel, without the GIL; microseconds.

A driver's polling loop sleeps in this read, sees the end of a call at once, and leaves the CPU
to the kernel's threads.
"""

MAX_THREADS = 1024


HOST = "host"
"""Name of the emulated device that is no board: its limits are those of the host kernel."""

# Above 4 GiB, like the upper DDR of a Zynq UltraScale+: a driver that forgets the upper word of a
# pointer fails here as it would there. The memory is virtual, committed on first touch.
_HOST_POOL = 8192 * MIB, 0x8_0000_0000


def emulated_boards() -> dict[str, tuple[int, int]]:
    """Boards that can be emulated: size in bytes and physical address of their memory pool."""
    pools = {
        board.name: (board.memory.pool_bytes, board.memory.pool_base)
        for board in boards().values()
        if board.memory.pool_base is not None
    }
    return {HOST: _HOST_POOL, **pools}


@dataclass(frozen=True)
class RegisterAccess:
    """One access to the register file, as `EmulatedDevice.record_registers` lists it.

    Parameters
    ----------
    kind : str
        ``"read"`` or ``"write"``.
    name : str
        Register name. A pointer accessed in halves is ``name_1`` and ``name_2``, as on Zynq.
    value : int
    """

    kind: str
    name: str
    value: int


def _available_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_CONTROL_NAMES = {0x00: "CTRL", 0x04: "GIER", 0x08: "IP_IER", 0x0C: "IP_ISR"}


def _word_names(design: Design) -> dict[int, str]:
    names = dict(_CONTROL_NAMES)
    names.update({register.offset: register.name for register in hwh.data_registers(design)})
    return names


class _Hardware:
    """The fabric after a download: a register file and the kernel behind it."""

    def __init__(
        self, design: Design, protocol: str, emulator: Emulator, device_memory: DeviceMemory
    ) -> None:
        self.design = design
        self.base, self.range = design.base_address, design.address_range
        self.emulator = emulator
        self._memory = device_memory
        self._words: dict[int, int] = {}
        self._names = _word_names(design)
        self._call: list[tuple[PlacedArgument, memory.Allocation]] = []
        self._arguments, self._sizes = emulator.arguments, emulator.sizes
        self.request: memory.Allocation | None = None
        self._abort_word = 0  # in the request's buffer
        self._mappings: list[mmap.mmap] = []
        # Pointers are looked up again only after one was written or a buffer was freed. A dozen
        # look-ups at each AP_START would cost more than the rest of the call's overhead here.
        self._pointer_words = {
            arg.offset + 4 * half for arg in design.arguments if arg.is_pointer for half in (0, 1)
        }
        self._scalars = [
            (index, arg) for index, arg in enumerate(design.arguments) if not arg.is_pointer
        ]
        self._pointers_changed = True
        self._frees = 0
        self._control = ControlUnit(protocol, self._launch, lambda: emulator.wait(POLL_US))
        # Runs once: on the next download, or when the device is dropped, or at exit.
        self._retire = weakref.finalize(self, emulator.retire)

    @property
    def protocol(self) -> str:
        return self._control.protocol

    def read(self, offset: int) -> int:
        if offset == registers.CONTROL_OFFSET:
            self.emulator.waited = False
            return self._control.read()
        return self._words.get(offset, 0)

    def write(self, offset: int, value: int) -> None:
        if offset == registers.CONTROL_OFFSET:
            self._control.write(value)
        elif offset in self._names:  # anything else is reserved, and reads as zero
            self._words[offset] = value
            if offset in self._pointer_words:
                self._pointers_changed = True

    def accesses(self, kind: str, offset: int, words: Sequence[int]) -> Iterator[RegisterAccess]:
        """Name the registers of an access; a pointer accessed whole is one register, not two."""
        whole = {arg.offset: arg.name for arg in self.design.arguments if arg.size_bits == 64}
        index = 0
        while index < len(words):
            at = offset + 4 * index
            if at in whole and index + 1 < len(words):
                value = words[index] | words[index + 1] << 32
                yield RegisterAccess(kind, whole[at], value)
                index += 2
            else:
                name = self._names.get(at, f"reserved at {at:#x}")
                yield RegisterAccess(kind, name, words[index])
                index += 1

    def _value(self, arg: PlacedArgument) -> int:
        value = self._words.get(arg.offset, 0)
        if arg.size_bits == 64:
            value |= self._words.get(arg.offset + 4, 0) << 32
        return value

    def _launch(self) -> None:
        if self._pointers_changed or self._memory.frees != self._frees:
            self._look_up_pointers()
        for index, arg in self._scalars:
            self._arguments[index] = self._value(arg)
        try:
            self.emulator.start(self._mappings)
        except ShortBuffer as error:
            arg = self.design.arguments[error.index]
            raise KernelError(
                f"AP_START refused: the call needs {error.needed} bytes of argument {arg.name!r}, "
                f"and its buffer has {self._sizes[error.index]} from {self._value(arg):#x} on. "
                f"Allocate a buffer as large as the model's descriptor and the request ask for, or "
                f"correct these two."
            ) from None

    def _look_up_pointers(self) -> None:
        self._pointers_changed = True  # stays set if a look-up raises
        frees, call = self._memory.frees, []
        for index, arg in enumerate(self.design.arguments):
            if arg.is_pointer:
                address = self._value(arg)
                allocation = self._allocation(arg, address)
                inside = address - allocation.address
                self._arguments[index] = allocation.device_pointer + inside
                self._sizes[index] = allocation.n_bytes - inside
                if arg.name == "request":
                    self.request = allocation
                    self._abort_word = self._arguments[index] + 4 * abi.REQUEST_ABORT
                call.append((arg, allocation))
        self._call = call
        self._mappings = [allocation.device for _, allocation in call]
        self._frees, self._pointers_changed = frees, False

    def pass_on_abort(self) -> None:
        """Show the running kernel, which has its own copy of the request, the abort word in it."""
        to = self.emulator.abort_word
        if to is not None and self._control.running:
            ctypes.memmove(to, self._abort_word, 4)

    def retire(self) -> None:
        """Drop the kernel; buffers that it may still write move to other host memory.

        Otherwise a kernel that was only slow would write the end of an old call into the
        buffers of a new one.
        """
        if not self.emulator.wait(0):
            for arg, allocation in self._call:
                if not arg.ctype.startswith("const ") and not allocation.freed:
                    allocation.relocate()
        self._retire()

    def _allocation(self, arg: PlacedArgument, address: int) -> memory.Allocation:
        if address % (abi.WORD_BYTES if "Beat" in arg.ctype else 4):
            raise RuntimeError(
                f"AP_START refused: argument {arg.name!r} holds {address:#x}, which is no multiple "
                f"of its port's width. Write the device_address of a whole buffer."
            )
        allocation = self._memory.find(address)
        if allocation is None:
            raise RuntimeError(
                f"AP_START refused: argument {arg.name!r} holds {address:#x}, which lies in no "
                f"live buffer of the device. Write buffer.device_address to its register"
                f"{'s' if arg.size_bits == 64 else ''}, both words, and keep the buffer alive."
            )
        if arg.bank is not None and allocation.bank != arg.bank:
            raise RuntimeError(
                f"AP_START refused: argument {arg.name!r} is connected to memory bank "
                f"{arg.bank}, and the buffer at {address:#x} lies in {allocation.bank}. Allocate "
                f"it there: pynq.allocate(..., target=device.get_memory_by_name({arg.bank!r}))."
            )
        return allocation


class EmulatedDevice(Device):
    """A device that PYNQ drives like a board, emulated on the CPU of any computer.

    ``pynq.Overlay(path, device=device)``, ``pynq.allocate(..., target=device)``, register
    maps and syncs work on it unmodified. It loads emulated overlays only, and only trusted ones.

    Parameters
    ----------
    board : str
        Board whose limits to enforce: a key of `emulated_boards`, spelled as `boards.board_key`
        allows.
    protocol : str, optional
        ``"hs"`` or ``"chain"``, to override the overlay's: chain in an .xclbin, hs in a .bit.
    memory_bytes : int, optional
        Size of the device's memory; default the board's.
    threads : int, optional
        Host threads that the kernel computes with; default one for each CPU that this process
        may use.
    name : str, optional
        Default ``emulated-<board>``. Devices of one name share a lock: two overlays exclude each
        other, as on a board.
    trust : bool
        Load any emulated overlay. Its file contains native code, and loading it runs that code. By
        default only those of the package, of this user's builds, and those that
        ``llama-pynq overlay add --trust`` took are loaded (`emulation.trust`).

    Attributes
    ----------
    level : str or None
        Instruction-set level (``-march``) that the loaded kernel was compiled for; None before a
        download.

    Raises
    ------
    BoardNotFound
        If there is no such emulated board.
    ValueError
        If an argument is out of range.
    """

    _probe_priority_ = 1000  # PYNQ prefers the lowest number: this comes after all real devices

    @classmethod
    def _probe_(cls) -> list[EmulatedDevice]:
        # On a board, let PYNQ report "No devices found" if it does not find the board's own
        # device: running on the CPU instead would hide the fault.
        return [] if any(path.exists() for path in BOARD_MARKS) else [cls()]

    def __init__(
        self,
        board: str = "host",
        protocol: str | None = None,
        memory_bytes: int | None = None,
        threads: int | None = None,
        name: str | None = None,
        trust: bool = False,
    ) -> None:
        pools = emulated_boards()
        board = board_key(board, pools, "emulated board")
        if protocol is not None and f"ap_ctrl_{protocol}" not in PROTOCOLS:
            raise ValueError(f"protocol is 'hs', 'chain' or None, not {protocol!r}.")
        if memory_bytes is not None:
            memory_bytes = whole_number("memory_bytes", memory_bytes)
            if memory_bytes < memory.ALIGNMENT:
                raise ValueError(
                    f"memory_bytes is at least {memory.ALIGNMENT}, one page, not {memory_bytes}."
                )
        if threads is not None:
            threads = whole_number("threads", threads)
        if threads is not None and not 1 <= threads <= MAX_THREADS:
            raise ValueError(f"threads is 1 to {MAX_THREADS}, not {threads}.")
        super().__init__(f"emulated_{board}")
        self.board = board
        self.trust = flag("trust", trust)
        pool_bytes, self._pool_base = pools[board]
        self.name = name or f"emulated-{board}"
        self._named = name is not None
        self.level: str | None = None
        self.capabilities = {"REGISTER_RW": True, "CALLABLE": False, "EMULATED": True}
        self.memory = DeviceMemory(memory_bytes or pool_bytes, self.name)
        self.threads = threads or _available_cpus()
        self.contexts: dict[str, int] = {}
        self.mem_dict: dict[str, dict[str, Any]] = self._processor_memory()
        self._protocol = f"ap_ctrl_{protocol}" if protocol else None
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._hardware: _Hardware | None = None
        self._log: list[RegisterAccess] | None = None

    @property
    def read_waited(self) -> bool:
        """Whether the last read of CTRL waited, up to `POLL_US`: polling need not sleep."""
        return self._hardware is not None and self._hardware.emulator.waited

    @property
    def emulator(self) -> Emulator:
        """The kernel behind the registers, once an overlay was downloaded."""
        assert self._hardware is not None
        return self._hardware.emulator

    @property
    def design(self) -> Design:
        """The design of the downloaded overlay."""
        assert self._hardware is not None
        return self._hardware.design

    @property
    def limits(self) -> KernelLimits | None:
        """Limits of the emulated board's own kernel; None for `HOST`, whose kernel runs here."""
        if self.board == HOST:
            return None
        return KernelLimits.from_header(config.board_headers()[boards()[self.board].header])

    @property
    def lock_names(self) -> dict[str, str]:
        """Names that the device may take, each with the name of its lock.

        The user's name; else the board's, and one of this process. Devices of one name exclude
        each other; a computer can emulate many. Users of a computer do not share locks.
        """
        names = [self.name]
        if not self._named:
            names = [f"emulated-{self.board}", f"emulated-{self.board}-{os.getpid()}"]
        user = f"-{os.getuid()}" if hasattr(os, "getuid") else ""
        return {name: name + user for name in names}

    def __repr__(self) -> str:
        return f"EmulatedDevice({self.board!r})"

    def _repr_html_(self) -> str:
        limits = "the host kernel's own" if self.board == HOST else f"those of {self.board}"
        free, size = self.memory.free_bytes / MIB, self.memory.size_bytes / MIB
        return facts_table(
            "EmulatedDevice",
            {
                "name": self.name,
                "limits": limits,
                "memory": f"{free:,.0f} of {size:,.0f} MiB free",
                "threads": f"{self.threads} of this computer's CPU",
                "compiled for": None if self.level is None else f"-march={self.level}",
                "protocol": self._hardware.protocol if self._hardware else None,
            },
        )

    # ---- metadata and download -------------------------------------------------------

    def _processor_memory(self) -> dict[str, dict[str, Any]]:
        """The one memory of a design without banks, as PYNQ describes a Zynq's."""
        return {
            "PSDDR": {
                "raw_type": 1,
                "used": 1,
                "base_address": self._pool_base,
                "size": self.memory.size_bytes,
                "type": "DDR4",
                "streaming": False,
                "idx": 0,
                "tag": "PSDDR",
            }
        }

    def _read_overlay(self, path: Path) -> Container:
        """Read and check an overlay file, and refuse one whose code is not trusted."""
        contents, digest = overlay_file.read(path)
        if not self.trust:
            trust.check(digest, path)
        return contents

    def get_bitfile_metadata(self, bitfile_name: str, partial: bool = False) -> Any:
        """The overlay's metadata, read by PYNQ's own parsers.

        Raises
        ------
        OverlayMismatch
            If the file is damaged, was not built for emulation, or is not trusted.
        """
        if partial:
            raise OverlayMismatch("emulated devices have no partial reconfiguration.")
        path = Path(bitfile_name)
        self._read_overlay(path)
        if path.suffix == ".xclbin":
            parser = bitfiles.parse_xclbin(bitfiles.read_overlay(path), str(path))
            for bank in parser.mem_dict.values():
                bank["size"] = self.memory.size_bytes  # all banks share the board's memory
        else:
            parser = bitfiles.parse_hwh(path.with_suffix(".hwh"))
            parser.mem_dict = self._processor_memory()
            for clock in parser.clock_dict.values():
                # PYNQ would set an enabled clock through /dev/mem.
                clock.pop("enable", None)
        if self._protocol and registers.IP_NAME in parser.ip_dict:
            self._tell_protocol(parser.ip_dict[registers.IP_NAME])
        return parser

    def _tell_protocol(self, ip: dict[str, Any]) -> None:
        """Replace the block protocol in the metadata by the requested one."""
        ip["hw_control_protocol"] = self._protocol
        fields = ip["registers"]["CTRL"]["fields"]
        fields.pop("AP_CONTINUE", None)
        if self._protocol == "ap_ctrl_chain":
            fields["AP_CONTINUE"] = {
                "access": "read-write",
                "bit_offset": 4,
                "bit_width": 1,
                "description": "Acknowledge AP_DONE",
            }

    def set_bitfile_name(self, bitfile_name: str) -> None:
        super().set_bitfile_name(bitfile_name)
        # For an .xclbin, as on XRT, PYNQ 3.0.1 offers call() and start(); without the capability
        # "ERT" it implements them through registers.
        self.capabilities["CALLABLE"] = bitfile_name.endswith(".xclbin")

    def gen_cache(self, bitstream: Any, parser: Any = None) -> None:
        """Do nothing: PYNQ caches metadata in a board's folder, and an emulated board has none."""

    def download(self, bitstream: Any, parser: Any = None) -> None:
        """Load the overlay's kernel and reset the registers; called by ``Overlay``.

        A previous kernel that still runs is abandoned, never waited for: a download gets rid of
        a hung kernel. Buffers keep their contents.

        Raises
        ------
        OverlayMismatch
            If the file is damaged or not trusted, or needs CPU features this machine lacks.
        """
        path = Path(bitstream.bitfile_name)
        contents = self._read_overlay(path)
        payload = cpu.choose(contents.payloads, str(path))
        library = container.extract(payload)
        with self._lock:
            old, self._hardware = self._hardware, None
            if old is not None and self._process == os.getpid():
                old.retire()
            emulator = Emulator(library, self.threads)
            protocol = self._protocol or contents.design.protocol
            self._hardware = _Hardware(contents.design, protocol, emulator, self.memory)
            self.contexts = {}
            self.level = payload.level
            self._process = os.getpid()
        super().post_download(bitstream, parser or self.get_bitfile_metadata(str(path)))

    def level_of(self, path: Path) -> str:
        """Instruction-set level (``-march``) of the kernel that a download would load.

        Parameters
        ----------
        path : Path
            An emulated overlay.

        Raises
        ------
        OverlayMismatch
            If the file is damaged or not trusted, or needs CPU features this machine lacks.
        """
        path = user_path(path)
        return cpu.choose(self._read_overlay(path).payloads, str(path)).level

    def open_context(self, description: dict[str, Any], shared: bool = True) -> int:
        """XRT's handle for a compute unit; PYNQ asks for one when it makes a driver."""
        return self.contexts.setdefault(description["cu_name"], description["cu_index"])

    def close_context(self, cu_name: str) -> None:
        """Close a context that `open_context` opened."""
        if cu_name not in self.contexts:
            raise RuntimeError(f"CU context {cu_name} is not open.")
        del self.contexts[cu_name]

    def free_bitstream(self) -> None:
        """Called by ``overlay.free()`` of PYNQ 3.0.1; the kernel stays loaded, as on a card."""
        self.contexts = {}

    def close(self) -> None:
        """Do nothing; PYNQ's own version warns."""

    # ---- memory ----------------------------------------------------------------------

    def get_memory(self, description: dict[str, Any]) -> EmulatedMemory:
        """The memory bank that an entry of ``mem_dict`` describes."""
        return EmulatedMemory(self, description)

    def get_memory_by_idx(self, idx: int) -> EmulatedMemory:
        """The memory bank with this index in MEM_TOPOLOGY."""
        for bank in self.mem_dict.values():
            if bank["idx"] == idx:
                return self.get_memory(bank)
        raise RuntimeError(f"{self.name} has no memory bank {idx}.")

    def get_memory_by_name(self, name: str) -> EmulatedMemory:
        """The memory bank with this tag, such as ``"DDR[0]"``."""
        for bank in self.mem_dict.values():
            if bank["tag"] == name:
                return self.get_memory(bank)
        raise RuntimeError(
            f"{self.name} has no memory bank {name!r}, "
            f"only {', '.join(bank['tag'] for bank in self.mem_dict.values())}."
        )

    @property
    def protocol(self) -> str | None:
        """The loaded kernel's block protocol, such as ``"ap_ctrl_hs"``."""
        return self._hardware.protocol if self._hardware else None

    @property
    def default_memory(self) -> EmulatedMemory:
        """The bank that ``pynq.allocate(..., target=device)`` uses: the first one.

        XRT refuses a default if there are several banks. Here the default is the first bank,
        which serves all ports but those of the weights and the KV cache.
        """
        return self.get_memory_by_idx(0)

    def flush(self, bo: memory.Allocation, offset: int, ptr: int, size: int) -> None:
        """Copy part of a buffer to the device; PYNQ's ``sync_to_device`` calls it."""
        memory.copy_to_device(bo, ptr, size)
        hardware = self._hardware
        if hardware is not None and bo is hardware.request:
            hardware.pass_on_abort()

    def invalidate(self, bo: memory.Allocation, offset: int, ptr: int, size: int) -> None:
        """Copy part of a buffer from the device; PYNQ's ``sync_from_device`` calls it."""
        memory.copy_from_device(bo, ptr, size)

    def release_host_pages(self, buffer: PynqBuffer) -> int:
        """Release the host memory of a buffer whose contents are on the device.

        The host's copy is undefined until the next ``sync_from_device``; the buffer stays
        usable. Does nothing where the system offers no such call (Windows).

        Parameters
        ----------
        buffer : PynqBuffer
            A buffer of this device, or a contiguous slice of one.

        Returns
        -------
        int
            Bytes released.
        """
        return memory.release_host_pages(buffer)

    # ---- registers -------------------------------------------------------------------

    def _locate(self, address: int, length: int) -> tuple[_Hardware, int]:
        hardware = self._hardware
        if hardware is None:
            raise RuntimeError(
                f"{self.name} holds no overlay yet: its registers appear when one is "
                f"downloaded, pynq.Overlay('llama.xclbin', device=device)."
            )
        if self._process != os.getpid():
            raise RuntimeError(
                f"{self.name} was opened by process {self._process}, and its kernel did not "
                f"survive fork(). Download the overlay again in this process."
            )
        offset = address - hardware.base
        if not 0 <= offset <= hardware.range - length:
            raise RuntimeError(f"there is no register at address {address:#x} of {self.name}.")
        if (offset | length) & 3:
            raise RuntimeError(
                f"registers are 32-bit words: cannot access {length} bytes at {address:#x}."
            )
        return hardware, offset

    def read_registers(self, address: int, length: int) -> bytes:
        """Read `length` bytes of registers; `pynq.MMIO` calls it.

        Reading CTRL while the kernel runs waits up to `POLL_US` for it to finish.
        """
        with self._lock:
            hardware, offset = self._locate(address, length)
            if length == 4 and self._log is None:
                return hardware.read(offset).to_bytes(4, "little")
            words = [hardware.read(at) for at in range(offset, offset + length, 4)]
            if self._log is not None:
                self._log.extend(hardware.accesses("read", offset, words))
        return b"".join(word.to_bytes(4, "little") for word in words)

    def write_registers(self, address: int, data: bytes) -> None:
        """Write whole words to registers; `pynq.MMIO` calls it.

        Raises
        ------
        RuntimeError
            If there is no such register; or, on AP_START, if a pointer argument lies in no
            live buffer, in a bank the argument is not connected to, or at an address that its port
            cannot start at; a KernelError if the call would leave a buffer.
        """
        data = bytes(data)
        with self._lock:
            hardware, offset = self._locate(address, len(data))
            if len(data) == 4 and self._log is None:
                hardware.write(offset, int.from_bytes(data, "little"))
                return
            words = [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)]
            if self._log is not None:
                self._log.extend(hardware.accesses("write", offset, words))
            for index, word in enumerate(words):
                hardware.write(offset + 4 * index, word)

    @contextlib.contextmanager
    def record_registers(self) -> Iterator[list[RegisterAccess]]:
        """List every register access made in the ``with`` block, by name and in order.

        Yields
        ------
        list of RegisterAccess
            Grows while the block runs.

        Examples
        --------
        >>> with device.record_registers() as log:
        ...     overlay.llama.register_map.sequence = 7
        >>> log
        [RegisterAccess(kind='write', name='sequence', value=7)]
        """
        log: list[RegisterAccess] = []
        previous, self._log = self._log, log
        try:
            yield log
        finally:
            self._log = previous
