"""Grade submissions: run their answers inside the package's own notebooks.

Grading takes only the exercise cells of a submission, by their ids, and puts them into the
package's notebook of that lesson; other edits and deletions in the submission do not matter. The
result of an exercise is the value of the package's own check cell. ``llama_pynq.labs`` is reloaded
before each check cell, so that an answer that patches it gains nothing.

Answers and checks still share one process, so a determined student can forge a result.
`Grade.note` lists the names in an answer that an honest one seldom needs; see docs/teaching.md.
"""

from __future__ import annotations

import ast
import contextlib
import csv
import importlib.util
import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_pynq.errors import LlamaPynqError
from llama_pynq.labs import RESULT_TYPE, Exercise, exercises
from llama_pynq.labs.files import notebook_sources
from llama_pynq.utils.files import user_path

if TYPE_CHECKING:
    from nbclient import NotebookClient

MAX_BYTES = 64 << 20
"""Larger notebooks are not read."""

# Names that an honest answer seldom needs.
WATCHED = frozenset(
    "labs lesson IPython get_ipython sys gc inspect builtins importlib ctypes threading atexit "
    "subprocess os shutil socket open eval exec setattr globals __import__".split()
)
_EXERCISE = re.compile(r"exercise-(\d\d)-(\d+)")
_BACKUP = re.compile(r"\.backup-\d{8}-\d{6}(-\d+)?\.ipynb$", re.IGNORECASE)
_FRESH = """\
def _fresh():
    import importlib, sys
    for name in [name for name in sys.modules if f"{name}.".startswith("llama_pynq.labs.")]:
        del sys.modules[name]
    return importlib.import_module("llama_pynq.labs")

labs = _fresh()
del _fresh
"""


class Unreadable(Exception):
    """The file is no submission; the message says why."""


@dataclass(frozen=True)
class Grade:
    """Result of one exercise of one submission, or of a file that is no submission.

    Attributes
    ----------
    student : str
        First folder on the path from the graded folder to the file; without one, the file's stem.
    file : str
        Path relative to the graded folder.
    lesson, exercise : str
        "04" and "04.1"; empty for a file that was not run.
    state : str
        "passed", "wrong" or "to do": the state of the check. "missing": the submission lacks the
        cell. "time-out": the answer ran too long. "crashed": it ended the kernel. "no result": the
        check gave no result, more than one, or one of another exercise. "unreadable", "unknown
        lesson": the file cannot be graded.
    passed, stages : int or None
        Stages that the answer passed, and stages of the exercise.
    hint : str
        Hint of the check.
    seconds : float or None
        From the start of the exercise's cell to the end of its check.
    error : str
        Exception that the answer's cell raised, or why there is no result.
    note : str
        What a person should review in the answer.
    """

    student: str
    file: str
    lesson: str = ""
    exercise: str = ""
    state: str = ""
    passed: int | None = None
    stages: int | None = None
    hint: str = ""
    seconds: float | None = None
    error: str = ""
    note: str = ""


@dataclass(frozen=True)
class Lesson:
    """A notebook of the package and its exercises, by cell id."""

    number: str
    name: str
    cells: tuple[Mapping[str, Any], ...]
    exercises: Mapping[str, Exercise]

    @classmethod
    def read(cls, path: Path) -> Lesson | None:
        """Read a lesson from the package's notebook; None if it has no exercises.

        Raises
        ------
        LlamaPynqError
            If the notebook has an exercise without a check.
        """
        cells = [cell for cell in _notebook(path)["cells"] if cell["cell_type"] == "code"]
        found = [match for cell in cells if (match := _EXERCISE.fullmatch(cell["id"]))]
        if not found:
            return None
        number = found[0][1]
        checks = {exercise.name: exercise for exercise in exercises(number)}
        try:
            named = {match[0]: checks[f"{number}.{match[2]}"] for match in found}
        except KeyError as error:
            raise LlamaPynqError(f"{path.name} has an exercise without a check: {error}") from None
        return cls(number, path.stem, tuple(cells), named)


def lessons(sources: Sequence[Path] | None = None) -> dict[str, Lesson]:
    """Return the lessons that can be graded, by number; default: the package's notebooks."""
    found = map(Lesson.read, notebook_sources() if sources is None else sources)
    return {lesson.number: lesson for lesson in found if lesson is not None}


