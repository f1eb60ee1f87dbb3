"""Choosing a token on the host: same result from the top logits as from all of them."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llama_pynq.sampling as module
from llama_pynq.errors import RequestError
from llama_pynq.reference import gumbel_noise, log_sum_exp
from llama_pynq.sampling import (
    Sampling,
    _near_noise,
    _near_noise_of_all,
    _noise_key,
    choose,
)

TOP = 16


def sampling(**kwargs) -> Sampling:
    defaults = dict(max_new_tokens=1, temperature=0.8, top_k=0, top_p=1.0, min_p=0.0,
                    repetition_penalty=1.0, seed=1)  # fmt: skip
    return Sampling.checked(**(defaults | kwargs))


def pick(logits: np.ndarray, s: Sampling, n_top: int, history=()):
    """Choose from the `n_top` best logits; the number of times all logits were asked for."""
    order = np.argsort(-logits, kind="stable")[:n_top]
    asked = []

    def full_logits():
        asked.append(1)
        return logits

    t = np.float32(s.temperature or 1)
    choice = choose(order, logits[order],
                    float(log_sum_exp(logits / t)), 5, history, s, full_logits)  # fmt: skip
    return choice, len(asked)


def expected(logits: np.ndarray, s: Sampling) -> int:
    """The same choice, spelled out over the whole vocabulary in float64."""
    order = np.argsort(-logits, kind="stable")
    scaled = logits[order] / np.float32(s.temperature)
    kept = np.ones(len(order), bool)
    if s.top_k:
        kept[s.top_k :] = False
    if s.top_p < 1:
        p = np.exp(scaled[kept].astype(np.float64))
        before = np.cumsum(p / p.sum()) - p / p.sum()
        kept[np.flatnonzero(kept)[before >= s.top_p]] = False
    if s.min_p:
        kept &= np.exp(scaled.astype(np.float64) - scaled[0]) >= s.min_p
    scores = np.where(kept, scaled + gumbel_noise(s.seed, 5, order), -np.inf)
    return int(order[np.argmax(scores)])


@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    spread=st.floats(0.1, 8),
    seed=st.integers(0, 2**64 - 1),
    temperature=st.floats(0.1, 3),
    top_k=st.sampled_from([0, 1, 5, 16, 17, 300, 1000]),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 0.99, 1.0]),
    min_p=st.sampled_from([0.0, 0.02, 0.3]),
)
def test_choose_any_arguments_is_the_same_from_top_and_from_all(
    spread, seed, temperature, top_k, top_p, min_p
):
    rng = np.random.default_rng(seed % 1000)
    logits = (rng.standard_normal(300) * spread).astype(np.float32)
    s = sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    few, _ = pick(logits, s, TOP)
    every, _ = pick(logits, s, len(logits))
    assert few.token == every.token == expected(logits, s)
    assert few.logit == logits[few.token]


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**64 - 1])
def test_near_noise_is_the_kernels_to_within_what_choosing_allows(seed):
    for position in (0, 1, 77, 32767):
        exact = gumbel_noise(seed, position, np.arange(32000))
        key = _noise_key(seed, position)
        assert np.abs(_near_noise_of_all(key, 32000) - exact).max() < 1e-5
        assert np.abs(np.array(_near_noise(key, range(999))) - exact[:999]).max() < 1e-5


def test_choose_sums_too_close_to_call_are_the_kernels(monkeypatch):
    # With a margin this wide, every choice is left to the kernel's own noise.
    logits = (np.random.default_rng(3).standard_normal(300) * 2).astype(np.float32)
    s = [sampling(top_p=p, seed=seed) for p in (0.5, 0.9) for seed in range(50)]
    few = [pick(logits, x, TOP)[0] for x in s]
    monkeypatch.setattr(module, "_least_contender", lambda largest: largest - 5)
    assert [pick(logits, x, TOP)[0] for x in s] == few
    assert [choice.token for choice in few] == [expected(logits, x) for x in s]


def test_choose_from_all_of_equal_logits_ranks_the_lower_id_first():
    logits = np.zeros(300, np.float32)
    for seed in range(30):
        token = pick(logits, sampling(top_k=100, top_p=0.5, seed=seed), TOP)[0].token
        assert token < 50
        assert token == np.argmax(gumbel_noise(seed, 5, np.arange(50)))


def test_choose_peaked_logits_needs_no_full_logits():
    logits = np.linspace(0, -60, 300).astype(np.float32)
    assert pick(logits, sampling(top_p=0.9), TOP)[1] == 0


def test_choose_flat_logits_asks_for_full_logits_once():
    logits = np.zeros(300, np.float32)
    assert pick(logits, sampling(top_p=0.9), TOP)[1] == 1


def test_choose_top_k_one_is_greedy():
    logits = np.random.default_rng(0).standard_normal(300).astype(np.float32)
    for seed in range(20):
        assert pick(logits, sampling(top_k=1, seed=seed), TOP)[0].token == logits.argmax()


def test_choose_frequencies_follow_the_softmax():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    s = [sampling(temperature=1.0, top_k=4, seed=seed) for seed in range(1500)]
    counts = np.bincount([pick(logits, x, 4)[0].token for x in s], minlength=4) / 1500
    np.testing.assert_allclose(counts, [0.5, 0.3, 0.15, 0.05], atol=0.04)


def test_choose_repetition_penalty_moves_the_greedy_choice():
    logits = np.array([2.0, 1.9, -1.0], np.float32)
    s = sampling(temperature=0, repetition_penalty=1.2)
    choice, _ = pick(logits, s, 3, history=[0, 0, 2])
    assert choice.token == 1
    again, _ = pick(logits, s, 3, history=[])
    assert again.token == 0


def test_choose_repetition_penalty_divides_positive_and_multiplies_negative_logits():
    logits = np.array([-1.0, -1.1], np.float32)
    choice, _ = pick(logits, sampling(temperature=0, repetition_penalty=2.0), 2, history=[0])
    assert choice.token == 1
    assert choice.logit == np.float32(-1.1)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("max_new_tokens", 0, "max_new_tokens is 0: it must be at least 1"),
        ("max_new_tokens", -3, "at least 1"),
        ("max_new_tokens", 1.5, "max_new_tokens is 1.5: it must be a whole number"),
        ("temperature", -0.1, "temperature is -0.1: it must be 0 (greedy), or 0.001 to 100"),
        ("temperature", math.nan, "temperature is nan"),
        ("temperature", "hot", "temperature is 'hot': it must be a number"),
        ("top_k", -1, "top_k is -1: it must be 0 (off) or more"),
        ("top_p", 0, "top_p is 0.0: it must be above 0, at most 1 (off)"),
        ("top_p", 1.01, "top_p is 1.01"),
        ("min_p", 1.0, "min_p is 1.0: it must be 0 (off) to below 1"),
        ("repetition_penalty", 0.5, "repetition_penalty is 0.5: it must be 1 (off) to 100"),
        ("seed", -1, "seed is -1: it must be 0 to 2^64 - 1"),
        ("seed", 2**64, "it must be 0 to 2^64 - 1"),
    ],
)
def test_sampling_out_of_range_names_argument_value_and_range(name, value, text):
    with pytest.raises(RequestError) as error:
        sampling(**{name: value})
    assert text in str(error.value)


def test_sampling_without_seed_draws_one():
    assert len({sampling(seed=None).seed for _ in range(5)}) > 1


def test_on_host_only_where_the_device_cannot():
    assert not sampling(temperature=0, top_p=0.5, top_k=3).on_host
    assert not sampling(temperature=1.0).on_host
    assert sampling(top_p=0.5).on_host
    assert sampling(top_k=3).on_host
    assert sampling(min_p=0.1).on_host
    assert sampling(temperature=0, repetition_penalty=1.1).on_host
