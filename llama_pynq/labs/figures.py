"""Bar charts of the lessons, as SVG: drawn by no library, shown by every notebook front end."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 720, 264, 70, 34, 58
_LETTER, _LINE = 6.5, 13  # about how wide a letter is, and how far lines are apart
_FONT = "font-family='sans-serif' font-size='12' fill='#222'"


@dataclass(frozen=True)
class Svg:
    """A drawing; a notebook shows it as a cell's value.

    Attributes
    ----------
    source : str
        The SVG.
    text : str
        What it shows, for those who do not see it.
    """

    source: str
    text: str

    def __repr__(self) -> str:
        return self.text

    def _repr_svg_(self) -> str:
        return self.source


def bars(
    values: Sequence[float], labels: Sequence[str], title: str, x_axis: str, y_axis: str
) -> Svg:
    """A bar for each value, up or down from zero.

    Parameters
    ----------
    values : sequence of float
    labels : sequence of str
        Under each bar; empty for none. The same number.
    title, x_axis, y_axis : str
        Say in the title whether the values were measured or modelled, in the axes their unit.
    """
    if len(values) == 0 or len(values) != len(labels):
        raise ValueError(f"{len(values)} values and {len(labels)} labels: one of each a bar")
    high, low = max(0.0, *map(float, values)), min(0.0, *map(float, values))
    span = high - low or 1.0
    room = _HEIGHT - _TOP - _BOTTOM

    def y(value: float) -> float:
        return _TOP + room * (high - value) / span

    step = (_WIDTH - _LEFT - 10) / len(values)
    parts = [f"<rect width='{_WIDTH}' height='{_HEIGHT}' fill='#fff'/>"]
    for value in dict.fromkeys((high, 0.0, low)):
        parts.append(
            f"<line x1='{_LEFT}' x2='{_WIDTH - 10}' y1='{y(value):.1f}' y2='{y(value):.1f}' "
            f"stroke='#999'/><text x='{_LEFT - 6}' y='{y(value) + 4:.1f}' text-anchor='end' "
            f"{_FONT}>{value:.3g}</text>"
        )
    for i, (value, label) in enumerate(zip(values, labels)):
        left, top = _LEFT + i * step, y(max(value, 0.0))
        height = abs(y(value) - y(0.0))
        name = html.escape(f"{label}: {value:.4g}" if label else f"{value:.4g}")
        parts.append(
            f"<rect x='{left + step * 0.1:.1f}' y='{top:.1f}' width='{step * 0.8:.1f}' "
            f"height='{height:.1f}' fill='#1f5fa8'><title>{name}</title></rect>"
        )
        for n, line in enumerate(textwrap.wrap(label, max(1, int(step / _LETTER)))):
            parts.append(
                f"<text x='{left + step / 2:.1f}' y='{_HEIGHT - _BOTTOM + 16 + n * _LINE}' "
                f"text-anchor='middle' {_FONT}>{html.escape(line)}</text>"
            )
    middle = _TOP + room / 2
    parts += [
        f"<text x='{_LEFT}' y='18' font-weight='bold' {_FONT}>{html.escape(title)}</text>",
        f"<text x='{(_LEFT + _WIDTH) / 2:.0f}' y='{_HEIGHT - 8}' text-anchor='middle' {_FONT}>"
        f"{html.escape(x_axis)}</text>",
        f"<text transform='translate(14 {middle:.0f}) rotate(-90)' text-anchor='middle' {_FONT}>"
        f"{html.escape(y_axis)}</text>",
    ]
    named = [f"{label} {value:.4g}" for label, value in zip(labels, values) if label]
    text = f"{title}. {y_axis}, by {x_axis}: " + (
        ", ".join(named) if len(named) > 1 else f"{len(values)} bars, {low:.4g} to {high:.4g}"
    )
    source = (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {_WIDTH} {_HEIGHT}' "
        f"width='{_WIDTH}' role='img'><title>{html.escape(text)}</title>{''.join(parts)}</svg>"
    )
    return Svg(source, text)
