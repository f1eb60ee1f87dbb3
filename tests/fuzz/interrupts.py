"""Interrupt every call of an overlay, and see that the next one works.

    python tests/fuzz/interrupts.py --seed 1 --cases 2000

Half of the interrupts come at a line of the package that is drawn: all lines that a call runs are
counted first. The others are signals, at a time that is drawn. After each, reset() or load_model()
works, every slot is free, and the text is that of a device that was never interrupted. Prints the
interrupts of each call, and exits with 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import itertools
import linecache
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import llama_pynq
from llama_pynq import EmulatedDevice, LlamaOverlay
from llama_pynq.errors import RequestError

PROMPT, LENGTH = "Once upon a time", 16
PACKAGE = os.path.dirname(llama_pynq.__file__)
SECONDS = 20.0
"""A next call that takes longer than this counts as hung."""


@dataclass
class Report:
    """What was interrupted.

    Attributes
    ----------
    interrupted, ended : Counter
        Calls that an interrupt ended, and those that ended before or despite it.
    wrong : list of str
    """

    interrupted: collections.Counter[str] = field(default_factory=collections.Counter)
    ended: collections.Counter[str] = field(default_factory=collections.Counter)
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join(
            [
                f"{sum(self.interrupted.values())} interrupted: {dict(self.interrupted)}",
                f"{sum(self.ended.values())} ended by themselves: {dict(self.ended)}",
                f"{len(self.wrong)} wrong",
                *self.wrong[:20],
            ]  # fmt: skip
        )


@contextlib.contextmanager
def at_line(number: float) -> Iterator[list[int]]:
    """Raise KeyboardInterrupt at the `number`-th line of the package; yields the count.

    Not at a line that begins with ``with``: there a trace function could interrupt the release of a
    lock, which no signal can.
    """
    seen = [0]

    def lines(frame: FrameType, event: str, argument: Any) -> Any:
        source = linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip()
        if event == "line" and not source.startswith(("with ", "self._lock.release()")):
            seen[0] += 1
            if seen[0] == number:
                raise KeyboardInterrupt
        return lines

    def calls(frame: FrameType, event: str, argument: Any) -> Any:
        return lines if frame.f_code.co_filename.startswith(PACKAGE) else None

    sys.settrace(calls)
    try:
        yield seen
    finally:
        sys.settrace(None)


@contextlib.contextmanager
def after(seconds: float) -> Iterator[None]:
    """Send SIGINT to this process after a time, unless the block has ended."""
    over = threading.Event()

    def send() -> None:
        if not over.wait(seconds):
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        while thread.is_alive():  # the signal may come here, too
            over.set()
            with contextlib.suppress(KeyboardInterrupt):
                thread.join()
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(0.001)


class Interrupts:
    """An overlay, its calls, and the text that is right."""

    def __init__(self, seed: int) -> None:
        self.rng, self.seed, self.report = random.Random(seed), seed, Report()
        self.overlay = self._open()
        self.golden = self._text()
        self.actions: dict[str, Callable[[], object]] = {
            "load": lambda: self.overlay.load_model(slots=self.rng.choice([None, 2])),
            "load int8": lambda: self.overlay.load_model(kv_bits=8),
            "reset": lambda: self.overlay.reset(),
            "download": lambda: self.overlay.download(),
            "close": lambda: self.overlay.close(),
            "open": self._again,
            "grow": lambda: self.overlay.generate([PROMPT] * 6, max_new_tokens=2, seed=1),
            "generate": lambda: self.overlay.generate(PROMPT, max_new_tokens=40, seed=1),
            "stream": lambda: list(self.overlay.stream(PROMPT, max_new_tokens=40, seed=1)),
            "logits": lambda: self.overlay.logits(list(range(1, 60))),
        }
        self.sizes = {name: self._size(action) for name, action in self.actions.items()}

    def _open(self) -> LlamaOverlay:
        device = EmulatedDevice(threads=1, name=f"interrupts-{os.getpid()}-{self.seed}")
        overlay = LlamaOverlay(device=device)
        overlay.load_model()
        return overlay

    def _again(self) -> None:
        self.overlay.close()
        self.overlay = self._open()

    def _text(self) -> str:
        return str(self.overlay.generate(PROMPT, max_new_tokens=LENGTH, seed=3).text)

    def _size(self, action: Callable[[], object]) -> tuple[int, float]:
        """Lines that a call runs, and its seconds."""
        begin = time.perf_counter()
        action()
        seconds = time.perf_counter() - begin
        self._mend(False)
        with at_line(float("inf")) as seen:
            action()
        self._mend(False)
        return seen[0], seconds

    def case(self, name: str, by_line: bool) -> None:
        """Interrupt one call, and use the overlay again."""
        lines, seconds = self.sizes[name]
        number = self.rng.randrange(1, lines + 1)
        how = at_line(number) if by_line else after(self.rng.random() * seconds)
        what = f"{name}, line {number}" if by_line else f"{name}, signal"
        try:
            with how:
                self.actions[name]()
            self.report.ended[name] += 1
        except KeyboardInterrupt:
            self.report.interrupted[name] += 1
        except Exception:
            self.report.wrong.append(f"{what}: {traceback.format_exc()[-900:]}")
        begin = time.monotonic()
        try:
            self._mend(self.rng.random() < 0.5)
            if self._text() != self.golden:
                self.report.wrong.append(f"{what}: the text differs")
            slots = self.overlay.llama.model.slots
            if slots.free != list(range(self.overlay.llama.slots)):
                self.report.wrong.append(f"{what}: only slots {slots.free} are free")
        except Exception:
            self.report.wrong.append(f"{what}, and then: {traceback.format_exc()[-1500:]}")
            self.overlay.close()
            self.overlay = self._open()
        if (took := time.monotonic() - begin) > SECONDS:
            self.report.wrong.append(f"{what}: the next call took {took:.0f} s")

    def _mend(self, reset: bool) -> None:
        """Do what a user does after Ctrl-C: reset() or load_model(), or open it again."""
        if self.overlay.closed:
            memory = self.overlay.device.memory
            interrupted = self.report.interrupted["close"] + self.report.interrupted["open"]
            if memory.free_bytes != memory.size_bytes and not interrupted:
                self.report.wrong.append("closed, but not everything was freed")
            self.overlay = self._open()
        if reset:
            had = self.overlay.llama.loaded_model
            self.overlay.reset()
            if had is not None and self.overlay.llama.loaded_model is not had:
                self.report.wrong.append("a reset lost the model")
        try:
            if self.overlay.llama.model.driver.kv_bits == 32:
                return
        except RequestError:
            pass
        self.overlay.load_model()

    def run(self, cases: int) -> Report:
        """Interrupt `cases` calls, in turn."""
        for number, name in zip(range(cases), itertools.cycle(self.actions)):
            self.case(name, by_line=number // len(self.actions) % 2 == 0)
        self.overlay.close()
        return self.report


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--cases", type=int, default=1000, help="(%(default)s)")
    given = arguments.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    begin = time.monotonic()
    report = Interrupts(given.seed).run(given.cases)
    print(f"seed {given.seed}, {given.cases} cases, {time.monotonic() - begin:.0f} s")
    print(report)
    return 1 if report.wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
