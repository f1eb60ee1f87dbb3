"""Comparison of FPGA, CPU and GPU with the same model and prompt, as a table.

Published, measured and modelled figures are in separate columns; a cell without a source stays
empty. HLSTransform's readers asked for this table.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llama_pynq.boards import find_board
from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.engine.results import Generation
from llama_pynq.estimate.capacity import fits
from llama_pynq.estimate.power import idle_watts, watts_of
from llama_pynq.estimate.predict import predict
from llama_pynq.kernel.config import kernel_of


@dataclass(frozen=True)
class Cost:
    """Speed and power of a device with a model.

    Attributes
    ----------
    device : str
    batch : int
        Sequences side by side.
    kind : {"published", "measured", "modelled"}
    tokens_per_second : float
        Of all sequences together.
    watts, idle_watts : float or None
        None: no source.
    source : str
    """

    device: str
    batch: int
    kind: str
    tokens_per_second: float
    watts: float | None
    idle_watts: float | None
    source: str

    @property
    def joules_per_token(self) -> float | None:
        """`watts` over `tokens_per_second`; None without watts."""
        return None if self.watts is None else self.watts / self.tokens_per_second

    @property
    def mwh_per_token(self) -> float | None:
        """`joules_per_token` in milliwatt-hours, HLSTransform's unit."""
        return None if self.joules_per_token is None else self.joules_per_token / 3.6


_PAPER = "HLSTransform, arXiv 2405.00738, stories110M, 256 tokens"
PUBLISHED = (
    Cost("FPGA: VU9P (AWS F1)", 1, "published", 57.11, 9.0, None, _PAPER),
    Cost("CPU: Xeon E5-2686 v4", 1, "published", 23.21, None, None, f"{_PAPER}; its 42.5 W is a "
         "fallback constant of its tool, not a reading, and is left out"),
    Cost("GPU: RTX 3090", 1, "published", 107.00, 126.9, None, _PAPER),
)  # fmt: skip
"""The paper's own table, of stories110M."""


def modelled(config: ModelConfig, names: Iterable[str], position: int = 255) -> list[Cost]:
    """Predict the boards that hold the model, at batch 1 and the largest batch.

    Parameters
    ----------
    config : ModelConfig
    names : iterable of str
        Names of boards; those that do not hold the model are left out.
    position : int
        Position of every row.
    """
    costs = []
    for board in map(find_board, names):
        if not fits(config, board)[0]:
            continue
        for rows in dict.fromkeys((1, kernel_of(board).max_rows)):
            step = predict(config, board, rows=rows, position=position)
            costs.append(
                Cost(
                    f"FPGA: {board.title}", rows, "modelled", step.tokens_per_second,
                    watts_of(step), idle_watts(board), "llama_pynq/estimate (predict.py, power.py)",
                )
            )  # fmt: skip
    return costs


def measured(device: str, texts: Sequence[Generation]) -> Cost:
    """Return the measured cost of a batch that ``generate(..., power=recorder)`` made here.

    Parameters
    ----------
    device : str
        Name for the table.
    texts : sequence of Generation
        All of the batch. Modelled energy is left out.
    """
    seconds = max(text.prompt_seconds + text.decode_seconds for text in texts)
    energy = texts[0].energy
    if energy is not None and not energy.measured:
        energy = None
    return Cost(
        device,
        len(texts),
        "measured",
        sum(len(text.tokens) for text in texts) / seconds,
        energy.mean_watts if energy else None,
        energy.idle_watts if energy else None,
        energy.source if energy else "host clock; no power sensor",
    )


_KINDS = ("published", "measured", "modelled")
_HEAD = ("device", "batch", *_KINDS)


def table(costs: Sequence[Cost]) -> str:
    """Return the table in Markdown, a line per device and batch, then the sources.

    Parameters
    ----------
    costs : sequence of Cost
    """
    lines: dict[tuple[str, int], dict[str, Cost]] = {}
    for cost in costs:
        lines.setdefault((cost.device, cost.batch), {})[cost.kind] = cost
    rows = [_HEAD, ("---",) * len(_HEAD)]
    for (device, batch), kinds in lines.items():
        cells = [device, str(batch)]
        for kind in _KINDS:
            cells.append(_cell(kinds.get(kind)))
        rows.append(tuple(cells))
    sources = dict.fromkeys(f"{cost.device}, {cost.kind}: {cost.source}" for cost in costs)
    return "\n".join(
        [*(f"| {' | '.join(row)} |" for row in rows), "", *(f"- {s}" for s in sources)]
    )


def _cell(cost: Cost | None) -> str:
    """Format the figures of a cost with units; figures without a source are left out."""
    if cost is None:
        return ""
    figures = (
        (cost.tokens_per_second, "{:.1f} tok/s"),
        (cost.watts, "{:.1f} W"),
        (cost.idle_watts, "idle {:.1f} W"),
        (cost.joules_per_token, "{:.3g} J/token"),
        (cost.mwh_per_token, "{:.3g} mWh/token"),
    )
    return ", ".join(form.format(value) for value, form in figures if value is not None)
