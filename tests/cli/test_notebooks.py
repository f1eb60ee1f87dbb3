"""llama-pynq notebooks, lab and labs grade."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest
from support import tiny_lesson
from support.cli_cases import needs_signals

from llama_pynq.labs import files

# ---- notebooks -----------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Replace the package's notebooks by one of two exercises."""
    source = tiny_lesson.register(tmp_path / "package", monkeypatch)
    monkeypatch.setattr(files, "notebook_sources", lambda: [source])
    monkeypatch.setattr("llama_pynq.labs.grade.notebook_sources", lambda: [source])
    return source


def test_notebooks_are_copied_kept_and_reset(cli, tiny, tmp_path):
    copy = Path("llama_pynq_notebooks", "99_tiny.ipynb")
    assert cli("notebooks") == (0, f"{copy}: copied\n", "")
    assert cli("notebooks")[1] == f"{copy}: there already, unchanged\n"
    (tmp_path / copy).write_text("my work")
    assert cli("notebooks")[1] == (
        f"{copy}: kept: it differs from the package's (--reset replaces it and keeps a backup)\n"
    )
    status, out, _ = cli("notebooks", "--reset")
    assert status == 0
    backup = re.fullmatch(
        rf"{re.escape(str(copy))}: replaced; the previous file is now "
        r"(99_tiny\.backup-\d{8}-\d{6}\.ipynb)\n",
        out,
    )[1]
    assert (tmp_path / copy).with_name(backup).read_text() == "my work"
    (tmp_path / "übung" / "99_tiny.ipynb").mkdir(parents=True)
    assert cli("notebooks", "übung", "--reset")[1].endswith(": kept: it is not a regular file\n")


def test_notebooks_in_a_files_place_are_refused(refused, tiny, tmp_path):
    (tmp_path / "file").touch()
    assert refused("notebooks", "file") == "file is a file: give a folder for the notebooks"
    assert "cannot be copied to file/inside" in refused("notebooks", "file/inside")


# ---- lab -----------------------------------------------------------------------------

AS_ROOT = ["--allow-root"] if getattr(os, "geteuid", lambda: 1)() == 0 else []

LAB = """
import json, os, pathlib, signal, sys, time
try:
    print(json.dumps({"arguments": sys.argv[1:], "folder": os.getcwd()}), flush=True)
    time.sleep(60 if "--wait" in sys.argv else 0)
except KeyboardInterrupt:
    sys.exit("Shutdown confirmed")
"""


def lab(tmp_path, *arguments):
    """Start a process of `llama-pynq lab` with a fake JupyterLab."""
    (tmp_path / "path" / "jupyterlab").mkdir(parents=True)
    (tmp_path / "path" / "jupyterlab" / "__init__.py").touch()
    (tmp_path / "path" / "jupyterlab" / "__main__.py").write_text(LAB)
    return subprocess.Popen(
        [sys.executable, "-m", "llama_pynq", "lab", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "path")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


@pytest.mark.parametrize("name", ["llama_pynq_notebooks", "übung ☕"])
def test_lab_opens_jupyterlab_on_the_folder_with_further_arguments(tmp_path, name):
    given = [] if name == "llama_pynq_notebooks" else [name]
    with lab(tmp_path, *given, "--", "--no-browser", "--port", "9") as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    said, found = out.splitlines()
    folder = str(tmp_path / name)
    assert re.fullmatch(rf"{re.escape(folder)}: \d+ notebooks copied, 0 there already", said)
    expected = [f"--ServerApp.root_dir={folder}", *AS_ROOT, "--no-browser", "--port", "9"]
    assert json.loads(found) == {"arguments": expected, "folder": folder}


@pytest.mark.parametrize(
    ("given", "folder", "passed_on"),
    [
        (["--port", "9000", "--no-browser"], None, ["--port", "9000", "--no-browser"]),
        (["ada", "--port", "9000"], "ada", ["--port", "9000"]),
        (["--no-browser", "ada"], "ada", ["--no-browser"]),
        (["--port=9000", "ada", "-y"], "ada", ["--port=9000", "-y"]),
        (
            ["--ip", "0.0.0.0", "ada", "--", "x", "--help"],
            "ada",
            ["--ip", "0.0.0.0", "x", "--help"],
        ),
        (["--ServerApp.token=x"], None, ["--ServerApp.token=x"]),
        (["--", "--reset"], None, ["--reset"]),
    ],
)
def test_lab_passes_jupyterlabs_options_on(tmp_path, given, folder, passed_on):
    with lab(tmp_path, *given) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    found = json.loads(out.splitlines()[1])
    assert found["folder"] == str(tmp_path / (folder or "llama_pynq_notebooks"))
    assert found["arguments"][1:] == [*AS_ROOT, *passed_on]


@pytest.mark.parametrize("uid, expected", [(0, ["--allow-root"]), (1000, [])])
def test_lab_lets_root_start_jupyterlab(cli, tiny, tmp_path, monkeypatch, uid, expected):
    ran = []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr(os, "geteuid", lambda: uid, raising=False)
    monkeypatch.setattr(os, "name", "posix")
    monkeypatch.setattr(os, "chdir", lambda folder: None)
    monkeypatch.setattr(os, "execv", lambda program, command: ran.append(command))
    cli("lab", "--port=9000")
    folder = tmp_path / "llama_pynq_notebooks"
    assert ran[0][3:] == [f"--ServerApp.root_dir={folder}", *expected, "--port=9000"]
    assert not any("token" in word or "password" in word for word in ran[0])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--hlep", "unrecognized argument --hlep; did you mean --help?"),
        ("--rest", "unrecognized argument --rest; did you mean --reset?"),
        ("--reset", "--reset is no option of lab, but of llama-pynq notebooks"),
        ("--model=a.bin", "--model is no option of lab, but of llama-pynq generate"),
    ],
)
def test_lab_refuses_options_that_are_this_programs(cli, capsys, tmp_path, option, message):
    with pytest.raises(SystemExit) as status:
        cli("lab", option)
    assert status.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "llama_pynq_notebooks").exists()


