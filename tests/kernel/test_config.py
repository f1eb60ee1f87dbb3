"""The reader of the board headers."""

import shutil

import pytest

from llama_pynq.boards import boards
from llama_pynq.kernel.config import KernelConfig, board_headers, kernel_of

BOARDS = boards()


def test_a_header_without_a_constant_is_refused_by_name(tmp_path):
    source = board_headers()["kv260"]
    folder = tmp_path / "boards"
    folder.mkdir()
    shutil.copy(source.parents[1] / "config.h", tmp_path)
    header = folder / "kv260.h"
    text = source.read_text(encoding="utf-8").replace("kGateCycles", "kOther")
    header.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"kv260\.h defines no 'constexpr int kGateCycles"):
        KernelConfig.from_header(header)


def test_a_slower_shell_slows_the_kernel():
    assert kernel_of(BOARDS["aws-f1"]).clock_mhz == 250
    assert kernel_of(BOARDS["u200"]).clock_mhz == 300
