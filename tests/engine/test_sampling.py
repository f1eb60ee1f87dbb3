"""Sampling parameters, and the host's choice of a token from all logits, as in the kernel."""

import math
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_pynq.engine.sampling import SamplingParams, choose, largest
from llama_pynq.errors import RequestError
from llama_pynq.kernel.float_math import gumbel_noise
from llama_pynq.kernel.stages import log_sum_exp, sample


def sampling(**kwargs) -> SamplingParams:
    defaults = dict(max_new_tokens=1, temperature=0.8, top_k=0, top_p=1.0, min_p=0.0,
                    repetition_penalty=1.0, seed=1)  # fmt: skip
    return SamplingParams(**(defaults | kwargs))


def pick(logits: np.ndarray, s: SamplingParams, history=()):
    t = np.float32(s.temperature or 1)
    return choose(logits, float(log_sum_exp(logits / t)), 5, history, s, s.seed)


def expected(logits: np.ndarray, s: SamplingParams) -> int:
    """The same choice by definition, over the whole vocabulary in float64."""
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
    top_k=st.sampled_from([0, 1, 5, 16, 17, 300, 10**12]),
    top_p=st.sampled_from([1e-60, 0.05, 0.5, 0.9, 0.99, 1.0]),
    min_p=st.sampled_from([0.0, 0.02, 0.3]),
)
def test_choose_any_arguments_is_the_kernels_arithmetic_and_the_definition(
    spread, seed, temperature, top_k, top_p, min_p
):
    rng = np.random.default_rng(seed % 1000)
    logits = (rng.standard_normal(300) * spread).astype(np.float32)
    s = sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    choice = pick(logits, s)
    kernels = sample(logits, s.temperature, seed, 5, 300, s.truncation)
    assert choice.token == kernels.token == expected(logits, s)
    assert choice.logit == logits[choice.token]


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.9), (0, 0.1), (1500, 0.9), (40_000, 0.5)])
def test_choose_more_than_are_sorted_at_first_is_the_same_choice(top_k, top_p):
    logits = np.random.default_rng(7).standard_normal(3000).astype(np.float32)
    for seed in range(5):
        s = sampling(temperature=2.0, top_k=top_k, top_p=top_p, seed=seed)
        assert pick(logits, s).token == sample(logits, 2.0, seed, 5, 3000, s.truncation).token


@settings(derandomize=True, deadline=None)
@given(seed=st.integers(0, 99), n=st.integers(1, 60), values=st.integers(1, 60))
def test_largest_of_equals_ranks_the_lower_id_first(seed, n, values):
    logits = np.random.default_rng(seed).integers(0, values, 60).astype(np.float32)
    assert largest(logits, n).tolist() == np.argsort(-logits, kind="stable")[:n].tolist()


def test_choose_top_k_one_is_greedy():
    logits = np.random.default_rng(0).standard_normal(300).astype(np.float32)
    for seed in range(20):
        assert pick(logits, sampling(top_k=1, seed=seed)).token == logits.argmax()


def test_choose_frequencies_follow_the_softmax():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    s = [sampling(temperature=1.0, top_k=4, seed=seed) for seed in range(1500)]
    counts = np.bincount([pick(logits, x).token for x in s], minlength=4) / 1500
    np.testing.assert_allclose(counts, [0.5, 0.3, 0.15, 0.05], atol=0.04)


def test_choose_repetition_penalty_moves_the_greedy_choice():
    logits = np.array([2.0, 1.9, -1.0], np.float32)
    s = sampling(temperature=0, repetition_penalty=1.2)
    assert pick(logits, s, history=[0, 0, 2]).token == 1
    assert pick(logits, s, history=[]).token == 0


def test_choose_repetition_penalty_divides_positive_and_multiplies_negative_logits():
    logits = np.array([-1.0, -1.1], np.float32)
    choice = pick(logits, sampling(temperature=0, repetition_penalty=2.0), history=[0])
    assert choice.token == 1
    assert choice.logit == np.float32(-1.1)


