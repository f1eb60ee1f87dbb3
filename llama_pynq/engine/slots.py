"""Sequence slots of the KV cache, allocated to sequences and sessions."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llama_pynq.errors import DeviceBusy, DeviceMemoryError, RequestError

if TYPE_CHECKING:
    from llama_pynq.device.kernel_driver import KernelDriver
    from llama_pynq.weights.packed import PackedModel


class Slots:
    """Allocator of a model's KV cache slots.

    Parameters
    ----------
    driver : KernelDriver
    packed : PackedModel
        The model that the slots are for.
    """

    def __init__(self, driver: KernelDriver, packed: PackedModel) -> None:
        self._driver = driver
        self.packed = packed
        self._lock = threading.Lock()
        self._free = list(range(driver.slots))

    @property
    def free(self) -> list[int]:
        """Slots that nobody holds, ascending."""
        with self._lock:
            return list(self._free)

    @property
    def in_use(self) -> bool:
        """Whether a sequence or session holds a slot."""
        with self._lock:
            return len(self._free) < self._driver.slots

    def reset(self) -> None:
        """Mark every slot as free, after the weights were uploaded."""
        with self._lock:
            self._free = list(range(self._driver.slots))

    def check_loaded(self, generation: int | None = None) -> None:
        """Make sure that the model is on the device.

        Parameters
        ----------
        generation : int, optional
            The driver's generation when a slot was taken: the slot's content must still be there.

        Raises
        ------
        RequestError
        """
        driver = self._driver
        if driver.packed is not self.packed or generation not in (None, driver.generation):
            raise RequestError(
                "this model, or this text's place in the KV cache, is no longer on the device: a "
                "model was loaded, or the overlay was reset or closed. Begin again"
            )

    @contextlib.contextmanager
    def take(self, wanted: int) -> Iterator[tuple[list[int], int]]:
        """Hold 1 to `wanted` slots; grow the KV cache first if nobody uses it.

        Yields
        ------
        slots : list of int
        generation : int
            The driver's generation; while it is unchanged, the slots' content is valid.

        Raises
        ------
        RequestError
            If the model is no longer on the device.
        DeviceBusy
            If no slot is free.
        """
        driver = self._driver
        wanted = min(wanted, driver.limits.max_rows)
        with self._lock, driver.exclusive():
            self.check_loaded()
            idle = len(self._free) == driver.slots
            if wanted > len(self._free) and idle:
                try:
                    driver.resize_cache(wanted)
                except DeviceMemoryError:
                    self.check_loaded()  # the old cache is back: fewer slots at a time, then
                self._free = list(range(driver.slots))
            if not self._free:
                raise DeviceBusy(
                    f"all {driver.slots} sequence slots are in use by unfinished "
                    "generate() or stream() calls. Finish or close() them, or load the model "
                    "with more slots: load_model(..., slots=8)"
                )
            taken, self._free = self._free[:wanted], self._free[wanted:]
            generation = driver.generation
        try:
            yield taken, generation
        finally:
            with self._lock:
                if driver.generation == generation:  # else these slots are no longer held
                    self._free = sorted({*self._free, *taken})


@dataclass(frozen=True)
class Session:
    """A sequence slot that nobody else writes; see `Llama.session`.

    Attributes
    ----------
    slot : int
    """

    _driver: KernelDriver
    _slots: Slots
    slot: int
    _generation: int

    @contextlib.contextmanager
    def device(self) -> Iterator[KernelDriver]:
        """Hold the driver: no other call comes between a run and reading its results.

        Yields
        ------
        KernelDriver

        Raises
        ------
        RequestError
            If the model, or the slot, is no longer on the device.
        """
        with self._driver.exclusive():
            self._slots.check_loaded(self._generation)
            yield self._driver
