"""Lesson 05, attention and the KV cache: bytes, weights, online softmax."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from llama_pynq.labs import exercise, expect


@exercise("05.1", "Bytes of a position", stages=("float32", "int8"))
def cache_bytes(position_bytes: Callable[..., int]) -> Iterator[str]:
    """Check the bytes of keys and values, and of an int8 cache's scales."""
    got = position_bytes(6, 4, 32, False)
    hint = f"6 layers with 4 KV heads of size 32 take {6 * 4 * 2 * 32 * 4:,} bytes, not {got:,}."
    if got == 6 * 4 * 32 * 4:
        hint = "Those are the keys only; the values take as much again."
    elif got == 6 * 4 * 2 * 32:
        hint = "That is the number of floats: a float32 takes 4 bytes."
    yield expect(got == 6 * 4 * 2 * 32 * 4, hint)
    got, right = position_bytes(6, 4, 32, True), 6 * 4 * 2 * (32 + 4)
    hint = f"As int8, the same cache takes {right:,} bytes per position, not {got:,}."
    if got == 6 * 4 * 2 * 32:
        hint = "The scales are missing: a float32 for each key and each value."
    elif got == 6 * 4 * (2 * 32 + 4):
        hint = "The key and the value have a scale each."
    yield expect(got == right, hint)


@exercise(
    "05.2", "A head's weights", stages=("they sum to 1", "the softmax", "the root of head_size",
                                       "large scores"),
)  # fmt: skip
def attention(attention_weights: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Iterator[str]:
    """Check against softmax(keys @ query / sqrt(head_size))."""
    rng = np.random.default_rng(5)
    query, keys = rng.normal(size=16), rng.normal(size=(9, 16))

    def given(q: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return np.asarray(attention_weights(q, keys), float)

    def right(q: np.ndarray, root: float) -> np.ndarray:
        scores = keys @ q / root
        terms = np.exp(scores - scores.max())
        return terms / terms.sum()

    got = given(query)
    yield expect(
        got.shape == (9,) and abs(got.sum() - 1) < 1e-6,
        f"There should be one weight per key, here 9, that sum to 1; yours have shape {got.shape} "
        f"and sum to {got.sum():.4g}.",
    )
    known = [right(query, 4.0), right(query, 1.0), right(query, 16.0)]
    yield expect(
        any(np.allclose(got, k, atol=1e-6) for k in known),
        "They are not the softmax of query · key: exp of each score, over the sum of all exp.",
    )
    yield expect(
        np.allclose(got, known[0], atol=1e-6),
        "Divide the scores by the square root of head_size, here 4, before the softmax"
        + ("; you divide by head_size itself." if np.allclose(got, known[2], atol=1e-6) else "."),
    )
    yield expect(
        np.allclose(given(query * 1000), right(query * 1000, 4.0), atol=1e-6),
        "With large scores, exp overflows: subtract the largest score first.",
    )


@exercise(
    "05.3", "Online softmax", stages=("the maximum", "the sum", "far apart", "block by block")
)
def online(merge: Callable[..., tuple[float, float]]) -> Iterator[str]:
    """Check the merge of two blocks, then a row in blocks of 32."""
    m, s = merge(1.0, 2.0, 3.0, 4.0)
    yield expect(m == 3.0, f"The larger maximum of 1 and 3 is 3, not {m:g}.")
    right = 2.0 * np.exp(-2.0) + 4.0
    hint = f"The sums refer to different maxima: {right:.4f}, not {s:.4f}."
    if abs(s - 6) < 1e-9:
        hint = "The sums refer to different maxima: scale the first by exp(1 - 3) before you add."
    yield expect(abs(s - right) < 1e-5, hint)
    with np.errstate(over="ignore", invalid="ignore"):
        m, s = merge(-2000.0, 5.0, 2000.0, 1.0)
        other = merge(2000.0, 1.0, -2000.0, 5.0)
    yield expect(
        (m, s) == (2000.0, 1.0) and tuple(other) == (2000.0, 1.0),
        "With maxima of -2000 and 2000, something overflows: take exp only of numbers that are "
        "at most 0.",
    )
    scores = np.random.default_rng(6).normal(0, 10, 100)
    state = (-1e30, 0.0)
    for first in range(0, 100, 32):
        block = scores[first : first + 32]
        state = merge(*state, block.max(), np.exp(block - block.max()).sum())
    total = np.exp(scores - scores.max()).sum()
    yield expect(
        np.allclose(state, (scores.max(), total)),
        "Two blocks are right, four in a row are not: the next call takes what merge returned.",
    )
