"""Run cases of a border in worker processes, so that a crash or a hang is found and named.

The worker tells each case's number before it begins; the input lies in a file. When the worker dies
or falls silent, the case is known, its input is kept, and another worker goes on behind it.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

TESTS = Path(__file__).parents[1]
BUILD = TESTS.parent / "build" / "fuzz"
SILENT_S = 60.0
"""A case that takes longer hangs; on a busy computer, too."""


@dataclass
class Failure:
    """A case that raised, crashed or hung, and the file that holds its input."""

    border: str
    seed: int
    case: int
    kind: str
    detail: str
    saved: Path

    @property
    def repro(self) -> str:
        saved = self.saved
        if saved.is_relative_to(BUILD):
            saved = saved.relative_to(BUILD.parents[1])
        return f"PYTHONPATH=tests {Path(sys.executable)} -m fuzz {self.border} --input {saved}"

    @property
    def key(self) -> str:
        """Equal for failures that probably have one cause."""
        places = re.findall(r'File "[^"]*/([^/"]+)", line (\d+)', self.detail)
        last = self.detail.strip().splitlines()[-1:] or [""]
        return f"{self.kind} {places[-1:]} {last[0].partition(':')[0]}"

    def __str__(self) -> str:
        return (
            f"{self.border}: case {self.case} of seed {self.seed} {self.kind}\n{self.detail}\n"
            f"  {self.repro}"
        )


@dataclass
class Report:
    """What became of a border's cases."""

    border: str
    cases: int = 0
    refused: int = 0
    read: int = 0
    seconds: float = 0.0
    failures: list[Failure] = field(default_factory=list)
    skipped: str = ""

    def __str__(self) -> str:
        if self.skipped:
            return f"{self.border}: skipped, {self.skipped}"
        failed = f", {len(self.failures)} FAILED" if self.failures else ""
        return (
            f"{self.border}: {self.cases} cases, {self.refused} refused, {self.read} read{failed} "
            f"({self.seconds:.1f} s)"
        )


def environment() -> dict[str, str]:
    """The environment of a worker: this one's, with the tests' folder to import from."""
    paths = [str(TESTS), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in paths if p),
        "OMP_NUM_THREADS": "1",
    }


def run_border(
    name: str,
    seed: int,
    cases: int | None = None,
    *,
    first: int = 0,
    seconds: float | None = None,
    folder: Path = BUILD,
    silent_s: float = SILENT_S,
    most_failures: int = 20,
) -> Report:
    """Run cases of a border, until their number or the time is reached.

    Parameters
    ----------
    name : str
        Of `borders.BORDERS`.
    seed, first : int
        Cases are numbered from `first`; seed and number decide an input.
    cases : int, optional
        How many; default as long as `seconds` last.
    seconds : float, optional
    folder : Path
        Where failing inputs are kept.
    silent_s : float
    most_failures : int
        After so many failures the rest is left out.
    """
    report, begin = Report(name), time.monotonic()
    number, end = first, None if cases is None else first + cases
    while (end is None or number < end) and len(report.failures) < most_failures:
        left = None if seconds is None else seconds - (time.monotonic() - begin)
        if left is not None and left <= 0:
            break
        number = _run_worker(report, name, seed, number, end, left, folder, silent_s, most_failures)
        if report.skipped:
            break
    report.seconds = time.monotonic() - begin
    return report


def _run_worker(
    report: Report,
    name: str,
    seed: int,
    number: int,
    end: int | None,
    left: float | None,
    folder: Path,
    silent_s: float,
    most_failures: int,
) -> int:
    """Run one worker to its end; returns the number of the next case."""
    deadline = None if left is None else time.monotonic() + left
    with tempfile.TemporaryDirectory(prefix="llama_pynq-fuzz-", ignore_cleanup_errors=True) as own:
        log = Path(own, "stderr")
        command = [sys.executable, "-m", "fuzz.worker", name, str(seed), str(number),
                   "" if end is None else str(end), own]  # fmt: skip
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr,
                env=environment(), start_new_session=True,
            )  # fmt: skip
        assert process.stdout is not None
        started, kind = number - 1, ""
        ended = False
        with selectors.DefaultSelector() as selector, process.stdout:
            selector.register(process.stdout, selectors.EVENT_READ)
            pending = b""
            while True:
                if not selector.select(silent_s):
                    kind = "hung"
                    break
                block = os.read(process.stdout.fileno(), 1 << 16)
                if not block:
                    break
                *lines, pending = (pending + block).split(b"\n")
                for line in lines:
                    word, _, rest = line.decode().partition(" ")
                    if word == "case":
                        started = int(rest)
                    elif word in ("read", "refused"):
                        report.cases += 1
                        setattr(report, word, getattr(report, word) + 1)
                    elif word == "raised":
                        _keep(report, name, seed, started, "raised", Path(rest), Path(own), folder)
                    elif word == "skipped":
                        report.skipped = rest
                    elif word == "end":
                        ended = True
                if deadline is not None and time.monotonic() > deadline:
                    ended = True
                    break
                if len(report.failures) >= most_failures:
                    ended = True
                    break
        _end(process, wait_s=0 if kind or ended else 10)
        if ended or report.skipped:
            return started + 1
        if not kind:
            code = process.returncode
            what = signal.Signals(-code).name if code < 0 else f"status {code}"
            kind = f"ended the process ({what})"
        if started < number:
            raise RuntimeError(f"{name}: the worker {kind} before its first case: {_tail(log)}")
        _keep(report, name, seed, started, kind, log, Path(own), folder)
        return started + 1


def _end(process: subprocess.Popen, wait_s: float) -> None:
    """Give a worker time to end, then kill it and what it started; its group is its own."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(wait_s)
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def _tail(path: Path) -> str:
    return path.read_bytes()[-4000:].decode(errors="replace") if path.exists() else ""


def _keep(
    report: Report,
    name: str,
    seed: int,
    case: int,
    kind: str,
    detail: Path,
    own: Path,
    folder: Path,
) -> None:
    report.cases += 1
    folder.mkdir(parents=True, exist_ok=True)
    saved = folder / f"{name}-{seed}-{case}"
    data = own / f"input-{case}"
    saved.write_bytes((data if data.exists() else own / "input").read_bytes())
    report.failures.append(Failure(name, seed, case, kind, _tail(detail), saved))
