"""The table and the roofline plot of the boards."""

import subprocess
import sys

import pytest

from llama_pynq.boards import boards
from llama_pynq.checkpoint.shapes import SHAPES
from llama_pynq.errors import LimitError, LlamaPynqError
from llama_pynq.report.batches import Curve, batch_drawing
from llama_pynq.report.boards import boards_table, compare
from llama_pynq.report.roofline import _label, plot_roofline, roofline


@pytest.fixture(scope="module")
def rows():
    return compare(SHAPES["stories110M"])


def test_every_board_has_a_line_and_a_reason_where_the_model_does_not_fit(rows):
    text = boards_table(rows)
    lines = dict(line.split(maxsplit=1) for line in text.splitlines()[1 : len(rows) + 1])
    assert list(lines) == list(boards())
    assert lines["kv260"].startswith("yes")
    assert lines["pynq-z2"].split() == ["no", "135.3", "11.6"]
    assert "pynq-z2: weights and KV cache take 183 MiB" in text


def test_the_table_says_that_it_is_modelled_and_names_the_source_of_power(rows):
    text = boards_table(rows)
    assert "Modelled, not measured" in text
    assert "J/token: modelled watts (llama_pynq/estimate/power.py)" in text
    assert "within 35% of the published power" in text
    assert "not yet checked against the data sheet: zcu104" in text


def test_a_row_holds_what_the_model_predicts(rows):
    row = next(row for row in rows if row.board.name == "kv260")
    cells = next(line for line in boards_table(rows).splitlines() if line.startswith("kv260"))
    assert f"{row.one.tokens_per_second:,.1f}" in cells
    assert f"{row.one.share_of_roof:.0%}" in cells
    assert f"{row.batch.work.rows}: {row.batch.tokens_per_second:,.1f}" in cells


def test_a_board_without_a_published_reading_has_no_joules():
    lines = boards_table(compare(SHAPES["stories15M"])).splitlines()
    ends = {line.split()[0]: line.split()[-1] for line in lines[1:11]}
    assert ends["pynq-z2"] == ends["pynq-z1"] == "–"
    assert float(ends["kv260"]) > 0
    assert "No J/token: nobody published what an idle board draws: pynq-z1, pynq-z2." in lines


def test_fewer_bits_make_a_model_fit():
    small = compare(SHAPES["stories110M"], weight_bits=4, kv_bits=8)
    assert all(not row.reason for row in small if row.board.name == "pynq-z2")


def test_a_context_longer_than_the_models_is_refused():
    with pytest.raises(LimitError, match="position 1024: .* at most 1023"):
        compare(SHAPES["stories110M"], context=1025)


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
    _label(axes, [(1e4, f"board {i}", "C0") for i in range(3)] + [(9e3, "other", "C1")], 10)
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


def test_a_batch_drawing_has_throughput_and_the_wait_of_one():
    here = Curve("this computer", "measured", {4: 200.0, 1: 100.0})
    there = Curve("KV260", "modelled", {1: 50.0, 2: 80.0})
    drawing = batch_drawing([here, there], "A model")
    rates, waits, key = drawing.figure.axes
    assert rates.lines[0].get_xydata().tolist() == [[1, 100], [4, 200]]
    assert waits.lines[0].get_xydata().tolist() == [[1, 10], [4, 20]]
    legend = [text.get_text() for text in key.get_legend().get_texts()]
    assert legend == ["measured: this computer", "modelled: KV260"]
    looks = {(line.get_marker(), line.get_linestyle()) for line in rates.lines}
    assert len(looks) == 2  # distinguishable without colour
    assert (
        "this computer, measured, tokens/s by number of sequences: 1: 100, 4: 200."
        in (drawing._repr_mimebundle_()["text/plain"])
    )


def test_an_unknown_picture_format_is_refused(rows, tmp_path):
    with pytest.raises(LlamaPynqError, match=r"matplotlib writes no \.docx; end the name in"):
        plot_roofline(rows, "stories110M", tmp_path / "roof.docx")


def test_nothing_to_draw_is_refused(rows, tmp_path):
    none = [row for row in rows if row.reason]
    with pytest.raises(LlamaPynqError, match="no board holds this model"):
        plot_roofline(none, "stories110M", tmp_path / "roof.png")


def test_a_missing_matplotlib_is_named(rows, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(LlamaPynqError, match="a drawing needs matplotlib"):
        plot_roofline(rows, "stories110M", tmp_path / "roof.png")


def test_the_table_needs_no_matplotlib(run):
    code = "import sys, llama_pynq.report.boards; assert 'matplotlib' not in sys.modules"
    result: subprocess.CompletedProcess = run("-c", code)
    assert result.returncode == 0, result.stderr
