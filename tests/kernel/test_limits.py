"""The limits of every board's kernel: as it describes itself, and by its header."""

import numpy as np
import pytest
from support.kernel_library import (
    BOARDS,
    HLS_SRC,
    compile_kernels,
    header_constants,
    kernel_library,
)

from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.errors import LimitError
from llama_pynq.kernel import abi, config
from llama_pynq.kernel.limits import KernelLimits, check_limits

CONFIG = ModelConfig(64, 128, 2, 4, 2, 100, 32, True)


@pytest.fixture(scope="session", autouse=True)
def compiled_side_by_side():
    compile_kernels((board, False) for board in BOARDS)


@pytest.mark.parametrize("board", BOARDS)
def test_board_describes_itself_as_its_header_says(board):
    limits = kernel_library(board).limits
    header = header_constants(board)
    assert limits.board.replace("-", "_") == board
    assert limits.abi == abi.ABI_VERSION
    for name in abi.DESCRIBE_FIELDS:
        constant = "k" + "".join(part.capitalize() for part in name.split("_"))
        assert getattr(limits, name) == header[constant], name
    assert limits.channels == config.board_constants(HLS_SRC / "boards" / f"{board}.h")["kChannels"]


@pytest.mark.parametrize("board", BOARDS)
def test_buffer_sizes_same_as_the_board_compiles_them(board):
    limits, header = kernel_library(board).limits, header_constants(board)
    assert limits.request_words == header["kRequestWords"]
    assert limits.model_words == header["kModelWords"]
    assert limits.results_words == header["kResultsWords"]
    assert limits.profile_step_words == header["kProfileStepWords"]
    assert limits.result_dtype.itemsize // 4 == header["kResultWords"]


def test_kernel_limits_from_words():
    words = np.zeros(abi.DESCRIBE_WORDS, np.uint32)
    words[abi.STATUS_ABI] = 3
    words[abi.DESCRIBE_BASE :][: len(abi.DESCRIBE_FIELDS)] = range(
        100, 100 + len(abi.DESCRIBE_FIELDS)
    )
    words[abi.DESCRIBE_BOARD :] = np.frombuffer(b"pynq-z2".ljust(16, b"\0"), np.uint32)
    found = KernelLimits.from_words(words)
    assert (found.board, found.abi, found.channels) == ("pynq-z2", 3, 100)
    assert found.max_step_events == 113


@pytest.mark.parametrize("board", BOARDS)
def test_limits_from_the_header_are_what_the_kernel_says(board):
    header = HLS_SRC / "boards" / f"{board}.h"
    assert KernelLimits.from_header(header) == kernel_library(board).limits


def test_check_limits_names_every_limit_and_the_board():
    limits = kernel_library("pynq_z2").limits
    check_limits(CONFIG, limits)
    too_large = ModelConfig(2048, 5504, 100, 8, 8, 32000, 8192, True)
    with pytest.raises(LimitError) as caught:
        check_limits(too_large, limits)
    message = str(caught.value)
    assert "does not fit the kernel on pynq-z2" in message
    for part in ("dim 2048 (at most 1024)", "hidden_dim 5504 (at most 2816)",
                 "head_size 256 (at most 128)", "n_layers 100 (at most 64)",
                 "seq_len 8192 (at most 4096)", "hls_src/boards/pynq_z2.h"):  # fmt: skip
        assert part in message
