"""Background thread of a view, so that the notebook's other cells stay usable."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable

UPDATES_PER_SECOND = 20
"""Limit for a view: a browser shows no more, and every update costs the Jupyter kernel time."""


class Pacer:
    """Rate limit of a view's updates."""

    def __init__(self, per_second: float = UPDATES_PER_SECOND) -> None:
        self._period = 1 / per_second
        self._last = -self._period

    def due(self) -> bool:
        """Whether the next update is due; if so, the period restarts."""
        now = time.monotonic()
        if now - self._last < self._period:
            return False
        self._last = now
        return True


class Worker:
    """Run one job at a time in a thread.

    Attributes
    ----------
    stop : threading.Event
        Set to ask the job to end.
    """

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether a job is running."""
        return self._thread is not None and self._thread.is_alive()

    def run(self, job: Callable[[], None]) -> bool:
        """Start a job and return True; return False if one is running."""
        if self.busy:
            return False
        self.stop.clear()
        # ipykernel keeps the parent of its messages in a context variable: a thread without that
        # variable would send updates that belong to no cell.
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=context.run, args=(job,), name="llama_pynq view", daemon=True
        )
        self._thread.start()
        return True

    def wait(self, seconds: float | None = None) -> None:
        """Wait until the job has ended, for at most `seconds`."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(seconds)
