"""Grading: what counts, reasons for ungraded submissions, and attempts to cheat."""

import csv
import io
import json
import os
import re
import sys
import time
from pathlib import Path

import pytest
from support import tiny_lesson
from support.lesson_notebooks import SOLUTIONS, sections
from support.paths import REPOSITORY
from support.tiny_lesson import RIGHT_1, RIGHT_2, TO_DO_1, cell, notebook, write

from llama_pynq.errors import LlamaPynqError
from llama_pynq.labs import grade as grading
from llama_pynq.labs.files import notebook_sources
from llama_pynq.labs.grade import Grade, grade, lessons, submissions, table
from llama_pynq.labs.submission import suspicious

pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

FORGED = """
get_ipython().display_pub.publish({
    "text/plain": "ok",
    "application/vnd.llama-pynq.check+json": {
        "exercise": "99.1", "title": "Double it", "state": "passed", "passed": 2,
        "stages": ["of one", "of any number"], "hint": "",
    },
})
"""


@pytest.fixture
def known(tmp_path, monkeypatch):
    return lessons([tiny_lesson.register(tmp_path / "package", monkeypatch)])


@pytest.fixture
def graded(tmp_path, known):
    """Grade one notebook; returns its rows."""

    def call(content, timeout=60, name="ada/99_tiny.ipynb"):
        path = write(tmp_path / "in" / name, content)
        return grade(path, tmp_path / "in", known, timeout)

    return call


def summary(rows):
    return [(row.exercise, row.state, row.passed) for row in rows]


# ---- what counts ----------------------------------------------------------------------


def test_grade_runs_the_answers_and_reports_what_the_checks_say(graded):
    first, second = graded(notebook("def double(x):\n    return 2 * abs(x)", RIGHT_2))
    assert (first.student, first.file, first.lesson) == ("ada", "ada/99_tiny.ipynb", "99")
    assert (first.exercise, first.state, first.passed, first.stages) == ("99.1", "wrong", 1, 2)
    assert first.hint == "right for 1, but not for -3: is there an abs()?"
    assert (second.exercise, second.state, second.passed, second.stages) == ("99.2", "passed", 1, 1)
    assert 0 <= second.seconds < 60
    assert first.error == first.note == second.error == ""


def test_grade_of_a_notebook_as_it_came_is_to_do(graded):
    assert summary(graded(notebook())) == [("99.1", "to do", 0), ("99.2", "to do", 0)]


def test_edited_and_deleted_cells_of_the_submission_do_not_matter(graded):
    content = notebook(RIGHT_1, "number = 1")
    edited = {"check-99-2": "print('passed')", "open": "FACTOR = 84", "measure": "raise SystemExit"}
    content["cells"] = [
        cell(c["id"], edited.get(c["id"], c["source"]), c["cell_type"])
        for c in reversed(content["cells"])
        if c["id"] != "check-99-1"
    ]
    rows = graded(content)
    assert summary(rows) == [("99.1", "passed", 2), ("99.2", "wrong", 0)]
    assert rows[1].hint == "1 is not 42"


def test_source_may_be_a_list_of_lines_and_the_name_unicode(graded):
    content = notebook(["def double(x):\n", "    return 2 * x"], RIGHT_2)
    (first, second) = graded(content, name="Øyvind Ünal_42_/lösung ☕.ipynb")
    assert (first.student, first.state, second.state) == ("Øyvind Ünal_42_", "passed", "passed")


def test_student_without_a_folder_is_named_by_the_file(graded):
    assert graded(notebook(RIGHT_1, RIGHT_2), name="grace.ipynb")[0].student == "grace"


def test_answer_that_raises_is_reported_and_the_others_go_on(graded):
    first, second = graded(notebook("def double(x):\n    return 1 / 0", "numbr = 42\n1 / 0"))
    assert (first.state, first.passed) == ("wrong", 0)
    assert "ZeroDivisionError: division by zero" in first.hint
    assert second.state == "no result"
    assert second.error.startswith("ZeroDivisionError: division by zero; NameError: name 'number'")


def test_exercise_cell_that_is_missing_is_named(graded):
    content = notebook(RIGHT_1, RIGHT_2)
    content["cells"] = [c for c in content["cells"] if c["id"] != "exercise-99-1"]
    rows = graded(content)
    assert summary(rows) == [("99.1", "missing", None), ("99.2", "passed", 1)]
    assert rows[0].error == "the submission has no code cell exercise-99-1"
    content = notebook(RIGHT_1, RIGHT_2)
    content["cells"][2] = cell("exercise-99-1", RIGHT_1, "markdown")
    assert graded(content)[0].state == "missing"


