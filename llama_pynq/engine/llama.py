"""A loaded model: text in, text out.

`Llama` turns prompts into rows of kernel calls. Several sequences share a call, a prompt
is taken in slices of as many rows as the kernel has, and where the device samples by
itself one call generates several tokens.
"""

from __future__ import annotations

import contextlib
import math
import struct
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.checkpoint.load import load_checkpoint
from llama_pynq.energy import Energy, EnergyMeter
from llama_pynq.engine.sampling import Sampling, choose
from llama_pynq.errors import (
    CheckpointError,
    DeviceBusy,
    DeviceMemoryError,
    RequestError,
    TokenizerError,
)
from llama_pynq.kernel.abi import (
    KV_BITS,
    ROW_DTYPE,
    TOKEN_UNDECIDED,
    RowFlag,
    make_rows,
)
from llama_pynq.kernel.config import Target
from llama_pynq.kernel.limits import check_limits
from llama_pynq.models import BUNDLED
from llama_pynq.tokenizer.base import StreamDecoder, Tokenizer
from llama_pynq.tokenizer.load import load_tokenizer, tokenizer_from_bytes
from llama_pynq.weights.packed import PackedModel, is_packed, open_packed, pack_cached

if TYPE_CHECKING:
    from llama_pynq.driver import CallResult, LlamaDriver, PendingCall


_CALL_SECONDS = 0.1
_STREAM_CALL_SECONDS = 0.04  # who reads a stream sees text come 25 times a second

_AHEAD_PART = 0.5  # of a call, that a reader may take for the call to begin before it

_DEFAULT_SLOTS = 4

# As integers: an enum's member takes its time, and these are looked at for every token.
_FULL_LOGITS = int(RowFlag.FULL_LOGITS)
# abi.ROW_DTYPE, in two parts: what changes from row to row, and what does not.
_ROW, _ROW_SAMPLING = struct.Struct("<iiiI"), struct.Struct("<Qfiff")


# ---- results --------------------------------------------------------------------------


@dataclass
class TokenLogprob:
    """Log-probability of one generated token under the untempered model.

    Attributes
    ----------
    token : int
    logprob : float
        Natural logarithm.
    top : dict of int to float
        The most probable tokens and theirs, as many as asked for.
    """

    token: int
    logprob: float
    top: dict[int, float]


@dataclass
class Generation:
    """What `Llama.generate` returns.

    Attributes
    ----------
    text : str
        The generated text, without the prompt.
    tokens : list of int
        What the model produced, and nothing else: no prompt, no stop token.
    prompt_tokens : list of int
        The prompt as the model saw it, BOS included.
    finish_reason : {"stop", "length", "closed"}
        "stop": the model ended the text (BOS or EOS) or a stop string came; "length":
        max_new_tokens, or the context, is used up; "closed": who read the stream left off.
    seed : int
        The seed used, also where it was drawn.
    tokens_per_second : float
        Tokens after the first, over the time they took; measured on the host's clock. In a
        batch, of this sequence alone. NaN for a text of one token or none.
    prompt_seconds, decode_seconds : float
        Reading the prompt, up to the first token; and generating the others. Measured. What
        a reader of a stream does while the device waits does not count; nor, in the rate either,
        does a call that ended while the reader was away, for nobody saw when.
    logprobs : list of TokenLogprob or None
        One an output token, where asked for.
    device : str
        Name of the device.
    energy : Energy or None
        What the call took, all of its sequences together, where `power` was given.
    energy_note : str
        Why there is no `energy`; empty if there is.
    """

    text: str
    tokens: list[int]
    prompt_tokens: list[int]
    finish_reason: str
    seed: int
    tokens_per_second: float
    prompt_seconds: float
    decode_seconds: float
    logprobs: list[TokenLogprob] | None
    device: str
    energy: Energy | None = None
    energy_note: str = "no power recorder was given: generate(..., power=recorder)"


class StreamToken(NamedTuple):
    """What `Llama.stream_tokens` gives for each token.

    Attributes
    ----------
    token : int or None
        None: text held back, for it could have become a stop string, or was half a character.
    text : str
        What the text grows by; may be empty.
    logprob : TokenLogprob or None
        Where asked for.
    more : bool
        The next one follows at once: the same call of the kernel brought it.
    """

    token: int | None
    text: str
    logprob: TokenLogprob | None
    more: bool = False


# ---- one sequence ---------------------------------------------------------------------


_Plan = list[tuple["_Sequence", int]]
"""Sequence and position of each row of a call."""


