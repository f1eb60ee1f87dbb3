"""The driver of the kernel: one call at a time, each with a deadline.

It uses only PYNQ's interface, so it is the same on Zynq, on Alveo and on the emulated device. It
writes arguments to the registers that the overlay's metadata lists, and checks the kernel's own
description. `driver.LlamaDriver` adds the binding by PYNQ, and the methods that take and give text.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from llama_pynq.device import arguments as given
from llama_pynq.device.calls import PROFILE, CallResult, PendingCall
from llama_pynq.device.driver_state import DriverState
from llama_pynq.device.model_memory import LoadedModel, check_fits
from llama_pynq.device.network import over_network
from llama_pynq.errors import (
    KernelTimeout,
    LimitError,
)
from llama_pynq.kernel import abi
from llama_pynq.kernel.abi import ROW_DTYPE, RequestFlag
from llama_pynq.weights.packed import PackedModel


class KernelDriver(DriverState):
    """Driver of the ``llama`` IP: its calls, what they leave in memory, and the weights.

    Parameters
    ----------
    description : dict
        PYNQ's description of the IP.
    """

    # ---- calls -----------------------------------------------------------------------

    @over_network
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

    @over_network
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

    @over_network
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
        if flags & PROFILE:
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

    # ---- reading back ----------------------------------------------------------------

    @over_network
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

    @over_network
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

    @over_network
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

    @over_network
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

    @over_network
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

    def _restore(self, model: LoadedModel) -> None:
        """Load a model again that was loaded before a reset."""
        self.load_weights(model.packed, model.slots, model.kv_bits, model.owner)
