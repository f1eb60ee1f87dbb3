"""Energy of a generation (`Generation.energy`), and the interface of power meters.

The engine depends on these two only; sensors and recorders are in `measure`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from llama_pynq.errors import RequestError


@dataclass(frozen=True)
class Energy:
    """Energy of one call of `generate`, over all of its sequences.

    Attributes
    ----------
    joules : float
        Energy used in `covered_seconds`.
    seconds, covered_seconds : float
        Time from the first row of the prompt to the last token, and the part of it that readings
        cover: less if a sensor was lost.
    mean_watts, peak_watts : float
    tokens : int
        Tokens generated, over all sequences.
    source : str
    measured : bool
        True: measured; False: modelled.
    idle_watts : float or None
        Idle power of the device, if it was measured before.
    """

    joules: float
    seconds: float
    covered_seconds: float
    mean_watts: float
    peak_watts: float
    tokens: int
    source: str
    measured: bool
    idle_watts: float | None = None

    @property
    def joules_per_token(self) -> float:
        """Mean power times `seconds`, divided by `tokens`; NaN without a token."""
        return self.mean_watts * self.seconds / self.tokens if self.tokens else float("nan")

    @property
    def mwh_per_token(self) -> float:
        """`joules_per_token` in milliwatt-hours, HLSTransform's unit."""
        return self.joules_per_token / 3.6

    @property
    def joules_above_idle(self) -> float | None:
        """Energy minus that of the idle device over the same time; None without `idle_watts`."""
        if self.idle_watts is None:
            return None
        return self.joules - self.idle_watts * self.covered_seconds

    def __str__(self) -> str:
        per_token = ""
        if self.tokens:
            per_token = f": {self.joules_per_token:.3g} J ({self.mwh_per_token:.3g} mWh) a token"
        idle = "" if self.idle_watts is None else f", idle {self.idle_watts:.2f} W"
        return (
            f"{self.joules:.4g} J in {self.seconds:.3g} s for {self.tokens} tokens{per_token}, "
            f"mean {self.mean_watts:.2f} W, peak {self.peak_watts:.2f} W{idle}; {self.kind}: "
            f"{self.source}"
        )

    @property
    def kind(self) -> str:
        """Either "measured" or "modelled"."""
        return "measured" if self.measured else "modelled"


class EnergyMeter(Protocol):
    """Interface of the meter in ``generate(power=...)``, such as `measure.power.PowerRecorder`."""

    def sample(self) -> None:
        """Take a reading now."""

    def mark(self, name: str, begin: float, end: float) -> None:
        """Name an interval.

        Parameters
        ----------
        name : str
        begin, end : float
            Seconds of `time.perf_counter`.
        """

    def energy(
        self, begin: float, end: float, texts: Sequence[tuple[int, int]] = ()
    ) -> Energy | str:
        """Energy of an interval, or the reason why there is none.

        Parameters
        ----------
        begin, end : float
            Seconds of `time.perf_counter`.
        texts : sequence of (int, int)
            Tokens of the prompt and of the answer, for each sequence generated in that time.
        """


def check_meter(power: object) -> None:
    """Refuse an object that is no `EnergyMeter`; None, for no meter, is accepted.

    Raises
    ------
    RequestError
        If the object lacks a method of `EnergyMeter`.
    """
    if power is not None and not all(hasattr(power, n) for n in ("sample", "mark", "energy")):
        raise RequestError(
            f"power is {type(power).__name__}: it must be a PowerRecorder that is recording, "
            "PowerRecorder(rails(overlay))"
        )
