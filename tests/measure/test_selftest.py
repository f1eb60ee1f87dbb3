"""The self-test: golden results match the reference; it locates faults."""

import numpy as np
import pytest

from llama_pynq import EmulatedDevice, LlamaOverlay
from llama_pynq.checkpoint.load import load_checkpoint
from llama_pynq.checkpoint.random import write_random_checkpoint
from llama_pynq.cli.main import main
from llama_pynq.device.calls import CallBuffers
from llama_pynq.emulation.build import emulated_overlay
from llama_pynq.emulation.device import EmulatedDevice as Device
from llama_pynq.engine.llama import Llama
from llama_pynq.errors import KernelTimeout
from llama_pynq.kernel.reference import KernelModel
from llama_pynq.measure import selftest
from llama_pynq.weights.quantize import QuantizedModel

TOKENS, SLOT = selftest.TOKENS, selftest.SLOT


@pytest.fixture(params=[".xclbin", ".bit"])
def overlay(request):
    with LlamaOverlay(emulated_overlay(request.param), EmulatedDevice(threads=2)) as overlay:
        yield overlay


def failed(found):
    return {check.name: check.detail for check in found.checks if check.passed is False}


def outcome(overlay, name):
    """(passed, detail) of the check of this name."""
    found = selftest.run(overlay, None)
    return next((check.passed, check.detail) for check in found.checks if check.name == name)


def test_everything_passes_on_the_emulated_device(overlay, capsys):
    found = selftest.run(overlay, None, print)
    assert found.passed and len(found.checks) == 26
    assert found.verdict == "all 26 checks passed"
    assert capsys.readouterr().out.split() == found.text().split()
    text = found.text()
    assert f"contract 3: {overlay.llama.limits.channels} weight channels" in text
    assert "4 MiB in " in text and "Once upon a time, " in text
    assert "decode" in text and "measured, host's clock" in text
    assert "no board: nothing to expect of this computer" in text


@pytest.mark.parametrize("name", selftest.FORMATS)
def test_golden_answers_are_the_references(name, tmp_path):
    group_size, bits, kv_bits = selftest.FORMATS[name]
    with (tmp_path / "model.bin").open("wb") as file:
        write_random_checkpoint(file, selftest.CONFIG, seed=1)
    positions, slots = list(range(len(TOKENS))), [SLOT] * len(TOKENS)
    with load_checkpoint(tmp_path / "model.bin") as checkpoint:
        model = KernelModel(QuantizedModel(checkpoint, group_size, bits), kv_bits)
        stream = [model.embed(TOKENS)]
        for layer in range(selftest.CONFIG.n_layers):
            stream.append(model.layer(layer, stream[-1], positions, slots))
        logits = model.classify(stream[-1][-1:])[0]
    golden = selftest.GOLDEN[name]
    assert selftest.digest(stream[0]) == golden["embedding"]
    assert selftest.digest(model.cached(SLOT, len(TOKENS))) == golden["keys and values"]
    assert selftest.digest(np.stack(stream[1:])) == golden["layers"]
    assert selftest.digest(logits) == golden["classifier"]


def test_model_has_rows_for_every_channel_and_heads_for_every_port():
    from llama_pynq.kernel.config import board_headers
    from llama_pynq.kernel.limits import KernelLimits

    for header in board_headers().values():
        limits = KernelLimits.from_header(header)
        assert selftest.CONFIG.vocab_size >= limits.channels * limits.tile_rows
        assert selftest.CONFIG.n_kv_heads >= limits.kv_ports
        assert limits.top_logits >= selftest.TOP and limits.max_steps >= selftest.STEPS


