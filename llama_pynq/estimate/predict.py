"""How long a step takes on a board: a model of the kernel's cycles, read off its structure.

Two processes run side by side: loaders that bring weights and keys and values from memory
into FIFOs, and compute, stage after stage. A stage of compute is loops: trips times initiation
interval plus pipeline depth, depths being chains of operators. What it takes from the FIFOs
it may have to wait for. The constants of a board are read from its header in
``hls_src/boards/``, so what changes there changes the prediction.

Nothing here was measured on a board with this kernel: every figure is modelled.
``tests/test_perf.py`` holds the same building blocks to what others measured on theirs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from llama_pynq.boards import MIB, Board, Memory
from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.errors import LimitError
from llama_pynq.kernel.abi import (
    BLOCK,
    MAX_GROUP,
    MIN_GROUP,
    NORM_SUMS,
    REDUCE_LANES,
    VALUE_SUMS,
    WORD_BYTES,
    Stage,
)
from llama_pynq.kernel.config import KernelConfig, Target, board_headers, kernel_of
from llama_pynq.kernel.kv_cache import head_stride, record_beats
from llama_pynq.kernel.limits import KernelLimits, check_limits
from llama_pynq.weights.tiles import channel_bytes, has_half_group

SMALL = ("norm", "quantise", "rope", "softmax", "swiglu", "residual")
"""Parts of a step that should cost next to nothing beside the streams from memory."""


ROPE_CYCLES = 8
"""Of a pair's angle in MakeRopeRow: once a step, so its operators are shared."""

# ---- assumptions ----------------------------------------------------------------------


@dataclass(frozen=True)
class Assumptions:
    """What the model takes for granted, in cycles of the kernel's clock unless named otherwise.

    Attributes
    ----------
    loop : int
        To enter a loop and to leave it: one each (UG1399, pragma loop_flatten).
    call : int
        Start and end of a function or of a process of a dataflow region. From experience.
    fmul : int
        Multiplier core; 4 beside an adder of 8 (stored HLS projects).
    fdiv_fast, fdiv_slow, fsqrt_fast, fsqrt_slow : int
        Divider and root, above `fast_mhz` and below; 28 is the most that PG060 offers, 16
        what HLS projects at 100 MHz show.
    fcmp_fast, fcmp_slow : int
        Comparison and selection of floats (stored HLS projects: 1 to 2).
    convert : int
        Between integer and float: 4 to 6 (PG060).
    imul, wide_imul : int
        Integer products of 8 and of 32 or 64 bit.
    read, store : int
        Block RAM with its output register; a write.
    fast_mhz : int
    wait_for_status_us_server, wait_for_status_us_arm : float
        What a call of the kernel costs the host: Python, registers, polling. The server's is
        the project's goal; a shared, slow one took 200 to 430 (docs/peers.md). An ARM core's
        is taken as ten times the goal: unmeasured.
    call_ms : float
        The driver chooses the steps of a call so that it lasts about this long at most.
    """

    loop: int = 2
    call: int = 2
    fmul: int = 4
    fdiv_fast: int = 28
    fdiv_slow: int = 16
    fsqrt_fast: int = 28
    fsqrt_slow: int = 16
    fcmp_fast: int = 2
    fcmp_slow: int = 1
    convert: int = 5
    imul: int = 3
    wide_imul: int = 5
    read: int = 2
    store: int = 1
    fast_mhz: int = 200
    wait_for_status_us_server: float = 50.0
    wait_for_status_us_arm: float = 500.0
    call_ms: float = 100.0


ASSUMPTIONS = Assumptions()


# ---- building blocks ------------------------------------------------------------------


def loop(trips: float, interval: float, depth: float, entry: float = ASSUMPTIONS.loop) -> float:
    """Cycles of a pipelined loop: every trip's start, the last one's depth, in and out."""
    return (trips - 1) * interval + depth + entry if trips > 0 else entry


def dataflow(stages: Sequence[Sequence[float]]) -> float:
    """Cycles of a loop with DATAFLOW: its processes' times, trip by trip.

    A process starts a trip when it is done with the last one and the process before it with
    this one; every start and end of a process costs a call. What one hands to another has room
    for as many trips as there are processes between them (``attention.h``: ``depth``).
    """
    free = [0.0] * len(stages[0])
    for trip in stages:
        ready = 0.0
        for i, cycles in enumerate(trip):
            ready = free[i] = max(ready, free[i]) + cycles + ASSUMPTIONS.call
    return free[-1] + ASSUMPTIONS.loop


def nest(outer: int, inner: float) -> float:
    """Cycles of a loop around `inner`; HLS joins two loops only if the inner's bound is fixed.

    References
    ----------
    UG1399, pragma loop_flatten; UG1448, message 200-960
    """
    return outer * inner + ASSUMPTIONS.loop


