"""The handshake: registers written, waits, timeouts, begun, abandoned and interrupted calls."""

import _thread
import threading
import time

import numpy as np
import pytest
from support.kernel_rows import sampled
from support.paths import REPOSITORY, TESTS

from llama_pynq import EmulatedDevice, LlamaDriver, LlamaOverlay
from llama_pynq.device.handshake import Handshake
from llama_pynq.emulation.build import build_emulated_overlay, emulated_overlay
from llama_pynq.errors import (
    KernelError,
    KernelTimeout,
    LimitError,
    RequestError,
)
from llama_pynq.kernel import abi

pytestmark = pytest.mark.usefixtures("own_locks")


def test_run_writes_sequence_command_and_start_only(overlay):
    driver = overlay.llama
    driver.run(sampled())
    with overlay.device.record_registers() as log:
        driver.run(sampled())
    sequence = driver.register_map.sequence
    writes = [(access.name, access.value) for access in log if access.kind == "write"]
    go_on = [("CTRL", 0x10)] if overlay.device.protocol == "ap_ctrl_chain" else []
    assert writes == [("sequence", int(sequence)), ("command", 1), ("CTRL", 1), *go_on]
    assert {access.name for access in log if access.kind == "read"} == {"CTRL"}


def test_interrupted_call_raises_and_the_next_one_works(overlay):
    driver = overlay.llama
    expected = overlay.generate("Once", max_new_tokens=20, temperature=0).tokens
    for _ in range(3):
        timer = threading.Timer(0.05, _thread.interrupt_main)
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            while True:
                driver.run(sampled(), n_steps=64)
        timer.join()
        assert overlay.generate("Once", max_new_tokens=20, temperature=0).tokens == expected


def test_call_left_running_is_ended_before_the_next_one(overlay, monkeypatch):
    # Ctrl-C twice: the second arrives while the driver handles the first.
    driver = overlay.llama
    expected = driver.run(sampled()).rows

    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(driver.handshake, "wait", interrupt)
        with pytest.raises(KeyboardInterrupt):
            driver.run(sampled(), n_steps=64)
    assert driver.run(sampled()).rows == expected
    with monkeypatch.context() as patch:  # Ctrl-C before AP_START is written
        patch.setattr(driver, "_launch", interrupt)
        with pytest.raises(KeyboardInterrupt):
            driver.run(sampled(), n_steps=64)
    assert driver.run(sampled()).rows == expected


def test_begun_call_keeps_its_result_until_it_is_finished(overlay):
    driver = overlay.llama
    first, second = driver.run(sampled(), n_steps=8).rows, driver.run(sampled(2)).rows
    call = driver.begin(sampled(), n_steps=8)
    assert driver.pending is call
    assert driver.run(sampled(2)).rows == second  # waits for the first one
    assert not driver.running
    for _ in range(2):
        assert driver.finish(call).rows.tobytes() == first.tobytes()


def test_begun_call_has_a_time_only_if_it_was_waited_for(overlay):
    """Tries many calls: the scheduler may suspend this thread for the whole of a call."""
    driver, emulator = overlay.llama, overlay.device.emulator

    def waited_for():
        return driver.finish(driver.begin(sampled(), n_steps=64)).elapsed_s

    def unseen():
        call = driver.begin(sampled())
        while not emulator.wait(1000):  # reading AP_DONE would clear it
            pass
        return driver.finish(call).elapsed_s

    assert any(waited_for() > 0 for _ in range(50))
    assert all(np.isnan(unseen()) for _ in range(50))


def test_begun_call_that_fails_raises_when_it_is_finished(overlay):
    driver = overlay.llama
    call = driver.begin(sampled(position=100_000))
    good = driver.run(sampled()).rows
    with pytest.raises(KernelError, match="refused the call"):
        driver.finish(call)
    assert driver.run(sampled()).rows == good
    with pytest.raises(LimitError, match="n_steps 1000"):
        driver.begin(sampled(), n_steps=1000)
    call = driver.begin(sampled())
    overlay.reset()
    with pytest.raises(KernelTimeout, match="reset during the call"):
        driver.finish(call)
    call = driver.begin(sampled())
    overlay.close()
    with pytest.raises(RequestError, match="the overlay is closed"):
        driver.finish(call)


def test_running_of_a_begun_call_is_estimated_from_the_pace(overlay):
    driver = overlay.llama
    driver.run(sampled())
    call = driver.begin(sampled())
    driver.pace = call.shape, 1000.0
    assert driver.running
    driver.pace = call.shape, 0.0
    assert not driver.running
    driver.finish(call)
    assert not driver.running


def test_abandon_from_within_the_wait_for_it_does_nothing(overlay, monkeypatch):
    """Happens if the garbage collector closes a stream while another call waits for its call."""
    driver = overlay.llama
    expected, wait = driver.run(sampled(), n_steps=8).rows, driver.handshake.wait
    call = driver.begin(sampled(), n_steps=8)

    def interfered(*args):
        driver.abandon(call)
        return wait(*args)

    monkeypatch.setattr(driver.handshake, "wait", interfered)
    driver.timeout_s = 5.0
    assert driver.finish(call).rows.tobytes() == expected.tobytes()


