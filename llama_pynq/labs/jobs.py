"""The jobs of grading, each in a process of its own: read a submission, run a notebook.

``python -m llama_pynq.labs.jobs REQUEST`` reads a request that `confine.Job` wrote, and prints the
job's messages, a line of JSON each.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llama_pynq.labs import warden

_SPACE_BYTES = 16 << 30  # of addresses: numbers of threads and the emulated device take much
_FILE_BYTES = 2 << 30

Emit = Callable[[dict[str, Any]], None]


def _user_threads() -> int:
    """Threads of this user's processes."""
    total, user = 0, os.getuid()
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.stat(f"/proc/{name}").st_uid == user:
                total += len(os.listdir(f"/proc/{name}/task"))
    return total


def _limit() -> None:
    """Limit memory, files and processes of this process and of all that it starts."""
    try:
        import resource
    except ImportError:  # Windows
        return
    from llama_pynq.labs.confine import MOST_THREADS

    limits = {"RLIMIT_AS": _SPACE_BYTES, "RLIMIT_FSIZE": _FILE_BYTES, "RLIMIT_CORE": 0}
    if warden.LINUX:
        # The limit counts all processes of the user: leave room above those that run now.
        limits["RLIMIT_NPROC"] = _user_threads() + 2 * MOST_THREADS
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # if the memory is full, Linux ends this first
    for name, most in limits.items():
        with contextlib.suppress(ValueError, OSError, AttributeError, OverflowError):
            which = getattr(resource, name)
            hard = resource.getrlimit(which)[1]
            if hard != resource.RLIM_INFINITY:
                most = min(most, hard)
            resource.setrlimit(which, (most, most))


def _read(request: dict[str, Any], emit: Emit) -> None:
    """Send a submission's answers, then what to review in each.

    The interpreter itself may crash on an answer's syntax tree: its note is then missing.
    """
    from llama_pynq.labs.submission import Unreadable, read_answers, suspicious

    try:
        answers = read_answers(Path(request["path"]))
    except (Unreadable, OSError, RecursionError) as error:
        return emit({"unreadable": str(error)})
    except MemoryError:
        return emit({"unreadable": "takes more memory than it may"})
    emit({"answers": answers})
    for name, source in answers.items():
        emit({"note": [name, suspicious(source)]})


def _run(request: dict[str, Any], emit: Emit) -> None:
    from llama_pynq.labs.notebook_run import run

    run(request["cells"], request["names"], request["timeout"], emit)


JOBS: dict[str, Callable[[dict[str, Any], Emit], None]] = {"read": _read, "run": _run}


def main() -> None:
    """Do the job of the request whose path is the argument."""
    _limit()
    warden.protect(die_with_parent=True)
    path = Path(sys.argv[1])
    request = json.loads(path.read_text(encoding="ascii"))
    path.unlink()
    # Nothing that this process starts gets the file of the messages.
    out = os.fdopen(os.dup(1), "w", encoding="ascii")
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)

    def emit(message: dict[str, Any]) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    JOBS[request["kind"]](request, emit)
    emit({"done": True})


if __name__ == "__main__":
    main()