@dataclass(frozen=True)
class Operators:
    """Latencies of operators, and of the chains that the kernel's functions are."""

    fadd: int
    fmul: int
    fdiv: int
    fsqrt: int
    fcmp: int
    convert: int
    imul: int
    wide_imul: int
    read: int
    store: int

    @classmethod
    def of(cls, kernel: KernelConfig, a: Assumptions = ASSUMPTIONS) -> Operators:
        fast = kernel.clock_mhz >= a.fast_mhz
        return cls(
            fadd=kernel.fadd_latency,
            fmul=a.fmul,
            fdiv=a.fdiv_fast if fast else a.fdiv_slow,
            fsqrt=a.fsqrt_fast if fast else a.fsqrt_slow,
            fcmp=a.fcmp_fast if fast else a.fcmp_slow,
            convert=a.convert,
            imul=a.imul,
            wide_imul=a.wide_imul,
            read=a.read,
            store=a.store,
        )

    def tree(self, leaves: int) -> int:
        """TreeSum of `leaves` floats."""
        return math.ceil(math.log2(leaves)) * self.fadd

    def add_tree(self, leaves: int) -> int:
        """Integers, three at a time."""
        return math.ceil(math.log(leaves, 3))

    @property
    def exp(self) -> int:
        """``float_math.h``, Exp(): two comparisons, a rounding, nine more links, a comparison."""
        rounding = 2 * self.fadd
        reduction = 2 * self.fmul + rounding + 2 * self.fadd
        polynomial = 4 * (self.fmul + self.fadd)
        return 3 * self.fcmp + reduction + polynomial + self.fmul + self.fadd + self.convert

    @property
    def log(self) -> int:
        """``float_math.h``, Log()."""
        polynomial = 7 * (self.fmul + self.fadd)
        return 2 * self.fcmp + self.fmul + self.fadd + polynomial + self.fmul + 4 * self.fadd

    @property
    def cos_sin(self) -> int:
        """``float_math.h``, CosSin(), with the phase's 64-bit product."""
        return self.wide_imul + self.convert + 2 * self.fmul + 3 * (self.fmul + self.fadd)

    @property
    def gumbel(self) -> int:
        """``float_math.h``, GumbelNoise(): a hash of three products, two logarithms."""
        return 3 * self.wide_imul + self.convert + self.fmul + 2 * self.log

    @property
    def quantize(self) -> int:
        """``quantize.h``, QuantizeInto(): the largest of a group, a division, a rounding."""
        largest = self.add_tree(MAX_GROUP)
        rounding = self.fadd + 1
        total = self.add_tree(MAX_GROUP)
        return self.read + largest + self.fdiv + self.fmul + rounding + total + self.store


# ---- the shape, as the kernel sees it -------------------------------------------------


