"""Metadata that PYNQ's parsers find in overlay files, and refused files."""

import pytest
from support.board_overlays import PARTS, PLATFORMS, bit, hwh_text, write_files

from llama_pynq.boards import boards
from llama_pynq.emulation.build import emulated_overlay
from llama_pynq.errors import OverlayMismatch
from llama_pynq.kernel import registers
from llama_pynq.overlay_store.metadata import (
    OverlayMetadata,
    board_named,
    read_metadata,
)


@pytest.mark.parametrize(
    ("name", "board"),
    [
        # PYNQ images: /proc/device-tree/chosen/pynq_board (ends in a NUL), and $BOARD
        ("Pynq-Z1\0", "pynq-z1"),
        ("Pynq-Z2\0", "pynq-z2"),
        ("ZCU104", "zcu104"),
        ("KV260\n", "kv260"),
        # XRT's device names
        ("xilinx_u50_gen3x16_xdma_base_5", "u50"),
        ("xilinx_u200_xdma_201830_2", "u200"),
        ("xilinx_u250_gen3x16_xdma_shell_4_1", "u250"),
        ("xilinx_u280_gen3x16_xdma_base_1", "u280"),
        ("xilinx_u55c_gen3x16_xdma_base_3", "u55c"),
        ("xilinx_aws-vu9p-f1_shell-v04261818_201920_3", "aws-f1"),
        ("xilinx_aws-vu9p-f1-04261818_dynamic_5_0", "aws-f1"),
        # boards that are not ours
        ("xilinx_u280-es1_xdma_201910_1", None),
        ("xilinx_u50lv_gen3x4_xdma_base_2", None),
        ("xilinx_kv260", "kv260"),
        ("edge", None),
        ("Unknown", None),
        ("KR260", None),
        ("", None),
        ("someone_u250", None),
    ],
)
def test_board_is_known_by_pynqs_and_xrts_names(name, board):
    assert board_named(name) == board


def test_board_is_known_by_its_own_name():
    assert [board_named(name) for name in boards()] == list(boards())


@pytest.mark.parametrize("board", PARTS)
def test_bit_says_part_clock_tool_and_date(tmp_path, board):
    found = read_metadata(write_files(tmp_path, board))
    assert found == OverlayMetadata(250.0, PARTS[board], None, {"vivado": "2022.1"}, "2026-10-30")
    assert found.boards == (["pynq-z1", "pynq-z2"] if "z020" in PARTS[board] else [board])


def test_bit_without_a_clock_port_leaves_it_open(tmp_path):
    path = write_files(tmp_path, "kv260")
    path.with_suffix(".hwh").write_text(hwh_text().replace("ap_clk", "clk"))
    assert read_metadata(path).clock_mhz is None


@pytest.mark.parametrize("board", PLATFORMS)
def test_xclbin_says_platform_and_clock(tmp_path, board):
    found = read_metadata(write_files(tmp_path, board))
    assert found == OverlayMetadata(300.0, None, PLATFORMS[board], {}, None)
    assert found.boards == [board]


def test_part_of_no_board_of_ours_is_no_board():
    assert OverlayMetadata(None, "xczu3eg-sbva484-1-i", None, {}, None).boards == []
    assert OverlayMetadata(None, None, None, {}, None).boards == []


def test_emulated_overlays_are_for_no_board():
    for kind in (".xclbin", ".bit"):
        with pytest.raises(OverlayMismatch, match="was built for the emulated device, and no"):
            read_metadata(emulated_overlay(kind))


def refused(path, message):
    with pytest.raises(OverlayMismatch, match=message) as caught:
        read_metadata(path)
    assert str(path.parent) in str(caught.value)


def test_files_that_are_no_overlay_are_refused_by_name(tmp_path):
    path = write_files(tmp_path, "kv260")
    refused(tmp_path / "llama.hwh", "llama.hwh is no overlay: a .bit or .xclbin file is expected")
    (tmp_path / "llama.bit").write_bytes(b"hello")
    refused(path, r"llama\.bit is not a Xilinx \.bit file")
    (tmp_path / "llama.bit").write_bytes(bit("7z020clg400")[:-1])
    refused(
        path, r"llama\.bit is incomplete: it announces 16 bytes of configuration data and holds"
    )
    (tmp_path / "llama.xclbin").write_bytes(b"hello")
    refused(tmp_path / "llama.xclbin", r"llama\.xclbin is not an \.xclbin file")
    write_files(tmp_path, "kv260")
    (tmp_path / "llama.hwh").write_text("<EDKSYSTEM/>")
    refused(path, "PYNQ cannot read|no IP named")
    (tmp_path / "llama.hwh").unlink()
    refused(path, "llama.hwh is missing: PYNQ reads it beside llama.bit")


@pytest.mark.parametrize("lost", [1, 13])
def test_xclbin_copied_in_part_is_refused_though_its_metadata_can_be_read(tmp_path, lost):
    path = write_files(tmp_path, "u50")
    whole = path.read_bytes()
    path.write_bytes(whole[:-lost])
    refused(
        path,
        rf"llama.xclbin is incomplete: its header says {len(whole)} bytes, it has "
        rf"{len(whole) - lost}\. Copy it again$",
    )
    path.write_bytes(whole + b"a signature")
    assert read_metadata(path).boards == ["u50"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (registers.VLNV, "xilinx.com:hls:resizer:1.0", r"no IP named 'llama' of type llama_pynq:"),
        ('"/llama"', '"/llama_0"', "no IP named 'llama' of type .*, only .*llama_0"),
        ('NAME="sequence"', 'NAME="serial"', "has no argument 'sequence': it was built from"),
        ('NAME="weights_0_1"', 'NAME="w"', "has no argument"),
    ],
)
def test_another_kernel_is_refused_by_name(tmp_path, old, new, message):
    path = write_files(tmp_path, "kv260")
    text = hwh_text()
    assert old in text
    if old.startswith('"/'):  # the instance's name, everywhere
        text = text.replace('INSTANCE="llama"', 'INSTANCE="llama_0"')
    (tmp_path / "llama.hwh").write_text(text.replace(old, new))
    refused(path, message)
