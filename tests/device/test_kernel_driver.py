"""The kernel driver: overlays that it binds to or refuses, limits, and closing."""

import gc
import shutil
import subprocess
import sys
import threading
import weakref

import pynq
import pytest
from support.kernel_rows import sampled
from support.paths import REPOSITORY

from llama_pynq import EmulatedDevice, LlamaDriver, LlamaOverlay
from llama_pynq.emulation.build import build_emulated_overlay, emulated_overlay
from llama_pynq.errors import LimitError, OverlayMismatch, OverlayNotFound, RequestError
from llama_pynq.kernel import abi, registers
from llama_pynq.kernel.abi import make_rows

pytestmark = pytest.mark.usefixtures("own_locks")


def test_plain_overlay_binds_the_driver():
    for flavour in (".xclbin", ".bit"):
        overlay = pynq.Overlay(str(emulated_overlay(flavour)), device=EmulatedDevice())
        assert type(overlay.llama) is LlamaDriver
        overlay.llama.load_model()
        assert overlay.llama.generate("Once", max_new_tokens=3, temperature=0).tokens
        overlay.llama.close()


def test_run_over_the_limits_is_refused_before_the_kernel(overlay):
    driver = overlay.llama
    with pytest.raises(LimitError, match="0 rows"):
        driver.run(make_rows(0))
    with pytest.raises(LimitError, match="33 rows: this kernel takes 1 to 32"):
        driver.run(make_rows(33))
    with pytest.raises(LimitError, match="n_steps 0"):
        driver.run(sampled(), n_steps=0)
    with pytest.raises(LimitError, match="stop tokens"):
        driver.run(sampled(), stop_tokens=range(17))


def test_closed_overlay_says_so():
    overlay = LlamaOverlay(emulated_overlay(), device=EmulatedDevice())
    model = overlay.load_model()
    stream = overlay.stream("Once", max_new_tokens=50)
    next(stream)
    free = overlay.device.memory.free_bytes
    overlay.close()
    overlay.close()
    assert overlay.device.memory.free_bytes == overlay.device.memory.size_bytes > free
    closed = "the overlay is closed: open it again"
    for use in (lambda: overlay.generate("a"), overlay.load_model, overlay.reset, overlay.download):
        with pytest.raises(RequestError, match=closed):
            use()
    with pytest.raises(RequestError, match="no longer on the device"):
        next(stream)
    with pytest.raises(RequestError, match=closed):
        model.generate("a")


def modified_overlay(tmp_path, name, old, new):
    """Build the emulated overlay from sources with one string replaced."""
    source = tmp_path / "hls_src"
    shutil.copytree(REPOSITORY / "hls_src", source)
    path = source / name
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    build_emulated_overlay(source, tmp_path, extra_flags=["-O1"])
    return tmp_path / "llama.xclbin"


def test_overlay_of_another_abi_is_refused(tmp_path):
    ours = abi.ABI_VERSION
    path = modified_overlay(
        tmp_path, "contract.h", f"kAbiVersion = {ours};", f"kAbiVersion = {ours + 1};"
    )
    with pytest.raises(
        OverlayMismatch, match=f"speaks version {ours + 1} .* this driver version {ours}"
    ):
        LlamaOverlay(path, device=EmulatedDevice())
    with LlamaOverlay(emulated_overlay(), device=EmulatedDevice()):  # the lock was released
        pass


def test_overlay_of_another_kernel_is_refused(tmp_path):
    path = modified_overlay(tmp_path, "contract.h", "kMagic = 0x4C4C4D41;", "kMagic = 0x1234;")
    with pytest.raises(OverlayMismatch, match="is not llama_pynq's kernel"):
        LlamaOverlay(path, device=EmulatedDevice())


