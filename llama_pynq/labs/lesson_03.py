"""Lesson 03, power and energy: units, an integral with gaps, a published table."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from llama_pynq.labs import exercise, expect


@exercise("03.1", "Energy of a token", stages=("joules", "milliwatt-hours"))
def units(
    joules_per_token: Callable[[float, float], float], mwh: Callable[[float], float]
) -> Iterator[str]:
    """Check 9 W at 57 tokens/s, and 3.6 J in mWh."""
    joules = joules_per_token(9.0, 57.0)
    hint = f"9 W at 57 tokens/s are {9 / 57:.4f} J per token, not {joules:.4g}."
    if abs(joules - 57 / 9) < 1e-6:
        hint = "That is tokens per joule. Divide the other way round: watts by tokens/s."
    elif abs(joules - 9 * 57) < 1e-6:
        hint = "A token takes 1 / 57 s: divide by the rate, do not multiply."
    yield expect(abs(joules - 9 / 57) < 2e-3, hint)
    got = mwh(3.6)
    hint = (
        f"3.6 J are 1 mWh, not {got:.4g}: 1 Wh is 3600 J, and a milliwatt-hour a thousandth of it."
    )
    yield expect(abs(got - 1) < 1e-9, hint)


@exercise(
    "03.2",
    "The integral",
    stages=("constant power", "a ramp", "uneven samples", "a gap is not 0 W"),
)
def integral(energy: Callable[[np.ndarray, np.ndarray], float]) -> Iterator[str]:
    """Check against trapezoids that leave out intervals with a missing end."""
    t = np.linspace(0, 2, 21)
    got = energy(t, np.full(21, 5.0))
    yield expect(
        abs(got - 10) < 1e-6,
        f"5 W over 2 s are 10 J, not {got:.4g}."
        + (" n samples have n - 1 intervals." if abs(got - 10.5) < 1e-6 else ""),
    )
    got = energy(t, 3 * t)
    yield expect(
        abs(got - 6) < 1e-6,
        f"A ramp from 0 to 6 W over 2 s is 6 J, not {got:.4g}: take the mean of an interval's two "
        "ends.",
    )
    t = np.array([0.0, 0.1, 1.0, 1.5])
    got = energy(t, np.array([1.0, 1.0, 3.0, 3.0]))
    yield expect(
        abs(got - 3.4) < 1e-6,
        f"Samples at 0, 0.1, 1 and 1.5 s: 3.4 J, not {got:.4g}. Each interval has its own length.",
    )
    t, w = np.arange(6.0), np.array([2.0, 2.0, np.nan, 2.0, 2.0, 2.0])
    got = energy(t, w)
    hint = f"2 W for 5 s with a gap from 1 s to 3 s: 6 J, not {got:.4g}. "
    if np.isnan(got):
        hint += "nan spreads through a sum: leave out the intervals with a nan at either end."
    elif abs(got - 8) < 1e-6:
        hint += "You count the missing reading as 0 W."
    elif abs(got - 10) < 1e-6:
        hint += "You draw a line across the gap, as if it had been measured."
    yield expect(abs(got - 6) < 1e-6, hint)


@exercise("03.3", "A published comparison", stages=("energy at 8 tokens/s", "the origin of 42.5 W"))
def judge(fpga_mwh: float, cpu_watts_are: str) -> Iterator[str]:
    """Check the energy of 9 W at 8 tokens/s, and that 42.5 W is a constant."""
    right = 9 / 8 / 3.6
    hint = (
        f"9 W at 8 tokens/s: 9 / 8 J a token, and 3.6 J are 1 mWh. Not {float(fpga_mwh):.4g} mWh."
    )
    if abs(float(fpga_mwh) - 9 / 8) < 1e-3:
        hint = "That is joules: 3.6 J are 1 mWh."
    yield expect(abs(float(fpga_mwh) - right) < 0.005, hint)
    yield expect(
        str(cpu_watts_are).strip().lower() == "constant",
        "The tool found no sensor and took a number from a table: nothing was read. Write "
        '"constant".',
    )
