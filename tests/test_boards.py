"""The boards' memories."""

import math

from support.estimated import BOARDS

from llama_pynq.kernel.config import board_headers


def test_peaks_are_bus_widths_times_rates():
    for board in BOARDS.values():
        memory = board.memory
        assert memory.peak_bytes_per_s <= memory.banks * memory.bank_peak_bytes_per_s * 1.001
        assert memory.pool_bytes <= memory.banks * memory.bank_bytes
        assert 0 < memory.efficiency < 1
        assert memory.source
        assert board.sheet
        assert board.header in board_headers()
        assert math.isfinite(memory.latency_ns)
