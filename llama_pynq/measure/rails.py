"""What a sensor gives: a rail, and readings of it that say where they come from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


class SensorLost(Exception):
    """A sensor gave no reading this time; the text says why."""


@dataclass(frozen=True)
class Reading:
    """One reading of a rail.

    Attributes
    ----------
    watts : float
    source : str
        What was read, and by what.
    measured : bool
        False: a model's figure.
    period_s : float
        How often the source itself has a new value.
    resolution_w : float
        The smallest step of it; NaN where the source does not say.
    """

    watts: float
    source: str
    measured: bool
    period_s: float
    resolution_w: float


@dataclass(frozen=True)
class Rail:
    """Something whose power can be read.

    Attributes
    ----------
    name, source : str
    watts : callable
        Gives the power now, or `SensorLost`.
    measured : bool
    period_s, resolution_w : float
        See `Reading`.
    counts : bool
        Whether it is part of the device's total; rails behind another one are not.
    is_mean : bool
        The reading is the mean since the one before (an energy counter), not the power now.
    model : object, optional
        Of an emulated board: gives the `Energy` of texts, for its watts are a model's.
    """

    name: str
    source: str
    watts: Callable[[], float] = field(repr=False)
    measured: bool = True
    period_s: float = 0.0
    resolution_w: float = math.nan
    counts: bool = True
    is_mean: bool = False
    model: Any = field(default=None, repr=False)

    def read(self) -> Reading:
        """The power now.

        Raises
        ------
        SensorLost
            If there is no reading this time.
        """
        return Reading(self.watts(), self.source, self.measured, self.period_s, self.resolution_w)
