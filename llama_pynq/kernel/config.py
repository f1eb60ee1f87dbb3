"""Reader of the board headers, ``hls_src/boards/*.h``; no other module parses them.

Standard library only: ``setup.py`` imports this module in an empty build environment.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from llama_pynq.boards import Board
from llama_pynq.utils.files import package_folders

_CONSTANT = re.compile(r"^constexpr (?:int|uint32_t) (k\w+) = ([^;]+);", re.MULTILINE)
_BOARD_NAME = re.compile(r'kBoardName\[\] = "(.*)";')
_OPERATORS: dict[type[ast.AST], Callable[[Any, Any], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: lambda a, b: abs(a) // abs(b) * (1 if a * b >= 0 else -1),  # as C++: towards 0
    ast.Mod: operator.mod,
    ast.LShift: operator.lshift,
    ast.Gt: operator.gt,
}

_BLOCK_RAM_DEPTH = 512  # words, in the widest configuration (UG573)


# ---- constants ------------------------------------------------------------------------


def _value(node: ast.AST, known: Mapping[str, int]) -> int:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.Name):
        return known[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand, known)
    if isinstance(node, ast.BinOp):
        apply = _OPERATORS[type(node.op)]
        return apply(_value(node.left, known), _value(node.right, known))
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        apply = _OPERATORS[type(node.ops[0])]
        return int(apply(_value(node.left, known), _value(node.comparators[0], known)))
    raise KeyError(type(node).__name__)


def read_constants(*headers: Path) -> dict[str, int]:
    """Integer constants of C++ headers, by name.

    Parameters
    ----------
    *headers : Path
        Read in order; a header may use the constants of those before it.

    Returns
    -------
    dict of str to int
        ``constexpr int`` and ``uint32_t``. A constant is left out if its value needs more
        than arithmetic on other constants, such as a call.
    """
    found: dict[str, int] = {}
    for header in headers:
        for name, text in _CONSTANT.findall(header.read_text(encoding="utf-8")):
            expression = re.sub(r"\b(0x[0-9A-Fa-f]+|\d+)[uU]\b", r"\1", text)
            try:
                value = _value(ast.parse(expression, mode="eval").body, found)
            except (KeyError, SyntaxError, ArithmeticError, ValueError):
                continue
            found.setdefault(name, value)
    return found


def require_constants(constants: Mapping[str, int], names: Iterable[str], header: Path) -> None:
    """Raise ValueError naming the header and the first missing constant, if there is one."""
    for name in names:
        if name not in constants:
            raise ValueError(f"{header} defines no 'constexpr int {name} = ...;'")


def constant_name(name: str) -> str:
    """Convert a Python name to the headers' spelling: ``max_rows`` to ``kMaxRows``."""
    return "k" + "".join(part.capitalize() for part in name.split("_"))


def board_constants(header: Path) -> dict[str, int]:
    """Integer constants of a board's config header.

    Raises
    ------
    ValueError
        If the header lacks kChannels, kKvPorts, kSharedMasters or kUltraRam.
    """
    constants = read_constants(header)
    names = ("kChannels", "kKvPorts", "kSharedMasters", "kUltraRam")
    require_constants(constants, names, header)
    return constants


def board_name(header: Path) -> str | None:
    """``kBoardName`` of a config header; None if it has none."""
    found = _BOARD_NAME.search(header.read_text(encoding="utf-8"))
    return found.group(1) if found else None


def board_headers(source: Path | None = None) -> dict[str, Path]:
    """Config headers by board name.

    Parameters
    ----------
    source : Path, optional
        An ``hls_src`` folder; default the installed one.
    """
    folders = [source] if source else map(Path, package_folders("hls_src"))
    headers = [path for folder in folders for path in sorted((folder / "boards").glob("*.h"))]
    return {name: path for path in headers if (name := board_name(path)) is not None}


def kv_in_uram(constants: Mapping[str, int]) -> bool:
    """Whether the KV FIFOs use UltraRAM: the part has it, and they are deeper than a block RAM."""
    return bool(constants["kUltraRam"]) and constants.get("kKvFifoBeats", 0) > _BLOCK_RAM_DEPTH


# ---- configuration of a kernel --------------------------------------------------------

TILE_ROWS = (16, 32)
"""Values of kTileRows, see ``hls_src/config.h``."""

MAX_CHANNELS = 64
"""Weight channels that a packed file may have: more than any card has banks of memory."""


@dataclass(frozen=True)
class Target:
    """Hardware layout that weights are packed for.

    Attributes
    ----------
    channels, tile_rows : int
        kChannels and kTileRows of the board's config header.
    """

    channels: int
    tile_rows: int


@dataclass(frozen=True)
class KernelConfig:
    """Constants of a board's config header and of ``config.h``, where each is explained.

    Attributes
    ----------
    clock_mhz : int
        ``kClockMhz``, and so on: `constant_name` gives a constant's name in the headers.
    channels, beat_bytes, tile_rows, scale_lanes, product_rows, waves_in_flight : int
        Weight channels and the engines behind them.
    kv_ports, kv_beat_bytes, shared_masters : int
        Ports of the KV cache; whether a port shares an AXI master with a weight channel.
    attention_lanes, score_cycles, queries : int
        Attention.
    vector_lanes, gate_cycles, sample_cycles : int
        Other stages.
    max_rows, max_steps, max_dim, max_hidden_dim, max_head_size, top_logits : int
        Limits, see `KernelLimits`.
    read_burst_beats, read_outstanding : int
        Reads of memory: beats of a burst, bursts under way.
    fadd_latency : int
        Cycles of a float32 addition.
    weight_fifo_beats, kv_fifo_beats, kv_write_beats, word_bytes : int
        FIFOs, and bytes of a weight word.
    """

    clock_mhz: int
    channels: int
    beat_bytes: int
    tile_rows: int
    scale_lanes: int
    product_rows: int
    waves_in_flight: int
    kv_ports: int
    kv_beat_bytes: int
    shared_masters: int
    attention_lanes: int
    score_cycles: int
    queries: int
    vector_lanes: int
    gate_cycles: int
    sample_cycles: int
    max_rows: int
    max_steps: int
    max_dim: int
    max_hidden_dim: int
    max_head_size: int
    top_logits: int
    read_burst_beats: int
    read_outstanding: int
    fadd_latency: int
    weight_fifo_beats: int
    kv_fifo_beats: int
    kv_write_beats: int
    word_bytes: int

    @classmethod
    def from_header(cls, header: Path) -> KernelConfig:
        """Read a board's header, and ``config.h`` beside its folder.

        Raises
        ------
        ValueError
            If neither header defines a constant.
        """
        found = read_constants(header, header.parents[1] / "config.h")
        names = {field.name: constant_name(field.name) for field in fields(cls)}
        require_constants(found, names.values(), header)
        return cls(**{name: found[constant] for name, constant in names.items()})

    @property
    def word_beats(self) -> int:
        """Beats per weight word."""
        return self.word_bytes // self.beat_bytes

    @property
    def scale_words(self) -> int:
        """Weight words that hold one group's scales of a tile."""
        return self.tile_rows * 4 // self.word_bytes

    @property
    def target(self) -> Target:
        """Hardware layout that weights are packed for."""
        return Target(self.channels, self.tile_rows)


@lru_cache
def kernel_of(board: Board) -> KernelConfig:
    """Constants of the board's kernel, with the clock capped at its shell's maximum.

    Parameters
    ----------
    board : Board
    """
    kernel = KernelConfig.from_header(board_headers()[board.header])
    return replace(kernel, clock_mhz=min(kernel.clock_mhz, board.max_clock_mhz))
