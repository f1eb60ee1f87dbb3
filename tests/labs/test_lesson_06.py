"""Lesson 06: the checks pass the solution and name each typical mistake."""

from __future__ import annotations

import pytest
from support.lesson_notebooks import solution

from llama_pynq import labs
from llama_pynq.boards import boards
from llama_pynq.checkpoint.shapes import SHAPES
from llama_pynq.estimate.capacity import buffers
from llama_pynq.estimate.predict import predict
from llama_pynq.kernel.config import kernel_of

STORIES, KV260 = SHAPES["stories110M"], boards()["kv260"]


@pytest.fixture(scope="module")
def solved():
    return solution("06_which_board", config=STORIES, board=KV260, CONTEXT=256)


def _hint(name, *answers):
    result = labs.check(name, *answers)
    assert result.state == "wrong", result
    return result.passed, result.hint


def _check_prediction(given, reference=None, board="kv260", model="stories110M", context=256):
    config = SHAPES[model]
    if reference is None:
        reference = predict(config, boards()[board], position=context - 1).tokens_per_second
    return "06.3", given, model, board, context, reference


def test_the_solutions_pass(solved):
    results = [
        labs.check("06.1", solved["token_bytes"]),
        labs.check("06.2", solved["needs_mib"]),
        labs.check(*_check_prediction(solved["prediction"])),
        labs.check("06.4", solved["int4_gain"], "stories110M", "kv260"),
        labs.check("06.5", solved["value"]),
    ]
    assert [r.state for r in results] == ["passed"] * 5, results
    assert [r.passed for r in results] == [len(e.stages) for e in labs.exercises("06")]


# ---- 06.1


def _counted(weight=1.0, scales=True, kv=1.0, extra_tables=0, layers=None, cache_dim=None,
             kv_dim=None, ffn=3, bits=True, kv_context=None, kv_scales=True):  # fmt: skip
    """Make a token_bytes with a mistake."""

    def token_bytes(c, context, weight_bits=8, kv_bits=32):
        n, dim_kv = layers or c.n_layers, kv_dim or (lambda c: c.kv_dim)
        layer = 2 * c.dim * (c.dim + dim_kv(c)) + ffn * c.dim * c.hidden_dim
        weights = n * layer + (1 + extra_tables) * c.vocab_size * c.dim
        if not bits:
            weight_bits = kv_bits = 8
        values = 2 * c.n_layers * (kv_context or (lambda c, n: n))(c, context)
        cache = values * (cache_dim or (lambda c: c.kv_dim))(c) * kv_bits / 8
        if kv_bits == 8 and kv_scales:
            cache += values * c.n_kv_heads * 4
        return weight * (weights * (weight_bits / 8 + 4 / 64 * scales) + kv * cache)

    return token_bytes


