"""One submission never costs another's grade, and nothing that it started is left."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from support import tiny_lesson
from support.tiny_lesson import RIGHT_1, RIGHT_2, notebook, write

from llama_pynq.labs import grade as grading
from llama_pynq.labs.confine import Job
from llama_pynq.labs.grade import grade, lessons
from llama_pynq.labs.submission import MAX_ANSWER
from llama_pynq.labs.warden import remove_tree

pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone keeps hold of daemons")


@pytest.fixture
def known(tmp_path, monkeypatch):
    return lessons([tiny_lesson.register(tmp_path / "package", monkeypatch)])


@pytest.fixture
def graded(tmp_path, known):
    """Grade one notebook; returns (exercise, state) of its rows, and the rows."""

    def call(content, timeout=60):
        path = write(tmp_path / "in" / "ada/99_tiny.ipynb", content)
        rows = grade(path, tmp_path / "in", known, timeout)
        return [(row.exercise, row.state) for row in rows], rows

    return call


PASSED = [("99.1", "passed"), ("99.2", "passed")]


def ended(pid):
    for _ in range(50):
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return True
        time.sleep(0.1)
    return False


# ---- what an answer starts ends with it -----------------------------------------------

DAEMON = """
import os, sys, time
mark = {mark!r}
{start}
number = 42
"""
DETACHED = {
    "setsid": """
import subprocess
code = f"import os, time; open({mark!r}, 'a').write(str(os.getpid()) + ' '); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", code], start_new_session=True, env={})
""",
    "double fork": """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.closerange(0, 1000)
        open(mark, "a").write(str(os.getpid()) + " ")
        time.sleep(600)
    os._exit(0)
os.wait()
""",
    "many that start others": """
import subprocess
code = f'''
import os, subprocess, sys, time
open({mark!r}, "a").write(str(os.getpid()) + " ")
for _ in range(20):
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        open({mark!r}, "a").write(str(os.getpid()) + " ")
    time.sleep(0.2)
time.sleep(600)
'''
subprocess.Popen([sys.executable, "-c", code], start_new_session=True, env={})
""",
}


@linux
@pytest.mark.parametrize("how", DETACHED)
def test_process_that_detaches_itself_ends_with_the_answer(graded, tmp_path, how):
    mark = tmp_path / "pids"
    wait = "\nwhile not os.path.exists(mark): time.sleep(0.01)\n"
    states, rows = graded(
        notebook(RIGHT_1, DAEMON.format(mark=str(mark), start=DETACHED[how] + wait))
    )
    assert states == PASSED, rows
    pids = mark.read_text().split()
    assert pids and all(ended(pid) for pid in pids)


KILLERS = {
    "its parent": "os.kill(os.getppid(), 9)",
    "the parent of its parent": """
parent = open(f"/proc/{os.getppid()}/stat").read().rsplit(")", 1)[1].split()[1]
os.kill(int(parent), 9)
time.sleep(60)
""",
    "stops its parent": "os.kill(os.getppid(), 19)\ntime.sleep(60)",
    "itself": "os.kill(os.getpid(), 11)",
    "with an exit status": "os._exit(7)",
}


@linux
@pytest.mark.parametrize("whom", KILLERS)
def test_answer_that_ends_other_processes_is_named_and_the_others_are_graded(
    graded, tmp_path, whom, monkeypatch
):
    monkeypatch.setattr(grading, "_START_S", 8.0)
    mark = tmp_path / "pids"
    source = f"""
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"],
                         start_new_session=True, env={{}})
open({str(mark)!r}, "a").write(f"{{child.pid}} {{os.getpid()}} ")
{KILLERS[whom]}
"""
    states, rows = graded(notebook(source, RIGHT_2), timeout=10)
    state = "time-out" if whom == "stops its parent" else "crashed"
    assert states == [("99.1", state), ("99.2", "passed")], rows
    assert rows[0].error
    assert all(ended(pid) for pid in mark.read_text().split())


def test_process_that_another_thread_starts_meanwhile_is_left():
    """As when a notebook calls `grade` beside its own work."""
    request = {"cells": [{"id": "exercise-99-1", "source": "1"}], "names": ["exercise-99-1"],
               "timeout": 100.0}  # fmt: skip
    messages = Job("run", request, 200.0).messages()
    next(messages)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as other:
        try:
            assert list(messages)
            assert other.poll() is None
        finally:
            other.kill()


@linux
def test_job_ends_when_its_reader_does(tmp_path):
    """As when grading is interrupted, or killed."""
    mark = tmp_path / "pid"
    code = f"import os, time\nopen({str(mark)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)"
    request = {"cells": [{"id": "exercise-99-1", "source": code}], "names": ["exercise-99-1"],
               "timeout": 100.0}  # fmt: skip
    messages = Job("run", request, 200.0).messages()
    assert next(messages) == {"at": "exercise-99-1"}
    while not mark.exists() or not mark.read_text():
        time.sleep(0.01)
    messages.close()
    assert ended(mark.read_text())
    script = f"""
from llama_pynq.labs.confine import Job
for message in Job("run", {request!r}, 200.0).messages():
    pass
