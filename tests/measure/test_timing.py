"""Time per stage of a token: measured by the kernel's time stamps, and modelled."""

import pytest

from llama_pynq import EmulatedDevice, LlamaOverlay
from llama_pynq.boards import boards
from llama_pynq.errors import LimitError, RequestError
from llama_pynq.estimate.predict import predict
from llama_pynq.kernel.abi import Stage
from llama_pynq.measure.timing import board_of, measure_steps, model_steps


@pytest.fixture(scope="module")
def overlay(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("LLAMA_PYNQ_CACHE", str(tmp_path_factory.mktemp("cache")))
    with LlamaOverlay(device=EmulatedDevice(threads=1)) as overlay:
        overlay.load_model()
        yield overlay
    patch.undo()


def test_measured_and_modelled_steps_have_the_same_stages(overlay):
    (measured,) = measure_steps(overlay, [20], repeats=3)
    (modelled,) = model_steps(overlay.llama.model, boards()["kv260"], [20])
    assert list(measured.cycles) == list(modelled.cycles)
    n_layers = overlay.llama.config.n_layers
    assert [layer for stage, layer in measured.cycles if stage is Stage.QKV] == [*range(n_layers)]
    assert measured.bytes == modelled.bytes
    assert (measured.kind, modelled.kind) == ("measured", "modelled")
    assert "CPU" in measured.source and "model of a" in modelled.source
    assert measured.share_of_roof is None  # the bandwidth of this computer's memory is unknown
    assert 0 < modelled.share_of_roof < 1


def test_measured_step_is_within_the_calls_own_time(overlay):
    (step,) = measure_steps(overlay, [100], repeats=1)
    assert 0 < step.total_us < overlay.llama.pace[1] * 1e6
    total = sum(step.us(stage) for stage in Stage)
    assert total == pytest.approx(step.total_us)


def test_modelled_step_is_perfs_prediction(overlay):
    llama, board = overlay.llama.model, boards()["kv260"]
    (step,) = model_steps(llama, board, [64])
    p = predict(llama.config, board, position=64)
    assert step.total_us == pytest.approx(p.total_cycles / p.kernel.clock_mhz)
    assert sum(step.bytes.values()) == p.bytes
    assert step.stage_bytes(Stage.ATTENTION) == p.work.kv_bytes
    assert step.stage_bytes(Stage.QKV, 0) * llama.config.n_layers == step.stage_bytes(Stage.QKV)


def test_attention_alone_grows_with_the_position(overlay):
    near, far = measure_steps(overlay, [200, 3], repeats=1)
    assert (near.position, far.position) == (3, 200)
    assert far.stage_bytes(Stage.ATTENTION) == 201 / 4 * near.stage_bytes(Stage.ATTENTION)
    assert far.stage_bytes(Stage.CLASSIFIER) == near.stage_bytes(Stage.CLASSIFIER)


def test_positions_outside_the_context_are_refused_by_name(overlay):
    n = overlay.llama.config.seq_len
    with pytest.raises(RequestError, match=f"position {n} is outside the context, 0 to {n - 1}"):
        measure_steps(overlay, [0, n])
    with pytest.raises(RequestError, match="repeats is 0"):
        measure_steps(overlay, [0], repeats=0)
    with pytest.raises(LimitError, match=f"position {n}"):
        model_steps(overlay.llama.model, boards()["kv260"], [n])
    assert overlay.generate("", max_new_tokens=1).tokens  # the slot was released


def test_board_of_is_what_is_emulated(overlay):
    assert board_of(overlay) is None
    with LlamaOverlay(device=EmulatedDevice(board="kv260", name="second")) as second:
        assert board_of(second) is boards()["kv260"]
        assert not second.is_board
