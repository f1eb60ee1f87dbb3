"""Paths as users write them, for every part of the Python API that takes one."""

import pytest

from llama_pynq import EmulatedDevice
from llama_pynq.emulation.build import build_emulated_overlay
from llama_pynq.errors import LlamaPynqError
from llama_pynq.labs.files import copy_notebooks
from llama_pynq.labs.grade import grade, submissions
from llama_pynq.overlay_store.install import add, trust_emulated
from llama_pynq.report.picture import Picture, new_figure
from llama_pynq.vitis.project import Project


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


API = {
    "Picture.save": lambda path: new_figure_of(1).save(f"{path}.svg"),
    "copy_notebooks": lambda path: copy_notebooks(path),
    "submissions": lambda path: submissions(path),
    "overlay add": lambda path: add(f"{path}/llama.bit", "kv260", False, lambda: None),
    "overlay add --trust": lambda path: trust_emulated(f"{path}/llama.xclbin", True),
    "level_of": lambda path: EmulatedDevice().level_of(f"{path}/llama.xclbin"),
    "build": lambda path: build_emulated_overlay(f"{path}/hls_src", f"{path}/out"),
    "Project.of": lambda path: Project.of("kv260", path, f"{path}/mine.h"),
}


def new_figure_of(inches):
    return Picture(new_figure(inches, inches), "a figure")


@pytest.mark.parametrize("name", API)
def test_python_api_takes_a_path_as_a_user_writes_it(home, monkeypatch, name):
    """``~`` is the home folder, a path may be a str, and a NUL or a failure is named."""
    monkeypatch.chdir(home)
    call = API[name]
    (home / "file").touch()
    with pytest.raises(LlamaPynqError) as caught:
        call("~/file/x")
    assert str(home / "file") in str(caught.value)
    assert not (home / "~").exists()
    with pytest.raises(LlamaPynqError, match="NUL"):
        call("nowhere\0")
    with pytest.raises(LlamaPynqError, match="knows no home folder ~nobody-of-that-name"):
        call("~nobody-of-that-name/x")


def test_picture_and_notebooks_go_to_the_home_folder(home, monkeypatch):
    monkeypatch.chdir(home)
    new_figure_of(1).save("~/figure.svg")
    copy_notebooks("~/lessons")
    assert (home / "figure.svg").exists() and len(submissions("~/lessons")) > 5
    assert not (home / "~").exists()
    (row,) = grade("~/lessons/ada.ipynb", "~/lessons", {}, 1)
    assert (row.student, row.state) == ("ada", "unreadable")