@pytest.mark.parametrize(
    "wrong, passed, hint",
    [
        (_counted(weight=8), 0, "8 bits are a byte"),
        (_counted(weight=1e-6), 0, "That is in MB"),
        (_counted(scales=False), 0, "The scales are missing"),
        (_counted(extra_tables=1), 0, "A token reads one row of it"),
        (_counted(extra_tables=-1), 0, "The classifier is missing"),
        (_counted(layers=1), 0, "one layer and the classifier"),
        (_counted(ffn=2), 0, "three matrices"),
        (_counted(kv_context=lambda c, n: c.seq_len), 0, "only those that are in use"),
        (lambda c, n, w=8, k=32: c.dim, 0, "Not the bytes of stories110M's weights"),
        (lambda c, n, w=8, k=32: "117 MB", 0, "Give a number"),
        (_counted(kv=0), 1, "the KV cache is forgotten"),
        (_counted(kv=0.5), 1, "Both are read"),
        (_counted(kv=0.25), 1, "float32 here"),
        (_counted(kv=1 / 12), 1, "cache of one layer"),
        (_counted(kv=8), 1, "number of bits"),
        (_counted(cache_dim=lambda c: c.dim), 2, "kv_dim for the cache"),
        (_counted(kv_dim=lambda c: c.dim), 2, "kv_dim for wk and wv"),
        (
            _counted(kv_dim=lambda c: c.dim, cache_dim=lambda c: c.dim),
            2,
            "not dim, counts for wk, wv and the cache",
        ),
        (lambda c, n, w=8, k=32: _counted(extra_tables=not c.tied)(c, n, w, k), 2, "tied=False"),
        (lambda c, n, w=8, k=32: _counted()(c, n, 8, k), 3, "use weight_bits"),
        (lambda c, n, w=8, k=32: _counted()(c, n, 8, k) * w / 8, 3, "The keys and values stay"),
        (lambda c, n, w=8, k=32: _counted()(c, n, w, 32), 3, "use kv_bits"),
        (_counted(kv_scales=False), 3, "each head's value of a position has a float32 scale"),
    ],
)  # fmt: skip
def test_a_wrong_count_of_bytes_is_told_why(wrong, passed, hint):
    found, text = _hint("06.1", wrong)
    assert (found, hint in text) == (passed, True), text


def test_halved_scales_are_told():
    def wrong(c, n, w=8, k=32):
        weights = _counted(kv=0)(c, n, 8, k)
        return weights * w / 8 + _counted()(c, n, 8, k) - weights

    assert "the scales stay float32" in _hint("06.1", wrong)[1]


def test_norms_may_be_counted():
    right = _counted()

    def with_norms(c, n, w=8, k=32):
        return right(c, n, w, k) + 4 * c.dim * (2 * c.n_layers + 1)

    assert labs.check("06.1", with_norms).state == "passed"


# ---- 06.2


@pytest.mark.parametrize(
    "change, passed, hint",
    [
        (lambda right, c, w, k: right * 2**20 / 1e6, 0, "PYNQ's memory is counted in MiB"),
        (lambda right, c, w, k: right * 2**20, 0, "That is in bytes"),
        (lambda right, c, w, k: right / 1024, 0, "That is in GiB"),
        (lambda right, c, w, k: _counted()(c, 256, w, k) / 2**20, 0, "all of them: seq_len"),
        (lambda right, c, w, k: _counted(kv=0)(c, 1, w, k) / 2**20, 0, "the weights alone"),
        (lambda right, c, w, k: _counted(extra_tables=1)(c, c.seq_len, w, k) / 2**20, 0, "once"),
        (lambda right, c, w, k: _counted()(c, c.seq_len) / 2**20, 1, "make no difference"),
        (lambda right, c, w, k: _counted()(c, c.seq_len, w) / 2**20, 1, "pass kv_bits on"),
        (lambda right, c, w, k: _counted()(c, c.seq_len, w, k) / 2**20, 2, "whole table"),
    ],
)
def test_a_wrong_size_is_told_why(solved, change, passed, hint):
    def wrong(c, w=8, k=32):
        return change(solved["needs_mib"](c, w, k), c, w, k)

    found, text = _hint("06.2", wrong)
    assert (found, hint in text) == (passed, True), text


@pytest.mark.parametrize("name", ["stories15M", "stories110M", "tinyllama"])
def test_what_the_lesson_calls_right_is_what_the_buffers_take(solved, name):
    config = SHAPES[name]
    sizes, port = buffers(config, KV260)
    buffered = (sum(sizes) + kernel_of(KV260).kv_ports * port) / 2**20
    assert solved["needs_mib"](config) == pytest.approx(
        buffered, rel=0.05
    )  # tiles, and heads, are padded


# ---- 06.3