# ---- submissions ----------------------------------------------------------------------


def submissions(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the notebooks in a folder tree, without checkpoints, hidden files and backups.

    Raises
    ------
    LlamaPynqError
        If there is no such folder, or no notebook in it.
    """
    folder = user_path(folder)
    if not folder.is_dir():
        raise LlamaPynqError(f"there is no folder {folder}: give the one with the submissions")
    found = []
    for here, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        found += [
            Path(here, name)
            for name in sorted(files)
            if name.lower().endswith(".ipynb")
            and not name.startswith(".")
            and not _BACKUP.search(name)
        ]
    if not found:
        raise LlamaPynqError(f"{folder} holds no notebook (.ipynb), nor do the folders in it")
    return found


def _notebook(path: Path) -> dict[str, Any]:
    """Return a notebook's JSON, with every cell's source as one string.

    Raises
    ------
    Unreadable
        If the file is no notebook of format 4.
    """
    if path.stat().st_size > MAX_BYTES:
        raise Unreadable(f"is larger than {MAX_BYTES >> 20} MiB: clear its outputs")
    text = path.read_bytes()
    if not text.strip():
        raise Unreadable("is empty")
    try:
        notebook = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"is not JSON, or cut short: {error}") from None
    if not isinstance(notebook, dict) or not isinstance(notebook.get("nbformat"), int):
        raise Unreadable("is JSON, but no notebook")
    if notebook["nbformat"] != 4 or not isinstance(notebook.get("cells"), list):
        raise Unreadable(f"is a notebook of format {notebook['nbformat']}, not 4")
    for cell in notebook["cells"]:
        source = cell.get("source") if isinstance(cell, dict) else None
        if isinstance(source, list) and all(isinstance(line, str) for line in source):
            source = cell["source"] = "".join(source)
        if not isinstance(source, str) or not isinstance(cell.get("cell_type"), str):
            raise Unreadable("is damaged: it has a cell without a type or source")
    return notebook


def read_answers(path: Path) -> dict[str, str]:
    """Return the sources of a submission's exercise cells, by cell id.

    Raises
    ------
    Unreadable
        If the file is a link, no notebook, or has two exercise cells of one id.
    """
    if path.is_symlink() or not path.is_file():
        raise Unreadable("is a link or no ordinary file: submit the notebook itself")
    answers: dict[str, str] = {}
    for cell in _notebook(path)["cells"]:
        name = cell.get("id")
        if cell["cell_type"] == "code" and isinstance(name, str) and _EXERCISE.fullmatch(name):
            if name in answers:
                raise Unreadable(f"has two cells {name}: keep only one")
            answers[name] = cell["source"]
    return answers


def _lesson_of(path: Path, answers: Mapping[str, str], known: Mapping[str, Lesson]) -> Lesson:
    numbers = {match[1] for name in answers if (match := _EXERCISE.fullmatch(name))}
    if len(numbers) > 1:
        raise Unreadable(f"has exercises of several lessons: {', '.join(sorted(numbers))}")
    if not numbers and (match := re.match(r"\d\d(?=_)", path.name)):
        numbers = {match[0]}
    for number in numbers & set(known):
        return known[number]
    raise Unreadable(
        f"has exercises of lesson {numbers.pop()}, which this version does not have"
        if numbers
        else "has no cell whose id is an exercise's, such as exercise-04-1: is it one of the "
        "package's notebooks, and did the program that saved it keep the cells' ids?"
    )


def suspicious(source: str) -> str:
    """Describe what an answer uses but should not need; empty for an ordinary answer."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return "not plain Python (a magic, or a syntax error)"
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.ImportFrom):
            names.update((node.module or "").split("."), *(a.name.split(".") for a in node.names))
        elif isinstance(node, ast.Import):
            names.update(*(a.name.split(".") for a in node.names))
        elif isinstance(node, ast.Constant) and RESULT_TYPE in str(node.value):
            names.add(RESULT_TYPE)
    odd = sorted(name for name in names if name in WATCHED | {RESULT_TYPE} or "lesson_" in name)
    return f"uses {', '.join(odd)}" if odd else ""


# ---- running --------------------------------------------------------------------------