def test_damaged_weight_channel_is_named(overlay, monkeypatch):
    load = overlay.llama.load_weights

    def damage(packed, slots, kv_bits=32):
        load(packed, slots, kv_bits)
        buffer = overlay.llama.buffers["weights_1"]
        buffer[:] ^= 0x11
        buffer.sync_to_device()

    monkeypatch.setattr(overlay.llama, "load_weights", damage)
    found = failed(selftest.run(overlay, None))
    assert found["int8/32: weight channels"].startswith("320 of 640 rows differ: of weights_1")
    assert found["int8/64: embedding"].endswith("rows of weights_1")
    assert "layer 0 differs at 24 of 24 positions, first 0" in found["int8/32: layers"]
    assert "a story" in found and "kernel" not in found
    # The overlay works after the self-test.
    monkeypatch.undo()
    assert selftest.run(overlay, None).passed


def test_damaged_logits_name_their_channel(overlay, monkeypatch):
    read = overlay.llama.read_logits

    def damaged(row):
        logits = read(row)
        logits[32] += 1  # in the second tile
        return logits

    monkeypatch.setattr(overlay.llama, "read_logits", damaged)
    found = failed(selftest.run(overlay, None))
    assert set(found) == {f"{name}: classifier" for name in selftest.FORMATS}
    assert found["int8/32: classifier"].endswith("logits of weights_1")


def test_damaged_cache_port_is_named(overlay, monkeypatch):
    read = overlay.llama.read_cache

    def damaged(slot, positions):
        cache = read(slot, positions)
        cache[:, :, 3] *= 2  # in the second port: heads are dealt out to the ports in turn
        return cache

    monkeypatch.setattr(overlay.llama, "read_cache", damaged)
    found = failed(selftest.run(overlay, None))
    assert set(found) == {f"{name}: keys and values" for name in selftest.FORMATS}
    assert found["int8/32: keys and values"].endswith(": of kv_cache_1")


def test_bank_that_does_not_keep_what_is_written_is_named(monkeypatch):
    flush = Device.flush

    def forgetful(self, bo, offset, ptr, size):
        if bo.bank != "DDR[2]":
            flush(self, bo, offset, ptr, size)

    with LlamaOverlay(emulated_overlay(), EmulatedDevice(threads=2)) as overlay:
        monkeypatch.setattr(Device, "flush", forgetful)
        passed, detail = outcome(overlay, "host to memory and back")
    assert passed is False
    assert detail.endswith("wrong: DDR[2] (of kv_cache_1, weights_1)")


def test_hung_call_fails_one_check_and_the_rest_goes_on(overlay, monkeypatch):
    run, hung = overlay.llama.run, []

    def once(*args, **kwargs):
        if kwargs.get("n_steps", 1) > 1 and not hung:
            hung.append(True)
            raise KernelTimeout("the kernel did not finish")
        return run(*args, **kwargs)

    monkeypatch.setattr(overlay.llama, "run", once)
    found = failed(selftest.run(overlay, None))
    assert found == {"int8/32: many steps": "KernelTimeout: the kernel did not finish"}


def test_emulated_board_is_not_compared_with_the_boards_model():
    with LlamaOverlay(device=EmulatedDevice("kv260", threads=2)) as overlay:
        lines = selftest.run(overlay, None).figures
    assert any("a KV260 should decode" in line and "(modelled)" in line for line in lines)
    assert lines[-1].strip() == "the figures above are of this computer's CPU: nothing to compare"
    assert not any("over modelled" in line for line in lines)


def test_device_that_cannot_be_reset_still_gets_a_report(overlay, monkeypatch):
    def hang(*args, **kwargs):
        raise KernelTimeout("the kernel did not finish")

    def refuse():
        raise RuntimeError("no")

    monkeypatch.setattr(overlay.llama, "run", hang)
    monkeypatch.setattr(overlay, "reset", refuse)
    found = selftest.run(overlay, None)
    assert [check.detail for check in found.checks[-2:]] == [
        "KernelTimeout: the kernel did not finish",
        "not made: RuntimeError: no",
    ]
    assert (
        found.figures == ["no speed: KernelTimeout: the kernel did not finish"] and not found.passed
    )


