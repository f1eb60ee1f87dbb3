"""device/kernel_driver.py: what a driver keeps, and what it frees, from open to close."""

import gc
import threading
import weakref

import pytest

from llama_pynq import EmulatedDevice, LlamaDriver, LlamaOverlay
from llama_pynq.errors import RequestError
from llama_pynq.kernel.abi import make_rows


@pytest.fixture(autouse=True)
def own_locks(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA_PYNQ_LOCKS", str(tmp_path / "locks"))


def test_driver_that_nobody_refers_to_is_freed_at_once():
    """Without a reference cycle: buffers of a small board must not wait for the collector."""
    with LlamaOverlay(device=EmulatedDevice(threads=1)) as overlay:
        driver = LlamaDriver(overlay.ip_dict["llama"])
        assert driver.limits == overlay.llama.limits
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
