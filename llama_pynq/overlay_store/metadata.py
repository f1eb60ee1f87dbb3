"""Metadata of an overlay's file, read by PYNQ's own parsers."""

from __future__ import annotations

import contextlib
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from llama_pynq.boards import board_key, boards
from llama_pynq.device import bitfiles
from llama_pynq.emulation import container
from llama_pynq.errors import BoardNotFound, OverlayMismatch
from llama_pynq.kernel.registers import IP_NAME, VLNV, VLNVS, arguments

_MAX_PORTS = 64


@dataclass(frozen=True)
class OverlayMetadata:
    """Metadata of an overlay's file.

    Attributes
    ----------
    clock_mhz : float or None
        Clock of the kernel.
    part : str or None
        The device that a .bit configures.
    platform : str or None
        The shell that an .xclbin was linked for.
    tools : dict of str to str
        Versions of vendor tools, as far as the file names them.
    built : str or None
        Date of a .bit, ISO 8601.
    """

    clock_mhz: float | None
    part: str | None
    platform: str | None
    tools: dict[str, str]
    built: str | None

    @property
    def boards(self) -> list[str]:
        """Boards that the file can be for, by its shell's name or its part."""
        if self.platform is not None:
            board = board_named(self.platform)
            return [] if board is None else [board]
        # A .bit names 7z020clg400 or xck26-sfvc784-2LV-c where boards.py has XC7Z020-1, XCK26-2LV.
        part = (self.part or "").lower()
        zynq = {b.name: b.part.split("-")[0] for b in boards().values() if b.cortex_a}
        return [name for name, chip in zynq.items() if chip.lower().removeprefix("xc") in part]


def board_named(name: str) -> str | None:
    """The board that PYNQ or XRT calls `name`; None if it is not in `boards.boards`.

    PYNQ's images write ``Pynq-Z2``, ``KV260``; a card's shell is called
    ``xilinx_u250_gen3x16_xdma_shell_4_1``, and AWS's ``xilinx_aws-vu9p-f1_shell-v04261818...``.
    """
    plain = name.strip("\0 \n").lower()
    with contextlib.suppress(BoardNotFound):
        return board_key(plain)
    vendor, _, rest = plain.partition("_")
    if vendor != "xilinx":
        return None
    card = rest.split("_")[0]
    if card.startswith("aws-vu9p-f1"):
        return "aws-f1"
    return card if card in boards() else None


def read_metadata(path: Path) -> OverlayMetadata:
    """Read and check the metadata of a .bit with its .hwh, or of an .xclbin.

    Raises
    ------
    OverlayMismatch
        If PYNQ cannot read it, its IP is not the driver's, or it was built for emulation.
    """
    if path.suffix not in (".bit", ".xclbin"):
        raise OverlayMismatch(f"{path} is no overlay: a .bit or .xclbin file is expected")
    if path.suffix == ".bit" and not path.with_suffix(".hwh").exists():
        raise OverlayMismatch(
            f"{path.with_suffix('.hwh')} is missing: PYNQ reads it beside {path.name}. Put both "
            "files of the build there"
        )
    data = bitfiles.read_overlay(path)
    if container.MAGIC in data:
        raise OverlayMismatch(
            f"{path} was built for the emulated device, and no board can load it. The emulated "
            "device has its own already"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found, ips = (_xclbin if path.suffix == ".xclbin" else _bit)(path, data)
    except OverlayMismatch:
        raise
    except Exception as error:  # a damaged file may raise anything in the parsers
        raise bitfiles.unreadable(path, error) from error
    _check_ip(path, ips)
    return found


def _xclbin(path: Path, data: bytes) -> tuple[OverlayMetadata, dict[str, Any]]:
    header, _ = bitfiles.check_xclbin(data, str(path))
    parser = bitfiles.parse_xclbin(data, str(path))
    clocks = [clock["frequency"] for clock in parser.clock_dict.values()]
    return (
        OverlayMetadata(float(clocks[0]) if clocks else None, None, header.platform, {}, None),
        parser.ip_dict,
    )


def _bit(path: Path, data: bytes) -> tuple[OverlayMetadata, dict[str, Any]]:
    from pynq.pl_server.embedded_device import parse_bit_header

    bitfiles.check_bit(data, str(path))
    metadata = path.with_suffix(".hwh")
    header = parse_bit_header(data)
    parser = bitfiles.parse_hwh(metadata)
    version = re.match(r"Version=(\S+)", header.get("version", ""))
    date = re.fullmatch(r"(\d{4})/(\d\d)/(\d\d)", header.get("date", ""))
    return (
        OverlayMetadata(
            _clock_mhz(metadata),
            header["part"],
            None,
            {"vivado": version.group(1)} if version else {},
            "-".join(date.groups()) if date else None,
        ),
        parser.ip_dict,
    )


def _clock_mhz(path: Path) -> float | None:
    """Frequency that Vivado notes at the kernel's clock port; PYNQ's parsers skip it."""
    for module in ElementTree.parse(path).iterfind(f".//MODULE[@INSTANCE='{IP_NAME}']"):
        for port in module.iterfind("./PORTS/PORT[@NAME='ap_clk']"):
            if hertz := port.get("CLKFREQUENCY"):
                return int(hertz) / 1e6
    return None


def _check_ip(path: Path, ips: dict[str, Any]) -> None:
    ip = ips.get(IP_NAME)
    if ip is None or ip["type"] not in VLNVS:
        found = ", ".join(f"{name} ({ip['type']})" for name, ip in ips.items())
        raise OverlayMismatch(
            f"{path} is not an overlay of llama_pynq: it has no IP named {IP_NAME!r} of type "
            f"{VLNV}, only {found or 'none'}"
        )
    registers = ip["registers"]

    def has(name: str) -> bool:
        return name in registers or f"{name}_1" in registers

    def ports(prefix: str) -> int:
        return sum(has(f"{prefix}_{i}") for i in range(_MAX_PORTS))

    expected = arguments(max(ports("weights"), 1), max(ports("kv_read"), 1))
    missing = [argument.name for argument in expected if not has(argument.name)]
    if missing:
        raise OverlayMismatch(
            f"the kernel in {path} has no argument {missing[0]!r}: it was built from hls_src of "
            "another version. Build it from this version's"
        )
