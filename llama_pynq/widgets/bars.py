"""Plain bar chart for the lessons."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from llama_pynq.widgets.svg import PALE, Drawing, colour

_WIDTH, _HEIGHT = 720, 264
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 10, 34, 58
_LETTER, _LINE = 6.5, 13  # pixels: approximate letter width, line spacing


class Bars:
    """Bar chart with one bar per value, above or below zero; a notebook shows it as a cell's value.

    Parameters
    ----------
    values : sequence of float
    labels : sequence of str
        One per bar, drawn below it; an empty string draws nothing.
    title, x_axis, y_axis : str
        The title says whether the values are measured or modelled; the axes name the units.

    Raises
    ------
    ValueError
        If there are no values, or the number of labels differs.
    """

    def __init__(
        self, values: Sequence[float], labels: Sequence[str], title: str, x_axis: str, y_axis: str
    ) -> None:
        if len(values) == 0 or len(values) != len(labels):
            raise ValueError(f"{len(values)} values and {len(labels)} labels: one each per bar")
        self._values, self._labels = [float(value) for value in values], list(labels)
        self._title, self._axes = title, (x_axis, y_axis)

    def __repr__(self) -> str:
        pairs = [f"{name} {v:.4g}" for name, v in zip(self._labels, self._values) if name]
        low, high = min(self._values), max(self._values)
        what = ", ".join(pairs) or f"{len(self._values)} bars, {low:.4g} to {high:.4g}"
        return f"{self._title}. {self._axes[1]}, by {self._axes[0]}: {what}"

    def _repr_html_(self) -> str:
        high, low = max(0.0, *self._values), min(0.0, *self._values)
        room = _HEIGHT - _TOP - _BOTTOM
        step = (_WIDTH - _LEFT - _RIGHT) / len(self._values)

        def y(value: float) -> float:
            return _TOP + room * (high - value) / (high - low or 1.0)

        drawing = Drawing(_WIDTH, _HEIGHT, repr(self))
        drawing.text(_LEFT, 18, self._title, bold=True)
        for value in dict.fromkeys((high, 0.0, low)):
            drawing.line([(_LEFT, y(value)), (_WIDTH - _RIGHT, y(value))], ink=PALE)
            drawing.text(_LEFT - 6, y(value) + 4, f"{value:.4g}", anchor="end")
        for i, (value, label) in enumerate(zip(self._values, self._labels)):
            left, top = _LEFT + i * step, y(max(value, 0.0))
            name = f"{label}: {value:.4g}" if label else f"{value:.4g}"
            height = abs(y(value) - y(0.0))
            drawing.box(left + step * 0.1, top, step * 0.8, height, fill=colour(0), title=name)
            for n, line in enumerate(textwrap.wrap(label, max(1, int(step / _LETTER)))):
                foot = _HEIGHT - _BOTTOM + 16 + n * _LINE
                drawing.text(left + step / 2, foot, line, anchor="middle")
        drawing.text((_LEFT + _WIDTH) / 2, _HEIGHT - 8, self._axes[0], anchor="middle")
        drawing.text(14, _TOP + room / 2, self._axes[1], anchor="middle", turn=-90)
        return drawing.render()