def test_device_that_hangs_after_a_reset_still_gets_a_report(overlay, monkeypatch):
    """Loading the next model then reads the limits of a kernel that no longer answers."""

    def hang(*args, **kwargs):
        raise KernelTimeout("the kernel did not finish")

    def limits(driver):
        raise KernelTimeout("the kernel did not answer")

    monkeypatch.setattr(overlay.llama, "run", hang)
    monkeypatch.setattr(overlay, "reset", lambda: patch_limits())

    def patch_limits():
        monkeypatch.setattr(type(overlay.llama), "limits", property(limits))

    found = selftest.run(overlay, None)
    assert found.checks[-1].detail == "not made: KernelTimeout: the kernel did not answer"
    assert not found.passed and "FAILED" in found.verdict


def test_errors_of_other_libraries_fail_a_check(overlay, monkeypatch):
    def broken(*args):
        raise RuntimeError("XRT says no")

    monkeypatch.setattr(overlay.llama, "read_cache", broken)
    found = failed(selftest.run(overlay, None))
    assert found["int8/32: keys and values"] == "RuntimeError: XRT says no"
    assert "int8/32: layers" not in found


def test_texts_that_differ_point_at_timing(overlay, monkeypatch):
    calls, generate = [], Llama.generate

    def flaky(self, prompt, **kwargs):
        calls.append(prompt)
        if calls.count("The little fox") == 7:
            kwargs["seed"] = 3
        return generate(self, prompt, **kwargs)

    monkeypatch.setattr(Llama, "generate", flaky)
    passed, detail = outcome(overlay, "the same story, again and again")
    assert passed is False and detail.startswith("2 different texts of one seed in 20: timing")


@pytest.mark.parametrize(
    ("expected", "passed", "words"),
    [(100, True, "expected: 100"), (50, False, "it is faster than"), (1000, True, "1000")],
)
def test_clock_is_held_to_what_is_expected(overlay, monkeypatch, expected, passed, words):
    monkeypatch.setattr(LlamaOverlay, "clock_mhz", expected)
    result, detail = outcome(overlay, "the kernel's clock")
    assert result is passed and words in detail


def test_silent_profile_is_told(overlay, monkeypatch):
    monkeypatch.setattr(CallBuffers, "read_profile", lambda calls, steps: [np.zeros(0)] * steps)
    assert outcome(overlay, "the kernel's clock") == (
        False,
        "the kernel's profile is empty: it recorded no time stamps",
    )


def test_interrupted_report_is_kept(tmp_path, monkeypatch, capsys):
    def interrupt(overlay, shape):
        raise KeyboardInterrupt

    monkeypatch.setattr(selftest, "_speed", interrupt)
    file = tmp_path / "report.txt"
    assert main(["selftest", "--emulate", "--quick", "--output", str(file)]) == 130
    assert "interrupted after 26 checks; failed so far: none" in file.read_text()


def test_command_prints_and_writes_the_report(tmp_path, capsys, monkeypatch):
    file = tmp_path / "report.txt"
    assert main(["selftest", "--emulate", "--quick", "--output", str(file)]) == 0
    out = capsys.readouterr().out
    assert "all 26 checks passed" in out
    assert file.read_text().split() == out.split()
    assert main(["selftest", "--emulate", "--output", str(file)]) == 1
    assert f"{file} exists: choose another name" in capsys.readouterr().err
    assert main(["selftest", "--emulate", "--shape", "7B"]) == 1
    assert "no random model '7B': choose one of stories15M" in capsys.readouterr().err


def test_command_fails_where_a_check_fails(capsys, monkeypatch):
    monkeypatch.setattr(selftest, "STORY", "0" * 16)
    assert main(["selftest", "--emulate", "--quick"]) == 1
    assert "1 of 26 checks FAILED: a story" in capsys.readouterr().out
