"""Overlay files as a hardware build writes them, with a dummy configuration."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from llama_pynq.emulation import hwh, xclbin
from llama_pynq.emulation.design import xclbin_design, zynq_design
from llama_pynq.kernel.abi import ABI_VERSION
from llama_pynq.overlay_store.record import OverlayFile, OverlayRecord

# Part names as in the header of Vivado's .bit; shell names as in a platform's .xclbin.
PARTS = {
    "pynq-z1": "7z020clg400",
    "pynq-z2": "7z020clg400",
    "kv260": "xck26-sfvc784-2LV-c",
    "zcu104": "xczu7ev-ffvc1156-2-e",
}
PLATFORMS = {
    "u50": "xilinx_u50_gen3x16_xdma_5_202210_1",
    "u55c": "xilinx_u55c_gen3x16_xdma_3_202210_1",
}


def bit(part: str, configuration: bytes = b"configuration") -> bytes:
    """A .bit file with the header that Vivado writes."""
    data = configuration + bytes(-len(configuration) % 4)
    header = bytes.fromhex("00090ff00ff00ff00ff0000001")
    for key, text in (
        (b"a", "design_1_wrapper;UserID=0XFFFFFFFF;Version=2022.1"),
        (b"b", part),
        (b"c", "2026/10/30"),
        (b"d", "12:34:56"),
    ):
        value = text.encode() + b"\0"
        header += key + struct.pack(">H", len(value)) + value
    return header + b"e" + struct.pack(">I", len(data)) + data


def hwh_text() -> str:
    """A .hwh whose kernel has a clock port, as Vivado writes it."""
    text = hwh.write_hwh(zynq_design(2, 2, 100)).decode()
    port = '<PORT CLKFREQUENCY="250000000" DIR="I" NAME="ap_clk" SIGIS="clk"/>'
    return text.replace("<ADDRESSBLOCKS>", f"<PORTS>{port}</PORTS><ADDRESSBLOCKS>", 1)


def write_files(folder: Path, board: str, configuration: bytes = b"configuration") -> Path:
    """Write the overlay's files; returns the path of the one that is loaded."""
    folder.mkdir(parents=True, exist_ok=True)
    if board in PARTS:
        (folder / "llama.hwh").write_text(hwh_text())
        (folder / "llama.bit").write_bytes(bit(PARTS[board], configuration))
        return folder / "llama.bit"
    data = xclbin.write(configuration, xclbin_design(2, 2, 300))
    emulated, platform = b"llama_pynq_emulated", PLATFORMS[board].encode()
    assert data.count(emulated.ljust(64, b"\0")) == 1
    data = data.replace(emulated.ljust(64, b"\0"), platform.ljust(64, b"\0"))
    (folder / "llama.xclbin").write_bytes(data)
    return folder / "llama.xclbin"


def record_of_files(folder: Path, board: str, **changes: Any) -> OverlayRecord:
    """Build record of the files in a folder."""
    fields: dict[str, Any] = {
        "board": board,
        "abi": ABI_VERSION,
        "clock_mhz": 250.0,
        "files": tuple(OverlayFile.of(p) for p in sorted(folder.glob("llama.*"))),
        "tools": {"vivado": "2022.1"},
        "built": "2026-10-30",
        "built_by": "a student",
        "source": "v0.1-3-gabcdef",
    }
    return OverlayRecord(**{**fields, **changes})


def write_overlay(
    folder: Path, board: str, configuration: bytes = b"configuration", **changes: Any
) -> Path:
    """Write the overlay's files and record; returns the path of the file that is loaded."""
    path = write_files(folder, board, configuration)
    record_of_files(folder, board, **changes).write(folder)
    return path
