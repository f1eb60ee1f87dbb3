"""The one thread in which a view works, so that the notebook's other cells stay usable."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable

UPDATES_PER_SECOND = 20
"""A view sends no more than this: a browser does not show more, and each costs the kernel."""


class Pacer:
    """Says when a view may send again."""

    def __init__(self, per_second: float = UPDATES_PER_SECOND) -> None:
        self._period = 1 / per_second
        self._last = -self._period

    def due(self) -> bool:
        """Whether the time has come; if so, it begins anew."""
        now = time.monotonic()
        if now - self._last < self._period:
            return False
        self._last = now
        return True


class Worker:
    """Runs one job at a time in a thread.

    Attributes
    ----------
    stop : threading.Event
        Set when the job is to end.
    """

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether a job is under way."""
        return self._thread is not None and self._thread.is_alive()

    def run(self, job: Callable[[], None]) -> bool:
        """Begin a job, unless one is under way: then False."""
        if self.busy:
            return False
        self.stop.clear()
        # ipykernel keeps what a message belongs to in a context variable: a thread without it
        # would send updates that belong to nothing.
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=context.run, args=(job,), name="llama_pynq view", daemon=True
        )
        self._thread.start()
        return True

    def wait(self, seconds: float | None = None) -> None:
        """Wait until the job has ended."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(seconds)
