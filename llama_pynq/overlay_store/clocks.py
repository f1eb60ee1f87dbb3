"""PL clocks of a Zynq, kept from running faster than the design allows."""

from __future__ import annotations

from typing import Any

import pynq

# Parameters of a Zynq UltraScale+'s and of a Zynq-7000's processor: PL clocks in MHz.
_DESIGN_MHZ = ("PSU__CRL_APB__PL{}_REF_CTRL__ACT_FREQMHZ", "PCW_ACT_FPGA{}_PERIPHERAL_FREQMHZ")
_TOLERANCE = 1.005  # a clock this much faster than the design's still counts as the design's
_STEPS = 32


def set_clocks(overlay: pynq.Overlay) -> tuple[float | None, str]:
    """Set the PL clocks of the overlay that was just downloaded, no faster than its design.

    PYNQ 3.0.1 writes the design's divisors, whatever the boot image's PLL runs at. PYNQ 4 sets
    the nearest clock that the PLL gives, even if it is faster.

    Parameters
    ----------
    overlay : pynq.Overlay

    Returns
    -------
    mhz : float or None
        The last clock, as it is set; None if the processor sets none.
    note : str
        Clocks that differ from the design's, for the user; empty if none does.
    """
    device = overlay.device
    mhz, note = None, ""
    if not (device.has_capability("MEMORY_MAPPED") or device.has_capability("REMOTE")):
        return mhz, note
    processor = overlay.ip_dict.get(getattr(overlay.parser, "ps_name", None), {})
    parameters = processor.get("parameters", {})
    for index, clock in overlay.clock_dict.items():
        design = _design_mhz(parameters, index)
        if not clock.get("enable") or not design:
            continue
        mhz = _slow_down(index, design)
        if not design <= _TOLERANCE * mhz <= _TOLERANCE**2 * design:
            note += f", PL clock {index} {mhz:g} of {design:g} MHz"
    return mhz, note


def _design_mhz(parameters: dict[str, Any], index: int) -> float | None:
    names = (name.format(index) for name in _DESIGN_MHZ)
    return next((float(parameters[name]) for name in names if name in parameters), None)


def _slow_down(index: int, design: float) -> float:
    """Request ever slower clocks until one is no faster than the design's; that one in MHz."""
    mhz = 0.0
    for step in range(_STEPS):
        mhz = getattr(pynq.Clocks, f"fclk{index}_mhz")
        # A slower clock may be due to divisors for another PLL: request the design's clock once.
        if mhz <= _TOLERANCE * design and (step or design <= _TOLERANCE * mhz):
            break
        pynq.Clocks.set_pl_clk(index, clk_mhz=design * 0.97**step)
    return mhz
