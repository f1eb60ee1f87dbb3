"""A loaded model: text in, text out."""

from __future__ import annotations

import contextlib
import time
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from functools import partial
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np

from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.energy import Energy, EnergyMeter, check_meter
from llama_pynq.engine.conversation import Conversation
from llama_pynq.engine.results import Generation, StreamToken, TokenLogprob
from llama_pynq.engine.sampling import SamplingParams
from llama_pynq.engine.scheduler import Scheduler
from llama_pynq.engine.sequence import SequenceState, StopText, token_logprobs
from llama_pynq.engine.slots import Session, Slots
from llama_pynq.errors import CheckpointError, RequestError
from llama_pynq.kernel.abi import RowFlag, make_rows
from llama_pynq.tokenizer.base import Tokenizer
from llama_pynq.tokenizer.chat import Message
from llama_pynq.utils.html import facts_table
from llama_pynq.utils.validate import flag, positive_number, whole_number
from llama_pynq.weights.packed import PackedModel

if TYPE_CHECKING:
    from llama_pynq.device.kernel_driver import KernelDriver

Prompt = str | Sequence[int]
"""A text, or the ids of its tokens."""

_NO_TOKEN = "no token was generated, so there is no energy"
_MOST_TEXTS = 1024  # of one prompt
_STREAM_CALL_SECONDS = 0.04  # a stream's consumer gets text 25 times a second


