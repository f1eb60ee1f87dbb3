"""Exceptions that this package raises on purpose.

Each message names what is wrong, says why, and what to do. Each class also derives from the
built-in exception that a caller expects, so ``except ValueError`` works too.
"""

from __future__ import annotations


class LlamaPynqError(Exception):
    """Base class: catch this to catch everything the package raises on purpose."""


class CheckpointError(LlamaPynqError, ValueError):
    """A model file is truncated, foreign, ambiguous, or holds NaN or infinite weights."""


class TokenizerError(LlamaPynqError, ValueError):
    """A tokenizer file is unreadable or does not belong to the model."""


class TemplateError(LlamaPynqError, ValueError):
    """A chat template is wrong, refuses the messages, or takes too long."""


class LimitError(LlamaPynqError, ValueError):
    """A model or request exceeds the limits of the kernel or of the board."""


class RequestError(LlamaPynqError, ValueError):
    """A request is invalid: a bad argument, no model loaded, or a closed overlay."""


class OverlayMismatch(LlamaPynqError, RuntimeError):
    """An overlay is missing, damaged, of another package or board, or of another ABI version."""


class InstallError(LlamaPynqError, RuntimeError):
    """An overlay could not be fetched, added or removed."""


class OverlayNotFound(LlamaPynqError, FileNotFoundError):
    """There is no overlay file of that name."""


class DeviceBusy(LlamaPynqError, RuntimeError):
    """Another process, or another thread, is using the device."""

    holder_pid: int | None = None
    """Process that holds the device's lock, if it is known."""

    def held_by(self, pid: int | None) -> DeviceBusy:
        """Return itself, with the process that holds the lock.

        Parameters
        ----------
        pid : int or None
        """
        self.holder_pid = pid
        return self


class DeviceNotFound(LlamaPynqError, RuntimeError):
    """PYNQ finds no device."""


class BoardNotFound(LlamaPynqError, ValueError):
    """There is no board of that name."""


class DeviceMemoryError(LlamaPynqError, MemoryError):
    """The device's memory is full."""


class KernelError(LlamaPynqError, RuntimeError):
    """The kernel refused a call; its status words say why."""


class KernelTimeout(LlamaPynqError, TimeoutError):
    """The kernel did not finish within its time limit; reset() re-downloads the overlay."""


class ConnectionLost(LlamaPynqError, ConnectionError):
    """A board on the network no longer answers."""


class BuildError(LlamaPynqError, RuntimeError):
    """The emulated overlay could not be compiled, or a board's overlay not built."""
