"""What the command line and the lessons show: a table of the boards, and drawings.

What is modelled (``estimate/predict.py``) says so. matplotlib is imported when something is drawn.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llama_pynq.boards import Board, boards
from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.errors import LlamaPynqError
from llama_pynq.estimate.capacity import fits
from llama_pynq.estimate.power import ERROR, TERMS, joules_per_token
from llama_pynq.estimate.predict import Prediction, predict
from llama_pynq.estimate.work import Work
from llama_pynq.kernel.config import kernel_of


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
constants of the board's header and the assumptions of llama_pynq/estimate/predict.py, the host's
share included, tokens chosen on the device. Batch: as many sequences as a call takes, a row each.
J/token: modelled watts (llama_pynq/estimate/power.py) over tok/s at batch 1."""

_POWER_NOTE = (
    f"The power model is within {ERROR:.0%} of what others published of other accelerators; its\n"
    "static part is what somebody's sensor read: of a KV260's module, of a ZCU104's or a card's\n"
    "input; on AWS F1 it is the chip, fitted to HLSTransform's 9 W."
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
    notes = [_NOTES, _POWER_NOTE, *_powerless(rows), *_unchecked(rows)]
    notes += [f"{row.board.name}: {row.reason}." for row in rows if row.reason]
    return "\n".join([*text, "", *notes])


def _cells(row: Row) -> tuple[str, ...]:
    one, batch = row.one, row.batch
    joules = joules_per_token(one)
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
        "–" if joules is None else f"{joules:.3f}",
    )


def _powerless(rows: Iterable[Row]) -> list[str]:
    names = [row.board.name for row in rows if row.board.name not in TERMS]
    return [f"No J/token: nobody published what an idle board draws: {', '.join(names)}."]


def _unchecked(rows: Iterable[Row]) -> list[str]:
    names = [row.board.name for row in rows if not row.board.verified]
    return [f"Some figures not yet checked against the data sheet: {', '.join(names)}."]


# ---- drawings -------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    """A picture that a notebook shows as a cell's value, and that can be written to a file.

    Attributes
    ----------
    figure : matplotlib.figure.Figure
    text : str
        What it shows, for those who do not see it.
    """

    figure: Any = field(repr=False)
    text: str

    def save(self, path: Path) -> None:
        """Write it to a file, whose suffix says the format.

        Raises
        ------
        LlamaPynqError
            If matplotlib does not know the format.
        """
        if path.suffix[1:] not in self.figure.canvas.get_supported_filetypes():
            raise LlamaPynqError(
                f"{path}: matplotlib writes no {path.suffix or 'file without a suffix'}; "
                "end the name in .png, .svg or .pdf"
            )
        self.figure.savefig(path, dpi=150)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        file = io.StringIO()
        self.figure.savefig(file, format="svg", metadata={"Title": self.text, "Date": None})
        return {"text/plain": self.text, "image/svg+xml": file.getvalue()}


def _figure(width: float, height: float) -> Any:
    """An empty figure of so many inches, beside pyplot's.

    Raises
    ------
    LlamaPynqError
        If matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise LlamaPynqError(
            f"a drawing needs matplotlib, which cannot be imported ({error}): install it, "
            "pip install matplotlib"
        ) from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


_MARKERS = "os^Dv<>ph"  # curves are told apart without their colours

# ---- roofline -------------------------------------------------------------------------


def roofline(rows: Sequence[Row], title: str) -> Picture:
    """Draw tokens/s over bytes per token's arithmetic: memory's roof, and where each board is.

    Parameters
    ----------
    rows : sequence of Row
        Those whose model fits are drawn.
    title : str

    Raises
    ------
    LlamaPynqError
        If no board holds the model, or matplotlib is missing.
    """
    drawn = [row for row in rows if not row.reason]
    if not drawn:
        raise LlamaPynqError("no board holds this model, so there is nothing to draw")
    figure = _figure(9, 0.62 * len(drawn) + 2.2)
    _draw(figure.add_subplot(), drawn, title)
    speeds = "; ".join(f"{row.board.name} {row.one.tokens_per_second:,.0f}" for row in drawn)
    return Picture(figure, f"Roofline, {title}. Modelled tokens/s of one sequence: {speeds}.")


def plot_roofline(rows: Sequence[Row], title: str, path: Path) -> None:
    """Write the `roofline` to a picture's file; its suffix says the format."""
    roofline(rows, title).save(path)


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
        colour, marker = f"C{i}", _MARKERS[i % len(_MARKERS)]
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
    _label(axes, labels, right)
    axes.set_xlabel("operations per byte read (more sequences at once: to the right)")
    axes.set_ylabel("tokens/s")
    axes.set_title(
        f"{title}\nmodelled, not measured: one sequence (hollow marks), largest batch (filled)"
    )
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


# ---- batches --------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """Speed against the rows of a step, for `batch_drawing`.

    Attributes
    ----------
    label : str
        Whose, and by what it was found.
    kind : {"measured", "modelled", "roof"}
    tokens_per_second : dict of int to float
        Of all sequences together, by their number.
    """

    label: str
    kind: str
    tokens_per_second: dict[int, float]


_BIG_AND_KEY: dict[str, Any] = {"gridspec_kw": {"height_ratios": (5, 1)}}
_LINES = {"measured": "-", "modelled": "--", "roof": ":"}


def batch_drawing(curves: Sequence[Curve], title: str) -> Picture:
    """Draw rows against the tokens/s of all sequences, and the wait of one for its next token.

    Parameters
    ----------
    curves : sequence of Curve
    title : str

    Raises
    ------
    LlamaPynqError
        If matplotlib is missing.
    """
    figure = _figure(8.8, 4.6)
    axes_of = figure.subplot_mosaic([["rates", "waits"], ["key", "key"]], **_BIG_AND_KEY)
    panels = axes_of["rates"], axes_of["waits"]
    for i, curve in enumerate(curves):
        rows, rates = zip(*sorted(curve.tokens_per_second.items()))
        waits = [1e3 * n / rate for n, rate in zip(rows, rates)]
        look = {
            "linestyle": _LINES[curve.kind],
            "marker": _MARKERS[i % len(_MARKERS)],
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