@dataclass
class _Outcome:
    """Results, errors and times of one run of a lesson's notebook."""

    results: dict[str, list[Any]]  # of the check cells, by exercise cell id
    errors: dict[str, str]  # by cell id
    seconds: dict[str, float]  # by exercise cell id
    stopped: tuple[str, str] | None = None  # state, and the exercise at which it stopped


def require_nbclient() -> None:
    """Require the packages that run notebooks, which the extra ``lab`` installs.

    Raises
    ------
    LlamaPynqError
        If one is missing.
    """
    for name in ("ipykernel", "nbclient", "nbformat"):
        if importlib.util.find_spec(name) is None:
            raise LlamaPynqError(
                f"{name} is not installed for {sys.executable}, and grading runs notebooks: "
                "pip install 'llama_pynq[lab]'"
            )


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
    """Run a kernel in a temporary folder; on leaving, kill it and all that it started."""
    with tempfile.TemporaryDirectory(prefix="llama_pynq-grade-", ignore_cleanup_errors=True) as own:
        names = ("work", "cache", "locks", "overlays", "ipython")
        folders = {name: Path(own, name) for name in names}
        for folder in folders.values():
            folder.mkdir()
        environment = {
            **os.environ,
            "LLAMA_PYNQ_EMULATE": "1",
            "LLAMA_PYNQ_CACHE": str(folders["cache"]),
            "LLAMA_PYNQ_LOCKS": str(folders["locks"]),
            # A build of lesson 08 is trusted there: not for good, in the lecturer's folder.
            "LLAMA_PYNQ_OVERLAYS": str(folders["overlays"]),
            "IPYTHONDIR": str(folders["ipython"]),
        }
        options: dict[str, Any] = {"env": environment, "cwd": str(folders["work"])}
        options.update(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with client.setup_kernel(cleanup_kc=True, **options):
            pid = getattr(client.km.provisioner, "pid", None)
            try:
                yield
            finally:
                # The kernel leads a process group, which contains the processes it started.
                if pid is not None and hasattr(os, "killpg"):
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.killpg(pid, signal.SIGKILL)


def _run(lesson: Lesson, answers: Mapping[str, str], timeout: float) -> _Outcome:
    """Run a lesson's notebook with these answers in their cells."""
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    outcome = _Outcome({name: [] for name in lesson.exercises}, {}, {})

    def sink(cell: str, msg: dict) -> None:
        kind, content = msg["msg_type"], msg["content"]
        if kind == "error":
            text = f"{content.get('ename')}: {content.get('evalue')}"
            outcome.errors.setdefault(cell, text[:500])
        elif kind == "execute_result" and cell.startswith("check-"):
            # A check's result is its cell's value; other displayed output does not count.
            if RESULT_TYPE in content.get("data", {}):
                name = cell.replace("check-", "exercise-", 1)
                outcome.results[name].append(content["data"][RESULT_TYPE])

    cells: list[Mapping[str, Any]] = []
    for cell in lesson.cells:
        if cell["id"].startswith("check-"):
            cells.append({"id": f"fresh-{cell['id']}", "source": _FRESH})
        cells.append({"id": cell["id"], "source": answers.get(cell["id"], cell["source"])})
    client = _client(cells, sink)
    with _kernel(client):
        deadline = time.monotonic() + timeout
        client.timeout_func = lambda _: max(deadline - time.monotonic(), 0.001)
        started: dict[str, float] = {}
        current = ""
        for index, cell in enumerate(client.nb.cells):
            name = cell.id.removeprefix("fresh-").replace("check-", "exercise-", 1)
            if name in lesson.exercises:
                current = name
                started.setdefault(name, time.monotonic())
            try:
                client.execute_cell(cell, index, store_history=True)
            except (CellTimeoutError, DeadKernelError) as error:
                dead = isinstance(error, DeadKernelError)
                outcome.stopped = ("crashed" if dead else "time-out", current)
            except KeyboardInterrupt:
                # The cell's task may still end with the kernel's death, which nobody will ask for.
                logging.getLogger("asyncio").setLevel(logging.CRITICAL)
                raise
            if name in lesson.exercises:
                outcome.seconds[name] = round(time.monotonic() - started[name], 2)
            if outcome.stopped:
                break
    return outcome


def _row(row: Grade, exercise: Exercise, cell: str, outcome: _Outcome) -> Grade:
    """Return the row of an exercise that ran to its end."""
    results, name = outcome.results[cell], exercise.name
    row = replace(row, seconds=outcome.seconds.get(cell), error=outcome.errors.get(cell, ""))
    if len(results) != 1:
        why = outcome.errors.get(cell.replace("exercise-", "check-", 1))
        elsewhere = next((f"{at}: {text}" for at, text in outcome.errors.items()
                          if at not in outcome.results), "")  # fmt: skip
        why = why or elsewhere or "the check's cell has no value"
        if results:
            why = f"the check's cell gave {len(results)} results instead of one"
        return replace(row, state="no result", error="; ".join(filter(None, [row.error, why])))
    (found,) = results
    genuine = (
        isinstance(found, dict)
        and found.get("exercise") == name
        and found.get("stages") == list(exercise.stages)
        and found.get("state") in ("passed", "wrong", "to do")
        and found.get("passed") in range(len(exercise.stages) + 1)
        and isinstance(found.get("hint"), str)
    )
    if not genuine:
        return replace(row, state="no result", error="the result does not come from this check")
    return replace(row, state=found["state"], passed=found["passed"], hint=found["hint"])


def _grade(row: Grade, lesson: Lesson, answers: Mapping[str, str], timeout: float) -> list[Grade]:
    """Return the rows of a submission whose lesson is known."""
    left = {name: text for name, text in answers.items() if name in lesson.exercises}
    rows: dict[str, Grade] = {}
    for name, exercise in lesson.exercises.items():
        blank = replace(row, exercise=exercise.name, stages=len(exercise.stages))
        if name in left:
            rows[name] = replace(blank, note=suspicious(left[name]))
        else:
            why = f"the submission has no code cell {name}"
            rows[name] = replace(blank, state="missing", error=why)
    # Leave out an answer that hangs or ends the kernel, and rerun the others without it.
    while True:
        outcome = _run(lesson, left, timeout)
        if outcome.stopped is None or outcome.stopped[1] not in left:
            break
        state, name = outcome.stopped
        why = f"interrupted after {timeout:g} s" if state == "time-out" else "the kernel ended"
        taken = outcome.seconds.get(name)
        rows[name] = replace(rows[name], state=state, error=why, seconds=taken)
        del left[name]
    for name in left:
        rows[name] = _row(rows[name], lesson.exercises[name], name, outcome)
        if outcome.stopped is not None and not outcome.results[name]:
            why = "the notebook stopped at a cell that holds no submitted answer"
            rows[name] = replace(rows[name], state=outcome.stopped[0], error=why)
    return list(rows.values())


def grade(
    path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    known: Mapping[str, Lesson],
    timeout: float,
) -> list[Grade]:
    """Grade one file.

    Parameters
    ----------
    path : str or path
        The submission.
    folder : str or path
        The graded folder: the first folder from there to `path` is the student's name.
    known : mapping of str to Lesson
        See `lessons`.
    timeout : float
        Seconds that a run of the notebook may take. Each answer that hangs or ends the kernel
        takes one more run.

    Returns
    -------
    list of Grade
        One for each exercise of its lesson, or a single one if the file cannot be graded.
    """
    path = user_path(path)
    inside = path.relative_to(user_path(folder))
    student = inside.parts[0] if len(inside.parts) > 1 else path.stem
    row = Grade(student, inside.as_posix())
    try:
        answers = read_answers(path)
    except (Unreadable, OSError) as error:
        return [replace(row, state="unreadable", error=str(error))]
    try:
        lesson = _lesson_of(path, answers, known)
    except Unreadable as error:
        return [replace(row, state="unknown lesson", error=str(error))]
    return _grade(replace(row, lesson=lesson.number), lesson, answers, timeout)


# ---- the table ------------------------------------------------------------------------


def _cell(value: Any) -> Any:
    """Return a value safe for spreadsheets, which run a text that starts like a formula."""
    if isinstance(value, str):
        value = " ".join(value.split())[:2000]
        return f"'{value}" if value[:1] in tuple("=+-@") else value
    return value


def table(rows: Sequence[Grade]) -> bytes:
    """Return rows as CSV, UTF-8 with a byte-order mark; without it, Excel guesses an encoding."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow([field.name for field in fields(Grade)])
    for row in rows:
        writer.writerow([_cell(value) for value in asdict(row).values()])
    return text.getvalue().encode("utf-8-sig", errors="backslashreplace")