def test_lab_help_says_where_options_go(cli, capsys):
    for given in (["--help"], ["--port", "9000", "-h"]):
        with pytest.raises(SystemExit) as status:
            cli("lab", *given)
        text = " ".join(capsys.readouterr().out.split())
        assert status.value.code == 0
        assert "go to JupyterLab: llama-pynq lab --port 9000 --no-browser" in text


@needs_signals
def test_ctrl_c_is_jupyterlabs_own(tmp_path):
    with lab(tmp_path, "--", "--wait") as process:
        process.stdout.readline(), process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (1, "Shutdown confirmed\n")


def contents(url):
    """Names in the folder of a Jupyter server; retries, as it prints its URL before it listens."""
    for _ in range(100):
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return {entry["name"] for entry in json.load(answer)["content"]}
        except urllib.error.HTTPError:
            raise
        except urllib.error.URLError:
            time.sleep(0.1)
    raise TimeoutError(url)


@needs_signals
def test_lab_serves_the_notebooks_in_the_jupyterlab_that_is_here(tmp_path):
    pytest.importorskip("jupyterlab")
    options = ["--no-browser", "--port=0", "--ServerApp.token=x"]
    command = [sys.executable, "-m", "llama_pynq", "lab", "übung", *options]
    environment = {**os.environ, "HOME": str(tmp_path)}
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    ) as process:
        try:
            for line in process.stdout:
                if found := re.search(r"http://127\.0\.0\.1:\d+/", line):
                    break
            with pytest.raises(urllib.error.HTTPError, match="403"):
                contents(f"{found[0]}api/contents")
            listed = contents(f"{found[0]}api/contents?token=x")
            process.send_signal(signal.SIGINT)  # the server asks for confirmation
            with suppress(subprocess.TimeoutExpired):  # two signals at once count as one
                process.communicate(timeout=1)
            process.send_signal(signal.SIGINT)
            process.communicate()
            assert process.returncode == 0
        finally:
            process.kill()
    assert listed == {path.name for path in (tmp_path / "übung").glob("*.ipynb")}


