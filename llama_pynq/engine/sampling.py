"""Sampling parameters, and choosing a token on the host where the device cannot.

Greedy, temperature and truncated sampling (top-k, top-p, min-p) run in the kernel. The host
chooses if there is a repetition penalty, or if truncation keeps more tokens than the top logits
that the kernel sorts. Both add the same Gumbel noise, a function of (seed, position, token id),
and take the largest sum: truncation only narrows the candidates. So a seed gives the same text,
however the work is split into calls and however many top logits a board has.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from llama_pynq.errors import RequestError
from llama_pynq.kernel.float_math import gumbel_noise
from llama_pynq.kernel.stages import Truncation, choose_from_top
from llama_pynq.utils.validate import flag, number, whole_number

f32 = np.float32


_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "max_new_tokens": (lambda v: v >= 0, "0 or more"),
    "temperature": (lambda v: v == 0 or 1e-3 <= v <= 100, "0 (greedy), or 0.001 to 100"),
    "top_k": (lambda v: v >= 0, "0 (off) or more"),
    "top_p": (lambda v: 0 < v <= 1, "above 0, at most 1 (off)"),
    "min_p": (lambda v: 0 <= v < 1, "0 (off) to below 1"),
    "repetition_penalty": (lambda v: 0 < v <= 100, "above 0, 1 (off), to 100"),
    "seed": (lambda v: 0 <= v < 2**64, "0 to 2^64 - 1"),
}
_WHOLE = ("max_new_tokens", "top_k", "seed")


@dataclass(frozen=True)
class SamplingParams:
    """Sampling parameters, named as in transformers; validated at construction.

    Parameters
    ----------
    max_new_tokens : int
        0 or more; the context may end the text earlier.
    temperature : float
        0 is greedy; else 0.001 to 100.
    top_k : int
        Keep the k most probable tokens; 0 keeps all.
    top_p : float
        Keep the smallest set of most probable tokens whose mass reaches p; 1 keeps all.
    min_p : float
        Keep tokens at least this probable relative to the best; 0 keeps all.
    repetition_penalty : float
        Divides positive and multiplies negative logits of tokens already present; 1 is off, less
        than 1 favours them.
    stop : str or sequence of str, optional
        End the text before the first of these; a tuple once constructed.
    seed : int, optional
        0 to 2^64 - 1. None: drawn for each request.
    logprobs : int, optional
        Return the log-probability of every token, and those of this many most probable tokens.
    ignore_eos : bool
        Go on after BOS or EOS: `max_new_tokens`, the context or a stop string ends the text.

    Raises
    ------
    RequestError
        If an argument is out of range or not a number; the message has its name, value and range.
    """

    max_new_tokens: int = 512
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.9
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: str | Sequence[str] | None = None
    seed: int | None = None
    logprobs: int | None = None
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        for name, (accepts, text) in _RANGES.items():
            given = getattr(self, name)
            if name == "seed" and given is None:
                continue
            value = (whole_number if name in _WHOLE else number)(name, given)
            if not accepts(value):  # no range accepts NaN
                raise RequestError(f"{name} is {value}: it must be {text}")
            object.__setattr__(self, name, value)
        stops = (self.stop,) if isinstance(self.stop, str) else self.stop
        stops = () if stops is None else stops
        several = isinstance(stops, Sequence) and not isinstance(stops, bytes)
        if not several or not all(isinstance(text, str) and text for text in stops):
            raise RequestError(f"stop is {self.stop!r}: it must be a non-empty string, or several")
        object.__setattr__(self, "stop", tuple(stops))
        if self.logprobs is not None:
            logprobs = whole_number("logprobs", self.logprobs)
            if logprobs < 0:
                raise RequestError(f"logprobs is {logprobs}: it must be None, or 0 or more")
            object.__setattr__(self, "logprobs", logprobs)
        object.__setattr__(self, "ignore_eos", flag("ignore_eos", self.ignore_eos))

    def draw_seed(self) -> int:
        """The seed; drawn at random if there is none."""
        return int.from_bytes(os.urandom(4), "little") if self.seed is None else self.seed

    @property
    def truncation(self) -> Truncation:
        """Truncation, clamped to the ranges of a row's fields."""
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
"""Tokens sorted at first: truncation hardly ever keeps more, and sorting all takes long."""


def largest(logits: np.ndarray, n: int) -> np.ndarray:
    """Ids of the n largest logits, descending; of equal logits the lower id first."""
    ids = np.arange(len(logits))
    if n < len(logits):
        ids = np.flatnonzero(logits >= np.partition(logits, -n)[-n])
    return ids[np.argsort(-logits[ids], kind="stable")][:n]


def choose(
    raw: np.ndarray,
    lse_temperature: float,
    position: int,
    history: Sequence[int],
    params: SamplingParams,
    seed: int,
) -> Choice:
    """Pick a token from all logits, as the kernel would.

    Parameters
    ----------
    raw : (vocab_size,) float32
        The kernel's logits.
    lse_temperature : float
        Log-sum-exp of logit / temperature, from the kernel; ignored with a repetition penalty,
        which changes it.
    position : int
        Position of the row that has these logits.
    history : sequence of int
        Tokens of the prompt and the text so far; only the repetition penalty uses them.
    params : SamplingParams
    seed : int
        Seed of the noise.
    """
    s, logits = params, raw
    if s.repetition_penalty != 1:
        logits = _penalised(raw, history, s.repetition_penalty)
        lse_temperature = _log_sum_exp(logits / f32(s.temperature)) if s.temperature else 0.0
    if s.temperature == 0:
        best = int(logits.argmax())
    elif not s.truncation:
        scores = logits / f32(s.temperature)
        scores += gumbel_noise(seed, position, np.arange(len(logits)))
        best = int(scores.argmax())
    else:
        best = _truncated(logits, lse_temperature, position, s, seed)
    return Choice(best, float(raw[best]))


def _truncated(logits: np.ndarray, lse: float, position: int, s: SamplingParams, seed: int) -> int:
    n = len(logits)
    for tried in sorted({min(n, max(_FIRST_TRY, s.top_k)), n}):
        ids = largest(logits, tried)
        choice = choose_from_top(
            ids, logits[ids], lse, n, s.temperature, s.truncation, seed, position
        )
        if choice is not None:
            return int(ids[choice[0]])
    raise AssertionError("the whole vocabulary always gives a choice")


def _penalised(logits: np.ndarray, history: Sequence[int], penalty: float) -> np.ndarray:
    result = logits.copy()
    seen = np.unique(np.asarray(history, np.int64))
    of_seen, by = result[seen], f32(penalty)
    result[seen] = np.where(of_seen > 0, of_seen / by, of_seen * by)
    return result


def _log_sum_exp(values: np.ndarray) -> float:
    wide = values.astype(np.float64)
    return float(wide.max() + np.log(np.exp(wide - wide.max()).sum()))
