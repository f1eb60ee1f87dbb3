"""LlamaOverlay: one after another in a process, and beside another process."""

import subprocess
import sys

import pytest

from llama_pynq import EmulatedDevice, LlamaOverlay
from llama_pynq.emulation.build import emulated_overlay
from llama_pynq.errors import DeviceBusy, OverlayMismatch, OverlayNotFound


@pytest.fixture(autouse=True)
def own_locks(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA_PYNQ_LOCKS", str(tmp_path / "locks"))


def opened(**device):
    return LlamaOverlay(device=EmulatedDevice(threads=1, **device))


# ---- a cell that is run again ---------------------------------------------------------


def test_overlay_without_a_model_gives_way_silently():
    first = opened()
    with opened() as second:
        assert first.closed and not second.closed
        assert second.load_model()


def test_overlay_with_a_model_gives_way_with_a_warning():
    first = opened()
    text = first.load_model().generate("Once", max_new_tokens=5, seed=1).text
    with pytest.warns(UserWarning, match="closed the older LlamaOverlay on emulated-host, which"):
        second = opened()
    with second:
        assert first.closed
        second.load_model()
        assert second.generate("Once", max_new_tokens=5, seed=1).text == text


@pytest.mark.parametrize("what", ["stream", "session"])
def test_overlay_with_an_unfinished_text_does_not_give_way(what):
    with opened() as first:
        llama = first.load_model()
        if what == "stream":
            unfinished = first.stream("Once", max_new_tokens=100)
            next(unfinished)
        else:
            unfinished = llama.session()
            unfinished.__enter__()
        with pytest.raises(DeviceBusy, match=r"stream\(\) of it is unfinished. Finish or close"):
            opened()
        assert not first.closed
        if what == "stream":
            unfinished.close()
        else:
            unfinished.__exit__(None, None, None)
        with pytest.warns(UserWarning, match="closed the older"):
            opened().close()


def test_mistyped_file_does_not_close_the_older_overlay():
    with LlamaOverlay() as older:
        older.load_model()
        before = older.generate("Once", max_new_tokens=8, seed=1).tokens
        with pytest.raises(OverlayNotFound, match="there is no overlay typo.xclbin"):
            LlamaOverlay("typo.xclbin")
        assert older.generate("Once", max_new_tokens=8, seed=1).tokens == before


def test_damaged_file_does_not_close_the_older_overlay(tmp_path):
    bad = tmp_path / "bad.xclbin"
    bad.write_bytes(emulated_overlay().read_bytes()[:100_000])
    with LlamaOverlay() as older:
        older.load_model()
        before = older.generate("Once", max_new_tokens=8, seed=1).tokens
        with pytest.raises(OverlayMismatch, match="bad.xclbin is incomplete"):
            LlamaOverlay(bad)
        assert older.generate("Once", max_new_tokens=8, seed=1).tokens == before


def test_overlays_on_devices_of_different_names_live_side_by_side():
    with opened() as first, opened(name="second") as second:
        assert not first.closed and not second.closed


# ---- another process ------------------------------------------------------------------

HOLDER = """
import sys, warnings
warnings.simplefilter("ignore")
from llama_pynq import EmulatedDevice, LlamaOverlay
overlay = LlamaOverlay(device=EmulatedDevice(threads=1, name=sys.argv[1] or None))
print("open", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path, monkeypatch):
    """A process that holds a device, by its name; its script is called lesson.py."""
    script = tmp_path / "lesson.py"
    script.write_text(HOLDER)
    started = []

    def hold(name=""):
        process = subprocess.Popen([sys.executable, script, name], stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, text=True)  # fmt: skip
        started.append(process)
        assert process.stdout.readline() == "open\n"
        return process

    yield hold
    for process in started:
        process.stdin.close()
        process.wait()
        process.stdout.close()


def test_second_process_gets_a_device_of_its_own_and_is_told(holder, capsys):
    holder()
    with opened() as overlay:
        said = capsys.readouterr().err
        assert (
            said == f"llama_pynq: another process uses emulated-host: using {overlay.device.name}\n"
        )
        assert overlay.load_model().generate("Once", max_new_tokens=2).tokens


def test_named_device_that_another_process_holds_is_busy(holder, capsys):
    process = holder("board")
    with pytest.raises(DeviceBusy) as error:
        opened(name="board")
    assert f"is in use by process {process.pid} (" in str(error.value)
    assert "lesson.py). Shut that notebook or program down" in str(error.value)
    assert error.value.holder_pid == process.pid and capsys.readouterr().err == ""


def test_holder_is_named_by_its_notebook_where_jupyter_tells_it(holder, monkeypatch):
    monkeypatch.setenv("JPY_SESSION_NAME", "courses/01_prompting.ipynb")
    holder("board")
    with pytest.raises(DeviceBusy, match=r"\(courses/01_prompting\.ipynb\)"):
        opened(name="board")
