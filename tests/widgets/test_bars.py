"""Bars: the drawing and its text equivalent."""

import pytest

from llama_pynq.widgets import Bars


def test_bars_say_in_text_what_they_draw():
    bars = Bars([2, -1], ["<a>", "b"], "Title (modelled)", "what", "GB/s")
    assert repr(bars) == "Title (modelled). GB/s, by what: <a> 2, b -1"
    drawn = bars._repr_html_()
    assert drawn.startswith("<svg ") and "&lt;a&gt;: 2" in drawn and "<a>" not in drawn
    assert repr(Bars([1.0] * 64, [""] * 64, "T", "x", "y")).endswith("64 bars, 1 to 1")


def test_bars_have_heights_in_proportion_up_and_down_from_zero():
    drawn = Bars([2, -1], ["a", "b"], "T", "x", "y")._repr_html_()
    heights = [float(part.split("'")[1]) for part in drawn.split("height=")[-2:]]
    assert heights[0] == pytest.approx(2 * heights[1], rel=0.01)


def test_bars_wrap_labels_that_are_wider_than_a_bar():
    drawn = Bars([1.0] * 8, ["memory controllers"] * 8, "T", "x", "y")._repr_html_()
    assert ">memory</text>" in drawn and ">controllers</text>" in drawn


@pytest.mark.parametrize("values, labels", [([1, 2], [""]), ([], [])])
def test_bars_need_a_label_each(values, labels):
    with pytest.raises(ValueError, match=f"{len(values)} values and {len(labels)} labels"):
        Bars(values, labels, "T", "x", "y")
