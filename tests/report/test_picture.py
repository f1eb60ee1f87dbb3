"""Pictures: formats, and a missing matplotlib."""

import sys

import pytest

from llama_pynq.errors import LlamaPynqError
from llama_pynq.report.roofline import plot_roofline


def test_an_unknown_picture_format_is_refused(rows, tmp_path):
    with pytest.raises(LlamaPynqError, match=r"matplotlib writes no \.docx; end the name in"):
        plot_roofline(rows, "stories110M", tmp_path / "roof.docx")


def test_a_missing_matplotlib_is_named(rows, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(LlamaPynqError, match="a drawing needs matplotlib"):
        plot_roofline(rows, "stories110M", tmp_path / "roof.png")
