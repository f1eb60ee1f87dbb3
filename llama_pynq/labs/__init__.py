"""Checks for the notebooks' exercises, in stages, with a hint for each mistake.

A notebook ends an exercise with ``labs.check("04.1", answer)``. The checks of a lesson are in
``lesson_NN.py``, one generator per exercise. A generator takes the learner's answers and yields,
for each stage, an empty string or a hint. The first hint ends the check.
"""

from __future__ import annotations

import dis
import html
import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llama_pynq.errors import RequestError

RESULT_TYPE = "application/vnd.llama-pynq.check+json"
"""MIME type of a check's result, which ``labs grade`` collects."""

Check = Callable[..., Iterator[str]]
_MARKS = {"passed": "✔", "wrong": "✘", "to do": "…", "not reached": "·"}


class _ToDo(Exception):
    """The answer is still the notebook's placeholder."""


class _Unusable(Exception):
    """No check accepts an answer of this kind; the message says what to give."""


class _NothingReturned(Exception):
    """The learner's function has a body but returned None."""


@dataclass(frozen=True)
class Exercise:
    """An exercise: its name, title and stages, and the check of its answers."""

    name: str
    title: str
    stages: tuple[str, ...]
    check: Check


@dataclass(frozen=True)
class Result:
    """Result of a check, which the notebook shows as the cell's value.

    Attributes
    ----------
    exercise, title : str
    stages : tuple of str
        Names of all stages.
    passed : int
        Number of stages passed, counted from the first.
    state : {"passed", "wrong", "to do"}
    hint : str
        Hint for the first stage not passed; empty if all are passed.
    """

    exercise: str
    title: str
    stages: tuple[str, ...]
    passed: int
    state: str
    hint: str

    def _lines(self) -> list[tuple[str, str]]:
        """Return (state, stage) for every stage."""
        after = [self.state] + ["not reached"] * len(self.stages)
        return list(zip(["passed"] * self.passed + after, self.stages))

    def __repr__(self) -> str:
        lines = [f"Exercise {self.exercise}, {self.title}: {self.state}"]
        lines += [f"  {_MARKS[state]} {stage}" for state, stage in self._lines()]
        if self.hint:
            lines.append(f"  {self.hint}")
        return "\n".join(lines)

    def _html(self) -> str:
        items = "".join(
            f"<li style='list-style:none'>{_MARKS[state]} {html.escape(stage)}"
            f"<span style='opacity:.6'>{'' if state == 'passed' else f' ({state})'}</span></li>"
            for state, stage in self._lines()
        )
        hint = f"<p style='margin:.3em 0'>{html.escape(self.hint)}</p>" if self.hint else ""
        return (
            "<div role='status' style='border-left:4px solid currentColor;padding-left:.8em'>"
            f"<b>Exercise {self.exercise}, {html.escape(self.title)}: {self.state}</b>"
            f"<ul style='margin:.3em 0;padding:0'>{items}</ul>{hint}</div>"
        )

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        record = {
            "exercise": self.exercise,
            "title": self.title,
            "state": self.state,
            "passed": self.passed,
            "stages": list(self.stages),
            "hint": self.hint,
        }
        return {"text/plain": repr(self), "text/html": self._html(), RESULT_TYPE: record}


# ---- for lessons ----------------------------------------------------------------------

_exercises: dict[str, Exercise] = {}


def exercise(name: str, title: str, stages: Sequence[str]) -> Callable[[Check], Check]:
    """Decorate a generator of hints as the check of an exercise.

    Parameters
    ----------
    name : str
        Lesson and number, such as "04.1".
    title : str
    stages : sequence of str
        Names of the stages, one for each yield, in order.
    """

    def register(check: Check) -> Check:
        _exercises[name] = Exercise(name, title, tuple(stages), check)
        return check

    return register


def expect(holds: Any, hint: str) -> str:
    """Return the value for a check to yield: empty if `holds`, else the hint."""
    return "" if bool(holds) else hint


def exercises(lesson: str) -> list[Exercise]:
    """Return every exercise of a lesson, such as "04".

    Raises
    ------
    RequestError
        If there is no such lesson.
    """
    try:
        importlib.import_module(f".lesson_{lesson}", __name__)
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.lesson_{lesson}":
            raise
        raise RequestError(
            f"there is no lesson {lesson!r} with exercises: exercises have names like '04.1'"
        ) from None
    return [e for name, e in sorted(_exercises.items()) if name.startswith(f"{lesson}.")]


# ---- for notebooks --------------------------------------------------------------------


def _answer(value: Any) -> Any:
    """Return the learner's answer; a function is wrapped to detect one left empty."""
    if value is None or value is ...:
        raise _ToDo
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()  # a number: some NumPy functions return it as an array
    if isinstance(value, str) and _is_number(value):
        raise _Unusable(f"{value!r} is text. Give the number itself, without quotes.")
    if not callable(value) or isinstance(value, type):
        return value

    def watched(*args: Any, **kwargs: Any) -> Any:
        result = value(*args, **kwargs)
        if result is ...:
            raise _ToDo
        if result is None:
            raise _ToDo if _as_it_came(value) else _NothingReturned
        return result

    return watched


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _as_it_came(function: Callable[..., Any]) -> bool:
    """Whether a function's body is empty, such as ``...``."""
    code = getattr(function, "__code__", None)
    # Four instructions are too few to load an argument, use it, and return.
    return code is None or len(list(dis.get_instructions(code))) <= 4


def check(name: str, *answers: Any) -> Result:
    """Check an exercise and report how many stages its answers pass.

    Parameters
    ----------
    name : str
        Lesson and number, such as "04.1".
    *answers
        What the exercise asks for; ``...``, None and empty functions count as not done.

    Returns
    -------
    Result
        A wrong answer raises nothing, so that the notebook goes on.

    Raises
    ------
    RequestError
        If there is no such exercise.
    """
    found = {e.name: e for e in exercises(str(name).split(".")[0])}
    if name not in found:
        raise RequestError(f"there is no exercise {name!r}: choose one of {', '.join(found)}")
    task, passed, state, hint = found[name], 0, "passed", ""
    try:
        for hint in task.check(*map(_answer, answers)):
            if hint:
                state = "wrong"
                break
            passed += 1
    except _ToDo:
        state, hint = "to do", "Replace the ... in the cell above, run it, and run this one again."
    except _Unusable as error:
        state, hint = "wrong", str(error)
    except _NothingReturned:
        state, hint = "wrong", "Your function returned nothing: is the return missing?"
    except Exception as error:  # the learner's code may raise anything
        state, hint = "wrong", f"Your code raised {type(error).__name__}: {error}"
    return Result(name, task.title, task.stages, passed, state, hint)
