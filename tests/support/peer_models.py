"""Other people's accelerators, made of the building blocks of `llama_pynq.estimate.predict`.

They were measured on real boards: where the same blocks, put together in their kernels' order,
come out near what was measured, our own prediction deserves some trust. Nothing is fitted to
the rates that are compared; each figure's source is named.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from llama_pynq.boards import Memory, boards
from llama_pynq.checkpoint.shapes import STORIES
from llama_pynq.estimate.operators import loop

# ---- ruhai-lin/llama2.hls, commit 728f19c: src/decode.cpp and README ----------------------

CLOCK_HZ = 150e6
PORT_BYTES = 16  # one 128-bit m_axi bundle for everything
READ_LATENCY = 64  # Vitis HLS's own assumption; README: a tile's load is 4096 + 75 cycles
LOAD_DEPTH = 11  # the rest of those 75
QUANTIZE = {288: 937, 768: 2497}  # README: cycles of its quantize
GROUP, BLOCK_ROWS, TILE_BLOCKS = 32, 16, 4  # a block is 16 rows; a tile, 4 blocks
GROUP_WORDS = 9  # 64-byte words of a block's group: its scales, then 8 of values
TILE_OVERHEAD = 4  # a process of the dataflow region starts and ends; as in our model
WRITE_LATENCY = 64


@dataclass(frozen=True)
class Tile:
    """A step of its weight loop: as many blocks of 16 rows as are left, 4 at most."""

    blocks: int
    groups: int

    def load(self) -> float:
        """Cycles until it is on chip: the burst restarts for each tile."""
        beats = self.blocks * self.groups * GROUP_WORDS * 64 // PORT_BYTES
        return loop(beats, 1, READ_LATENCY + LOAD_DEPTH, entry=TILE_OVERHEAD)

    def compute(self) -> float:
        """README: 1,240 at most; ten cycles for a block's group, 60 of depth."""
        return loop(self.blocks * self.groups, 10, 60, entry=TILE_OVERHEAD)

    def copy(self) -> float:
        """Scores go to their vector one a cycle, by themselves."""
        return loop(self.blocks * BLOCK_ROWS, 1, 1, entry=TILE_OVERHEAD)


def _tiles() -> Iterator[Tile]:
    """Every tile of a token, in order (stories15M)."""
    c = STORIES["stories15M"]
    dim, hidden = c.dim // GROUP, c.hidden_dim // GROUP
    layer = [(c.dim, dim)] * 4 + [(c.hidden_dim, dim)] * 2 + [(c.dim, hidden)]
    for rows, groups in layer * c.n_layers + [(c.vocab_size, dim)]:
        blocks = rows // BLOCK_ROWS
        for first in range(0, blocks, TILE_BLOCKS):
            yield Tile(min(TILE_BLOCKS, blocks - first), groups)


def llama2_hls_weight_bytes() -> int:
    return sum(tile.blocks * tile.groups for tile in _tiles()) * GROUP_WORDS * 64


