"""A running instance of the compiled kernel: its library, worker thread and call."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

from llama_pynq.errors import OverlayMismatch

_FUNCTIONS = {
    "emulator_new": (ctypes.c_void_p, [ctypes.c_int]),
    "emulator_start": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_void_p]),
    "emulator_wait": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_int]),
    "emulator_delete": (None, [ctypes.c_void_p]),
}

# Of kernels that know what a call needs: not of the tests' fakes.
_CHECKS = {
    "emulator_start_within": (ctypes.c_int, [ctypes.c_void_p] * 4),
    "emulator_abort_word": (ctypes.c_void_p, [ctypes.c_void_p]),
}

_ENDED_BEFORE = 1  # emulator_wait found the kernel idle and did not wait

# emulator_start copies this many words, whatever the number of arguments.
_ArgumentWords = ctypes.c_uint64 * 128

# Kernels that were still running when their device was reprogrammed or dropped. Joining a hung
# kernel would hang this process, and freeing its memory would crash it. The interpreter frees
# everything at exit, so retire() takes an extra reference.
_abandoned: list[Emulator] = []


def _load(path: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path.absolute()))
        functions = _FUNCTIONS
        if hasattr(library, "emulator_start_within"):
            functions = {**_FUNCTIONS, **_CHECKS}
        for name, (result, arguments) in functions.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise OverlayMismatch(
            f"the emulated kernel {path} cannot be loaded: {error}. Build the emulated "
            f"overlay again; if the cache lies on a file system mounted noexec, set "
            f"LLAMA_PYNQ_CACHE to another folder."
        ) from error
    return library


def cpu_features(library: Path) -> frozenset[str]:
    """CPU features that the library detects, by Linux's names; empty if it cannot detect them."""
    text = ctypes.create_string_buffer(4096)
    try:
        length = ctypes.CDLL(str(library.absolute())).emulator_cpu_features(text, len(text))
    except (OSError, AttributeError):
        return frozenset()
    return frozenset(text.raw[:length].decode("ascii").split())


class ShortBuffer(Exception):
    """A call that would leave a buffer: the index of its argument, and the bytes that it needs."""

    def __init__(self, index: int, needed: int) -> None:
        super().__init__(index, needed)
        self.index, self.needed = index, needed


class Emulator:
    """One instance of the compiled kernel.

    Parameters
    ----------
    library : Path
        Shared library with the four ``emulator_*`` functions.
    threads : int
        Host threads that compute.

    Attributes
    ----------
    arguments : array of uint64
        Host addresses and scalars of the next call, in the order of the kernel's arguments. A call
        copies them: they may change while it runs.
    sizes : array of uint64
        Bytes behind each address.
    waited : bool
        Whether the last `wait` found the kernel running.
    abort_word : int or None
        Host address of the abort word that the kernel reads, in its copy of the request; None if it
        reads the request's buffer itself.
    """

    waited = False
    abort_word: int | None = None

    def __init__(self, library: Path, threads: int) -> None:
        self._library = _load(library)
        self._process = os.getpid()
        self._handle = self._library.emulator_new(threads)
        if not self._handle:
            raise OverlayMismatch(
                f"the emulated kernel {library} refused to start with {threads} threads."
            )
        self._in_use: Sequence[object] = ()
        self._checks = hasattr(self._library, "emulator_start_within")
        self.arguments, self.sizes = _ArgumentWords(), _ArgumentWords()
        self._needed = ctypes.c_uint64()
        # Addresses: ctypes takes a while to convert arrays.
        self._start = tuple(map(ctypes.addressof, (self.arguments, self.sizes, self._needed)))
        if self._checks:
            self.abort_word = self._library.emulator_abort_word(self._handle)

    def start(self, memory: Sequence[object]) -> None:
        """Start a call; returns at once.

        Parameters
        ----------
        memory : sequence
            Mappings that the addresses point into; kept alive until the next call.

        Raises
        ------
        ShortBuffer
            If the call would leave a buffer; nothing was started.
        """
        self._in_use = memory
        if not self._checks:
            started = self._library.emulator_start(self._handle, self._start[0])
        else:
            started = self._library.emulator_start_within(self._handle, *self._start)
            if started > 0:
                raise ShortBuffer(started - 1, self._needed.value)
        if started != 0:
            raise RuntimeError("the emulated kernel was started while it was running.")

    def wait(self, timeout_us: int) -> bool:
        """Whether the kernel is idle, waiting up to `timeout_us` without the GIL."""
        ended = self._library.emulator_wait(self._handle, timeout_us)
        self.waited = ended != _ENDED_BEFORE
        return bool(ended)

    def retire(self) -> None:
        """Delete the instance, or abandon it for good if it is still running."""
        if self._process != os.getpid():
            return  # the worker thread did not survive fork(); there is nothing to join
        for emulator in [*_abandoned]:
            if emulator.wait(0):
                _abandoned.remove(emulator)
                emulator._delete()
                ctypes.pythonapi.Py_DecRef(ctypes.py_object(emulator._in_use))
        if self.wait(0):
            self._delete()
        else:
            _abandoned.append(self)
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._in_use))

    def _delete(self) -> None:
        handle, self._handle = self._handle, None
        self._library.emulator_delete(handle)
