"""Run a notebook cell by cell in a Jupyter kernel, and tell what the cells give."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llama_pynq.labs import RESULT_TYPE

if TYPE_CHECKING:
    from nbclient import NotebookClient

_MOST_RESULT = 1 << 16  # characters of a check's result, as JSON


def _client(
    cells: Sequence[Mapping[str, Any]], sink: Callable[[str, dict], None]
) -> NotebookClient:
    """Return a client whose kernel is this Python; it passes messages to `sink`, keeping none."""
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionComplete
    from nbformat.v4 import new_code_cell, new_notebook

    class Client(NotebookClient):
        def process_message(self, msg: dict, cell: Any, cell_index: int) -> None:
            # Keep no output: an answer may print without end.
            if msg["msg_type"] == "status" and msg["content"]["execution_state"] == "idle":
                raise CellExecutionComplete()
            sink(cell["id"], msg)

    quiet = logging.getLogger(f"{__name__}.nbclient")
    quiet.setLevel(logging.CRITICAL + 1)
    notebook = new_notebook(cells=[new_code_cell(c["source"], id=c["id"]) for c in cells])
    # No kernel spec folders: the kernel is sys.executable, not one that a user registered.
    manager = AsyncKernelManager(
        kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]), log=quiet
    )
    return Client(notebook, km=manager, allow_errors=True, shutdown_kernel="immediate", log=quiet)


@contextlib.contextmanager
def _kernel(client: NotebookClient) -> Iterator[None]:
    """Run a kernel; on leaving, kill it and the processes of its group."""
    options: dict[str, Any] = {"env": dict(os.environ), "cwd": os.getcwd()}
    options.update(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with client.setup_kernel(cleanup_kc=True, **options):
        pid = getattr(client.km.provisioner, "pid", None)
        try:
            yield
        finally:
            if pid is not None and hasattr(os, "killpg"):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)


def run(
    cells: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    timeout: float,
    emit: Callable[[dict[str, Any]], None],
) -> None:
    """Run cells in order, and emit what grading needs.

    Parameters
    ----------
    cells : sequence of mapping
        Id and source of each.
    names : sequence of str
        Ids of the exercises' cells.
    timeout : float
        Seconds for all cells together.
    emit : callable
        Takes ``{"at": exercise}`` before a cell, ``{"error": [cell, text]}``, ``{"result":
        [exercise, value]}``, ``{"seconds": [exercise, seconds]}`` and, if a cell ends the run,
        ``{"stopped": state, "why": text}``.
    """
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    def sink(cell: str, msg: dict) -> None:
        kind, content = msg["msg_type"], msg["content"]
        if kind == "error":
            text = f"{str(content.get('ename'))[:200]}: {str(content.get('evalue'))[:500]}"
            emit({"error": [cell, text[:500]]})
        elif kind == "execute_result" and cell.startswith("check-"):
            # A check's result is its cell's value; other displayed output does not count.
            if RESULT_TYPE in content.get("data", {}):
                found = content["data"][RESULT_TYPE]
                small = len(json.dumps(found)) <= _MOST_RESULT
                name = cell.replace("check-", "exercise-", 1)
                emit({"result": [name, found if small else None]})

    client = _client(cells, sink)
    with _kernel(client):
        deadline = time.monotonic() + timeout
        client.timeout_func = lambda _: max(deadline - time.monotonic(), 0.001)
        started: dict[str, float] = {}
        for index, cell in enumerate(client.nb.cells):
            name = cell.id.removeprefix("fresh-").replace("check-", "exercise-", 1)
            if name in names:
                emit({"at": name})
                started.setdefault(name, time.monotonic())
            stopped = ""
            why = ""
            try:
                client.execute_cell(cell, index, store_history=True)
            except CellTimeoutError:
                stopped, why = "time-out", f"interrupted after {timeout:g} s"
            except DeadKernelError:
                stopped, why = "crashed", "the kernel ended"
            except Exception as error:  # what an answer can make of the kernel's messages
                stopped, why = "crashed", f"the kernel failed ({type(error).__name__}: {error})"
            if name in names:
                emit({"seconds": [name, round(time.monotonic() - started[name], 2)]})
            if stopped:
                emit({"stopped": stopped, "why": why[:500]})
                break
