"""One call of the kernel: its request, its status, its results and its profile."""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from llama_pynq.device.buffers import Buffers
from llama_pynq.errors import KernelError
from llama_pynq.kernel import abi
from llama_pynq.kernel.limits import KernelLimits

_REQUEST_HEAD, _WORD = struct.Struct("<6i"), struct.Struct("<i")
PROFILE = int(abi.RequestFlag.PROFILE)  # an enum's & takes as long as a register access
_ABORT_WORDS = slice(abi.REQUEST_ABORT, abi.REQUEST_ABORT + 16)

EVENT_DTYPE = np.dtype([("stage", "u1"), ("layer", "i4"), ("begin", "u4"), ("end", "u4")])
"""One stage of a profiled step; times in ticks since the step began."""


class CallResult(NamedTuple):
    """Result of one call of the kernel.

    Attributes
    ----------
    rows : (steps, n_rows) structured array
        `abi.result_dtype`: token, lse, top logits, ... of each step done.
    aborted : bool
        The call ended early because the host asked for it.
    elapsed_s : float
        Host time from AP_START to the status word; NaN if the call had ended before the host
        looked (`KernelDriver.finish`).
    profile : list of structured array
        `EVENT_DTYPE` events of each step; empty unless requested.
    """

    rows: np.ndarray
    aborted: bool
    elapsed_s: float
    profile: list[np.ndarray]


class PendingCall:
    """A launched call of the kernel, and its outcome once the driver has waited for it.

    Parameters
    ----------
    shape : tuple of int
        Rows, first layer, end of the layers (exclusive), flags.
    n_steps : int
    generation : int
        The driver's generation when the call was launched.

    Attributes
    ----------
    begin, launched : float
        `time.perf_counter` before and after the registers were written, in seconds.
    outcome : CallResult, Exception or None
        None until the call was waited for.
    """

    def __init__(self, shape: tuple[int, ...], n_steps: int, generation: int) -> None:
        self.shape, self.n_steps, self.generation = shape, n_steps, generation
        self.begin = self.launched = time.perf_counter()
        self.outcome: CallResult | Exception | None = None


class CallBuffers:
    """The buffers of a call: request, results, activations and profile.

    Parameters
    ----------
    buffers : Buffers
        Holds the call's buffers, which are allocated here.
    limits : KernelLimits
        Limits of the kernel; they determine the buffers' sizes.
    """

    def __init__(self, buffers: Buffers, limits: KernelLimits) -> None:
        self._buffers, self._limits = buffers, limits
        buffers.replace("request", limits.request_words, np.uint32)
        buffers.replace("results", limits.results_words, np.uint32)
        buffers.replace("activations", limits.max_rows * limits.max_dim, np.float32)
        request = np.asarray(buffers["request"]).view(np.ndarray)
        request[:] = 0
        # struct writes a few words in a fraction of the time that NumPy takes.
        self._request = request.data.cast("B")
        # Slicing a PYNQ buffer takes longer than copying these few hundred bytes. The last slice is
        # kept, as most calls have the same size.
        self._results = buffers.prefix("results", limits.results_words)
        self._dtype = limits.result_dtype

    # ---- request ---------------------------------------------------------------------

    def write_request(
        self,
        rows: np.ndarray,
        n_steps: int,
        layers: tuple[int, int],
        flags: int,
        stop_tokens: Sequence[int],
    ) -> None:
        """Write a request and copy it to the device; arguments as for `KernelDriver.run`."""
        request, data = self._request, rows.tobytes()
        _REQUEST_HEAD.pack_into(request, 0, len(rows), n_steps, *layers, flags, len(stop_tokens))
        _WORD.pack_into(request, 4 * abi.REQUEST_ABORT, 0)
        for i, token in enumerate(stop_tokens, abi.REQUEST_STOP_LIST):
            _WORD.pack_into(request, 4 * i, token)
        request[4 * abi.REQUEST_ROW_BASE :][: len(data)] = data
        self._buffers["request"].sync_to_device()

    def write_activations(self, activations: np.ndarray) -> None:
        """Copy a residual stream, (n_rows, dim) float32, to the device."""
        buffer = self._buffers["activations"]
        buffer[: activations.size] = np.asarray(activations, np.float32).reshape(-1)
        self._buffers.send("activations", slice(activations.size))

    def ask_to_abort(self, sequence: int) -> None:
        """Ask the kernel to end the call of this sequence number after its current step."""
        _WORD.pack_into(self._request, 4 * abi.REQUEST_ABORT, sequence)
        self._buffers.send("request", _ABORT_WORDS)

    # ---- results ---------------------------------------------------------------------

    def read_results(self, n_rows: int, n_steps: int) -> np.ndarray:
        """Copy status and results of a call from the device; a host view, 32-bit words."""
        n = abi.STATUS_WORDS + n_steps * n_rows * self._dtype.itemsize // 4
        part, words = self._results
        if len(words) != n:
            self._results = part, words = self._buffers.prefix("results", n)
        part.sync_from_device()
        return words

    def rows(self, words: np.ndarray, n_rows: int, steps: int) -> np.ndarray:
        """Extract the (steps, n_rows) results from the words of `read_results`; a copy."""
        n = steps * n_rows * self._dtype.itemsize // 4
        done = words[abi.STATUS_WORDS : abi.STATUS_WORDS + n].copy()
        return done.view(self._dtype).reshape(steps, n_rows)

    def reserve_profile(self, n_steps: int) -> None:
        """Make room for the profile of a call of `n_steps` steps."""
        words = self._limits.profile_step_words * n_steps
        if self._buffers["profile"].size < words:
            self._buffers.replace("profile", words, np.uint32)

    def read_profile(self, steps: int) -> list[np.ndarray]:
        """`EVENT_DTYPE` events of each step."""
        stride = self._limits.profile_step_words
        words = self._buffers.fetch("profile", slice(stride * steps))
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


def check_status(status: Sequence[int], sequence: int, device: str) -> None:
    """Raise if a status belongs to another call, or if the kernel refused the request.

    Parameters
    ----------
    status : sequence of int
        The first ``abi.STATUS_WORDS`` words of the results.
    sequence : int
        Sequence number of the call.
    device : str
        Name of the device, for messages.

    Raises
    ------
    KernelError
    """
    if status[abi.STATUS_SEQUENCE] != sequence:
        raise KernelError(
            f"{device}: the kernel reports call "
            f"{status[abi.STATUS_SEQUENCE]} instead of {sequence}: it never wrote "
            "its status, or another program, or another computer, uses the device. See that "
            "none does, and call reset() on the overlay"
        )
    if status[abi.STATUS_STATE] == abi.State.ERROR:
        code, detail = status[abi.STATUS_ERROR], status[abi.STATUS_DETAIL]
        text = abi.ERRORS.get(code, "unknown error {detail}").format(detail=detail)
        raise KernelError(f"{device}: the kernel refused the call: {text}")
