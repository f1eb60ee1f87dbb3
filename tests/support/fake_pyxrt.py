"""A fake of XRT's Python module `pyxrt`, backed by one `FakeCard`.

Interface as in XRT's ``src/python/pybind11/src/pyxrt.cpp``: the classes, functions and overloads
below and no others, with C++'s strict arguments (an int is a C int). Limited to the part that
cards use; `make` leaves out names that a version lacks.
"""

from __future__ import annotations

import ctypes
import enum
import warnings
import weakref
from pathlib import Path
from types import ModuleType
from typing import Any

from support.fake_card import FakeCard
from support.fake_xrt import NAME, map_pages

BDF = "0000:03:00.1"
_libc = ctypes.CDLL("libc.so.6")
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


class xclBOSyncDirection(enum.Enum):
    XCL_BO_SYNC_BO_TO_DEVICE = 0
    XCL_BO_SYNC_BO_FROM_DEVICE = 1
    XCL_BO_SYNC_BO_GMIO_TO_AIE = 2
    XCL_BO_SYNC_BO_AIE_TO_GMIO = 3


class ert_cmd_state(enum.Enum):
    ERT_CMD_STATE_NEW = 1
    ERT_CMD_STATE_QUEUED = 2
    ERT_CMD_STATE_COMPLETED = 4
    ERT_CMD_STATE_ERROR = 5
    ERT_CMD_STATE_ABORT = 6
    ERT_CMD_STATE_SUBMITTED = 7
    ERT_CMD_STATE_TIMEOUT = 8
    ERT_CMD_STATE_NORESPONSE = 9
    ERT_CMD_STATE_SKERROR = 10
    ERT_CMD_STATE_SKCRASHED = 11


class _Running:
    """ERT_CMD_STATE_RUNNING: xrt::run.state() returns it, but pyxrt's enumeration lacks it."""


class xrt_info_device(enum.Enum):
    bdf = 0
    interface_uuid = 1
    kdma = 2
    max_clock_frequency_mhz = 3
    m2m = 4
    name = 5
    nodma = 6
    offline = 7
    electrical = 8
    thermal = 9
    mechanical = 10
    memory = 11
    platform = 12
    pcie_info = 13
    host = 14
    dynamic_regions = 15
    vmr = 16


class _Mode(enum.Enum):
    exclusive = 0
    shared = 1
    none = 2


class _Flags(enum.Enum):
    normal = 0
    cacheable = 1
    device_only = 2
    host_only = 3
    p2p = 4
    svm = 5


