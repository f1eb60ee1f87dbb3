"""Stage times of one token: a Gantt chart, stacked bars over positions, and a table."""

from __future__ import annotations

from collections.abc import Sequence

import ipywidgets as widgets

from llama_pynq.errors import RequestError
from llama_pynq.kernel.abi import Stage
from llama_pynq.measure.timing import StepTimes
from llama_pynq.widgets.notice import VIEW_CLASS, Notice, of_model, plain_text
from llama_pynq.widgets.svg import INK, PALE, STYLES, Drawing, escape, ticks

_NAMES = {
    Stage.QKV: "QKV",
    Stage.FFN_NORM: "FFN norm",
    Stage.GATE_UP: "gate, up",
}
"""Names of stages that are not those of `Stage` in lower case."""

_STYLES = {
    Stage.QKV: 0,
    Stage.ATTENTION: 1,
    Stage.ATTENTION_OUT: 2,
    Stage.GATE_UP: 3,
    Stage.DOWN: 4,
    Stage.CLASSIFIER: 5,
    Stage.ATTENTION_NORM: 6,
    Stage.FFN_NORM: 6,
    Stage.FINAL_NORM: 6,
}
_NORMS, _OTHERS = 6, 7
_ONCE = (Stage.EMBED, Stage.FINAL_NORM, Stage.CLASSIFIER, Stage.SAMPLE)
"""Stages of a step; all others belong to a layer."""

_WIDTH, _LEFT, _LANE, _BARS = 900, 110, 17, 150


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}" if value >= 10 else f"{value:,.2f}"


class LayerTiming(widgets.VBox):
    """Stage times of one token, measured and modelled, with a slider for the position.

    The view says so when another model is loaded than that of its times.

    Parameters
    ----------
    measured : sequence of StepTimes
        One step of one token for each position; from `timing.measure_steps`.
    modelled : sequence of StepTimes, optional
        Modelled steps at the same positions; from `timing.model_steps`.

    Raises
    ------
    RequestError
        If `measured` is empty, or the positions differ.
    """

    def __init__(self, measured: Sequence[StepTimes], modelled: Sequence[StepTimes] = ()) -> None:
        positions = [step.position for step in measured]
        if not positions:
            raise RequestError("there are no steps to show: timing.measure_steps() makes them")
        if modelled and positions != [step.position for step in modelled]:
            raise RequestError("the measured and the modelled steps have different positions")
        self._measured, self._modelled = list(measured), list(modelled)
        self.position = widgets.SelectionSlider(
            options=positions,
            value=positions[-1],
            description="position",
            continuous_update=True,
            layout=widgets.Layout(width="480px"),
        )
        self._drawn = widgets.HTML()
        self.position.observe(self._draw, names="value")
        self._notice = Notice("the slider has", self._measured[0].model, self._draw)
        self._draw()
        super().__init__([self.position, self._drawn])
        self.add_class(VIEW_CLASS)

    __repr__ = plain_text

    def _draw(self, _: object = None) -> None:
        at = list(self.position.options).index(self.position.value)
        steps = [self._measured[at], *(self._modelled[at : at + 1])]
        sets = [self._measured, *([self._modelled] if self._modelled else [])]
        parts = [_gantt(step) for step in steps]
        parts += [_bars(steps_of, at) for steps_of in sets]
        self._drawn.value = self._notice.html + (
            "<div style='background:#fff;color:#222;padding:6px;max-width:920px'>"
            f"{''.join(parts)}{_legend(self._measured + self._modelled)}{_table(steps)}"
            f"{of_model(self._measured[0].model)}</div>"
        )


def _stages(steps: Sequence[StepTimes]) -> list[Stage]:
    """Stages to show, in their order: those of `Stage`, and any that a step has beyond them."""
    known = [stage for stage in Stage if stage is not Stage.END]
    return list(dict.fromkeys([*known, *(stage for step in steps for stage, _ in step.cycles)]))


