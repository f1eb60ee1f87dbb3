"""The drawing of speed over the number of sequences."""

from llama_pynq.report.batches import Curve, batch_drawing


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
