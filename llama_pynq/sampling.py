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
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

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


class Choice(NamedTuple):
    """A chosen token, and its logit before any penalty."""

    token: int
    logit: float


# ---- noise ----------------------------------------------------------------------------
#
# `reference.gumbel_noise` to within 1e-5: the same hash, but not the kernel's own logarithm, which
# takes NumPy ten times as long. Where two sums come that close, the kernel's noise decides.

_WORD = 0xFFFFFFFF
_GOLDEN, _MIX_1, _MIX_2 = 0x9E3779B9, 0x85EBCA6B, 0xC2B2AE35


def _mix(h: int) -> int:
    h ^= h >> 16
    h = h * _MIX_1 & _WORD
    h ^= h >> 13
    h = h * _MIX_2 & _WORD
    return h ^ h >> 16


def _noise_key(seed: int, position: int) -> int:
    key = _mix(seed & _WORD ^ _GOLDEN)
    key = _mix(key ^ seed >> 32)
    return _mix(key ^ position * _GOLDEN & _WORD)


def _near_noise(key: int, tokens: Sequence[int]) -> list[float]:
    noise = []
    for token in tokens:
        u = 2 * (_mix(key ^ token * _GOLDEN & _WORD) >> 9) + 1
        noise.append(-math.log(-math.log(u * 2.0**-24)))
    return noise


def _near_noise_of_all(key: int, vocab_size: int) -> np.ndarray:
    h = np.arange(vocab_size, dtype=np.uint32)
    h *= np.uint32(_GOLDEN)
    h ^= np.uint32(key)
    h ^= h >> np.uint32(16)
    h *= np.uint32(_MIX_1)
    h ^= h >> np.uint32(13)
    h *= np.uint32(_MIX_2)
    h ^= h >> np.uint32(16)
    h >>= np.uint32(9)
    u = h.astype(np.float32)  # 23 bits, so what follows is exact
    u += f32(0.5)
    u *= f32(2.0**-23)
    for _ in range(2):
        np.log(u, out=u)
        np.negative(u, out=u)
    return u


def _least_contender(largest: float) -> float:
    """The least sum that may be the largest once noise and rounding are the kernel's."""
    return largest - 1e-4 - 1e-6 * abs(largest)


def _first_of(
    contenders: Sequence[int], ids: np.ndarray, logits: np.ndarray, position: int, s: Sampling
) -> int:
    """Which of the contenders, indices in order of rank, the kernel would choose."""
    if len(contenders) == 1:
        return contenders[0]
    scaled = logits[contenders] / f32(s.temperature)
    scores = scaled + gumbel_noise(s.seed, position, ids[contenders])
    return contenders[int(scores.argmax())]


# ---- truncation -----------------------------------------------------------------------


def _kept(scaled: Sequence[float], lse: float, s: Sampling) -> int | None:
    """How many of the best candidates survive, or None if these are too few to tell.

    Parameters
    ----------
    scaled : (n,)
        logit / temperature of the n best tokens, descending.
    lse : float
        Log-sum-exp of logit / temperature over the whole vocabulary.
    s : Sampling
    """
    limit = s.top_k or sys.maxsize
    if s.top_k:
        if limit > len(scaled):
            return None
        scaled = scaled[:limit]
    if s.top_p < 1:
        # What top-k left is a distribution of its own.
        normaliser = _log_sum_exp(np.array(scaled)) if s.top_k else lse
        mass = 0.0
        for count, value in enumerate(scaled, 1):
            mass += math.exp(value - normaliser)
            if mass >= s.top_p:
                limit = count
                break
        else:
            if not s.top_k:
                return None
    if s.min_p > 0:
        least = scaled[0] + math.log(s.min_p)
        count = sum(value >= least for value in scaled)
        if count == len(scaled) and limit > count:
            return None
        limit = min(limit, count)
    return limit if limit <= len(scaled) else None


