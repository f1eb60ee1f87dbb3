"""The emulated device's memory: addresses, allocations and PYNQ buffers.

Every buffer exists twice, as on a card: in host memory, which NumPy sees, and in device
memory, which the kernel sees. Only a sync copies between the two, so a forgotten sync
shows. Each copy is an anonymous mapping: its memory is committed on first touch and goes
back to the system when the buffer is freed.
"""

from __future__ import annotations

import bisect
import collections
import contextlib
import ctypes
import math
import mmap
import threading

import numpy as np
from numpy.typing import DTypeLike
from pynq.buffer import PynqBuffer

from llama_pynq.device.memory_bank import MemoryBank
from llama_pynq.errors import DeviceMemoryError

# The kernel streams data that is uploaded in bulk: from huge pages, reads are 9 to 16% faster
# (256 MiB, best of 20, on a 2-core cloud machine). Other memory, such as a sparsely used KV
# cache, gets no huge pages.
_BULK_BYTES = 4 << 20

ALIGNMENT = 4096
"""Alignment of a buffer in device memory, in bytes; the same as XRT's."""


def _round_up(n: int) -> int:
    return -(-n // ALIGNMENT) * ALIGNMENT


class FirstFit:
    """First-fit allocation in ``[0, size)``, in units of `ALIGNMENT`.

    Parameters
    ----------
    size : int
        In bytes; rounded down to whole units.
    """

    def __init__(self, size: int) -> None:
        self.size = size // ALIGNMENT * ALIGNMENT
        self._holes = [(0, self.size)] if self.size else []  # (offset, size), ascending
        self._used: dict[int, int] = {}  # offset -> size

    @property
    def free_bytes(self) -> int:
        return sum(size for _, size in self._holes)

    @property
    def largest_hole_bytes(self) -> int:
        return max((size for _, size in self._holes), default=0)

    def allocate(self, n_bytes: int) -> int | None:
        """Offset of a new block of at least `n_bytes`, or None if no hole is large enough."""
        need = _round_up(n_bytes)
        for index, (offset, size) in enumerate(self._holes):
            if size >= need:
                rest = [(offset + need, size - need)] if size > need else []
                self._holes[index : index + 1] = rest
                self._used[offset] = need
                return offset
        return None

    def free(self, offset: int) -> None:
        """Free a block and merge it with the holes beside it."""
        begin, end = offset, offset + self._used.pop(offset)
        # Builtins only: at interpreter exit this module's imports are gone before the buffers are.
        index = sum(hole < (begin, 0) for hole in self._holes)
        first = last = index
        if index > 0 and sum(self._holes[index - 1]) == begin:
            first, begin = index - 1, self._holes[index - 1][0]
        if index < len(self._holes) and self._holes[index][0] == end:
            last, end = index + 1, end + self._holes[index][1]
        self._holes[first:last] = [(begin, end - begin)]


def _map(n_bytes: int) -> mmap.mmap:
    try:
        return mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except AttributeError:  # Windows
        return mmap.mmap(-1, n_bytes)


def _pointer(mapping: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(mapping))


class Allocation:
    """A buffer's two mappings and its place in device memory.

    Parameters
    ----------
    offset : int
        In device memory, in bytes.
    address : int
        Physical address of the first byte.
    n_bytes : int
        Size as requested.
    bank : str
        Tag of the memory bank.
    """

    def __init__(self, offset: int, address: int, n_bytes: int, bank: str) -> None:
        self.offset = offset
        self.address = address
        self.n_bytes = n_bytes
        self.bank = bank
        self.host = _map(_round_up(n_bytes))
        self.device = _map(_round_up(n_bytes))
        self.host_pointer = _pointer(self.host)
        self.device_pointer = _pointer(self.device)
        self.freed = False

    def relocate(self) -> None:
        """Move the device's copy to new pages; its physical address stays.

        The old pages stay mapped while anything holds their mapping.
        """
        device = _map(len(self.device))
        pointer = _pointer(device)
        ctypes.memmove(pointer, self.device_pointer, len(device))
        self.device, self.device_pointer = device, pointer


class DeviceMemory:
    """All memory of one device.

    Parameters
    ----------
    size_bytes : int
    name : str
        The device's, for error messages.
    """

    def __init__(self, size_bytes: int, name: str) -> None:
        self._name = name
        self._space = FirstFit(size_bytes)
        self._live: dict[int, Allocation] = {}  # by address
        self._addresses: list[int] = []  # ascending
        self._frees = 0
        self._lock = threading.Lock()
        # Garbage collection may free a buffer at any moment, even while this thread holds the
        # lock. So frees are queued, and the next lock holder processes them.
        self._returned: collections.deque[Allocation] = collections.deque()

    @property
    def size_bytes(self) -> int:
        return self._space.size

    @property
    def free_bytes(self) -> int:
        with self._lock:
            self._drain()
            return self._space.free_bytes

    @property
    def frees(self) -> int:
        """Number of buffers freed so far; while it is unchanged, results of `find` stay live."""
        with self._lock:
            self._drain()
            return self._frees

    def allocate(self, n_bytes: int, bank: str, base_address: int) -> Allocation:
        """Allocate a buffer in the bank whose window starts at `base_address`."""
        if n_bytes <= 0:
            raise ValueError(f"a device buffer needs at least one byte, not {n_bytes}.")
        with self._lock:
            self._drain()
            offset = self._space.allocate(n_bytes)
            if offset is None:
                raise DeviceMemoryError(
                    f"{self._name} has no room for {n_bytes} bytes: {self._space.free_bytes} "
                    f"of {self._space.size} bytes are free, the largest contiguous block is "
                    f"{self._space.largest_hole_bytes}. Free buffers that are no longer "
                    f"needed (del, or .freebuffer()), load a smaller model, or choose a "
                    f"device with more memory (EmulatedDevice(memory_bytes=...))."
                )
            try:
                allocation = Allocation(offset, base_address + offset, n_bytes, bank)
            except OSError as error:
                self._space.free(offset)
                raise DeviceMemoryError(
                    f"this computer has no memory left for {n_bytes} more bytes of "
                    f"{self._name}: {error.strerror}. Close other programs, or load a "
                    f"smaller model."
                ) from error
            except BaseException:
                self._space.free(offset)
                raise
            self._live[allocation.address] = allocation
            bisect.insort(self._addresses, allocation.address)
            return allocation

    def free(self, allocation: Allocation) -> None:
        """Free a buffer; a second call does nothing."""
        self._returned.append(allocation)
        if not self._lock.locked():  # not acquire(): Ctrl-C right after it would leave it locked
            with self._lock:
                self._drain()

    def _drain(self) -> None:
        while self._returned:
            allocation = self._returned.popleft()
            if allocation.freed:
                continue
            allocation.freed = True
            self._frees += 1
            self._space.free(allocation.offset)
            del self._live[allocation.address]
            self._addresses.remove(allocation.address)

    def find(self, address: int) -> Allocation | None:
        """The live buffer that `address` points into."""
        with self._lock:
            self._drain()
            index = bisect.bisect(self._addresses, address) - 1
            if index < 0:
                return None
            allocation = self._live[self._addresses[index]]
            inside = address < allocation.address + allocation.n_bytes
            return allocation if inside else None


def _offset(allocation: Allocation, pointer: int, n_bytes: int) -> int:
    """Byte offset of a PynqBuffer, or of a slice of one, in its allocation."""
    if allocation.freed:
        raise RuntimeError(
            "this buffer was freed: sync_to_device() and sync_from_device() need a live one."
        )
    offset = pointer - allocation.host_pointer
    if not 0 <= offset <= allocation.n_bytes - n_bytes:
        raise RuntimeError(
            f"this array is not a part of a device buffer, so it cannot be synced: "
            f"{n_bytes} bytes at offset {offset} of a buffer of {allocation.n_bytes}. "
            f"Results of arithmetic and copies look like buffers but are ordinary memory; "
            f"assign into the buffer instead: buffer[:] = ..."
        )
    return offset


def copy_to_device(allocation: Allocation, pointer: int, n_bytes: int) -> None:
    """Copy part of a buffer from the host to the device."""
    offset = _offset(allocation, pointer, n_bytes)
    if n_bytes >= _BULK_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        # The whole mapping: if only parts were advised, pages shared by two parts would stay small.
        with contextlib.suppress(OSError):  # a Linux kernel without huge pages
            allocation.device.madvise(mmap.MADV_HUGEPAGE)
    ctypes.memmove(allocation.device_pointer + offset, pointer, n_bytes)


def copy_from_device(allocation: Allocation, pointer: int, n_bytes: int) -> None:
    """Copy part of a buffer from the device to the host."""
    offset = _offset(allocation, pointer, n_bytes)
    ctypes.memmove(pointer, allocation.device_pointer + offset, n_bytes)


def release_host_pages(buffer: PynqBuffer) -> int:
    """Drop the host copy's pages; its contents are undefined until the next sync.

    Returns
    -------
    int
        Bytes returned to the system: whole pages inside `buffer`.
    """
    allocation: Allocation = buffer.bo
    offset = _offset(allocation, buffer.virtual_address, buffer.nbytes)
    if not hasattr(mmap, "MADV_DONTNEED"):
        return 0
    page = mmap.PAGESIZE
    begin = -(-offset // page) * page
    end = offset + int(buffer.nbytes)
    # The last page of the mapping belongs to this buffer alone.
    if end == allocation.n_bytes:
        end = len(allocation.host)
    end = end // page * page
    if end <= begin:
        return 0
    allocation.host.madvise(mmap.MADV_DONTNEED, begin, end - begin)
    return end - begin


class EmulatedMemory(MemoryBank):
    """A memory bank, such as ``overlay.DDR0``; a target of `pynq.allocate`."""

    def __repr__(self) -> str:
        return f"EmulatedMemory({self.tag!r} of {self.device.name})"

    def allocate(
        self, shape: int | tuple[int, ...], dtype: DTypeLike, cacheable: int = 0
    ) -> PynqBuffer:
        """Allocate a buffer in this bank; `pynq.allocate` calls it.

        Parameters
        ----------
        shape : int or tuple of int
        dtype : data type
        cacheable : int
            Ignored; part of PYNQ's interface. Host and device memory are separate either way.

        Raises
        ------
        DeviceMemoryError
            If the device's memory is full.
        """
        dtype = np.dtype(dtype)
        elements = math.prod(shape) if isinstance(shape, tuple | list) else int(shape)
        memory = self.device.memory
        allocation = memory.allocate(elements * dtype.itemsize, self.tag, self.base_address)
        buffer = PynqBuffer(
            shape,
            dtype,
            buffer=allocation.host,
            bo=allocation,
            device=self.device,
            device_address=allocation.address,
            coherent=False,
        )
        # These three attributes make PYNQ call return_pointer() below, not XRT or munmap().
        buffer.memory = self
        buffer.pointer = allocation
        buffer.return_to = self
        # Otherwise PYNQ would munmap() on the second free: freebuffer(), then garbage collection.
        buffer.freed = True
        return buffer

    def return_pointer(self, allocation: Allocation) -> None:
        """Called by PYNQ when a buffer is freed or collected."""
        self.device.memory.free(allocation)