@pytest.mark.parametrize(
    "change, hint",
    [
        (lambda peak, share, read, weights: peak / read, "That is the peak"),
        (lambda peak, share, read, weights: peak * share / weights, "The KV cache is forgotten"),
        (lambda peak, share, read, weights: peak / weights, "Two things are forgotten"),
        (lambda peak, share, read, weights: read / peak / share, "time of a token in seconds"),
        (lambda peak, share, read, weights: peak * share / read / 8, "not in bits"),
        (lambda peak, share, read, weights: peak * share / read / 1e3, "GB/s and the token in MB"),
        (lambda peak, share, read, weights: 1.0, "Divide what memory sustains"),
    ],
)
def test_a_wrong_prediction_is_told_why(solved, change, hint):
    memory, count = KV260.memory, solved["token_bytes"]
    given = change(
        memory.peak_bytes_per_s, memory.efficiency, count(STORIES, 256), count(STORIES, 0)
    )
    passed, text = _hint(*_check_prediction(given))
    assert (passed, hint in text) == (0, True), text


def test_the_roof_is_within_15_percent_of_the_model_of_a_kv260(solved):
    modelled = predict(STORIES, KV260, position=255).tokens_per_second
    assert solved["prediction"] == pytest.approx(modelled, rel=0.15)
    assert KV260.memory.peak_bytes_per_s / solved["token_bytes"](STORIES, 256) > 1.15 * modelled


def test_a_prediction_is_judged_by_what_was_measured_where_there_is_a_board(solved):
    roof = solved["prediction"]
    assert labs.check(*_check_prediction(roof, reference=roof / 1.1)).state == "passed"
    passed, text = _hint(*_check_prediction(roof, reference=roof / 2))
    assert passed == 1 and "the roof is not the limit" in text
    assert labs.check(*_check_prediction(roof / 2.1, reference=roof / 2)).state == "passed"


def test_other_boards_and_models_are_judged_by_their_own_figures():
    given = predict(SHAPES["stories15M"], boards()["pynq-z2"], position=63).tokens_per_second
    case = _check_prediction(given, board="pynq-z2", model="stories15M", context=64)
    assert labs.check(*case).state == "passed"
    assert labs.check(*_check_prediction(given)).state == "wrong"


# ---- 06.4, 06.5


@pytest.mark.parametrize(
    "given, hint",
    [
        (2, "Twice"),
        (1.889, "the weights alone"),
        (135.3 / 80.6, "a quarter of the context"),
        (137.2 / 191.9, "Turn it round"),
        (5, "Divide the bytes"),
    ],
)
def test_a_wrong_gain_of_int4_is_told_why(given, hint):
    assert hint in _hint("06.4", given, "stories110M", "kv260")[1]


def test_a_board_that_bandwidth_does_not_limit_gains_less():
    passed, text = _hint("06.4", 191.9 / 137.2, "stories110M", "u280")
    assert passed == 1 and "other than the memory's bandwidth" in text


@pytest.mark.parametrize(
    "wrong, passed, hint",
    [
        (lambda rate, watts, price: rate / price, 0, "Return two numbers"),
        (lambda rate, watts, price: (price / rate, watts / rate), 0, "the other way round"),
        (lambda rate, watts, price: (watts / rate, rate / price), 0, "the money first"),
        (lambda rate, watts, price: (rate / price, watts * rate), 1, "Divide"),
        (lambda rate, watts, price: (rate / price, rate / watts), 1, "the inverse"),
        (lambda rate, watts, price: (rate / price, watts / rate / 3.6), 1, "3.6 J"),
    ],
)
def test_a_wrong_value_is_told_why(wrong, passed, hint):
    found, text = _hint("06.5", wrong)
    assert (found, hint in text) == (passed, True), text


# ---- as shipped


def test_nothing_filled_in_is_to_do():
    def empty(*_):
        """Empty answer, as in the notebook."""
        ...

    cases = [
        ("06.1", empty),
        ("06.2", empty),
        _check_prediction(...),
        ("06.4", ..., "stories110M", "kv260"),
        ("06.5", empty),
    ]
    assert [labs.check(*case).state for case in cases] == ["to do"] * 5
