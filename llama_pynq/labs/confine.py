"""Run a job of grading in processes of its own, of which nothing is left.

The job is a function of `llama_pynq.labs.jobs`. It runs in a program that `warden` watches: it may
crash, hang, start daemons, or fill the memory, and this process gets its messages and its end.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_pynq.labs import warden
from llama_pynq.labs.warden import remove_tree

MOST_THREADS = 1000 + 16 * (os.cpu_count() or 1)
"""Threads of all processes of a job together."""

_MARK = "LLAMA_PYNQ_GRADING"
_MOST_BYTES = 160 << 20  # of a job's messages: a notebook's answers, escaped as JSON
_GRACE_S = 45.0  # for the warden to end what runs past the limits
_WINDOWS_GRACE_S = 5.0  # without a warden, for the program to end by itself


@dataclass
class End:
    """How a job ended.

    Attributes
    ----------
    status : int or None
        Exit status of its program, negative for a signal; None if it is not known.
    why : str
        Why it was ended, or died; empty if it came to its own end.
    late : bool
        Whether it was ended because of its time limit.
    """

    status: int | None = None
    why: str = ""
    late: bool = False


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return 8 << 30


def _kill_marked(mark: str) -> None:
    """Kill the processes of a job whose warden was killed; on Linux, by their environment."""
    if sys.platform != "linux":
        return
    for _ in range(50):
        found = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc")))
                 if _is_marked(pid, mark)]  # fmt: skip
        if not found:
            return
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _kill_adopted(before: set[int]) -> None:
    """Kill what a killed warden left to this process, whatever it made of its environment."""
    for _ in range(250):
        left = warden.children(os.getpid()) - before
        if not left:
            return
        for pid in [*left, *(found for child in left for found in warden.descendants(child))]:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        for pid in left:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        time.sleep(0.02)


def _is_marked(pid: int, mark: str) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            if file.read().rpartition(b")")[2].split()[0] == b"Z":
                return False
        with open(f"/proc/{pid}/environ", "rb") as file:
            return f"{_MARK}={mark}".encode() in file.read().split(b"\0")
    except OSError:
        return False


class Job:
    """A job in processes of its own.

    Parameters
    ----------
    kind : str
        Name in `jobs.JOBS`.
    request : dict
        JSON for the job.
    seconds : float
        Time limit.

    Attributes
    ----------
    end : End
        How it ended; complete after `messages`.
    """

    def __init__(self, kind: str, request: dict[str, Any], seconds: float) -> None:
        self._kind, self._request, self._seconds = kind, request, seconds
        self.end = End()
        self._warden_died = False

    def messages(self) -> Iterator[dict[str, Any]]:
        """Run the job, and yield its messages.

        When this ends, by an exception or Ctrl-C too, no process of the job is left, nor its
        folder.
        """
        own = Path(tempfile.mkdtemp(prefix="llama_pynq-grade-"))
        mark = secrets.token_hex(16)
        warden.adopt_orphans()  # of a warden that the job killed
        before = warden.children(os.getpid())
        try:
            yield from self._messages(own, mark)
        finally:
            _kill_marked(mark)
            if self._warden_died:  # else other children are another thread's: not ours to kill
                _kill_adopted(before)
            remove_tree(own)

    def _messages(self, own: Path, mark: str) -> Iterator[dict[str, Any]]:
        names = ("work", "cache", "locks", "overlays", "ipython", "tmp")
        folders = {name: own / name for name in names}
        for folder in folders.values():
            folder.mkdir()
        request = own / "request.json"
        request.write_text(json.dumps({"kind": self._kind, **self._request}), encoding="ascii")
        environment = {
            **os.environ,
            "LLAMA_PYNQ_EMULATE": "1",
            "LLAMA_PYNQ_CACHE": str(folders["cache"]),
            "LLAMA_PYNQ_LOCKS": str(folders["locks"]),
            # A build of lesson 08 is trusted there: not for good, in the lecturer's folder.
            "LLAMA_PYNQ_OVERLAYS": str(folders["overlays"]),
            "IPYTHONDIR": str(folders["ipython"]),
            **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folders["tmp"])),
            _MARK: mark,
        }
        command = [sys.executable, "-m", "llama_pynq.labs.jobs", str(request)]
        if os.name == "posix":
            order = {
                "command": command,
                "folder": str(own),
                "seconds": self._seconds,
                "threads": MOST_THREADS,
                "bytes": max(2 << 30, _memory_bytes() * 3 // 4),
            }
            command = [sys.executable, "-I", str(Path(__file__).with_name("warden.py"))]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            cwd=folders["work"], env=environment, start_new_session=True,
        )  # fmt: skip
        assert process.stdin is not None
        try:
            if os.name == "posix":
                process.stdin.write(json.dumps(order).encode() + b"\n")
                process.stdin.flush()
            yield from self._lines(process)
        finally:
            with contextlib.suppress(OSError):
                process.stdin.close()  # which ends the warden
            try:
                process.wait(_GRACE_S if os.name == "posix" else _WINDOWS_GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            self._warden_died = process.returncode != 0

    def _lines(self, process: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
        lines: queue.Queue[bytes] = queue.Queue(1000)
        over = threading.Event()
        reader = threading.Thread(target=_read, args=(process.stdout, lines, over), daemon=True)
        reader.start()
        until = time.monotonic() + self._seconds + _GRACE_S
        ended: dict[str, Any] | None = None
        try:
            while True:
                try:
                    line = lines.get(timeout=max(0.001, until - time.monotonic()))
                except queue.Empty:  # the warden is stopped, or its end is not seen
                    process.kill()
                    ended = {"ended": None, "why": "time"}
                    break
                if not line:
                    break
                message = _parsed(line)
                if message is not None and "ended" in message:
                    ended = message
                elif message is not None:
                    yield message
        finally:
            over.set()
        self.end = _end(ended, process, self._seconds)


def _read(pipe: Any, lines: queue.Queue[bytes], over: threading.Event) -> None:
    """Pass lines on, an empty one at the end."""
    left = _MOST_BYTES
    line = b"."
    while line and left > 0:
        try:
            line = pipe.readline(left)
        except (OSError, ValueError):
            line = b""
        left -= len(line)
        while not over.is_set():
            try:
                lines.put(line, timeout=0.5)
                break
            except queue.Full:
                continue
    if line and not over.is_set():
        lines.put(b"")


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) else None


def _end(ended: dict[str, Any] | None, process: subprocess.Popen[bytes], seconds: float) -> End:
    if os.name != "posix":
        status = process.wait()
        return End(status, f"it ended with status {status}" if status else "")
    if ended is None:
        return End(None, "it ended the processes that watch it")
    status, why = ended["ended"], ended["why"]
    whys = {
        "time": f"it ran for more than {seconds:g} s",
        "threads": f"it started more than {MOST_THREADS} processes and threads",
        "memory": "it took more memory than three quarters of this computer's",
    }
    text = whys.get(why, "")
    if not text and status:
        text = f"the process that ran it ended with {_status(status)}"
    return End(status, text, why == "time")


def _status(status: int) -> str:
    if status >= 0:
        return f"status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"