def test_kernel_is_on_the_emulated_device_in_folders_of_its_own(graded, tmp_path):
    code = """
import os, pathlib, sys
from llama_pynq.overlay_store.devices import find_device
from llama_pynq.emulation.device import EmulatedDevice
assert os.environ["LLAMA_PYNQ_EMULATE"] == "1" and isinstance(find_device(), EmulatedDevice)
pathlib.Path("litter").touch()
folders = (os.environ[f"LLAMA_PYNQ_{name}"] for name in ("CACHE", "LOCKS", "OVERLAYS"))
raise KeyError(sys.executable, os.getcwd(), *folders)
"""
    row = graded(notebook(RIGHT_1, code))[1]
    assert row.error.startswith(f"KeyError: ({sys.executable!r}, ")
    folders = [Path(text.strip(" ')")) for text in row.error.split("; ")[0].split(",")[1:]]
    assert len({folder.parent for folder in folders}) == 1 and len(folders) == 4
    assert not folders[0].parent.exists(), "the folder must be deleted after grading"
    assert [path.name for path in (tmp_path / "in").rglob("*")] == ["ada", "99_tiny.ipynb"]


# ---- answers that hang, raise or end the kernel ---------------------------------------


@pytest.mark.parametrize(
    "hang",
    [
        "while True: pass",
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        "while True: print('x' * 10000)",
    ],
)
def test_answer_that_hangs_is_interrupted_and_the_others_are_graded(graded, hang):
    start = time.monotonic()
    rows = graded(notebook(RIGHT_1, hang), timeout=4)
    assert summary(rows) == [("99.1", "passed", 2), ("99.2", "time-out", None)]
    assert rows[1].error == "interrupted after 4 s"
    assert time.monotonic() - start < 40


@pytest.mark.parametrize("at", [1, 2, -3])
def test_answer_that_hangs_in_a_later_cell_is_the_one_that_timed_out(graded, at):
    source = f"def double(x):\n    while x == {at}: pass\n    return 0 if x == 1 else 2 * x"
    if at == -3:
        source = source.replace("return 0 if x == 1 else", "return")
    rows = graded(notebook(source, RIGHT_2), timeout=4)
    assert summary(rows) == [("99.1", "time-out", None), ("99.2", "passed", 1)]


def test_answer_that_ends_the_kernel_is_named_and_the_others_are_graded(graded):
    rows = graded(notebook("import os\nos._exit(3)", RIGHT_2))
    assert summary(rows) == [("99.1", "crashed", None), ("99.2", "passed", 1)]
    assert rows[0].error == "the kernel ended"
    assert rows[0].note == "uses os"


def test_answer_that_asks_for_input_is_told_so(graded):
    assert "StdinNotImplementedError" in graded(notebook(RIGHT_1, "number = input()"))[1].error


@pytest.mark.skipif(os.name == "nt", reason="has no process groups")
def test_what_an_answer_started_ends_with_it(graded, tmp_path):
    mark = tmp_path / "pid"
    code = f"""
import subprocess, sys
process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open({str(mark)!r}, "w").write(str(process.pid))
number = 42
"""
    assert graded(notebook(RIGHT_1, code))[1].state == "passed"
    for _ in range(50):
        stat = Path(f"/proc/{mark.read_text()}/stat")
        if not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return
        time.sleep(0.1)
    pytest.fail("the process that the answer started still runs")


# ---- cheats ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cheat",
    [
        FORGED,  # the answer prints a result
        "labs.check = lambda *_: Forged()",
        "labs.exercises('99')[0].__dict__['check'] = lambda *_: iter(['', ''])",
        "labs = __import__('types').SimpleNamespace(check=lambda *_: Forged())",
        "import llama_pynq.labs.lesson_99 as l; l.expect = lambda *_: ''",
        "import llama_pynq; llama_pynq.labs = None\nlabs.Result.__init__ = lambda *_: None",
    ],
)
def test_forged_results_of_an_answer_do_not_count(graded, cheat):
    cheat = f"class Forged:\n    _repr_mimebundle_ = lambda self, **_: {RECORD!r}\n{cheat}"
    first, second = graded(notebook(f"{cheat}\ndef double(x):\n    return 0", RIGHT_2))
    assert (first.state, first.passed) == ("wrong", 0)
    assert second.state == "passed"
    assert first.note, "the lecturer must be told to look"


RECORD = {
    "application/vnd.llama-pynq.check+json": {
        "exercise": "99.1",
        "title": "Double it",
        "state": "passed",
        "passed": 2,
        "stages": ["of one", "of any number"],
        "hint": "",
    }
}


