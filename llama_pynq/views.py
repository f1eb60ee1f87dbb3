"""What the command line shows of the boards: a table, and a drawing of the roofline.

Everything here is modelled (``perf.py``), and says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .boards import Board, boards
from .checkpoint import ModelConfig
from .errors import LlamaPynqError
from .perf import Prediction, Work, fits, kernel_of, predict
from .power_model import ERROR, watts_of
from .random_model import SHAPES as _RANDOM_SHAPES

SHAPES = {
    **_RANDOM_SHAPES,
    "tinyllama": ModelConfig(2048, 5632, 22, 32, 4, 32000, 2048, tied=False),
    "llama2-7b": ModelConfig(4096, 11008, 32, 32, 32, 32000, 4096, tied=False),
}
"""Shapes by the name of the model that has them; TinyLlama has 1.1 billion parameters."""


@dataclass(frozen=True)
class Row:
    """A board with a model: how fast at batch 1 and at its largest batch, or why not.

    Attributes
    ----------
    board : Board
    one, batch : Prediction
        As if the model fitted.
    reason : str
        Why it does not fit; empty where it does.
    """

    board: Board
    one: Prediction
    batch: Prediction
    reason: str


def compare(
    config: ModelConfig,
    *,
    context: int = 256,
    weight_bits: int = 8,
    group_size: int | None = None,
    kv_bits: int = 32,
) -> list[Row]:
    """Every board with a model whose `context` positions are in use.

    Raises
    ------
    LimitError
        If the context is longer than the model's.
    """
    rows = []
    for board in boards().values():
        largest = kernel_of(board).max_rows
        one, batch = (
            predict(
                config,
                board,
                rows=n,
                position=context - 1,
                weight_bits=weight_bits,
                group_size=group_size,
                kv_bits=kv_bits,
            )
            for n in (1, largest)
        )
        _, reason = fits(
            config, board, weight_bits=weight_bits, group_size=group_size, kv_bits=kv_bits
        )
        rows.append(Row(board, one, batch, reason))
    return rows


_NOTES = """\
Modelled, not measured: nobody has run this kernel on a board yet. No prices: see docs/boards.md.
Roof: what a token must read (weights once, keys and values of the context, no padding) over the
memory's peak times the share of it that long reads reach. tok/s: the loops of hls_src/ with the
constants of the board's header and the assumptions of llama_pynq/perf.py, the host's share
included, tokens chosen on the device. Batch: as many sequences as a call takes, a row each.
J/token: modelled watts (llama_pynq/power_model.py) over tok/s at batch 1."""

_POWER_NOTE = (
    f"The power model is within {ERROR:.0%} of what others published of other accelerators; its\n"
    "static part is what the board's own sensor sees: a module's, a card's, on AWS F1 the chip's."
)


def boards_table(rows: Sequence[Row]) -> str:
    """A line for each board, and footnotes."""
    head = (
        "board",
        "fits",
        "MB/token",
        "roof tok/s",
        "tok/s",
        "of roof",
        "batch: tok/s",
        "J/token",
    )
    lines = [head, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    text = [
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths))
        ).rstrip()
        for line in lines
    ]
    notes = [_NOTES, _POWER_NOTE, *_unchecked(rows)]
    notes += [f"{row.board.name}: {row.reason}." for row in rows if row.reason]
    return "\n".join([*text, "", *notes])


def _cells(row: Row) -> tuple[str, ...]:
    one, batch = row.one, row.batch
    joules = watts_of(one) / one.tokens_per_second
    size = f"{one.bytes / 1e6:.1f}"
    if row.reason:
        return row.board.name, "no", size, f"{one.roof_tokens_per_second:,.1f}", "", "", "", ""
    return (
        row.board.name,
        "yes",
        size,
        f"{one.roof_tokens_per_second:,.1f}",
        f"{one.tokens_per_second:,.1f}",
        f"{one.share_of_roof:.0%}",
        f"{batch.work.rows}: {batch.tokens_per_second:,.1f}",
        f"{joules:.3f}",
    )


def _unchecked(rows: Iterable[Row]) -> list[str]:
    names = [row.board.name for row in rows if not row.board.verified]
    return [f"Some figures not yet checked against the data sheet: {', '.join(names)}."]


# ---- roofline -------------------------------------------------------------------------


def plot_roofline(rows: Sequence[Row], title: str, path: Path) -> None:
    """Draw tokens/s over bytes per token's arithmetic: memory's roof, and where each board is.

    Parameters
    ----------
    rows : sequence of Row
        Those whose model fits are drawn.
    title : str
    path : Path
        A picture's file; its suffix says the format.

    Raises
    ------
    LlamaPynqError
        If no board holds the model, matplotlib is missing, or it does not know the format.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise LlamaPynqError(
            f"--plot needs matplotlib, which cannot be imported ({error}): install it, "
            "pip install matplotlib"
        ) from error
    drawn = [row for row in rows if not row.reason]
    if not drawn:
        raise LlamaPynqError("--plot: no board holds this model, so there is nothing to draw")
    figure = Figure(figsize=(9, 0.62 * len(drawn) + 2.2), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    if path.suffix[1:] not in canvas.get_supported_filetypes():
        raise LlamaPynqError(
            f"--plot {path}: matplotlib writes no {path.suffix or 'file without a suffix'}; "
            "end the name in .png, .svg or .pdf"
        )
    _draw(figure.add_subplot(), drawn, title)
    figure.savefig(path, dpi=150)


def _draw(axes: Any, rows: Sequence[Row], title: str) -> None:
    """Each group of boards that come out alike: its roof, and its predictions below it."""
    groups: dict[tuple[float, float, float], list[Row]] = {}
    for row in rows:
        key = (*_roof(row), round(row.one.tokens_per_second, 3))
        groups.setdefault(key, []).append(row)
    right = 4 * max(_intensity(row.batch) for row in rows)
    left = min(_intensity(row.one) for row in rows) / 2
    labels = []
    for i, ((slope, ceiling, _), alike) in enumerate(groups.items()):
        colour = f"C{i}"
        ridge = min(max(ceiling / slope, left), right)
        xs, ys = [left, ridge, right], [slope * left, slope * ridge, min(ceiling, slope * right)]
        axes.plot(xs, ys, color=colour, linewidth=1.2)
        for prediction, face in ((alike[0].one, "white"), (alike[0].batch, colour)):
            x, y = _intensity(prediction), prediction.tokens_per_second
            axes.plot([x], [y], "o", color=colour, markerfacecolor=face, markersize=6)
        one, batch = alike[0].one, alike[0].batch
        names = ", ".join(row.board.name for row in alike)
        text = f"{names}: {one.tokens_per_second:,.0f} and {batch.tokens_per_second:,.0f} tok/s"
        labels.append((ys[-1], text, colour))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(left, right)
    _label(axes, labels, right)
    axes.set_xlabel("operations per byte read (more sequences at once: to the right)")
    axes.set_ylabel("tokens/s")
    axes.set_title(f"{title}\nmodelled, not measured: one sequence (rings), largest batch (dots)")
    axes.grid(True, which="major", alpha=0.3)


def _intensity(prediction: Prediction) -> float:
    """Operations on weights for each byte that a step has to read."""
    work = prediction.work
    return work.rows * _operations(work) / prediction.bytes


def _operations(work: Work) -> float:
    """Multiplications and additions of a token's matrices."""
    c = work.config
    layer = c.dim * (2 * c.dim + 2 * c.kv_dim) + 3 * c.dim * c.hidden_dim
    return 2.0 * (c.n_layers * layer + c.vocab_size * c.dim)


def _roof(row: Row) -> tuple[float, float]:
    """Tokens/s for each operation per byte, and the engines' tokens/s whatever memory does."""
    memory, k = row.board.memory, row.batch.kernel
    operations = _operations(row.one.work)
    engines = 2.0 * k.channels * k.beat_bytes * k.max_rows * k.clock_mhz * 1e6
    return memory.peak_bytes_per_s * memory.efficiency / operations, engines / operations


def _label(axes: Any, labels: Sequence[tuple[float, str, str]], x: float) -> None:
    """Names at the right, moved apart where roofs end too close to each other."""
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
