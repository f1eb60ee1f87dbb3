"""Cycles of loops, nests of loops, and dataflow regions."""

import pytest

from llama_pynq.estimate.operators import dataflow, loop, nest


def test_loop_is_starts_and_one_depth():
    assert loop(10, 2, 7, entry=0) == 9 * 2 + 7
    assert loop(0, 2, 7, entry=3) == 3


def test_nest_pays_the_inner_loops_depth_every_time():
    assert nest(4, 10.0) == pytest.approx(42)


def test_a_dataflow_loop_goes_at_the_pace_of_its_slowest_process():
    trips = [(5.0, 20.0, 7.0)] * 10
    assert dataflow(trips) == pytest.approx(5 + 10 * 20 + 7 + 12 * 2 + 2)
    assert dataflow(trips[:1]) == pytest.approx(5 + 20 + 7 + 3 * 2 + 2)