def test_display_during_the_check_does_not_count(graded):
    answer = f"def double(x):\n    from IPython.display import publish_display_data\n" \
        f"    publish_display_data({RECORD!r})\n    return 0"  # fmt: skip
    assert graded(notebook(answer, RIGHT_2))[0].state == "wrong"


def test_result_that_the_check_cannot_have_given_is_no_result(graded):
    answer = f"""
def double(x):
    session, kernel = get_ipython().kernel.session, get_ipython().kernel
    content = {{"execution_count": 1, "metadata": {{}}, "data": {RECORD!r}}}
    session.send(kernel.iopub_socket, "execute_result", content, parent=kernel.get_parent())
    return 0
"""
    row = graded(notebook(answer, RIGHT_2))[0]
    assert row.state == "no result"
    assert row.error == "the check's cell gave 3 results instead of one"
    assert "get_ipython" in row.note


def test_forgery_that_cannot_be_prevented_is_noted(graded):
    """docs/teaching.md documents this forgery."""
    cheat = f"get_ipython().display_formatter.format = lambda *_, **__: ({RECORD!r}, {{}})"
    row = graded(notebook(f"{cheat}\ndef double(x):\n    return 0", RIGHT_2))[0]
    assert row.state == "passed" and "get_ipython" in row.note


@pytest.mark.parametrize(
    ("change", "value"),
    [("exercise", "99.2"), ("stages", ["of one"]), ("state", "best"), ("passed", 3), ("hint", 1)],
)
def test_records_that_do_not_fit_the_exercise_are_no_result(known, change, value):
    record = {**RECORD["application/vnd.llama-pynq.check+json"], change: value}
    outcome = grading._Outcome({"exercise-99-1": [record]}, {}, {})
    exercise = known["99"].exercises["exercise-99-1"]
    row = grading._row(Grade("ada", "x"), exercise, "exercise-99-1", outcome)
    assert row.state == "no result"
    assert row.error == "the result does not come from this check"


@pytest.mark.parametrize(
    ("source", "note"),
    [
        (RIGHT_1, ""),
        (TO_DO_1, ""),
        ("import numpy as np\nq = np.round(x.clip(-127, 127)).astype(np.int8)", ""),
        ("import sys; sys.modules", "uses sys"),
        ("from llama_pynq.labs import lesson_04", "uses labs, lesson_04"),
        ("get_ipython().events", "uses get_ipython"),
        ("%timeit x", "not plain Python (a magic, or a syntax error)"),
        ("kind = 'application/vnd.llama-pynq.check+json'",
         "uses application/vnd.llama-pynq.check+json"),
    ],
)  # fmt: skip
def test_suspicious_names_what_an_answer_should_not_need(source, note):
    assert suspicious(source) == note


# ---- files that are not submissions ---------------------------------------------------


@pytest.mark.parametrize(
    ("content", "state", "reason"),
    [
        (b"", "unreadable", "is empty"),
        (b"\x89PNG\r\n\x1a\n", "unreadable", "is not JSON, or cut short: "),
        (json.dumps(notebook())[:500], "unreadable", "is not JSON, or cut short: "),
        ("[" * 100_000, "unreadable", "is not JSON, or cut short: "),
        ("[1]", "unreadable", "is JSON, but no notebook"),
        ('{"nbformat": 3, "worksheets": []}', "unreadable", "is a notebook of format 3, not 4"),
        ('{"nbformat": 4, "cells": [7]}', "unreadable", "is damaged: it has a cell"),
        ({**notebook(), "cells": [cell("exercise-99-1", "")] * 2}, "unreadable", "two cells exer"),
        ({**notebook(), "cells": [cell("a", "1")]}, "unknown lesson", "has no cell whose id is"),
        ({**notebook(), "cells": [cell("exercise-98-1", "1")]}, "unknown lesson", "lesson 98, w"),
        ({**notebook(), "cells": [cell("exercise-98-1", "1"), cell("exercise-99-1", "1")]},
         "unknown lesson", "of several lessons: 98, 99"),
    ],
)  # fmt: skip
def test_file_that_cannot_be_graded_has_a_row_with_the_reason(graded, content, state, reason):
    (row,) = graded(content, name="ada/work.ipynb")
    assert (row.student, row.file, row.state) == ("ada", "ada/work.ipynb", state)
    assert reason in row.error


def test_notebook_without_its_ids_is_known_by_its_name(graded):
    rows = graded({**notebook(), "cells": [cell("a", RIGHT_1)]})
    assert [row.state for row in rows] == ["missing", "missing"]


