"""Power rails, and readings that carry their source."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


class SensorLost(Exception):
    """A sensor gave no reading this time; the message says why."""


@dataclass(frozen=True)
class Reading:
    """One reading of a rail.

    Attributes
    ----------
    watts : float
    source : str
        The sensor, and what it was read through.
    measured : bool
        False: modelled.
    period_s : float
        Update period of the source.
    resolution_w : float
        Smallest step of the source; NaN if unknown.
    """

    watts: float
    source: str
    measured: bool
    period_s: float
    resolution_w: float


@dataclass(frozen=True)
class Rail:
    """A power rail: something whose power can be read.

    Attributes
    ----------
    name, source : str
    watts : callable
        Returns the present power, or raises `SensorLost`.
    measured : bool
    period_s, resolution_w : float
        See `Reading`.
    counts : bool
        Whether the rail counts towards the device's total; rails fed by a counted one do not.
    is_mean : bool
        The reading is the mean since the previous one (an energy counter), not the present power.
    model : object, optional
        Power model of an emulated board: computes the `Energy` of texts.
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
        """Return the present power.

        Raises
        ------
        SensorLost
            If there is no reading this time.
        """
        return Reading(self.watts(), self.source, self.measured, self.period_s, self.resolution_w)
