"""Resource estimate of the kernel on a device, computed from a board's config header.

Operators are counted loop by loop: a loop with initiation interval II needs 1/II of the
operators that one trip uses. Loops do not share operators: no two compute stages run at once, but
HLS shares between functions only if told to. Weight FIFOs and the engines' activations are assumed
to be in UltraRAM if the device has any. Each operator's cost has its source beside it. Nothing was
synthesised: the figures are estimates; routing, control and HLS's array mapping will differ.
``docs/boards.md`` holds the table that `table` returns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

from llama_pynq.boards import Board, Resources
from llama_pynq.estimate.stages import ROPE_CYCLES
from llama_pynq.kernel.abi import BLOCK, MAX_GROUP, MIN_GROUP, REDUCE_LANES, VALUE_SUMS
from llama_pynq.kernel.config import KernelConfig, kernel_of, kv_in_uram

LIMITS = Resources(lut=0.70, dsp=0.80, bram36=0.80, uram=0.80)
"""Shares of a device beyond which timing is hard to close (finn, platforms.py)."""


def _add(*parts: Resources) -> Resources:
    return Resources(*(sum(getattr(p, f.name) for p in parts) for f in fields(Resources)))


def _times(n: float, part: Resources) -> Resources:
    return Resources(*(n * getattr(part, f.name) for f in fields(Resources)))


# ---- operators ------------------------------------------------------------------------

# float32 cores in HLS's default implementations (PG060 and HLS reports, recalled and not looked
# up, unless another source is named).
_COST = {
    "fadd": Resources(210, 2, 0, 0),  # full DSP usage
    "fmul": Resources(100, 3, 0, 0),  # maximum DSP usage
    "fdiv": Resources(780, 0, 0, 0),
    "fsqrt": Resources(480, 0, 0, 0),
    "fcmp": Resources(66, 0, 0, 0),
    "convert": Resources(210, 0, 0, 0),
    "imul8": Resources(0, 1, 0, 0),  # 8 x 8
    "imul4": Resources(35, 0, 0, 0),  # 4 x 8
    "imul32": Resources(40, 3, 0, 0),
    "iadd": Resources(18, 0, 0, 0),  # per adder of the tree over products
}

# An m_axi adapter takes 1,000 LUT if narrow, 2,500 if wide (recalled, not looked up). Its read
# buffer is outstanding x burst x width (llama2.hls, README: 30 BRAM18 for 16 x 256 x 128 bit).
_ADAPTER_LUT_NARROW, _ADAPTER_LUT_WIDE, _WIDE_BYTES = 1_000, 2_500, 32
# Interconnect between the kernel's ports and the memory's: 1,000 to 3,000 LUT (recalled, not
# looked up).
_INTERCONNECT_LUT = 2_000
# A DDR4 controller, and the HBM subsystem (finn, platforms.py). A Zynq's controller is hardened.
_DDR4_CONTROLLER = Resources(33_256, 3, 99.5, 0)
_HBM = Resources(10_718, 0, 4, 0)
# State machines, address arithmetic and control registers, by analogy with llama2.hls.
_CONTROL_LUT = 8_000
_LUT_PER_RAM_BIT = 1 / 32  # small dual-port arrays in LUT RAM


@dataclass(frozen=True)
class Mix:
    """Operators of one trip of a loop."""

    fadd: float = 0
    fmul: float = 0
    fdiv: float = 0
    fsqrt: float = 0
    fcmp: float = 0
    convert: float = 0
    imul32: float = 0

    def __add__(self, other: Mix) -> Mix:
        return Mix(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Mix)))

    def __mul__(self, n: float) -> Mix:
        return Mix(*(n * getattr(self, f.name) for f in fields(Mix)))

    def every(self, interval: float) -> Resources:
        """Resources of a loop that starts a trip every `interval` cycles."""
        counts = {f.name: math.ceil(getattr(self, f.name) / interval) for f in fields(Mix)}
        return _add(*(_times(n, _COST[name]) for name, n in counts.items()))


# Counted in float_math.h and quantize.h.
_EXP = Mix(fadd=10, fmul=9, fcmp=3, convert=1)
_LOG = Mix(fadd=12, fmul=14, fcmp=1, convert=1)
_COS_SIN = Mix(fadd=7, fmul=11, convert=1, imul32=3)
_GUMBEL = Mix(fmul=1, convert=1, imul32=3) + _LOG * 2
_QUANTIZE = Mix(fadd=1, fmul=1, fcmp=1) * MAX_GROUP + Mix(fdiv=2, fcmp=1)


def _tree(leaves: int) -> Mix:
    return Mix(fadd=leaves - 1)


# ---- memories -------------------------------------------------------------------------


def block_rams(words: float, bits: float, banks: int = 1) -> float:
    """BRAM36 blocks of an array of `words` split into banks; a bank takes at least half a block."""
    per_bank = math.ceil(words / banks)
    shapes = ((512, 36), (1024, 18), (2048, 9), (4096, 4), (8192, 2), (16384, 1))
    halves = min(math.ceil(per_bank / deep) * math.ceil(bits / wide) for deep, wide in shapes)
    return banks * halves / 2


# DotQueries reads a block's keys one process after FetchBlock writes them: two copies.
# SumQueries reads the values four processes after: five copies.
_HEAD_BLOCKS = 2 + 5


def _ultra_rams(words: float, bits: float) -> float:
    """UltraRAM blocks of 4096 x 72 bit (UG573)."""
    return math.ceil(words / 4096) * math.ceil(bits / 72)


def _small_ram(bits: float) -> Resources:
    return Resources(bits * _LUT_PER_RAM_BIT, 0, 0, 0)


# ---- the kernel's units ---------------------------------------------------------------


def _engines(k: KernelConfig) -> Resources:
    """EngineBeat: an 8-bit and a 4-bit multiplier for every byte of a beat, in every row."""
    lanes = k.channels * k.beat_bytes * k.max_rows
    if k.product_rows == 1:
        product = _add(_COST["imul8"], _COST["iadd"])
    else:  # two rows share a DSP (WP486): four products are added in a cascade, then split
        product = _add(_times(0.5, _COST["imul8"]), _times((1 + 2) / 8, _COST["iadd"]))
    # GroupDots is double-buffered: one group fills while the previous one is scaled.
    values = k.channels * k.tile_rows * (k.max_rows + 1)
    return _add(
        _times(lanes, _add(product, _COST["imul4"], _COST["iadd"])), _small_ram(2 * 32 * values)
    )


def _scaling(k: KernelConfig) -> Resources:
    lane = _add(Mix(fadd=1, fmul=2, convert=1).every(1), _times(2, _COST["iadd"]))
    # Sums are double-buffered: one block accumulates while the previous one is collected.
    waves = 2 * k.waves_in_flight
    sums = _small_ram(waves * k.channels * k.max_rows * k.tile_rows * 32)
    return _add(_times(k.channels * k.max_rows * k.scale_lanes, lane), sums)


def _attention_engine(k: KernelConfig) -> Resources:
    """AttendTeam of one port, loop by loop."""
    lanes, words = k.attention_lanes, k.kv_beat_bytes // 4
    rounds = Mix(fadd=BLOCK + VALUE_SUMS, fmul=BLOCK + 1) * lanes
    loops = (
        (Mix(convert=1) * words).every(1),  # FetchInt8
        (Mix(fadd=1, fmul=1) * lanes).every(1),  # DOT
        (_tree(REDUCE_LANES) + Mix(fmul=1, fdiv=1, fcmp=1)).every(
            max(k.score_cycles, REDUCE_LANES // lanes)
        ),  # SCORES
        (_EXP + Mix(fadd=1, fmul=1)).every(k.score_cycles),  # WEIGHTS
        # Largest(scores): one level's comparators, shared by all levels; SumInPlace; shrink shares.
        Mix(fadd=min(4, lanes), fmul=1, fcmp=BLOCK // 2, convert=1).every(1),
        rounds.every(BLOCK),  # VALUES
        Mix(fdiv=1).every(1),  # FINISH_QUERIES
    )
    team = 32 * k.max_head_size * (3 * k.queries + 2 * k.max_rows)
    between = 2 * 32 * k.queries * BLOCK * (REDUCE_LANES + 1)  # partial sums and scores
    block = block_rams(BLOCK * k.max_head_size, 32, max(lanes, words))
    return _add(*loops, _small_ram(team + between), Resources(0, 0, _HEAD_BLOCKS * block, 0))


def _attention(k: KernelConfig) -> Resources:
    return _times(k.kv_ports, _attention_engine(k))


def _vectors(k: KernelConfig) -> Resources:
    """Norm, quantise, rope, residual, RoundKv, Embed."""
    lanes = k.vector_lanes
    interval = MAX_GROUP // lanes
    return _add(
        (Mix(fadd=2, fmul=3) * lanes).every(1),
        Mix(fadd=1, fdiv=1, fsqrt=1, convert=1, fmul=1).every(1),
        _QUANTIZE.every(interval),
        (Mix(fadd=2, fmul=4) * (lanes // 2)).every(1),
        _COS_SIN.every(ROPE_CYCLES),
        (Mix(fadd=1) * lanes).every(1),
        (Mix(fadd=1, fmul=1, convert=1, fcmp=1) * max(1, lanes // 4) + Mix(fdiv=2)).every(1),
        (Mix(convert=1, fmul=1) * lanes).every(1),
        Mix(convert=1, fsqrt=1).every(1),
    )


def _gate(k: KernelConfig) -> Resources:
    silu = _EXP + Mix(fadd=1, fdiv=1, fmul=1)
    return _add(
        (silu * k.tile_rows).every(k.gate_cycles),
        _QUANTIZE.every(MAX_GROUP // k.vector_lanes),
    )


def _sampler(k: KernelConfig) -> Resources:
    """TakeBlock, and the sorted shift registers with one set of comparators for all rows."""
    sums = (_EXP * (BLOCK + 1) + _tree(BLOCK) + Mix(fcmp=BLOCK, fmul=1, fadd=1)) * 2
    noise = (_GUMBEL + Mix(fadd=1, fcmp=1, fdiv=1)) * BLOCK
    finish = _LOG + Mix(fadd=1)
    truncate = _EXP + _GUMBEL + Mix(fdiv=1, fadd=3, fcmp=3)
    # An integer comparator, and the logic that holds and moves a logit and its id.
    per_entry = 16 + 64 * (1 + k.max_rows / 4)
    return _add(
        (sums + noise + Mix(fcmp=BLOCK)).every(k.sample_cycles),
        finish.every(1 << 30),
        truncate.every(max(k.sample_cycles // 4, k.fadd_latency + 4)),
        Resources(k.top_logits * per_entry, 0, 0, 0),
    )


def _ports(k: KernelConfig) -> Resources:
    """m_axi adapters of the weight channels and KV ports, and two narrow ones for the rest."""

    def adapter(width: int) -> Resources:
        words = k.read_outstanding * k.read_burst_beats
        lut = _ADAPTER_LUT_WIDE if width > _WIDE_BYTES else _ADAPTER_LUT_NARROW
        return Resources(lut, 0, block_rams(words, 8 * width), 0)

    kv_masters = 0 if k.shared_masters else k.kv_ports
    both = _add(
        _times(k.channels, adapter(k.beat_bytes)), _times(kv_masters, adapter(k.kv_beat_bytes))
    )
    joins = Resources(_INTERCONNECT_LUT * kv_masters, 0, 0, 0)
    return _add(both, joins, Resources(2 * _ADAPTER_LUT_NARROW, 0, 4, 0))


def _fifos(k: KernelConfig, uram: bool) -> Resources:
    """Weight FIFOs, and KV FIFOs if deep enough, are in UltraRAM if the device has any."""
    width, kv_width = 8 * k.beat_bytes, 8 * k.kv_beat_bytes
    constants = {"kUltraRam": int(uram), "kKvFifoBeats": k.kv_fifo_beats}

    def fifo(beats: int, bits: int, ultra: bool) -> Resources:
        if ultra:
            return Resources(0, 0, 0, _ultra_rams(beats, bits))
        return Resources(0, 0, block_rams(beats, bits), 0)

    return _add(
        _times(k.channels, fifo(k.weight_fifo_beats, width, uram)),
        _times(k.kv_ports, fifo(k.kv_fifo_beats, kv_width, kv_in_uram(constants))),
        _small_ram(2 * k.kv_ports * k.kv_write_beats * kv_width),  # write FIFOs
    )


def _arrays(k: KernelConfig, uram: bool) -> Resources:
    """Workspace (``compute.h``); the two QuantizedRows are in UltraRAM if the device has any."""
    rows, lanes = k.max_rows, k.vector_lanes
    most = -(-max(k.max_dim, k.max_hidden_dim) // MAX_GROUP) * MAX_GROUP
    groups = most // MIN_GROUP
    wide = (most // MAX_GROUP, 8 * MAX_GROUP)
    quantized = 2 * rows * (2 * block_rams(groups, 32) + (0 if uram else block_rams(*wide)))
    rams = (
        2 * block_rams(rows * k.max_dim, 32, lanes)
        + block_rams(rows * 3 * k.max_dim, 32, lanes)
        + block_rams(most, 32, REDUCE_LANES)
        + block_rams(rows * 2 * k.max_dim, 8, lanes)
        + block_rams(rows * k.max_dim, 32)
        + quantized
    )
    tiles = k.waves_in_flight * k.channels // 2
    gate = 32 * rows * -(-tiles * k.tile_rows // MAX_GROUP) * MAX_GROUP
    rope = 32 * rows * k.max_head_size + 64 * k.max_head_size // 2
    ultra = 2 * rows * _ultra_rams(*wide) if uram else 0
    return _add(Resources(0, 0, rams, ultra), _small_ram(gate + rope))


_UNITS: dict[str, Callable[[KernelConfig], Resources]] = {
    "engines": _engines,
    "scaling": _scaling,
    "attention": _attention,
    "norm, quantise, rope": _vectors,
    "gate": _gate,
    "sampler": _sampler,
    "memory ports": _ports,
    "control": lambda k: Resources(_CONTROL_LUT, 0, 0, 0),
}


def units(board: Board, kernel: KernelConfig | None = None) -> dict[str, Resources]:
    """Estimate the resources of every unit of the kernel on a board, and of memory controllers.

    Parameters
    ----------
    board : Board
    kernel : KernelConfig, optional
        Default: the board's header.
    """
    kernel = kernel or kernel_of(board)
    result = {name: unit(kernel) for name, unit in _UNITS.items()}
    uram = board.resources.uram > 0
    result["FIFOs"] = _fifos(kernel, uram)
    result["on-chip arrays"] = _arrays(kernel, uram)
    if board.memory.kind.startswith("HBM"):
        result["memory controllers"] = _HBM
    elif not board.cortex_a:
        result["memory controllers"] = _times(board.memory.banks, _DDR4_CONTROLLER)
    return result


def resources(board: Board, kernel: KernelConfig | None = None) -> Resources:
    """Estimate the resources of the whole kernel on a board; see `units`.

    Parameters
    ----------
    board : Board
    kernel : KernelConfig, optional
        Default: the board's header.
    """
    return _add(*units(board, kernel).values())


def share(used: Resources, has: Resources) -> Resources:
    """Utilisation per resource; 0 if the device has none."""
    return Resources(
        *(
            getattr(used, f.name) / getattr(has, f.name) if getattr(has, f.name) else 0.0
            for f in fields(Resources)
        )
    )


def beyond(used: Resources, has: Resources) -> list[str]:
    """Resources of which more than `LIMITS` is used: names of the fields.

    Parameters
    ----------
    used, has : Resources
    """
    parts = share(used, has)
    return [f.name for f in fields(Resources) if getattr(parts, f.name) > getattr(LIMITS, f.name)]
