"""Boards and models that the cycle model's tests predict."""

import pytest

from llama_pynq.boards import boards
from llama_pynq.checkpoint.shapes import STORIES

BOARDS = boards()
STORIES15M, STORIES110M = STORIES["stories15M"], STORIES["stories110M"]
KV260, U50 = BOARDS["kv260"], BOARDS["u50"]
each_board = pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
