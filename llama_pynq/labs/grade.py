"""Grade submissions: run their answers inside the package's own notebooks.

Grading takes only the exercise cells of a submission, by their ids, and puts them into the
package's notebook of that lesson; other edits and deletions in the submission do not matter. The
result of an exercise is the value of the package's own check cell. ``llama_pynq.labs`` is reloaded
before each check cell, so that an answer that patches it gains nothing.

Answers and checks still share one process, so a determined student can forge a result.
`Grade.note` lists the names in an answer that an honest one seldom needs; see docs/teaching.md.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from llama_pynq.errors import LlamaPynqError
from llama_pynq.labs import Exercise, exercises
from llama_pynq.labs.confine import Job
from llama_pynq.labs.files import notebook_sources
from llama_pynq.labs.submission import EXERCISE, TOO_DEEP, Unreadable, read_notebook, unusable
from llama_pynq.utils.files import user_path

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
_START_S = 90.0  # for a kernel to start and end, beside the time limit of its notebook
_READ_S = 60.0


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
        cell. "time-out": the answer ran too long. "crashed": it ended the kernel, or took more
        processes or memory than it may. "no result": the check gave no result, more than one, or
        one of another exercise. "unreadable": the answer cannot be run. "unreadable", "unknown
        lesson", "not graded" without an exercise: the file cannot be graded.
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
        cells = [cell for cell in read_notebook(path)["cells"] if cell["cell_type"] == "code"]
        found = [match for cell in cells if (match := EXERCISE.fullmatch(cell["id"]))]
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


def _lesson_of(path: Path, answers: Mapping[str, str], known: Mapping[str, Lesson]) -> Lesson:
    numbers = {match[1] for name in answers if (match := EXERCISE.fullmatch(name))}
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


# ---- running --------------------------------------------------------------------------


@dataclass
class _Outcome:
    """Results, errors and times of one run of a lesson's notebook."""

    results: dict[str, list[Any]]  # of the check cells, by exercise cell id
    errors: dict[str, str]  # by cell id
    seconds: dict[str, float]  # by exercise cell id
    stopped: tuple[str, str] | None = None  # state, and the exercise at which it stopped
    why: str = ""  # it stopped


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


def _run(lesson: Lesson, answers: Mapping[str, str], timeout: float) -> _Outcome:
    """Run a lesson's notebook with these answers in their cells."""
    outcome = _Outcome({name: [] for name in lesson.exercises}, {}, {})
    cells: list[dict[str, str]] = []
    for cell in lesson.cells:
        if cell["id"].startswith("check-"):
            cells.append({"id": f"fresh-{cell['id']}", "source": _FRESH})
        cells.append({"id": cell["id"], "source": answers.get(cell["id"], cell["source"])})
    names = list(lesson.exercises)
    request = {"cells": cells, "names": names, "timeout": timeout}
    job = Job("run", request, timeout + _START_S)
    current, done = "", False
    for message in job.messages():
        if "at" in message:
            current = message["at"]
        elif "error" in message:
            outcome.errors.setdefault(*message["error"])
        elif "result" in message:
            name, found = message["result"]
            outcome.results[name].append(found)
        elif "seconds" in message:
            name, outcome.seconds[name] = message["seconds"]
        elif "stopped" in message:
            outcome.stopped, outcome.why = (message["stopped"], current), message["why"]
        done = done or "done" in message
    if outcome.stopped is None and not done:
        outcome.stopped = ("time-out" if job.end.late else "crashed", current)
        outcome.why = job.end.why or "the process that ran it ended"
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
        and type(found.get("passed")) is int
        and 0 <= found["passed"] <= len(exercise.stages)
        and isinstance(found.get("hint"), str)
    )
    if not genuine:
        return replace(row, state="no result", error="the result does not come from this check")
    return replace(row, state=found["state"], passed=found["passed"], hint=found["hint"])


def _grade(
    row: Grade,
    lesson: Lesson,
    answers: Mapping[str, str],
    notes: Mapping[str, str],
    timeout: float,
) -> list[Grade]:
    """Return the rows of a submission whose lesson is known."""
    left = {name: text for name, text in answers.items() if name in lesson.exercises}
    rows: dict[str, Grade] = {}
    for name, exercise in lesson.exercises.items():
        blank = replace(row, exercise=exercise.name, stages=len(exercise.stages))
        if name in left and (why := unusable(left[name])):
            rows[name] = replace(blank, state="unreadable", error=why)
            del left[name]
        elif name in left:
            rows[name] = replace(blank, note=notes.get(name, TOO_DEEP))
        else:
            why = f"the submission has no code cell {name}"
            rows[name] = replace(blank, state="missing", error=why)
    # Leave out an answer that hangs or ends the kernel, and rerun the others without it.
    while True:
        outcome = _run(lesson, left, timeout)
        if outcome.stopped is None or outcome.stopped[1] not in left:
            break
        state, name = outcome.stopped
        taken = outcome.seconds.get(name)
        rows[name] = replace(rows[name], state=state, error=outcome.why, seconds=taken)
        del left[name]
    for name in left:
        rows[name] = _row(rows[name], lesson.exercises[name], name, outcome)
        if outcome.stopped is not None and not outcome.results[name]:
            why = f"the notebook stopped at a cell that holds no submitted answer: {outcome.why}"
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
        try:
            answers, notes = _read(path)
        except Unreadable as error:
            return [replace(row, state="unreadable", error=str(error))]
        try:
            lesson = _lesson_of(path, answers, known)
        except Unreadable as error:
            return [replace(row, state="unknown lesson", error=str(error))]
        return _grade(replace(row, lesson=lesson.number), lesson, answers, notes, timeout)
    except Exception as error:  # one submission never costs the others' grades
        return [replace(row, state="not graded", error=f"{type(error).__name__}: {error}")]


def _read(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """The answers of a submission, and what to review in each, by cell id.

    In a process of its own: a syntax tree that is deep enough crashes the interpreter.

    Raises
    ------
    Unreadable
        If the file is no submission.
    """
    job = Job("read", {"path": str(path.absolute())}, _READ_S)
    answers: dict[str, str] | None = None
    notes: dict[str, str] = {}
    for message in job.messages():
        if "unreadable" in message:
            raise Unreadable(message["unreadable"])
        if "answers" in message:
            answers = message["answers"]
        elif "note" in message:
            name, notes[name] = message["note"]
    if answers is None:
        raise Unreadable(f"cannot be read: {job.end.why or 'its reader ended'}")
    return answers, notes


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
