"""Sampling arguments, and choosing a token on the host where the device cannot.

Greedy, temperature and truncated sampling (top-k, top-p, min-p) happen in the kernel. The host
chooses where there is a repetition penalty, and where truncation keeps more tokens than the top
logits that the kernel sorts. Both add the same Gumbel noise, a function of (seed, position,
token id), and take the largest sum: truncation only narrows the candidates. So a seed gives one
text, however the work is cut up and however many top logits a board has.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from llama_pynq.errors import RequestError
from llama_pynq.kernel.float_math import gumbel_noise
from llama_pynq.kernel.stages import Truncation, choose_from_top

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
    def truncation(self) -> Truncation:
        """What truncation keeps, in the ranges that a row has for it."""
        return Truncation(
            min(self.top_k, 2**31 - 1), max(self.top_p, 2.0**-126), min(self.min_p, 1 - 2.0**-24)
        )

    @property
    def on_host(self) -> bool:
        """Whether the host has to choose every token."""
        return self.repetition_penalty != 1


class Choice(NamedTuple):
    """A chosen token, and its logit before any penalty."""

    token: int
    logit: float


_FIRST_TRY = 1024
"""Tokens that are sorted at first: truncation hardly ever keeps more, and all take long."""


def _largest(logits: np.ndarray, n: int) -> np.ndarray:
    """Ids of the n largest, descending; of equals the lower id first."""
    ids = np.arange(len(logits))
    if n < len(logits):
        ids = np.flatnonzero(logits >= np.partition(logits, -n)[-n])
    return ids[np.argsort(-logits[ids], kind="stable")][:n]


def choose(
    raw: np.ndarray,
    lse_temperature: float,
    position: int,
    history: Sequence[int],
    sampling: Sampling,
) -> Choice:
    """Pick a token from all logits, as the kernel would.

    Parameters
    ----------
    raw : (vocab_size,) float32
        The kernel's logits.
    lse_temperature : float
        Log-sum-exp of logit / temperature, from the kernel; not looked at with a repetition
        penalty, which changes it.
    position : int
        Of the row whose logits these are.
    history : sequence of int
        Tokens of the prompt and the text so far; only the repetition penalty looks at them.
    sampling : Sampling
    """
    s, logits = sampling, raw
    if s.repetition_penalty != 1:
        logits = _penalised(raw, history, s.repetition_penalty)
        lse_temperature = _log_sum_exp(logits / f32(s.temperature)) if s.temperature else 0.0
    if s.temperature == 0:
        best = int(logits.argmax())
    elif not s.truncation:
        scores = logits / f32(s.temperature)
        scores += gumbel_noise(s.seed, position, np.arange(len(logits)))
        best = int(scores.argmax())
    else:
        best = _truncated(logits, lse_temperature, position, s)
    return Choice(best, float(raw[best]))


def _truncated(logits: np.ndarray, lse: float, position: int, s: Sampling) -> int:
    n = len(logits)
    for tried in sorted({min(n, max(_FIRST_TRY, s.top_k)), n}):
        ids = _largest(logits, tried)
        choice = choose_from_top(
            ids, logits[ids], lse, n, s.temperature, s.truncation, s.seed, position
        )
        if choice is not None:
            return int(ids[choice[0]])
    raise AssertionError("all tokens are enough to tell")


def _penalised(logits: np.ndarray, history: Sequence[int], penalty: float) -> np.ndarray:
    result = logits.copy()
    seen = np.unique(np.asarray(history, np.int64))
    of_seen, by = result[seen], f32(penalty)
    result[seen] = np.where(of_seen > 0, of_seen / by, of_seen * by)
    return result


def _log_sum_exp(values: np.ndarray) -> float:
    wide = values.astype(np.float64)
    return float(wide.max() + np.log(np.exp(wide - wide.max()).sum()))
