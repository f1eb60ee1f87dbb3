"""Predictions against published measurements, their own arithmetic, and their goals."""

import shutil
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support import peer_models
from support.estimated import BOARDS, KV260, STORIES15M, STORIES110M, U50, each_board
from support.peer_models import BY_BYTES, NOT_PREDICTABLE

from llama_pynq.checkpoint.shapes import STORIES
from llama_pynq.errors import LimitError
from llama_pynq.estimate.capacity import buffers
from llama_pynq.estimate.predict import predict
from llama_pynq.kernel.abi import BLOCK, Stage
from llama_pynq.kernel.config import KernelConfig, board_headers, kernel_of

# ---- published measurements ----------------------------------------------------------


@pytest.mark.parametrize(("tokens", "measured"), [(16, 112.859), (64, 109.756)])
def test_llama2_hls_is_predicted_within_15_percent(tokens, measured):
    predicted = peer_models.llama2_hls_tokens_per_second(tokens)
    assert predicted == pytest.approx(measured, rel=0.15)


def test_llama2_hls_reads_the_bytes_that_its_packed_file_has():
    assert peer_models.llama2_hls_weight_bytes() == 17_086_464


@pytest.mark.parametrize("peer", BY_BYTES, ids=lambda peer: peer.name)
def test_a_peer_bound_by_memory_is_predicted_within_15_percent(peer):
    low, high = peer.measured
    predicted = peer.tokens_per_second()
    assert 0.85 * low <= predicted <= 1.15 * high
    assert predicted == pytest.approx((low + high) / 2, rel=0.15)


def test_every_other_peer_has_the_reason_why_it_is_not_predicted():
    assert all(NOT_PREDICTABLE.values())
    assert not {peer.name for peer in BY_BYTES} & set(NOT_PREDICTABLE)


# ---- predictions ---------------------------------------------------------------------


@pytest.mark.parametrize("board", [U50, BOARDS["u280"]], ids=["u50", "u280"])
@pytest.mark.parametrize("position", [255, 1023])
def test_no_step_is_faster_than_a_master_that_brings_weights_keys_and_values(board, position):
    memory = board.memory
    sizes, _ = buffers(STORIES110M, board)
    kv = 12 * (position + 1) * 2 * 64 * 4  # layers x positions x (key, value) x float32
    least = (sizes[0] + kv) / (memory.bank_peak_bytes_per_s * memory.efficiency)
    seconds = predict(STORIES110M, board, position=position).seconds
    assert seconds >= least
    if position == 255:
        assert seconds <= 1.15 * least  # nothing else matters on the U280


@each_board
def test_stages_and_parts_both_sum_to_the_total(board):
    prediction = predict(STORIES110M, board)
    assert prediction.modelled
    assert sum(prediction.parts.values()) == pytest.approx(prediction.total_cycles)
    layers = STORIES110M.n_layers
    assert len(prediction.cycles) == 8 * layers + 4
    assert {stage for stage, _ in prediction.cycles} == set(Stage) - {Stage.END}
    assert all(cycles > 0 for cycles in prediction.cycles.values())


@each_board
@pytest.mark.parametrize("config", [STORIES15M, STORIES110M], ids=["15M", "110M"])
def test_no_step_is_faster_than_the_roof(board, config):
    for rows in (1, kernel_of(board).max_rows):
        for kv_bits in (32, 8):
            prediction = predict(config, board, rows=rows, kv_bits=kv_bits)
            assert 0 < prediction.share_of_roof <= 1
            assert 0 <= prediction.small_share < 1


SOME = st.fixed_dictionaries(
    {
        "board": st.sampled_from(list(BOARDS.values())),
        "position": st.integers(0, 127),
        "weight_bits": st.sampled_from([8, 4]),
        "kv_bits": st.sampled_from([32, 8]),
    }
)


@settings(max_examples=30, deadline=None)
@given(SOME, st.integers(1, 4))
def test_a_position_whole_blocks_later_is_never_faster(some, blocks):
    # Within a block it may be faster: the unused part of the last block has to be cleared.
    now = predict(STORIES15M, **some)
    later = predict(STORIES15M, **{**some, "position": some["position"] + blocks * BLOCK})
    assert later.seconds >= now.seconds * (1 - 1e-9)
    assert later.bytes > now.bytes


