"""Every notebook: format, and a run on the emulated device, as shipped and solved.

nbmake runs the notebooks; the time limit per cell only guards against hangs.
"""

import re

import pytest
from support.lesson_notebooks import (
    CHECK,
    NOTEBOOKS,
    SOLUTIONS,
    complaints,
    execute,
    fill,
    make_notebook,
    read,
    results,
    sections,
)

from llama_pynq import labs

LESSONS = [
    "01_prompting",
    "02_layer_timing",
    "03_power_and_energy",
    "04_int8_by_hand",
    "05_attention_and_the_kv_cache",
    "06_which_board",
    "07_batching",
    "08_build_your_own_overlay",
]
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_notebooks_and_their_solutions_are_all_there():
    assert [path.stem for path in NOTEBOOKS] == LESSONS
    assert [path.stem for path in sorted(SOLUTIONS.glob("*.py"))] == LESSONS


@each_notebook
def test_notebook_keeps_the_rules(path):
    assert list(complaints(read(path), path.stem[:2])) == []


@each_notebook
def test_notebook_has_the_exercises_of_its_lesson(path):
    found = [CHECK.fullmatch(cell["id"]) for cell in read(path)["cells"]]
    checked = [".".join(check.groups()) for check in found if check]
    assert checked == [exercise.name for exercise in labs.exercises(path.stem[:2])]


def states(executed):
    return {name: record["state"] for name, record in results(executed).items()}


def all_in(state, path):
    return {exercise.name: state for exercise in labs.exercises(path.stem[:2])}


@each_notebook
def test_notebook_as_shipped_runs_and_every_check_is_to_do(path, tmp_path):
    assert states(execute(read(path), tmp_path)) == all_in("to do", path)


@each_notebook
def test_notebook_with_solutions_passes_every_check(path, tmp_path):
    solutions = (SOLUTIONS / f"{path.stem}.py").read_text(encoding="utf-8")
    found = results(execute(fill(read(path), solutions), tmp_path))
    assert {name: (r["state"], r["hint"]) for name, r in found.items()} == {
        name: (state, "") for name, state in all_in("passed", path).items()
    }


# ---- the checks above, on a sample notebook --------------------------------------------

LESSON = """
import sys, types
from llama_pynq import labs, LlamaOverlay
overlay = LlamaOverlay()
sys.modules["llama_pynq.labs.lesson_99"] = types.ModuleType("lesson_99")
@labs.exercise("99.1", "Double it", stages=("of one",))
def double(given):
    yield labs.expect(given(1) == 2, "that is not the double")
@labs.exercise("99.2", "Predict", stages=("a number",))
def predict(given):
    yield labs.expect(given == 7, "more")
"""
CELLS = {
    "text-title": "# A lesson\n\n[links](https://pynq.io) are allowed",
    "lesson": LESSON,
    "exercise-99-1": "def double(x):\n    ...",
    "check-99-1": 'labs.check("99.1", double)',
    "text-predict": "Predict.",
    "exercise-99-2": "prediction = ...",
    "check-99-2": 'labs.check("99.2",\n    prediction)',
    "close": "overlay.close()",
}
SOLVED = """A comment, then

# %% exercise-99-1
def double(x):
    return 2 * x

# %% exercise-99-2
prediction = 7
"""


@pytest.fixture
def notebook():
    return make_notebook(CELLS)


def test_sample_notebook_keeps_the_rules(notebook):
    assert list(complaints(notebook, "99")) == []


def test_sample_notebook_runs_as_shipped(notebook, tmp_path):
    assert states(execute(notebook, tmp_path)) == {"99.1": "to do", "99.2": "to do"}


def test_sample_notebook_runs_solved(notebook, tmp_path):
    found = results(execute(fill(notebook, SOLVED.replace("7", "6")), tmp_path))
    assert {name: r["state"] for name, r in found.items()} == {"99.1": "passed", "99.2": "wrong"}
    assert found["99.2"]["hint"] == "more"


