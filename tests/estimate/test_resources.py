"""Estimates of the kernel's resources."""

from dataclasses import fields, replace

import pytest

from llama_pynq.boards import Resources, boards
from llama_pynq.estimate.resources import (
    LIMITS,
    beyond,
    block_rams,
    resources,
    share,
    units,
)
from llama_pynq.kernel.config import kernel_of

BOARDS = boards()
KV260 = BOARDS["kv260"]
FITTING = ("zcu104", "aws-f1", "u200", "u250", "u280", "u55c")
MISSED = pytest.mark.xfail(strict=True, reason="misses today's estimate: docs/boards.md")
CROWDED = [pytest.param(n, marks=MISSED) for n in ("pynq-z1", "pynq-z2", "kv260", "u50")]


def test_units_sum_to_the_whole():
    parts, whole = units(KV260), resources(KV260)
    for field in fields(Resources):
        total = sum(getattr(part, field.name) for part in parts.values())
        assert getattr(whole, field.name) == pytest.approx(total)


@pytest.mark.parametrize(
    ("constant", "unit", "resource"),
    [
        ("channels", "engines", "dsp"),
        ("max_rows", "engines", "dsp"),
        ("scale_lanes", "scaling", "dsp"),
        ("kv_ports", "attention", "dsp"),
        ("attention_lanes", "attention", "dsp"),
        ("vector_lanes", "norm, quantise, rope", "dsp"),
        ("weight_fifo_beats", "FIFOs", "uram"),
        ("kv_fifo_beats", "FIFOs", "uram"),
        ("max_dim", "on-chip arrays", "bram36"),
        ("top_logits", "sampler", "lut"),
        ("kv_beat_bytes", "attention", "lut"),
        ("beat_bytes", "memory ports", "bram36"),
    ],
)
def test_twice_a_constant_takes_more_of_its_unit(constant, unit, resource):
    kernel = kernel_of(KV260)
    more = replace(kernel, **{constant: 2 * getattr(kernel, constant)})
    assert getattr(units(KV260, more)[unit], resource) > getattr(units(KV260)[unit], resource)


@pytest.mark.parametrize(
    ("constant", "unit"),
    [("gate_cycles", "gate"), ("sample_cycles", "sampler"), ("score_cycles", "attention")],
)
def test_a_slower_epilogue_takes_less(constant, unit):
    kernel = kernel_of(KV260)
    slower = replace(kernel, **{constant: 2 * getattr(kernel, constant)})
    assert units(KV260, slower)[unit].dsp < units(KV260)[unit].dsp


def test_an_m_axi_buffer_is_what_a_peer_reports():
    # llama2.hls, README: 16 outstanding bursts of 256 beats of 128 bits take 30 BRAM18.
    assert block_rams(16 * 256, 128) == pytest.approx(15, abs=1)


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_the_config_takes_no_more_than_the_device_has(board):
    used = share(resources(board), board.resources)
    assert all(getattr(used, field.name) <= 1 for field in fields(Resources))


@pytest.mark.parametrize("name", [*FITTING, *CROWDED])
def test_the_config_fits_the_device_with_room_to_close_timing(name):
    board = BOARDS[name]
    used = share(resources(board), board.resources)
    most = {f.name: getattr(LIMITS, f.name) for f in fields(Resources)}
    over = [field for field in most if getattr(used, field) > most[field]]
    assert beyond(resources(board), board.resources) == over
    assert not over, f"beyond the limits: {over}"
