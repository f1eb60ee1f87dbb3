"""`llama-pynq bench`, with a fake clock that only kernel steps advance."""

import json
from types import SimpleNamespace

import pytest

from llama_pynq import LlamaOverlay
from llama_pynq.driver import LlamaDriver
from llama_pynq.engine import scheduler, sequence
from llama_pynq.kernel.abi import RowFlag
from llama_pynq.measure import bench

STEP_S = 0.01


@pytest.fixture
def overlay():
    with LlamaOverlay() as overlay:
        overlay.load_model()
        yield overlay


@pytest.fixture
def calls(monkeypatch):
    """Kernel calls as (rows, steps, flags of the last row); each step takes 10 ms."""
    done = []
    clock = SimpleNamespace(now=0.0)
    clock.perf_counter = lambda: clock.now
    run = LlamaDriver.run
    load_weights = LlamaDriver.load_weights

    def timed_run(self, rows, **kwargs):
        result = run(self, rows, **kwargs)
        clock.now += STEP_S * len(result.rows)
        done.append((len(rows), len(result.rows), int(rows["flags"][-1])))
        return result

    def timed_load(self, *args):
        load_weights(self, *args)
        clock.now += 0.5

    monkeypatch.setattr(LlamaDriver, "run", timed_run)
    monkeypatch.setattr(LlamaDriver, "load_weights", timed_load)
    monkeypatch.setattr(bench, "time", clock)
    for module in (scheduler, sequence):
        monkeypatch.setattr(module, "time", clock)
    return done


def values(report):
    return {figure.name: figure.value for figure in report.figures}


def test_measure_takes_rates_from_the_clock(overlay, calls):
    report = bench.measure(overlay, overlay.llama.model, 40, 3)
    found = values(report)
    assert found["decode, greedy"] == pytest.approx(1 / STEP_S)
    assert found["decode, top-p 0.9"] == pytest.approx(1 / STEP_S)
    assert found["time to first token"] == pytest.approx(1e3 * STEP_S)
    rows = overlay.llama.limits.max_rows
    assert found["prefill"] == pytest.approx(40 / (-(-40 // rows) * STEP_S))
    assert found["load, weights only"] == pytest.approx(500)
    assert found["load"] == pytest.approx(1e3 * overlay.llama.model.load_seconds)
    assert found["packed weights"] == overlay.llama.model.packed.weight_bytes / 2**20
    assert (report.tokens, report.repeats) == (40, 3)


def test_measure_does_not_stop_where_a_text_ends(overlay, calls, monkeypatch):
    model = overlay.llama.model
    length = 40
    tokens = model.generate("", max_new_tokens=length, temperature=0).tokens
    monkeypatch.setattr(model.tokenizer, "eos_id", tokens[5])
    ends = model.generate("", max_new_tokens=length, temperature=0)
    assert ends.finish_reason == "stop" and len(ends.tokens) <= 5
    del calls[:]
    bench.measure(overlay, model, length, 1)
    sampled = [steps for rows, steps, flags in calls if rows == 1 and flags & RowFlag.SAMPLE]
    # Two first-token calls (warm-up and timed), then a greedy text and a sampled one.
    assert sum(sampled) == 2 * 1 + 2 * length


def test_measure_reads_the_prompt_in_full_slices(overlay, calls):
    bench.measure(overlay, overlay.llama.model, 40, 1)
    prefill = [(rows, flags) for rows, _, flags in calls if rows > 1]
    assert prefill == [(32, 0), (8, RowFlag.SAMPLE)]


def test_measure_is_cut_to_the_context(overlay, calls):
    report = bench.measure(overlay, overlay.llama.model, 10**6, 1)
    assert report.tokens == overlay.llama.model.config.seq_len
    assert "the first 512 tokens" in report.figures[0].source
    assert values(report)["prefill"] == pytest.approx(512 / (512 / 32 * STEP_S))


def test_model_generates_as_before_after_measure(overlay):
    before = overlay.generate("One day", max_new_tokens=20, seed=1).text
    bench.measure(overlay, overlay.llama.model, 4, 1)
    assert overlay.generate("One day", max_new_tokens=20, seed=1).text == before


def test_report_says_what_each_figure_is(overlay):
    report = bench.measure(overlay, overlay.llama.model, 4, 2)
    assert json.loads(report.json())["figures"][0] == {
        "name": "decode, greedy",
        "value": report.figures[0].value,
        "unit": "tokens/s",
        "kind": "measured",
        "source": "the first 4 tokens; host clock, median of 2",
    }
    assert {f.kind for f in report.figures} == {"measured", "counted"}
    assert report.table().splitlines()[0] == f"device  {overlay.describe()}"


def test_peak_memory_is_left_out_where_it_is_unknown(overlay, monkeypatch):
    peak = bench.peak_memory_bytes()
    if peak is not None:
        assert 20 << 20 < peak < 1 << 40
        report = bench.measure(overlay, overlay.llama.model, 2, 1)
        assert values(report)["peak memory"] >= peak / 2**20
    monkeypatch.setattr(bench, "peak_memory_bytes", lambda: None)
    assert "peak memory" not in values(bench.measure(overlay, overlay.llama.model, 2, 1))
