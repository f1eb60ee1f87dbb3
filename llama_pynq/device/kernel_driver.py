"""The driver of the kernel: one call at a time, each with a deadline.

It uses only PYNQ's interface, so it is the same on Zynq, on Alveo and on the emulated device. It
writes arguments to the registers that the overlay's metadata lists, and checks the kernel's own
description. `driver.LlamaDriver` adds the binding by PYNQ, and the methods that take and give text.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
from pynq import DefaultIP

from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.device import arguments as given
from llama_pynq.device.buffers import Buffers
from llama_pynq.device.calls import CallBuffers, CallResult, PendingCall, check_status
from llama_pynq.device.handshake import DeadlinePassed, Handshake
from llama_pynq.device.model_memory import NO_MODEL, LoadedModel, ModelMemory, check_fits
from llama_pynq.errors import (
    ConnectionLost,
    KernelTimeout,
    LimitError,
    OverlayMismatch,
    RequestError,
)
from llama_pynq.kernel import abi
from llama_pynq.kernel.abi import ROW_DTYPE, RequestFlag, State
from llama_pynq.kernel.limits import KernelLimits
from llama_pynq.kernel.registers import CONTROL_OFFSET, arguments
from llama_pynq.weights.packed import PackedModel

_P = ParamSpec("_P")
_R = TypeVar("_R")

INTERRUPTED = (
    "reset() of the overlay did not end: call it again, which brings back the model that was "
    "loaded, or call load_model()"
)

_PROFILE = int(RequestFlag.PROFILE)  # an enum's & takes as long as a register access
_SETTLE_S = 2.0  # how long an interrupted call may take to end its step
_MAX_PORTS = 64


def _over_network(
    method: Callable[Concatenate[KernelDriver, _P], _R],
) -> Callable[Concatenate[KernelDriver, _P], _R]:
    """Raise ConnectionLost if a board on the network does not answer."""

    @functools.wraps(method)
    def wrapped(self: KernelDriver, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return method(self, *args, **kwargs)
        except self._network_errors as error:
            code = getattr(error, "code", str)()
            raise ConnectionLost(
                f"{self.device.name} does not answer ({getattr(code, 'name', code)}). See that the "
                "board is on, that the network reaches it and that PYNQ.remote's server runs "
                "there, and repeat the call. If the board was restarted meanwhile, open the "
                "overlay again: what it held is lost"
            ) from error

    return wrapped


class KernelDriver(DefaultIP):
    """Driver of the ``llama`` IP.

    One lock, `exclusive`, guards all state of driver, buffers and device. Each change is made while
    it is held, and each state is entered by one assignment, the last of the change:

    ================  =============================  ============================================
    state             known by                       ends with
    ================  =============================  ============================================
    open              ``_model`` is None             `limits`: describes the kernel
    described         ``_limits``, ``_model``        `load_weights`
    model loaded      `ModelMemory.loaded`           `load_weights`, `resize_cache`, `reset`
    to be programmed  ``_download``                  the download, by `reset`, `forget` or `limits`
    hung              ``_hung``                      `reset`, `forget`
    closed            ``_closed``                    never
    ================  =============================  ============================================

    After Ctrl-C, or an error, inside a change the driver is in the state before it or in one below:
    without a model, or to be programmed; the next `reset` or load goes on from there. A thread that
    waits for the lock sees the state after the change. Two things are set without the lock: `close`
    says so to the thread that holds it, and `reset` changes the generation, so that a thread that
    waits for a hung call gives up the lock.

    Parameters
    ----------
    description : dict
        PYNQ's description of the IP.

    Attributes
    ----------
    timeout_s : float
        How long a call may take before it counts as hung.
    describe_timeout_s : float
        The same for the first call, which takes microseconds.
    handshake : Handshake
        Control registers.
    buffers : Buffers
        Device buffers by name.
    pending : PendingCall or None
        The call that `begin` launched and that nobody has waited for yet.
    pace : tuple
        Shape of the last timed call, and its seconds per step.
    """

    describe_timeout_s = 10.0

    def __init__(self, description: dict[str, Any]) -> None:
        super().__init__(description=description)
        self.timeout_s = 60.0
        # An .xclbin names the protocol; in a .hwh, only ap_ctrl_chain lists the AP_CONTINUE bit.
        chained = description.get(
            "hw_control_protocol"
        ) == "ap_ctrl_chain" or "AP_CONTINUE" in self._registers["CTRL"].get("fields", {})
        self.handshake = Handshake(self, self._registers, chained)
        self.buffers = Buffers(self.device, self._registers, self.handshake.write)
        self._network_errors: tuple[type[Exception], ...] = ()
        if self.device.has_capability("REMOTE"):
            import grpc

            self._network_errors = (grpc.RpcError,)
        self._lock = threading.RLock()
        # Numbers of generations. Each is used once, whichever threads draw them: a number that came
        # back would make what was taken under it valid again.
        self._numbers = itertools.count(1)
        self._generation = 0
        self._limits: KernelLimits | None = None
        self._calls: CallBuffers | None = None
        self._model: ModelMemory | None = None
        self._last_slots, self._last_kv_bits = 0, 32  # of the model before a reset
        self._lost: LoadedModel | None = None  # a model that a reset has yet to bring back
        self._download: Callable[[], None] | None = None  # begun, and not known to have ended
        self._running = False  # a call was launched and not seen to end
        self.pending: PendingCall | None = None
        self._hung = False
        self._closed = False
        self._last_seconds = 0.0
        self._known_stops: tuple[Sequence[int], ModelConfig | None] = (), None  # checked before
        self.pace: tuple[tuple[int, ...], float] = (), 0.0

    # ---- the kernel ------------------------------------------------------------------

    @property
    def limits(self) -> KernelLimits:
        """The kernel's self-description.

        Raises
        ------
        OverlayMismatch
            If the kernel is not llama_pynq's, or has another ABI version.
        """
        self._check_open()
        limits = self._limits
        if limits is not None and self._model is not None:
            return limits
        with self._lock:
            self._check_open()
            if self._download is not None:
                self._program(self._download)
            self._check_idle()
            if self._limits is None or self._model is None:
                limits = self._describe()
                calls = CallBuffers(self.buffers, limits)
                model = ModelMemory(self.buffers, self.device, limits)
                self._calls, self._model, self._limits = calls, model, limits
            return self._limits

    def _check_open(self) -> None:
        if self._closed:
            raise RequestError("the overlay is closed: open it again, LlamaOverlay()")

    @property
    def running(self) -> bool:
        """Whether a call of the kernel is under way.

        A call that nobody waits for counts as under way for as long as the last one of its shape
        took.
        """
        call = self.pending
        if call is not None and call.shape == self.pace[0]:
            return time.perf_counter() < call.launched + call.n_steps * self.pace[1]
        return self._running

    @property
    def generation(self) -> int:
        """A counter that changes whenever the KV cache's content is lost."""
        return self._generation

    @_over_network
    def _describe(self) -> KernelLimits:
        """Allocate a placeholder for every buffer, and ask the kernel for its limits."""
        # A Zynq register map lists a pointer as two registers, name_1 and name_2.
        suffix = "_1" if "request_1" in self._registers else ""

        def ports(prefix: str) -> int:
            return sum(f"{prefix}_{i}{suffix}" in self._registers for i in range(_MAX_PORTS))

        channels, kv_ports = ports("weights"), ports("kv_read")
        buffers = self.buffers
        buffers.arguments = arguments(channels, kv_ports)
        buffers.replace_by_placeholders(
            *dict.fromkeys(a.buffer for a in buffers.arguments if a.is_pointer)
        )
        results = buffers["results"]
        results[:] = 0
        results.sync_to_device()
        self._running = True
        self.handshake.start(abi.COMMAND_DESCRIBE)
        try:
            # To its end even if a reset waits: the call takes microseconds, or its short deadline.
            self._wait(min(self.timeout_s, self.describe_timeout_s), None)
        except KernelTimeout as error:
            raise KernelTimeout(
                f"{self.device.name}: the kernel did not answer its first call within "
                f"{self.describe_timeout_s:g} s: CTRL reads "
                f"{self.handshake.read(CONTROL_OFFSET):#x}. Is the fabric's clock running, was "
                "the overlay built for this board, and are its memory ports connected? "
                "docs/boards.md, 'When it does not work'"
            ) from error
        self._running = False
        results.sync_from_device()
        words = np.array(results, np.uint32)
        if words[abi.STATUS_MAGIC] != abi.MAGIC:
            raise OverlayMismatch(
                "the IP named 'llama' is not llama_pynq's kernel: its description begins with "
                f"{words[0]:#010x}, not {abi.MAGIC:#010x}. Load an overlay of this package"
            )
        if words[abi.STATUS_ABI] != abi.ABI_VERSION:
            raise OverlayMismatch(
                f"the overlay speaks version {words[abi.STATUS_ABI]} of the kernel's "
                f"contract, this driver version {abi.ABI_VERSION}. Install the overlay and "
                "the package of one release"
            )
        limits = KernelLimits.from_words(words)
        if (limits.channels, limits.kv_ports) != (channels, kv_ports):
            raise OverlayMismatch(
                f"the kernel has {limits.channels} weight channels and {limits.kv_ports} KV cache "
                f"ports, the overlay's metadata lists {channels} and {kv_ports}. The two come "
                "from different builds: rebuild the overlay"
            )
        # An emulated board runs the host's kernel, and holds it to the board's limits.
        board = getattr(self.device, "limits", None)
        return limits if board is None else limits.within(board)

    def banks(self) -> dict[str, str | None]:
        """Memory bank of each buffer, as the overlay's metadata names it; None without banks."""
        return self.buffers.banks()

    # ---- life ------------------------------------------------------------------------

    def close(self) -> None:
        """Close for good: wait for a running call to end, and free every buffer."""
        self._closed = True  # a thread that loads a model ends with its next part
        held = False
        try:
            held = self._lock.acquire(timeout=self.timeout_s)
            if held and self._running and not self._hung:
                self._settle()
        except BaseException as error:  # whatever is wrong with the device, close our side
            self._hung = True
            if not isinstance(error, Exception):
                raise
        finally:
            try:
                if held:
                    self._lost = self._download = None
                    self._drop()
                else:  # another thread uses the buffers
                    self.buffers.outlive()
            finally:
                if held:
                    self._lock.release()

    def _drop(self) -> None:
        """Forget the model, and free the buffers unless a hung kernel may write them."""
        self._generation = next(self._numbers)
        self.pending = None
        self._keep_settings()
        # PYNQ 4 frees a buffer only when nothing refers to it: drop every view.
        self._model = self._limits = self._calls = None
        if self._hung:
            self.buffers.abandon()
        else:
            self.buffers.free()

    def _keep_settings(self) -> None:
        """Keep slots and the cache's format for the properties while there is no model."""
        self._last_slots, self._last_kv_bits = self.slots, self.kv_bits

    @_over_network
    def forget(self, download: Callable[[], None]) -> None:
        """Download the overlay again, which stops a hung kernel, and drop all state.

        A thread that waits for a call gets KernelTimeout.

        Parameters
        ----------
        download : callable
            Programs the device.
        """
        self._check_open()
        self._generation = next(self._numbers)  # a waiting thread leaves before it reads CTRL again
        with self._lock:
            self._check_open()
            self._lost = None
            self._program(download)

    @_over_network
    def reset(self, download: Callable[[], None]) -> None:
        """`forget`, and reload the model that was loaded.

        After Ctrl-C, or an error, inside of it, the next `reset` brings that model back.

        Parameters
        ----------
        download : callable
            Programs the device.
        """
        self._check_open()
        self._generation = next(self._numbers)  # as in `forget`
        with self._lock:
            self._check_open()
            self._lost = self._loaded_model or self._lost
            self._program(download)
            assert self.limits
            if self._lost is not None:
                self._restore(self._lost)

    def _restore(self, model: LoadedModel) -> None:
        """Load a model again that was loaded before a reset."""
        self.load_weights(model.packed, model.slots, model.kv_bits, model.owner)

    def _program(self, download: Callable[[], None]) -> None:
        """Program the device, under the lock; until that has ended, the driver has no kernel."""
        self._keep_settings()
        self._model = self._limits = None  # in this order: see `limits`
        self._download = download
        if self._running and not self._hung:
            # Else the fabric would be programmed with transfers under way.
            with contextlib.suppress(KernelTimeout):
                self._settle()
        # Under the lock: until the download ends, a register read finds no kernel.
        download()
        self._generation = next(self._numbers)
        if self.handshake.runs_on():
            self._hung = True
            raise KernelTimeout(
                f"{self.device.name}: the kernel still runs though its overlay was downloaded "
                "again: XRT does not program a card anew with what the card already holds, "
                "unless xrt.ini says so ([Runtime] force_program_xclbin=true, XRT 2.13). Close "
                "the overlay, reset the card (xbutil reset --device BDF, which ends every "
                "program's use of it), and open the overlay again"
            )
        self._hung = self._running = False
        self._drop()
        self.__dict__.pop("_register_map", None)
        self._download = None

    # ---- calls -----------------------------------------------------------------------

    def exclusive(self) -> contextlib.AbstractContextManager[object]:
        """Hold the device: other threads' calls wait.

        Hold it over a call and `read_logits` or `read_activations`, else another thread's call
        may come between. `run` itself makes sure that no earlier call is under way.
        """
        return self._lock

    @_over_network
    def run(
        self,
        rows: np.ndarray,
        *,
        n_steps: int = 1,
        layers: tuple[int, int] | None = None,
        flags: int = 0,
        stop_tokens: Sequence[int] = (),
        activations: np.ndarray | None = None,
    ) -> CallResult:
        """Run one call of the kernel.

        Parameters
        ----------
        rows : (n,) structured array
            From `abi.make_rows`; 1 to ``limits.max_rows`` rows.
        n_steps : int
            Tokens to generate in the call, 1 to ``limits.max_steps``.
        layers : (int, int), optional
            Layers [begin, end); default all. The classifier runs if `end` is the last.
        flags : RequestFlag
        stop_tokens : sequence of int
            A row that samples one of them stops.
        activations : (n, dim) float32, optional
            Residual stream to start from instead of the embedding.

        Returns
        -------
        CallResult

        Raises
        ------
        RequestError
            If an argument is of another kind, no model is loaded, or the overlay is closed.
        LimitError
            If the kernel takes fewer rows, steps or stop tokens.
        KernelError
            If the kernel refuses the request; the message says why.
        KernelTimeout
            If the call does not finish within `timeout_s`.
        ConnectionLost
            If the board is on the network and does not answer.
        """
        with self._lock:
            call = self._launch(rows, n_steps, layers, flags, stop_tokens, activations)
            return self._outcome(call, at_once=True)

    @_over_network
    def begin(
        self, rows: np.ndarray, *, n_steps: int = 1, stop_tokens: Sequence[int] = ()
    ) -> PendingCall:
        """Launch a call without waiting for it; `finish` returns its result.

        The next call of the kernel first waits for this one and keeps its result for `finish`.
        But `read_logits` reads the logits of the last call.

        Parameters
        ----------
        rows : (n,) structured array
            From `abi.make_rows`; 1 to ``limits.max_rows`` rows.
        n_steps : int
            Tokens to generate in the call, 1 to ``limits.max_steps``.
        stop_tokens : sequence of int
            A row that samples one of them stops.

        Returns
        -------
        PendingCall

        Raises
        ------
        RequestError, LimitError, KernelTimeout, ConnectionLost
            As for `run`.
        """
        with self._lock:
            return self._launch(rows, n_steps, None, 0, stop_tokens, None)

    @_over_network
    def finish(self, call: PendingCall) -> CallResult:
        """Wait for a call that `begin` launched.

        Parameters
        ----------
        call : PendingCall

        Returns
        -------
        CallResult

        Raises
        ------
        KernelTimeout
            If the call does not finish within `timeout_s` from now, or the overlay was reset.
        RequestError
            If the overlay was closed, or Ctrl-C ended the call while another thread waited for it.
        KernelError, ConnectionLost
            As for `run`.
        """
        given.check_is("call", call, PendingCall, "begin() returned")
        with self._lock:
            return self._outcome(call, at_once=False)

    def abandon(self, call: PendingCall) -> None:
        """End a call that `begin` launched, after its current step; its result is dropped.

        Never waits for another thread, as the garbage collector may call it: while one has the
        device, the call goes on to its end, and the next call of the kernel waits for it.

        Parameters
        ----------
        call : PendingCall
        """
        held = False
        try:
            held = self._lock.acquire(blocking=False)
            if held and call is self.pending:
                self.pending = None
                self._interrupted()
        finally:
            if held:
                self._lock.release()

    def _launch(
        self,
        rows: np.ndarray,
        n_steps: int,
        layers: tuple[int, int] | None,
        flags: int,
        stop_tokens: Sequence[int],
        activations: np.ndarray | None,
    ) -> PendingCall:
        # The checks need the lock, too: another thread may load a model or close the overlay.
        self._check_idle()
        config, limits, calls = self._loaded()[1].config, self._limits, self._calls
        assert limits is not None and calls is not None
        # Every call runs the tests here; what they find odd is looked at elsewhere.
        if type(rows) is not np.ndarray or rows.dtype is not ROW_DTYPE or rows.ndim != 1:
            given.check_rows(rows)
        if type(n_steps) is not int:
            n_steps = given.whole_number("n_steps", n_steps)
        if stop_tokens is not self._known_stops[0] or config is not self._known_stops[1]:
            found = given.token_ids(stop_tokens, config.vocab_size)
            self._known_stops = (stop_tokens if type(stop_tokens) is tuple else found), config
            stop_tokens = found
        n = len(rows)
        if self.buffers.unfinished:
            self.buffers.repair()
        if not 1 <= n <= limits.max_rows:
            raise LimitError(f"{n} rows: this kernel takes 1 to {limits.max_rows} in a call")
        if not 1 <= n_steps <= limits.max_steps:
            raise LimitError(f"n_steps {n_steps}: this kernel takes 1 to {limits.max_steps}")
        if len(stop_tokens) > limits.max_stop_tokens:
            raise LimitError(
                f"{len(stop_tokens)} stop tokens: this kernel takes {limits.max_stop_tokens}"
            )
        begin, end = (0, config.n_layers) if layers is None else given.layer_range(layers)
        if type(flags) is not int or flags:
            flags = given.call_flags(flags)
        if activations is not None:
            activations = given.residual_stream(activations, n, config.dim)
            flags |= int(RequestFlag.ACTIVATIONS_IN)
        calls.write_request(rows, n_steps, (begin, end), flags, stop_tokens)
        if activations is not None:
            calls.write_activations(activations)
        if flags & _PROFILE:
            calls.reserve_profile(n_steps)
        self._running = True
        call = PendingCall((n, begin, end, flags), n_steps, self._generation)
        try:
            self.handshake.start(abi.COMMAND_RUN)
        except KeyboardInterrupt:
            self._interrupted()
            raise
        call.launched = time.perf_counter()
        self.pending = call
        return call

    def _outcome(self, call: PendingCall, at_once: bool) -> CallResult:
        if call.outcome is None:
            if call is not self.pending:
                self._check_open()
                raise KernelTimeout(f"{self.device.name}: the overlay was reset during the call")
            self._collect(call, at_once)
        if isinstance(call.outcome, CallResult):
            return call.outcome
        assert call.outcome is not None
        raise call.outcome

    def _collect(self, call: PendingCall, at_once: bool = False) -> None:
        """Wait for the call under way, and keep its outcome; `at_once`: it was just launched."""
        self.pending = None  # first: the garbage collector may close the call's stream meanwhile
        try:
            call.outcome = self._result(call, at_once)
        except Exception as error:
            call.outcome = error
        except KeyboardInterrupt:
            call.outcome = RequestError(f"{self.device.name}: Ctrl-C ended the call")
            self._interrupted()
            raise

    def _result(self, call: PendingCall, at_once: bool) -> CallResult:
        n, _, _, flags = call.shape
        calls = self._calls
        assert calls is not None
        looked = time.perf_counter()
        expected = call.n_steps * self.pace[1] if call.shape == self.pace[0] else 0.0
        if not at_once:
            expected -= looked - call.launched
        first_look = self._wait(self.timeout_s, call.generation, expected)
        ended = time.perf_counter()
        self._running = False
        words = calls.read_results(n, call.n_steps)
        seconds = time.perf_counter() - call.begin
        # If reads of CTRL block, the first one may have found the call still under way.
        late = not at_once and first_look and not self.handshake.read_waited
        status = words[: abi.STATUS_WORDS].tolist()
        check_status(status, self.handshake.sequence, self.device.name)
        steps = status[abi.STATUS_STEPS]
        if not late:
            self._last_seconds = seconds
            self.pace = call.shape, (ended - call.launched) / max(1, steps)
        return CallResult(
            rows=calls.rows(words, n, steps),
            aborted=status[abi.STATUS_STATE] == State.ABORTED,
            elapsed_s=math.nan if late else seconds,
            profile=calls.read_profile(steps) if flags & _PROFILE else [],
        )

    def _wait(self, seconds: float, generation: int | None, expected: float = 0.0) -> bool:
        """`Handshake.wait`, for a call of this generation; None: whatever is reset meanwhile."""

        def check() -> None:
            if generation is not None and self._generation != generation:
                raise KernelTimeout(f"{self.device.name}: the overlay was reset during the call")

        try:
            return self.handshake.wait(seconds, check, expected)
        except DeadlinePassed:
            self._hung = True
            raise KernelTimeout(
                f"{self.device.name}: the kernel did not finish call {self.handshake.sequence} "
                f"within {seconds:g} s. Call reset() on the overlay: it downloads the overlay "
                "again and reloads the model. A longer limit: driver.timeout_s"
            ) from None

    def _settle(self) -> None:
        """End a call that nobody waits for: it stops after its current step."""
        self.pending = None
        if self.handshake.runs_on():
            if self._calls is not None:
                self._calls.ask_to_abort(self.handshake.sequence)
            limit = min(self.timeout_s, max(_SETTLE_S, 10 * self._last_seconds))
            self._wait(limit, self._generation)
        self._running = False

    def _interrupted(self) -> None:
        with contextlib.suppress(KernelTimeout, *self._network_errors):
            self._settle()

    def _check_idle(self) -> None:
        """Wait for the call under way; raise if an earlier one hangs, or there is no kernel."""
        if self._download is not None:
            self._check_open()
            raise RequestError(INTERRUPTED)
        if self.pending is not None:
            self._collect(self.pending)
        if self._hung:
            raise KernelTimeout(
                f"{self.device.name}: an earlier call never finished. Call reset() on the "
                "overlay first"
            )
        if self._running:
            self._settle()

    # ---- reading back ----------------------------------------------------------------

    @_over_network
    def read_logits(self, row: int) -> np.ndarray:
        """Full logits of a row of the last call, (vocab_size,) float32.

        The row must have had `RowFlag.FULL_LOGITS`; see `exclusive`.

        Parameters
        ----------
        row : int
            Index of the row in the call.

        Raises
        ------
        RequestError
            If it is no row of a call, no model is loaded, or the overlay is closed.
        """
        with self._lock:
            model = self._loaded()[0]
            return model.read_logits(given.index("row", row, self.limits.max_rows))

    @_over_network
    def read_activations(self, n_rows: int) -> np.ndarray:
        """Residual stream of the last call, (n_rows, dim) float32.

        The call must have had `RequestFlag.ACTIVATIONS_OUT`; see `exclusive`.

        Parameters
        ----------
        n_rows : int
            Rows of the call.
        """
        with self._lock:
            model = self._loaded()[0]
            return model.read_activations(given.count("n_rows", n_rows, self.limits.max_rows))

    @_over_network
    def read_cache(self, slot: int, positions: int) -> np.ndarray:
        """Keys and values as they lie in the device's memory (``hls_src/cache.h``).

        Parameters
        ----------
        slot : int
        positions : int
            Number of positions to read, from the first.

        Returns
        -------
        (2, n_layers, n_kv_heads, positions, head_size) float32
            For an int8 cache, the integers times their scale.

        Raises
        ------
        RequestError
            If no model is loaded, or the cache has no such slot or position.
        """
        slot = given.whole_number("slot", slot)
        positions = given.whole_number("positions", positions)
        with self._lock:
            self._check_idle()
            return self._loaded()[0].read_cache(slot, positions)

    # ---- weights ---------------------------------------------------------------------

    @property
    def _loaded_model(self) -> LoadedModel | None:
        model = self._model
        return None if model is None else model.loaded

    def _loaded(self) -> tuple[ModelMemory, LoadedModel]:
        """The model's memory, and the loaded model.

        Raises
        ------
        RequestError
            If no model is loaded, or the overlay is closed.
        """
        model = self._model
        if self._closed or model is None or model.loaded is None:
            raise self._no_model()
        return model, model.loaded

    def _no_model(self) -> RequestError:
        """Why there is no model."""
        self._check_open()
        return RequestError(NO_MODEL if self._lost is None else INTERRUPTED)

    @property
    def config(self) -> ModelConfig | None:
        """Shape of the loaded weights; None before."""
        model = self._loaded_model
        return None if model is None else model.config

    @property
    def packed(self) -> PackedModel | None:
        """The packed model whose weights are loaded; None before."""
        model = self._model
        loaded = None if model is None else model.loaded
        return None if loaded is None else loaded.packed

    @property
    def owner(self) -> object:
        """Owner of the loaded weights, as the caller of `load_weights` named it; None before."""
        model = self._loaded_model
        return None if model is None else model.owner

    @property
    def kv_bits(self) -> int:
        """Bits of the KV cache's values: 32 for float32, or 8. A reset keeps the number."""
        model = self._loaded_model
        return self._last_kv_bits if model is None else model.kv_bits

    @property
    def kv_format(self) -> str:
        """Format of the KV cache's values in words: float32 or int8."""
        bits = self.kv_bits
        return "float32" if bits == 32 else f"int{bits}"

    @property
    def slots(self) -> int:
        """Sequences that the KV cache holds; after a reset, that it held before."""
        model = self._loaded_model
        return self._last_slots if model is None else model.slots

    @_over_network
    def load_weights(
        self, packed: PackedModel, slots: int, kv_bits: int = 32, owner: object = None
    ) -> None:
        """Upload a packed model and make room for sequences.

        Parameters
        ----------
        packed : PackedModel
        slots : int
            Sequences that the KV cache is to hold.
        kv_bits : {32, 8}
            Format of the KV cache: float32, or int8 with a scale for each key and value.
        owner : object, optional
            Whose weights they are: `owner`, as long as they are loaded.

        Raises
        ------
        LimitError
            If the model exceeds the kernel's limits or was packed for another board.
        DeviceMemoryError
            If the device's memory is full; no model is loaded then.
        CheckpointError
            If the packed file is damaged; no model is loaded then.
        RequestError
            If the overlay is closed, even during the upload.
        """
        slots, kv_bits = given.check_model(packed, slots, kv_bits)
        with self._lock:
            check_fits(packed, self.limits)
            self._check_idle()
            self._generation = next(self._numbers)
            assert self._model is not None
            self._model.load(packed, slots, kv_bits, owner, self._check_open)
            self._lost = None

    @_over_network
    def resize_cache(self, slots: int) -> None:
        """Resize the KV cache; its content is lost.

        Parameters
        ----------
        slots : int
            Sequences that the cache is to hold.

        Raises
        ------
        DeviceMemoryError
            If there is no room; the cache then has its old size again.
        """
        slots = given.check_slots(slots)
        with self._lock:
            model, _ = self._loaded()
            self._check_idle()
            self._generation = next(self._numbers)
            model.resize_cache(slots)