def test_overlay_left_open_is_closed_at_exit():
    """Otherwise a running kernel would write to memory that the system has reused."""
    code = """
import atexit
atexit.register(lambda: print("closed", overlay.closed))  # runs after what is registered later
from llama_pynq import EmulatedDevice, LlamaOverlay
overlay = LlamaOverlay(device=EmulatedDevice())
overlay.load_model()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "closed True\n" and "Traceback" not in done.stderr


def test_overlay_with_the_name_that_vitis_gives_by_itself_is_ours(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(registers, "VLNV", "xilinx.com:hls:llama:1.0")
        build_emulated_overlay(REPOSITORY / "hls_src", tmp_path, extra_flags=["-O1"])
    with LlamaOverlay(tmp_path / "llama.xclbin", device=EmulatedDevice()) as overlay:
        assert type(overlay.llama) is LlamaDriver


def test_overlay_that_is_not_ours_is_refused_and_gives_the_lock_back(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(registers, "VLNV", "other_labs:hls:llama:1.0")
        build_emulated_overlay(REPOSITORY / "hls_src", tmp_path, extra_flags=["-O1"])
    with pytest.raises(OverlayMismatch) as error:
        LlamaOverlay(tmp_path / "llama.xclbin", device=EmulatedDevice())
    assert "no IP of type llama_pynq:hls:llama:1.0, only llama (other_labs" in str(error.value)
    with LlamaOverlay(emulated_overlay(), device=EmulatedDevice()) as older:
        with pytest.raises(OverlayMismatch, match="is not an overlay of llama_pynq"):
            LlamaOverlay(tmp_path / "llama.xclbin", device=EmulatedDevice())
        assert not older.closed, "the older overlay stays where the new one cannot be opened"


def test_overlay_that_is_not_there_is_named_and_the_device_stays_free():
    device = EmulatedDevice()
    with pytest.raises(OverlayNotFound, match="there is no overlay nix.bit: give the path"):
        LlamaOverlay("nix.bit", device=device)
    LlamaOverlay(device=device).close()


# ---- what a driver keeps, and what it frees ---------------------------------------------


def test_driver_that_nobody_refers_to_is_freed_at_once():
    """Without a reference cycle: buffers of a small board must not wait for the collector."""
    with LlamaOverlay(device=EmulatedDevice(threads=1)) as overlay:
        driver = LlamaDriver(overlay.ip_dict["llama"])
        assert driver.limits == overlay.llama.limits
        for name in ("call", "start", "start_ert", "start_sw"):
            vars(driver).pop(name, None)  # PYNQ 3's DefaultIP keeps its own bound methods
        freed = weakref.ref(driver)
        gc.collect()
        gc.disable()
        try:
            del driver
            assert freed() is None
        finally:
            gc.enable()


@pytest.mark.parametrize("use", ["run", "read_cache", "resize_cache"])
def test_driver_closed_while_another_thread_holds_it_says_so(use):
    overlay = LlamaOverlay(device=EmulatedDevice(threads=1))
    overlay.load_model()
    driver = overlay.llama
    driver.timeout_s = 0.01
    held, closed = threading.Event(), threading.Event()

    def hold():
        with driver.exclusive():
            held.set()
            closed.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    overlay.close()
    closed.set()
    thread.join()
    arguments = {"run": (make_rows(1),), "read_cache": (0, 1), "resize_cache": (2,)}[use]
    with pytest.raises(RequestError, match="the overlay is closed"):
        getattr(driver, use)(*arguments)


def test_reset_keeps_slots_and_the_cache_format():
    with LlamaOverlay(device=EmulatedDevice(threads=1)) as overlay:
        overlay.load_model(slots=3, kv_bits=8)
        driver, model = overlay.llama, overlay.llama.model
        driver.forget(overlay.download)
        assert (driver.slots, driver.kv_bits, driver.kv_format) == (3, 8, "int8")
        assert driver.loaded_model is None
        driver.adopt(model)
        assert (driver.slots, driver.kv_bits) == (3, 8)
        assert overlay.generate("Once", max_new_tokens=2).tokens


def test_closed_driver_lets_the_model_go():
    overlay = LlamaOverlay(device=EmulatedDevice(threads=1))
    model = weakref.ref(overlay.load_model().tokenizer)
    overlay.close()
    gc.collect()
    assert model() is None
