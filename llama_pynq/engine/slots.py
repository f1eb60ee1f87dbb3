"""Sequence slots of the KV cache, allocated to sequences and sessions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llama_pynq.errors import DeviceBusy, DeviceMemoryError, RequestError

if TYPE_CHECKING:
    from llama_pynq.device.kernel_driver import KernelDriver
    from llama_pynq.weights.packed import PackedModel


@dataclass(frozen=True, eq=False)
class _Hold:
    """Slots that a text or a session holds, as long as the driver's generation is this one."""

    slots: tuple[int, ...]
    generation: int


class Slots:
    """Allocator of a model's KV cache slots.

    What is free follows from what is held, and is stored nowhere: a load or a reset, which changes
    the driver's generation, frees every slot at once. Slots are taken under the driver's lock, and
    given back without one, as the garbage collector may close a stream in any thread.

    Parameters
    ----------
    driver : KernelDriver
    packed : PackedModel
        The model that the slots are for.
    """

    def __init__(self, driver: KernelDriver, packed: PackedModel) -> None:
        self._driver = driver
        self.packed = packed
        self._holds: set[_Hold] = set()

    @property
    def free(self) -> list[int]:
        """Slots that nobody holds, ascending."""
        driver, held = self._driver, self._held()
        return [slot for slot in range(driver.slots) if slot not in held]

    @property
    def in_use(self) -> bool:
        """Whether a sequence or session holds a slot."""
        return bool(self._held())

    def _held(self) -> set[int]:
        generation = self._driver.generation
        holds = tuple(self._holds)  # in one step: another thread may give slots back
        return {slot for hold in holds if hold.generation == generation for slot in hold.slots}

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
        hold = _Hold((), 0)
        try:
            with driver.exclusive():
                self.check_loaded()
                free = self.free
                if wanted > len(free) == driver.slots:
                    try:
                        driver.resize_cache(wanted)
                    except DeviceMemoryError:
                        self.check_loaded()  # the old cache is back: fewer slots at a time, then
                    free = self.free
                if not free:
                    raise DeviceBusy(
                        f"all {driver.slots} sequence slots are in use by unfinished "
                        "generate() or stream() calls. Finish or close() them, or load the model "
                        "with more slots: load_model(..., slots=8)"
                    )
                hold = _Hold(tuple(free[:wanted]), driver.generation)
                self._holds.add(hold)
            yield list(hold.slots), hold.generation
        finally:
            self._holds.discard(hold)


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
