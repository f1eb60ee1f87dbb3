"""Cache and data folders, and atomic writes."""

from pathlib import Path

import pytest

from llama_pynq.utils import files
from llama_pynq.utils.files import cache_folder, data_folder, write_atomically


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
