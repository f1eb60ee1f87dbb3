"""Live plot of the power of every rail, with the phases of generation marked."""

from __future__ import annotations

import math
from collections.abc import Callable

import ipywidgets as widgets
import numpy as np

from llama_pynq.energy import Energy
from llama_pynq.engine.llama import Llama
from llama_pynq.engine.watchers import loaded_last, watch_loads
from llama_pynq.errors import RequestError
from llama_pynq.measure.power import PowerRecorder
from llama_pynq.widgets.notice import VIEW_CLASS, Notice, of_model, plain_text
from llama_pynq.widgets.svg import DASHES, INK, PALE, Drawing, colour, escape, ticks
from llama_pynq.widgets.worker import Worker

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP = 900, 260, 60, 20, 80
_UPDATES_PER_SECOND = 5.0
_MOST_POINTS = 400


class PowerView(widgets.VBox):
    """Live plot of a running recorder; it ends with the recorder, and `follow` resumes it.

    Parameters
    ----------
    recorder : PowerRecorder
    window_s : float
        Seconds of the recording to show, counted back from its end; default 30.
    """

    def __init__(self, recorder: PowerRecorder, window_s: float = 30.0) -> None:
        self._worker = Worker()  # first: ipywidgets calls close() even if __init__ fails
        if not isinstance(recorder, PowerRecorder):
            raise RequestError(f"{type(recorder).__name__} given: give a PowerRecorder")
        self._recorder = recorder
        self._drawn = widgets.HTML()
        self.window = widgets.BoundedFloatText(
            value=window_s, min=1, max=3600, description="seconds",
            layout=widgets.Layout(width="180px"),
        )  # fmt: skip
        self.window.observe(lambda _: self.draw(), names="value")
        self._model, self._of_before = loaded_last(), ""
        self._before: Energy | str | None = None
        self._notice = Notice("the plot stands still, and the field has")
        super().__init__([self._drawn, self.window])
        self.add_class(VIEW_CLASS)
        watch_loads(self._loaded)
        self.draw()
        self.follow()

    __repr__ = plain_text

    def follow(self) -> None:
        """Redraw in the background until the recorder stops."""
        if self._recorder.running:
            self._worker.run(self._follow)

    def _follow(self) -> None:
        while self._recorder.running and not self._worker.stop.wait(1 / _UPDATES_PER_SECOND):
            self.draw()
        self.draw()

    def close(self) -> None:
        """Stop drawing and close the widget."""
        self._worker.stop.set()
        super().close()

    def _loaded(self, llama: Llama) -> None:
        """Keep what was generated last as the earlier model's."""
        if llama.summary != self._model:
            if self._recorder.last is not self._before:
                self._before, self._of_before = self._recorder.last, self._model
            self._model = llama.summary
            self.draw()

    def draw(self) -> None:
        """Draw the recording as it is now."""
        picture = _plot(self._recorder, self.window.value)
        last = self._recorder.last
        earlier = ""
        if isinstance(last, Energy) and last is self._before:
            earlier = (
                f", with an earlier model ({self._of_before})"
                if self._of_before
                else (", with an earlier model")
            )
        self._drawn.value = self._notice.html + (
            "<div style='background:#fff;color:#222;padding:6px;max-width:920px'>"
            f"{picture}{_summary(last, earlier)}{of_model(self._model)}</div>"
        )


