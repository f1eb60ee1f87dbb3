"""The cycle model against published measurements, its own arithmetic, and its goals."""

import math
import shutil
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support import peer_models
from support.peer_models import BY_BYTES, NOT_PREDICTABLE

from llama_pynq.boards import boards
from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.checkpoint.shapes import STORIES
from llama_pynq.errors import LimitError
from llama_pynq.estimate.capacity import buffers, fits
from llama_pynq.estimate.operators import dataflow, loop, nest
from llama_pynq.estimate.predict import predict
from llama_pynq.estimate.stages import Compute
from llama_pynq.estimate.streams import Streams, StreamsInTurn
from llama_pynq.estimate.work import Work
from llama_pynq.kernel.abi import BLOCK, Stage
from llama_pynq.kernel.config import KernelConfig, board_headers, kernel_of
from llama_pynq.weights.tiles import channel_bytes

BOARDS = boards()
STORIES15M, STORIES110M = STORIES["stories15M"], STORIES["stories110M"]
KV260, U50 = BOARDS["kv260"], BOARDS["u50"]
each_board = pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)

# ---- published measurements -----------------------------------------------------------


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


# ---- building blocks ------------------------------------------------------------------


def test_loop_is_starts_and_one_depth():
    assert loop(10, 2, 7, entry=0) == 9 * 2 + 7
    assert loop(0, 2, 7, entry=3) == 3


def test_nest_pays_the_inner_loops_depth_every_time():
    assert nest(4, 10.0) == pytest.approx(42)


def test_a_dataflow_loop_goes_at_the_pace_of_its_slowest_process():
    trips = [(5.0, 20.0, 7.0)] * 10
    assert dataflow(trips) == pytest.approx(5 + 10 * 20 + 7 + 12 * 2 + 2)
    assert dataflow(trips[:1]) == pytest.approx(5 + 20 + 7 + 3 * 2 + 2)


def test_streams_deliver_at_the_memorys_rate_and_no_beat_twice():
    kernel = kernel_of(KV260)
    streams = Streams(KV260.memory, kernel, 4, weights_left=10_000.0, kv_left=0.0)
    taken, needed = streams.run(0.0, weights=10_000.0)
    memory = KV260.memory
    beats = memory.peak_bytes_per_s * memory.efficiency / (kernel.clock_mhz * 1e6) / 64
    assert taken == needed == pytest.approx(10_000 / beats)
    assert streams.weights == pytest.approx(0, abs=1e-3)
    assert streams.weights_left == pytest.approx(0, abs=1e-3)


def test_streams_run_ahead_as_far_as_the_fifo_lets_them():
    kernel = kernel_of(KV260)
    streams = Streams(KV260.memory, kernel, 4, weights_left=1e6, kv_left=1e6)
    streams.run(1e6)
    assert streams.weights == pytest.approx(kernel.weight_fifo_beats)
    assert streams.kv == pytest.approx(kernel.kv_fifo_beats)
    taken, _ = streams.run(100.0, weights=float(kernel.weight_fifo_beats))
    assert taken == pytest.approx(100)


def test_streams_share_the_memory_when_both_ask():
    kernel = kernel_of(KV260)
    alone = Streams(KV260.memory, kernel, 4, weights_left=1e5, kv_left=0.0)
    beside = Streams(KV260.memory, kernel, 4, weights_left=1e5, kv_left=1e5)
    assert alone.run(0.0, weights=1e5)[0] < beside.run(0.0, weights=1e5, kv=1e5)[0]


