"""The package's notebooks and their copies: a learner's work is never lost."""

import os
import sys
import types
from datetime import datetime
from pathlib import Path

import pytest
from support.paths import REPOSITORY
from support.tiny_lesson import notebook, write

from llama_pynq.errors import LlamaPynqError
from llama_pynq.labs.files import copy_notebooks, notebook_sources
from llama_pynq.utils import files
from llama_pynq.utils.files import package_folders

NOW = datetime(2026, 11, 23, 10, 45, 0)
NAMES = ["01_first.ipynb", "99_tiny.ipynb"]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Replace the package's notebooks by two, among unrelated files."""
    folder = tmp_path / "package"
    for name in [*NAMES, ".hidden.ipynb", ".ipynb_checkpoints/01_first-checkpoint.ipynb"]:
        write(folder / name, notebook())
    write(folder / "__init__.py", "")
    module = types.ModuleType("llama_pynq.notebooks")
    module.__path__ = [str(folder)]
    monkeypatch.setitem(sys.modules, "llama_pynq.notebooks", module)
    return folder


def states(copies):
    return [(copy.path.name, copy.state) for copy in copies]


def test_sources_are_the_numbered_notebooks_in_order(package):
    assert [path.name for path in notebook_sources()] == NAMES
    assert {path.parent for path in notebook_sources()} == {package}


def test_copies_are_whole_and_nothing_else_is_copied(package, tmp_path):
    out = tmp_path / "Übung ☕" / "new"
    assert states(copy_notebooks(out)) == [(name, "copied") for name in NAMES]
    assert sorted(path.name for path in out.iterdir()) == NAMES
    assert all((out / name).read_bytes() == (package / name).read_bytes() for name in NAMES)


def test_copy_keeps_what_is_there(package, tmp_path):
    write(tmp_path / "work" / NAMES[0], "my work")
    for last in ("copied", "unchanged"):
        copies = copy_notebooks(tmp_path / "work")
        assert states(copies) == [(NAMES[0], "kept"), (NAMES[1], last)]
    assert (tmp_path / "work" / NAMES[0]).read_text() == "my work"


def test_reset_replaces_what_was_changed_and_keeps_a_backup(package, tmp_path):
    work = tmp_path / "work"
    copy_notebooks(work)
    write(work / NAMES[0], "my work")
    first, second = copy_notebooks(work, reset=True, now=NOW)
    assert (first.state, second.state) == ("replaced", "unchanged")
    assert first.backup == work / "01_first.backup-20261123-104500.ipynb"
    assert first.backup.read_text() == "my work"
    assert (work / NAMES[0]).read_bytes() == (package / NAMES[0]).read_bytes()


def test_backups_are_never_overwritten(package, tmp_path):
    work = tmp_path / "work"
    for text in ("first", "second", "third"):
        write(work / NAMES[0], text)
        copy_notebooks(work, reset=True, now=NOW)
    backups = {path.name: path.read_text() for path in work.glob("*.backup-*")}
    assert backups == {
        "01_first.backup-20261123-104500.ipynb": "first",
        "01_first.backup-20261123-104500-2.ipynb": "second",
        "01_first.backup-20261123-104500-3.ipynb": "third",
    }


def test_reset_that_is_interrupted_loses_nothing(package, tmp_path, monkeypatch):
    work = tmp_path / "work"
    write(work / NAMES[0], "my work")

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        copy_notebooks(work, reset=True, now=NOW)
    assert (work / NAMES[0]).read_text() == "my work"
    assert not [path for path in work.iterdir() if path.name.startswith(".")]


def test_folder_of_a_notebooks_name_or_a_dangling_link_is_kept(package, tmp_path):
    work = tmp_path / "work"
    (work / NAMES[0]).mkdir(parents=True)
    (work / NAMES[1]).symlink_to(tmp_path / "nowhere")
    assert states(copy_notebooks(work, reset=True)) == [(name, "kept") for name in NAMES]
    assert (work / NAMES[1]).is_symlink() and not (tmp_path / "nowhere").exists()


def test_copies_into_the_packages_own_folder_change_nothing(package):
    assert states(copy_notebooks(package, reset=True)) == [(name, "unchanged") for name in NAMES]


def test_file_in_the_folders_place_is_named(package, tmp_path):
    write(tmp_path / "file", "")
    with pytest.raises(LlamaPynqError, match="file is a file: give a folder for the notebooks"):
        copy_notebooks(tmp_path / "file")
    with pytest.raises(LlamaPynqError, match="cannot be copied to .*inside .*give a folder that"):
        copy_notebooks(tmp_path / "file" / "inside")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder closed to root")
def test_read_only_folder_is_named(package):
    with pytest.raises(LlamaPynqError, match="cannot be copied to /proc/self .*may write to"):
        copy_notebooks(Path("/proc/self"))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write to it")
def test_folder_without_permission_is_named(package, tmp_path):
    (tmp_path / "work").mkdir(mode=0o500)
    with pytest.raises(LlamaPynqError, match="Permission denied"):
        copy_notebooks(tmp_path / "work")


def test_pynq_get_notebooks_forced_keeps_a_backup(package, tmp_path):
    spec = REPOSITORY / "notebooks" / "__init__.py"
    hook = {}
    exec(spec.read_text(), hook)  # with the package replaced by the test's
    for content in (None, "my work"):
        if content is not None:
            write(tmp_path / "out" / "llama_pynq" / NAMES[0], content)
        hook["deliver_notebooks"](
            None, "", str(tmp_path / "out"), "llama_pynq", folder=True, overlays_res_lookup=False
        )
    out = tmp_path / "out" / "llama_pynq"
    assert (out / NAMES[0]).read_bytes() == (package / NAMES[0]).read_bytes()
    (backup,) = out.glob("01_first.backup-*.ipynb")
    assert backup.read_text() == "my work"


def test_write_new_works_without_links(tmp_path, monkeypatch):
    def unsupported(*args):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(files.os, "link", unsupported)
    files.write_new(tmp_path / "a", b"1")
    with pytest.raises(FileExistsError):
        files.write_new(tmp_path / "a", b"2")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"1")]


def test_folder_that_the_package_lacks_is_named_with_a_remedy():
    with pytest.raises(LlamaPynqError, match=r"llama_pynq, which lacks nowhere/: .* pip install"):
        package_folders("nowhere")