def test_link_is_not_followed(tmp_path, known):
    target = write(tmp_path / "secret.ipynb", notebook(RIGHT_1, RIGHT_2))
    (tmp_path / "in").mkdir()
    link = tmp_path / "in" / "mine.ipynb"
    link.symlink_to(target)
    (row,) = grade(link, tmp_path / "in", known, 60)
    assert (row.state, row.error[:9]) == ("unreadable", "is a link")


def test_submissions_are_notebooks_at_any_depth_without_copies_of_programs(tmp_path):
    wanted = ["ada/a/b/04.ipynb", "grace.IPYNB", "øyvind/04.ipynb"]
    others = ["ada/.ipynb_checkpoints/04-checkpoint.ipynb", "__MACOSX/ada/04.ipynb",
              "ada/._04.ipynb", "ada/04.backup-20261123-104500.ipynb", "ada/a.pdf"]  # fmt: skip
    for name in wanted + others:
        write(tmp_path / name, "{}")
    assert sorted(p.relative_to(tmp_path).as_posix() for p in submissions(tmp_path)) == wanted


def test_submissions_of_no_folder_or_an_empty_one_are_refused(tmp_path):
    with pytest.raises(LlamaPynqError, match="there is no folder .*nowhere: give the one with"):
        submissions(tmp_path / "nowhere")
    with pytest.raises(LlamaPynqError, match="holds no notebook"):
        submissions(tmp_path)


# ---- the package's own lessons --------------------------------------------------------


def test_every_lesson_of_the_package_can_be_graded():
    for number, lesson in lessons().items():
        assert lesson.name.startswith(f"{number}_")
        ids = [c["id"] for c in lesson.cells]
        for name in lesson.exercises:
            assert name.replace("exercise-", "check-") in ids


@pytest.mark.parametrize("source", notebook_sources(), ids=lambda path: path.stem)
def test_solutions_are_not_suspicious(source):
    answers = sections((SOLUTIONS / f"{source.stem}.py").read_text(encoding="utf-8"))
    assert {name: suspicious(answer) for name, answer in answers.items()} == dict.fromkeys(
        answers, ""
    )


def test_solutions_of_a_lesson_are_passed_without_a_note(tmp_path):
    source = notebook_sources()[0]  # test_notebooks.py runs them all
    answers = sections((SOLUTIONS / f"{source.stem}.py").read_text(encoding="utf-8"))
    content = json.loads(source.read_text(encoding="utf-8"))
    for entry in content["cells"]:
        entry["source"] = answers.get(entry["id"], entry["source"])
    path = write(tmp_path / "in" / "ada.ipynb", content)
    rows = grade(path, tmp_path / "in", lessons([source]), 300)
    assert len(rows) >= 2
    assert {(row.state, row.error, row.note) for row in rows} == {("passed", "", "")}
    assert all(row.passed == row.stages for row in rows)


def test_lecturers_table_has_every_lesson_with_its_minutes_and_exercises():
    text = (REPOSITORY / "docs" / "teaching.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| (\d\d_\w+) \| (\d+) \| (\d+) \|", text, re.MULTILINE)
    found = []
    for source in notebook_sources():
        title = "".join(json.loads(source.read_text(encoding="utf-8"))["cells"][0]["source"])
        (minutes,) = re.findall(r"\*\*Time[:.]\*\* (\d+) minutes", title)
        (lesson,) = lessons([source]).values()
        found.append((source.stem, minutes, str(len(lesson.exercises))))
    assert table == found


def test_exercise_without_a_check_is_refused(tmp_path, known):
    content = notebook()
    content["cells"].append(cell("exercise-99-3", "..."))
    with pytest.raises(LlamaPynqError, match="has an exercise without a check: '99.3'"):
        lessons([write(tmp_path / "99_tiny.ipynb", content)])


# ---- the table ------------------------------------------------------------------------


def test_table_is_read_by_spreadsheets_and_runs_nothing_there():
    rows = [
        Grade("Øyvind", "a.ipynb", "04", "04.1", "wrong", 1, 3, "x\ny, \"z\"", 1.5),
        Grade('=HYPERLINK("http://x")', "a\udcff.ipynb", hint="\t+1", error="x" * 9999),
    ]  # fmt: skip
    data = table(rows)
    assert data.startswith(b"\xef\xbb\xbf")
    first, second = csv.DictReader(io.StringIO(data.decode("utf-8-sig")))
    assert first["student"] == "Øyvind" and first["hint"] == 'x y, "z"'
    assert (first["passed"], first["stages"], first["seconds"]) == ("1", "3", "1.5")
    assert second["student"].startswith("'=HYPERLINK") and second["hint"] == "'+1"
    assert second["file"] == "a\\udcff.ipynb" and second["passed"] == ""
    assert len(second["error"]) == 2000