def test_lab_without_jupyterlab_names_the_extra(refused, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert refused("lab") == (
        f"JupyterLab is not installed for {sys.executable}: pip install 'llama_pynq[lab]'"
    )
    assert not (tmp_path / "llama_pynq_notebooks").exists()


# ---- labs grade ----------------------------------------------------------------------


def test_grade_without_nbclient_names_the_extra(refused, tiny, tmp_path, monkeypatch):
    tiny_lesson.write(tmp_path / "in" / "ada.ipynb", tiny_lesson.notebook())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = refused("labs", "grade", "in")
    assert message.startswith("ipykernel is not installed for ")
    assert message.endswith("grading runs notebooks: pip install 'llama_pynq[lab]'")


def test_grade_writes_a_table_and_leaves_the_submissions_alone(cli, refused, tiny, tmp_path):
    work = tiny_lesson.notebook(tiny_lesson.RIGHT_1, "number = 41")
    tiny_lesson.write(tmp_path / "in" / "Ünal Øst" / "99_tiny.ipynb", work)
    tiny_lesson.write(tmp_path / "in" / "bob.ipynb", "{")
    before = {path: path.stat() for path in (tmp_path / "in").rglob("*")}
    status, out, err = cli("labs", "grade", "in", "--csv", "out.csv")
    assert (status, out) == (0, "out.csv: 2 of 2 submissions\n")
    assert err == (
        "1 of 2: bob.ipynb\n    1 unreadable\n"
        "2 of 2: Ünal Øst/99_tiny.ipynb\n    1 passed, 1 wrong\n"
    )
    rows = list(csv.DictReader((tmp_path / "out.csv").open(encoding="utf-8-sig")))
    assert [(row["student"], row["exercise"], row["state"]) for row in rows] == [
        ("bob", "", "unreadable"),
        ("Ünal Øst", "99.1", "passed"),
        ("Ünal Øst", "99.2", "wrong"),
    ]
    after = {path: path.stat() for path in (tmp_path / "in").rglob("*")}
    assert list(after) == list(before)
    assert [s.st_mtime_ns for s in after.values()] == [s.st_mtime_ns for s in before.values()]

    (tmp_path / "out.csv").write_text("precious")
    message = refused("labs", "grade", "in", "--csv", "out.csv")
    assert message == "out.csv exists: choose another name, or replace it with --force"
    assert (tmp_path / "out.csv").read_text() == "precious"
    assert cli("labs", "grade", "in", "--csv", "out.csv", "--force")[0] == 0
    assert (tmp_path / "out.csv").stat().st_size > 100


def test_grade_writes_its_table_beside_a_file_that_an_answer_made(cli, tiny, tmp_path):
    answer = f"open({str(tmp_path / 'out.csv')!r}, 'w').write('forged')\nnumber = 42"
    work = tiny_lesson.notebook(tiny_lesson.RIGHT_1, answer)
    tiny_lesson.write(tmp_path / "in" / "ada.ipynb", work)
    status, out, err = cli("labs", "grade", "in", "--csv", "out.csv")
    assert (status, out) == (0, "out-2.csv: 1 of 1 submissions\n")
    assert "out.csv cannot be written (File exists)" in err
    assert (tmp_path / "out.csv").read_text() == "forged"
    rows = list(csv.DictReader((tmp_path / "out-2.csv").open(encoding="utf-8-sig")))
    assert [row["state"] for row in rows] == ["passed", "passed"]


def test_grade_refuses_what_it_cannot_do_before_it_starts(refused, tiny, tmp_path):
    assert refused("labs", "grade", "in") == (
        "there is no folder in: give the one with the submissions"
    )
    (tmp_path / "in").mkdir()
    assert "in holds no notebook (.ipynb)" in refused("labs", "grade", "in")
    tiny_lesson.write(tmp_path / "in" / "ada.ipynb", tiny_lesson.notebook())
    assert refused("labs", "grade", "in", "--csv", "in/ada.csv") == (
        "in/ada.csv lies in in, which is only read: write it elsewhere"
    )
    assert refused("labs", "grade", "in", "--csv", "package") == (
        "package is a folder: give the name of the file to write"
    )
    assert refused("labs", "grade", "in", "--csv", "no/a.csv") == "there is no folder no for a.csv"
    assert refused("labs", "grade", "in", "--timeout", "0") == (
        "--timeout is 0: it must be above 0 seconds"
    )


def test_grade_says_that_it_runs_programs_of_others(cli, capsys):
    with pytest.raises(SystemExit):
        cli("labs", "grade", "--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "Submissions are other people's programs and run with your permissions" in text
    assert "throw-away account or container" in text


@needs_signals
def test_ctrl_c_while_grading_keeps_the_grades_so_far(tiny, tmp_path):
    good = tiny_lesson.notebook(tiny_lesson.RIGHT_1, tiny_lesson.RIGHT_2)
    tiny_lesson.write(tmp_path / "in" / "ada.ipynb", good)
    tiny_lesson.write(tmp_path / "in" / "bob.ipynb", tiny_lesson.notebook("while True: pass"))
    code = """
import signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
from llama_pynq.labs import grade
notebook = Path(sys.argv.pop(1))
grade.notebook_sources = lambda: [notebook]
from llama_pynq.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tiny), "labs", "grade", "in"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    ) as process:
        for line in process.stderr:
            if "bob" in line:
                break
        time.sleep(3)  # until the answer's endless loop runs
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, out) == (130, "grades.csv: 1 of 2 submissions\n")
    assert err == "llama-pynq: interrupted\n"
    rows = list(csv.DictReader((tmp_path / "grades.csv").open(encoding="utf-8-sig")))
    assert [row["state"] for row in rows] == ["passed", "passed"]
