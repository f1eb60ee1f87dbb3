"""FPGA, CPU and GPU in one table: published, measured and modelled figures with sources."""

from dataclasses import replace

import pytest

from llama_pynq import EmulatedDevice, LlamaOverlay
from llama_pynq.checkpoint.shapes import STORIES
from llama_pynq.measure.power import PowerRecorder, Rail
from llama_pynq.report.comparison import PUBLISHED, Cost, measured, modelled, table

SENSOR = {"a": Rail("a", "a test's sensor", lambda: 12.0)}


@pytest.fixture(scope="module")
def overlay():
    with LlamaOverlay(device=EmulatedDevice()) as overlay:
        overlay.load_model()
        yield overlay


def texts(overlay, rails=None, n=2):
    options = {"max_new_tokens": 12, "temperature": 0}
    if rails is None:
        return overlay.generate(["Once"] * n, **options)
    with PowerRecorder(rails, rate_hz=100) as recorder:
        return overlay.generate(["Once"] * n, power=recorder, **options)


def cells(text, device):
    line = next(line for line in text.splitlines() if line.startswith(f"| {device} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_papers_own_figures_are_published_and_its_constant_is_left_out():
    text = table(PUBLISHED)
    fpga = "57.1 tok/s, 9.0 W, 0.158 J/token, 0.0438 mWh/token"
    assert cells(text, "FPGA: VU9P (AWS F1)") == ["FPGA: VU9P (AWS F1)", "1", fpga, "", ""]
    assert cells(text, "CPU: Xeon E5-2686 v4")[2:] == ["23.2 tok/s", "", ""]
    assert "42.5 W is a fallback constant of its tool, not a reading" in text


def test_measured_cells_are_a_sensors(overlay):
    cost = measured("here", texts(overlay, SENSOR))
    assert (cost.kind, cost.batch, cost.watts) == ("measured", 2, pytest.approx(12))
    assert cost.joules_per_token == pytest.approx(12 / cost.tokens_per_second)
    row = cells(table([cost]), "here")
    assert "tok/s, 12.0 W, " in row[3] and "mWh/token" in row[3]
    assert row[2] == row[4] == ""


def test_without_a_sensor_the_measured_watts_are_empty(overlay):
    cost = measured("here", texts(overlay))
    assert cost.watts is None and cost.source == "host clock; no power sensor"
    row = cells(table([cost]), "here")
    assert row[3] == f"{cost.tokens_per_second:.1f} tok/s"


def test_modelled_watts_never_stand_among_the_measured(overlay):
    rails = {"a": replace(SENSOR["a"], measured=False)}
    assert measured("here", texts(overlay, rails)).watts is None


def test_modelled_boards_have_batch_1_and_their_largest():
    costs = modelled(STORIES["stories110M"], ["kv260", "u250", "pynq-z2"])  # does not fit the Z2
    assert [(cost.device, cost.batch) for cost in costs] == [
        ("FPGA: KV260", 1), ("FPGA: KV260", 2), ("FPGA: Alveo U250", 1), ("FPGA: Alveo U250", 4),
    ]  # fmt: skip
    one, two = costs[:2]
    assert two.joules_per_token < one.joules_per_token and one.watts > one.idle_watts
    modelled_cell = cells(table(costs), "FPGA: KV260")[4]
    assert modelled_cell.startswith(f"{one.tokens_per_second:.1f} tok/s, ")
    assert f"idle {one.idle_watts:.1f} W" in modelled_cell


def test_kinds_of_one_device_share_its_line():
    costs = [Cost("x", 1, kind, 10.0, 5.0, None, "a") for kind in ("published", "modelled")]
    row = cells(table(costs), "x")
    assert row[2] == row[4] == "10.0 tok/s, 5.0 W, 0.5 J/token, 0.139 mWh/token" and row[3] == ""
