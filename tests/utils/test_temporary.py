"""What a killed process leaves, and what clears it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llama_pynq.utils.files import write_atomically
from llama_pynq.utils.temporary import MAX_AGE_S, clear_left_over, temporary_folder, temporary_path

MIB = 1 << 20


def name_of(folder: Path, pid: int, host: str | None = None) -> Path:
    """A temporary's path as a process of that number makes it."""
    with temporary_path(folder, "model.bin") as path:
        start, _, rest = Path(path).name.rpartition(f"-{os.getpid()}-")
    if host is not None:
        start = start[: -len(host)] + host
    return folder / f"{start}-{pid}-{rest}"


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


WRITER = """
import sys, time
from pathlib import Path
from llama_pynq.utils.files import replacing
with replacing(Path(sys.argv[1])) as file:
    file.write(b"x" * (1 << 20))
    file.flush()
    print("in mid-write", flush=True)
    time.sleep(600)
"""


def test_kill_in_mid_write_is_cleared_by_the_next_write(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"old")
    process = subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"in mid-write\n"
    (left,) = (p for p in tmp_path.iterdir() if p != path)
    assert left.stat().st_size == MIB
    clear_left_over(tmp_path)
    assert left.exists(), "its process lives"
    process.kill()
    process.wait()
    process.stdout.close()
    write_atomically(tmp_path / "another", b"")
    assert {p.name for p in tmp_path.iterdir()} == {path.name, "another"}
    assert path.read_bytes() == b"old"


def test_temporary_of_a_dead_process_is_removed_file_or_folder(tmp_path):
    pid = dead_pid()
    file, folder = name_of(tmp_path, pid), name_of(tmp_path, pid)
    file.write_bytes(b"x")
    folder.mkdir()
    (folder / "0.o").write_bytes(b"x")
    clear_left_over(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_temporary_of_an_earlier_process_of_this_number_is_removed(tmp_path):
    left = name_of(tmp_path, os.getpid())
    left.write_bytes(b"x")
    with temporary_path(tmp_path, "mine") as mine:
        Path(mine).write_bytes(b"x")
        clear_left_over(tmp_path)
        assert Path(mine).exists() and not left.exists()
    assert list(tmp_path.iterdir()) == []


def test_temporary_in_use_stays_whatever_the_folder_is_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with temporary_path(Path(), "mine") as mine:
        Path(mine).write_bytes(b"x")
        clear_left_over(tmp_path)
        clear_left_over(tmp_path / ".." / tmp_path.name)
        assert Path(mine).exists()


def test_temporary_of_another_host_is_removed_after_a_day(tmp_path):
    left = name_of(tmp_path, dead_pid(), host="0123abcd")
    left.write_bytes(b"x")
    clear_left_over(tmp_path)
    assert left.exists()
    old = time.time() - MAX_AGE_S - 60
    os.utime(left, (old, old))
    clear_left_over(tmp_path)
    assert not left.exists()


@pytest.mark.parametrize(
    "name",
    [
        "model.bin", ".model.bin.0123abcd-1", ".model.bin.0123abcd-1-0123456789abcde",
        ".model.bin.0123abcd-1-0123456789abcdef0", "model.bin.0123abcd-1-0123456789abcdef",
        ".model.bin.0123ABCD-1-0123456789abcdef", ".model.bin.0123abcd-01-0123456789abcdef",
        ".0123abcd-1-0123456789abcdef", ".model.bin.tmp12345",
        ".model.bin.0123abcd-1-0123456789abcdef.bin",
    ],
)  # fmt: skip
def test_other_names_stay_however_old(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"a user's")
    os.utime(path, (1, 1))
    clear_left_over(tmp_path)
    assert path.exists()


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_link_of_that_name_and_its_target_stay(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "file").write_bytes(b"x")
    link = name_of(tmp_path, dead_pid())
    link.symlink_to(target)
    clear_left_over(tmp_path)
    assert link.is_symlink() and (target / "file").exists()


def test_folder_that_cannot_be_read_is_no_error(tmp_path):
    clear_left_over(tmp_path / "none")
    (tmp_path / "file").write_bytes(b"")
    clear_left_over(tmp_path / "file")


def test_name_as_long_as_a_file_system_allows_has_a_temporary(tmp_path):
    for name in ("x" * 255, "ü" * 127):
        write_atomically(tmp_path / name, b"new")
        assert (tmp_path / name).read_bytes() == b"new"


def test_folder_is_this_users_alone_and_goes_with_its_block(tmp_path):
    with temporary_folder(tmp_path, "llama.so") as folder:
        (folder / "0.o").write_bytes(b"x")
        assert os.name == "nt" or folder.stat().st_mode & 0o777 == 0o700
    assert list(tmp_path.iterdir()) == []
