"""A fake of libxrt_core.so for PYNQ 3.0.1's binding, backed by one `FakeCard`.

Has only the functions that PYNQ's XrtDevice and EmbeddedDevice call, and checks handles and
contexts as XRT does.
"""

from __future__ import annotations

import ctypes
from typing import Any

from support.fake_card import FakeCard

NAME = b"xilinx_u50_gen3x16_xdma_base_5"
HANDLE = 0xCA4D
CACHEABLE = 1 << 24
_PAGE = 4096
_libc = ctypes.CDLL("libc.so.6", use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]


def map_pages(n_bytes: int) -> int:
    """Map anonymous memory; the user unmaps it, as with XRT."""
    length = -(-n_bytes // _PAGE) * _PAGE
    address = _libc.mmap(None, length, 3, 0x22, -1, 0)
    assert address not in (None, ctypes.c_void_p(-1).value)
    return int(address)


class _Function:
    """A C function whose types ctypes users set before the call."""

    restype: Any = None
    argtypes: Any = None
    argtype: Any = None

    def __init__(self, body: Any) -> None:
        self.body = body

    def __call__(self, *arguments: Any) -> Any:
        return self.body(*arguments)


def _value(argument: Any) -> Any:
    return getattr(argument, "value", argument)


class FakeXrtLibrary:
    """The library, backed by `card`; ``contexts`` holds the open contexts of its compute unit."""

    def __init__(self, card: FakeCard, name: bytes = NAME) -> None:
        self.card = card
        self._device_name = name
        self.contexts: list[tuple[int, bool]] = []
        self.bos: dict[int, list[Any]] = {}
        self._next = 1

    def __getattr__(self, name: str) -> Any:
        body = type(self).__dict__.get(f"_{name}")
        if body is None:
            raise AttributeError(f"undefined symbol: {name}")
        return _Function(body.__get__(self))

    def _xclProbe(self) -> int:
        return 1

    def _xclOpen(self, index: int, log: Any, level: int) -> int:
        return HANDLE

    def _xclGetDeviceInfo2(self, handle: int, info: Any) -> int:
        info.mName, info.mPciSlot = self._device_name, 0x0300
        return 0

    def _xclLockDevice(self, handle: int) -> int:
        return 0

    _xclUnlockDevice = _xclLockDevice

    def _xclLoadXclBin(self, handle: int, data: bytes) -> int:
        if self.contexts:
            return -16  # a context locks the card to its xclbin
        self.card.load(bytes(data), ".xclbin")
        return 0

    def _xclIPName2Index(self, handle: int, name: Any) -> int:
        assert _value(name) in (b"llama:llama", "llama:llama")
        return 0

    def _xclOpenContext(self, handle: int, uuid: Any, index: int, shared: bool) -> int:
        self.contexts.append((index, shared))
        self.card.log.append(("open context", index, shared))
        return 0

    def _xclCloseContext(self, handle: int, uuid: Any, index: int) -> int:
        self.contexts.remove((index, True))
        self.card.log.append(("close context", index))
        return 0

    def _xclAllocBO(self, handle: int, size: int, kind: int, flags: int) -> int:
        assert not flags & CACHEABLE or self._device_name == b"edge", "a card has no such flag"
        try:
            allocation = self.card.allocate(size, flags & 0xFFFF)
        except MemoryError:
            return 0xFFFF_FFFF
        bo, self._next = self._next, self._next + 1
        self.bos[bo] = [allocation, 0]
        return bo

    def _xclMapBO(self, handle: int, bo: int, write: bool) -> Any:
        allocation = self.bos[bo][0]
        self.bos[bo][1] = map_pages(allocation.n_bytes)
        kind = ctypes.c_char * allocation.n_bytes
        return ctypes.cast(self.bos[bo][1], ctypes.POINTER(kind))

    def _xclGetBOProperties(self, handle: int, bo: int, properties: Any) -> int:
        allocation = self.bos[bo][0]
        properties.size, properties.paddr = allocation.n_bytes, allocation.address
        return 0

    def _xclSyncBO(self, handle: int, bo: int, direction: int, size: int, offset: int) -> int:
        allocation, host = self.bos[bo]
        self.card.sync(allocation, int(direction) == 0, host, offset, size)
        return 0

    def _xclFreeBO(self, handle: int, bo: int) -> None:
        self.card.free(self.bos.pop(bo)[0])  # PYNQ has already unmapped the host copy

    def _xclRead(self, handle: int, space: int, offset: int, data: Any, size: int) -> int:
        assert size == 4 and self.contexts, "no context: another process may program the card"
        ctypes.memmove(data, self.card.read(offset).to_bytes(4, "little"), 4)
        return size

    def _xclWrite(self, handle: int, space: int, offset: int, data: Any, size: int) -> int:
        words = bytes(data)[:size]
        assert size == 4 and self.contexts, "no context: another process may program the card"
        self.card.write(offset, int.from_bytes(words, "little"))
        return size