def test_abandoned_call_ends_after_its_step(overlay, monkeypatch):
    driver = overlay.llama
    expected, sent, send = driver.run(sampled()).rows, [], driver.buffers.send
    monkeypatch.setattr(
        driver.buffers, "send", lambda name, part: (sent.append(name), send(name, part))
    )
    call = driver.begin(sampled(), n_steps=64)
    driver.abandon(call)
    assert not driver.running
    if sent:  # the abort is only sent if the call has not ended yet
        assert driver.buffers["request"][abi.REQUEST_ABORT] == driver.handshake.sequence
    sequence = driver.handshake.sequence
    driver.abandon(call)
    assert driver.run(sampled()).rows == expected
    assert driver.handshake.sequence == sequence + 1


def test_ctrl_c_while_another_waits_for_a_begun_call(overlay, monkeypatch):
    driver = overlay.llama
    expected = driver.run(sampled()).rows

    def interrupt(*args):
        raise KeyboardInterrupt

    call = driver.begin(sampled(), n_steps=8)
    with monkeypatch.context() as patch:
        patch.setattr(driver.handshake, "wait", interrupt)
        with pytest.raises(KeyboardInterrupt):
            driver.run(sampled())
    with pytest.raises(RequestError, match="Ctrl-C ended the call"):
        driver.finish(call)
    assert driver.run(sampled()).rows == expected


def test_abort_ends_a_running_call_after_its_step(overlay):
    driver = overlay.llama
    # The next call's sequence number: the call is aborted before its first step.
    driver.buffers["request"][16] = driver.handshake.sequence + 1
    original = driver.handshake.start

    def launch(command):
        driver.buffers["request"][16] = driver.handshake.sequence + 1
        driver.buffers["request"].sync_to_device()
        original(command)

    driver.handshake.start = launch
    try:
        result = driver.run(sampled(), n_steps=4)
    finally:
        del driver.handshake.start
    assert result.aborted
    assert len(result.rows) == 0
    assert not driver.run(sampled(), n_steps=4).aborted


@pytest.fixture(scope="module")
def hanging(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hanging")
    source = TESTS / "hls" / "hanging_emulator.cpp"
    build_emulated_overlay(REPOSITORY / "hls_src", folder, sources=[source])
    return folder / "llama.xclbin"


def test_kernel_that_never_finishes_times_out_and_reset_brings_it_back(hanging, monkeypatch):
    with LlamaOverlay(hanging, device=EmulatedDevice()) as overlay:
        overlay.load_model()
        expected = overlay.generate("Once", max_new_tokens=5, temperature=0).tokens
        overlay.llama.timeout_s = 0.2
        monkeypatch.setenv("LLAMA_PYNQ_TEST_HANG", "1")
        with pytest.raises(KernelTimeout, match=r"did not finish call \d+ within 0.2 s.*reset"):
            overlay.generate("Once", max_new_tokens=5, temperature=0)
        with pytest.raises(KernelTimeout, match="an earlier call never finished"):
            overlay.generate("Once", max_new_tokens=5, temperature=0)
        monkeypatch.delenv("LLAMA_PYNQ_TEST_HANG")
        overlay.reset()
        assert overlay.generate("Once", max_new_tokens=5, temperature=0).tokens == expected


def test_reset_while_another_thread_waits_ends_its_call(hanging, monkeypatch):
    with LlamaOverlay(hanging, device=EmulatedDevice()) as overlay:
        overlay.load_model()
        expected = overlay.generate("Once", max_new_tokens=5, temperature=0).tokens
        monkeypatch.setenv("LLAMA_PYNQ_TEST_HANG", "1")
        seen = []

        def work():
            try:
                overlay.generate("Once", max_new_tokens=5)
            except KernelTimeout as error:
                seen.append(str(error))

        thread = threading.Thread(target=work)
        thread.start()
        while not overlay.llama.running:
            pass
        monkeypatch.delenv("LLAMA_PYNQ_TEST_HANG")
        device, read, programming = overlay.device, overlay.device.read_registers, []
        download = overlay.download

        def slowly():
            programming.append(True)
            time.sleep(0.05)  # long enough for the waiting thread to poll several times
            download()
            programming.clear()

        def guarded(address, length):
            assert not programming or threading.current_thread() is not thread
            return read(address, length)

        monkeypatch.setattr(overlay, "download", slowly)
        monkeypatch.setattr(device, "read_registers", guarded)
        overlay.reset()
        thread.join()
        assert len(seen) == 1 and "the overlay was reset during the call" in seen[0]
        assert overlay.generate("Once", max_new_tokens=5, temperature=0).tokens == expected


def test_overlay_whose_kernel_does_not_answer_says_where_to_look(monkeypatch):
    device, finished = EmulatedDevice(), Handshake.finished
    monkeypatch.setattr(LlamaDriver, "describe_timeout_s", 0.2)
    monkeypatch.setattr(Handshake, "finished", lambda handshake: False)
    with pytest.raises(KernelTimeout, match=r"did not answer its first call.*CTRL reads 0x.*clock"):
        LlamaOverlay(device=device)
    monkeypatch.setattr(Handshake, "finished", finished)
    with LlamaOverlay(device=device) as overlay:  # the device is free again
        overlay.load_model()


def test_close_waits_for_a_running_call(tmp_path):
    overlay = LlamaOverlay(emulated_overlay(), device=EmulatedDevice(threads=1))
    overlay.load_model()
    outcome = []

    def work():
        try:
            while True:
                overlay.llama.run(sampled(), n_steps=64)
        except RequestError as error:
            outcome.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    while not overlay.llama.running:
        pass
    overlay.close()
    thread.join()
    assert len(outcome) == 1 and ("no model" in outcome[0] or "closed" in outcome[0])
    assert overlay.device.memory.free_bytes == overlay.device.memory.size_bytes
