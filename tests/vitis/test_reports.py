"""Parsers of the reports of Vivado and the linker."""

import pytest
from support.fake_vitis import INFO, TIMING, UTILIZATION

from llama_pynq.errors import BuildError
from llama_pynq.vitis.reports import kernel_clock_mhz, utilization, worst_slack_ns

# Report of Vivado 2017.4 for a PYNQ-Z1 (BNN-PYNQ's figures).
SEVEN_SERIES = """\
| Slice LUTs                 | 25358 |     0 |     53200 | 47.67 |
|   LUT as Logic             | 22376 |     0 |     53200 | 42.06 |
| Block RAM Tile    |  121 |     0 |       140 | 86.43 |
|   RAMB36/FIFO*    |   76 |     0 |       140 | 54.29 |
| DSPs           |   24 |     0 |       220 | 10.91 |
|   DSP48E1 only |   24 |       |           |       |
"""


def test_utilization_of_ultrascale():
    assert utilization(UTILIZATION) == {"lut": 88123, "dsp": 530, "bram36": 99.5, "uram": 48}


def test_utilization_of_seven_series_has_no_ultraram():
    assert utilization(SEVEN_SERIES) == {"lut": 25358, "dsp": 24, "bram36": 121}


def test_report_without_luts_is_refused():
    with pytest.raises(BuildError, match="no row 'CLB LUTs' or 'Slice LUTs'"):
        utilization("| DSPs | 24 |")


@pytest.mark.parametrize(
    ("wns", "worst"), [("0.031", 0.010), ("-0.333", -0.333), ("0.005", 0.005), ("    NA", 0.010)]
)
def test_worst_slack_is_the_least_of_setup_hold_and_pulse(wns, worst):
    assert worst_slack_ns(TIMING.replace("{wns}", wns)) == worst


def test_slack_of_a_hold_violation_counts():
    # Vivado report of an Artix: setup met, hold violated.
    text = (
        "    WNS(ns)      TNS(ns)  TNS Failing Endpoints  TNS Total Endpoints      WHS(ns)\n"
        "    -------      -------  ---------------------  -------------------      -------\n"
        "      0.452        0.000                      0                 8953       -2.068\n"
    )
    assert worst_slack_ns(text) == -2.068


@pytest.mark.parametrize(
    ("text", "message"),
    [("Design Timing Summary", "no 'WNS"), (TIMING.replace("{wns}", "x").replace(
        "0.010", "NA").replace("1.125", "NA"), "holds no slack")],
)  # fmt: skip
def test_report_without_slack_is_refused(text, message):
    with pytest.raises(BuildError, match=message):
        worst_slack_ns(text)


def test_clock_is_the_kernels_not_the_second_one():
    assert kernel_clock_mhz(INFO.format(mhz=287)) == 287


def test_info_without_a_clock_is_refused():
    with pytest.raises(BuildError, match="names no DATA_CLK"):
        kernel_clock_mhz("System Clocks")
