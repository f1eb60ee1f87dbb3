"""Power as a time series with a source, and energy as its integral.

`rails` finds the readable rails of a device. `PowerRecorder` samples them in its own thread, and
its `energy` integrates over any interval. Each figure carries its source, and whether it was
measured or modelled; a figure without a source is not shown. Rails and readings are defined in
``measure/rails.py``, the sources in ``measure/sensors.py``, and the model of emulated boards in
``estimate/power.py``.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import TracebackType
from typing import Any

import numpy as np

from llama_pynq.energy import Energy
from llama_pynq.errors import RequestError
from llama_pynq.measure.rails import Rail, Reading, SensorLost
from llama_pynq.measure.sensors import Rails, rails
from llama_pynq.utils.validate import number

__all__ = ["Phase", "PowerRecorder", "Rail", "Rails", "Reading", "SensorLost", "rails"]


@dataclass(frozen=True)
class Phase:
    """A named interval of a recording.

    Attributes
    ----------
    name : str
    begin, end : float
        Seconds of `time.perf_counter`.
    """

    name: str
    begin: float
    end: float


class PowerRecorder:
    """Sample rails while a ``with`` block runs.

    Parameters
    ----------
    rails : mapping of str to Rail
        From `rails`. If empty, `energy` returns the reason.
    rate_hz : float
        Samples a second; default 10.
    idle_s : float
        Sample this long on entering, with nothing running; the mean is the idle power. Default 0:
        the idle power is unknown.

    Attributes
    ----------
    phases : list of Phase
        Intervals marked by `generate` and others.
    lost : dict of str to str
        Rails without a reading in the last sample, and why.
    last : Energy, str or None
        Energy of the last texts generated with this recorder, or why there is none.

    Examples
    --------
    >>> with PowerRecorder(rails(overlay), idle_s=2) as recorder:
    ...     out = overlay.generate("Once", power=recorder)
    >>> out.energy.joules_per_token
    """

    def __init__(
        self, rails: Mapping[str, Rail], rate_hz: float = 10.0, idle_s: float = 0.0
    ) -> None:
        if not isinstance(rails, Mapping):
            raise RequestError(f"{type(rails).__name__} given for rails: give rails(overlay)")
        if not 0.1 <= number("rate_hz", rate_hz) <= 1000:
            raise RequestError(f"rate_hz is {rate_hz!r}: it must be 0.1 to 1000")
        if not 0 <= number("idle_s", idle_s) <= 600:
            raise RequestError(f"idle_s is {idle_s!r}: it must be 0 to 600 seconds")
        self.rails = dict(rails)
        self._why: Sequence[str] = getattr(rails, "why", ())
        self.rate_hz, self.idle_s = rate_hz, idle_s
        self.phases: list[Phase] = []
        self.lost: dict[str, str] = {}
        self.last: Energy | str | None = None
        self._times: list[float] = []
        self._watts: list[list[float]] = []
        self._idle: float | None = None
        self._lock = threading.Lock()
        self._leave = threading.Event()
        self._thread: threading.Thread | None = None

    # ---- sampling --------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether the recorder is sampling."""
        return self._thread is not None

    def start(self) -> None:
        """Start sampling; `stop` ends it. A ``with`` block does both.

        Raises
        ------
        RequestError
            If the recorder is sampling already.
        """
        if self._thread is not None:
            raise RequestError("this recorder is already running: make another one")
        self._leave.clear()
        self.sample()
        self._thread = threading.Thread(target=self._run, name="power", daemon=True)
        self._thread.start()
        if self.idle_s:
            try:
                self._measure_idle()
            except BaseException:  # Ctrl-C: __exit__ is not called if __enter__ raises
                self.stop()
                raise

    def _measure_idle(self) -> None:
        begin = time.perf_counter()
        time.sleep(self.idle_s)
        self.sample()
        idle = self.energy(begin, time.perf_counter())
        self._idle = idle.mean_watts if isinstance(idle, Energy) else None
        self.mark("idle", begin, time.perf_counter())

    def stop(self) -> None:
        """Stop sampling, and keep the samples. May be called twice."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._leave.set()
            thread.join()
            self.sample()

    def __enter__(self) -> PowerRecorder:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _run(self) -> None:
        due = time.perf_counter()
        while True:
            due = max(due + 1 / self.rate_hz, time.perf_counter())
            if self._leave.wait(max(0.0, due - time.perf_counter())):
                return
            self.sample()

    def sample(self) -> None:
        """Read every rail now, in addition to the thread's samples."""
        with self._lock:
            now, row = time.perf_counter(), []
            for name, rail in self.rails.items():
                try:
                    watts = float(rail.watts())
                    lost = "" if math.isfinite(watts) else f"it reads {watts}"
                except SensorLost as error:
                    lost = str(error)
                except Exception as error:  # of a user's rail: it must not end the recording
                    lost = f"{type(error).__name__}: {error}"
                row.append(math.nan if lost else watts)
                if lost:
                    self.lost[name] = lost
                else:
                    self.lost.pop(name, None)
            self._times.append(now)
            self._watts.append(row)

    # ---- results ---------------------------------------------------------------------

    @property
    def times(self) -> np.ndarray:
        """(n,) float64: times of the samples, in seconds of `time.perf_counter`."""
        with self._lock:
            return np.array(self._times)

    def watts(self, name: str | None = None) -> np.ndarray:
        """(n,) float64: power of one rail, or of the device (rails that count); NaN is a gap.

        Parameters
        ----------
        name : str, optional
            A rail of `rails`; default the device.
        """
        with self._lock:
            table = np.array(self._watts).reshape(len(self._times), len(self.rails))
        if name is not None:
            return table[:, list(self.rails).index(name)]
        return table[:, [rail.counts for rail in self.rails.values()]].sum(axis=1)

    @property
    def why_empty(self) -> str:
        """Why no rail was found, and the sources tried; empty if there is one."""
        if self.rails:
            return ""
        looked = "".join(f". Looked at {why}" for why in self._why)
        return (
            "no rail was found; a meter's CSV file can be read: llama-pynq bench --power --meter "
            f"FILE, or rails(device, meter=FILE) in Python{looked}"
        )

    def frame(self) -> Any:
        """Return the samples as a pandas DataFrame: a column per rail, seconds since the first."""
        pandas = import_module("pandas")
        times = self.times
        return pandas.DataFrame(
            {name: self.watts(name) for name in self.rails},
            index=pandas.Index(times - times[0] if len(times) else times, name="seconds"),
        )

    def mark(self, name: str, begin: float, end: float) -> None:
        """Add a named interval to `phases`.

        Parameters
        ----------
        name : str
        begin, end : float
            Seconds of `time.perf_counter`.
        """
        with self._lock:
            self.phases.append(Phase(name, begin, end))

    def energy(
        self, begin: float, end: float, texts: Sequence[tuple[int, int]] = ()
    ) -> Energy | str:
        """Return the energy used between two times of `time.perf_counter`.

        An emulated board's energy is modelled with the board's predicted times, not with this
        computer's. A rail without any reading in that time is left out, and `source` names it.

        Parameters
        ----------
        begin, end : float
            Seconds of `time.perf_counter`.
        texts : sequence of (int, int)
            Tokens of the prompt and of the answer, for each sequence generated in that time.

        Returns
        -------
        Energy or str
            A string says why there is no energy.
        """
        found = self._energy(begin, end, texts)
        if texts:
            self.last = found
        return found

    def _energy(self, begin: float, end: float, texts: Sequence[tuple[int, int]]) -> Energy | str:
        counting = [rail for rail in self.rails.values() if rail.counts]
        if not self.rails:
            return self.why_empty
        if not counting:
            return "none of the rails counts towards the device's total"
        if counting[0].model is not None:
            return counting[0].model.energy(texts) if texts else "no text to model"
        pieces, silent = [], []
        for rail in counting:
            piece = _integral(self.times, self.watts(rail.name), rail.is_mean, begin, end)
            if piece.seconds > 0:
                pieces.append((rail, piece))
            else:
                silent.append(f"without {rail.name}: {self.lost.get(rail.name, 'no reading')}")
        if not pieces:
            reasons = "; ".join(f"{name}: {why}" for name, why in self.lost.items())
            return f"no sample between the two times{f' ({reasons})' if reasons else ''}"
        covered = min(piece.seconds for _, piece in pieces)
        mean = sum(piece.joules / piece.seconds for _, piece in pieces)
        total = np.sum([self.watts(rail.name) for rail, _ in pieces], axis=0)
        inside = (self.times >= begin) & (self.times <= end)
        peak = float(np.nanmax(total[inside], initial=mean)) if inside.any() else mean
        return Energy(
            joules=mean * covered,
            seconds=end - begin,
            covered_seconds=covered,
            mean_watts=mean,
            peak_watts=max(peak, mean),
            tokens=sum(n for _, n in texts),
            source="; ".join(
                [", ".join(dict.fromkeys(rail.source for rail, _ in pieces)), *silent]
            ),
            measured=all(rail.measured for rail, _ in pieces),
            idle_watts=self._idle,
        )


@dataclass(frozen=True)
class _Piece:
    joules: float
    seconds: float  # covered by samples


def _integral(
    times: np.ndarray, watts: np.ndarray, is_mean: bool, begin: float, end: float
) -> _Piece:
    """Integrate power between two times: trapezoids between samples, rectangles for means.

    An interval with a missing end is left out: a gap is not zero power.
    """
    joules = seconds = 0.0
    for i in range(1, len(times)):
        a, b = max(times[i - 1], begin), min(times[i], end)
        if b <= a:
            continue
        w0, w1 = watts[i - 1], watts[i]
        if is_mean:
            w0 = w1
        if math.isnan(w0) or math.isnan(w1):
            continue
        step = times[i] - times[i - 1]
        at = [w0 + (w1 - w0) * (t - times[i - 1]) / step for t in (a, b)]
        joules += (at[0] + at[1]) / 2 * (b - a)
        seconds += b - a
    return _Piece(joules, seconds)
