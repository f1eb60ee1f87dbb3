"""Parsers for the tools' text reports of an implemented design."""

from __future__ import annotations

import re

from llama_pynq.errors import BuildError

# Rows of Vivado's report_utilization: 7 series, UltraScale+; the star marks a footnote.
_ROWS = {
    "lut": r"(?:Slice|CLB) LUTs\*?",
    "dsp": r"DSPs",
    "bram36": r"Block RAM Tile",
    "uram": r"URAM",
}


def utilization(text: str) -> dict[str, float]:
    """Parse LUTs, DSP slices, block RAMs and UltraRAMs from ``report_utilization``.

    Parameters
    ----------
    text : str
        The report; a resource without a row is left out.

    Raises
    ------
    BuildError
        If the report has no row of LUTs.
    """
    used = {}
    for name, row in _ROWS.items():
        if found := re.search(rf"^\|\s*{row}\s*\|\s*([\d.]+)\s*\|", text, re.MULTILINE):
            used[name] = float(found.group(1))
    if "lut" not in used:
        raise BuildError("the utilisation report has no row 'CLB LUTs' or 'Slice LUTs'")
    return used


def worst_slack_ns(text: str) -> float:
    """Parse the worst slack from ``report_timing_summary``, over setup, hold and pulse width.

    Raises
    ------
    BuildError
        If the report has no design timing summary.
    """
    found = re.search(r"^\s*WNS\(ns\)(.*)\n[\s-]*\n(.*)$", text, re.MULTILINE)
    if found is None:
        raise BuildError("the timing report has no 'WNS(ns)' table")
    titles = re.split(r"\s{2,}", f"WNS(ns){found.group(1)}".strip())
    values = dict(zip(titles, found.group(2).split()))
    slacks = []
    for title in ("WNS(ns)", "WHS(ns)", "WPWS(ns)"):
        try:
            slacks.append(float(values[title]))
        except (KeyError, ValueError):  # NA: no path of that kind
            continue
    if not slacks:
        raise BuildError("the timing report's summary holds no slack: was the design constrained?")
    return min(slacks)


def kernel_clock_mhz(text: str) -> float:
    """Parse the kernel's clock from ``llama.xclbin.info``.

    If timing is not met at the requested clock, v++ lowers the clock and carries on.

    Raises
    ------
    BuildError
        If the file names no kernel clock.
    """
    found = re.search(r"Name:\s*DATA_CLK\b.*?Frequency:\s*([\d.]+)\s*MHz", text, re.DOTALL)
    if found is None:
        raise BuildError("llama.xclbin.info names no DATA_CLK: the kernel's clock is unknown")
    return float(found.group(1))