def _name(stage: Stage) -> str:
    return _NAMES.get(stage, stage.name.lower().replace("_", " "))


def _style(stage: Stage) -> int:
    return _STYLES.get(stage, _OTHERS)


def _groups(steps: Sequence[StepTimes]) -> dict[int, tuple[str, list[Stage]]]:
    """Name and stages of each style; stages without a style of their own share the last."""
    found: dict[int, list[Stage]] = {style: [] for style in range(STYLES)}
    for stage in _stages(steps):
        found[_style(stage)].append(stage)
    names = {style: ", ".join(map(_name, stages)) for style, stages in found.items()}
    return {style: (names[style] if style != _NORMS else "norms", found[style]) for style in found}


def _title(step: StepTimes, stage: Stage, layer: int) -> str:
    us, cycles = step.us(stage, layer), step.cycles[stage, layer]
    unit = "ticks" if step.measured else "cycles"  # of the time stamps, or of the kernel
    n_bytes = step.stage_bytes(stage, layer)
    where = _name(stage) if stage in _ONCE else f"layer {layer}, {_name(stage)}"
    reads = f", reads {n_bytes:,} bytes" if n_bytes else ""
    return f"{where}: {_amount(us)} µs {step.kind}, {cycles:,.0f} {unit}{reads}"


def _gantt(step: StepTimes) -> str:
    """Draw one step: time to the right, one lane per stage, one bar per layer."""
    lanes = {stage: i for i, stage in enumerate(_stages([step]))}
    height = 46 + _LANE * len(lanes) + 30
    label = f"Gantt chart of one token at position {step.position}, {step.kind}"
    drawing = Drawing(_WIDTH, height, label)
    drawing.text(4, 14, f"{step.kind.capitalize()}: {step.source}", size=13, bold=True)
    roof = step.share_of_roof
    share = "" if roof is None else f"; {roof:.0%} of the memory's roof"
    drawing.text(
        4, 30, f"one token at position {step.position}: {_amount(step.total_us)} µs in the kernel, "
        f"{'time stamps' if step.measured else 'clock'} at {step.clock_mhz:g} MHz{share}", ink=PALE,
    )  # fmt: skip
    scale = (_WIDTH - _LEFT - 16) / step.total_us
    bottom = 42 + _LANE * len(lanes)
    for value in ticks(step.total_us, 8):
        x = _LEFT + value * scale
        drawing.line([(x, 40), (x, bottom)], ink="#dddddd")
        drawing.text(x, bottom + 14, _tick(value), size=10, anchor="middle", ink=PALE)
    drawing.text(_LEFT - 6, bottom + 14, "µs", size=10, anchor="end", ink=PALE)
    for stage, lane in lanes.items():
        drawing.text(_LEFT - 6, 54 + _LANE * lane, _name(stage), size=11, anchor="end")
    begin = 0.0
    for (stage, layer), cycles in step.cycles.items():
        us = cycles / step.clock_mhz
        drawing.box(
            _LEFT + begin * scale, 43 + _LANE * lanes[stage], max(us * scale, 0.7), _LANE - 4,
            style=_style(stage), title=_title(step, stage, layer), edge=INK if us * scale > 4
            else "none",
        )  # fmt: skip
        begin += us
    return drawing.render()


def _tick(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:g}"


