"""The table of the boards."""

import subprocess

import pytest

from llama_pynq.boards import boards
from llama_pynq.checkpoint.shapes import SHAPES
from llama_pynq.errors import LimitError
from llama_pynq.report.boards import boards_table, compare


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
    ends = {line.split()[0]: line.split()[-1] for line in lines[1 : 1 + len(boards())]}
    assert ends["pynq-z2"] == ends["pynq-z1"] == "–"
    assert float(ends["kv260"]) > 0
    assert any(
        line.startswith("No J/token: nobody published what an idle board draws: pynq-z1, pynq-z2")
        for line in lines
    )


def test_fewer_bits_make_a_model_fit():
    small = compare(SHAPES["stories110M"], weight_bits=4, kv_bits=8)
    assert all(not row.reason for row in small if row.board.name == "pynq-z2")


def test_a_context_longer_than_the_models_is_refused():
    with pytest.raises(LimitError, match="position 1024: .* at most 1023"):
        compare(SHAPES["stories110M"], context=1025)


def test_the_table_needs_no_matplotlib(run):
    code = "import sys, llama_pynq.report.boards; assert 'matplotlib' not in sys.modules"
    result: subprocess.CompletedProcess = run("-c", code)
    assert result.returncode == 0, result.stderr
