"""The roofline plot of the boards."""

import pytest

from llama_pynq.errors import LlamaPynqError
from llama_pynq.report.roofline import label_roofs, plot_roofline, roofline


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_roofline_is_drawn(rows, tmp_path, suffix):
    path = tmp_path / f"roof.{suffix}"
    plot_roofline(rows, "stories110M", path)
    start = path.read_bytes()[:8]
    assert start == b"\x89PNG\r\n\x1a\n" if suffix == "png" else start.startswith(b"<?xml")


def test_the_roofline_is_marked_as_modelled_and_names_what_fits(rows, tmp_path):
    path = tmp_path / "roof.svg"
    plot_roofline(rows, "stories110M", path)
    text = path.read_text(encoding="utf-8")
    assert "<!-- modelled, not measured" in text  # matplotlib keeps drawn text as a comment
    assert "<!-- u200, u250:" in text
    assert "pynq" not in text


def test_labels_of_roofs_that_end_together_do_not_overlap():
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    figure = Figure(figsize=(9, 7), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_yscale("log")
    axes.plot([1, 10], [1, 1e4])
    label_roofs(axes, [(1e4, f"board {i}", "C0") for i in range(3)] + [(9e3, "other", "C1")], 10)
    canvas.draw()
    boxes = [Text.get_window_extent(text) for text in axes.texts]  # without the leader line
    assert len(boxes) == 4
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])


def test_a_notebook_shows_the_roofline_as_a_picture_and_in_words(rows):
    bundle = roofline(rows, "stories110M")._repr_mimebundle_(include=None, exclude=None)
    assert "<!-- modelled, not measured" in bundle["image/svg+xml"]
    assert bundle["text/plain"].startswith("Roofline, stories110M. Modelled tokens/s")
    assert "kv260 113" in bundle["text/plain"] and "pynq-z2" not in bundle["text/plain"]


def test_groups_of_the_roofline_differ_in_their_marks(rows):
    lines = roofline(rows, "stories110M").figure.axes[0].lines
    marks = [line.get_marker() for line in lines if line.get_marker() != "None"]
    assert len(set(marks)) == len(marks) // 2  # two lines per group: one sequence and largest batch


def test_nothing_to_draw_is_refused(rows, tmp_path):
    none = [row for row in rows if row.reason]
    with pytest.raises(LlamaPynqError, match="no board holds this model"):
        plot_roofline(none, "stories110M", tmp_path / "roof.png")
