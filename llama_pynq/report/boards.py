"""Table of boards: whether a model fits, and its speed (modelled)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from llama_pynq.boards import Board, boards
from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.estimate.capacity import fits
from llama_pynq.estimate.power import ERROR, TERMS, joules_per_token
from llama_pynq.estimate.predict import Prediction, predict
from llama_pynq.kernel.config import board_headers, kernel_of
from llama_pynq.kernel.limits import KernelLimits


@dataclass(frozen=True)
class BoardRow:
    """A board with a model: speed at batch 1 and at its largest batch, or why it does not fit.

    Attributes
    ----------
    board : Board
    one, batch : Prediction
        As if the model fitted.
    reason : str
        Why the model does not fit; empty if it does.
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
) -> list[BoardRow]:
    """Predict every board's speed with a model.

    Parameters
    ----------
    config : ModelConfig
    context : int
        Positions in use.
    weight_bits, group_size, kv_bits : int
        See `predict.predict`.

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
        longest = KernelLimits.from_header(board_headers()[board.header]).max_seq_len
        if not reason and context > longest:
            reason = f"the kernel holds a context of {longest} tokens at most, not {context}"
        rows.append(BoardRow(board, one, batch, reason))
    return rows


_NOTES = """\
Modelled, not measured: nobody has run this kernel on a board yet. No prices: see docs/boards.md.
Roof: the memory's peak times the share of it that long reads reach, over the bytes that a token
must read (weights once, keys and values of the context, no padding). tok/s: a model of the loops
of hls_src/ with the constants of the board's header and the assumptions of
llama_pynq/estimate/operators.py, host overhead included, sampling on the device. Batch: as many
sequences as a call takes, a row each. J/token: modelled watts (llama_pynq/estimate/power.py) over
tok/s at batch 1."""

_POWER_NOTE = (
    f"The power model is within {ERROR:.0%} of the published power of other accelerators. Its\n"
    "static part is a published sensor reading: of a KV260's module, of a ZCU104's or a card's\n"
    "input; on AWS F1 it is the chip, fitted to HLSTransform's 9 W."
)


def boards_table(rows: Sequence[BoardRow]) -> str:
    """Return the table as text: a line per board, and footnotes.

    Parameters
    ----------
    rows : sequence of BoardRow
        From `compare`.
    """
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


def boards_facts(rows: Sequence[BoardRow]) -> list[dict[str, Any]]:
    """Return the table as data: a dictionary per board, every speed and energy modelled.

    Speeds are in tokens/s; None where the model does not fit, or has no power model.
    """
    return [
        {
            "board": row.board.name,
            "title": row.board.title,
            "fits": not row.reason,
            "reason": row.reason,
            "kind": "modelled",
            "bytes_per_token": round(row.one.bytes),
            "roof_tokens_per_second": row.one.roof_tokens_per_second,
            "tokens_per_second": None if row.reason else row.one.tokens_per_second,
            "batch": row.batch.work.rows,
            "batch_tokens_per_second": None if row.reason else row.batch.tokens_per_second,
            "joules_per_token": None if row.reason else joules_per_token(row.one),
            "checked_against_data_sheet": row.board.verified,
        }
        for row in rows
    ]


def _cells(row: BoardRow) -> tuple[str, ...]:
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


def _powerless(rows: Iterable[BoardRow]) -> list[str]:
    names = [row.board.name for row in rows if row.board.name not in TERMS]
    return [f"No J/token: nobody published what an idle board draws: {', '.join(names)}."]


def _unchecked(rows: Iterable[BoardRow]) -> list[str]:
    names = [row.board.name for row in rows if not row.board.verified]
    return [f"Some figures not yet checked against the data sheet: {', '.join(names)}."]
