"""Make notebooks, check their format, fill in solutions, and execute them.

Solutions are files ``tests/notebooks/solutions/NN_name.py`` with a section ``# %% exercise-NN-k``
per exercise, which replaces the source of the cell with that id.
"""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support.paths import REPOSITORY, TESTS

from llama_pynq.labs import RESULT_TYPE

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
SOLUTIONS = TESTS / "notebooks" / "solutions"

LINES_AT_MOST = 15
EXERCISE = re.compile(r"exercise-(\d\d)-(\d+)")
CHECK = re.compile(r"check-(\d\d)-(\d+)")
RANDOM_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){0,3}(-[0-9a-f]{12})?")
REMOTE = re.compile(
    r"""<(script|link|iframe)\b | \bsrc\s*=\s*["']?(https?:)?// | \burl\(["']?https?:
      | !\[[^]]*\]\(https?: | @import | %%(javascript|js)\b | \bJavascript\( | \bimport\(""",
    re.VERBOSE | re.IGNORECASE,
)


def make_notebook(cells: dict[str, str]) -> dict[str, Any]:
    """Make a notebook from cell sources by id; ids that begin with "text" are Markdown cells."""

    def cell(name: str, source: str) -> dict[str, Any]:
        common = {"id": name, "metadata": {}, "source": source.strip("\n")}
        if name.startswith("text"):
            return {"cell_type": "markdown", **common}
        if name.startswith("exercise"):
            common["metadata"] = {"tags": ["exercise"]}
        return {"cell_type": "code", "execution_count": None, "outputs": [], **common}

    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {
        "cells": [cell(*item) for item in cells.items()],
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def write(notebook: dict[str, Any], path: Path) -> Path:
    path.write_text(json.dumps(notebook, indent=1), encoding="utf-8")
    return path


def source(cell: dict[str, Any]) -> str:
    """Text of a cell; the format also allows a list of lines."""
    return "".join(cell["source"])


def complaints(notebook: dict[str, Any], lesson: str) -> Iterator[str]:
    """Yield every format fault of a notebook that has not been run, cell by cell.

    Parameters
    ----------
    notebook : dict
    lesson : str
        Lesson number, such as "04".
    """
    if (notebook["nbformat"], notebook["nbformat_minor"]) != (4, 5):
        yield f"format {notebook['nbformat']}.{notebook['nbformat_minor']} instead of 4.5"
    if notebook["metadata"].get("kernelspec", {}).get("name") != "python3":
        yield "the kernel is not python3, which every Jupyter has"
    if "widgets" in notebook["metadata"]:
        yield "the state of widgets is saved in it"
    cells = notebook["cells"]
    names = [cell.get("id", "") for cell in cells]
    for name, cell in zip(names, cells):
        if not name or names.count(name) > 1 or RANDOM_ID.fullmatch(name):
            yield f"cell {name!r}: its id is missing, repeated or random"
        if cell["cell_type"] == "code":
            if cell["outputs"] or cell["execution_count"] is not None:
                yield f"cell {name!r}: outputs or a count are left of a run"
            if len(source(cell).splitlines()) > LINES_AT_MOST:
                yield f"cell {name!r}: more than {LINES_AT_MOST} lines"
        if found := REMOTE.search(source(cell)):
            yield f"cell {name!r}: {found[0]!r}, which needs a network or is JavaScript"
    code = [source(cell) for cell in cells if cell["cell_type"] == "code"]
    if not code or "overlay.close()" not in code[-1]:
        yield "the last code cell does not close the overlay"
    yield from _unpaired(cells, lesson)


def _unpaired(cells: list[dict[str, Any]], lesson: str) -> Iterator[str]:
    """Yield exercises without a check before the next exercise, and checks without an exercise."""
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    steps = [cell for cell in code if re.match("(exercise|check)-", cell.get("id", ""))]
    nothing: dict[str, Any] = {"id": "", "metadata": {}}
    exercises = 0
    for before, cell in zip([nothing, *steps], [*steps, nothing]):
        task, check = EXERCISE.fullmatch(before["id"]), CHECK.fullmatch(cell["id"])
        if task:
            exercises += 1
            if task[1] != lesson:
                yield f"cell {before['id']!r}: not of lesson {lesson}"
            if "exercise" not in before["metadata"].get("tags", []):
                yield f"cell {before['id']!r}: no tag 'exercise'"
        if (task and task.groups()) != (check and check.groups()):
            yield f"cell {before['id']!r}, then {cell['id']!r}: not an exercise and its check"
        elif check and not _ends_in(call := f'labs.check("{check[1]}.{check[2]}"', source(cell)):
            yield f"cell {cell['id']!r}: does not end in {call}"
    if exercises < 2:
        yield f"{exercises} exercises instead of two or more"


def _ends_in(call: str, text: str) -> bool:
    last = re.split(r"\n(?=\S)", text.strip())[-1]  # indented lines belong to it
    return last.startswith(call)


def sections(text: str) -> dict[str, str]:
    """Sections of a solutions file, by the id of the cell that each replaces."""
    parts = re.split(r"^# %% (\S+)[ \t]*\n", text, flags=re.MULTILINE)[1:]
    return {name: part.strip("\n") for name, part in zip(parts[::2], parts[1::2])}


def solution(notebook: str, **given: Any) -> dict[str, Any]:
    """Names that a notebook's solutions define, given the names defined before them."""
    names = dict(given)
    for source in sections((SOLUTIONS / f"{notebook}.py").read_text(encoding="utf-8")).values():
        exec(source, names)
    return names


def fill(notebook: dict[str, Any], solutions: str) -> dict[str, Any]:
    """Copy a notebook and solve every exercise.

    Raises
    ------
    ValueError
        If a solution has no cell or an exercise has no solution; the message names them.
    """
    filled, solved = copy.deepcopy(notebook), sections(solutions)
    cells = {cell["id"]: cell for cell in filled["cells"]}
    if astray := solved.keys() - cells.keys():
        raise ValueError(f"solutions of cells that there are not: {', '.join(sorted(astray))}")
    if missing := {name for name in cells if EXERCISE.fullmatch(name)} - solved.keys():
        raise ValueError(f"no solution of {', '.join(sorted(missing))}")
    for name, text in solved.items():
        cells[name]["source"] = text
    return filled


def execute(notebook: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run a notebook with nbmake and its own locks; returns the notebook with its outputs.

    Raises
    ------
    AssertionError
        With nbmake's report, if a cell raised.
    """
    path = write(notebook, folder / "notebook.ipynb")
    # nbmake keeps the outputs only if it overwrites its input.
    nbmake = ["-m", "pytest", "--nbmake", "--overwrite", "-p", "no:cacheprovider", path.name]
    (folder / "locks").mkdir()
    ran = subprocess.run(
        [sys.executable, *nbmake, f"--rootdir={folder}"],
        cwd=folder,
        env={
            **os.environ,
            "LLAMA_PYNQ_LOCKS": str(folder / "locks"),
            "IPYTHONDIR": str(folder / "ipython"),  # not the user's start-up files
            "JUPYTER_DATA_DIR": str(folder / "jupyter"),  # not the user's python3 kernel
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        check=False,
    )
    assert ran.returncode == 0, ran.stdout
    return read(path)


def results(executed: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Results of the checks of an executed notebook, by exercise."""
    outputs = [output for cell in executed["cells"] for output in cell.get("outputs", [])]
    found = [o["data"][RESULT_TYPE] for o in outputs if RESULT_TYPE in o.get("data", {})]
    return {record["exercise"]: record for record in found}