def _unsigned(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise TypeError("incompatible function arguments")
    return value


def make(
    card: FakeCard,
    version: tuple[int, int] = (2, 18),
    names: tuple[str, ...] = (),
    name: str = NAME.decode(),
) -> Any:
    """Make the module of an XRT `version`, with one card followed by devices of other `names`.

    The module's ``calls`` log what XRT sees and the card does not.
    """
    module = ModuleType("pyxrt")
    module.calls = calls = []  # type: ignore[attr-defined]
    all_names = (name, *names)
    users: list[Any] = []  # the holder of the card's compute unit, exclusive

    class uuid:
        def __init__(self, text: str) -> None:
            self._text = text

        def to_string(self) -> str:
            return self._text

    class xclbin:
        def __init__(self, filename: str) -> None:
            self._data = Path(filename).read_bytes()

        def get_uuid(self) -> uuid:
            return uuid("of the file")

    class device:
        def __init__(self, index: int = 0) -> None:
            if _unsigned(index) >= len(all_names):
                raise RuntimeError(f"No such device with index '{index}'")
            self._name = all_names[index]

        def load_xclbin(self, file: Any) -> uuid:
            if version >= (2, 23):
                warnings.warn("pyxrt.device.load_xclbin() is deprecated", DeprecationWarning, 2)
            file = xclbin(file) if isinstance(file, str) else file
            if users:
                raise RuntimeError("failed to load xclbin: Device or resource busy")
            card.load(file._data, ".xclbin")
            return file.get_uuid()

        def get_info(self, key: xrt_info_device) -> str:
            assert isinstance(key, xrt_info_device)
            return {"name": self._name, "bdf": BDF}.get(key.name, "{}")

    class hw_context:
        def __init__(self, where: device, file: Any, mode: Any = None) -> None:
            if not isinstance(where, device) or (mode is None) != (version < (2, 23)):
                raise TypeError("incompatible constructor arguments")
            if users:
                raise RuntimeError("failed to create hardware context: Device or resource busy")
            card.load(file._data, ".xclbin")
            self._mode = mode

    class kernel:
        cu_access_mode = _Mode

        def __init__(self, where: Any, *rest: Any) -> None:
            if isinstance(where, hw_context):
                (name,), mode = rest, where._mode
            else:
                of, name, mode = rest
                assert isinstance(of, uuid) and version < (2, 23)
            assert name == "llama:{llama}" and mode.name == "exclusive"
            if users:
                raise RuntimeError("failed to open compute unit: Device or resource busy")
            calls.append(("open", name, mode.name))
            users.append(weakref.ref(self, users.remove))

        def group_id(self, index: int) -> int:
            contents = card.device.design
            return card.banks.index(contents.arguments[index].bank)

    class bo:
        flags = _Flags

        def __init__(self, where: Any, size: int, flags: Any, group: int) -> None:
            assert isinstance(where, device) and isinstance(flags, _Flags)
            try:
                self._allocation = card.allocate(_unsigned(size), _unsigned(group))
            except MemoryError as error:
                raise RuntimeError("failed to allocate bo: Cannot allocate memory") from error
            self._host = map_pages(size)
            self._end = weakref.finalize(self, _free, card, self._allocation, self._host)
            self._end.atexit = False

        def sync(self, direction: Any, *part: int) -> None:
            size, offset = part or (self.size(), 0)
            to = direction is xclBOSyncDirection.XCL_BO_SYNC_BO_TO_DEVICE
            assert to or direction is xclBOSyncDirection.XCL_BO_SYNC_BO_FROM_DEVICE
            card.sync(self._allocation, to, self._host, _unsigned(offset), _unsigned(size))

        def map(self) -> memoryview:
            return memoryview((ctypes.c_char * self.size()).from_address(self._host)).cast("B")

        def size(self) -> int:
            return self._allocation.n_bytes

        def address(self) -> int:
            return self._allocation.address

    class run:
        """A run: XRT writes the arguments, starts the kernel and acknowledges its end."""

        def __init__(self, of: kernel) -> None:
            self._kernel, self._state = of, ert_cmd_state.ERT_CMD_STATE_NEW
            self._arguments: dict[int, Any] = {}

        def set_arg(self, index: int, item: Any) -> None:
            if not isinstance(item, bo) and not (type(item) is int and -(2**31) <= item < 2**31):
                raise TypeError("set_arg(): incompatible function arguments")
            argument = card.device.design.arguments[index]
            assert isinstance(item, bo) == argument.is_pointer
            if isinstance(item, bo):
                assert item._allocation.bank == argument.bank, "XRT would copy it elsewhere"
                calls.append(("set_arg", argument.name, item._allocation.n_bytes))
            else:
                calls.append(("set_arg", argument.name, item & 0xFFFF_FFFF))
            self._arguments[index] = item

        def start(self) -> None:
            assert len(self._arguments) == len(card.device.design.arguments)
            if self._state is _Running:
                raise RuntimeError("bad command state, can't launch")
            for index, item in self._arguments.items():
                at = card.base + card.device.design.arguments[index].offset
                if isinstance(item, bo):
                    card.write(at, item.address() & 0xFFFF_FFFF)
                    card.write(at + 4, item.address() >> 32)
                else:
                    card.write(at, item & 0xFFFF_FFFF)
            self._state = _Running
            card.write(card.base, 1)

        def state(self) -> Any:
            if self._state is _Running and card.read(card.base) & 2:
                card.write(card.base, 0x10)
                self._state = ert_cmd_state.ERT_CMD_STATE_COMPLETED
            return self._state

        def wait(self, timeout_ms: int = 0) -> Any:
            while self.state() is _Running:
                assert not timeout_ms
            calls.append(("wait",))
            return self._state

    for thing in (xclBOSyncDirection, ert_cmd_state, xrt_info_device, uuid, xclbin, device, kernel,
                  bo, run):  # fmt: skip
        setattr(module, thing.__name__, thing)
    if version >= (2, 16):
        module.hw_context = hw_context  # type: ignore[attr-defined]
    if version >= (2, 17):
        module.enumerate_devices = lambda: len(all_names)  # type: ignore[attr-defined]
    if version >= (2, 23):
        hw_context.access_mode = _Mode  # type: ignore[attr-defined]
    return module


def _free(card: FakeCard, allocation: Any, host: int) -> None:
    card.free(allocation)
    _libc.munmap(host, allocation.n_bytes)