def _plot(recorder: PowerRecorder, window_s: float) -> str:
    if not recorder.rails:
        return f"<p>No power is shown: {escape(recorder.why_empty)}.</p>"
    times = recorder.times
    end = float(times[-1]) if len(times) else 0.0
    begin = end - window_s
    kinds = {"measured" if rail.measured else "modelled" for rail in recorder.rails.values()}
    sources = dict.fromkeys(
        f"{'measured' if r.measured else 'modelled'}: {r.source}" for r in recorder.rails.values()
    )
    drawing = Drawing(
        _WIDTH, _HEIGHT + 18 * len(recorder.rails), f"Power over time, {' and '.join(kinds)}"
    )
    drawing.text(4, 15, f"Power, {' and '.join(sorted(kinds))}", size=13, bold=True)
    drawing.text(4, 31, "; ".join(sources), ink=PALE)
    shown = times >= begin
    series = {name: recorder.watts(name)[: len(times)][shown] for name in recorder.rails}
    top = max((float(np.nanmax(w)) for w in series.values() if np.isfinite(w).any()), default=1.0)
    top = max(top, 1e-3) * 1.15
    x_scale, y_scale = (_WIDTH - _LEFT - _RIGHT) / window_s, (_HEIGHT - _TOP - 34) / top
    foot = _HEIGHT - 34

    def at(time: float) -> float:
        return _LEFT + (min(max(time, begin), end) - begin) * x_scale

    for value in ticks(top, 4):
        y = foot - value * y_scale
        drawing.line([(_LEFT, y), (_WIDTH - _RIGHT, y)], ink="#dddddd")
        drawing.text(_LEFT - 6, y + 4, f"{value:g}", size=10, anchor="end", ink=PALE)
    drawing.text(16, (foot + _TOP) / 2 + 10, "watts", size=11, ink=PALE, turn=-90)
    for value in ticks(window_s, 6):
        x = _WIDTH - _RIGHT - value * x_scale
        drawing.text(x, foot + 14, f"−{value:g}" if value else "now", size=10, anchor="middle",
                     ink=PALE)  # fmt: skip
    drawing.text(_LEFT - 34, foot + 14, "s", size=10, anchor="end", ink=PALE)
    _phases(drawing, recorder, at, begin, foot)
    chosen = times[shown]
    step = max(1, math.ceil(len(chosen) / _MOST_POINTS))
    for i, (name, watts) in enumerate(series.items()):
        for run in _runs(chosen[::step], watts[::step]):
            points = [(at(t), foot - w * y_scale) for t, w in run]
            drawing.line(points, ink=colour(i), width=2, dash=DASHES[i % len(DASHES)], title=name)
        y = _HEIGHT + 18 * i - 2
        drawing.line([(_LEFT, y), (_LEFT + 40, y)], ink=colour(i), width=2,
                     dash=DASHES[i % len(DASHES)])  # fmt: skip
        now = watts[-1] if len(watts) else math.nan
        state = f"{now:.2f} W now" if math.isfinite(now) else recorder.lost.get(name, "no reading")
        drawing.text(_LEFT + 48, y + 4, f"{name}: {state}")
    return drawing.render()


_ROWS = {"prefill": 46, "idle": 46, "load": 46}  # y of these phases' names; others are below
_FILLS = {"idle": "#eeeeee", "prefill": "#fde7c4", "decode": "#d6e8f7", "load": "#e7f3e0"}


def _phases(
    drawing: Drawing, recorder: PowerRecorder, at: Callable[[float], float], begin: float,
    foot: float,
) -> None:  # fmt: skip
    """Draw the marked phases as bands, with their names if they fit."""
    free: dict[int, float] = {}
    for phase in list(recorder.phases):
        if phase.end < begin:
            continue
        x, right = at(phase.begin), at(phase.end)
        drawing.box(x, _TOP - 18, max(right - x, 1), foot - _TOP + 18, edge="#aaaaaa",
                    fill=_FILLS.get(phase.name, "#f4f4f4"), opacity=0.7,
                    title=f"{phase.name}: {phase.end - phase.begin:.2f} s")  # fmt: skip
        row = _ROWS.get(phase.name, 58)
        width = 6.0 * len(phase.name)
        left = min(x, _WIDTH - _RIGHT - width)
        if left > free.get(row, -math.inf):
            drawing.text(left, row, phase.name, size=10, ink=INK)
            free[row] = left + width + 4


def _runs(times: np.ndarray, watts: np.ndarray) -> list[list[tuple[float, float]]]:
    """Split the samples into runs without a missing reading."""
    runs: list[list[tuple[float, float]]] = [[]]
    for t, w in zip(times, watts):
        if math.isfinite(w):
            runs[-1].append((float(t), float(w)))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _summary(last: Energy | str | None, earlier: str) -> str:
    """Return the energy of the last text or batch, or why there is none, as HTML.

    `earlier` says that it was an earlier model's.
    """
    if last is None:
        return "<p style='margin:4px 0'>Nothing was generated with this recorder yet.</p>"
    if not isinstance(last, Energy):
        return f"<p style='margin:4px 0'>No energy for the last generation: {escape(last)}.</p>"
    note = ""
    if not last.measured:
        note = " Joules and seconds are the modelled board's; the plot's time is this computer's."
    return f"<p style='margin:4px 0'>Generated last{escape(earlier)}: {escape(last)}.{note}</p>"
