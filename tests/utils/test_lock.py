"""The device lock: one process at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import warnings

import pytest
from support.paths import REPOSITORY

from llama_pynq.errors import DeviceBusy
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
