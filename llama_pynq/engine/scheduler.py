"""The scheduler: choose rows and steps of each call of the kernel, and dispatch its results."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from llama_pynq.engine.sampling import choose
from llama_pynq.engine.sequence import SequenceState, token_logprobs
from llama_pynq.engine.slots import Slots
from llama_pynq.kernel.abi import ROW_DTYPE, TOKEN_UNDECIDED, RowFlag

if TYPE_CHECKING:
    from llama_pynq.device.calls import CallResult, PendingCall
    from llama_pynq.device.kernel_driver import KernelDriver

CALL_SECONDS = 0.1
"""Longest duration of a call by default, so that Ctrl-C and Stop are prompt."""

_AHEAD_PART = 0.5  # default of Scheduler.ahead_part

_FULL_LOGITS = int(RowFlag.FULL_LOGITS)  # an int: an enum's & is slow, and this runs every token

Plan = list[tuple[SequenceState, int]]
"""Sequence and position of each row of a call."""


class Scheduler:
    """Runs sequences on the device, several in a call.

    Parameters
    ----------
    driver : KernelDriver
    slots : Slots

    Attributes
    ----------
    call_seconds : float
        Longest duration of one call of the kernel.
    ahead_part : float
        A stream's next call is launched while its consumer reads the last one's tokens if the
        consumer needs less than this share of the call's duration.
    """

    def __init__(self, driver: KernelDriver, slots: Slots) -> None:
        self._driver, self._slots = driver, slots
        self.call_seconds = CALL_SECONDS
        self.ahead_part = _AHEAD_PART
        self._step_seconds: float | None = None  # of the last timed call

    # ---- the next call ---------------------------------------------------------------

    def _plan(self, sequences: Sequence[SequenceState]) -> tuple[Plan, int]:
        """Choose the rows of the next call, and how many steps it may take.

        A sequence in decode gets one row. Prefill gets the remaining rows; a call with a slice of
        a prompt takes one step.
        """
        limit = self._driver.limits.max_rows
        ready = [s for s in sequences if s.position >= len(s.prompt) - 1][:limit]
        rows = [(s, s.position) for s in ready]
        if len(ready) < len(sequences):
            for s in sequences:
                if s.position < len(s.prompt) - 1:
                    room = min(limit - len(rows), len(s.prompt) - s.position)
                    rows += [(s, s.position + i) for i in range(room)]
        return rows, self.steps(ready) if len(rows) == len(ready) else 1

    def steps(self, ready: Sequence[SequenceState]) -> int:
        """Steps that a call of one row of each of these sequences may take."""
        if self._step_seconds is None:
            return 1
        seconds, most = self.call_seconds, self._driver.limits.max_steps
        for s in ready:
            # The first token of a text has a call of its own: the token comes as early as
            # possible, and decode is timed apart from prefill.
            if s.one_step or not s.tokens:
                return 1
            seconds, most = min(seconds, s.call_seconds), min(most, s.budget)
        return max(1, min(most, int(seconds / max(self._step_seconds, 1e-6))))

    def _request(self, sequences: Sequence[SequenceState]) -> tuple[Plan, dict[str, Any]]:
        """The next call of all of `sequences`, and the driver's arguments for it."""
        plan, n_steps = self._plan(sequences)
        rows = np.frombuffer(b"".join([s.row(position) for s, position in plan]), ROW_DTYPE)
        # If one sequence ignores EOS, no row stops on the device; the others drop later tokens.
        stop_tokens = plan[0][0].stop_tokens
        if len(sequences) > 1:
            common = set.intersection(*(set(s.stop_tokens) for s in sequences))
            stop_tokens = tuple(token for token in stop_tokens if token in common)
        return plan, {"rows": rows, "n_steps": n_steps, "stop_tokens": stop_tokens}

    def _call(self, sequences: Sequence[SequenceState], generation: int) -> None:
        """Run one call of the kernel for all of `sequences`."""
        with self._driver.exclusive():  # until the logits are read back
            self._slots.check_loaded(generation)
            plan, request = self._request(sequences)
            self.take(plan, self._driver.run(**request))

    # ---- a call launched while a stream's consumer reads -----------------------------

    def _starts_ahead(self, s: SequenceState) -> bool:
        """Whether to launch the next call while the consumer reads the last one's tokens.

        Only if the consumer will be back long before the device is done, else the tokens could
        not be timed. Never if logits are to be read, which the next call overwrites.
        """
        if s.row_flags & _FULL_LOGITS or self._step_seconds is None:
            return False
        consumer = s.consumer * (len(s.pieces) - s.shown)
        return consumer < self.ahead_part * self._step_seconds * self.steps([s])

    def _start(self, s: SequenceState, generation: int) -> tuple[Plan, PendingCall]:
        with self._driver.exclusive():
            self._slots.check_loaded(generation)
            plan, request = self._request([s])
            return plan, self._driver.begin(**request)

    def _finish(self, s: SequenceState, generation: int, plan: Plan, call: PendingCall) -> None:
        with self._driver.exclusive():
            self._slots.check_loaded(generation)
            kept, before = call.outcome is not None, len(s.tokens)  # another call waited for it
            result = self._driver.finish(call)
            if late := kept or math.isnan(result.elapsed_s):
                s.away += time.perf_counter() - call.begin
            self.take(plan, result)
            s.untimed_last = len(s.tokens) - before if late else 0
            s.untimed += s.untimed_last

    # ---- results ---------------------------------------------------------------------

    def take(self, plan: Plan, result: CallResult) -> None:
        """Pass a call's results to its sequences."""
        steps = len(result.rows)
        if not steps:
            return
        if not math.isnan(result.elapsed_s):
            self._step_seconds = result.elapsed_s / steps
        for index, (s, position) in enumerate(plan):
            if position < len(s.prompt) - 1:
                s.position = position + 1
            else:
                s.position = position + self._accept(s, result.rows[:, index], index)

    def _accept(self, s: SequenceState, results: np.ndarray, row: int) -> int:
        """Pass the (steps,) results of a row to its sequence; return how many steps it used."""

        def full_logits() -> np.ndarray:
            return self._driver.read_logits(row)

        tokens, logits = results["token"].tolist(), results["logit"].tolist()
        choosing = 0 if s.params.on_host else None
        if TOKEN_UNDECIDED in tokens:
            if s.row_flags & _FULL_LOGITS:
                choosing = tokens.index(TOKEN_UNDECIDED)
            else:
                s.row_flags |= _FULL_LOGITS  # from here on; this step is repeated
        if choosing is not None:
            out = results[choosing]
            tokens[choosing], logits[choosing] = choose(
                full_logits(),
                float(out["lse_temperature"]),
                int(out["position"]),
                [*s.prompt, *s.tokens],
                s.params,
                s.seed,
            )
        before = len(s.tokens)
        used = s.take(tokens)
        new = s.tokens[before:]
        if new and s.params.logprobs is not None:
            s.logprobs += token_logprobs(new, logits, results, s.params.logprobs, full_logits)
        return used

    # ---- sequences to their ends -----------------------------------------------------

    def run(self, sequences: Sequence[SequenceState]) -> None:
        """Run every sequence to its end, as many at a time as there are slots."""
        with self._slots.take(len(sequences)) as (slots, generation):
            free, waiting, active = list(slots), list(sequences), list[SequenceState]()
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

    def stream(self, s: SequenceState) -> Generator[bool, None, None]:
        """Run a sequence to its end, call by call.

        Yields
        ------
        bool
            Whether the next call is under way while the consumer reads the last one's tokens.
        """
        with self._slots.take(1) as (slots, generation):
            s.slot, s.started = slots[0], time.perf_counter()
            under_way: tuple[Plan, PendingCall] | None = None
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
                        # The error recurs in the next call, after the consumer has read the tokens.
                        with contextlib.suppress(Exception):
                            under_way = self._start(s, generation)
                    yield under_way is not None
            finally:
                if under_way is not None:
                    self._driver.abandon(under_way[1])
