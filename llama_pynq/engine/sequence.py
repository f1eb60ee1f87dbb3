"""State of a sequence: prompt, tokens, held-back text and timings."""

from __future__ import annotations

import math
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from llama_pynq.engine.results import Generation, TokenLogprob
from llama_pynq.engine.sampling import SamplingParams
from llama_pynq.tokenizer.base import StreamDecoder

# abi.ROW_DTYPE in two parts: fields that change from row to row, and the sequence's constants.
_ROW, _ROW_SAMPLING = struct.Struct("<iiiI"), struct.Struct("<Qfiff")


class StopText:
    """Holds text back while it could still become a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        # Longest first: push() holds back the longest beginning of a stop string.
        beginnings = {stop[:n] for stop in stops for n in range(1, len(stop))}
        self._beginnings = tuple(sorted(beginnings, key=len, reverse=True))
        self._held = ""
        self.active = bool(stops)
        self.found: str | None = None  # the stop string that ended the text

    @property
    def hit(self) -> bool:
        """Whether a stop string ended the text."""
        return self.found is not None

    def push(self, piece: str) -> str:
        """Add a piece; return the text that can no longer become a stop string."""
        if not self.active:
            return piece
        held = self._held + piece
        found = [(held.find(stop), stop) for stop in self._stops if stop in held]
        if found:
            at, self.found = min(found)
            self._held = ""
            return held[:at]
        at = len(held)
        if held.endswith(self._beginnings):
            at -= len(next(text for text in self._beginnings if held.endswith(text)))
        self._held = held[at:]
        return held[:at]

    def flush(self) -> str:
        text, self._held = self._held, ""
        return "" if self.hit else text


@dataclass
class SequenceState:
    """State of a sequence, from its prompt to its `Generation`."""

    prompt: list[int]
    params: SamplingParams
    seed: int
    decoder: StreamDecoder
    stop_text: StopText
    stop_tokens: tuple[int, ...]  # that end the text
    budget: int  # tokens it may still produce
    row_flags: int  # of a row that samples a token
    one_step: bool  # one step per call: the host reads every token's logits
    call_seconds: float = math.inf  # longest duration of a call
    slot: int = -1
    position: int = 0  # of the next row
    tokens: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str = ""
    stop_token: int | None = None  # that ended the text
    started: float = 0.0
    first_token: float = 0.0
    last_token: float = 0.0
    away: float = 0.0  # seconds excluded from decode: waits for the consumer, unobserved calls
    consumer: float = math.inf  # seconds per token that the consumer took after the last call
    untimed: int = 0  # tokens of calls that ended unobserved, while the consumer was busy
    untimed_last: int = 0  # of the last call
    shown: int = 0  # pieces that the consumer has received
    decode_seconds: float = 0.0
    row_sampling: bytes = b""

    def __post_init__(self) -> None:
        p, t = self.params, self.params.truncation
        self.row_sampling = _ROW_SAMPLING.pack(self.seed, p.temperature, t.top_k, t.top_p, t.min_p)

    def row(self, position: int) -> bytes:
        """The row at this position, packed as `abi.ROW_DTYPE`."""
        prompt = self.prompt
        token = prompt[position] if position < len(prompt) else self.tokens[-1]
        flags = self.row_flags if position >= len(prompt) - 1 else 0
        return _ROW.pack(token, position, self.slot, flags) + self.row_sampling

    def take(self, tokens: Sequence[int]) -> int:
        """Accept sampled tokens; return how many were used, including one that ends the text.

        A negative token is a placeholder: the device had stopped before.
        """
        now = time.perf_counter()
        if not self.tokens:
            self.first_token = self.last_token = now
        stop_tokens = self.stop_tokens
        decode, stop_text, stops = self.decoder.push, self.stop_text, self.stop_text.active
        for taken, token in enumerate(tokens, 1):
            if token < 0:
                return taken - 1
            if token in stop_tokens:
                self.finish_reason, self.stop_token = "stop", token
                return taken
            self.last_token = now
            self.decode_seconds = now - self.first_token - self.away
            self.tokens.append(token)
            piece = decode(token)
            self.pieces.append(stop_text.push(piece) if stops else piece)
            self.budget -= 1
            if stop_text.hit:
                self.finish_reason = "stop"
                return taken
            if self.budget == 0:
                self.finish_reason = "length"
                return taken
        return len(tokens)

    def close_text(self) -> None:
        if not self.stop_text.hit:
            for text in (self.stop_text.push(self.decoder.flush()), self.stop_text.flush()):
                if text:
                    self.pieces.append(text)

    def result(self, device: str) -> Generation:
        decode = self.decode_seconds
        extra = len(self.tokens) - 1 - self.untimed
        return Generation(
            text="".join(self.pieces),
            tokens=self.tokens,
            prompt_tokens=self.prompt,
            finish_reason=self.finish_reason,
            seed=self.seed,
            tokens_per_second=extra / decode if extra > 0 and decode > 0 else None,
            prompt_seconds=self.first_token - self.started,
            decode_seconds=decode,
            logprobs=self.logprobs if self.params.logprobs is not None else None,
            device=device,
            stop_reason=self.stop_token if self.stop_text.found is None else self.stop_text.found,
        )


def token_logprobs(
    tokens: Sequence[int],
    logits: Sequence[float],
    results: np.ndarray,
    n: int,
    full_logits: Callable[[], np.ndarray],
) -> list[TokenLogprob]:
    """Log-probabilities of a call's tokens, each with those of the `n` most probable tokens.

    Computed for a whole call at once: token by token, NumPy would take longer than all other
    work of the host for a token.
    """
    lse = results["lse"].tolist()
    if n > results["top"].shape[1]:
        row = full_logits()  # the call's only logits: such a sequence takes one step per call
        ids = np.argsort(-row, kind="stable")[:n]
        best = [list(zip(ids.tolist(), row[ids].tolist()))]
    else:
        best = results["top"][:, :n].tolist()
    return [
        TokenLogprob(token, logit - total, {i: value - total for i, value in pairs if i >= 0})
        for token, logit, total, pairs in zip(tokens, logits, lse, best)
    ]