class _StopText:
    """Holds text back while it could still become a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        # Longest first: what is held back is the longest beginning of a stop string.
        beginnings = {stop[:n] for stop in stops for n in range(1, len(stop))}
        self._beginnings = tuple(sorted(beginnings, key=len, reverse=True))
        self._held = ""
        self.active = bool(stops)
        self.hit = False

    def push(self, piece: str) -> str:
        """Text that is certain by now."""
        if not self.active:
            return piece
        held = self._held + piece
        found = [held.find(stop) for stop in self._stops if stop in held]
        if found:
            self.hit = True
            self._held = ""
            return held[: min(found)]
        at = len(held)
        if held.endswith(self._beginnings):
            at -= len(next(text for text in self._beginnings if held.endswith(text)))
        self._held = held[at:]
        return held[:at]

    def flush(self) -> str:
        text, self._held = self._held, ""
        return "" if self.hit else text


@dataclass
class _Sequence:
    """A prompt on its way to becoming a `Generation`."""

    prompt: list[int]
    sampling: Sampling
    decoder: StreamDecoder
    stop_text: _StopText
    n_logprobs: int | None
    budget: int  # tokens it may still produce
    row_flags: int  # of a row that gives a token
    one_step: bool  # the host looks at every token's logits
    call_seconds: float = math.inf  # that a call should take at most
    slot: int = -1
    position: int = 0  # of the next row
    tokens: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str = ""
    started: float = 0.0
    first_token: float = 0.0
    last_token: float = 0.0
    away: float = 0.0  # seconds that the device waited for a stream's reader since the first token
    reader: float = math.inf  # seconds that the reader took for a token of the last call's
    untimed: int = 0  # tokens of calls that ended unseen, while the reader had others
    untimed_last: int = 0  # of the last call
    shown: int = 0  # pieces that the reader has had
    decode_seconds: float = 0.0
    row_sampling: bytes = b""

    def __post_init__(self) -> None:
        s, t = self.sampling, self.sampling.truncation
        self.row_sampling = _ROW_SAMPLING.pack(s.seed, s.temperature, t.top_k, t.top_p, t.min_p)

    def row(self, position: int) -> bytes:
        """The row at this position, as `abi.ROW_DTYPE` has it."""
        prompt = self.prompt
        token = prompt[position] if position < len(prompt) else self.tokens[-1]
        flags = self.row_flags if position >= len(prompt) - 1 else 0
        return _ROW.pack(token, position, self.slot, flags) + self.row_sampling

    def take(self, tokens: Sequence[int], stop_tokens: Sequence[int]) -> int:
        """Accept sampled tokens; how many of them it took, one that ends the text included.

        A negative token is none: the device had stopped before.
        """
        now = time.perf_counter()
        if not self.tokens:
            self.first_token = self.last_token = now
        decode, stop_text, stops = self.decoder.push, self.stop_text, self.stop_text.active
        for taken, token in enumerate(tokens, 1):
            if token < 0:
                return taken - 1
            if token in stop_tokens:
                self.finish_reason = "stop"
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
            self.pieces.append(self.stop_text.push(self.decoder.flush()))
            self.pieces.append(self.stop_text.flush())

    def result(self, device: str) -> Generation:
        decode = self.decode_seconds
        extra = len(self.tokens) - 1 - self.untimed
        return Generation(
            text="".join(self.pieces),
            tokens=self.tokens,
            prompt_tokens=self.prompt,
            finish_reason=self.finish_reason,
            seed=self.sampling.seed,
            tokens_per_second=extra / decode if extra > 0 and decode > 0 else math.nan,
            prompt_seconds=self.first_token - self.started,
            decode_seconds=decode,
            logprobs=self.logprobs if self.n_logprobs is not None else None,
            device=device,
        )


def _logprobs(
    tokens: Sequence[int],
    logits: Sequence[float],
    results: np.ndarray,
    n: int,
    full_logits: Callable[[], np.ndarray],
) -> list[TokenLogprob]:
    """What a result says of its tokens' probabilities, and of the `n` most probable ones.

    Made for a whole call at once: one by one, NumPy would take longer for it than for all else
    that the host does for a token.
    """
    lse = results["lse"].tolist()
    if n > results["top"].shape[1]:
        row = full_logits()  # the only one: such a text takes one step a call
        ids = np.argsort(-row, kind="stable")[:n]
        best = [list(zip(ids.tolist(), row[ids].tolist()))]
    else:
        best = results["top"][:, :n].tolist()
    return [
        TokenLogprob(token, logit - total, {i: value - total for i, value in pairs if i >= 0})
        for token, logit, total, pairs in zip(tokens, logits, lse, best)
    ]


def _measure(
    power: EnergyMeter, sequences: Sequence[_Sequence], results: Sequence[Generation]
) -> None:
    """Mark what a call did on the recording, and give its energy to every result."""
    power.sample()
    begin, end = min(s.started for s in sequences), max(s.last_token for s in sequences)
    first = min(max(s.first_token for s in sequences), end)
    power.mark("prefill", begin, first)
    power.mark("decode", first, end)
    energy = power.energy(begin, end, [(len(s.prompt), len(s.tokens)) for s in sequences])
    for result in results:
        if isinstance(energy, Energy):
            result.energy, result.energy_note = energy, ""
        else:
            result.energy_note = energy


def _texts(tokens: Generator[StreamToken, None, None]) -> Iterator[str]:
    with contextlib.closing(tokens):
        for token in tokens:
            if token.text:
                yield token.text


# ---- the model ------------------------------------------------------------------------


@dataclass(frozen=True)
class Session:
    """A sequence slot that nobody else writes; see `Llama.session`."""

    llama: Llama
    slot: int
    generation: int

    @contextlib.contextmanager
    def device(self) -> Iterator[LlamaDriver]:
        """The driver, held: no other call comes between a run and what is read after it.

        Raises
        ------
        RequestError
            If the model, or the slot, is no longer on the device.
        """
        with self.llama.driver.exclusive():
            self.llama._check_loaded(self.generation)
            yield self.llama.driver


class Llama:
    """A model on a device, with its tokenizer.

    Parameters
    ----------
    driver : LlamaDriver
        With the weights loaded.
    tokenizer : Tokenizer
    packed : PackedModel
        What was loaded; its shape and its note.
    repack : callable, optional
        Packs the checkpoint again, where the packed file was found damaged or is gone.
    kv_bits : {32, 8}
        What the KV cache holds.

    Attributes
    ----------
    load_seconds : float
        Time that loading took, packing included; measured.
    call_seconds : float
        How long one call of the kernel may last, so that Ctrl-C and Stop are prompt; default
        0.1, and less for a stream. From it and the last call's speed follows how many tokens
        a call generates.
    """

    def __init__(
        self,
        driver: LlamaDriver,
        tokenizer: Tokenizer,
        packed: PackedModel,
        repack: Callable[[], PackedModel] | None = None,
        kv_bits: int = 32,
    ) -> None:
        self.driver = driver
        self.tokenizer = tokenizer
        self.packed = packed
        self._repack = repack
        self._kv_bits = kv_bits
        self.load_seconds = 0.0
        self.call_seconds = _CALL_SECONDS
        self._slot_lock = threading.Lock()
        self._free_slots = list(range(driver.slots))
        self._step_seconds: float | None = None

    @property
    def config(self) -> ModelConfig:
        return self.packed.config

    def upload(self, slots: int) -> None:
        """Bring the weights to the device, with room for `slots` sequences, all free."""
        try:
            self.driver.load_weights(self.packed, slots, self._kv_bits)
        except CheckpointError:
            if self._repack is None:
                raise
            self.packed = self._repack()
            self.driver.load_weights(self.packed, slots, self._kv_bits)
        with self._slot_lock:
            self._free_slots = list(range(self.driver.slots))

    # ---- slots -----------------------------------------------------------------------

    def _check_loaded(self, generation: int | None = None) -> None:
        if self.driver.packed is not self.packed or generation not in (
            None,
            self.driver.generation,
        ):
            raise RequestError(
                "this model, or this text's place in the KV cache, is no longer on the device: a "
                "model was loaded, or the overlay was reset or closed. Begin again"
            )

    @contextlib.contextmanager
    def _slots(self, wanted: int) -> Iterator[tuple[list[int], int]]:
        """1 to `wanted` sequence slots, and the generation they belong to.

        Grows the KV cache when nobody is using it.
        """
        wanted = min(wanted, self.driver.limits.max_rows)
        with self._slot_lock, self.driver.exclusive():
            self._check_loaded()
            idle = len(self._free_slots) == self.driver.slots
            if wanted > len(self._free_slots) and idle:
                try:
                    self.driver.resize_cache(wanted)
                except DeviceMemoryError:
                    self._check_loaded()  # the old cache is back: fewer at a time, then
                self._free_slots = list(range(self.driver.slots))
            if not self._free_slots:
                raise DeviceBusy(
                    f"all {self.driver.slots} sequence slots are in use by unfinished "
                    "generate() or stream() calls. Finish or close() them, or load the model "
                    "with more slots: load_model(..., slots=8)"
                )
            taken, self._free_slots = self._free_slots[:wanted], self._free_slots[wanted:]
            generation = self.driver.generation
        try:
            yield taken, generation
        finally:
            with self._slot_lock:
                if self.driver.generation == generation:  # else they are no longer ours
                    self._free_slots = sorted({*self._free_slots, *taken})

    # ---- running ---------------------------------------------------------------------

    def _stop_tokens(self) -> tuple[int, ...]:
        # llama2.c's models end a story with BOS, Llama 2 itself with EOS.
        return (self.tokenizer.bos_id, self.tokenizer.eos_id)

    def _plan(self, sequences: Sequence[_Sequence]) -> tuple[_Plan, int]:
        """(sequence, position) of the rows of the next call, and how many steps it may take."""
        limit = self.driver.limits.max_rows
        ready = [s for s in sequences if s.position >= len(s.prompt) - 1][:limit]
        rows = [(s, s.position) for s in ready]
        if len(ready) < len(sequences):
            for s in sequences:
                if s.position < len(s.prompt) - 1:
                    room = min(limit - len(rows), len(s.prompt) - s.position)
                    rows += [(s, s.position + i) for i in range(room)]
        return rows, self._steps(ready) if len(rows) == len(ready) else 1

    def _steps(self, ready: Sequence[_Sequence]) -> int:
        """Steps that a call of one row of each of these sequences may take."""
        if self._step_seconds is None:
            return 1
        seconds, most = self.call_seconds, self.driver.limits.max_steps
        for s in ready:
            # The first token of a text comes by itself: as early as it can, and so that the rate
            # of the others can be told from the reading of the prompt.
            if s.one_step or not s.tokens:
                return 1
            seconds, most = min(seconds, s.call_seconds), min(most, s.budget)
        return max(1, min(most, int(seconds / max(self._step_seconds, 1e-6))))

    def _request(self, sequences: Sequence[_Sequence]) -> tuple[_Plan, dict[str, Any]]:
        """The next call of all of `sequences`, and the driver's arguments for it."""
        plan, n_steps = self._plan(sequences)
        rows = np.frombuffer(b"".join([s.row(position) for s, position in plan]), ROW_DTYPE)
        return plan, {"rows": rows, "n_steps": n_steps, "stop_tokens": self._stop_tokens()}

    def _call(self, sequences: Sequence[_Sequence], generation: int) -> None:
        """One kernel call for all of `sequences`."""
        with self.driver.exclusive():  # until the logits are read back
            self._check_loaded(generation)
            plan, request = self._request(sequences)
            self._take(plan, self.driver.run(**request))

    def _starts_ahead(self, s: _Sequence) -> bool:
        """Whether the device should go on while a stream's reader has what the last call brought.

        Only if the reader will be back long before the device is done, else nobody could tell how
        long the tokens took; nor where logits are to be read, which the next call overwrites.
        """
        if s.row_flags & _FULL_LOGITS or self._step_seconds is None:
            return False
        reader = s.reader * (len(s.pieces) - s.shown)
        return reader < _AHEAD_PART * self._step_seconds * self._steps([s])

    def _start(self, s: _Sequence, generation: int) -> tuple[_Plan, PendingCall]:
        with self.driver.exclusive():
            self._check_loaded(generation)
            plan, request = self._request([s])
            return plan, self.driver.begin(**request)

    def _finish(self, s: _Sequence, generation: int, plan: _Plan, call: PendingCall) -> None:
        with self.driver.exclusive():
            self._check_loaded(generation)
            kept, before = call.outcome is not None, len(s.tokens)  # another call waited for it
            result = self.driver.finish(call)
            if late := kept or math.isnan(result.elapsed_s):
                s.away += time.perf_counter() - call.begin
            self._take(plan, result)
            s.untimed_last = len(s.tokens) - before if late else 0
            s.untimed += s.untimed_last

    def _take(self, plan: _Plan, result: CallResult) -> None:
        """What a call brought."""
        steps = len(result.rows)
        if not steps:
            return
        if not math.isnan(result.elapsed_s):
            self._step_seconds = result.elapsed_s / steps
        stop_tokens = self._stop_tokens()
        for index, (s, position) in enumerate(plan):
            if position < len(s.prompt) - 1:
                s.position = position + 1
            else:
                s.position = position + self._accept(s, result.rows[:, index], index, stop_tokens)

    def _accept(
        self, s: _Sequence, results: np.ndarray, row: int, stop_tokens: Sequence[int]
    ) -> int:
        """Take what (steps,) results of a row brought; how many of them were of use."""

        def full_logits() -> np.ndarray:
            return self.driver.read_logits(row)

        tokens, logits = results["token"].tolist(), results["logit"].tolist()
        choosing = 0 if s.sampling.on_host else None
        if TOKEN_UNDECIDED in tokens:
            if s.row_flags & _FULL_LOGITS:
                choosing = tokens.index(TOKEN_UNDECIDED)
            else:
                s.row_flags |= _FULL_LOGITS  # from here on; this step is done again
        if choosing is not None:
            out = results[choosing]
            tokens[choosing], logits[choosing] = choose(
                full_logits(),
                float(out["lse_temperature"]),
                int(out["position"]),
                [*s.prompt, *s.tokens],
                s.sampling,
            )
        before = len(s.tokens)
        used = s.take(tokens, stop_tokens)
        new = s.tokens[before:]
        if new and s.n_logprobs is not None:
            s.logprobs += _logprobs(new, logits, results, s.n_logprobs, full_logits)
        return used

    def _drive(self, sequences: list[_Sequence]) -> Iterator[None]:
        """Run every sequence to its end, as many at a time as there are slots."""
        with self._slots(len(sequences)) as (slots, generation):
            free, waiting, active = list(slots), list(sequences), list[_Sequence]()
            while waiting or active:
                while waiting and free:
                    s = waiting.pop(0)
                    s.slot, s.started = free.pop(0), time.perf_counter()
                    active.append(s)
                self._call(active, generation)
                for s in [s for s in active if s.finish_reason]:
                    s.close_text()
                    active.remove(s)
                    free.append(s.slot)
                yield

    def _drive_stream(self, s: _Sequence) -> Generator[bool, None, None]:
        """Run a sequence to its end; gives whether the device works on while the reader reads."""
        with self._slots(1) as (slots, generation):
            s.slot, s.started = slots[0], time.perf_counter()
            under_way: tuple[_Plan, PendingCall] | None = None
            try:
                while not s.finish_reason:
                    if under_way is None:
                        self._call([s], generation)
                        s.untimed_last = 0
                    else:
                        self._finish(s, generation, *under_way)
                        under_way = None
                    if s.finish_reason:
                        s.close_text()
                    elif self._starts_ahead(s):
                        with contextlib.suppress(Exception):  # it comes again, after the tokens
                            under_way = self._start(s, generation)
                    yield under_way is not None
            finally:
                if under_way is not None:
                    self.driver.abandon(under_way[1])

    def _sequence(
        self,
        prompt: str,
        sampling: Sampling,
        stop: str | Sequence[str] | None,
        logprobs: int | None,
    ) -> _Sequence:
        if not isinstance(prompt, str):
            raise RequestError(f"the prompt is {prompt!r}: it must be a string")
        stops = [stop] if isinstance(stop, str) else stop if stop is not None else []
        if not isinstance(stops, Sequence) or not all(isinstance(t, str) and t for t in stops):
            raise RequestError(f"stop is {stop!r}: it must be a non-empty string, or several")
        if logprobs is not None and not (
            isinstance(logprobs, (int, np.integer)) and 0 <= logprobs <= self.config.vocab_size
        ):
            raise RequestError(
                f"logprobs is {logprobs!r}: it must be None or 0 to {self.config.vocab_size}"
            )
        row_flags = RowFlag.SAMPLE
        beyond_top = (logprobs or 0) > self.driver.limits.top_logits
        if sampling.on_host:
            row_flags |= RowFlag.HOST_CHOOSES
        if sampling.on_host or beyond_top:
            row_flags |= RowFlag.FULL_LOGITS
        tokens = self.tokenizer.encode(prompt, bos=True)
        room = self.config.seq_len - len(tokens) + 1
        if room < 1:
            raise RequestError(
                f"the prompt is {len(tokens)} tokens long, the model's context holds "
                f"{self.config.seq_len}: shorten it"
            )
        return _Sequence(
            prompt=tokens,
            sampling=sampling,
            decoder=self.tokenizer.stream_decoder(tokens),
            stop_text=_StopText(stops),
            n_logprobs=None if logprobs is None else int(logprobs),
            budget=min(sampling.max_new_tokens, room),
            row_flags=int(row_flags),
            one_step=sampling.on_host or beyond_top,
        )

    # ---- what users call -------------------------------------------------------------

    def generate(
        self,
        prompt: str | Sequence[str] = "",
        *,
        max_new_tokens: int = 512,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 0.9,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        logprobs: int | None = None,
        power: EnergyMeter | None = None,
    ) -> Generation | list[Generation]:
        """Generate text.

        Parameters
        ----------
        prompt : str or list of str
            Empty: start from BOS. A list is a batch: its sequences share each reading of the
            weights, and give the text they would give alone.
        max_new_tokens : int
            Default 512; the context may end the text earlier.
        temperature : float
            0 is greedy. Default 0.8.
        top_k : int
            Keep the k most probable tokens. Default 0: off.
        top_p : float
            Keep the most probable tokens up to this mass. Default 0.9.
        min_p : float
            Keep tokens at least this probable relative to the best. Default 0: off.
        repetition_penalty : float
            Default 1: off.
        stop : str or list of str
            End the text before the first of these.
        seed : int, optional
            Same seed, same text, on every device and in every batch; also where several
            prompts of a batch share it. Default: drawn, and returned in the result.
        logprobs : int, optional
            Return the log-probability of every token, and of this many most probable ones.
        power : power.PowerRecorder, optional
            One that is recording; the result then has its `energy`.

        Returns
        -------
        Generation, or list of Generation for a list of prompts

        Raises
        ------
        RequestError
            If an argument is out of range or a prompt exceeds the context.
        DeviceBusy
            If unfinished streams hold every sequence slot.
        """
        single = isinstance(prompt, str)
        if not single and (not isinstance(prompt, Sequence) or isinstance(prompt, bytes)):
            raise RequestError(
                f"the prompt is {prompt!r}: it must be a string or a list of strings"
            )
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        sampling = Sampling.checked(
            max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed
        )
        _check_meter(power)
        sequences = [self._sequence(p, sampling, stop, logprobs) for p in prompts]
        if power is not None:
            power.sample()
        if sequences:
            for _ in self._drive(sequences):
                pass
        results = [s.result(self.driver.device.name) for s in sequences]
        if power is not None and sequences:
            _measure(power, sequences, results)
        return results[0] if single else results

    def stream(
        self,
        prompt: str = "",
        *,
        max_new_tokens: int = 512,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 0.9,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        power: EnergyMeter | None = None,
        on_finish: Callable[[Generation], None] | None = None,
    ) -> Iterator[str]:
        """Generate text, piece by piece; arguments as for `generate`.

        Arguments are checked at once; the first call of the kernel comes with the first
        piece. A piece never ends within a UTF-8 character.

        Parameters
        ----------
        on_finish : callable, optional
            Called with the `Generation` when the text is complete, or the stream is closed
            before that.

        Yields
        ------
        str
        """
        tokens = self.stream_tokens(
            prompt, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k,
            top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty, stop=stop, seed=seed,
            power=power, on_finish=on_finish,
        )  # fmt: skip
        return _texts(tokens)

    def stream_tokens(
        self,
        prompt: str = "",
        *,
        max_new_tokens: int = 512,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 0.9,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        logprobs: int | None = None,
        power: EnergyMeter | None = None,
        on_finish: Callable[[Generation], None] | None = None,
        call_seconds: float = _STREAM_CALL_SECONDS,
    ) -> Generator[StreamToken, None, None]:
        """As `stream`, token by token and with the tokens' probabilities; see `generate`.

        While the reader has the tokens of one call, the device works on the next, as long as the
        reader is the faster of the two.

        Parameters
        ----------
        call_seconds : float
            Seconds that one call of the kernel should take at most, and no more than the
            attribute of that name: the tokens of a call come together. Fewer calls cost less of
            the host's time.

        Yields
        ------
        StreamToken
        """
        sampling = Sampling.checked(
            max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed
        )
        _check_meter(power)
        if not (isinstance(call_seconds, (int, float)) and call_seconds > 0):
            raise RequestError(f"call_seconds is {call_seconds!r}: it must be a positive number")
        sequence = self._sequence(prompt, sampling, stop, logprobs)
        sequence.call_seconds = call_seconds
        return self._tokens(sequence, power, on_finish)

    def _tokens(
        self,
        s: _Sequence,
        power: EnergyMeter | None,
        on_finish: Callable[[Generation], None] | None,
    ) -> Generator[StreamToken, None, None]:
        def finish() -> None:
            result = s.result(self.driver.device.name)
            if power is not None:
                _measure(power, [s], [result])
            if on_finish is not None:
                on_finish(result)

        try:
            if power is not None:
                power.sample()
            with contextlib.closing(self._drive_stream(s)) as calls:
                for under_way in calls:
                    first, left = s.shown, time.perf_counter()
                    for piece in s.pieces[first:]:
                        n = s.shown
                        token = s.tokens[n] if n < len(s.tokens) else None
                        logprob = s.logprobs[n] if n < len(s.logprobs) else None
                        s.shown = n + 1
                        yield StreamToken(token, piece, logprob, s.shown < len(s.pieces))
                    if s.tokens:
                        pause = time.perf_counter() - left
                        s.reader = pause / max(1, s.shown - first)
                        s.away += pause if not under_way else 0.0
        except GeneratorExit:
            s.finish_reason = "closed"
            s.untimed -= min(s.untimed_last, max(0, len(s.tokens) - s.shown))
            for given in (s.tokens, s.pieces, s.logprobs):
                del given[s.shown :]  # the device was ahead
            finish()
            raise
        finish()

    # ---- rows by hand ----------------------------------------------------------------

    @contextlib.contextmanager
    def session(self) -> Iterator[Session]:
        """A sequence slot of one's own, to run rows of the kernel by hand.

        Examples
        --------
        >>> with llama.session() as session, session.device() as driver:
        ...     rows = make_rows(1)
        ...     rows["token"], rows["slot"] = 1, session.slot
        ...     driver.run(rows, layers=(0, 1), flags=RequestFlag.ACTIVATIONS_OUT)
        """
        with self._slots(1) as (slots, generation):
            yield Session(self, slots[0], generation)

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits after each of `tokens`, teacher-forced.

        Parameters
        ----------
        tokens : sequence of int
            From `tokenizer.encode`, BOS included. At most the context's length.

        Returns
        -------
        (len(tokens), vocab_size) float32

        Raises
        ------
        RequestError
            If `tokens` is empty, too long, or holds an id outside the vocabulary.
        """
        try:
            ids = np.asarray(tokens)
        except ValueError:  # lists of several lengths
            ids = np.asarray(None)
        if ids.ndim != 1:
            raise RequestError("tokens is not a list of token ids (whole numbers)")
        if ids.size == 0:
            raise RequestError("tokens is empty: give at least one token id, such as BOS (1)")
        if not np.issubdtype(ids.dtype, np.integer):
            raise RequestError("tokens holds values that are not token ids (whole numbers)")
        outside = ids[(ids < 0) | (ids >= self.config.vocab_size)]
        if outside.size:
            raise RequestError(
                f"token id {outside[0]} is outside the vocabulary, 0 to "
                f"{self.config.vocab_size - 1}"
            )
        if len(ids) > self.config.seq_len:
            raise RequestError(
                f"{len(ids)} tokens are more than the model's context of {self.config.seq_len}"
            )
        result = np.empty((len(ids), self.config.vocab_size), np.float32)
        step = self.driver.limits.max_rows
        with self.session() as session:
            for first in range(0, len(ids), step):
                part = ids[first : first + step]
                rows = make_rows(len(part))
                rows["token"], rows["slot"] = part, session.slot
                rows["position"] = np.arange(first, first + len(part))
                rows["flags"] = RowFlag.SAMPLE | RowFlag.FULL_LOGITS
                with session.device() as driver:
                    driver.run(rows)
                    for i in range(len(part)):
                        result[first + i] = driver.read_logits(i)
        return result


def check_model(llama: object) -> None:
    """Refuse anything else where a loaded model is asked for.

    Raises
    ------
    RequestError
        If it is none: the overlay, most often.
    """
    if not isinstance(llama, Llama):
        raise RequestError(
            f"{type(llama).__name__} given where a loaded model is asked for: it is what "
            "load_model() returns, and overlay.llama.model"
        )


def _check_meter(power: object) -> None:
    if power is not None and not all(hasattr(power, n) for n in ("sample", "mark", "energy")):
        raise RequestError(
            f"power is {type(power).__name__}: it must be a PowerRecorder that is recording, "
            "PowerRecorder(rails(overlay))"
        )


# ---- loading --------------------------------------------------------------------------


def _load_tokenizer(
    source: Path, packed: PackedModel, path: str | Path | None, bundled: bool
) -> Tokenizer:
    if path is None and bundled:
        path = BUNDLED / "tokenizer.bin"
    if path is not None:
        tokenizer = load_tokenizer(path)
    elif packed.tokenizer:
        tokenizer = tokenizer_from_bytes(packed.tokenizer, packed.path)
    else:
        raise TokenizerError(
            f"{source} comes without a tokenizer: give its file, "
            'load_model("model.bin", tokenizer="tokenizer.bin") or --tokenizer tokenizer.bin'
        )
    tokenizer.check_vocab(packed.config.vocab_size)
    return tokenizer


def load(
    driver: LlamaDriver,
    path: str | Path | None = None,
    tokenizer: str | Path | None = None,
    *,
    group_size: int | None = None,
    weight_bits: int | None = None,
    kv_bits: int = 32,
    slots: int | None = None,
    rope_theta: float | None = None,
    power: EnergyMeter | None = None,
) -> Llama:
    """Load a model onto the driver's device.

    Parameters
    ----------
    driver : LlamaDriver
    path : str or Path, optional
        A llama2.c checkpoint (version 0, 1 or 2) or a packed model; default the bundled one.
    tokenizer : str or Path, optional
        Its tokenizer, sentencepiece or llama2.c; not needed with the bundled model or a
        packed file that carries one.
    group_size : {32, 64}, optional
        Default: see `quantize.QuantizedModel`.
    weight_bits : {8, 4}, optional
        Default 8, or what a packed file holds. 4 halves the bytes that a token reads.
    kv_bits : {32, 8}
        What the KV cache holds: float32, or int8 with a scale for each head's key and value.
    slots : int, optional
        Sequences to hold at a time; default 4, or fewer where memory is short. It grows by
        itself for a larger batch.
    rope_theta : float, optional
        Not in a llama2.c file; default 10000. A packed file knows its own.
    power : power.PowerRecorder, optional
        One that is recording: loading is marked on it.

    Returns
    -------
    Llama

    Raises
    ------
    CheckpointError, TokenizerError, LimitError
        If a file cannot be used. The model that was loaded before stays, unless the damage of
        a packed file shows only on its way to the device.
    DeviceMemoryError
        If it does not fit. No model is loaded then.
    """
    start = time.perf_counter()
    _check_meter(power)
    limits = driver.limits
    if slots is not None and not (isinstance(slots, int) and 1 <= slots <= 1024):
        raise RequestError(f"slots is {slots!r}: it must be 1 to 1024")
    if kv_bits not in KV_BITS:
        raise RequestError(f"kv_bits is {kv_bits!r}: it must be 32 (float32) or 8 (int8)")
    if rope_theta is not None and not (isinstance(rope_theta, (int, float)) and rope_theta > 0):
        raise RequestError(f"rope_theta is {rope_theta!r}: it must be a positive number")
    bundled = path is None
    source = BUNDLED / "stories.bin" if path is None else Path(path)
    target = Target.of(limits)
    repack: Callable[[], PackedModel] | None = None
    if source.exists() and source.is_file() and is_packed(source):
        packed = open_packed(source)
        if group_size not in (None, packed.group_size):
            raise RequestError(
                f"group_size is {group_size}, but {source} is packed in groups of "
                f"{packed.group_size}: leave group_size out, or pack the checkpoint again"
            )
        if weight_bits not in (None, packed.weight_bits):
            raise RequestError(
                f"weight_bits is {weight_bits}, but {source} is packed with "
                f"{packed.weight_bits}: leave weight_bits out, or pack the checkpoint again"
            )
        if rope_theta not in (None, packed.config.rope_theta):
            raise RequestError(
                f"rope_theta is {rope_theta}, but {source} is packed for "
                f"{packed.config.rope_theta}: leave rope_theta out, or pack the checkpoint again"
            )
    else:
        theta = 10000.0 if rope_theta is None else float(rope_theta)
        with load_checkpoint(source, rope_theta=theta) as checkpoint:
            check_limits(checkpoint.config, limits)
            packed = pack_cached(checkpoint, target, group_size, weight_bits or 8)

        def repack() -> PackedModel:
            with load_checkpoint(source, rope_theta=theta) as checkpoint:
                return pack_cached(checkpoint, target, group_size, weight_bits or 8, rebuild=True)

    text = _load_tokenizer(source, packed, tokenizer, bundled)
    llama = Llama(driver, text, packed, repack, kv_bits)
    try:
        llama.upload(slots or min(_DEFAULT_SLOTS, limits.max_rows))
    except DeviceMemoryError:
        if slots is not None:
            raise
        llama.upload(1)
    end = time.perf_counter()
    llama.load_seconds = end - start
    if power is not None:
        power.mark("load", start, end)
    return llama