def _choose_from_all(
    logits: np.ndarray, raw: np.ndarray, lse: float | None, position: int, s: Sampling
) -> Choice:
    """Pick a token, given the logits of all.

    Sorting them would take longer than all else. Truncation keeps the tokens up to some rank:
    so the winner of all is looked for and, if it is not kept, the winner of those ranked before
    it, and so on. Each round leaves a part of the tokens, and most choices need one.

    Parameters
    ----------
    logits : (vocab_size,) float32
    raw : (vocab_size,) float32
        Before any penalty.
    lse : float or None
        Log-sum-exp of logit / temperature; None to have it made.
    position : int
    s : Sampling
    """
    n = len(logits)
    scaled = logits / f32(s.temperature)
    least = float(scaled.max()) + math.log(s.min_p) if s.min_p > 0 else -math.inf
    top_k = min(s.top_k or n, n)
    mass = None
    if s.top_p < 1:
        if s.top_k:
            lse = _log_sum_exp(np.partition(scaled, n - top_k)[n - top_k :])
        elif lse is None:
            lse = _log_sum_exp(scaled)
        mass = np.exp(scaled.astype(np.float64) - lse)
    scores = scaled + _near_noise_of_all(_noise_key(s.seed, position), n)
    while True:
        close = (scores >= _least_contender(float(scores.max()))).nonzero()[0]
        close = close[np.argsort(-logits[close], kind="stable")]
        best = _first_of(close.tolist(), np.arange(n), logits, position, s)
        before = logits > logits[best]
        before[:best] |= logits[:best] == logits[best]
        if (
            np.count_nonzero(before) < top_k
            and (mass is None or float((mass * before).sum()) < s.top_p)
            and float(scaled[best]) >= least
        ):
            return Choice(best, float(raw[best]))
        scores[~before] = -np.inf


def _choose_from_top(
    top_ids: np.ndarray, top_logits: np.ndarray, lse: float, position: int, s: Sampling
) -> Choice | None:
    """Pick a token from the best ones; None if these are too few to tell.

    Mostly a few are kept, and Python is done with them before NumPy has begun.
    """
    scaled = (top_logits / f32(s.temperature)).tolist()
    count = _kept(scaled, lse, s)
    if count is None:
        return None
    best = 0
    if count > 1:
        key = _noise_key(s.seed, position)
        noise = _near_noise(key, top_ids[:count].tolist())
        scores = [value + extra for value, extra in zip(scaled, noise)]
        least = _least_contender(max(scores))
        close = [index for index, score in enumerate(scores) if score >= least]
        best = _first_of(close, top_ids, top_logits, position, s)
    return Choice(int(top_ids[best]), float(top_logits[best]))


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
        Tokens of the prompt and the text so far; only the repetition penalty looks at them.
    sampling : Sampling
    full_logits : callable
        Gives all (vocab_size,) logits; called only when the top logits do not suffice.
    """
    s = sampling
    if s.repetition_penalty != 1:
        raw = full_logits()
        logits = _penalised(raw, history, s.repetition_penalty)
        if s.temperature == 0:
            best = int(logits.argmax())
            return Choice(best, float(raw[best]))
        return _choose_from_all(logits, raw, None, position, s)
    if s.temperature == 0:
        return Choice(int(top_ids[0]), float(top_logits[0]))
    choice = _choose_from_top(top_ids, top_logits, lse_temperature, position, s)
    if choice is None:
        logits = full_logits()
        choice = _choose_from_all(logits, logits, lse_temperature, position, s)
    return choice


def _penalised(logits: np.ndarray, history: Sequence[int], penalty: float) -> np.ndarray:
    result = logits.copy()
    seen = np.unique(np.asarray(history, np.int64))
    of_seen, by = result[seen], f32(penalty)
    result[seen] = np.where(of_seen > 0, of_seen / by, of_seen * by)
    return result


def _log_sum_exp(values: np.ndarray) -> float:
    wide = values.astype(np.float64)
    return float(wide.max() + np.log(np.exp(wide - wide.max()).sum()))
