"""Published accelerators, modelled with the building blocks of `llama_pynq.estimate.predict`.

The peers were measured on real boards. If the same blocks, combined in the order of their
kernels, come near the measurements, our own prediction deserves some trust. Nothing is fitted to
the compared rates; every figure names its source.
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
LOAD_DEPTH = 11  # the rest of the 75 cycles
QUANTIZE = {288: 937, 768: 2497}  # README: cycles of quantize, by width
GROUP, BLOCK_ROWS, TILE_BLOCKS = 32, 16, 4  # a block is 16 rows; a tile, 4 blocks
GROUP_WORDS = 9  # 64-byte words of a block's group: 1 of scales, 8 of values
TILE_OVERHEAD = 4  # start and end of a dataflow process, as in our model
WRITE_LATENCY = 64


@dataclass(frozen=True)
class Tile:
    """One iteration of the weight loop: the remaining blocks of 16 rows, at most 4."""

    blocks: int
    groups: int

    def load(self) -> float:
        """Cycles to load the tile: the burst restarts for each tile."""
        beats = self.blocks * self.groups * GROUP_WORDS * 64 // PORT_BYTES
        return loop(beats, 1, READ_LATENCY + LOAD_DEPTH, entry=TILE_OVERHEAD)

    def compute(self) -> float:
        """Cycles to compute the tile: 10 per block's group, depth 60 (README: at most 1,240)."""
        return loop(self.blocks * self.groups, 10, 60, entry=TILE_OVERHEAD)

    def copy(self) -> float:
        """Cycles to copy the sums to their vector: one a cycle, not overlapped."""
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
    """Cycles of one layer's stages that do not overlap with anything."""
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
    """Cycles of a layer: key, softmax and value of each position in turn, 72 beats a vector."""
    vector = STORIES["stories15M"].dim // 4
    key = loop(vector, 1, READ_LATENCY + 34, entry=1)
    softmax = loop(STORIES["stories15M"].n_heads, 1, 60, entry=1)
    value = loop(vector, 1, READ_LATENCY + 20, entry=1)
    return (position + 1) * (key + softmax + value)


def llama2_hls_cycles(position: int) -> float:
    """Cycles of one token: a tile loads while the previous one computes; nothing else overlaps."""
    c = STORIES["stories15M"]
    tiles = list(_tiles())
    weights = tiles[0].load() + tiles[-1].compute()
    for now, following in zip(tiles, tiles[1:]):
        weights += max(now.compute(), following.load())
    copies = sum(tile.copy() for tile in tiles)
    tail = QUANTIZE[c.dim] + 752 + loop(c.dim, 1, READ_LATENCY) + 2 * (24 + READ_LATENCY)
    return weights + copies + c.n_layers * (_serial_stages() + _attention(position)) + tail


def llama2_hls_tokens_per_second(tokens: int) -> float:
    """Mean rate over the first `tokens` positions, as its main.cpp measures."""
    cycles = sum(llama2_hls_cycles(position) for position in range(tokens))
    return tokens * CLOCK_HZ / cycles


# ---- accelerators with public bytes, ports and memory -------------------------------------


@dataclass(frozen=True)
class ByBytes:
    """A memory-bound peer: rate = peak bandwidth x efficiency / bytes of a token."""

    name: str
    memory: Memory
    clock_mhz: float
    token_bytes: float
    measured: tuple[float, float]  # lowest and highest rate in the source
    calibrates: bool  # our efficiency of this memory is calibrated with this row

    def tokens_per_second(self) -> float:
        ports = self.memory.ports * self.memory.port_bytes * self.clock_mhz * 1e6
        rate = min(self.memory.peak_bytes_per_s * self.memory.efficiency, ports)
        return rate / self.token_bytes


def _grouped(weights: float, bits: float, group: int, scale_bits: float) -> float:
    return weights * (bits + scale_bits / group) / 8


# Weights read for a token: every matrix of the layers, and the classifier.
_LLAMA2_7B = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008) + 32000 * 4096
_LLAMA3_8B = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336) + 128256 * 4096
# llama-fpga: AWQ, groups of 128 with a float16 scale and a 4-bit zero (model2bin.py).
_LLAMA_FPGA = _grouped(_LLAMA2_7B, 4, 128, 20)
# Hummingbird: 4 bit; the format of its scales is not known: groups of 128 are assumed.
_HUMMINGBIRD = _grouped(_LLAMA3_8B, 4, 128, 20)

_KV260, _ZCU104, _U250 = (boards()[name].memory for name in ("kv260", "zcu104", "u250"))
# A second controller, in the fabric: a SODIMM at 938 ps (zcu104bd.bd).
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
"""Listed peers whose rate does not follow from public figures, and why."""
