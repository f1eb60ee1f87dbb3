"""Fixtures of the tests of the command line."""

import subprocess
import sys

import pytest
from support.plain_device import Plain

from llama_pynq.cli.main import main
from llama_pynq.overlay_store import devices
from llama_pynq.utils.lock import DeviceLock


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch):
    """Run a command in this process, in an empty folder; returns exit status and output."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        status = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return call


@pytest.fixture
def refused(cli):
    """Run a command that must fail; returns its message."""

    def call(*arguments):
        status, out, err = cli(*arguments)
        assert (status, out) == (1, "")
        assert err.startswith("llama-pynq: ") and err.count("\n") == 1
        return err.removeprefix("llama-pynq: ").rstrip("\n")

    return call


HOLD = """
import sys
from llama_pynq.utils.lock import DeviceLock
lock = DeviceLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def kv260_in_use(monkeypatch, tmp_path):
    """A KV260 that PYNQ finds, and that another process holds; any access to it fails."""
    monkeypatch.setenv("LLAMA_PYNQ_LOCKS", str(tmp_path / "locks"))
    device = Plain("KV260")
    monkeypatch.setattr(devices, "pynq_devices", lambda: [device])
    (lock_name,) = devices.lock_names(device).values()
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, lock_name], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "held\n"
    with pytest.raises(Exception, match=f"is in use by process {process.pid}"):
        DeviceLock(lock_name).acquire()
    yield process
    process.communicate("")
