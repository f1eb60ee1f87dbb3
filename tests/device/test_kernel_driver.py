"""The kernel driver: exact transactions, the contract, interrupted and failing calls."""

import _thread
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pynq
import pytest
from support.paths import REPOSITORY, TESTS

from llama_pynq import EmulatedDevice, LlamaDriver, LlamaOverlay
from llama_pynq.device.handshake import Handshake
from llama_pynq.emulation.build import build_emulated_overlay, emulated_overlay
from llama_pynq.errors import (
    DeviceMemoryError,
    KernelError,
    KernelTimeout,
    LimitError,
    OverlayMismatch,
    OverlayNotFound,
    RequestError,
)
from llama_pynq.kernel import abi, registers
from llama_pynq.kernel.abi import RequestFlag, RowFlag, Stage, make_rows

FLAVOURS = [(".xclbin", "chain"), (".xclbin", "hs"), (".bit", "chain"), (".bit", "hs")]


@pytest.fixture(autouse=True)
def own_locks(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA_PYNQ_LOCKS", str(tmp_path / "locks"))


def sampled(token=1, position=0):
    rows = make_rows(1)
    rows["token"], rows["position"], rows["flags"] = token, position, RowFlag.SAMPLE
    return rows


@pytest.fixture(params=FLAVOURS, ids=lambda p: f"{p[0][1:]}-{p[1]}")
def overlay(request):
    flavour, protocol = request.param
    device = EmulatedDevice(protocol=protocol, threads=1)
    with LlamaOverlay(emulated_overlay(flavour), device=device) as overlay:
        overlay.load_model()
        yield overlay


def test_plain_overlay_binds_the_driver():
    for flavour in (".xclbin", ".bit"):
        overlay = pynq.Overlay(str(emulated_overlay(flavour)), device=EmulatedDevice())
        assert type(overlay.llama) is LlamaDriver
        overlay.llama.load_model()
        assert overlay.llama.generate("Once", max_new_tokens=3, temperature=0).tokens
        overlay.llama.close()


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


def test_load_writes_every_pointer_to_its_own_buffer(overlay):
    with overlay.device.record_registers() as log:
        overlay.load_model()
    names = {access.name for access in log}
    # An address is written in two accesses, one per half.
    names = {name[:-2] for name in names if name[-2:] == "_1" and name[:-2] + "_2" in names}
    assert {"kv_read_0", "kv_write_0", "kv_read_1", "kv_write_1", "logits"} <= names
    addresses = {
        b.device_address for b in (overlay.llama.buffers[name] for name in overlay.llama.buffers)
    }
    assert len(addresses) == len(overlay.llama.buffers)


def test_run_forgotten_sync_would_be_seen(overlay):
    # Host and device memory are separate: the kernel only sees synced data.
    driver = overlay.llama
    good = driver.run(sampled()).rows
    driver.buffers["model"][:] = 0
    assert driver.run(sampled()).rows == good
    driver.buffers["model"].sync_to_device()
    with pytest.raises(KernelError, match="no descriptor"):
        driver.run(sampled())


def test_run_kernel_refuses_and_the_next_call_works(overlay):
    driver = overlay.llama
    good = driver.run(sampled()).rows
    for rows, text in [
        (sampled(token=10**6), "row 0: token id outside the vocabulary"),
        (sampled(position=10**6), "row 0: position outside the context"),
        (sampled(position=-1), "row 0: position outside the context"),
        (np.concatenate([sampled(), sampled()]), "row 1: another row has the same slot"),
    ]:
        with pytest.raises(KernelError) as error:
            driver.run(rows)
        assert text in str(error.value)
        assert "emulated-host: the kernel refused the call" in str(error.value)
        assert driver.run(sampled()).rows == good


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


def test_run_layers_one_by_one_equal_all_at_once(overlay):
    driver, config = overlay.llama, overlay.llama.config
    rows = sampled()
    rows["flags"] |= RowFlag.FULL_LOGITS
    driver.run(rows)
    whole = driver.read_logits(0)
    driver.run(rows, layers=(0, 0), flags=RequestFlag.ACTIVATIONS_OUT)
    x = driver.read_activations(1)
    assert x.shape == (1, config.dim)
    for layer in range(config.n_layers):
        driver.run(
            rows, layers=(layer, layer + 1), activations=x, flags=RequestFlag.ACTIVATIONS_OUT
        )
        x = driver.read_activations(1)
    np.testing.assert_array_equal(driver.read_logits(0), whole)


def test_run_profile_names_every_stage_of_every_layer(overlay):
    driver, config = overlay.llama, overlay.llama.config
    steps = driver.run(sampled(), n_steps=3, flags=RequestFlag.PROFILE).profile
    assert len(steps) == 3
    for events in steps:
        layers = events[events["stage"] == Stage.QKV]["layer"]
        assert list(layers) == list(range(config.n_layers))
        assert {Stage(s) for s in events["stage"]} == set(Stage) - {Stage.END}
        assert (events["begin"][1:] == events["end"][:-1]).all()
        assert (events["end"] >= events["begin"]).all()
        assert events["end"][-1] > 0


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


def test_load_model_beyond_the_limits_names_each(tmp_path):
    from support.checkpoint_files import write_checkpoint

    from llama_pynq import ModelConfig

    config = ModelConfig(dim=8, hidden_dim=20000, n_layers=1, n_heads=2, n_kv_heads=2,
                         vocab_size=20, seq_len=40000, tied=True)  # fmt: skip
    write_checkpoint(tmp_path / "wide.bin", config, 0)
    with LlamaOverlay(emulated_overlay(), device=EmulatedDevice()) as overlay:
        with pytest.raises(LimitError) as error:
            overlay.load_model(tmp_path / "wide.bin")
    assert "hidden_dim 20000 (at most 14336)" in str(error.value)
    assert "seq_len 40000 (at most 32768)" in str(error.value)


def test_run_without_a_model_says_so():
    with LlamaOverlay(emulated_overlay(), device=EmulatedDevice()) as overlay:
        with pytest.raises(RequestError, match="no model is loaded"):
            overlay.llama.run(sampled())


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


def test_cache_that_cannot_be_placed_leaves_no_model(overlay, monkeypatch):
    driver = overlay.llama
    allocate = driver.buffers.allocate

    def full(name, n, dtype):
        if name == "kv_cache_1" and n > 1024:
            raise DeviceMemoryError("full")
        return allocate(name, n, dtype)

    with monkeypatch.context() as patch:
        patch.setattr(driver.buffers, "allocate", full)
        with pytest.raises(DeviceMemoryError):
            driver.resize_cache(8)
    with pytest.raises(RequestError, match="no model is loaded"):
        overlay.generate("a")
    overlay.load_model()
    assert overlay.generate("a", max_new_tokens=2).tokens


def test_interrupted_resize_leaves_the_device_usable(overlay, monkeypatch):
    driver = overlay.llama
    allocate = driver.buffers.allocate

    def interrupted(name, n, dtype):
        if name == "kv_cache_1" and n > 1024:
            raise KeyboardInterrupt
        return allocate(name, n, dtype)

    with monkeypatch.context() as patch:
        patch.setattr(driver.buffers, "allocate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            driver.resize_cache(8)
    overlay.load_model()
    assert overlay.generate("a", max_new_tokens=2).tokens


def test_emulated_board_is_held_to_its_limits_and_gives_the_same_tokens(tmp_path):
    from support.checkpoint_files import write_checkpoint

    from llama_pynq import ModelConfig

    with LlamaOverlay(emulated_overlay(), device=EmulatedDevice()) as overlay:
        overlay.load_model()
        expected = overlay.generate("Once", max_new_tokens=20, temperature=0).tokens
    config = ModelConfig(dim=2048, hidden_dim=64, n_layers=1, n_heads=32, n_kv_heads=32,
                         vocab_size=20, seq_len=40, tied=True)  # fmt: skip
    write_checkpoint(tmp_path / "wide.bin", config, 0)
    with LlamaOverlay(emulated_overlay(".bit"), device=EmulatedDevice(board="pynq-z2")) as overlay:
        assert overlay.llama.limits.board == "pynq-z2"
        assert overlay.llama.limits.max_rows == 1
        with pytest.raises(LimitError, match=r"on pynq-z2: dim 2048 \(at most 1024\)"):
            overlay.load_model(tmp_path / "wide.bin")
        overlay.load_model()
        batch = overlay.generate(["Once", "One", "A"], max_new_tokens=20, temperature=0)
        assert batch[0].tokens == expected


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
    with LlamaOverlay(emulated_overlay(), device=EmulatedDevice()):
        pass


def test_overlay_that_is_not_there_is_named_and_the_device_stays_free():
    device = EmulatedDevice()
    with pytest.raises(OverlayNotFound, match="there is no overlay nix.bit: give the path"):
        LlamaOverlay("nix.bit", device=device)
    LlamaOverlay(device=device).close()
