"""Inline SVG drawings; hatching and dashes tell marks apart without colour."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

INK, PALE, PAPER = "#222222", "#767676", "#ffffff"

# Okabe and Ito's palette, which most colour-blind readers can tell apart; hatching needs no colour.
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#999999")
_HATCHES = (
    "",
    "M0 0 L8 8",
    "M0 4 H8",
    "M4 0 V8",
    "M0 8 L8 0",
    "M0 0 L8 8 M0 8 L8 0",
    "M0 4 H8 M4 0 V8",
    "M2 2 h1 M6 6 h1",
)
STYLES = len(_COLOURS)
DASHES = ("", "7 3", "2 2", "9 3 2 3", "4 2", "1 3", "12 3", "6 2 1 2")


def escape(text: object) -> str:
    """Escape text for HTML and SVG."""
    return html.escape(str(text), quote=True)


def shade(value: float) -> tuple[str, str]:
    """Return (background, text) colours for a value from 0 (white) to 1 (dark blue)."""
    value = min(max(float(value), 0.0), 1.0)
    red, green, blue = (round(255 + (end - 255) * value) for end in (8, 69, 148))
    # Text is white or INK, whichever has the higher contrast by WCAG 2.1.
    linear = [((c / 255 + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
    light = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05
    return f"#{red:02x}{green:02x}{blue:02x}", "#ffffff" if 1.05 / light > light / 0.066 else INK


def colour(style: int) -> str:
    """Return the colour of a style."""
    return _COLOURS[style % STYLES]


def ticks(top: float, n: int = 5) -> list[float]:
    """Return about `n` round numbers from 0 to `top`."""
    if not top > 0 or not math.isfinite(top):
        return [0.0]
    step = 10 ** math.floor(math.log10(top / n))
    step = next(step * m for m in (1, 2, 5, 10) if top / (step * m) <= n)
    return [i * step for i in range(int(top / step + 1e-9) + 1)]


class Drawing:
    """One picture; coordinates are pixels from the upper left.

    Parameters
    ----------
    width, height : float
    label : str
        Description of the picture for screen readers.
    """

    def __init__(self, width: float, height: float, label: str) -> None:
        self._width, self._height, self._label = width, height, label
        self._marks: list[str] = []

    def text(
        self, x: float, y: float, text: object, *, size: int = 12, anchor: str = "start",
        ink: str = INK, bold: bool = False, turn: float = 0,
    ) -> None:  # fmt: skip
        """Add a line of text; `y` is its baseline."""
        weight = " font-weight='bold'" if bold else ""
        turned = f" transform='rotate({turn:g} {x:.1f} {y:.1f})'" if turn else ""
        self._marks.append(
            f"<text x='{x:.1f}' y='{y:.1f}' font-size='{size}' text-anchor='{anchor}' "
            f"fill='{ink}'{weight}{turned}>{escape(text)}</text>"
        )

    def box(
        self, x: float, y: float, width: float, height: float, *, fill: str = "none",
        title: str = "", edge: str = "none", style: int | None = None, opacity: float = 1,
    ) -> None:  # fmt: skip
        """Add a rectangle; a style sets its colour and hatching, the title is its tooltip."""
        if style is not None:
            fill = f"url(#llama-style-{style % STYLES})"
        hover = f"<title>{escape(title)}</title>" if title else ""
        self._marks.append(
            f"<rect x='{x:.2f}' y='{y:.2f}' width='{max(width, 0):.2f}' height='{height:.2f}' "
            f"fill='{fill}' stroke='{edge}' opacity='{opacity:g}'>{hover}</rect>"
        )

    def line(
        self, points: Sequence[tuple[float, float]], *, ink: str = INK, width: float = 1,
        dash: str = "", title: str = "",
    ) -> None:  # fmt: skip
        """Add a line through points; the title is its tooltip."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dashed = f" stroke-dasharray='{dash}'" if dash else ""
        hover = f"<title>{escape(title)}</title>" if title else ""
        self._marks.append(
            f"<polyline points='{path}' fill='none' stroke='{ink}' stroke-width='{width:g}'"
            f"{dashed}>{hover}</polyline>"
        )

    def mark(self, text: str) -> None:
        """Add raw SVG."""
        self._marks.append(text)

    def render(self) -> str:
        """Return the picture as an SVG element."""
        patterns = "".join(
            f"<pattern id='llama-style-{i}' width='8' height='8' patternUnits='userSpaceOnUse'>"
            f"<rect width='8' height='8' fill='{fill}'/>"
            f"<path d='{hatch}' stroke='{INK}' stroke-width='1' opacity='.55'/></pattern>"
            for i, (fill, hatch) in enumerate(zip(_COLOURS, _HATCHES))
        )
        return (
            f"<svg xmlns='http://www.w3.org/2000/svg' role='img' aria-label='{escape(self._label)}'"
            f" viewBox='0 0 {self._width:g} {self._height:g}' width='{self._width:g}' "
            f"style='max-width:100%;height:auto;background:{PAPER};font-family:sans-serif'>"
            f"<defs>{patterns}</defs>{''.join(self._marks)}</svg>"
        )
