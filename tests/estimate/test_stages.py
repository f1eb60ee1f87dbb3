"""Beats that the stages of a step consume."""

import pytest
from support.estimated import STORIES110M, each_board

from llama_pynq.estimate.stages import Compute
from llama_pynq.estimate.work import Work
from llama_pynq.kernel.config import kernel_of
from llama_pynq.weights.tiles import channel_bytes


@each_board
@pytest.mark.parametrize("bits", [8, 4])
def test_beats_of_a_step_are_the_bytes_that_packing_writes(board, bits):
    kernel = kernel_of(board)
    work = Work(STORIES110M, 64, bits, 32, 1, 0, True)
    stages = Compute(kernel, work, 100.0).stages()
    beats = sum(phase.weights for _, _, phases in stages for phase in phases)
    # Channel 0 also holds the norms.
    assert beats * kernel.beat_bytes == channel_bytes(STORIES110M, 64, kernel.target, bits)[0]