def test_loader_of_both_brings_them_in_the_order_of_use():
    kernel, memory = kernel_of(U50), U50.memory
    stretches = [(0, 1_000.0), (1, 3_000.0), (0, 2_000.0)]
    streams = StreamsInTurn(memory, kernel, 12, 3_000.0, 3_000.0, stretches=stretches)
    streams.run(1e6)
    # No weights of stages after attention while keys and values wait for FIFO space.
    assert (streams.weights, streams.kv) == pytest.approx((1_000, kernel.kv_fifo_beats))
    streams.run(1e6, weights=1_000.0)
    assert (streams.weights, streams.kv) == pytest.approx((0, kernel.kv_fifo_beats))
    rest = 3_000 - kernel.kv_fifo_beats
    _, needed = streams.run(0.0, kv=3_000.0)
    clock = kernel.clock_mhz * 1e6
    beats = memory.bank_peak_bytes_per_s * memory.efficiency / clock / kernel.beat_bytes
    latency = memory.latency_ns * 1e-9 * clock
    assert needed == pytest.approx(rest / 3_000 * (3_000 / beats + latency))
    _, needed = streams.run(0.0, weights=2_000.0)
    assert needed == pytest.approx(2_000 / beats + latency)
    left = streams.weights_left, streams.kv_left, streams.weights, streams.kv
    assert left == pytest.approx((0, 0, 0, 0), abs=1e-3)


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
def test_every_beat_that_is_consumed_was_fetched(board, monkeypatch):
    seen, run = {}, Streams.run

    def watched(self, *args, **kwargs):
        result = run(self, *args, **kwargs)
        assert self.weights >= -1e-3
        assert self.kv >= -1e-3
        seen[id(self)] = self
        return result

    monkeypatch.setattr(Streams, "run", watched)
    predict(STORIES15M, board, position=100, group_size=32)
    assert len(seen) == 2  # with all stages, and without the small ones
    for streams in seen.values():
        assert streams.weights_left + streams.weights == pytest.approx(0, abs=1e-2)
        assert streams.kv_left + streams.kv == pytest.approx(0, abs=1e-2)


@each_board
@pytest.mark.parametrize("bits", [8, 4])
def test_beats_of_a_step_are_the_bytes_that_packing_writes(board, bits):
    kernel = kernel_of(board)
    work = Work(STORIES110M, 64, bits, 32, 1, 0, True)
    stages = Compute(kernel, work, 100.0).stages()
    beats = sum(phase.weights for _, _, phases in stages for phase in phases)
    # Channel 0 also holds the norms.
    assert beats * kernel.beat_bytes == channel_bytes(STORIES110M, 64, kernel.target, bits)[0]


# ---- predictions ----------------------------------------------------------------------


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


# ---- what fits ------------------------------------------------------------------------


def test_a_model_fits_where_its_buffers_do():
    assert fits(STORIES110M, KV260) == (True, "")
    fitting, reason = fits(STORIES110M, BOARDS["pynq-z2"])
    assert not fitting
    assert reason == ("weights and KV cache take 183 MiB of contiguous memory, PYNQ-Z2 has 128 MiB")
    assert fits(STORIES110M, BOARDS["pynq-z2"], weight_bits=4, kv_bits=8)[0]


def test_a_shape_beyond_the_kernels_limits_does_not_fit():
    large = ModelConfig(4096, 11008, 32, 32, 32, 32000, 4096, tied=False)
    fitting, reason = fits(large, KV260)
    assert not fitting
    assert "dim 4096 (at most 2048)" in reason


def test_a_pseudo_channel_bounds_one_channels_buffer():
    large = ModelConfig(4096, 11008, 32, 32, 32, 32000, 4096, tied=False)
    fitting, reason = fits(large, BOARDS["u280"])
    assert not fitting
    assert "one of 32 banks would hold" in reason or "contiguous" in reason
    assert fits(large, BOARDS["u55c"], weight_bits=4, kv_bits=8)[0]


def test_more_sequences_take_more_room():
    one, many = (buffers(STORIES110M, KV260, slots=n)[1] for n in (1, 8))
    assert many == 8 * one
    assert not fits(STORIES110M, KV260, slots=64)[0]


def test_a_shared_masters_keys_and_values_lie_in_its_weights_bank():
    sizes, port = buffers(STORIES110M, U50)
    slots = U50.memory.bank_bytes // port
    assert sizes[0] + slots * port > U50.memory.bank_bytes > sizes[0] + (slots - 1) * port
    many_banks = replace(U50, memory=replace(U50.memory, banks=64))
    assert fits(STORIES110M, many_banks, slots=slots - 1)[0]
    fit, why = fits(STORIES110M, many_banks, slots=slots)
    assert not fit and "one of 64 banks would hold" in why


# ---- goals ----------------------------------------------------------------------------


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


def test_peaks_are_bus_widths_times_rates():
    for board in BOARDS.values():
        memory = board.memory
        assert memory.peak_bytes_per_s <= memory.banks * memory.bank_peak_bytes_per_s * 1.001
        assert memory.pool_bytes <= memory.banks * memory.bank_bytes
        assert 0 < memory.efficiency < 1
        assert memory.source
        assert board.sheet
        assert board.header in board_headers()
        assert math.isfinite(memory.latency_ns)