@dataclass(frozen=True)
class Work:
    """One step's work: a model, how it is packed, and which rows the call has.

    Attributes
    ----------
    config : ModelConfig
    group_size, weight_bits, kv_bits : int
    rows : int
        Sequences that decode side by side, a row each.
    position : int
        Of every row: it attends to position + 1 positions.
    sample : bool
        Whether the classifier runs.
    """

    config: ModelConfig
    group_size: int
    weight_bits: int
    kv_bits: int
    rows: int
    position: int
    sample: bool

    @property
    def row_bytes(self) -> int:
        return self.group_size * self.weight_bits // 8

    @property
    def dim_groups(self) -> int:
        return -(-self.config.dim // self.group_size)

    @property
    def hidden_groups(self) -> int:
        return -(-self.config.hidden_dim // self.group_size)

    @property
    def head_stride(self) -> int:
        return head_stride(self.config.head_size)

    def record_beats(self, kernel: KernelConfig) -> int:
        """Beats of one position of one head."""
        return record_beats(self.config.head_size, self.kv_bits, kernel.kv_beat_bytes)

    def stage_bytes(self) -> dict[tuple[Stage, int], int]:
        """What each stage has to read, with no padding of tiles or heads, by (stage, layer).

        Weights and norms count once, keys and values for every row. Stages that read nothing,
        or as little as a row of the embedding, are not in it.
        """
        c = self.config

        def matrix(rows: int, columns: int) -> int:
            groups = -(-columns // self.group_size)
            return rows * (columns * self.weight_bits // 8 + 4 * groups)

        head = 2 * c.head_size * self.kv_bits // 8 + (8 if self.kv_bits == 8 else 0)
        norm = 4 * c.dim
        layer = {
            Stage.ATTENTION_NORM: norm,
            Stage.QKV: matrix(c.dim + 2 * c.kv_dim, c.dim),
            Stage.ATTENTION: self.rows * c.n_kv_heads * (self.position + 1) * head,
            Stage.ATTENTION_OUT: matrix(c.dim, c.dim),
            Stage.FFN_NORM: norm,
            Stage.GATE_UP: matrix(2 * c.hidden_dim, c.dim),
            Stage.DOWN: matrix(c.dim, c.hidden_dim),
        }
        found = {(stage, i): n for i in range(c.n_layers) for stage, n in layer.items()}
        if self.sample:
            found[Stage.FINAL_NORM, c.n_layers] = norm
            found[Stage.CLASSIFIER, c.n_layers] = matrix(c.vocab_size, c.dim)
        return found

    @property
    def kv_bytes(self) -> int:
        """Keys and values of every row's positions, with no padding of heads."""
        stages = self.stage_bytes().items()
        return sum(n for (stage, _), n in stages if stage is Stage.ATTENTION)

    @property
    def weight_bytes(self) -> int:
        """Weights and norms that a step has to read, with no padding of tiles."""
        return self.total_bytes - self.kv_bytes

    @property
    def total_bytes(self) -> int:
        """What a step has to read: every weight once, every row's keys and values."""
        return sum(self.stage_bytes().values())


# ---- memory ---------------------------------------------------------------------------

_NO_BEATS = 1e-6
Piece = tuple[float, tuple[float, float]]
"""Cycles, and the beats that the weight channels and the KV ports get in each of them."""


@dataclass
class Streams:
    """Loaders and their FIFOs, in beats: what has arrived, and what is left to fetch.

    Each loader asks for a beat a cycle while its FIFO has room. Where they ask for more than
    memory gives, they share in proportion. Channels run in lockstep: if some share their bank
    of memory with a port of the KV cache, those are the ones that count.
    """

    memory: Memory
    kernel: KernelConfig
    kv_active: float
    weights_left: float
    kv_left: float
    weights: float = 0.0
    kv: float = 0.0

    def _rates(self, weights: bool, kv: bool) -> tuple[float, float]:
        """Beats a cycle of a channel and of a KV port, when those that are asked for want all."""
        k, m = self.kernel, self.memory
        beat, bank, limit = self._limits()
        asked_w, asked_kv = (k.beat_bytes * beat if weights else 0), (k.kv_beat_bytes * beat * kv)
        total = asked_w * k.channels + asked_kv * self.kv_active
        # KV ports take banks of their own while there are any.
        shared = k.channels + k.kv_ports > m.banks and k.kv_ports % m.banks != 0
        busiest = asked_w * max(1.0, k.channels / m.banks) + asked_kv * shared
        scale = min(1.0, limit / total if total else 1.0, bank / busiest if busiest else 1.0)
        return (beat * scale if weights else 0.0), (beat * scale if kv else 0.0)

    def _limits(self) -> tuple[float, float, float]:
        """Beats a cycle that a loader asks for; bytes a cycle of a bank, and of all memory."""
        k, m = self.kernel, self.memory
        clock = k.clock_mhz * 1e6
        latency = m.latency_ns * 1e-9 * clock
        beat = min(1.0, k.read_burst_beats * k.read_outstanding / latency)
        bank_ports = m.ports / m.banks * m.port_bytes
        bank = min(m.bank_peak_bytes_per_s * m.efficiency / clock, bank_ports)
        limit = min(m.peak_bytes_per_s * m.efficiency, m.ports * m.port_bytes * clock) / clock
        return beat, bank, limit

    def run(self, cycles: float, weights: float = 0.0, kv: float = 0.0) -> tuple[float, float]:
        """A stage that takes `cycles` and consumes beats evenly.

        Returns
        -------
        taken, needed : float
            Cycles until it is done, and until its last beat had come.
        """
        k = self.kernel
        missing = weights - self.weights, kv - self.kv
        wanted = (
            min(self.weights_left, missing[0] + k.weight_fifo_beats),
            min(self.kv_left, missing[1] + k.kv_fifo_beats),
        )
        pieces = self._fetch(wanted)
        needed = max(_time_of(pieces, 0, missing[0]), _time_of(pieces, 1, missing[1]))
        taken = max(cycles, needed)
        got = _beats_by(pieces, 0, taken), _beats_by(pieces, 1, taken)
        self.weights += got[0] - weights
        self.kv += got[1] - kv
        self.weights_left -= got[0]
        self.kv_left -= got[1]
        return taken, needed

    def _fetch(self, wanted: tuple[float, float]) -> list[Piece]:
        """How the loaders get what they want: together, then the one that wants more."""
        left = [max(0.0, beats) for beats in wanted]
        pieces = []
        while max(left) > _NO_BEATS:
            rates = self._rates(left[0] > _NO_BEATS, left[1] > _NO_BEATS)
            cycles = min(beats / rate for beats, rate in zip(left, rates) if rate)
            pieces.append((cycles, rates))
            left = [beats - rate * cycles for beats, rate in zip(left, rates)]
        return pieces


@dataclass
class StreamsInTurn(Streams):
    """Where a KV port goes through a weight channel's master: one loader brings what both need.

    In the order of use, stretch after stretch: weights that are used after attention come after
    the keys and values. A stretch's first request is made when the one before it has come. These
    masters have the most to bring, so they are the ones that count; the card's limit is shared in
    proportion to what each has to bring.

    Attributes
    ----------
    stretches : list of (int, float)
        What is to be fetched: 0 for weights or 1 for keys and values, and beats.
    """

    stretches: list[tuple[int, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        k, m = self.kernel, self.memory
        beat, bank, limit = self._limits()
        weights, kv = self.weights_left, self.kv_left
        total = weights * k.beat_bytes * k.channels + kv * k.kv_beat_bytes * self.kv_active
        rate = min(beat, bank / k.beat_bytes, limit * (weights + kv) / total)
        latency = m.latency_ns * 1e-9 * k.clock_mhz * 1e6
        self._left = [
            (stream, beats, beats / (beats / rate + latency)) for stream, beats in self.stretches
        ]

    def run(self, cycles: float, weights: float = 0.0, kv: float = 0.0) -> tuple[float, float]:
        before = self.weights_left, self.kv_left
        result = super().run(cycles, weights, kv)
        got = [before[0] - self.weights_left, before[1] - self.kv_left]
        while self._left:
            stream, beats, rate = self._left[0]
            used = min(beats, got[stream])
            got[stream] -= used
            if beats - used > _NO_BEATS:
                self._left[0] = stream, beats - used, rate
                break
            del self._left[0]
        return result

    def _fetch(self, wanted: tuple[float, float]) -> list[Piece]:
        left = list(wanted)
        pieces = []
        for stream, beats, rate in self._left:
            come = min(beats, left[stream])
            left[stream] -= come
            if come > _NO_BEATS:
                pieces.append((come / rate, (0.0, rate) if stream else (rate, 0.0)))
            if beats - come > _NO_BEATS:
                break  # no room in its FIFO: what follows has to wait, too
        return pieces


def _time_of(pieces: list[Piece], stream: int, beats: float) -> float:
    """Cycles until so many beats of a stream have come; its last ones where rounding hides it."""
    time = passed = 0.0
    for cycles, rates in pieces:
        if beats <= _NO_BEATS:
            break
        if rates[stream]:
            used = min(cycles, beats / rates[stream])
            beats -= used * rates[stream]
            time = passed + used
        passed += cycles
    return time


def _beats_by(pieces: list[Piece], stream: int, time: float) -> float:
    """Beats of a stream that have come by then."""
    beats = 0.0
    for cycles, rates in pieces:
        beats += min(cycles, time) * rates[stream]
        time -= min(cycles, time)
    return beats


# ---- stages of compute ----------------------------------------------------------------


@dataclass(frozen=True)
class Phase:
    """A stretch of compute.

    Attributes
    ----------
    part : str
        Whose cycles they are; for a matrix or attention, beyond what the stream takes.
    cycles : float
        If memory never made it wait.
    weights, kv : float
        Beats that it takes from each channel, or from the busiest KV port.
    engines : float
        Of `cycles`, what the engines need to take in the stream.
    """

    part: str
    cycles: float
    weights: float = 0.0
    kv: float = 0.0
    engines: float = 0.0


@dataclass(frozen=True)
class Compute:
    """The compute process: phases of every stage (``compute.h``, Layer() and Classify())."""

    kernel: KernelConfig
    work: Work
    latency: float
    """Of a read from memory, in cycles."""

    @property
    def _ops(self) -> Operators:
        return Operators.of(self.kernel)

    # ---- vectors

    def norm(self) -> Iterator[Phase]:
        """NormalizeRows and QuantizeRows: the weights of a norm, then each row."""
        k, c, ops = self.kernel, self.work.config, self._ops
        words = self.work.dim_groups * self.work.group_size * 4 // WORD_BYTES
        beats = words * k.word_beats
        yield Phase("norm", loop(words, k.word_beats, k.word_beats + ops.read), weights=beats)
        lanes = k.vector_lanes
        trips = -(-c.dim // lanes)
        squares = (
            loop(max(trips, NORM_SUMS // lanes), 1, ops.read + ops.fmul + ops.fadd + ops.store)
            + self._sum_in_place(NORM_SUMS, lanes)
            + 2 * ASSUMPTIONS.call
        )
        factor = ops.fadd + ops.fsqrt + ops.fdiv + ops.fcmp
        scale = loop(trips, 1, ops.read + 2 * ops.fmul + ops.store)
        yield Phase("norm", nest(self.work.rows, squares + factor + scale))
        yield from self.quantize()

    def quantize(self) -> Iterator[Phase]:
        """QuantizeRow of every row."""
        interval = MAX_GROUP // self.kernel.vector_lanes
        row = loop(self.work.dim_groups, interval, interval + self._ops.quantize)
        yield Phase("quantise", nest(self.work.rows, row + ASSUMPTIONS.call))

    def rope(self) -> Iterator[Phase]:
        """RotateHeads of every row."""
        k, c, ops = self.kernel, self.work.config, self._ops
        pairs = (c.n_heads + c.n_kv_heads) * c.head_size // 2
        depth = ops.read + ops.fmul + ops.fadd + ops.store
        row = loop(-(-pairs // (k.vector_lanes // 2)), 1, depth)
        yield Phase("rope", nest(self.work.rows, row + ASSUMPTIONS.call))

    def move_hidden(self) -> Iterator[Phase]:
        """MoveHidden of every row: scales, then values."""
        ops, w = self._ops, self.work
        scales = loop(w.hidden_groups, 1, ops.read + ops.store)
        values = loop(w.hidden_groups * w.group_size // MIN_GROUP, 1, ops.read + ops.store)
        yield Phase("swiglu", nest(w.rows, scales + values))

    # ---- matrices

    def group_beats(self, columns: int) -> list[int]:
        """Beats of every group of a tile: values, then scales; the last may be stored as half."""
        k, w = self.kernel, self.work
        values = k.tile_rows * w.row_bytes // WORD_BYTES
        beats = [(values + k.scale_words) * k.word_beats] * -(-columns // w.group_size)
        if has_half_group(columns, w.group_size, w.weight_bits):
            beats[-1] -= values // 2 * k.word_beats
        return beats

    def engine(self, columns: int, waves: int) -> float:
        """RunEngine: a loop over all beats, in which the group before is scaled."""
        k, ops = self.kernel, self._ops
        slots = k.tile_rows // k.scale_lanes
        # Two rows in a multiplier: four products are added one after the other, then split.
        packed = k.product_rows > 1
        tree = 3 + 1 + ops.add_tree(k.beat_bytes // 4) if packed else ops.add_tree(k.beat_bytes)
        product = ops.read + 1 + ops.imul + tree + 2 + ops.store
        adding = ops.read + 1 + ops.convert + 2 * ops.fmul + ops.fadd + ops.store
        least = -(-slots // k.word_beats) * k.word_beats
        wave = sum(max(beats, least) for beats in self.group_beats(columns))
        stream = loop(waves * wave, 1, max(product, adding))
        return stream + loop(slots, 1, adding) + 2 * ASSUMPTIONS.call

    def collect(self, epilogue: str, waves: int) -> float:
        """Collect: rows and tiles follow one another down one pipeline."""
        k, ops = self.kernel, self._ops
        tiles = waves * k.channels * self.work.rows
        take = k.tile_rows // k.vector_lanes
        if epilogue == "keep":
            return loop(tiles, take, take + ops.read + ops.store)
        if epilogue == "residual":
            return loop(tiles, take, take + ops.read + ops.fadd + ops.store)
        if epilogue == "swiglu":
            return self._gate(waves)
        return self._take_blocks(waves)

    def _gate(self, waves: int) -> float:
        k, ops, rows = self.kernel, self._ops, self.work.rows
        silu = ops.read + ops.exp + ops.fadd + ops.fdiv + ops.fmul + ops.store
        pairs = waves * k.channels // 2
        gate = loop(pairs * rows, k.gate_cycles, k.gate_cycles + silu)
        interval = MAX_GROUP // k.vector_lanes
        groups = math.ceil(pairs * k.tile_rows / self.work.group_size)
        return gate + loop(groups * rows, interval, interval + ops.quantize)

    def _take_blocks(self, waves: int) -> float:
        k, ops, rows = self.kernel, self._ops, self.work.rows
        blocks = waves * k.channels * k.tile_rows // BLOCK
        # A row's sum of exponentials meets the next block's: a product and an addition.
        interval = max(k.sample_cycles, ops.fmul + ops.fadd)
        largest = int(math.log2(BLOCK)) * ops.fcmp
        total = largest + ops.fadd + ops.exp + ops.tree(BLOCK) + ops.fmul + ops.fadd
        noise = ops.gumbel + ops.fadd + largest
        depth = ops.read + k.sample_cycles + max(ops.fdiv + total, noise) + ops.store
        take = loop(blocks * rows, interval, depth)
        # TOP: a trip for every block, and one for each of its candidates.
        trips = rows * blocks * (1 + self._candidates())
        top = loop(trips, ops.fcmp, ops.read + ops.fcmp)
        return take + top + nest(rows, ASSUMPTIONS.loop)

    def _candidates(self) -> float:
        """Mean candidates of a block: of logits in random order, K (1 + ln(n / K)) are ever among
        the K largest so far. The first blocks bring more, which a wave's slack absorbs.
        """
        vocab_size, most = self.work.config.vocab_size, self.kernel.top_logits
        ever = most * (1 + math.log(vocab_size / most)) if vocab_size > most else vocab_size
        return ever / max(1, vocab_size // BLOCK)

    def matrix(self, rows: int, columns: int, epilogue: str) -> Iterator[Phase]:
        """MatVec: engines fill a block of waves while the last one is collected."""
        k = self.kernel
        waves = -(-rows // (k.channels * k.tile_rows))
        blocks = [
            min(k.waves_in_flight, waves - first) for first in range(0, waves, k.waves_in_flight)
        ]
        engines = [self.engine(columns, n) for n in blocks]
        collects = [self.collect(epilogue, n) for n in blocks]
        yield Phase(
            epilogue,
            dataflow(list(zip(engines, collects))) - collects[-1],
            weights=waves * sum(self.group_beats(columns)),
            engines=sum(engines) + ASSUMPTIONS.call * len(blocks),
        )
        yield Phase(epilogue, collects[-1])

    # ---- attention

    def attention(self) -> Iterator[Phase]:
        """RoundKv, Attend and WriteKv of a layer."""
        k, c, w = self.kernel, self.work.config, self.work
        if w.kv_bits == 8:
            yield from self._round_kv()
        per_kv_head = c.n_heads // c.n_kv_heads
        heads = min(per_kv_head, k.queries)
        chunks = -(-per_kv_head // k.queries)
        for first in range(0, c.n_kv_heads, k.kv_ports):
            engines = min(k.kv_ports, c.n_kv_heads - first)
            for _ in range(w.rows * chunks):
                yield from self._team(engines, heads)
        yield from self._write_kv()

    def _round_kv(self) -> Iterator[Phase]:
        k, c, ops, w = self.kernel, self.work.config, self._ops, self.work
        trips = -(-c.head_size // max(1, k.vector_lanes // 4))
        largest = loop(trips, 1, ops.read + ops.fcmp)
        rounding = ops.fmul + ops.fadd + 1 + ops.convert
        head = largest + ops.fdiv + loop(trips, 1, ops.read + rounding + ops.store)
        yield Phase("quantise", nest(w.rows * 2 * c.n_kv_heads, head + ASSUMPTIONS.call))

    def _team(self, engines: int, heads: int) -> Iterator[Phase]:
        """TeamTask: queries in, the engines side by side, results out."""
        k, c, ops, w = self.kernel, self.work.config, self._ops, self.work
        # Parts of every engine's vector, whether it has a head or not.
        lanes = k.vector_lanes if w.head_stride == c.head_size else 1
        vectors = loop(w.head_stride // lanes * k.kv_ports, 1, ops.read + ops.store)
        yield Phase("softmax", nest(heads, vectors) + w.rows + vectors + ASSUMPTIONS.call)

        start = nest(heads, loop(w.head_stride // k.attention_lanes, 1, ops.store))
        yield Phase("softmax", start)
        positions = w.position + 1
        beats, pieces = positions * w.record_beats(k), positions * self._pieces()
        yield Phase("softmax", self._blocks(positions, heads), kv=beats, engines=pieces)

        finish = nest(heads, loop(c.head_size, 1, ops.read + ops.fdiv + ops.store))
        yield Phase("softmax", finish + nest(heads, vectors) + ASSUMPTIONS.call)

    def _blocks(self, positions: int, heads: int) -> float:
        """AttendBlocks: the processes of a block, each beside those of the blocks around it."""
        k, ops, w = self.kernel, self._ops, self.work
        lanes = k.attention_lanes
        parts = w.head_stride // lanes
        dots = loop(parts * BLOCK, 1, ops.read + ops.fmul + ops.fadd + ops.store)
        rounds = BLOCK // VALUE_SUMS
        adding = ops.fmul + rounds * ops.fadd + ops.tree(VALUE_SUMS) + ops.fadd
        sums = loop(parts, BLOCK, BLOCK - BLOCK // rounds + ops.read + adding + ops.store)
        processes = (dots, self._score(), self._weigh(), sums)
        queries = [nest(heads, cycles + ASSUMPTIONS.call) for cycles in processes]
        blocks = [
            (self._fetch_block(min(BLOCK, positions - first), first + BLOCK >= positions), *queries)
            for first in range(0, positions, BLOCK)
        ]
        return dataflow(blocks)

    def _score(self) -> float:
        """ScoreQueries, one query: the dot products' last sums, scores, and the largest."""
        k, ops = self.kernel, self._ops
        interval = max(k.score_cycles, REDUCE_LANES // k.attention_lanes)
        dot = ops.read + ops.tree(REDUCE_LANES) + ops.fmul
        scores = loop(BLOCK, interval, interval + dot + ops.fdiv + ops.fcmp + ops.store)
        return scores + (int(math.log2(BLOCK)) + 1) * ops.fcmp

    def _weigh(self) -> float:
        """WeighQueries, one query: exponentials, and what has been summed so far."""
        k, ops = self.kernel, self._ops
        depth = ops.read + ops.fadd + ops.exp + ops.fmul + ops.store
        weights = loop(BLOCK, k.score_cycles, depth)
        total = self._sum_in_place(BLOCK, min(4, k.attention_lanes))
        shrink = ops.fadd + ops.exp
        return max(weights + total, shrink) + ops.fmul + ops.fadd

    def _sum_in_place(self, leaves: int, lanes: int) -> float:
        """SumInPlace: a loop for each level of the tree."""
        depth = self._ops.read + self._ops.fadd + self._ops.store
        halves = (leaves >> level + 1 for level in range(int(math.log2(leaves))))
        return sum(loop(-(-half // lanes), 2, depth) for half in halves)

    def _fetch_block(self, positions: int, last: bool) -> float:
        """FetchBlock: pieces of a few values; the last block is cleared behind its positions."""
        k, ops, w = self.kernel, self._ops, self.work
        pieces = positions * self._pieces()
        cycles = loop(pieces, 1, 1 + ops.convert + ops.store) + w.rows
        if last:
            vector = loop(w.head_stride // REDUCE_LANES, REDUCE_LANES // k.attention_lanes, 1)
            cycles += nest(BLOCK - positions, vector) + vector
        return cycles

    def _pieces(self) -> int:
        """Of a position: a beat of float32 is one, a beat of int8 four."""
        beats = self.work.record_beats(self.kernel)
        return beats if self.work.kv_bits == 32 else 4 * beats

    def _write_kv(self) -> Iterator[Phase]:
        ops, w = self._ops, self.work
        # Of int8, every byte of a beat is read by itself, two a cycle (WriteInt8).
        interval = 1 if w.kv_bits == 32 else self.kernel.kv_beat_bytes // 2
        beats = w.record_beats(self.kernel) * w.config.n_kv_heads
        records = loop(beats, interval, interval + ops.read + ops.store)
        yield Phase("kv write", nest(w.rows, records))

    # ---- first and last

    def embed(self) -> Iterator[Phase]:
        """Between steps, PrepareRows and Embed, group after group of a row."""
        k, c, ops, w = self.kernel, self.work.config, self._ops, self.work
        between = self.latency + 10 * w.rows + 4 * ASSUMPTIONS.call
        pairs = c.head_size // 2
        table = ops.convert + ops.fsqrt + loop(pairs, 2, self.latency + ops.store)
        angles = nest(w.rows, loop(pairs, ROPE_CYCLES, ops.read + ops.cos_sin + ops.store))
        take = 2 * loop(k.word_beats, 1, 1)
        values = loop(w.group_size // k.vector_lanes, 1, ops.convert + ops.fmul + ops.store)
        row = self.latency + nest(w.dim_groups, take + values)
        yield Phase("embed", between + table + angles + nest(w.rows, row))

    def start_samplers(self) -> Iterator[Phase]:
        yield Phase("sample", loop(self.work.rows, 1, self._ops.store))

    def finish(self) -> Iterator[Phase]:
        """FinishStep; the last write is on its way to memory when the step ends."""
        k, ops = self.kernel, self._ops
        write = loop(k.top_logits, 2, 2 + ops.store)
        row = ops.log + ops.fadd + self._choose_from_top() + write + 8
        yield Phase("sample", nest(self.work.rows, row) + self.latency)

    def _choose_from_top(self) -> float:
        """ChooseFromTop, as if it kept every token: what sampling takes at most."""
        k, ops = self.kernel, self._ops
        # A sum of weights is back before it is added to again.
        interval = max(k.sample_cycles // 4, ops.fadd + ops.read + ops.store)
        weigh = loop(k.top_logits, interval, ops.read + ops.fdiv + ops.fadd + ops.exp + ops.fadd)
        choose = loop(k.top_logits, interval, ops.read + ops.gumbel + ops.fadd + 2 * ops.fcmp)
        return weigh + ops.fmul + choose + ASSUMPTIONS.call

    def stages(self) -> Iterator[tuple[Stage, int, Iterator[Phase]]]:
        """Every stage of a step, with its layer, in order."""
        c, w = self.work.config, self.work
        hidden = -(-w.hidden_groups * w.group_size // self.kernel.tile_rows) * self.kernel.tile_rows
        yield Stage.EMBED, 0, self.embed()
        for layer in range(c.n_layers):
            yield Stage.ATTENTION_NORM, layer, self.norm()
            yield Stage.QKV, layer, self.matrix(c.dim + 2 * c.kv_dim, c.dim, "keep")
            yield Stage.ROPE, layer, self.rope()
            yield Stage.ATTENTION, layer, self.attention()
            yield Stage.ATTENTION_OUT, layer, self.quantize()
            yield Stage.ATTENTION_OUT, layer, self.matrix(c.dim, c.dim, "residual")
            yield Stage.FFN_NORM, layer, self.norm()
            yield Stage.GATE_UP, layer, self.matrix(2 * hidden, c.dim, "swiglu")
            yield Stage.DOWN, layer, self.move_hidden()
            yield Stage.DOWN, layer, self.matrix(c.dim, c.hidden_dim, "residual")
        if w.sample:
            yield Stage.FINAL_NORM, c.n_layers, self.norm()
            yield Stage.CLASSIFIER, c.n_layers, self.start_samplers()
            yield Stage.CLASSIFIER, c.n_layers, self.matrix(c.vocab_size, c.dim, "sample")
        yield Stage.SAMPLE, c.n_layers, self.finish()


# ---- predictions ----------------------------------------------------------------------


@dataclass(frozen=True)
class Prediction:
    """What the model says of one step.

    Attributes
    ----------
    board : Board
    kernel : KernelConfig
    work : Work
    cycles : dict
        By (stage, layer), as the kernel's own profile has them.
    parts : dict
        The same cycles by what they are spent on: "weights" and "kv" are the streams from
        memory; see SMALL for what should be little.
    free_cycles : float
        Of the same step if SMALL took no time: what is hidden behind the streams costs nothing.
    host_seconds : float
        The host's share of a call, per step.
    read_bytes : int
        From memory, with the padding of tiles and heads.
    modelled : bool
        True: nothing here was measured.
    """

    board: Board
    kernel: KernelConfig
    work: Work
    cycles: dict[tuple[Stage, int], float]
    parts: dict[str, float]
    free_cycles: float
    host_seconds: float
    read_bytes: int
    modelled: bool = True

    @property
    def total_cycles(self) -> float:
        return sum(self.cycles.values())

    @property
    def seconds(self) -> float:
        """Of a step, the host's share included."""
        return self.total_cycles / (self.kernel.clock_mhz * 1e6) + self.host_seconds

    @property
    def tokens_per_second(self) -> float:
        return self.work.rows / self.seconds

    @property
    def bytes(self) -> int:
        """What a step has to read: every weight once, every row's keys and values."""
        return self.work.total_bytes

    @property
    def roof_seconds(self) -> float:
        """Time for `bytes` at the memory's peak times its efficiency."""
        return self.board.memory.read_seconds(self.bytes)

    @property
    def roof_tokens_per_second(self) -> float:
        return self.work.rows / self.roof_seconds

    @property
    def share_of_roof(self) -> float:
        return self.roof_seconds / self.seconds

    @property
    def small_share(self) -> float:
        """What SMALL costs, as a share of the step's cycles."""
        return max(0.0, 1 - self.free_cycles / self.total_cycles)

    @property
    def bound(self) -> str:
        """What the weight stream meets first: the board's "memory" or the kernel's "channels"."""
        k, memory = self.kernel, self.board.memory
        channels = k.channels * k.beat_bytes * k.clock_mhz * 1e6
        limit = memory.peak_bytes_per_s * memory.efficiency
        return "channels" if channels < limit else "memory"


def predict(
    config: ModelConfig,
    board: Board,
    *,
    rows: int = 1,
    position: int = 255,
    weight_bits: int = 8,
    group_size: int | None = None,
    kv_bits: int = 32,
    sample: bool = True,
    kernel: KernelConfig | None = None,
) -> Prediction:
    """Cycles of one step of decoding, stage by stage.

    Parameters
    ----------
    config : ModelConfig
    board : Board
    rows : int
        Sequences that decode side by side.
    position : int
        Of every row.
    weight_bits : {8, 4}
    group_size : {32, 64}, optional
        Default: 64.
    kv_bits : {32, 8}
    sample : bool
        False for a step that only prefills.
    kernel : KernelConfig, optional
        Default: the board's header.

    Raises
    ------
    LimitError
        If `rows` or `position` is more than the kernel or the model has.
    """
    kernel = kernel or kernel_of(board)
    for name, value, most in (
        ("rows", rows, kernel.max_rows),
        ("position", position + 1, config.seq_len),
    ):
        if not 1 <= value <= most:
            given = value - (name == "position")
            raise LimitError(
                f"{name} {given}: {board.title}'s kernel and this model take at most "
                f"{most - (name == 'position')}"
            )
    group_size = group_size or MAX_GROUP
    work = Work(config, group_size, weight_bits, kv_bits, rows, position, sample)
    latency = board.memory.latency_ns * 1e-9 * kernel.clock_mhz * 1e6
    compute = Compute(kernel, work, latency)
    cycles, parts, read = _simulate(compute, board.memory)
    free = sum(_simulate(compute, board.memory, free=SMALL)[0].values())
    step = sum(cycles.values()) / (kernel.clock_mhz * 1e6)
    steps = max(1, min(kernel.max_steps, int(ASSUMPTIONS.call_ms * 1e-3 / step)))
    a = ASSUMPTIONS
    host_us = a.wait_for_status_us_arm if board.cortex_a else a.wait_for_status_us_server
    return Prediction(board, kernel, work, cycles, parts, free, host_us * 1e-6 / steps, read)


def _simulate(
    compute: Compute, memory: Memory, free: tuple[str, ...] = ()
) -> tuple[dict[tuple[Stage, int], float], dict[str, float], int]:
    """Time by stage and by part, and bytes read; parts in `free` wait for streams only."""
    kernel, work = compute.kernel, compute.work
    stages = [(stage, layer, list(phases)) for stage, layer, phases in compute.stages()]
    every = [phase for _, _, phases in stages for phase in phases]
    weights, kv = sum(p.weights for p in every), sum(p.kv for p in every)
    rounds = -(-work.config.n_kv_heads // kernel.kv_ports)
    active = work.config.n_kv_heads / rounds
    streams = Streams(memory, kernel, active, weights, kv)
    if kernel.shared_masters:
        streams = StreamsInTurn(memory, kernel, active, weights, kv, stretches=_stretches(every))
    cycles: dict[tuple[Stage, int], float] = {}
    parts: dict[str, float] = {}
    for stage, layer, phases in stages:
        for phase in phases:
            least = phase.engines if phase.part in free else phase.cycles
            if stage is Stage.EMBED:
                taken, needed = least, 0.0  # the loaders are at it themselves
            else:
                taken, needed = streams.run(least, phase.weights, phase.kv)
            stream = min(taken, max(needed, phase.engines))
            name = "weights" if phase.weights else "kv"
            parts[name] = parts.get(name, 0.0) + stream
            parts[phase.part] = parts.get(phase.part, 0.0) + taken - stream
            cycles[stage, layer] = cycles.get((stage, layer), 0.0) + taken
    sizes = channel_bytes(work.config, work.group_size, kernel.target, work.weight_bits)
    read = sum(sizes) + round(kv * kernel.kv_beat_bytes * active)
    return cycles, parts, read


def _stretches(phases: Sequence[Phase]) -> list[tuple[int, float]]:
    """See `StreamsInTurn`."""
    found: list[tuple[int, float]] = []
    for phase in phases:
        for stream, beats in enumerate((phase.weights, phase.kv)):
            if beats and found and found[-1][0] == stream:
                found[-1] = stream, found[-1][1] + beats
            elif beats:
                found.append((stream, beats))
    return found


# ---- what a board can hold ------------------------------------------------------------


def buffers(
    config: ModelConfig,
    board: Board,
    *,
    weight_bits: int = 8,
    group_size: int | None = None,
    kv_bits: int = 32,
    slots: int = 1,
) -> tuple[list[int], int]:
    """Bytes of every weight channel's buffer, and of each KV port's; see `fits`."""
    limits = KernelLimits.from_header(board_headers()[board.header])
    group_size = group_size or MAX_GROUP
    sizes = channel_bytes(config, group_size, Target.of(limits), weight_bits)
    return sizes, limits.kv_port_bytes(config, kv_bits, slots)


def fits(
    config: ModelConfig,
    board: Board,
    *,
    weight_bits: int = 8,
    group_size: int | None = None,
    kv_bits: int = 32,
    slots: int = 1,
) -> tuple[bool, str]:
    """Whether a model's shape and buffers fit a board, and why not.

    Parameters
    ----------
    config : ModelConfig
    board : Board
    weight_bits, group_size, kv_bits : int
        See `predict`.
    slots : int
        Sequences whose keys and values are kept, each of the model's seq_len.

    Returns
    -------
    fits : bool
    reason : str
        Empty where it fits.
    """
    try:
        check_limits(config, KernelLimits.from_header(board_headers()[board.header]))
    except LimitError as error:
        return False, str(error)
    sizes, port = buffers(
        config,
        board,
        weight_bits=weight_bits,
        group_size=group_size,
        kv_bits=kv_bits,
        slots=slots,
    )
    ports, memory = kernel_of(board).kv_ports, board.memory
    total = sum(sizes) + ports * port
    if total > memory.pool_bytes:
        return False, (
            f"weights and KV cache take {total / MIB:.0f} MiB of contiguous memory, "
            f"{board.title} has {memory.pool_bytes / MIB:.0f} MiB"
        )
    # Buffers are dealt out to the banks in turn, weights first. A master reaches one bank.
    banks = [0] * memory.banks
    first = 0 if kernel_of(board).shared_masters else len(sizes)
    for i, size in [*enumerate(sizes), *enumerate([port] * ports, first)]:
        banks[i % memory.banks] += size
    if max(banks) > memory.bank_bytes:
        return False, (
            f"one of {memory.banks} banks would hold {max(banks) / MIB:.0f} MiB of weights and "
            f"KV cache, and has {memory.bank_bytes / MIB:.0f} MiB"
        )
    return True, ""
