"""Cache and data folders, and atomic writes."""

import gc
import os
import shutil
import sys
from pathlib import Path

import pytest

from llama_pynq import EmulatedDevice, LlamaOverlay, load_checkpoint, load_tokenizer
from llama_pynq.cli.main import main
from llama_pynq.emulation.build import emulated_overlay
from llama_pynq.errors import LlamaPynqError
from llama_pynq.measure.sensors import meter_rail
from llama_pynq.models import BUNDLED
from llama_pynq.utils import files
from llama_pynq.utils.files import (
    cache_folder,
    data_folder,
    user_path,
    write_atomically,
    write_new,
)
from llama_pynq.utils.lock import lock_folder


def test_cache_folder_is_what_the_variable_says(monkeypatch, tmp_path):
    monkeypatch.setenv("LLAMA_PYNQ_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"


def test_cache_folder_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.delenv("LLAMA_PYNQ_CACHE", raising=False)
    monkeypatch.setattr(files.os, "name", "posix")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "llama_pynq"


def test_data_folder_is_no_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("LLAMA_PYNQ_OVERLAYS", raising=False)
    monkeypatch.setattr(files.os, "name", "posix")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert data_folder() == tmp_path / "llama_pynq"
    monkeypatch.delenv("XDG_DATA_HOME")
    assert data_folder() == Path.home() / ".local" / "share" / "llama_pynq"
    monkeypatch.setenv("LLAMA_PYNQ_OVERLAYS", str(tmp_path / "mine"))
    assert data_folder() == tmp_path / "mine"


def test_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "llama.xclbin"
    path.write_bytes(b"old")

    def fail(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def interrupt_at(count: int, call) -> bool:
    """Raise KeyboardInterrupt at the `count`-th line that `call` runs; whether it got there."""
    reached = False

    def trace(frame, event, arg):
        nonlocal count, reached
        if event == "line":
            count -= 1
            if count == 0:
                reached = True
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    gc.disable()  # else the interrupt may come to a callback of the collector, such as hypothesis's
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        assert reached
    finally:
        sys.settrace(before)
        gc.enable()
    return reached


@pytest.mark.parametrize("write", [write_atomically, write_new])
def test_interrupt_at_any_line_leaves_the_old_file_or_the_new_one(tmp_path, write):
    path = tmp_path / "model.bin"
    seen = set()
    for count in range(1, 10_000):
        if write is write_atomically:
            path.write_bytes(b"old")
        reached = interrupt_at(count, lambda: write(path, b"new"))
        if len(list(tmp_path.iterdir())) > 1:
            gc.collect()  # closes a generator that was interrupted in contextlib's frames
        content = path.read_bytes() if path.exists() else None
        seen.add(content)
        assert [p for p in tmp_path.iterdir() if p != path] == [], count
        path.unlink(missing_ok=True)
        if not reached:
            break
    assert count > 50
    assert seen == ({b"old", b"new"} if write is write_atomically else {None, b"new"})


# ---- paths as users write them --------------------------------------------------------


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME" if os.name != "nt" else "USERPROFILE", str(tmp_path))
    return tmp_path


def test_tilde_is_the_home_folder(home):
    assert user_path("~/models/m.bin") == home / "models" / "m.bin"
    assert user_path(Path("~")) == home
    assert user_path("a/~/b") == Path("a/~/b")


def test_unknown_user_and_nul_are_refused():
    with pytest.raises(LlamaPynqError, match="no home folder ~nobody-here-9"):
        user_path("~nobody-here-9/m.bin")
    with pytest.raises(LlamaPynqError, match="NUL"):
        user_path("a\0b")


@pytest.mark.parametrize(
    "variable", ["LLAMA_PYNQ_CACHE", "LLAMA_PYNQ_OVERLAYS", "LLAMA_PYNQ_LOCKS"]
)
def test_folders_of_the_environment_expand_the_tilde(home, monkeypatch, variable):
    monkeypatch.setenv(variable, "~/mine")
    folder = {
        "LLAMA_PYNQ_CACHE": cache_folder, "LLAMA_PYNQ_OVERLAYS": data_folder,
        "LLAMA_PYNQ_LOCKS": lock_folder,
    }[variable]  # fmt: skip
    assert folder() == home / "mine"


def test_account_without_a_home_folder_is_told_what_to_set(monkeypatch):
    for variable in ("LLAMA_PYNQ_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)

    def none():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", none)
    with pytest.raises(LlamaPynqError, match="no home folder: set LLAMA_PYNQ_CACHE"):
        cache_folder()


def test_everything_that_takes_a_path_expands_the_tilde(home, monkeypatch):
    """Each call must look for the file under the home folder, not in a folder called ~."""
    monkeypatch.chdir(home)
    folder = home / "mine"
    folder.mkdir()
    for name in ("stories.bin", "tokenizer.bin"):
        shutil.copy(BUNDLED / name, folder)
    shutil.copy(emulated_overlay(), folder)
    (folder / "meter.csv").write_text("watts\n2.5\n")
    with LlamaOverlay("~/mine/llama.xclbin", device=EmulatedDevice()) as overlay:
        overlay.load_model("~/mine/stories.bin", "~/mine/tokenizer.bin")
        assert meter_rail("~/mine/meter.csv").read().watts == 2.5
    load_checkpoint("~/mine/stories.bin").close()
    load_tokenizer("~/mine/tokenizer.bin")
    model = ["--model", "~/mine/stories.bin", "--tokenizer", "~/mine/tokenizer.bin"]
    for command in (
        ["pack", "~/mine/packed.safetensors", *model],
        ["info", "--overlay", "~/mine/llama.xclbin", *model],
        ["generate", "--max-new-tokens", "1", "--model", "~/mine/packed.safetensors"],
        ["bench", "--max-new-tokens", "2", "--repeats", "1", *model],
        ["boards", "--model", "~/mine/stories.bin", "--plot", "~/mine/roof.svg"],
        ["notebooks", "~/mine/lessons"],
    ):
        assert main(command) == 0, command
    made = {path.name for path in folder.iterdir()}
    assert {"packed.safetensors", "roof.svg", "lessons"} <= made
    assert not (home / "~").exists()


@pytest.mark.parametrize("path", [5, None, b"m.bin", ["m.bin"]])
def test_what_is_no_path_is_refused(path):
    with pytest.raises(LlamaPynqError, match="is no path: give a text, or a pathlib.Path"):
        user_path(path)
