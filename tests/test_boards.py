"""The boards: their names, memories and builds."""

import math

import pytest
from support.estimated import BOARDS

from llama_pynq.boards import board_key, find_board
from llama_pynq.errors import BoardNotFound
from llama_pynq.kernel.config import board_headers
from llama_pynq.vitis.platforms import PLATFORMS


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


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_board_key_takes_every_spelling(board):
    for name in (board.name, board.title):
        for spelled in (name, name.upper(), name.replace("-", "_"), name.replace("-", " "),
                        name.replace(" ", "").replace("-", ""), f" {name}\n"):  # fmt: skip
            assert board_key(spelled) == board.name
            assert find_board(spelled) is board


def test_board_key_of_an_unknown_board_lists_the_known_ones():
    with pytest.raises(BoardNotFound) as caught:
        board_key("kv261")
    names = ", ".join(BOARDS)
    assert str(caught.value) == (
        f"there is no board 'kv261': choose one of {names}; did you mean kv260?"
    )
    with pytest.raises(BoardNotFound, match="there is no kind 'u250': choose one of kv260$"):
        board_key("u250", ["kv260"], "kind")


def test_every_board_is_built_or_says_why_not():
    for board in BOARDS.values():
        assert (board.name in PLATFORMS) == (not board.no_build), board.name
    assert list(PLATFORMS) == [name for name in BOARDS if name in PLATFORMS]


@pytest.mark.parametrize("name", [5, None, b"kv260", ["kv260"]])
def test_a_name_that_is_no_text_is_refused(name):
    with pytest.raises(BoardNotFound, match="is no name of a board: choose one of .*kv260"):
        board_key(name)
