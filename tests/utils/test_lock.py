"""The device lock: one process at a time."""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import warnings

import pytest
from support.paths import REPOSITORY

from llama_pynq.errors import DeviceBusy, LlamaPynqError
from llama_pynq.utils import lock
from llama_pynq.utils.lock import DeviceLock

HOLDER = """
import sys
from pathlib import Path
from llama_pynq.utils.lock import DeviceLock
lock = DeviceLock("board", Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock until its standard input is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_lock_held_by_another_process_names_it(holder, tmp_path):
    with pytest.raises(DeviceBusy, match=f"board is in use by process {holder.pid}"):
        DeviceLock("board", tmp_path).acquire()


def test_lock_is_free_once_its_holder_ends(holder, tmp_path):
    holder.communicate("")
    with DeviceLock("board", tmp_path) as held:
        assert held.held


def test_lock_is_free_once_its_holder_is_killed(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    DeviceLock("board", tmp_path).acquire()


def test_holder_is_told_without_taking_the_lock(holder, tmp_path):
    lock = DeviceLock("board", tmp_path)
    assert lock.holder() == f"process {holder.pid} (-c)" and not lock.held
    assert DeviceLock("another", tmp_path).holder() is None
    assert not DeviceLock("another", tmp_path).path.exists(), "asking creates no file"
    holder.communicate("")
    assert lock.holder() is None
    with lock:
        assert lock.holder().startswith(f"process {os.getpid()}")
        assert DeviceLock("board", tmp_path).holder().startswith(f"process {os.getpid()}")


def test_lock_waits_for_a_process_that_only_asks(tmp_path, monkeypatch):
    """holder() has the lock for a moment: an acquire() at that moment must not fail."""
    asking = DeviceLock("board", tmp_path)
    asking.acquire()
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: asking.release())
    DeviceLock("board", tmp_path).acquire()


def test_lock_of_another_device_is_independent(holder, tmp_path):
    DeviceLock("another", tmp_path).acquire()


def test_second_lock_in_this_process_is_refused(tmp_path):
    first, second = DeviceLock("board", tmp_path), DeviceLock("board", tmp_path)
    first.acquire()
    with pytest.raises(DeviceBusy, match=rf"overlay of this process \(pid {os.getpid()}\)"):
        second.acquire()
    with pytest.raises(DeviceBusy, match=r"overlay\.close\(\)"):
        first.acquire()
    first.release()
    second.acquire()
    assert second.held and not first.held


def test_release_may_be_repeated(tmp_path):
    held = DeviceLock("board", tmp_path)
    held.release()
    held.acquire()
    held.release()
    held.release()
    assert not held.held


def test_lock_goes_with_its_object(tmp_path):
    held = DeviceLock("board", tmp_path)
    held.acquire()
    del held
    DeviceLock("board", tmp_path).acquire()


def test_file_without_a_pid_does_not_confuse(tmp_path):
    held = DeviceLock("board", tmp_path)
    held.acquire()
    held.path.write_text("?")
    with pytest.raises(DeviceBusy, match="a process whose id is unknown"):
        DeviceLock("board", tmp_path).acquire()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork() here")
@pytest.mark.parametrize("early", [True, False], ids=["at once", "after the child has run"])
def test_forked_child_neither_keeps_nor_drops_the_lock(tmp_path, early):
    held = DeviceLock("board", tmp_path)
    held.acquire()
    ready, parent_done = os.pipe(), os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns about threads; there are none here
        child = os.fork()
    if child == 0:
        os.close(parent_done[1])
        held.release()  # has no effect: the parent holds the lock
        os.write(ready[1], b"x")
        os.read(parent_done[0], 1)  # live until the parent is done
        os._exit(0)
    if not early:
        os.read(ready[0], 1)
        with pytest.raises(DeviceBusy):
            DeviceLock("board", tmp_path).acquire()
    held.release()
    DeviceLock("board", tmp_path).acquire()
    for end in (*ready, *parent_done):
        os.close(end)
    os.waitpid(child, 0)


def test_names_become_file_names(tmp_path):
    with DeviceLock("xilinx/u250:0", tmp_path) as held:
        assert held.path == tmp_path / "llama_pynq-xilinx_u250_0.lock"


def test_folder_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA_PYNQ_LOCKS", str(tmp_path / "locks"))
    with DeviceLock("board") as held:
        assert held.path.parent == tmp_path / "locks"
    monkeypatch.delenv("LLAMA_PYNQ_LOCKS")
    assert lock.lock_folder().is_dir()


# ---- what others may have put at the lock's path ----------------------------------------

TEXT = b"somebody's only copy\n"


def put_link(path):
    (path.parent / "target").write_bytes(TEXT)
    path.symlink_to(path.parent / "target")


def put_hard_link(path):
    (path.parent / "target").write_bytes(b"1\n")
    os.link(path.parent / "target", path)


def put_socket(path):
    with socket.socket(socket.AF_UNIX) as made:
        folder = os.open(path.parent, os.O_RDONLY)  # a socket's path has 107 characters at most
        made.bind(f"/proc/self/fd/{folder}/{path.name}")
        os.close(folder)


ODD = {
    "a symbolic link": put_link,
    "a symbolic link to nothing": lambda path: path.symlink_to(path.parent / "nowhere"),
    "a hard link": put_hard_link,
    "a folder": lambda path: path.mkdir(),
    "a FIFO": lambda path: os.mkfifo(path),
    "a socket": put_socket,
}


@pytest.fixture
def at_path(tmp_path):
    """Path of the lock of "board"; its folder is sticky and all may write there, as /tmp."""
    folder = tmp_path / "locks"
    folder.mkdir()
    folder.chmod(0o1777)
    return DeviceLock("board", folder).path


def refused(path, message):
    for call in (DeviceLock("board", path.parent).acquire, DeviceLock("board", path.parent).holder):
        with pytest.raises(LlamaPynqError, match=message) as caught:
            call()
        assert f"{path} is unusable" in str(caught.value)
        assert "Remove it" in str(caught.value) and "LLAMA_PYNQ_LOCKS" in str(caught.value)


@pytest.mark.skipif(sys.platform != "linux", reason="the odd files are Linux's")
@pytest.mark.parametrize("kind", ODD)
def test_lock_that_is_no_regular_file_is_refused_and_unchanged(at_path, kind):
    ODD[kind](at_path)
    refused(at_path, f"it is {kind.removesuffix(' to nothing')}")
    assert not (at_path.parent / "nowhere").exists()
    if (at_path.parent / "target").exists():
        assert (at_path.parent / "target").read_bytes() in (TEXT, b"1\n")


@pytest.mark.parametrize("content", [TEXT, b"12 monkeys", b"1" * 5000, bytes(16)])
def test_lock_with_other_content_is_not_erased(at_path, content):
    at_path.write_bytes(content)
    with pytest.raises(LlamaPynqError, match="it holds something else than a lock does"):
        DeviceLock("board", at_path.parent).acquire()
    assert at_path.read_bytes() == content
    assert DeviceLock("board", at_path.parent).holder() is None


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("²\n", "a process whose id is unknown"),
        ("9" * 4000, "a process whose id is unknown"),
        ("12\n\x1b[2Jscript" + "x" * 3000, r"process 12 \(\[2Jscriptx{190,200}\)"),
    ],
)
def test_holder_may_write_what_it_likes_into_its_own_lock(at_path, content, says):
    held = DeviceLock("board", at_path.parent)
    with held:
        at_path.write_text(content, encoding="utf-8")
        assert re.fullmatch(says, DeviceLock("board", at_path.parent).holder())
        with pytest.raises(DeviceBusy, match=says):
            DeviceLock("board", at_path.parent).acquire()


def test_file_system_without_locks_is_named(at_path, monkeypatch):
    def fail(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    DeviceLock("board", at_path.parent).acquire()  # the file is there from now on
    monkeypatch.setattr(lock.fcntl, "flock", fail)
    refused(at_path, "No locks available")


@pytest.mark.parametrize("content", [b"", b"7858", b"7858\n", b"7858\nlesson.ipynb\n"])
def test_lock_left_by_a_crash_is_taken(at_path, content):
    at_path.write_bytes(content)
    with DeviceLock("board", at_path.parent) as held:
        assert held.path.read_bytes().startswith(b"%d\n" % os.getpid())


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("mode", [0o666, 0o600])
def test_lock_of_another_user_serves_in_a_sticky_folder_only(at_path, mode):
    at_path.write_bytes(b"1\n")
    at_path.chmod(mode)
    os.chown(at_path, 65534, 65534)
    with DeviceLock("board", at_path.parent):
        pass
    at_path.parent.chmod(0o777)
    before = at_path.read_bytes()
    refused(at_path, r"it belongs to another user \(uid 65534\)")
    assert at_path.read_bytes() == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
def test_lock_that_may_not_be_read_names_it(run_as_nobody, at_path):
    at_path.touch(mode=0o600)
    run_as_nobody(lambda: refused(at_path, "Permission denied"))
    at_path.parent.chmod(0o755)
    at_path.unlink()
    with pytest.raises(LlamaPynqError, match=f"{at_path.parent} is unusable, Permission denied"):
        run_as_nobody(DeviceLock("board", at_path.parent).acquire)


@pytest.fixture
def run_as_nobody(tmp_path):
    """Call a function as another user, in folders that root's tests make."""
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)

    def call(function):
        os.seteuid(65534)
        try:
            return function()
        finally:
            os.seteuid(0)

    return call


def test_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "locks"):
        with pytest.raises(LlamaPynqError, match=f"{folder} is unusable, Not a directory"):
            DeviceLock("board", folder).acquire()


def test_folder_that_all_may_write_without_the_sticky_bit_is_not_shared(monkeypatch):
    monkeypatch.delenv("LLAMA_PYNQ_LOCKS")
    modes = {"/run/lock": 0o40777, "/tmp": 0o41777}
    monkeypatch.setattr(
        lock.Path, "stat", lambda path: os.stat_result((modes[str(path)], *range(9)))
    )
    monkeypatch.setattr(lock.Path, "is_dir", lambda path: True)
    assert str(lock.lock_folder()) == "/tmp"
