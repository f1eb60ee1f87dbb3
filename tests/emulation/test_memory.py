"""Device memory: addresses, exhaustion, and buffers with a host and a device copy."""

from __future__ import annotations

import gc
import inspect

import numpy as np
import pynq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_pynq.emulation import memory as memory_module
from llama_pynq.emulation.device import EmulatedDevice
from llama_pynq.emulation.memory import ALIGNMENT, DeviceMemory, FirstFit
from llama_pynq.errors import DeviceMemoryError

PAGES = 16


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5 * ALIGNMENT)), max_size=60))
def test_first_fit_never_overlaps_and_coalesces(steps):
    space = FirstFit(PAGES * ALIGNMENT)
    pages: list[int | None] = [None] * PAGES  # reference model: owner of each page
    live = []
    for serial, (allocate, number) in enumerate(steps):
        if allocate:
            n_bytes = number + 1
            need = -(-n_bytes // ALIGNMENT)
            fits = [i for i in range(PAGES) if pages[i : i + need] == [None] * need]
            offset = space.allocate(n_bytes)
            assert offset == (fits[0] * ALIGNMENT if fits else None)
            if fits:
                pages[fits[0] : fits[0] + need] = [serial] * need
                live.append((serial, offset))
        elif live:
            owner, offset = live.pop(number % len(live))
            space.free(offset)
            pages = [None if page == owner else page for page in pages]
        assert space.free_bytes == pages.count(None) * ALIGNMENT
    for _, offset in live:
        space.free(offset)
    assert space.largest_hole_bytes == space.free_bytes == PAGES * ALIGNMENT


@pytest.fixture
def device():
    return EmulatedDevice(memory_bytes=PAGES * ALIGNMENT)


def buffer(device, pages: int) -> pynq.buffer.PynqBuffer:
    return pynq.allocate((pages * ALIGNMENT,), "u1", target=device)


def test_full_memory_names_requested_free_and_largest(device):
    first, second, third = buffer(device, 4), buffer(device, 8), buffer(device, 2)
    first.freebuffer()
    with pytest.raises(DeviceMemoryError) as error:
        buffer(device, 5)
    assert str(error.value).startswith(
        f"emulated-host has no room for {5 * 4096} bytes: {6 * 4096} of {16 * 4096} bytes are "
        f"free, the largest contiguous block is {4 * 4096}."
    )
    second.freebuffer()
    again = buffer(device, 12)
    assert again.device_address < third.device_address


def test_memory_error_is_a_memory_error(device):
    with pytest.raises(MemoryError):
        buffer(device, PAGES + 1)


def test_buffers_are_freed_with_their_last_view(device):
    whole = buffer(device, PAGES)
    part = whole[10:20]
    del whole
    gc.collect()
    assert device.memory.free_bytes == 0
    part[:] = 1
    part.sync_to_device()
    del part
    gc.collect()
    assert device.memory.free_bytes == PAGES * ALIGNMENT


def test_with_statement_frees(device):
    with buffer(device, 3):
        assert device.memory.free_bytes == (PAGES - 3) * ALIGNMENT
    assert device.memory.free_bytes == PAGES * ALIGNMENT


def test_free_twice_frees_once(device):
    first = buffer(device, 1)
    first.freebuffer()
    second = buffer(device, 1)
    first.freebuffer()
    del first
    gc.collect()
    assert device.memory.free_bytes == (PAGES - 1) * ALIGNMENT
    second.sync_to_device()


def test_freed_buffer_cannot_be_synced(device):
    freed = buffer(device, 1)
    freed.freebuffer()
    freed[:] = 1  # NumPy still holds the host copy: no crash
    with pytest.raises(RuntimeError, match="this buffer was freed"):
        freed.sync_to_device()


def test_free_during_an_allocation_is_done_later():
    """Garbage collection may run inside allocate(), with the lock held."""
    memory = DeviceMemory(4 * ALIGNMENT, "device")
    allocation = memory.allocate(2 * ALIGNMENT, "bank", 0)
    with memory._lock:
        memory.free(allocation)
        assert not allocation.freed
    assert memory.free_bytes == 4 * ALIGNMENT
    assert allocation.freed


def test_allocation_returned_twice_is_freed_once():
    memory = DeviceMemory(4 * ALIGNMENT, "device")
    allocation = memory.allocate(ALIGNMENT, "bank", 0)
    memory.free(allocation)
    other = memory.allocate(ALIGNMENT, "bank", 0)
    memory.free(allocation)
    assert memory.find(0) is other
    assert memory.free_bytes == 3 * ALIGNMENT


def test_a_buffer_goes_after_the_modules_that_were_imported(device, monkeypatch):
    """At interpreter exit, an exception in a destructor would be printed to the user."""
    allocated = buffer(device, 3)
    for name, value in list(vars(memory_module).items()):
        if inspect.ismodule(value):
            monkeypatch.setattr(memory_module, name, None)
    allocated.freebuffer()
    assert device.memory.free_bytes == PAGES * ALIGNMENT


def test_addresses_are_aligned_and_not_null(device):
    addresses = [buffer_.device_address for buffer_ in (buffer(device, 1), buffer(device, 1))]
    assert all(address % ALIGNMENT == 0 and address for address in addresses)


def test_find_knows_the_last_byte_and_no_further(device):
    one = pynq.allocate((5,), "u1", target=device)
    allocation = one.bo
    find = device.memory.find
    assert find(one.device_address) is find(one.device_address + 4) is allocation
    assert find(one.device_address + 5) is None
    assert find(one.device_address - 1) is None
    assert find(0) is None


@pytest.mark.parametrize("shape", [(0,), 0, (3, 0)])
def test_empty_buffer_is_refused(device, shape):
    with pytest.raises(ValueError, match="at least one byte"):
        pynq.allocate(shape, "u4", target=device)


@pytest.mark.parametrize("shape", [7, (7,), (3, 5)])
def test_shape_and_dtype_are_numpys(device, shape):
    made = pynq.allocate(shape, np.float32, target=device)
    assert made.shape == np.empty(shape).shape
    assert made.dtype == np.float32
    assert not made.any()


def test_host_and_device_memory_are_apart(device):
    made = pynq.allocate((8,), "u4", target=device)
    made[:] = 1
    made.sync_from_device()
    assert not made.any()  # the ones were never synced to the device
    made[:] = 2
    made.sync_to_device()
    made[:] = 3
    made.sync_from_device()
    assert (made == 2).all()


def test_sync_of_a_slice_copies_the_slice_only(device):
    made = pynq.allocate((8,), "u4", target=device)
    made[:] = 1
    made.sync_to_device()
    made[:] = 2
    made[2:4].sync_to_device()
    made[:] = 0
    made[1:6].sync_from_device()
    assert made.tolist() == [0, 1, 2, 2, 1, 1, 0, 0]


def test_slice_of_a_slice_has_its_own_address(device):
    made = pynq.allocate((8, 4), "u4", target=device)
    part = made[2:][1]
    assert part.device_address == made.device_address + 3 * 16
    part[:] = 5
    part.sync_to_device()
    made[:] = 0
    made.sync_from_device()
    assert made[3].tolist() == [5] * 4 and not made[:3].any()


@pytest.mark.parametrize(
    "copy", [lambda b: b + 1, lambda b: b.copy(), lambda b: b[::-1]], ids=["sum", "copy", "reverse"]
)
def test_computed_array_cannot_be_synced(device, copy):
    made = pynq.allocate((8,), "u4", target=device)
    with pytest.raises(RuntimeError, match="not a part of a device buffer"):
        copy(made).sync_to_device()
    with pytest.raises(RuntimeError, match="not a part of a device buffer"):
        copy(made).sync_from_device()


def test_relocated_copy_keeps_its_contents_and_leaves_the_old_pages(device):
    made = pynq.allocate((8,), "u4", target=device)
    made[:] = range(8)
    made.sync_to_device()
    old = made.bo.device
    made.bo.relocate()
    old[:4] = b"\xff" * 4
    made[:] = 0
    made.sync_from_device()
    assert made.tolist() == list(range(8))


def test_released_host_pages_come_back_from_the_device():
    device = EmulatedDevice(memory_bytes=1 << 20)
    made = pynq.allocate((100_000,), "u4", target=device)
    made[:] = np.arange(100_000)
    made.sync_to_device()
    assert device.release_host_pages(made) == -(-400_000 // 4096) * 4096
    assert not made.any()  # Linux returns zeroed pages
    made.sync_from_device()
    assert (made == np.arange(100_000)).all()


def test_released_slice_keeps_its_neighbours():
    device = EmulatedDevice(memory_bytes=1 << 20)
    made = pynq.allocate((4 * 4096,), "u1", target=device)
    made[:] = 1
    assert device.release_host_pages(made[100:-100]) == 2 * 4096
    assert made[:4096].all() and made[-4096:].all()
    assert not made[4096:-4096].any()
    assert device.release_host_pages(made[10:20]) == 0