"""
    mark.unlink()
    (tmp_path / "runs").mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path / "runs")}
    process = subprocess.Popen([sys.executable, "-c", script], env=environment)
    while not mark.exists() or not mark.read_text():
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert ended(mark.read_text())
    for _ in range(50):
        if not list((tmp_path / "runs").iterdir()):
            return
        time.sleep(0.1)
    pytest.fail("its folder is left")


# ---- what an answer takes -------------------------------------------------------------

GREEDY = {
    "threads": ("crashed", "import threading, time\nfor _ in range(100_000):\n"
                "    threading.Thread(target=time.sleep, args=(600,)).start()"),
    "processes": ("crashed", "import os, time\nwhile True:\n    if os.fork() == 0:\n"
                  "        time.sleep(600)"),
    "memory": ("no result", "x = bytearray(1 << 44)"),
    "a large file": ("no result", "with open('huge', 'wb') as file:\n"
                     "    file.truncate(1 << 40)"),
    "its stdio": ("passed", "import os\nfor n in (0, 1, 2):\n    os.close(n)\nnumber = 42"),
    "its sockets": ("time-out", "import os\nos.closerange(0, 1000)\nnumber = 42"),
    "a flood": ("passed", "import os\nfor _ in range(300):\n    print('x' * 100_000)\n"
                "    os.write(2, b'x' * 100_000)\nnumber = 42"),
    "deep folders": ("passed", "import os, stat\nfor _ in range(1500):\n    os.mkdir('d')\n"
                     "    os.chdir('d')\nos.symlink('/etc/passwd', 'link')\n"
                     "os.mkdir('locked')\nopen('locked/x', 'w').close()\n"
                     "os.chmod('locked', 0)\nnumber = 42"),
}  # fmt: skip


@linux
@pytest.mark.parametrize("what", GREEDY)
def test_answer_that_takes_too_much_costs_no_other(graded, tmp_path, monkeypatch, what):
    state, source = GREEDY[what]
    (tmp_path / "runs").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "runs"))
    states, rows = graded(notebook(RIGHT_1, source), timeout=20)
    assert states[0] == ("99.1", "passed"), rows
    if what == "its sockets":
        assert states[1][1] in ("time-out", "crashed", "no result"), rows
    else:
        assert states[1] == ("99.2", state), rows
    assert list((tmp_path / "runs").iterdir()) == []


def test_deep_and_locked_folders_are_removed(tmp_path):
    here, top = os.getcwd(), tmp_path / "top"
    top.mkdir()
    os.chdir(top)
    try:
        for _ in range(3000):
            os.mkdir("d")
            os.chdir("d")
    finally:
        os.chdir(here)
    (tmp_path / "kept").mkdir()
    (top / "link").symlink_to(tmp_path / "kept")
    (top / "locked").mkdir()
    (top / "locked").chmod(0)
    remove_tree(top)
    assert not top.exists() and (tmp_path / "kept").exists()


# ---- what an answer is ----------------------------------------------------------------

SOURCES = {
    "signs": "-" * 100_000 + "1",
    "lambdas": "lambda:" * 3000 + "1",
    "parentheses": "(" * 5000 + ")" * 5000,
    "attributes": "x" + ".x" * 100_000,
    "NUL": "number = 42\0",
    "half of a character": "number = '\ud800'",
    "long": "#" * (MAX_ANSWER + 1),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_source_of_any_kind_costs_no_other_answer(graded, kind):
    states, rows = graded(json.dumps(notebook(SOURCES[kind], RIGHT_2)), timeout=15)
    assert states[1] == ("99.2", "passed"), rows
    assert rows[0].state in ("unreadable", "no result", "wrong", "crashed", "time-out"), rows
    assert rows[0].error or rows[0].hint


def cells(**more):
    return json.dumps({**notebook(RIGHT_1, RIGHT_2), **more})


ODD = {
    "deep": '{"nbformat": 4, "cells": ' + "[" * 200_000,
    "deep and whole": '{"nbformat": 4, "metadata": ' + "[" * 900 + "]" * 900 + ', "cells": []}',
    "dicts": '{"a":' * 100_000,
    "not a dict": "[1, 2]",
    "a text": '"notebook"',
    "cells a dict": cells(cells={"a": 1}),
    "cells None": cells(cells=None),
    "cells of lists": cells(cells=[[1]]),
    "source a number": cells(cells=[{"cell_type": "code", "id": "exercise-99-1", "source": 7}]),
    "source of numbers": cells(cells=[{"cell_type": "code", "id": "a", "source": [1, 2]}]),
    "type a list": cells(cells=[{"cell_type": [], "id": "a", "source": ""}]),
    "format NaN": cells(nbformat=float("nan")),
    "format 1e999": '{"nbformat": 1e999, "cells": []}',
    "format True": cells(nbformat=True),
    "a long number": '{"nbformat": ' + "9" * 100_000 + "}",
    "not UTF-8": b'{"nbformat": 4, "cells": ["\xff\xfe"]}',
    "UTF-16": cells().encode("utf-16"),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_notebook_has_a_row_with_the_reason(graded, kind):
    states, rows = graded(ODD[kind])
    assert {state for _, state in states} <= {"unreadable", "unknown lesson", "missing"}, rows
    assert rows[0].error


def test_odd_ids_and_unused_values_do_not_matter(graded):
    content = notebook(RIGHT_1, RIGHT_2)
    content["metadata"] = {"a": 1e308, "b": "\udc00"}
    content["cells"] += [dict(content["cells"][1], id=number) for number in (7, None, [1], "é")]
    states, rows = graded(json.dumps(content).replace("1e+308", "1e999"))
    assert states == PASSED, rows


def test_fault_of_grading_itself_is_a_row(graded, monkeypatch):
    monkeypatch.setattr(grading, "_lesson_of", lambda *_: 1 / 0)
    states, rows = graded(notebook(RIGHT_1, RIGHT_2))
    assert states == [("", "not graded")]
    assert rows[0].error == "ZeroDivisionError: division by zero"
