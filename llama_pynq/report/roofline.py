"""Roofline plot: every board's roof, and the modelled tokens/s below it."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

from llama_pynq.errors import LlamaPynqError
from llama_pynq.estimate.predict import Prediction
from llama_pynq.estimate.work import Work
from llama_pynq.report.boards import BoardRow
from llama_pynq.report.picture import MARKERS, Picture, new_figure


def roofline(rows: Sequence[BoardRow], title: str) -> Picture:
    """Draw tokens/s over operations per byte read: each board's roof and predictions.

    Parameters
    ----------
    rows : sequence of BoardRow
        Boards that hold the model are drawn.
    title : str

    Raises
    ------
    LlamaPynqError
        If no board holds the model, or matplotlib is missing.
    """
    drawn = [row for row in rows if not row.reason]
    if not drawn:
        raise LlamaPynqError("no board holds this model, so there is nothing to draw")
    figure = new_figure(9, 0.62 * len(drawn) + 2.2)
    _draw(figure.add_subplot(), drawn, title)
    speeds = "; ".join(f"{row.board.name} {row.one.tokens_per_second:,.0f}" for row in drawn)
    return Picture(figure, f"Roofline, {title}. Modelled tokens/s of one sequence: {speeds}.")


def plot_roofline(rows: Sequence[BoardRow], title: str, path: str | os.PathLike[str]) -> None:
    """Write the `roofline` to a file, whose suffix selects the format."""
    roofline(rows, title).save(path)


def _draw(axes: Any, rows: Sequence[BoardRow], title: str) -> None:
    """Draw the roof and the predictions of each group of boards with equal results."""
    groups: dict[tuple[float, float, float], list[BoardRow]] = {}
    for row in rows:
        key = (*_roof(row), round(row.one.tokens_per_second, 3))
        groups.setdefault(key, []).append(row)
    right = 4 * max(_intensity(row.batch) for row in rows)
    left = min(_intensity(row.one) for row in rows) / 2
    labels = []
    for i, ((slope, ceiling, _), alike) in enumerate(groups.items()):
        colour, marker = f"C{i}", MARKERS[i % len(MARKERS)]
        ridge = min(max(ceiling / slope, left), right)
        xs, ys = [left, ridge, right], [slope * left, slope * ridge, min(ceiling, slope * right)]
        axes.plot(xs, ys, color=colour, linewidth=1.2)
        for prediction, face in ((alike[0].one, "white"), (alike[0].batch, colour)):
            x, y = _intensity(prediction), prediction.tokens_per_second
            axes.plot([x], [y], marker, color=colour, markerfacecolor=face, markersize=6)
        one, batch = alike[0].one, alike[0].batch
        names = ", ".join(row.board.name for row in alike)
        text = f"{names}: {one.tokens_per_second:,.0f} and {batch.tokens_per_second:,.0f} tok/s"
        labels.append((ys[-1], text, colour))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(left, right)
    label_roofs(axes, labels, right)
    axes.set_xlabel("operations per byte read (more sequences at once: to the right)")
    axes.set_ylabel("tokens/s")
    axes.set_title(
        f"{title}\nmodelled, not measured: one sequence (hollow marks), largest batch (filled)"
    )
    axes.grid(True, which="major", alpha=0.3)


def _intensity(prediction: Prediction) -> float:
    """Operations on weights per byte that a step must read."""
    work = prediction.work
    return work.rows * _operations(work) / prediction.bytes


def _operations(work: Work) -> float:
    """Multiplications and additions of a token's matrices."""
    c = work.config
    layer = c.dim * (2 * c.dim + 2 * c.kv_dim) + 3 * c.dim * c.hidden_dim
    return 2.0 * (c.n_layers * layer + c.vocab_size * c.dim)


def _roof(row: BoardRow) -> tuple[float, float]:
    """Return the slope of the memory's roof, and its ceiling: the engines' tokens/s."""
    memory, k = row.board.memory, row.batch.kernel
    operations = _operations(row.one.work)
    engines = 2.0 * k.channels * k.beat_bytes * k.max_rows * k.clock_mhz * 1e6
    return memory.peak_bytes_per_s * memory.efficiency / operations, engines / operations


def label_roofs(axes: Any, labels: Sequence[tuple[float, str, str]], x: float) -> None:
    """Label the roofs at the right, moved apart where roofs end too close to each other."""
    low, high = (math.log10(y) for y in axes.get_ylim())
    least = (high - low) / 24
    placed: list[float] = []
    for y, _, _ in sorted(labels):
        wanted = math.log10(y)
        placed.append(wanted if not placed else max(wanted, placed[-1] + least))
    for (y, text, colour), at in zip(sorted(labels), placed):
        axes.annotate(
            text,
            (x, y),
            xytext=(1.03, (at - low) / (high - low)),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            color=colour,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.6,
                "relpos": (0, 0.5),
            },
        )
