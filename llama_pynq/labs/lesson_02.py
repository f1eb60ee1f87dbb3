"""Lesson 02, layer timing: bytes of a token, growth with the position, Amdahl's law."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.estimate.work import Work
from llama_pynq.labs import exercise, expect


@exercise("02.1", "Bytes of a token", stages=("the size", "scales", "every matrix"))
def weight_bytes(answer: float, config: ModelConfig) -> Iterator[str]:
    """Check the bytes within 1.5% of the cycle model's count, without the norms."""
    work = Work(config, 64, 8, 32, 1, 0, True)
    right = work.weight_bytes - 4 * config.dim * (2 * config.n_layers + 1)
    ratio = float(answer) / right
    yield expect(
        0.1 < ratio < 10,
        f"{answer:,.0f} bytes is {'far too many' if ratio > 1 else 'far too few'}: an int8 weight "
        "is one byte, and there are n_layers layers.",
    )
    bare = right * 64 / 68
    yield expect(
        abs(float(answer) / bare - 1) > 0.01,
        "That is the weights alone. Each group of 64 has a float32 scale: 4 bytes more.",
    )
    classifier = config.vocab_size * config.dim * 68 / 64
    gate = config.n_layers * config.hidden_dim * config.dim * 68 / 64

    def near(other: float) -> bool:
        return abs(float(answer) - other) < 0.01 * right

    attention_out = config.n_layers * config.dim * config.dim * 68 / 64
    wide_kv = 2 * config.n_layers * config.dim * (config.dim - config.kv_dim) * 68 / 64
    if near(right - classifier):
        hint = "The classifier is missing: vocab_size × dim."
    elif near(right - attention_out):
        hint = "The attention output is missing: dim × dim in each layer."
    elif wide_kv and near(right + wide_kv):
        hint = "K and V are kv_dim × dim each, not dim × dim."
    elif near(right - gate):
        hint = "One of gate, up and down is missing: each is hidden_dim × dim."
    elif near(right + classifier):
        hint = "The embedding is not read in full: each token reads one row of it."
    else:
        hint = (
            "Not within 1.5%. Go through the list: Q, K, V, attention out, gate, up, down, "
            "classifier."
        )
    yield expect(abs(ratio - 1) < 0.015, hint)


@exercise("02.2", "How attention grows", stages=("proportional to the number of positions",))
def growth(answer: float) -> Iterator[str]:
    """Check the ratio against (255 + 1) / (31 + 1)."""
    near = abs(float(answer) - 255 / 31) < 0.01
    hint = (
        "Nearly: the token at position p attends to positions 0 to p, which are p + 1 positions."
        if near
        else "Bytes are in proportion to the number of positions attended to: p + 1."
    )
    yield expect(abs(float(answer) - 8) < 1e-6, hint)


@exercise(
    "02.3", "Without a part", stages=("a part that takes no time", "half the time", "any share")
)
def amdahl(speedup_without: Callable[[float], float]) -> Iterator[str]:
    """Check the speed-up against 1 / (1 - share)."""
    nothing = speedup_without(0.0)
    yield expect(
        abs(nothing - 1) < 1e-9,
        f"Without a part that takes no time, nothing changes: 1, not {nothing:g}.",
    )
    half = speedup_without(0.5)
    yield expect(
        abs(half - 2) < 1e-9, f"Without half of the time, it is twice as fast, not {half:g} times."
    )
    right = all(abs(speedup_without(s) - 1 / (1 - s)) < 1e-9 for s in (0.1, 0.25, 0.9))
    yield expect(right, "The remaining time is 1 - share: the speed-up is its inverse.")
