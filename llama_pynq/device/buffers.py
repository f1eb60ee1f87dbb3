"""Device buffers by name, and the pointer registers that hold their addresses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pynq

from llama_pynq.errors import DeviceMemoryError, OverlayMismatch
from llama_pynq.kernel.registers import Argument

PLACEHOLDER_WORDS = 1024
"""Size of a placeholder buffer, in 32-bit words: no pointer argument ever dangles."""

# Buffers that a hung kernel may still write: never freed.
_abandoned: list[Any] = []


def _free(buffer: Any) -> None:
    buffer.freebuffer()
    buffer.freed = True  # else PYNQ's destructor frees it once more, through munmap and XRT


class Buffers:
    """The kernel's buffers on one device.

    Parameters
    ----------
    device : pynq.Device
    registers : mapping
        The IP's registers by name, as the overlay's metadata describes them.
    write : callable
        ``write(offset, value)`` writes a register of the IP.

    Attributes
    ----------
    arguments : sequence of Argument
        The kernel's arguments; empty until the driver knows them.
    unfinished : set of str
        Buffers that an interrupt kept from being replaced: see `repair`.
    """

    def __init__(
        self, device: Any, registers: Mapping[str, Any], write: Callable[[int, int], None]
    ) -> None:
        self.arguments: Sequence[Argument] = ()
        self._device, self._registers, self._write = device, registers, write
        self._remote = device.has_capability("REMOTE")
        self._held: dict[str, Any] = {}
        # Buffers whose replacement was begun and has not ended: after Ctrl-C, one may be missing,
        # or its register may still hold the old address.
        self.unfinished: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        return self._held[name]

    def __iter__(self) -> Any:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)

    def pointers(self, name: str) -> list[Argument]:
        """Arguments that point at a buffer: two for a KV cache port."""
        return [a for a in self.arguments if a.is_pointer and a.buffer == name]

    def banks(self) -> dict[str, str | None]:
        """Memory bank of each buffer, as the overlay's metadata names it; None without banks."""
        return {
            argument.buffer: (self._registers.get(argument.name) or {}).get("memory")
            for argument in self.arguments
            if argument.is_pointer
        }

    # ---- life of a buffer ------------------------------------------------------------

    def allocate(self, name: str, n: int, dtype: Any) -> Any:
        """Allocate a buffer in the bank that its argument reaches; no register points at it yet.

        Raises
        ------
        DeviceMemoryError
            If there is no room.
        OverlayMismatch
            If the overlay has no such argument.
        """
        argument = self.pointers(name)[0].name
        register = self._registers.get(argument) or self._registers.get(f"{argument}_1")
        if register is None:
            raise OverlayMismatch(
                f"the overlay's metadata has no register {argument!r}: it is not an overlay of "
                "this package, or of another version"
            )
        bank = register.get("memory")
        target = self._device.get_memory_by_name(bank) if bank else self._device
        size = f"{n * np.dtype(dtype).itemsize / 2**20:.1f} MiB"
        what = f"of bank {bank}" if bank else "of contiguous memory"
        more = "" if bank else ", or enlarge the board's contiguous memory (cma= on Zynq)"
        try:
            buffer = pynq.allocate((n,), dtype, target=target)
            if self._remote and not buffer.buffer_id:  # PYNQ.remote's sign of failure
                buffer.freed = True
                raise MemoryError(
                    "the board did not allocate it; buffers that a lost connection left there are "
                    "freed when the board is restarted"
                )
            return buffer
        except DeviceMemoryError:
            raise
        except (MemoryError, RuntimeError, OSError) as error:
            raise DeviceMemoryError(
                f"{self._device.name}: no room for {size} {what} for {name!r} ({error}). Close "
                f"other overlays and buffers, use a smaller model or fewer slots{more}"
            ) from error

    def replace(self, name: str, n: int, dtype: Any) -> Any:
        """Replace a buffer; the old one is freed first, to make room.

        Raises
        ------
        DeviceMemoryError
            If there is no room; a placeholder then takes the buffer's place.
        """
        self.unfinished.add(name)
        if name in self._held:
            # No reference to the old buffer may stay: pyxrt frees only what nobody holds.
            _free(self._held.pop(name))
        try:
            self._held[name] = self.allocate(name, n, dtype)
        finally:
            if name not in self._held:  # after an error, or Ctrl-C
                self._held[name] = self.allocate(name, PLACEHOLDER_WORDS, np.uint32)
            for argument in self.pointers(name):
                self._point(argument)
            self.unfinished.discard(name)
        return self._held[name]

    def repair(self) -> None:
        """Put placeholders where an interrupt left no buffer."""
        self.replace_by_placeholders(*self.unfinished)

    def replace_by_placeholders(self, *names: str) -> None:
        """Free buffers, and leave placeholders in their place."""
        for name in names:
            self.replace(name, PLACEHOLDER_WORDS, np.uint32)

    def _point(self, argument: Argument) -> None:
        """Write a buffer's address to an argument's registers."""
        address = int(self._held[argument.buffer].device_address)
        whole = self._registers.get(argument.name)
        if whole is not None:
            low = whole["address_offset"]
            high = low + 4
        else:  # a .hwh lists a pointer as two registers
            low = self._registers[f"{argument.name}_1"]["address_offset"]
            high = self._registers[f"{argument.name}_2"]["address_offset"]
        self._write(low, address & 0xFFFFFFFF)
        self._write(high, address >> 32)

    def free(self) -> None:
        """Free every buffer."""
        self.unfinished.clear()
        while self._held:  # an interrupt leaves no buffer here that is freed already
            _free(self._held.popitem()[1])

    def outlive(self) -> None:
        """Keep every buffer until the process ends: a kernel that hangs may still write it."""
        _abandoned.append(dict(self._held))

    def abandon(self) -> None:
        """Give up every buffer without freeing its memory, which a hung kernel may still write."""
        self.outlive()
        self._held = {}

    # ---- content ---------------------------------------------------------------------

    def send(self, name: str, part: slice) -> None:
        """Copy part of a buffer to the device.

        A remote board gets the whole buffer: PYNQ.remote would write a slice's bytes at the start
        of the buffer.
        """
        buffer = self._held[name]
        (buffer if self._remote else buffer[part]).sync_to_device()

    def fetch(self, name: str, part: slice) -> np.ndarray:
        """Copy part of a buffer from the device; its host view."""
        buffer = self._held[name]
        (buffer if self._remote else buffer[part]).sync_from_device()
        return np.asarray(buffer[part]).view(np.ndarray)

    def prefix(self, name: str, n: int) -> tuple[Any, np.ndarray]:
        """The first `n` elements of a buffer: the buffer to sync, and a host view of them.

        On a remote board the whole buffer is to be synced, else a slice.
        """
        buffer = self._held[name]
        part = buffer if self._remote else buffer[:n]
        return part, np.asarray(part).view(np.ndarray)[:n]
