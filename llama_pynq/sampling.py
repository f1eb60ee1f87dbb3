"""Choosing a token on the host, where the device's own sampling does not reach.

Greedy and plain temperature sampling happen in the kernel. Truncated sampling (top-k,
top-p, min-p) and the repetition penalty happen here, on the logits that the kernel
returns. Both add the same Gumbel noise, a function of (seed, position, token id), and take
the largest sum: truncation only narrows the candidates. So a seed gives one text, however
the work is cut up.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .errors import RequestError
from .reference import gumbel_noise

f32 = np.float32


def _integer(name: str, value: object) -> int:
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise RequestError(f"{name} is {value!r}: it must be a whole number") from None


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise RequestError(f"{name} is {value!r}: it must be a number")
    return float(value)


@dataclass(frozen=True)
class Sampling:
    """Validated sampling arguments, named as in transformers.

    Attributes
    ----------
    max_new_tokens : int
        At least 1.
    temperature : float
        0 is greedy; else 0.001 to 100.
    top_k : int
        Keep the k most probable tokens; 0 keeps all.
    top_p : float
        Keep the smallest set of most probable tokens whose mass reaches p; 1 keeps all.
    min_p : float
        Keep tokens at least this probable relative to the best; 0 keeps all.
    repetition_penalty : float
        Divides positive and multiplies negative logits of tokens already present; 1 is off.
    seed : int
        0 to 2^64 - 1.
    """

    max_new_tokens: int = 512
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.9
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    @classmethod
    def checked(
        cls,
        max_new_tokens: int,
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
        repetition_penalty: float,
        seed: int | None,
    ) -> Sampling:
        """Build from user arguments; a seed of None is drawn.

        Raises
        ------
        RequestError
            If an argument is out of range; names it, its value and the range.
        """
        if seed is None:
            seed = int.from_bytes(os.urandom(4), "little")
        values = {
            "max_new_tokens": _integer("max_new_tokens", max_new_tokens),
            "temperature": _number("temperature", temperature),
            "top_k": _integer("top_k", top_k),
            "top_p": _number("top_p", top_p),
            "min_p": _number("min_p", min_p),
            "repetition_penalty": _number("repetition_penalty", repetition_penalty),
            "seed": _integer("seed", seed),
        }
        ranges: dict[str, tuple[Callable[[float], bool], str]] = {
            "max_new_tokens": (lambda v: v >= 1, "at least 1"),
            "temperature": (lambda v: v == 0 or 1e-3 <= v <= 100, "0 (greedy), or 0.001 to 100"),
            "top_k": (lambda v: v >= 0, "0 (off) or more"),
            "top_p": (lambda v: 0 < v <= 1, "above 0, at most 1 (off)"),
            "min_p": (lambda v: 0 <= v < 1, "0 (off) to below 1"),
            "repetition_penalty": (lambda v: 1 <= v <= 100, "1 (off) to 100"),
            "seed": (lambda v: 0 <= v < 2**64, "0 to 2^64 - 1"),
        }
        for name, (accepts, text) in ranges.items():
            if not accepts(values[name]):  # NaN is accepted by none
                raise RequestError(f"{name} is {values[name]}: it must be {text}")
        return cls(**values)  # type: ignore[arg-type]

    @property
    def on_host(self) -> bool:
        """Whether the host has to choose the token."""
        return self.repetition_penalty != 1 or (
            self.temperature > 0 and (self.top_k > 0 or self.top_p < 1 or self.min_p > 0)
        )


@dataclass(frozen=True)
class Choice:
    """A chosen token, and its logit before any penalty."""

    token: int
    logit: float


def _kept(scaled: np.ndarray, lse: float, vocab_size: int, s: Sampling) -> int | None:
    """How many of the best candidates survive, or None if these are too few to tell.

    Parameters
    ----------
    scaled : (n,) float32
        logit / temperature of the n best tokens, descending.
    lse : float
        Log-sum-exp of logit / temperature over the whole vocabulary.
    vocab_size : int
    s : Sampling
    """
    n = len(scaled)
    whole = n == vocab_size
    limit = vocab_size
    values = scaled.astype(np.float64)
    if s.top_k:
        limit = min(s.top_k, vocab_size)
        if limit > n:
            return None
        values = values[:limit]
    if s.top_p < 1:
        normaliser = lse
        if s.top_k:  # what top-k left is a distribution of its own
            normaliser = values[0] + math.log(np.exp(values - values[0]).sum())
        mass = np.cumsum(np.exp(values - normaliser))
        count = int(np.searchsorted(mass, s.top_p)) + 1
        if count > len(values):
            if not (whole or s.top_k):
                return None
            count = len(values)
        limit = min(limit, count)
    if s.min_p > 0:
        count = int(np.count_nonzero(values >= values[0] + math.log(s.min_p)))
        if count == n and not whole and limit > n:
            return None
        limit = min(limit, count)
    return limit if limit <= n else None


def choose(
    top_ids: np.ndarray,
    top_logits: np.ndarray,
    lse_temperature: float,
    position: int,
    history: Sequence[int],
    sampling: Sampling,
    full_logits: Callable[[], np.ndarray],
) -> Choice:
    """Pick a token from what the kernel returned.

    Parameters
    ----------
    top_ids, top_logits : (n,)
        The kernel's top logits, descending; of equals the lower id first.
    lse_temperature : float
        Log-sum-exp of logit / temperature over the whole vocabulary.
    position : int
        Of the row whose logits these are.
    history : sequence of int
        Tokens of the prompt and the text so far; what the repetition penalty looks at.
    sampling : Sampling
    full_logits : callable
        Gives all (vocab_size,) logits; called only when the top logits do not suffice.
    """
    s = sampling
    ids, logits, raw = top_ids, top_logits, top_logits
    vocab_size = 1 << 62
    if s.repetition_penalty != 1:
        raw = full_logits()
        logits = raw.copy()
        seen = np.unique(np.asarray(history, np.int64))
        penalty = f32(s.repetition_penalty)
        logits[seen] = np.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
        ids, logits, vocab_size = _ordered(logits)
        raw = raw[ids]
        if s.temperature > 0:
            lse_temperature = _log_sum_exp(logits / f32(s.temperature))
    if s.temperature == 0:
        return Choice(int(ids[0]), float(raw[0]))
    scaled = logits / f32(s.temperature)
    count = _kept(scaled, lse_temperature, vocab_size, s)
    if count is None:
        ids, logits, vocab_size = _ordered(full_logits())
        raw = logits
        scaled = logits / f32(s.temperature)
        count = _kept(scaled, lse_temperature, vocab_size, s)
        assert count is not None
    noise = gumbel_noise(s.seed, position, ids[:count])
    best = int(np.argmax(scaled[:count] + noise))
    return Choice(int(ids[best]), float(raw[best]))


def _ordered(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    order = np.argsort(-logits, kind="stable")
    return order, logits[order], len(logits)


def _log_sum_exp(values: np.ndarray) -> float:
    wide = values.astype(np.float64)
    return float(wide.max() + np.log(np.exp(wide - wide.max()).sum()))