class Llama:
    """A model on a device, with its tokenizer.

    Parameters
    ----------
    driver : KernelDriver
        Driver of the device; `upload` loads the weights onto it.
    tokenizer : Tokenizer
    packed : PackedModel
        The packed weights, with their config and their note.
    repack : callable, optional
        Packs the checkpoint again if the packed file is damaged or gone.
    kv_bits : {32, 8}
        Format of the KV cache.
    chat_template : str, optional
        Instead of the model's own: in Jinja, or a name of `tokenizer.chat.TEMPLATES`.
    name : str
        The model's, for messages; default the packed file's.

    Attributes
    ----------
    load_seconds : float
        Time that loading took, packing included; measured.
    slots : Slots
        Sequence slots of the KV cache.
    scheduler : Scheduler
        Runs the sequences.
    conversation : Conversation
        Makes prompts of conversations.
    """

    def __init__(
        self,
        driver: KernelDriver,
        tokenizer: Tokenizer,
        packed: PackedModel,
        repack: Callable[[], PackedModel] | None = None,
        kv_bits: int = 32,
        chat_template: str | None = None,
        name: str = "",
    ) -> None:
        self.driver = driver
        self.tokenizer = tokenizer
        self.packed = packed
        self._repack = repack
        self._kv_bits = kv_bits
        template = packed.chat_template if chat_template is None else chat_template
        self.conversation = Conversation(
            tokenizer, template, name or packed.path.name, packed.config.seq_len
        )
        self.load_seconds = 0.0
        self.slots = Slots(driver, packed)
        self.scheduler = Scheduler(driver, self.slots)

    @property
    def config(self) -> ModelConfig:
        """Shape of the model."""
        return self.packed.config

    @property
    def facts(self) -> dict[str, str]:
        """What is loaded, and where, in words: a line each."""
        c, driver = self.config, self.driver
        mib = self.packed.weight_bytes / 2**20
        return {
            "shape": f"dim {c.dim}, {c.n_layers} layers, {c.n_heads} heads, "
            f"{c.n_kv_heads} KV heads, hidden {c.hidden_dim}, vocabulary {c.vocab_size}, "
            f"context {c.seq_len}",
            "weights": f"{mib:.1f} MiB; {self.packed.note}",
            "KV cache": f"{driver.kv_format}, {driver.slots} sequences",
            "tokenizer": str(self.tokenizer.path),
            "device": driver.device.name,
        }

    @property
    def summary(self) -> str:
        """Shape, origin and checksum of the model in one line: what tells it from another."""
        c, crc = self.config, zlib.crc32(repr(self.packed.crcs).encode())
        return (
            f"{c.n_layers} layers of {c.dim}, vocabulary {c.vocab_size:,}, context {c.seq_len}; "
            f"{self.packed.note}; checksum {crc:08x}"
        )

    def __repr__(self) -> str:
        c = self.config
        return (
            f"Llama(dim {c.dim}, {c.n_layers} layers, vocabulary {c.vocab_size}, "
            f"int{self.packed.weight_bits} weights, on {self.driver.device.name})"
        )

    def _repr_html_(self) -> str:
        return facts_table("Llama", self.facts)

    @property
    def call_seconds(self) -> float:
        """Longest duration of one call of the kernel, so that Ctrl-C and Stop are prompt.

        Default 0.1, and less for a stream. With the speed of the last call, it determines how
        many tokens a call generates.
        """
        return self.scheduler.call_seconds

    @call_seconds.setter
    def call_seconds(self, seconds: float) -> None:
        self.scheduler.call_seconds = seconds

    def upload(self, slots: int) -> None:
        """Upload the weights, with room for `slots` sequences; all slots are then free."""
        try:
            self.driver.load_weights(self.packed, slots, self._kv_bits, self)
        except CheckpointError:
            if self._repack is None:
                raise
            self.packed = self.slots.packed = self._repack()
            self.driver.load_weights(self.packed, slots, self._kv_bits, self)

    @property
    def _stop_tokens(self) -> tuple[int, ...]:
        return self.tokenizer.stop_ids

    def new_sequence(
        self,
        prompt: Prompt,
        params: SamplingParams,
        seed: int,
        add_bos: bool = True,
        parse_special: bool = False,
    ) -> SequenceState:
        """Make a sequence for the scheduler from a prompt.

        Raises
        ------
        RequestError
            If the prompt exceeds the context, holds no token or an id outside the vocabulary, or
            `logprobs` exceeds the vocabulary.
        """
        logprobs = params.logprobs or 0
        if logprobs > self.config.vocab_size:
            raise RequestError(
                f"logprobs is {logprobs!r}: it must be None or 0 to {self.config.vocab_size}"
            )
        row_flags = RowFlag.SAMPLE
        beyond_top = logprobs > self.driver.limits.top_logits
        if params.on_host:
            row_flags |= RowFlag.HOST_CHOOSES
        if params.on_host or beyond_top:
            row_flags |= RowFlag.FULL_LOGITS
        tokens = self._tokens_of(
            prompt, flag("add_bos", add_bos), flag("parse_special", parse_special)
        )
        room = self.config.seq_len - len(tokens) + 1
        if room < 1:
            raise RequestError(
                f"the prompt is {len(tokens)} tokens long, the model's context holds "
                f"{self.config.seq_len}: shorten it"
            )
        return SequenceState(
            prompt=tokens,
            params=params,
            seed=seed,
            decoder=self.tokenizer.stream_decoder(tokens),
            stop_text=StopText(params.stop or ()),
            stop_tokens=() if params.ignore_eos else self._stop_tokens,
            budget=min(params.max_new_tokens, room),
            row_flags=int(row_flags),
            one_step=params.on_host or beyond_top,
            finish_reason="" if params.max_new_tokens else "length",
        )

    def _tokens_of(self, prompt: Prompt, add_bos: bool, parse_special: bool) -> list[int]:
        if isinstance(prompt, str):
            tokens = self.tokenizer.encode(prompt, bos=add_bos, parse_special=parse_special)
            if not tokens and add_bos and self.tokenizer.bos_id >= 0:
                return [self.tokenizer.bos_id]  # a text has to begin with something
            if not tokens:
                raise RequestError("the prompt is empty and add_bos is False: give a first token")
            return tokens
        if not _is_list(prompt):
            raise RequestError(
                f"the prompt is {prompt!r}: it must be a string, or a list of token ids"
            )
        return self._checked_ids(prompt, "the prompt").tolist()

    def _checked_ids(self, tokens: Any, what: str) -> np.ndarray:
        """Check token ids that the user gives."""
        try:
            ids = np.asarray(tokens)
        except ValueError:  # ragged lists
            ids = np.asarray(None)
        if ids.ndim != 1:
            raise RequestError(f"{what} is not a list of token ids (whole numbers)")
        if ids.size == 0:
            raise RequestError(f"{what} is empty: give at least one token id, such as BOS (1)")
        if not np.issubdtype(ids.dtype, np.integer):
            raise RequestError(f"{what} holds values that are not token ids (whole numbers)")
        outside = ids[(ids < 0) | (ids >= self.config.vocab_size)]
        if outside.size:
            raise RequestError(
                f"token id {outside[0]} is outside the vocabulary, 0 to "
                f"{self.config.vocab_size - 1}"
            )
        return ids

    # ---- text ------------------------------------------------------------------------

    def generate(
        self,
        prompt: Prompt | Sequence[Prompt] = "",
        *,
        max_new_tokens: int = 512,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 0.9,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        stop: str | Sequence[str] | None = None,
        seed: int | Sequence[int] | None = None,
        logprobs: int | None = None,
        ignore_eos: bool = False,
        add_bos: bool = True,
        parse_special: bool = False,
        echo: bool = False,
        n: int = 1,
        params: SamplingParams | None = None,
        power: EnergyMeter | None = None,
    ) -> Generation | list[Generation] | list[list[Generation]]:
        """Generate text.

        Parameters
        ----------
        prompt : str, list of int, or list of these
            A text, or the ids of its tokens; an empty text starts from BOS. A list of prompts is a
            batch: its sequences share each read of the weights, and give the text they would give
            alone.
        max_new_tokens : int
            Default 512; the context may end the text earlier. 0 gives an empty text.
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
        seed : int or list of int, optional
            Same seed, same text, on every device and in every batch. All prompts of a batch
            share a seed; a list has one for each. Default: one is drawn for each text, and
            returned in its result.
        logprobs : int, optional
            Return the log-probability of every token, and those of this many most probable
            tokens.
        ignore_eos : bool
            Go on after BOS or EOS. Default False.
        add_bos : bool
            Begin a text with BOS. Default True. Token ids are taken as they are.
        parse_special : bool
            Take the names of special tokens in a text, such as ``</s>`` or ``[INST]``, for these
            tokens. Default False: they are text like any other.
        echo : bool
            Begin each result's text with the prompt, and its logprobs with those of the prompt's
            tokens; with `max_new_tokens` 0, this scores the prompt. Default False.
        n : int
            Texts of each prompt: with a seed, those of seed, seed + 1 and so on. Default 1.
        params : SamplingParams, optional
            The sampling arguments, `max_new_tokens` to `ignore_eos`, in one object, instead of
            them.
        power : measure.power.PowerRecorder, optional
            A recorder that is recording; the result then has an `energy`.

        Returns
        -------
        Generation, or list of Generation for a list of prompts
            With `n` above 1, a list of `n` in place of each.

        Raises
        ------
        RequestError
            If an argument is out of range or a prompt exceeds the context.
        DeviceBusy
            If unfinished streams hold every sequence slot.
        """
        seeds = seed if _is_list(seed) else None
        params = _one_of(
            params, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k,
            top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty, stop=stop,
            seed=None if seeds is not None else seed, logprobs=logprobs, ignore_eos=ignore_eos,
        )  # fmt: skip
        check_meter(power)
        prompts, single = _prompts_of(prompt)
        n = whole_number("n", n)
        if not 1 <= n <= _MOST_TEXTS:
            raise RequestError(f"n is {n}: it must be 1 to {_MOST_TEXTS}")
        echo = flag("echo", echo)
        sequences = [
            self.new_sequence(p, params, one, add_bos, parse_special)
            for p, drawn in zip(prompts, _seeds(seeds, params, len(prompts), n))
            for one in drawn
        ]
        running = [s for s in sequences if s.budget > 0]
        if power is not None:
            power.sample()
        if running:
            self.scheduler.run(running)
        results = [s.result(self.driver.device.name) for s in sequences]
        if power is not None and running:
            _measure(power, running, results)
        elif power is not None:
            for result in results:
                result.energy_note = _NO_TOKEN
        if echo:
            for i in range(0, len(results), n):
                self._echo(prompts[i // n], params.logprobs, results[i : i + n])
        if n == 1:
            return results[0] if single else results
        groups = [results[i : i + n] for i in range(0, len(results), n)]
        return groups[0] if single else groups

    def _echo(self, prompt: Prompt, logprobs: int | None, results: Sequence[Generation]) -> None:
        """Put the prompt in front of the results of its texts."""
        tokens = results[0].prompt_tokens
        scores = None if logprobs is None else self._scores(tokens, logprobs)
        text, tail = prompt if isinstance(prompt, str) else None, ""
        if text is None:
            decoder = self.tokenizer.stream_decoder()
            text = "".join(map(decoder.push, tokens))
            tail = decoder.flush()  # of a character that the prompt leaves incomplete
        for result in results:
            result.text = text + (result.text if result.tokens or result.text else tail)
            if scores is not None:
                result.logprobs = [*scores, *(result.logprobs or ())]

    def _scores(self, tokens: Sequence[int], n: int) -> list[TokenLogprob]:
        """Log-probability of each token after those before it; nothing comes before the first."""
        scores = [TokenLogprob(tokens[0], None, {})]
        for token, (result, logits) in zip(tokens[1:], self._forced(tokens)):
            full = partial(np.asarray, logits)
            scores += token_logprobs([token], [float(logits[token])], result[None], n, full)
        return scores

    def stream(
        self,
        prompt: Prompt = "",
        *,
        max_new_tokens: int = 512,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 0.9,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        ignore_eos: bool = False,
        add_bos: bool = True,
        parse_special: bool = False,
        params: SamplingParams | None = None,
        power: EnergyMeter | None = None,
        on_finish: Callable[[Generation], None] | None = None,
    ) -> Iterator[str]:
        """Generate text, piece by piece.

        Arguments are checked at once; the kernel is first called when the first piece is
        requested. A piece never ends within a UTF-8 character.

        Parameters
        ----------
        prompt : str or list of int
            A text, or the ids of its tokens; an empty text starts from BOS.
        max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, stop, seed
            As for `generate`.
        ignore_eos, add_bos, parse_special, params, power
            As for `generate`; `on_finish` receives the result, with its energy.
        on_finish : callable, optional
            Called with the `Generation` when the text is complete, or when the stream is
            closed before that.

        Yields
        ------
        str
        """
        params = _one_of(
            params, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k,
            top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty, stop=stop,
            seed=seed, ignore_eos=ignore_eos,
        )  # fmt: skip
        sequence = self.new_sequence(prompt, params, params.draw_seed(), add_bos, parse_special)
        return _texts(self._stream(sequence, power, on_finish, _STREAM_CALL_SECONDS))

    def stream_tokens(
        self,
        prompt: Prompt = "",
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
        ignore_eos: bool = False,
        add_bos: bool = True,
        parse_special: bool = False,
        params: SamplingParams | None = None,
        power: EnergyMeter | None = None,
        on_finish: Callable[[Generation], None] | None = None,
        call_seconds: float = _STREAM_CALL_SECONDS,
    ) -> Generator[StreamToken, None, None]:
        """As `stream`, token by token and with log-probabilities.

        The device works on the next call while the consumer reads the last one's tokens, as long
        as the consumer is the faster of the two.

        Parameters
        ----------
        prompt : str or list of int
            A text, or the ids of its tokens; an empty text starts from BOS.
        max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, stop, seed
            As for `generate`.
        logprobs, ignore_eos, add_bos, parse_special, params, power
            As for `generate`.
        on_finish : callable, optional
            As for `stream`.
        call_seconds : float
            Longest duration of one call of the kernel, capped by the attribute of that name.
            The tokens of a call come together. Longer and fewer calls take less of the host's
            time.

        Yields
        ------
        StreamToken
        """
        params = _one_of(
            params, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k,
            top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty, stop=stop,
            seed=seed, logprobs=logprobs, ignore_eos=ignore_eos,
        )  # fmt: skip
        sequence = self.new_sequence(prompt, params, params.draw_seed(), add_bos, parse_special)
        return self._stream(sequence, power, on_finish, call_seconds)

    def _stream(
        self,
        sequence: SequenceState,
        power: EnergyMeter | None,
        on_finish: Callable[[Generation], None] | None,
        call_seconds: float,
    ) -> Generator[StreamToken, None, None]:
        """Check the arguments at once; the first call comes when a token is requested."""
        check_meter(power)
        sequence.call_seconds = positive_number("call_seconds", call_seconds)
        return self._tokens(sequence, power, on_finish)

    def _tokens(
        self,
        s: SequenceState,
        power: EnergyMeter | None,
        on_finish: Callable[[Generation], None] | None,
    ) -> Generator[StreamToken, None, None]:
        def finish() -> None:
            result = s.result(self.driver.device.name)
            if power is not None and not s.last_token:
                result.energy_note = _NO_TOKEN
            elif power is not None:
                _measure(power, [s], [result])
            if on_finish is not None:
                on_finish(result)

        if s.budget <= 0:
            finish()
            return
        try:
            if power is not None:
                power.sample()
            with contextlib.closing(self.scheduler.stream(s)) as calls:
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
                        s.consumer = pause / max(1, s.shown - first)
                        s.away += pause if not under_way else 0.0
        except GeneratorExit:
            s.finish_reason = "closed"
            s.untimed -= min(s.untimed_last, max(0, len(s.tokens) - s.shown))
            for given in (s.tokens, s.pieces, s.logprobs):
                del given[s.shown :]  # the consumer never saw these
            finish()
            raise
        finish()

    # ---- conversations ---------------------------------------------------------------

    def chat(self, messages: Sequence[Message], **sampling: Any) -> Generation:
        """Answer a conversation.

        Parameters
        ----------
        messages : sequence of mappings
            Each with a ``role`` ("system", "user" or "assistant") and a ``content``, as for
            OpenAI's and transformers' interfaces.
        **sampling
            As for `generate`, but for add_bos, parse_special, echo and n.

        Returns
        -------
        Generation
            Its text is the answer.

        Raises
        ------
        RequestError
            If the model has no chat template, a message is malformed, the conversation exceeds the
            context, or an argument is out of range.
        TemplateError
            If the template refuses the messages.
        """
        answer: Any = self.generate(self.conversation.prompt(messages), **sampling)
        return answer

    def stream_chat(self, messages: Sequence[Message], **sampling: Any) -> Iterator[str]:
        """Answer a conversation, piece by piece.

        Parameters
        ----------
        messages : sequence of mappings
            As for `chat`.
        **sampling
            As for `stream`, but for add_bos and parse_special.

        Yields
        ------
        str

        Raises
        ------
        RequestError, TemplateError
            As for `chat`.
        """
        return self.stream(self.conversation.prompt(messages), **sampling)

    # ---- rows by hand ----------------------------------------------------------------

    @contextlib.contextmanager
    def session(self) -> Iterator[Session]:
        """Hold a sequence slot, to run rows of the kernel by hand.

        Yields
        ------
        Session

        Examples
        --------
        >>> with llama.session() as session, session.device() as driver:
        ...     rows = make_rows(1)
        ...     rows["token"], rows["slot"] = 1, session.slot
        ...     driver.run(rows, layers=(0, 1), flags=RequestFlag.ACTIVATIONS_OUT)
        """
        with self.slots.take(1) as (slots, generation):
            yield Session(self.driver, self.slots, slots[0], generation)

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
        ids = self._checked_ids(tokens, "tokens")
        if len(ids) > self.config.seq_len:
            raise RequestError(
                f"{len(ids)} tokens are more than the model's context of {self.config.seq_len}"
            )
        result = np.empty((len(ids), self.config.vocab_size), np.float32)
        for row, (_, logits) in zip(result, self._forced(ids.tolist())):
            row[:] = logits
        return result

    def _forced(self, tokens: Sequence[int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The kernel's result, and the (vocab_size,) float32 logits, after each of the tokens."""
        step = self.driver.limits.max_rows
        with self.session() as session:
            for first in range(0, len(tokens), step):
                part = tokens[first : first + step]
                rows = make_rows(len(part))
                rows["token"], rows["slot"] = part, session.slot
                rows["position"] = np.arange(first, first + len(part))
                rows["flags"] = RowFlag.SAMPLE | RowFlag.FULL_LOGITS
                with session.device() as driver:
                    results = driver.run(rows).rows[0]
                    logits = [driver.read_logits(i) for i in range(len(part))]
                yield from zip(results, logits)


def check_model(llama: object) -> None:
    """Raise unless `llama` is a loaded model.

    Raises
    ------
    RequestError
        If it is not a `Llama`; most often, the overlay was given.
    """
    if not isinstance(llama, Llama):
        raise RequestError(
            f"{type(llama).__name__} given where a loaded model is asked for: it is what "
            "load_model() returns, and overlay.llama.model"
        )


def _is_list(value: object) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim > 0
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _prompts_of(prompt: object) -> tuple[list[Any], bool]:
    """The prompts, and whether one was given that is not in a list."""
    if not isinstance(prompt, str) and not _is_list(prompt):
        raise RequestError(
            f"the prompt is {prompt!r}: it must be a string, a list of token ids, or a list of "
            "these"
        )
    given: Any = prompt
    ids = not isinstance(prompt, str) and len(given) and isinstance(given[0], Integral)
    return ([given], True) if ids or isinstance(prompt, str) else (list(given), False)


def _seeds(given: Any, params: SamplingParams, prompts: int, n: int) -> list[list[int]]:
    """The seeds of the `n` texts of each prompt."""
    if given is not None:
        if len(given) != prompts:
            raise RequestError(
                f"seed has {len(given)} values: give one for each of {prompts} prompts"
            )
        if params.seed is not None:
            raise RequestError("params has a seed, and a list of seeds was given: leave out one")
        firsts = [replace(params, seed=one).draw_seed() for one in given]
    elif params.seed is not None:
        firsts = [params.seed] * prompts
    else:
        return [[params.draw_seed() for _ in range(n)] for _ in range(prompts)]
    return [[(first + i) % 2**64 for i in range(n)] for first in firsts]


def _one_of(params: SamplingParams | None, **keywords: Any) -> SamplingParams:
    """Return `params`, or the parameters made of keyword arguments.

    Raises
    ------
    RequestError
        If both were given, or `params` is something else.
    """
    if params is None:
        return SamplingParams(**keywords)
    if not isinstance(params, SamplingParams):
        raise RequestError(f"params is {type(params).__name__}: it must be a SamplingParams")
    if SamplingParams(**keywords) != _DEFAULTS:
        raise RequestError("params was given, and sampling arguments too: give one or the other")
    return params


_DEFAULTS = SamplingParams()


def _measure(
    power: EnergyMeter, sequences: Sequence[SequenceState], results: Sequence[Generation]
) -> None:
    """Mark prefill and decode on the recording, and set the energy of every result."""
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