@settings(max_examples=20, deadline=None)
@given(SOME)
def test_more_rows_take_longer_together_and_less_each(some):
    assume(kernel_of(some["board"]).max_rows > 1)
    one = predict(STORIES15M, rows=1, **some)
    two = predict(STORIES15M, rows=2, **some)
    assert two.total_cycles > one.total_cycles
    assert two.tokens_per_second > one.tokens_per_second


@settings(max_examples=20, deadline=None)
@given(SOME, st.sampled_from(["n_layers", "vocab_size", "hidden_dim"]))
def test_a_larger_model_is_slower(some, name):
    larger = replace(STORIES15M, **{name: 2 * getattr(STORIES15M, name)})
    assert predict(larger, **some).total_cycles > predict(STORIES15M, **some).total_cycles


@settings(max_examples=30, deadline=None)
@given(SOME, st.sampled_from(["vector_lanes", "attention_lanes", "scale_lanes"]))
def test_more_lanes_are_never_slower(some, name):
    kernel = kernel_of(some["board"])
    value = getattr(kernel, name) * 2
    if name == "attention_lanes":
        value = min(16, value)
    more = predict(STORIES15M, kernel=replace(kernel, **{name: value}), **some)
    assert more.total_cycles <= predict(STORIES15M, **some).total_cycles * (1 + 1e-3)


@each_board
def test_int4_weights_and_an_int8_cache_are_fewer_bytes(board):
    both = [predict(STORIES110M, board, weight_bits=w, kv_bits=k) for w, k in ((8, 32), (4, 8))]
    assert both[1].bytes < 0.6 * both[0].bytes
    assert both[1].read_bytes < both[0].read_bytes


def test_bytes_of_stories110m_are_the_weights_with_their_scales():
    prediction = predict(STORIES110M, KV260, position=0)
    norms = 25 * 768 * 4
    assert prediction.work.weight_bytes - norms == pytest.approx(116.4e6, rel=1e-3)
    assert prediction.work.kv_bytes == 12 * 2 * 768 * 4


def test_a_step_without_sampling_runs_no_classifier():
    prefill = predict(STORIES15M, KV260, sample=False)
    assert Stage.CLASSIFIER not in {stage for stage, _ in prefill.cycles}
    assert prefill.seconds < predict(STORIES15M, KV260).seconds


def test_the_prediction_follows_the_header(tmp_path):
    source = board_headers()["kv260"]
    folder = tmp_path / "hls_src" / "boards"
    folder.mkdir(parents=True)
    shutil.copy(source.parents[1] / "config.h", folder.parent)
    text = source.read_text(encoding="utf-8")
    assert "kChannels = 4;" in text
    header = folder / "kv260.h"
    header.write_text(text.replace("kChannels = 4;", "kChannels = 2;"), encoding="utf-8")
    fewer = predict(STORIES110M, KV260, kernel=KernelConfig.from_header(header))
    assert fewer.kernel.channels == 2
    assert fewer.tokens_per_second < 0.8 * predict(STORIES110M, KV260).tokens_per_second
    assert fewer.bound == "channels"


def test_rows_and_positions_beyond_the_limits_are_refused():
    most = kernel_of(KV260).max_rows
    with pytest.raises(LimitError, match=f"rows {most + 1}: KV260's kernel .* at most {most}"):
        predict(STORIES15M, KV260, rows=most + 1)
    with pytest.raises(LimitError, match="position 256: .* at most 255"):
        predict(STORIES15M, KV260, position=256)


# ---- goals ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "group_size", "board"),
    [
        ("stories110M", 64, "kv260"),
        ("stories110M", 64, "zcu104"),
        ("stories110M", 64, "u250"),
        ("stories110M", 64, "u50"),
        ("stories15M", 32, "pynq-z2"),
        ("stories15M", 32, "kv260"),
        ("stories15M", 64, "pynq-z2"),
        ("stories15M", 64, "kv260"),
    ],
)
def test_decode_reaches_85_percent_of_the_roof(name, group_size, board):
    prediction = predict(STORIES[name], BOARDS[board], position=255, group_size=group_size)
    assert prediction.share_of_roof >= 0.85, prediction.parts


@each_board
def test_small_stages_cost_under_10_percent_of_a_token(board):
    prediction = predict(STORIES110M, board, position=255)
    assert prediction.small_share < 0.10, prediction.parts
