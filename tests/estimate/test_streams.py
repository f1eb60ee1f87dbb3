"""Streams of weights, keys and values from the memory."""

import pytest
from support.estimated import KV260, STORIES15M, U50, each_board

from llama_pynq.estimate.predict import predict
from llama_pynq.estimate.streams import Streams, StreamsInTurn
from llama_pynq.kernel.config import kernel_of


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
