"""Fixtures of the tests of reports."""

import pytest

from llama_pynq.checkpoint.shapes import SHAPES
from llama_pynq.report.boards import compare


@pytest.fixture(scope="module")
def rows():
    return compare(SHAPES["stories110M"])