def _serial_stages() -> float:
    """Stages that overlap with nothing, one layer."""
    c = STORIES["stories15M"]
    vector = c.dim // 4  # beats of a float vector
    norm = loop(c.dim, 1, 8) + loop(c.dim, 1, READ_LATENCY + 24 + 20 + 60 - 2)
    residual = loop(c.dim, 1, 12)
    rope = loop(c.dim // 2, 1, 20)
    silu = loop(c.hidden_dim, 1, 60)
    store = loop(vector, 1, WRITE_LATENCY + 10)
    clear_and_divide = c.dim + loop(vector, 1, 40)
    return (
        3 * QUANTIZE[c.dim]
        + QUANTIZE[c.hidden_dim]
        + 2 * norm
        + 3 * residual
        + rope
        + silu
        + 2 * store
        + clear_and_divide
    )


def _attention(position: int) -> float:
    """A layer's: key, softmax and value of each position in turn, 72 beats a vector."""
    vector = STORIES["stories15M"].dim // 4
    key = loop(vector, 1, READ_LATENCY + 34, entry=1)
    softmax = loop(STORIES["stories15M"].n_heads, 1, 60, entry=1)
    value = loop(vector, 1, READ_LATENCY + 20, entry=1)
    return (position + 1) * (key + softmax + value)


def llama2_hls_cycles(position: int) -> float:
    """One token: a tile is loaded while the last one is computed, and nothing else overlaps."""
    c = STORIES["stories15M"]
    tiles = list(_tiles())
    weights = tiles[0].load() + tiles[-1].compute()
    for now, following in zip(tiles, tiles[1:]):
        weights += max(now.compute(), following.load())
    copies = sum(tile.copy() for tile in tiles)
    tail = QUANTIZE[c.dim] + 752 + loop(c.dim, 1, READ_LATENCY) + 2 * (24 + READ_LATENCY)
    return weights + copies + c.n_layers * (_serial_stages() + _attention(position)) + tail


def llama2_hls_tokens_per_second(tokens: int) -> float:
    """Mean over the first `tokens` positions, as its main.cpp measures."""
    cycles = sum(llama2_hls_cycles(position) for position in range(tokens))
    return tokens * CLOCK_HZ / cycles


# ---- accelerators of which bytes, ports and memory are public -----------------------------


@dataclass(frozen=True)
class ByBytes:
    """A peer whose rate is what its memory gives: bytes of a token over peak times efficiency."""

    name: str
    memory: Memory
    clock_mhz: float
    token_bytes: float
    measured: tuple[float, float]  # lowest and highest that the source names
    calibrates: bool  # our efficiency of this memory comes from this very row

    def tokens_per_second(self) -> float:
        ports = self.memory.ports * self.memory.port_bytes * self.clock_mhz * 1e6
        rate = min(self.memory.peak_bytes_per_s * self.memory.efficiency, ports)
        return rate / self.token_bytes


def _grouped(weights: float, bits: float, group: int, scale_bits: float) -> float:
    return weights * (bits + scale_bits / group) / 8


# Weights of a token: every matrix of the layers, and the classifier.
_LLAMA2_7B = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008) + 32000 * 4096
_LLAMA3_8B = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336) + 128256 * 4096
# llama-fpga: AWQ, groups of 128 with a float16 scale and a 4-bit zero (model2bin.py).
_LLAMA_FPGA = _grouped(_LLAMA2_7B, 4, 128, 20)
# Hummingbird: 4 bit; how its scales are kept was not to be seen, so groups of 128 are taken.
_HUMMINGBIRD = _grouped(_LLAMA3_8B, 4, 128, 20)

_KV260, _ZCU104, _U250 = (boards()[name].memory for name in ("kv260", "zcu104", "u250"))
# A second controller, on the fabric's side: a SODIMM at 938 ps (zcu104bd.bd).
_ZCU104_PL = replace(_ZCU104, peak_bytes_per_s=8 * 2132e6, ports=1, port_bytes=64)
_ZCU104_BOTH = replace(
    _ZCU104, peak_bytes_per_s=_ZCU104.peak_bytes_per_s + _ZCU104_PL.peak_bytes_per_s, ports=8
)

# llama-fpga: README and arXiv 2502.10659. Hummingbird: arXiv 2507.03308, abstract.
BY_BYTES = (
    ByBytes("llama-fpga on KV260", _KV260, 299.997, _LLAMA_FPGA, (4.9, 5.0), True),
    ByBytes("llama-fpga on ZCU104, PL memory", _ZCU104_PL, 266.5, _LLAMA_FPGA, (4.0, 4.0), False),
    ByBytes("llama-fpga on ZCU104", _ZCU104_BOTH, 300, _LLAMA_FPGA, (8.0, 9.0), False),
    ByBytes("llama-fpga on U250", _U250, 300, _LLAMA_FPGA, (18.0, 19.0), False),
    ByBytes("Hummingbird on KV260", _KV260, 300, _HUMMINGBIRD, (4.8, 4.8), False),
    ByBytes("Hummingbird on ZCU104", _ZCU104_BOTH, 300, _HUMMINGBIRD, (8.6, 8.6), False),
)

NOT_PREDICTABLE = {
    "HLSTransform": "its 57.11 tokens/s are an estimate of the compiler's, not a measurement",
    "LlamaF": "the host's cores stage every layer's weights",
    "SECDA-LLM": "offloads matrix products from llama.cpp: bound by the host's cores",
    "TeLLMe v2": "ternary weights, look-up tables: not bound by memory",
    "FlexLLM": "no absolute rate is public",
}
"""Rows of the list of peers whose rate does not follow from what is public, and why."""
