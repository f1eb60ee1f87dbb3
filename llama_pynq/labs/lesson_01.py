"""Lesson 01, prompting: temperature, seed and top-p."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from llama_pynq.labs import exercise, expect


def softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities of logits at a temperature, in float64."""
    scaled = np.asarray(logits, np.float64) / temperature
    terms = np.exp(scaled - scaled.max())
    return terms / terms.sum()


def kept(logits: np.ndarray, temperature: float, top_p: float) -> int:
    """Number of tokens that top-p keeps."""
    mass = np.cumsum(np.sort(softmax(logits, temperature))[::-1])
    return int(np.searchsorted(mass, top_p - 1e-12) + 1)


@exercise("01.1", "Same text?", stages=("at temperature 0", "at temperature 1"))
def same_text(
    same_at_0: bool, same_at_1: bool, texts: Mapping[tuple[int, int], str]
) -> Iterator[str]:
    """Check the predictions against the generated texts."""
    for temperature, answer in ((0, same_at_0), (1, same_at_1)):
        same = texts[temperature, 1] == texts[temperature, 2]
        if not isinstance(answer, (bool, np.bool_)):
            yield f"For temperature {temperature} the answer is {answer!r}: write True or False."
            continue
        why = (
            "At temperature 0 the largest logit wins: what would a seed decide?"
            if temperature == 0
            else "Compare the two texts above: the seed decides the draw."
        )
        yield expect(bool(answer) == same, why)


@exercise(
    "01.2",
    "Temperature by hand",
    stages=("they sum to 1", "temperature 1", "other temperatures", "large logits"),
)
def temperature(probabilities: Callable[..., np.ndarray]) -> Iterator[str]:
    """Check against a float64 softmax."""
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 3, 200).astype(np.float32)

    def right(t: float, x: np.ndarray = logits) -> bool:
        return bool(np.allclose(given(t, x), softmax(x, t), atol=1e-4))

    def given(t: float, x: np.ndarray = logits) -> np.ndarray:
        with np.errstate(all="ignore"):
            return np.asarray(probabilities(x, t), np.float64)

    total = given(1.0).sum()
    yield expect(
        given(1.0).shape == logits.shape and abs(total - 1) < 1e-3,
        f"There should be {len(logits)} numbers that sum to 1; yours sum to {total:.4g}. Did you "
        "divide each exp by the sum of all?",
    )
    yield expect(
        right(1.0), "They sum to 1, but are not exp(logit) divided by the sum of all exp(logit)."
    )
    hint = "Right at temperature 1, but wrong at 0.5."
    if np.allclose(given(0.5), softmax(logits, 2.0), atol=1e-4):
        hint += " You multiply by the temperature; divide by it: 0.5 makes the model more certain."
    elif np.allclose(given(0.5), softmax(logits, 1.0), atol=1e-4):
        hint += " The temperature changes nothing yet."
    yield expect(right(0.5) and right(2.0), hint)
    yield expect(
        right(1.0, logits + np.float32(1000)),
        "With logits near 1000, exp overflows. Subtract the largest logit from all first: the "
        "quotient stays the same.",
    )


@exercise(
    "01.3",
    "How many top-p keeps",
    stages=("a sure model", "sorting", "the token that reaches top_p", "top_p of 1"),
)
def top_p(tokens_kept: Callable[..., int]) -> Iterator[str]:
    """Check small distributions, then a random one."""
    n = tokens_kept(np.array([0.95, 0.03, 0.02]), 0.9)
    yield expect(n == 1, f"Of 0.95, 0.03, 0.02 at top_p 0.9, one is enough; you keep {n}.")
    n = tokens_kept(np.array([0.1, 0.2, 0.1, 0.6]), 0.7)
    yield expect(
        n == 2,
        f"Of 0.1, 0.2, 0.1, 0.6 at top_p 0.7, it takes two, 0.6 and 0.2; you keep {n}. Begin with "
        "the most probable.",
    )
    n = tokens_kept(np.array([0.5, 0.25, 0.25]), 0.75)
    yield expect(
        n == 2,
        f"Of 0.5, 0.25, 0.25 at top_p 0.75, two reach it exactly; you keep {n}. Keep the token "
        "that reaches top_p, and none after it.",
    )
    p = softmax(np.random.default_rng(2).normal(0, 2, 500), 1.0)
    right = all(tokens_kept(p, t) == kept(np.log(p), 1.0, t) for t in (0.1, 0.5, 0.9))
    n = tokens_kept(p, 1.0)
    yield expect(
        right and n <= len(p),
        f"The small cases are right; of 500 tokens at top_p 1 you keep {n}. Rounding may leave the "
        "whole sum just below 1: never keep more tokens than there are.",
    )
