"""Boards: figures from data sheets, and measurements that others published.

Kernel constants are in the config headers, ``hls_src/boards/``; boards may share a header. Sources
are named beside the figures. ``verified`` is True if every figure was read in a document or in a
project's file. Otherwise at least one figure was quoted from memory: check it against the data
sheet before relying on it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from llama_pynq.errors import BoardNotFound

MIB, GIB = 1 << 20, 1 << 30


@dataclass(frozen=True)
class Memory:
    """The memory that holds the weights and the KV cache.

    Attributes
    ----------
    kind : str
    pool_bytes : int
        Total size available to buffers: PYNQ's default contiguous pool, or a card's memory.
    banks : int
        Banks, each with its own controller; a buffer lies in one bank.
    bank_bytes : int
    peak_bytes_per_s, bank_peak_bytes_per_s : float
        Bus width times transfer rate, of all banks together (HBM: as far as the card's power
        allows) and of one bank.
    efficiency : float
        Fraction of the peak that long sequential reads reach.
    ports, port_bytes : int
        Ports from the fabric to the memory, and their width.
    latency_ns : float
        Time from a read request in the fabric to its first beat.
    source : str
        Sources of the figures above.
    pool_base : int or None
        Physical base address of the pool, for the emulated device; None: not emulated.
    """

    kind: str
    pool_bytes: int
    banks: int
    bank_bytes: int
    peak_bytes_per_s: float
    bank_peak_bytes_per_s: float
    efficiency: float
    ports: int
    port_bytes: int
    latency_ns: float
    source: str
    pool_base: int | None = None

    def read_seconds(self, n_bytes: float) -> float:
        """Time to read bytes at `peak_bytes_per_s` times `efficiency`.

        Parameters
        ----------
        n_bytes : float
        """
        return n_bytes / (self.peak_bytes_per_s * self.efficiency)


@dataclass(frozen=True)
class Resources:
    """Resources of a device, or their use.

    Attributes
    ----------
    lut : float
        Look-up tables.
    dsp : float
        DSP slices.
    bram36 : float
        Block RAMs of 36 Kbit.
    uram : float
        UltraRAMs of 288 Kbit.
    """

    lut: float
    dsp: float
    bram36: float
    uram: float


@dataclass(frozen=True)
class Board:
    """A board that the kernel has a config header for.

    Attributes
    ----------
    name, title, part : str
    header : str
        Board name of the config header, ``kBoardName``.
    resources : Resources
        Resources of the device, or those that the card's shell leaves.
    memory : Memory
    max_clock_mhz : int
        Highest kernel clock that the board's shell allows.
    cortex_a : bool
        Whether the driver runs on the chip's own ARM cores, not on a server.
    verified : bool
        Whether every figure was read in a document; if not, at least one was quoted from memory.
    resources_source : str
    sheet : str
        The vendor, and the documents to check the figures against.
    no_build : str
        Why ``llama_pynq.vitis`` builds no overlay for the board; empty if it does.
    synthesised, run : str
        When, by whom and with what result the kernel was synthesised for the board, and run on it;
        ``"no"`` until somebody reports it.
    """

    name: str
    title: str
    part: str
    header: str
    resources: Resources
    memory: Memory
    max_clock_mhz: int
    cortex_a: bool
    verified: bool
    resources_source: str
    sheet: str
    no_build: str = ""
    synthesised: str = "no"
    run: str = "no"


def _zynq_ddr3(board: str) -> Memory:
    return Memory(
        "DDR3-1050, 16 bit", 128 * MIB, 1, 128 * MIB, 2.1e9, 2.1e9,
        efficiency=0.75, ports=4, port_bytes=8, latency_ns=500,
        source=f"{board}: base.tcl of PYNQ (16 bit, 525 MHz), CONFIG_CMA_SIZE_MBYTES=128 of its "
        "kernel; efficiency: UG585, 22.3.2, 'approximately 75%'; latency: fitted to llama2.hls "
        "on a KV260, 0.43 to 0.67 us",
        pool_base=0x1000_0000,
    )  # fmt: skip


def _hbm(gib: int, peak: float, source: str) -> Memory:
    return Memory(
        "HBM2", gib * GIB, 32, gib * GIB // 32, peak, 460e9 / 32,
        efficiency=0.92, ports=32, port_bytes=64, latency_ns=270,
        source=f"{source}; 32 pseudo-channels of 14.375 GB/s: UG1393; efficiency: Shuhai (FCCM "
        "2020), 425 of 460 GB/s; latency: Shuhai, from memory, through the switch",
    )  # fmt: skip


_ALVEO_DDR4 = Memory(
    "4 x DDR4-2400", 64 * GIB, 4, 16 * GIB, 76.8e9, 19.2e9,
    efficiency=0.85, ports=4, port_bytes=64, latency_ns=250,
    source="UG1393 and XD099: 77 GB/s, 16 GiB per bank; efficiency: llama-fpga on a KV260, 85% "
    "(arXiv 2502.10659), and 80 to 85% on a U250; latency: from memory",
)  # fmt: skip

_HLS_SHELL = "resources that the shell leaves: finn, src/finn/util/platforms.py"

_BOARDS = (
    Board(
        "pynq-z1", "PYNQ-Z1", "XC7Z020-1", "pynq-z2", Resources(53_200, 220, 140, 0),
        _zynq_ddr3("Digilent PYNQ-Z1 reference manual"), 150, True, True,
        "Digilent PYNQ-Z1 reference manual",
        "Digilent: PYNQ-Z1 reference manual; AMD: DS190",
    ),
    Board(
        "pynq-z2", "PYNQ-Z2", "XC7Z020-1", "pynq-z2", Resources(53_200, 220, 140, 0),
        _zynq_ddr3("PYNQ, boards/Pynq-Z2"), 150, True, True,
        "finn, src/finn/util/platforms.py",
        "TUL: PYNQ-Z2 reference manual; AMD: DS190",
    ),
    Board(
        "kv260", "KV260", "XCK26-2LV", "kv260", Resources(117_120, 1_248, 144, 64),
        Memory(
            "DDR4-2400, 64 bit", 1000 * MIB, 1, 1000 * MIB, 19.2e9, 19.2e9,
            efficiency=0.85, ports=4, port_bytes=16, latency_ns=500,
            source="DS987: 4 GB, 64 bit, 2400 Mb/s; cma=1000M: Kria boot log; four ports as "
            "llama-fpga uses them; efficiency: llama-fpga, 84 to 85% (arXiv 2502.10659, "
            "2507.03308); latency: fitted to llama2.hls, 0.43 to 0.67 us",
            pool_base=0x3000_0000,
        ),
        300, True, True, "kria-apps-docs, hw_arch_accel",
        "AMD: DS986, DS987",
    ),
    Board(
        "zcu104", "ZCU104", "XCZU7EV-2", "zcu104", Resources(230_400, 1_728, 312, 96),
        Memory(
            "DDR4-2133, 64 bit", 512 * MIB, 1, 512 * MIB, 17.072e9, 17.072e9,
            efficiency=0.85, ports=4, port_bytes=16, latency_ns=500,
            source="PYNQ, boards/ZCU104: base.tcl (DDR4_2133P, 1067 MHz, 64 bit), "
            "system-user.dtsi (linux,cma 0x20000000); the PS memory alone; "
            "efficiency and latency: as KV260",
        ),
        300, True, False, "DS891, from memory",
        "AMD: UG1267, DS891",
    ),
    Board(
        "aws-f1", "AWS F1", "VU9P", "u250", Resources(971_520, 5_856, 1_848, 800),
        Memory(
            "4 x DDR4-2133", 64 * GIB, 4, 16 * GIB, 68.3e9, 68.3e9 / 4,
            efficiency=0.85, ports=4, port_bytes=64, latency_ns=250,
            source="from memory: DDR4-2133, 250 MHz; efficiency as U250",
        ),
        250, False, False, "assumed equal to the U200's",
        "AWS: aws-fpga, the FPGA development kit",
        "AWS links and registers its images itself (github.com/aws/aws-fpga)",
    ),
    Board(
        "u200", "Alveo U200", "VU9P", "u250", Resources(971_520, 5_856, 1_848, 800),
        _ALVEO_DDR4, 300, False, False, _HLS_SHELL,
        "AMD: DS962, UG1289",
    ),
    Board(
        "u250", "Alveo U250", "VU13P", "u250", Resources(1_500_000, 11_520, 2_304, 1_280),
        _ALVEO_DDR4, 300, False, False, _HLS_SHELL,
        "AMD: DS962, UG1289",
    ),
    Board(
        "u50", "Alveo U50", "VU35P", "u50", Resources(742_560, 5_352, 1_128, 608),
        _hbm(8, 316e9, "UG1120: 8 GB in 32 pseudo-channels; at most 316 GB/s, nominally "
             "201: DS965, from memory"),
        300, False, False, _HLS_SHELL,
        "AMD: DS965, UG1371",
    ),
    Board(
        "u280", "Alveo U280", "VU37P", "u280", Resources(1_163_520, 8_496, 1_752, 960),
        _hbm(8, 460e9, "UG1393 2023.1: 8 GB, 460 GB/s"),
        300, False, False, _HLS_SHELL,
        "AMD: DS963",
    ),
    Board(
        "u55c", "Alveo U55C", "VU47P", "u280", Resources(1_131_000, 8_304, 1_776, 960),
        _hbm(16, 460e9, "UG1393: 16 GB, 460 GB/s"),
        300, False, False, _HLS_SHELL,
        "AMD: DS978, UG1469",
    ),
)  # fmt: skip


def boards() -> dict[str, Board]:
    """Every board with a config header, by name, from embedded boards to cards."""
    return {board.name: board for board in _BOARDS}


def board_key(name: str, known: Iterable[str] | None = None, what: str = "board") -> str:
    """Return the key of the board called `name`, however it is spelled.

    Parameters
    ----------
    name : str
        A key or title in any case, with or without spaces, hyphens and underscores: ``KV260``,
        ``pynq_z2``, ``Alveo U250``.
    known : iterable of str, optional
        Keys to choose from; default: those of `boards`.
    what : str
        Name of the kind of board, for the message.

    Raises
    ------
    BoardNotFound
        If no key is called so; the message lists the keys.
    """
    keys = list(boards() if known is None else known)
    if not isinstance(name, str):
        raise BoardNotFound(f"{name!r} is no name of a {what}: choose one of {', '.join(keys)}")
    spelled = {_plain(key): key for key in keys}
    spelled.update({_plain(b.title): b.name for b in _BOARDS if b.name in keys})
    if (key := spelled.get(_plain(name))) is not None:
        return key
    close = difflib.get_close_matches(_plain(name), list(spelled), n=1)
    meant = f"; did you mean {spelled[close[0]]}?" if close else ""
    raise BoardNotFound(f"there is no {what} {name!r}: choose one of {', '.join(keys)}{meant}")


def find_board(name: str) -> Board:
    """Return a board.

    Parameters
    ----------
    name : str
        Spelled as `board_key` allows.

    Raises
    ------
    BoardNotFound
        If there is none; the message lists the boards.
    """
    return boards()[board_key(name)]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
