"""Run one program, and leave nothing of it: a script that imports the standard library only.

``python warden.py`` reads its order, a line of JSON, from stdin. The program gets this one's
stdout. When the program has ended, or its limits are passed, or stdin ends because the parent has,
every descendant is killed, and the order's folder is removed; then a last line says how the program
ended.

On Linux, a process whose parent ends becomes a child of the warden (PR_SET_CHILD_SUBREAPER), so a
daemon does not escape, whatever sessions and groups it makes. Elsewhere, what has no living
parent below the warden does.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

_SUBREAPER, _DUMPABLE, _PARENT_DEATH = 36, 4, 1  # linux/prctl.h
_POLL_S = 0.25
_SWEEP_S = 30.0
_FREEZE_S = 3.0

LINUX = sys.platform == "linux"


def protect(die_with_parent: bool = False) -> None:
    """Keep what this process started from reading its memory and files through /proc."""
    if LINUX:
        prctl = ctypes.CDLL(None).prctl
        prctl(_DUMPABLE, 0, 0, 0, 0)
        if die_with_parent:
            prctl(_PARENT_DEATH, signal.SIGKILL, 0, 0, 0)


def _linux_processes() -> Iterator[tuple[int, int, int, int]]:
    page = os.sysconf("SC_PAGE_SIZE")
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    part = file.read().rpartition(b")")[2].split()
            except OSError:  # it has ended
                continue
            yield int(name), int(part[1]), int(part[17]), int(part[21]) * page


def _other_processes() -> Iterator[tuple[int, int, int, int]]:
    command = ["ps", "-A", "-o", "pid=,ppid=,rss="]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    for line in listed.stdout.splitlines():
        pid, parent, kib = map(int, line.split())
        yield pid, parent, 1, kib << 10


def descendants(of: int) -> dict[int, tuple[int, int]]:
    """Threads and bytes of memory of each process that descends from one."""
    children: dict[int, list[int]] = {}
    size = {}
    for pid, parent, threads, held in _linux_processes() if LINUX else _other_processes():
        children.setdefault(parent, []).append(pid)
        size[pid] = threads, held
    found: dict[int, tuple[int, int]] = {}
    left = [of]
    while left:
        for pid in children.get(left.pop(), ()):
            if pid not in found:
                found[pid] = size[pid]
                left.append(pid)
    return found


def adopt_orphans() -> None:
    """Become the parent of processes below this one whose own parent ends; Linux only."""
    if LINUX:
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)


def children(of: int) -> set[int]:
    """Processes whose parent is this one; empty elsewhere than on Linux."""
    return {pid for pid, parent, _, _ in _linux_processes() if parent == of} if LINUX else set()


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _reap(program: int) -> int | None:
    """Reap what has ended; the program's status if it is among them."""
    status = None
    while True:
        try:
            pid, ended = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status
        if pid == 0:
            return status
        if pid == program:
            status = os.waitstatus_to_exitcode(ended)


def _sweep(program: int) -> int | None:
    """Kill all descendants; first stop them, as they may start others meanwhile."""
    begin, stopped, status = time.monotonic(), set[int](), None
    while time.monotonic() - begin < _SWEEP_S:
        found = descendants(os.getpid())
        if not found:
            break
        new = [pid for pid in found if pid not in stopped]
        if new and time.monotonic() - begin < _FREEZE_S:
            for pid in new:
                _signal(pid, signal.SIGSTOP)
            stopped.update(new)
            continue
        for pid in found:
            _signal(pid, signal.SIGKILL)
        time.sleep(0.005)
        ended = _reap(program)
        status = status if ended is None else ended
    return status


def remove_tree(folder: str | os.PathLike[str]) -> None:
    """Remove a folder that a submission wrote in: locked folders and deep ones, too."""
    with contextlib.suppress(RecursionError):
        shutil.rmtree(folder, ignore_errors=True)
    if os.path.exists(folder) and os.name == "posix":
        for command in (["chmod", "-R", "u+rwX", "--"], ["rm", "-rf", "--"]):
            subprocess.run([*command, folder], capture_output=True, check=False)


def _watch(program: int, order: dict) -> tuple[int | None, str]:
    """Wait for the program's end; its status, and why it is to be ended."""
    begin = time.monotonic()
    while True:
        status = _reap(program)
        if status is not None:
            return status, ""
        if time.monotonic() - begin > order["seconds"]:
            return None, "time"
        found = descendants(os.getpid()).values()
        if sum(threads for threads, _ in found) > order["threads"]:
            return None, "threads"
        if sum(held for _, held in found) > order["bytes"]:
            return None, "memory"
        if select.select([0], [], [], _POLL_S)[0] and not os.read(0, 1):
            return None, "parent"


def main() -> None:
    """Carry out the order on stdin."""
    order = json.loads(sys.stdin.buffer.raw.readline())  # type: ignore[union-attr]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # unlike SIG_IGN, for this program alone
    adopt_orphans()
    protect()
    program = subprocess.Popen(
        order["command"], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    ).pid  # fmt: skip
    status, why = _watch(program, order)
    swept = _sweep(program)
    status = swept if status is None else status
    os.chdir("/")
    remove_tree(order["folder"])
    os.write(1, b"\n" + json.dumps({"ended": status, "why": why}).encode() + b"\n")


if __name__ == "__main__":
    main()
