"""Figures that a notebook shows as the value of a cell, and that can be saved."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass, field
from typing import Any

from llama_pynq.errors import LlamaPynqError
from llama_pynq.utils.files import user_path

MARKERS = "os^Dv<>ph"  # distinguish curves without their colours


@dataclass(frozen=True)
class Picture:
    """A figure that a notebook shows as the value of a cell, and that can be saved.

    Attributes
    ----------
    figure : matplotlib.figure.Figure
    text : str
        Alternative text: what the figure shows.
    """

    figure: Any = field(repr=False)
    text: str

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the figure to a file, whose suffix selects the format.

        Parameters
        ----------
        path : str or path
            ``~`` is the home folder.

        Raises
        ------
        LlamaPynqError
            If matplotlib does not know the format, or the file cannot be written.
        """
        path = user_path(path)
        if path.suffix[1:] not in self.figure.canvas.get_supported_filetypes():
            raise LlamaPynqError(
                f"{path}: matplotlib writes no {path.suffix or 'file without a suffix'}; "
                "end the name in .png, .svg or .pdf"
            )
        try:
            self.figure.savefig(path, dpi=150)
        except OSError as error:
            raise LlamaPynqError(
                f"{path} cannot be written ({error.strerror or error}): give a file in a folder "
                "that is there, and that you may write to"
            ) from error

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        file = io.StringIO()
        self.figure.savefig(file, format="svg", metadata={"Title": self.text, "Date": None})
        return {"text/plain": self.text, "image/svg+xml": file.getvalue()}


def new_figure(width: float, height: float) -> Any:
    """Return an empty figure of `width` by `height` inches, independent of pyplot.

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