def test_choose_repetition_penalty_truncates_what_it_left():
    logits = np.array([5.0, 4.9, 0.0, 0.0], np.float32)
    for seed in range(20):
        s = sampling(temperature=1.0, top_p=0.6, repetition_penalty=100.0, seed=seed)
        assert pick(logits, s, history=[0]).token == 1


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("max_new_tokens", -1, "max_new_tokens is -1: it must be 0 or more"),
        ("max_new_tokens", -3, "0 or more"),
        ("max_new_tokens", 1.5, "max_new_tokens is 1.5: it must be a whole number"),
        ("temperature", -0.1, "temperature is -0.1: it must be 0 (greedy), or 0.001 to 100"),
        ("temperature", math.nan, "temperature is nan"),
        ("temperature", "hot", "temperature is 'hot': it must be a number"),
        ("top_k", -1, "top_k is -1: it must be 0 (off) or more"),
        ("top_p", 0, "top_p is 0.0: it must be above 0, at most 1 (off)"),
        ("top_p", 1.01, "top_p is 1.01"),
        ("min_p", 1.0, "min_p is 1.0: it must be 0 (off) to below 1"),
        ("repetition_penalty", 0, "repetition_penalty is 0.0: it must be above 0, 1 (off), to 100"),
        ("seed", -1, "seed is -1: it must be 0 to 2^64 - 1"),
        ("seed", 2**64, "it must be 0 to 2^64 - 1"),
    ],
)
def test_sampling_out_of_range_names_argument_value_and_range(name, value, text):
    with pytest.raises(RequestError) as error:
        sampling(**{name: value})
    assert text in str(error.value)


@pytest.mark.parametrize("name", ["max_new_tokens", "temperature", "top_k", "top_p", "min_p",
                                  "repetition_penalty", "seed", "logprobs"])  # fmt: skip
@pytest.mark.parametrize("value", [True, False, np.True_])
def test_sampling_bools_are_no_numbers(name, value):
    with pytest.raises(RequestError, match=f"{name} is .*: it must be a"):
        sampling(**{name: value})


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"stop": ""}, "stop is '': it must be a non-empty string, or several"),
        ({"stop": ["a", 3]}, "it must be a non-empty string, or several"),
        ({"stop": 7}, "stop is 7: it must be"),
        ({"stop": 0}, "stop is 0: it must be"),
        ({"stop": b""}, "stop is b'': it must be"),
        ({"logprobs": -1}, "logprobs is -1: it must be None, or 0 or more"),
        ({"logprobs": 1.0}, "logprobs is 1.0: it must be a whole number"),
        ({"ignore_eos": 1}, "ignore_eos is 1: it must be True or False"),
    ],
)
def test_sampling_refuses_what_is_no_such_argument(given, text):
    with pytest.raises(RequestError) as error:
        sampling(**given)
    assert text in str(error.value)


def test_sampling_params_are_plain_equal_and_frozen():
    made = SamplingParams(np.int64(5), np.float32(0.5), stop="x", seed=np.uint64(2**63), logprobs=2)
    assert made == SamplingParams(5, 0.5, stop=["x"], seed=2**63, logprobs=2)
    assert [type(v) for v in (made.max_new_tokens, made.temperature, made.seed)] == [
        int, float, int,
    ]  # fmt: skip
    assert made.stop == ("x",) and hash(made)
    with pytest.raises(FrozenInstanceError):
        made.top_k = 3


def test_sampling_without_seed_draws_one():
    assert len({sampling(seed=None).draw_seed() for _ in range(5)}) > 1


def test_on_host_only_where_the_device_cannot():
    assert not sampling(top_p=0.5, top_k=3, min_p=0.1).on_host
    assert sampling(temperature=0, repetition_penalty=1.1).on_host