def _bars(steps: Sequence[StepTimes], chosen: int) -> str:
    """Draw one bar per position, its stages stacked."""
    kind = steps[0].kind
    drawing = Drawing(_WIDTH, _BARS + 62, f"Stages over positions, {kind}")
    drawing.text(4, 14, f"{kind.capitalize()}: stage times over positions (the slider's is boxed)",
                 size=13, bold=True)  # fmt: skip
    groups, top = _groups(steps), max(step.total_us for step in steps)
    scale, foot = _BARS / top, _BARS + 26
    for value in ticks(top, 4):
        y = foot - value * scale
        drawing.line([(_LEFT, y), (_WIDTH - 16, y)], ink="#dddddd")
        drawing.text(_LEFT - 6, y + 4, _tick(value), size=10, anchor="end", ink=PALE)
    drawing.text(_LEFT - 60, 40, "µs", size=10, ink=PALE)
    room = (_WIDTH - _LEFT - 16) / len(steps)
    width = min(room * 0.7, 48)
    for i, step in enumerate(steps):
        x, y = _LEFT + room * (i + 0.5) - width / 2, foot
        for style, (name, stages) in groups.items():
            us = sum(step.us(stage) for stage in stages)
            y -= us * scale
            share = us / step.total_us
            drawing.box(
                x, y, width, us * scale, style=style,
                title=f"position {step.position}, {name}: {_amount(us)} µs {kind}, {share:.0%}",
            )  # fmt: skip
        if i == chosen:
            drawing.box(x - 3, y - 3, width + 6, foot - y + 6, edge=INK)
        drawing.text(x + width / 2, foot + 16, step.position, size=10, anchor="middle")
    drawing.text(_LEFT - 6, foot + 16, "position", size=10, anchor="end", ink=PALE)
    return drawing.render()


def _legend(steps: Sequence[StepTimes]) -> str:
    drawing = Drawing(_WIDTH, 22, "Legend")
    x = 4.0
    for style, (name, _) in _groups(steps).items():
        drawing.box(x, 4, 14, 14, style=style, edge=INK)
        drawing.text(x + 19, 16, name, size=11)
        x += 34 + 6.6 * len(name)
    return drawing.render()


def _table(steps: Sequence[StepTimes]) -> str:
    """Return a table of the stages, summed over layers: bytes, times, shares of time and roof."""
    head = ["stage", "reads, bytes"]
    for step in steps:
        ticks_of = "ticks" if step.measured else "cycles"
        head += [f"{step.kind} µs", ticks_of, "share", "of roof"]
    rows = []
    for stage in _stages(steps):
        n_bytes = steps[0].stage_bytes(stage)
        cells = [_name(stage), f"{n_bytes:,}" if n_bytes else ""]
        for step in steps:
            us = step.us(stage)
            cells += [_amount(us), f"{us * step.clock_mhz:,.0f}", f"{us / step.total_us:.1%}"]
            cells.append(_stage_roof(step, stage))
        rows.append(cells)
    total = ["all", f"{sum(steps[0].bytes.values()):,}"]
    for step in steps:
        roof = step.share_of_roof
        total += [_amount(step.total_us), f"{sum(step.cycles.values()):,.0f}", "100%",
                  "" if roof is None else f"{roof:.0%}"]  # fmt: skip
    rows.append(total)

    def line(cells: Sequence[str], tag: str) -> str:
        styled = (
            f"<{tag} style='text-align:{'left' if i == 0 else 'right'};padding:1px 8px'>"
            f"{escape(cell)}</{tag}>"
            for i, cell in enumerate(cells)
        )
        return f"<tr>{''.join(styled)}</tr>"

    body = "".join(line(cells, "td") for cells in rows)
    return (
        "<table style='font-size:12px;border-collapse:collapse;margin-top:6px'>"
        f"<thead>{line(head, 'th')}</thead><tbody>{body}</tbody></table>"
        "<p style='font-size:11px;color:#555;margin:4px 0'>Sums over all layers. Of roof: the "
        "time to read the stage's bytes at the memory's peak times its efficiency, divided by the "
        "stage's time; above 100% if the loaders prefetched.</p>"
    )


def _stage_roof(step: StepTimes, stage: Stage) -> str:
    n_bytes, us = step.stage_bytes(stage), step.us(stage)
    if step.roof_seconds is None or not n_bytes or not us:
        return ""
    at_roof = step.roof_seconds * 1e6 * n_bytes / sum(step.bytes.values())
    return f"{at_roof / us:.0%}"
