"""What a generation cost, as `Generation.energy` carries it.

The core knows this result and the border to whoever measures; sensors are not its business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from llama_pynq.errors import RequestError


@dataclass(frozen=True)
class Energy:
    """Energy of a call of `generate`, all of its sequences together.

    Attributes
    ----------
    joules : float
        Of the seconds that readings cover.
    seconds, covered_seconds : float
        From the first row of the prompt to the last token; and what of it has readings: less
        where a sensor was lost.
    mean_watts, peak_watts : float
    tokens : int
        Generated, all sequences together.
    source : str
    measured : bool
        False: modelled.
    idle_watts : float or None
        The device's power when nothing ran, where it was measured before.
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
        """Mean power times the whole time, over the tokens; NaN without a token."""
        return self.mean_watts * self.seconds / self.tokens if self.tokens else float("nan")

    @property
    def mwh_per_token(self) -> float:
        """The same in milliwatt-hours, HLSTransform's unit."""
        return self.joules_per_token / 3.6

    @property
    def joules_above_idle(self) -> float | None:
        """Without what the idle device would have used in that time."""
        if self.idle_watts is None:
            return None
        return self.joules - self.idle_watts * self.covered_seconds

    def __str__(self) -> str:
        idle = "" if self.idle_watts is None else f", idle {self.idle_watts:.2f} W"
        return (
            f"{self.joules:.4g} J in {self.seconds:.3g} s for {self.tokens} tokens: "
            f"{self.joules_per_token:.3g} J ({self.mwh_per_token:.3g} mWh) a token, mean "
            f"{self.mean_watts:.2f} W, peak {self.peak_watts:.2f} W{idle}; {self.kind}: "
            f"{self.source}"
        )

    @property
    def kind(self) -> str:
        """Either "measured" or "modelled"."""
        return "measured" if self.measured else "modelled"


class EnergyMeter(Protocol):
    """What `generate(power=...)` asks for; `power.PowerRecorder` is one."""

    def sample(self) -> None:
        """Take a reading now."""

    def mark(self, name: str, begin: float, end: float) -> None:
        """Name a stretch of time, in `time.perf_counter`'s seconds."""

    def energy(
        self, begin: float, end: float, texts: Sequence[tuple[int, int]] = ()
    ) -> Energy | str:
        """Energy of a stretch of time, or why there is none.

        `texts` has the tokens of every prompt and answer.
        """


def check_meter(power: object) -> None:
    """Refuse what is no `EnergyMeter`; None is no meter at all.

    Raises
    ------
    RequestError
    """
    if power is not None and not all(hasattr(power, n) for n in ("sample", "mark", "energy")):
        raise RequestError(
            f"power is {type(power).__name__}: it must be a PowerRecorder that is recording, "
            "PowerRecorder(rails(overlay))"
        )
