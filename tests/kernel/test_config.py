"""kernel/config.py: the one reader of the board headers."""

import shutil

import pytest
from support.paths import HLS_SRC

from llama_pynq.boards import boards
from llama_pynq.kernel.config import (
    KernelConfig,
    board_constants,
    board_headers,
    kernel_of,
    read_constants,
)


def written(tmp_path, *lines, name="a.h"):
    path = tmp_path / name
    path.write_text("".join(f"constexpr {line};\n" for line in lines))
    return path


def test_constants_are_arithmetic_on_earlier_ones(tmp_path):
    first = written(tmp_path, "int kA = 3", "uint32_t kMagic = 0x10u", "int kNone = -1")
    second = written(
        tmp_path, "int kB = kA * 4 + 2", "int kC = kB / 4", "int kD = -7 / 2",
        "int kE = kA + (kB > 1) * 4", "int kF = 1 << 16", name="b.h",
    )  # fmt: skip
    assert read_constants(first, second) == {
        "kA": 3, "kMagic": 16, "kNone": -1, "kB": 14, "kC": 3, "kD": -3, "kE": 7, "kF": 65536,
    }  # fmt: skip


@pytest.mark.parametrize(
    "value", ["RoundUp(3, 4)", "1 / 0", "1 << -1", "kUnknown + 1", "kA > 1 ? 2 : 3", "sizeof(int)"]
)
def test_constant_that_is_no_plain_arithmetic_is_left_out(tmp_path, value):
    header = written(tmp_path, "int kA = 3", f"int kB = {value}", "int kC = kA")
    assert read_constants(header) == {"kA": 3, "kC": 3}


def test_first_definition_of_a_constant_counts(tmp_path):
    board = written(tmp_path, "int kA = 1")
    assert read_constants(board, written(tmp_path, "int kA = 2", name="b.h")) == {"kA": 1}


def test_headers_are_found_by_board_name_in_any_source_folder():
    assert board_headers(HLS_SRC)["pynq-z2"] == HLS_SRC / "boards" / "pynq_z2.h"
    assert set(board_headers(HLS_SRC)) == set(board_headers())


def test_header_without_a_constant_is_named_with_it(tmp_path):
    header = written(tmp_path, "int kChannels = 2", "int kKvPorts = 1", "int kUltraRam = 0")
    with pytest.raises(ValueError, match="a.h defines no 'constexpr int kSharedMasters"):
        board_constants(header)


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
    assert kernel_of(boards()["aws-f1"]).clock_mhz == 250
    assert kernel_of(boards()["u200"]).clock_mhz == 300
