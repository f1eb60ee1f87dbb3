"""What a view says of itself: that its kernel is gone, or that another model was loaded since."""

from __future__ import annotations

from collections.abc import Callable

from llama_pynq.engine.llama import Llama
from llama_pynq.engine.watchers import loaded_last, watch_loads
from llama_pynq.widgets.svg import escape

_BOX = (
    "margin: 4px 0; padding: 4px 8px; border: 1px solid #b58900; border-left-width: 6px; "
    "background: #fff3cd; color: #222; line-height: 1.5; max-width: 900px; white-space: normal"
)
VIEW_CLASS = "llama-view"
STATUS_CLASS = "llama-status"
"""Of lines that only a living kernel keeps true."""

# Python is gone when the kernel is: only a style can show what was sent before. ipywidgets 7 and 8
# give the class jupyter-widgets-disconnected to a widget whose kernel was restarted, by the user
# or after its death; of a shutdown only JupyterLab's own indicator tells.
_STYLE = f"""<style>
.llama-gone {{ display: none; {_BOX} }}
.jupyter-widgets-disconnected .llama-gone {{ display: block; }}
.{STATUS_CLASS}.jupyter-widgets-disconnected {{ display: none !important; }}
.{VIEW_CLASS} .jupyter-widgets-disconnected:is(.widget-button, .widget-slider, .widget-select,
  .widget-dropdown, .widget-checkbox, .widget-text, .widget-textarea) {{
  opacity: 0.45; cursor: not-allowed; }}
.{VIEW_CLASS} .widget-button.jupyter-widgets-disconnected {{ pointer-events: none; }}
.{VIEW_CLASS} .jupyter-widgets-disconnected::before {{ content: none !important; }}
.jp-NotebookPanel:has(.jp-Notebook-ExecutionIndicator:is([data-status="unknown"],
  [data-status="dead"], [data-status="terminating"])) .llama-gone {{ display: block; }}
</style>"""

_GONE = (
    "<div class='llama-gone' role='alert'><b>The kernel was restarted or shut down: {what} no "
    "effect any more.</b> Run the notebook's cells again, from the first.</div>"
)


def stale(model: str, loaded: str) -> str:
    """Return HTML that says so if a view's model is not the loaded one; else an empty string.

    Parameters
    ----------
    model, loaded : str
        `Llama.summary` of the view's model and of the loaded one.
    """
    if model == loaded:
        return ""
    of = f"This is of an earlier model: {escape(model)}. " if model else ""
    return (
        f"<div class='llama-stale' style='{_BOX}'>{of}Another model was loaded since: "
        f"{escape(loaded)}. Run the cells that measure again, and then this one.</div>"
    )


def of_model(model: str) -> str:
    """Return a view's line about its model; empty if that is unknown."""
    return f"<p style='font-size:11px;color:#555'>model: {escape(model)}</p>" if model else ""


class Notice:
    """Lines at the head of a view, as HTML: its kernel is gone, or another model was loaded.

    Parameters
    ----------
    what : str
        The view's controls, and "has" or "have"; empty if it has none.
    model : str
        `Llama.summary` of the model that the view shows; if empty, the one loaded last.
    redraw : callable, optional
        Called when `html` has changed. None: the view follows the loaded model itself.
    """

    def __init__(
        self, what: str, model: str = "", redraw: Callable[[], None] | None = None
    ) -> None:
        self._gone = _STYLE + _GONE.format(what=what) if what else ""
        self._model, self._redraw = model or loaded_last(), redraw
        self.html = self._gone
        if redraw is not None:
            watch_loads(self._loaded)

    def _loaded(self, llama: Llama) -> None:
        now = self._gone + stale(self._model, llama.summary)
        if now != self.html and self._redraw is not None:
            self.html = now
            self._redraw()


def plain_text(view: object) -> str:
    """Return what stands in the place of a view where no widgets are shown: its `__repr__`."""
    return f"{type(view).__name__}: run this cell to see and use it"
