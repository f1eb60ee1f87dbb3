"""State of the kernel driver: one lock, and what changes under it.

`kernel_driver.KernelDriver` adds the calls.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pynq import DefaultIP

from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.device.buffers import Buffers
from llama_pynq.device.calls import PROFILE, CallBuffers, CallResult, PendingCall, check_status
from llama_pynq.device.handshake import DeadlinePassed, Handshake
from llama_pynq.device.model_memory import NO_MODEL, LoadedModel, ModelMemory
from llama_pynq.device.network import over_network
from llama_pynq.errors import (
    KernelTimeout,
    OverlayMismatch,
    RequestError,
)
from llama_pynq.kernel import abi
from llama_pynq.kernel.abi import State
from llama_pynq.kernel.limits import KernelLimits
from llama_pynq.kernel.registers import CONTROL_OFFSET, arguments
from llama_pynq.weights.packed import PackedModel

INTERRUPTED = (
    "reset() of the overlay did not end: call it again, which brings back the model that was "
    "loaded, or call load_model()"
)

_SETTLE_S = 2.0  # how long an interrupted call may take to end its step
_MAX_PORTS = 64


class DriverState(DefaultIP):
    """Life of the ``llama`` IP's driver: description, loaded model, reset and end.

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
    network_errors : tuple of type
        Exceptions by which a board on the network does not answer; empty for other devices.
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
        self.network_errors: tuple[type[Exception], ...] = ()
        if self.device.has_capability("REMOTE"):
            import grpc

            self.network_errors = (grpc.RpcError,)
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

    @over_network
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

    def exclusive(self) -> contextlib.AbstractContextManager[object]:
        """Hold the device: other threads' calls wait.

        Hold it over a call and `read_logits` or `read_activations`, else another thread's call
        may come between. `run` itself makes sure that no earlier call is under way.
        """
        return self._lock

    # ---- the loaded model ------------------------------------------------------------

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

    def _no_model(self) -> Exception:
        """Why there is no model."""
        self._check_open()
        if self._hung:
            return self._hangs()
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

    @over_network
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

    @over_network
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
        raise NotImplementedError

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

    # ---- waiting for a call ----------------------------------------------------------

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
            profile=calls.read_profile(steps) if flags & PROFILE else [],
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
        with contextlib.suppress(KernelTimeout, *self.network_errors):
            self._settle()

    def _check_idle(self) -> None:
        """Wait for the call under way; raise if an earlier one hangs, or there is no kernel."""
        if self._download is not None:
            self._check_open()
            raise self._hangs() if self._hung else RequestError(INTERRUPTED)
        if self.pending is not None:
            self._collect(self.pending)
        if self._hung:
            raise self._hangs()
        if self._running:
            self._settle()

    def _hangs(self) -> KernelTimeout:
        return KernelTimeout(
            f"{self.device.name}: an earlier call never finished. Call reset() on the overlay first"
        )
