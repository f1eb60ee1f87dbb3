"""Plot of tokens/s and of the time per token over the number of sequences in a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llama_pynq.report.picture import MARKERS, Picture, new_figure


@dataclass(frozen=True)
class Curve:
    """Speed over the number of sequences in a step: a curve of `batch_drawing`.

    Attributes
    ----------
    label : str
        The device, and how the figures were obtained.
    kind : {"measured", "modelled", "roof"}
    tokens_per_second : dict of int to float
        Of all sequences together, by the number of sequences.
    """

    label: str
    kind: str
    tokens_per_second: dict[int, float]


_BIG_AND_KEY: dict[str, Any] = {"gridspec_kw": {"height_ratios": (5, 1)}}
_LINES = {"measured": "-", "modelled": "--", "roof": ":"}


def batch_drawing(curves: Sequence[Curve], title: str) -> Picture:
    """Draw the tokens/s of all sequences, and one sequence's time per token, over their number.

    Parameters
    ----------
    curves : sequence of Curve
    title : str

    Raises
    ------
    LlamaPynqError
        If matplotlib is missing.
    """
    figure = new_figure(8.8, 4.6)
    axes_of = figure.subplot_mosaic([["rates", "waits"], ["key", "key"]], **_BIG_AND_KEY)
    panels = axes_of["rates"], axes_of["waits"]
    for i, curve in enumerate(curves):
        rows, rates = zip(*sorted(curve.tokens_per_second.items()))
        waits = [1e3 * n / rate for n, rate in zip(rows, rates)]
        look = {
            "linestyle": _LINES[curve.kind],
            "marker": MARKERS[i % len(MARKERS)],
            "label": f"{curve.kind}: {curve.label}",
        }
        for axes, values in zip(panels, (rates, waits)):
            axes.plot(rows, values, **look)
    ticks = sorted({n for curve in curves for n in curve.tokens_per_second})
    sides = ("tokens/s, all sequences together", "ms until one sequence has its next token")
    for axes, side in zip(panels, sides):
        axes.set_xticks(ticks)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("sequences in a step")
        axes.set_ylabel(side)
        axes.grid(True, alpha=0.3)
    axes_of["key"].set_axis_off()
    handles, labels = panels[0].get_legend_handles_labels()
    axes_of["key"].legend(handles, labels, loc="center", frameon=False)
    figure.suptitle(title)
    return Picture(figure, f"{title}. {' '.join(map(_in_words, curves))}")


def _in_words(curve: Curve) -> str:
    rates = curve.tokens_per_second.items()
    values = ", ".join(f"{n}: {rate:,.0f}" for n, rate in sorted(rates))
    return f"{curve.label}, {curve.kind}, tokens/s by number of sequences: {values}."
