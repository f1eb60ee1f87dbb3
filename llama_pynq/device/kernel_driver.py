"""The driver of the accelerator: registers, buffers, and calls.

PYNQ binds it by VLNV to the IP named ``llama`` of any overlay, on Zynq, Alveo or the
emulated device. It writes arguments where the overlay's metadata says, checks what the
kernel says of itself, and waits with a deadline.

On every device it writes the registers itself, on Alveo too: XRT's scheduler sleeps while it is
given no command (xrt_cu.c), and its own start copies every argument at each call and, in PYNQ,
waits without a limit. So nothing here may be mixed with `start_ert`. Not yet seen on a card or a
board.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import numpy as np
import pynq
from pynq import DefaultIP

from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.energy import EnergyMeter
from llama_pynq.errors import (
    ConnectionLost,
    DeviceMemoryError,
    KernelError,
    KernelTimeout,
    LimitError,
    OverlayMismatch,
    RequestError,
)
from llama_pynq.kernel import abi, kv_cache
from llama_pynq.kernel.abi import RequestFlag, State
from llama_pynq.kernel.config import Target
from llama_pynq.kernel.limits import KernelLimits, check_limits
from llama_pynq.kernel.registers import (
    AP_CONTINUE,
    AP_DONE,
    AP_IDLE,
    AP_START,
    CONTROL_OFFSET,
    VLNVS,
    Argument,
    arguments,
)
from llama_pynq.kernel.stages import rope_turns
from llama_pynq.weights.packed import PackedModel

if TYPE_CHECKING:
    from llama_pynq.engine.llama import Generation, Llama, StreamToken

_P = ParamSpec("_P")
_R = TypeVar("_R")

_REQUEST_HEAD, _WORD = struct.Struct("<6i"), struct.Struct("<i")
_ABORT_WORDS = slice(abi.REQUEST_ABORT, abi.REQUEST_ABORT + 16)
_SPIN_S = 0.002
_SLEEP_S = 0.0005
_EXPECTED_PART = 0.9  # of what the steps of the last call took, if the next one's are like them
_REMOTE_PAUSE = 0.1  # of the time waited so far, between two questions over a network
_PROFILE = int(RequestFlag.PROFILE)  # as an enum, & takes as long as a register access
_DESCRIBE_S = 10.0  # for the first call, which takes microseconds
_SETTLE_S = 2.0  # how long an interrupted call may take to end its step
_PLACEHOLDER_WORDS = 1024
_MAX_PORTS = 64

# Buffers that a hung kernel may still write: never given back.
_abandoned: list[Any] = []

EVENT_DTYPE = np.dtype([("stage", "u1"), ("layer", "i4"), ("begin", "u4"), ("end", "u4")])
"""One stage of a profiled step; times in ticks since the step began."""


class CallResult(NamedTuple):
    """What one call of the kernel returned.

    Attributes
    ----------
    rows : (steps, n_rows) structured array
        `abi.result_dtype`: token, lse, top logits, ... of each step done.
    aborted : bool
        The call ended early because it was told to.
    elapsed_s : float
        Host time from AP_START to the status word; NaN if the call had ended before anybody
        looked (`LlamaDriver.finish`).
    profile : list of structured array
        `EVENT_DTYPE` events of each step; empty unless asked for.
    """

    rows: np.ndarray
    aborted: bool
    elapsed_s: float
    profile: list[np.ndarray]


class PendingCall:
    """A call that `LlamaDriver.begin` launched; its outcome, once somebody has waited for it.

    Attributes
    ----------
    shape : tuple of int
        Rows, first layer, end of the layers, flags.
    n_steps : int
    generation : int
        The driver's, when the call was launched.
    begin, launched : float
        `time.perf_counter` before the registers were written, and after: seconds.
    outcome : CallResult, Exception or None
        None until somebody has waited.
    """

    def __init__(self, shape: tuple[int, ...], n_steps: int, generation: int) -> None:
        self.shape, self.n_steps, self.generation = shape, n_steps, generation
        self.begin = self.launched = time.perf_counter()
        self.outcome: CallResult | Exception | None = None


def _free(buffer: Any) -> None:
    buffer.freebuffer()
    # Else PYNQ's destructor frees it once more, through munmap and XRT.
    buffer.freed = True


def _over_network(
    method: Callable[Concatenate[LlamaDriver, _P], _R],
) -> Callable[Concatenate[LlamaDriver, _P], _R]:
    """Say it in our words if a board on the network does not answer."""

    @functools.wraps(method)
    def wrapped(self: LlamaDriver, *args: _P.args, **kwargs: _P.kwargs) -> _R:
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


class LlamaDriver(DefaultIP):
    """Driver of the ``llama`` IP.

    Attributes
    ----------
    timeout_s : float
        How long a call may take before it counts as hung.
    """

    bindto = list(VLNVS)

    def __init__(self, description: dict[str, Any]) -> None:
        super().__init__(description=description)
        self.timeout_s = 60.0
        self._lock = threading.RLock()
        self._generation = 0
        self._sequence = int.from_bytes(os.urandom(3), "little")
        # An .xclbin names the protocol; a .hwh lists the bit that only one of them has.
        self._chained = description.get(
            "hw_control_protocol"
        ) == "ap_ctrl_chain" or "AP_CONTINUE" in self._registers["CTRL"].get("fields", {})
        # PYNQ reaches registers that are not mapped through an array class written in Python, which
        # takes several times as long as the access.
        self._direct = self.device.has_capability("REGISTER_RW") and not (
            self.device.has_capability("MEMORY_MAPPED")
        )
        # The emulated device's reads of CTRL wait themselves.
        self._sleeps = not hasattr(self.device, "read_waited")
        # Over a network a register costs a round trip, and buffers are moved whole: PYNQ.remote
        # would write a slice's bytes at the start of its buffer.
        self._remote = self.device.has_capability("REMOTE")
        self._network_errors: tuple[type[Exception], ...] = ()
        if self._remote:
            import grpc

            self._network_errors = (grpc.RpcError,)
        self._limits: KernelLimits | None = None
        self._buffers: dict[str, Any] = {}
        self._config: ModelConfig | None = None
        self._slots = 0
        self._kv_bits = 32
        self._packed: PackedModel | None = None
        self._llama: Llama | None = None
        self._running = False  # a call was launched and not seen to end
        self._pending: PendingCall | None = None  # the same, of a caller who comes back for it
        self._hung = False
        self._closed = False
        self._last_seconds = 0.0
        self._pace: tuple[tuple[int, ...], float] = (), 0.0  # shape of the last call, s a step

    # ---- what the kernel is ----------------------------------------------------------

    @property
    def limits(self) -> KernelLimits:
        """The kernel's self-description.

        Raises
        ------
        OverlayMismatch
            If the kernel is not ours or speaks another version of the contract.
        """
        self._check_open()
        if self._limits is None:
            with self._lock:
                self._check_idle()
                limits = self._limits or self._describe()
                self._prepare(limits)
                self._limits = limits
        return self._limits

    def _check_open(self) -> None:
        if self._closed:
            raise RequestError("the overlay is closed: open it again, LlamaOverlay()")

    @property
    def running(self) -> bool:
        """Whether a call of the kernel is under way.

        Of a call that nobody waits for: as long as the last one like it lets expect.
        """
        call = self._pending
        if call is not None and call.shape == self._pace[0]:
            return time.perf_counter() < call.launched + call.n_steps * self._pace[1]
        return self._running

    @property
    def generation(self) -> int:
        """Changes whenever what the KV cache held is lost."""
        return self._generation

    @_over_network
    def _describe(self) -> KernelLimits:
        # A Zynq register map lists a pointer as two registers, name_1 and name_2.
        split = "request_1" in self._registers
        suffix = "_1" if split else ""

        def ports(prefix: str) -> int:
            return sum(f"{prefix}_{i}{suffix}" in self._registers for i in range(_MAX_PORTS))

        channels = ports("weights")
        self._arguments = arguments(channels, ports("kv_read"))
        for name in dict.fromkeys(a.buffer for a in self._arguments if a.is_pointer):
            self._replace(name, _PLACEHOLDER_WORDS, np.uint32)
        results = self._buffers["results"]
        results[:] = 0
        results.sync_to_device()
        generation = self._generation
        self._launch(abi.COMMAND_DESCRIBE)
        try:
            self._wait(min(self.timeout_s, _DESCRIBE_S), generation)
        except KernelTimeout as error:
            raise KernelTimeout(
                f"{self.device.name}: the kernel did not answer its first call within "
                f"{_DESCRIBE_S:g} s: CTRL reads {self._read_register(CONTROL_OFFSET):#x}. Is the "
                "fabric's clock running, was the overlay built for this board, and are its memory "
                "ports connected? docs/boards.md, 'When it does not work'"
            ) from error
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
        listed = (channels, ports("kv_read"))
        if (limits.channels, limits.kv_ports) != listed:
            raise OverlayMismatch(
                f"the kernel has {limits.channels} weight channels and {limits.kv_ports} KV cache "
                f"ports, the overlay's metadata lists {listed[0]} and {listed[1]}. The two come "
                "from different builds: rebuild the overlay"
            )
        # An emulated board runs the host's kernel, and holds it to the board's limits.
        board = getattr(self.device, "limits", None)
        return limits if board is None else limits.within(board)

    def _prepare(self, limits: KernelLimits) -> None:
        """Buffers whose size follows from the limits."""
        self._replace("request", limits.request_words, np.uint32)
        self._replace("results", limits.results_words, np.uint32)
        self._replace("activations", limits.max_rows * limits.max_dim, np.float32)
        self._replace("model", limits.model_words, np.uint32)
        self._request = np.asarray(self._buffers["request"]).view(np.ndarray)
        self._request[:] = 0
        # struct writes a few words in a fraction of the time that NumPy takes.
        self._request_bytes = self._request.data.cast("B")
        results = self._buffers["results"]
        self._results_part = results, np.asarray(results).view(np.ndarray)
        self._result_dtype = limits.result_dtype

    # ---- buffers and registers -------------------------------------------------------

    def _pointers(self, buffer: str) -> list[Argument]:
        """Arguments that point at a buffer."""
        return [a for a in self._arguments if a.is_pointer and a.buffer == buffer]

    def banks(self) -> dict[str, str | None]:
        """Memory bank of each buffer, as the overlay's metadata names it; None without banks."""
        return {
            argument.buffer: (self._registers.get(argument.name) or {}).get("memory")
            for argument in self._arguments
            if argument.is_pointer
        }

    def _allocate(self, name: str, n: int, dtype: Any) -> Any:
        argument = self._pointers(name)[0].name
        register = self._registers.get(argument) or self._registers.get(f"{argument}_1")
        if register is None:
            raise OverlayMismatch(
                f"the overlay's metadata has no register {argument!r}: it is not an overlay of "
                "this package, or of another version"
            )
        bank = register.get("memory")
        target = self.device.get_memory_by_name(bank) if bank else self.device
        size = f"{n * np.dtype(dtype).itemsize / 2**20:.1f} MiB"
        what = f"of bank {bank}" if bank else "of contiguous memory"
        more = "" if bank else ", or enlarge the board's contiguous memory (cma= on Zynq)"
        try:
            buffer = pynq.allocate((n,), dtype, target=target)
            if self._remote and not buffer.buffer_id:  # PYNQ.remote's way to say it
                buffer.freed = True
                raise MemoryError(
                    "the board did not allocate it; what a lost connection left there goes when "
                    "the board is restarted"
                )
            return buffer
        except DeviceMemoryError:
            raise
        except (MemoryError, RuntimeError, OSError) as error:
            raise DeviceMemoryError(
                f"{self.device.name}: no room for {size} {what} for {name!r} ({error}). Close "
                f"other overlays and buffers, use a smaller model or fewer slots{more}"
            ) from error

    def _write_pointer(self, argument: Argument) -> None:
        address = int(self._buffers[argument.buffer].device_address)
        whole = self._registers.get(argument.name)
        if whole is not None:
            low = whole["address_offset"]
            high = low + 4
        else:
            low = self._registers[f"{argument.name}_1"]["address_offset"]
            high = self._registers[f"{argument.name}_2"]["address_offset"]
        self.write(low, address & 0xFFFFFFFF)
        self.write(high, address >> 32)

    def _replace(self, name: str, n: int, dtype: Any) -> Any:
        """A new buffer; the old one goes first, to make room."""
        if name in self._buffers:
            # Nothing may refer to it any longer: pyxrt frees what nobody holds.
            _free(self._buffers.pop(name))
        try:
            self._buffers[name] = self._allocate(name, n, dtype)
        finally:
            if name not in self._buffers:
                # After an error or Ctrl-C, too, the arguments point at memory of ours.
                self._buffers[name] = self._allocate(name, _PLACEHOLDER_WORDS, np.uint32)
            for argument in self._pointers(name):
                self._write_pointer(argument)
        return self._buffers[name]

    def close(self) -> None:
        """Free every buffer, once a call that is running has ended; for good."""
        self._closed = True
        if not self._lock.acquire(timeout=self.timeout_s):
            _abandoned.append(self._buffers)
            self._buffers = {}
            return
        try:
            if self._running and not self._hung:
                try:
                    self._settle()
                except Exception:  # whatever is wrong with the device: what is ours is closed
                    self._hung = True
            self._drop()
        finally:
            self._lock.release()

    def _drop(self) -> None:
        """Forget the model, and free the buffers unless a hung kernel may write them."""
        self._generation += 1
        self._pending = None
        self._llama = None
        self._packed = None
        self._config = None
        self._limits = None
        self.__dict__.pop("_results_part", None)  # PYNQ 4 frees what nobody refers to
        if self._hung:
            _abandoned.append(self._buffers)
        else:
            for buffer in self._buffers.values():
                _free(buffer)
        self._buffers = {}

    def forget(self, download: Callable[[], None]) -> None:
        """Reset: download the overlay again, which stops a hung kernel, and drop all state.

        A thread that waits for a call gets KernelTimeout.
        """
        self._check_open()
        self._generation += 1  # a thread that waits leaves with its next question
        with self._lock:
            if self._running and not self._hung:
                # Else the fabric would be programmed with transfers under way.
                with contextlib.suppress(KernelTimeout):
                    self._settle()
            # Under the lock: a register that is read meanwhile has nothing behind it.
            download()
            self._generation += 1
            control = self._read_register(CONTROL_OFFSET)
            if not control & (AP_IDLE | AP_DONE):
                self._hung = True
                raise KernelTimeout(
                    f"{self.device.name}: the kernel still runs though its overlay was downloaded "
                    "again: XRT does not program a card anew with what the card already holds, "
                    "unless xrt.ini says so ([Runtime] force_program_xclbin=true, XRT 2.13). Close "
                    "the overlay, reset the card (xbutil reset --device BDF, which ends every "
                    "program's use of it), and open the overlay again"
                )
            if self._chained and control & AP_DONE:
                self._write_register(CONTROL_OFFSET, AP_CONTINUE)
            self._hung = self._running = False
            self._drop()
            self.__dict__.pop("_register_map", None)

    # ---- calls -----------------------------------------------------------------------

    def _read_register(self, offset: int) -> int:
        if not self._direct:
            return self.read(offset)
        data = self.device.read_registers(self.mmio.base_addr + offset, 4)
        return int.from_bytes(data, "little")

    def _write_register(self, offset: int, value: int) -> None:
        if not self._direct:
            self.write(offset, value)
            return
        self.device.write_registers(self.mmio.base_addr + offset, value.to_bytes(4, "little"))

    def _launch(self, command: int) -> None:
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF or 1
        self._write_register(self._registers["sequence"]["address_offset"], self._sequence)
        self._write_register(self._registers["command"]["address_offset"], command)
        self._write_register(CONTROL_OFFSET, AP_START)

    def _finished(self) -> bool:
        if not self._read_register(CONTROL_OFFSET) & AP_DONE:
            return False
        if self._chained:
            self._write_register(CONTROL_OFFSET, AP_CONTINUE)
        return True

    def _wait(self, seconds: float, generation: int, expected: float = 0.0) -> bool:
        """Wait for AP_DONE: first polling, then, where a read returns at once, sleeping between.

        Over a network most of the `expected` seconds are slept before the first question. Returns
        whether the call had ended before: the first question, asked at once, was answered so.
        """
        start = time.monotonic()
        first = not (self._remote and expected > 0)
        if self._remote:
            time.sleep(_EXPECTED_PART * max(0.0, min(expected, seconds)))
        while not (self._reset_since(generation) or self._finished()):
            first = False
            waited = time.monotonic() - start
            if waited > seconds:
                self._hung = True
                raise KernelTimeout(
                    f"{self.device.name}: the kernel did not finish call {self._sequence} within "
                    f"{seconds:g} s. Call reset() on the overlay: it downloads the overlay again "
                    "and reloads the model. A longer limit: driver.timeout_s"
                )
            if self._remote:
                time.sleep(max(_SLEEP_S, _REMOTE_PAUSE * waited))
            elif self._sleeps and waited > _SPIN_S:
                time.sleep(_SLEEP_S)
        return first

    def _reset_since(self, generation: int) -> bool:
        """False; or the error that a call ends with when the overlay is reset meanwhile."""
        if self._generation != generation:
            raise KernelTimeout(f"{self.device.name}: the overlay was reset during the call")
        return False

    def _settle(self) -> None:
        """End a call that nobody waits for: it stops after its current step."""
        self._pending = None
        control = self._read_register(CONTROL_OFFSET)
        if not control & (AP_IDLE | AP_DONE):
            self._request[abi.REQUEST_ABORT] = self._sequence
            self._send("request", _ABORT_WORDS)
            limit = min(self.timeout_s, max(_SETTLE_S, 10 * self._last_seconds))
            self._wait(limit, self._generation)
        elif self._chained:
            self._write_register(CONTROL_OFFSET, AP_CONTINUE)
        self._running = False

    def exclusive(self) -> contextlib.AbstractContextManager[object]:
        """Hold the device: other threads' calls wait.

        Hold it over a call and `read_logits` or `read_activations`, else another thread's call
        may come between. `run` itself sees to it that no call of before is under way.
        """
        return self._lock

    def _check_idle(self) -> None:
        if self._pending is not None:
            self._collect(self._pending)
        if self._hung:
            raise KernelTimeout(
                f"{self.device.name}: an earlier call never finished. Call reset() on the "
                "overlay first"
            )
        if self._running:
            self._settle()

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
        """One call of the kernel.

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
            If no model is loaded, or the overlay is closed.
        LimitError
            If the kernel has fewer rows, steps or stop tokens.
        KernelError
            If the kernel refuses the request; the text says why.
        KernelTimeout
            If it does not finish within `timeout_s`.
        ConnectionLost
            If the board is on the network and does not answer.
        """
        with self._lock:
            call = self._launch_run(rows, n_steps, layers, flags, stop_tokens, activations)
            return self._outcome(call, at_once=True)

    @_over_network
    def begin(
        self, rows: np.ndarray, *, n_steps: int = 1, stop_tokens: Sequence[int] = ()
    ) -> PendingCall:
        """Begin a call; the host is free for other work until `finish` returns its result.

        Whoever calls the kernel next, waits for this one first and keeps its result for `finish`;
        but what `read_logits` gives is of the last call.

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
            return self._launch_run(rows, n_steps, None, 0, stop_tokens, None)

    @_over_network
    def finish(self, call: PendingCall) -> CallResult:
        """Wait for a call that `begin` launched.

        Raises
        ------
        KernelTimeout
            If it does not finish within `timeout_s` from now, or the overlay was reset.
        RequestError
            If the overlay was closed, or Ctrl-C ended the call while another waited for it.
        KernelError, ConnectionLost
            As for `run`.
        """
        with self._lock:
            return self._outcome(call, at_once=False)

    def abandon(self, call: PendingCall) -> None:
        """End a call that `begin` launched, after its current step; nobody wants its result."""
        with self._lock:
            if call is self._pending:
                self._pending = None
                with contextlib.suppress(KernelTimeout, *self._network_errors):
                    self._settle()

    def _launch_run(
        self,
        rows: np.ndarray,
        n_steps: int,
        layers: tuple[int, int] | None,
        flags: int,
        stop_tokens: Sequence[int],
        activations: np.ndarray | None,
    ) -> PendingCall:
        # Under the lock, the checks, too: another thread may load or close.
        self._check_idle()
        if self._config is None:
            raise RequestError("no model is loaded: call load_model() first")
        limits, n = self.limits, len(rows)
        if not 1 <= n <= limits.max_rows:
            raise LimitError(f"{n} rows: this kernel takes 1 to {limits.max_rows} in a call")
        if not 1 <= n_steps <= limits.max_steps:
            raise LimitError(f"n_steps {n_steps}: this kernel takes 1 to {limits.max_steps}")
        if len(stop_tokens) > limits.max_stop_tokens:
            raise LimitError(
                f"{len(stop_tokens)} stop tokens: this kernel takes {limits.max_stop_tokens}"
            )
        begin, end = layers if layers is not None else (0, self._config.n_layers)
        flags = int(flags)
        if activations is not None:
            flags |= int(RequestFlag.ACTIVATIONS_IN)
        request, data = self._request_bytes, rows.tobytes()
        _REQUEST_HEAD.pack_into(request, 0, n, n_steps, begin, end, flags, len(stop_tokens))
        _WORD.pack_into(request, 4 * abi.REQUEST_ABORT, 0)
        for i, token in enumerate(stop_tokens, abi.REQUEST_STOP_LIST):
            _WORD.pack_into(request, 4 * i, token)
        request[4 * abi.REQUEST_ROW_BASE :][: len(data)] = data
        # All of it: slicing a PYNQ buffer takes longer than copying these few hundred bytes.
        self._buffers["request"].sync_to_device()
        if activations is not None:
            buffer = self._buffers["activations"]
            buffer[: activations.size] = np.asarray(activations, np.float32).reshape(-1)
            self._send("activations", slice(activations.size))
        if flags & _PROFILE:
            self._profile_buffer(n_steps)
        self._running = True
        call = PendingCall((n, begin, end, flags), n_steps, self._generation)
        try:
            self._launch(abi.COMMAND_RUN)
        except KeyboardInterrupt:
            self._interrupted()
            raise
        call.launched = time.perf_counter()
        self._pending = call
        return call

    def _outcome(self, call: PendingCall, at_once: bool) -> CallResult:
        if call.outcome is None:
            if call is not self._pending:
                self._check_open()
                raise KernelTimeout(f"{self.device.name}: the overlay was reset during the call")
            self._collect(call, at_once)
        if isinstance(call.outcome, CallResult):
            return call.outcome
        assert call.outcome is not None
        raise call.outcome

    def _collect(self, call: PendingCall, at_once: bool = False) -> None:
        """Wait for the call under way, and keep what it came to; `at_once`: it has just begun."""
        self._pending = None  # first: the garbage collector may close its stream meanwhile
        try:
            call.outcome = self._result(call, at_once)
        except Exception as error:
            call.outcome = error
        except KeyboardInterrupt:
            call.outcome = RequestError(f"{self.device.name}: Ctrl-C ended the call")
            self._interrupted()
            raise

    def _interrupted(self) -> None:
        with contextlib.suppress(KernelTimeout):
            self._settle()

    def _result(self, call: PendingCall, at_once: bool) -> CallResult:
        n, _, _, flags = call.shape
        looked = time.perf_counter()
        expected = call.n_steps * self._pace[1] if call.shape == self._pace[0] else 0.0
        if not at_once:
            expected -= looked - call.launched
        first_look = self._wait(self.timeout_s, call.generation, expected)
        ended = time.perf_counter()
        self._running = False
        dtype = self._result_dtype
        row_words = n * dtype.itemsize // 4
        words = self._read_results(abi.STATUS_WORDS + call.n_steps * row_words)
        seconds = time.perf_counter() - call.begin
        # Where a read waits, the first look may have found the call under way, and waited for it.
        late = not at_once and first_look and (self._sleeps or not self.device.read_waited)
        status = words[: abi.STATUS_WORDS].tolist()
        self._check_status(status)
        steps = status[abi.STATUS_STEPS]
        if not late:
            self._last_seconds = seconds
            self._pace = call.shape, (ended - call.launched) / max(1, steps)
        done = words[abi.STATUS_WORDS : abi.STATUS_WORDS + steps * row_words].copy()
        return CallResult(
            rows=done.view(dtype).reshape(steps, n),
            aborted=status[abi.STATUS_STATE] == State.ABORTED,
            elapsed_s=math.nan if late else seconds,
            profile=self._read_profile(steps) if flags & _PROFILE else [],
        )

    def _send(self, name: str, part: slice) -> None:
        """Bring part of a buffer to the device."""
        buffer = self._buffers[name]
        (buffer if self._remote else buffer[part]).sync_to_device()

    def _fetch(self, name: str, part: slice) -> np.ndarray:
        """Part of a buffer, as the device has it now."""
        buffer = self._buffers[name]
        (buffer if self._remote else buffer[part]).sync_from_device()
        return np.asarray(buffer[part]).view(np.ndarray)

    def _read_results(self, n: int) -> np.ndarray:
        """The first `n` words of the results, as the device has them now."""
        part, words = self._results_part
        if len(words) != n:
            results = self._buffers["results"]
            part = results if self._remote else results[:n]
            words = np.asarray(part).view(np.ndarray)[:n]
            # Kept: most calls are of the last one's size, and slicing takes longer than copying.
            self._results_part = part, words
        part.sync_from_device()
        return words

    def _check_status(self, status: Sequence[int]) -> None:
        if status[abi.STATUS_SEQUENCE] != self._sequence:
            raise KernelError(
                f"{self.device.name}: the kernel reports call "
                f"{status[abi.STATUS_SEQUENCE]} instead of {self._sequence}: it never wrote "
                "its status, or another program, or another computer, uses the device. See that "
                "none does, and call reset() on the overlay"
            )
        if status[abi.STATUS_STATE] == State.ERROR:
            code, detail = status[abi.STATUS_ERROR], status[abi.STATUS_DETAIL]
            text = abi.ERRORS.get(code, "unknown error {detail}").format(detail=detail)
            raise KernelError(f"{self.device.name}: the kernel refused the call: {text}")

    def _profile_buffer(self, n_steps: int) -> None:
        words = self.limits.profile_step_words * n_steps
        if self._buffers["profile"].size < words:
            self._replace("profile", words, np.uint32)

    def _read_profile(self, steps: int) -> list[np.ndarray]:
        stride = self.limits.profile_step_words
        words = self._fetch("profile", slice(stride * steps))
        profile = []
        for step in range(steps):
            record = words[step * stride : (step + 1) * stride]
            count = int(record[0])
            marks = record[2 : 2 + 2 * count].reshape(count, 2)
            events = np.zeros(max(count - 1, 0), EVENT_DTYPE)
            events["stage"] = marks[:-1, 0] & 0xFF
            events["layer"] = marks[:-1, 0] >> 8
            events["begin"], events["end"] = marks[:-1, 1], marks[1:, 1]
            profile.append(events)
        return profile

    @_over_network
    def read_logits(self, row: int) -> np.ndarray:
        """Full logits of a row of the last call, (vocab_size,) float32.

        The row must have had `RowFlag.FULL_LOGITS`; see `exclusive`.
        """
        assert self._config is not None
        size = self._config.vocab_size
        return self._fetch("logits", slice(row * size, (row + 1) * size)).astype(np.float32)

    @_over_network
    def read_activations(self, n_rows: int) -> np.ndarray:
        """Residual stream of the last call, (n_rows, dim) float32.

        The call must have had `RequestFlag.ACTIVATIONS_OUT`; see `exclusive`.
        """
        assert self._config is not None
        part = self._fetch("activations", slice(n_rows * self._config.dim))
        return part.astype(np.float32).reshape(n_rows, self._config.dim)

    @_over_network
    def read_cache(self, slot: int, positions: int) -> np.ndarray:
        """Keys and values as they lie in the device's memory (``hls_src/cache.h``).

        Parameters
        ----------
        slot : int
        positions : int
            How many, from the first.

        Returns
        -------
        (2, n_layers, n_kv_heads, positions, head_size) float32
            Of an int8 cache, integers times their scale.
        """
        with self._lock:
            self._check_idle()
        c, limits = self._config, self.limits
        if c is None:
            raise RequestError("no model is loaded: call load_model() first")
        if not (0 <= slot < self._slots and 0 < positions <= c.seq_len):
            raise RequestError(
                f"slot {slot}, {positions} positions: the KV cache has {self._slots} slots of "
                f"{c.seq_len} positions"
            )
        ports, beat = limits.kv_ports, limits.kv_beat_bytes
        share = limits.kv_port_bytes(c, self._kv_bits, 1)
        heads = -(-c.n_kv_heads // ports)
        out = np.empty((2, c.n_layers, c.n_kv_heads, positions, c.head_size), np.float32)
        for port in range(min(ports, c.n_kv_heads)):
            part = self._fetch(f"kv_cache_{port}", slice(slot * share, (slot + 1) * share))
            records = part.reshape(c.n_layers, heads, c.seq_len, -1)
            mine = records[:, : len(range(port, c.n_kv_heads, ports)), :positions]
            out[:, :, port::ports] = kv_cache.read_records(mine, self._kv_bits, beat, c.head_size)
        return out

    # ---- weights ---------------------------------------------------------------------

    @property
    def config(self) -> ModelConfig | None:
        """Shape of the loaded weights; None before."""
        return self._config

    @property
    def packed(self) -> PackedModel | None:
        """The packed model whose weights are loaded; None before."""
        return self._packed

    @property
    def kv_bits(self) -> int:
        """What the KV cache holds: 32, float32, or 8."""
        return self._kv_bits

    @property
    def kv_format(self) -> str:
        """The same in words."""
        return "float32" if self._kv_bits == 32 else f"int{self._kv_bits}"

    @property
    def slots(self) -> int:
        """Sequences that the KV cache holds."""
        return self._slots

    @_over_network
    def load_weights(self, packed: PackedModel, slots: int, kv_bits: int = 32) -> None:
        """Upload a packed model and make room for `slots` sequences.

        Parameters
        ----------
        packed : PackedModel
        slots : int
        kv_bits : {32, 8}
            What the KV cache holds: float32, or int8 with a scale for each key and value.

        Raises
        ------
        LimitError
            If the model exceeds the kernel's limits or was packed for another board.
        DeviceMemoryError
            If the device's memory is full; no model is loaded then.
        CheckpointError
            If the packed file is damaged; no model is loaded then.
        """
        limits = self.limits
        check_limits(packed.config, limits)
        if packed.target != Target.of(limits):
            raise LimitError(
                f"{packed.path} is packed for {packed.target.channels} channels of "
                f"{packed.target.tile_rows}-row tiles; this kernel ({limits.board}) has "
                f"{limits.channels} of {limits.tile_rows}. Pack it for this device: "
                "llama-pynq pack"
            )
        with self._lock:
            self._check_idle()
            self._generation += 1
            self._config = None
            self._packed = None
            self._llama = None
            config = packed.config
            # All of the old model goes before any of the new one comes: memory may hold but one.
            caches = [f"kv_cache_{p}" for p in range(limits.kv_ports)]
            weights = [f"weights_{c}" for c in range(limits.channels)]
            for name in (*caches, "logits", *weights):
                self._replace(name, _PLACEHOLDER_WORDS, np.uint32)
            for channel, size in enumerate(packed.sizes):
                buffer = self._replace(f"weights_{channel}", size, np.uint8)
                self._upload(packed, channel, buffer)
            self._replace("logits", limits.max_rows * config.vocab_size, np.float32)
            self._place_cache(packed, kv_bits, slots)
            self._config = config
            self._packed = packed

    def _upload(self, packed: PackedModel, channel: int, buffer: Any) -> None:
        # The emulated device's host copy is of no use once the weights are on the device. Elsewhere
        # one sync does: PYNQ 4 syncs the whole buffer, whatever the slice.
        release = getattr(self.device, "release_host_pages", None)

        def write(offset: int, part: np.ndarray) -> None:
            there = buffer[offset : offset + len(part)]
            there[:] = part
            if release is not None:
                there.sync_to_device()
                release(there)

        packed.upload(channel, write)
        if release is None:
            buffer.sync_to_device()

    def _place_cache(self, packed: PackedModel, kv_bits: int, slots: int) -> None:
        """Allocate the KV cache for `slots` sequences, and describe the model."""
        config = packed.config
        size = self.limits.kv_port_bytes(config, kv_bits, slots)
        ports = [f"kv_cache_{p}" for p in range(self.limits.kv_ports)]
        for name in ports:  # all of the old cache goes before any of the new one comes
            self._replace(name, _PLACEHOLDER_WORDS, np.uint32)
        for name in ports:
            self._replace(name, size, np.uint8)
        values = {
            "magic": abi.MAGIC,
            "abi": abi.ABI_VERSION,
            "dim": config.dim,
            "hidden_dim": config.hidden_dim,
            "n_layers": config.n_layers,
            "n_heads": config.n_heads,
            "n_kv_heads": config.n_kv_heads,
            "vocab_size": config.vocab_size,
            "seq_len": config.seq_len,
            "group_size": packed.group_size,
            "tied": int(config.tied),
            "rope_theta": int(np.float32(config.rope_theta).view(np.uint32)),
            "slots": slots,
            "weight_bits": packed.weight_bits,
            "kv_bits": kv_bits,
        }
        model = self._buffers["model"]
        model[:] = 0
        model[: len(abi.MODEL_FIELDS)] = [values[name] for name in abi.MODEL_FIELDS]
        table = rope_turns(config.head_size, config.rope_theta).view(np.uint32)
        base = abi.MODEL_ROPE_TABLE
        model[base : base + len(table)] = table
        model.sync_to_device()
        self._slots, self._kv_bits = slots, kv_bits

    @_over_network
    def resize_cache(self, slots: int) -> None:
        """Make room for another number of sequences; what the cache held is lost."""
        if self._config is None or self._packed is None:
            raise RequestError("no model is loaded: call load_model() first")
        with self._lock:
            self._check_idle()
            config, packed, llama = self._config, self._packed, self._llama
            # Valid again only once there is a cache.
            self._config = self._packed = self._llama = None
            self._generation += 1
            try:
                self._place_cache(packed, self._kv_bits, slots)
            except DeviceMemoryError:
                self._place_cache(packed, self._kv_bits, self._slots)
                self._config, self._packed, self._llama = config, packed, llama
                raise
            self._config, self._packed, self._llama = config, packed, llama

    # ---- what users call -------------------------------------------------------------

    def load_model(
        self,
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
        """Load a checkpoint, or the bundled model; see `llama.load`."""
        from llama_pynq.engine.llama import load

        self._llama = load(
            self, path, tokenizer, group_size=group_size, weight_bits=weight_bits,
            kv_bits=kv_bits, slots=slots, rope_theta=rope_theta, power=power,
        )  # fmt: skip
        return self._llama

    def adopt(self, model: Llama) -> None:
        """Upload a model again that was loaded before the overlay was reset."""
        model.upload(max(self._slots, 1))
        self._llama = model

    @property
    def model(self) -> Llama:
        """The loaded model.

        Raises
        ------
        RequestError
            If there is none.
        """
        self._check_open()
        if self._llama is None:
            raise RequestError("no model is loaded: call load_model() first")
        return self._llama

    def generate(
        self, prompt: str | Sequence[str] = "", **kwargs: Any
    ) -> Generation | list[Generation]:
        """See `llama.Llama.generate`."""
        return self.model.generate(prompt, **kwargs)

    def stream(self, prompt: str = "", **kwargs: Any) -> Iterator[str]:
        """See `llama.Llama.stream`."""
        return self.model.stream(prompt, **kwargs)

    def stream_tokens(self, prompt: str = "", **kwargs: Any) -> Iterator[StreamToken]:
        """See `llama.Llama.stream_tokens`."""
        return self.model.stream_tokens(prompt, **kwargs)

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """See `llama.Llama.logits`."""
        return self.model.logits(tokens)