def test_execute_reports_the_cell_that_raised(tmp_path):
    notebook = make_notebook({"bad": "width = 3\nwidth / 0"})
    with pytest.raises(AssertionError, match="(?s)width / 0.*ZeroDivisionError"):
        execute(notebook, tmp_path)


def test_fill_replaces_exercises_only(notebook):
    filled = {cell["id"]: cell["source"] for cell in fill(notebook, SOLVED)["cells"]}
    assert filled == {
        **{cell["id"]: cell["source"] for cell in notebook["cells"]},
        **sections(SOLVED),
    }
    assert sections(SOLVED) == {
        "exercise-99-1": "def double(x):\n    return 2 * x",
        "exercise-99-2": "prediction = 7",
    }


def test_fill_names_what_does_not_match(notebook):
    with pytest.raises(ValueError, match="no solution of exercise-99-2"):
        fill(notebook, SOLVED.partition("# %% exercise-99-2")[0])
    with pytest.raises(ValueError, match="cells that there are not: exercise-99-3"):
        fill(notebook, SOLVED + "# %% exercise-99-3\nx = 1\n")


@pytest.mark.parametrize(
    "cells, complaint",
    [
        ({"text-x": '<script src="x.js">'}, "cell 'text-x': '<script'"),
        ({"text-x": "![board](https://x.org/a.png)"}, "cell 'text-x': '!.board.*needs a network"),
        ({"code-x": "%%javascript\n1"}, "cell 'code-x': '%%javascript'"),
        ({"code-x": "x = 1\n" * 16}, "cell 'code-x': more than 15 lines"),
        ({"1a2b3c4d": "x = 1"}, "cell '1a2b3c4d': its id is missing, repeated or random"),
        ({"exercise-99-3": "x = ..."}, "cell 'exercise-99-3', then '': not an exercise and"),
        ({"check-99-3": 'labs.check("99.3", 1)'}, "cell 'check-99-2', then 'check-99-3'"),
        (
            {"exercise-99-3": "x = ...", "check-99-3": 'labs.check("99.3", x);\n1'},
            "cell 'check-99-3': does not end in labs.check..99.3",
        ),
        (
            {"exercise-98-3": "x = ...", "check-98-3": 'labs.check("98.3", x)'},
            "cell 'exercise-98-3': not of lesson 99",
        ),
    ],
)
def test_complaints_about_a_cell(cells, complaint):
    close = {"close": "overlay.close()"}
    without = {name: text for name, text in CELLS.items() if name != "close"}
    (found,) = complaints(make_notebook({**without, **cells, **close}), "99")
    assert re.search(complaint, found)


def _minor_4(notebook):
    notebook["nbformat_minor"] = 4


def _ran(notebook):
    notebook["cells"][1]["execution_count"] = 3


def _twice(notebook):
    notebook["cells"][1]["id"] = "close"


def _stays_open(notebook):
    del notebook["cells"][-1]


def _one_exercise(notebook):
    del notebook["cells"][2:4]


def _no_tag(notebook):
    notebook["cells"][2]["metadata"] = {}


def _saved_widgets(notebook):
    notebook["metadata"]["widgets"] = {}


@pytest.mark.parametrize(
    "spoil, complaint",
    [
        (_minor_4, "format 4.4 instead of 4.5"),
        (_ran, "cell 'lesson': outputs or a count"),
        (_twice, "cell 'close': its id is missing, repeated"),
        (_stays_open, "does not close the overlay"),
        (_one_exercise, "1 exercises instead of two or more"),
        (_no_tag, "cell 'exercise-99-1': no tag"),
        (_saved_widgets, "the state of widgets is saved"),
    ],
)
def test_complaints_about_a_notebook(notebook, spoil, complaint):
    spoil(notebook)
    assert complaint in next(complaints(notebook, "99"))
