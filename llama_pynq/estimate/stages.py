"""Cycles of every compute stage, derived from the loops of the kernel's functions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from llama_pynq.estimate.operators import ASSUMPTIONS, Operators, dataflow, loop, nest
from llama_pynq.estimate.work import Work
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
from llama_pynq.kernel.config import KernelConfig
from llama_pynq.weights.tiles import has_half_group

SMALL = ("norm", "quantise", "rope", "softmax", "swiglu", "residual")
"""Parts of a step whose cost should be small beside the streams from memory."""

ROPE_CYCLES = 8
"""Interval between the angles of two pairs in MakeRopeRow: the operators are shared, since a row
is made only once a step."""


@dataclass(frozen=True)
class Segment:
    """A stretch of compute.

    Attributes
    ----------
    part : str
        Key of `Prediction.parts` for the cycles; a matrix or attention counts here only what
        exceeds its stream.
    cycles : float
        Cycles without memory stalls.
    weights, kv : float
        Beats consumed from each weight channel, and from the busiest KV port.
    engines : float
        The part of `cycles` that the engines need to take in the stream.
    """

    part: str
    cycles: float
    weights: float = 0.0
    kv: float = 0.0
    engines: float = 0.0


@dataclass(frozen=True)
class Compute:
    """The compute process: segments of every stage (``compute.h``, Layer() and Classify())."""

    kernel: KernelConfig
    work: Work
    latency: float
    """Latency of a memory read, in cycles."""

    @property
    def _ops(self) -> Operators:
        return Operators.of(self.kernel)

    # ---- vectors

    def norm(self) -> Iterator[Segment]:
        """NormalizeRows and QuantizeRows: load the norm's weights, then process each row."""
        k, c, ops = self.kernel, self.work.config, self._ops
        words = self.work.dim_groups * self.work.group_size * 4 // WORD_BYTES
        beats = words * k.word_beats
        yield Segment("norm", loop(words, k.word_beats, k.word_beats + ops.read), weights=beats)
        lanes = k.vector_lanes
        trips = -(-c.dim // lanes)
        squares = (
            loop(max(trips, NORM_SUMS // lanes), 1, ops.read + ops.fmul + ops.fadd + ops.store)
            + self._sum_in_place(NORM_SUMS, lanes)
            + 2 * ASSUMPTIONS.call
        )
        factor = ops.fadd + ops.fsqrt + ops.fdiv + ops.fcmp
        scale = loop(trips, 1, ops.read + 2 * ops.fmul + ops.store)
        yield Segment("norm", nest(self.work.rows, squares + factor + scale))
        yield from self.quantize()

    def quantize(self) -> Iterator[Segment]:
        """QuantizeRow of every row."""
        interval = MAX_GROUP // self.kernel.vector_lanes
        row = loop(self.work.dim_groups, interval, interval + self._ops.quantize)
        yield Segment("quantise", nest(self.work.rows, row + ASSUMPTIONS.call))

    def rope(self) -> Iterator[Segment]:
        """RotateHeads of every row."""
        k, c, ops = self.kernel, self.work.config, self._ops
        pairs = (c.n_heads + c.n_kv_heads) * c.head_size // 2
        depth = ops.read + ops.fmul + ops.fadd + ops.store
        row = loop(-(-pairs // (k.vector_lanes // 2)), 1, depth)
        yield Segment("rope", nest(self.work.rows, row + ASSUMPTIONS.call))

    def move_hidden(self) -> Iterator[Segment]:
        """MoveHidden of every row: scales, then values."""
        ops, w = self._ops, self.work
        scales = loop(w.hidden_groups, 1, ops.read + ops.store)
        values = loop(w.hidden_groups * w.group_size // MIN_GROUP, 1, ops.read + ops.store)
        yield Segment("swiglu", nest(w.rows, scales + values))

    # ---- matrices

    def group_beats(self, columns: int) -> list[int]:
        """Beats of every group of a tile: values, then scales; the last may be a half group."""
        k, w = self.kernel, self.work
        values = k.tile_rows * w.row_bytes // WORD_BYTES
        beats = [(values + k.scale_words) * k.word_beats] * -(-columns // w.group_size)
        if has_half_group(columns, w.group_size, w.weight_bits):
            beats[-1] -= values // 2 * k.word_beats
        return beats

    def engine(self, columns: int, waves: int) -> float:
        """RunEngine: a loop over all beats, which also scales the previous group."""
        k, ops = self.kernel, self._ops
        slots = k.tile_rows // k.scale_lanes
        # Two rows share a multiplier: four products are added in a chain, then split.
        packed = k.product_rows > 1
        tree = 3 + 1 + ops.add_tree(k.beat_bytes // 4) if packed else ops.add_tree(k.beat_bytes)
        product = ops.read + 1 + ops.imul + tree + 2 + ops.store
        adding = ops.read + 1 + ops.convert + 2 * ops.fmul + ops.fadd + ops.store
        least = -(-slots // k.word_beats) * k.word_beats
        wave = sum(max(beats, least) for beats in self.group_beats(columns))
        stream = loop(waves * wave, 1, max(product, adding))
        return stream + loop(slots, 1, adding) + 2 * ASSUMPTIONS.call

    def collect(self, epilogue: str, waves: int) -> float:
        """Collect: rows and tiles run back to back through one pipeline."""
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
        # A row's sum of exponentials is carried to its next block: a product and an addition.
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
        """Mean number of candidates of a block.

        Of n logits in random order, K (1 + ln(n / K)) are at some time among the K largest so
        far. The first blocks have more candidates, which a wave's slack absorbs.
        """
        vocab_size, most = self.work.config.vocab_size, self.kernel.top_logits
        ever = most * (1 + math.log(vocab_size / most)) if vocab_size > most else vocab_size
        return ever / max(1, vocab_size // BLOCK)

    def matrix(self, rows: int, columns: int, epilogue: str) -> Iterator[Segment]:
        """MatVec: engines fill a block of waves while the previous one is collected."""
        k = self.kernel
        waves = -(-rows // (k.channels * k.tile_rows))
        blocks = [
            min(k.waves_in_flight, waves - first) for first in range(0, waves, k.waves_in_flight)
        ]
        engines = [self.engine(columns, n) for n in blocks]
        collects = [self.collect(epilogue, n) for n in blocks]
        yield Segment(
            epilogue,
            dataflow(list(zip(engines, collects))) - collects[-1],
            weights=waves * sum(self.group_beats(columns)),
            engines=sum(engines) + ASSUMPTIONS.call * len(blocks),
        )
        yield Segment(epilogue, collects[-1])

    # ---- attention

    def attention(self) -> Iterator[Segment]:
        """RoundKv, Attend and WriteKv of a layer."""
        k, c, w = self.kernel, self.work.config, self.work
        if w.kv_bits == 8:
            yield from self._round_kv()
        per_kv_head = c.n_heads // c.n_kv_heads
        heads = min(per_kv_head, k.queries)
        chunks = -(-per_kv_head // k.queries)
        rounds = -(-c.n_kv_heads // k.kv_ports)
        for _ in range(rounds * w.rows * chunks):
            yield from self._team(heads)
        yield from self._write_kv()

    def _round_kv(self) -> Iterator[Segment]:
        k, c, ops, w = self.kernel, self.work.config, self._ops, self.work
        trips = -(-c.head_size // max(1, k.vector_lanes // 4))
        largest = loop(trips, 1, ops.read + ops.fcmp)
        rounding = ops.fmul + ops.fadd + 1 + ops.convert
        head = largest + ops.fdiv + loop(trips, 1, ops.read + rounding + ops.store)
        yield Segment("quantise", nest(w.rows * 2 * c.n_kv_heads, head + ASSUMPTIONS.call))

    def _team(self, heads: int) -> Iterator[Segment]:
        """TeamTask: distribute queries, run the engines in parallel, gather results."""
        k, c, ops, w = self.kernel, self.work.config, self._ops, self.work
        # Vectors move for every engine, idle ones included.
        lanes = k.vector_lanes if w.head_stride == c.head_size else 1
        vectors = loop(w.head_stride // lanes * k.kv_ports, 1, ops.read + ops.store)
        yield Segment("softmax", nest(heads, vectors) + w.rows + vectors + ASSUMPTIONS.call)

        start = nest(heads, loop(w.head_stride // k.attention_lanes, 1, ops.store))
        yield Segment("softmax", start)
        positions = w.position + 1
        beats, pieces = positions * w.record_beats(k), positions * self._pieces()
        yield Segment("softmax", self._blocks(positions, heads), kv=beats, engines=pieces)

        finish = nest(heads, loop(c.head_size, 1, ops.read + ops.fdiv + ops.store))
        yield Segment("softmax", finish + nest(heads, vectors) + ASSUMPTIONS.call)

    def _blocks(self, positions: int, heads: int) -> float:
        """AttendBlocks: a DATAFLOW loop over blocks; its processes overlap on different blocks."""
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
        """ScoreQueries, one query: final sums of the dot products, scores, their maximum."""
        k, ops = self.kernel, self._ops
        interval = max(k.score_cycles, REDUCE_LANES // k.attention_lanes)
        dot = ops.read + ops.tree(REDUCE_LANES) + ops.fmul
        scores = loop(BLOCK, interval, interval + dot + ops.fdiv + ops.fcmp + ops.store)
        return scores + (int(math.log2(BLOCK)) + 1) * ops.fcmp

    def _weigh(self) -> float:
        """WeighQueries, one query: exponentials, and the running sum rescaled."""
        k, ops = self.kernel, self._ops
        depth = ops.read + ops.fadd + ops.exp + ops.fmul + ops.store
        weights = loop(BLOCK, k.score_cycles, depth)
        total = self._sum_in_place(BLOCK, min(4, k.attention_lanes))
        shrink = ops.fadd + ops.exp
        return max(weights + total, shrink) + ops.fmul + ops.fadd

    def _sum_in_place(self, leaves: int, lanes: int) -> float:
        """SumInPlace: one loop per level of the tree."""
        depth = self._ops.read + self._ops.fadd + self._ops.store
        halves = (leaves >> level + 1 for level in range(int(math.log2(leaves))))
        return sum(loop(-(-half // lanes), 2, depth) for half in halves)

    def _fetch_block(self, positions: int, last: bool) -> float:
        """FetchBlock: pieces of a few values; the last block is zeroed beyond its positions."""
        k, ops, w = self.kernel, self._ops, self.work
        pieces = positions * self._pieces()
        cycles = loop(pieces, 1, 1 + ops.convert + ops.store) + w.rows
        if last:
            vector = loop(w.head_stride // REDUCE_LANES, REDUCE_LANES // k.attention_lanes, 1)
            cycles += nest(BLOCK - positions, vector) + vector
        return cycles

    def _pieces(self) -> int:
        """Pieces of a position: one per float32 beat, four per int8 beat."""
        beats = self.work.record_beats(self.kernel)
        return beats if self.work.kv_bits == 32 else 4 * beats

    def _write_kv(self) -> Iterator[Segment]:
        ops, w = self._ops, self.work
        # WriteInt8 reads the bytes of a beat one by one, two a cycle.
        interval = 1 if w.kv_bits == 32 else self.kernel.kv_beat_bytes // 2
        beats = w.record_beats(self.kernel) * w.config.n_kv_heads
        records = loop(beats, interval, interval + ops.read + ops.store)
        yield Segment("kv write", nest(w.rows, records))

    # ---- first and last

    def embed(self) -> Iterator[Segment]:
        """Gap between steps, PrepareRows, and Embed, group by group of a row."""
        k, c, ops, w = self.kernel, self.work.config, self._ops, self.work
        between = self.latency + 10 * w.rows + 4 * ASSUMPTIONS.call
        pairs = c.head_size // 2
        table = ops.convert + ops.fsqrt + loop(pairs, 2, self.latency + ops.store)
        angles = nest(w.rows, loop(pairs, ROPE_CYCLES, ops.read + ops.cos_sin + ops.store))
        take = 2 * loop(k.word_beats, 1, 1)
        values = loop(w.group_size // k.vector_lanes, 1, ops.convert + ops.fmul + ops.store)
        row = self.latency + nest(w.dim_groups, take + values)
        yield Segment("embed", between + table + angles + nest(w.rows, row))

    def start_samplers(self) -> Iterator[Segment]:
        yield Segment("sample", loop(self.work.rows, 1, self._ops.store))

    def finish(self) -> Iterator[Segment]:
        """FinishStep, and the latency of its last write to memory."""
        k, ops = self.kernel, self._ops
        write = loop(k.top_logits, 2, 2 + ops.store)
        row = ops.log + ops.fadd + self._choose_from_top() + write + 8
        yield Segment("sample", nest(self.work.rows, row) + self.latency)

    def _choose_from_top(self) -> float:
        """ChooseFromTop with every top logit kept: the worst case of sampling."""
        k, ops = self.kernel, self._ops
        # The sum of weights is loop-carried: each addition waits for the previous one.
        interval = max(k.sample_cycles // 4, ops.fadd + ops.read + ops.store)
        weigh = loop(k.top_logits, interval, ops.read + ops.fdiv + ops.fadd + ops.exp + ops.fadd)
        choose = loop(k.top_logits, interval, ops.read + ops.gumbel + ops.fadd + 2 * ops.fcmp)
        return weigh + ops.fmul + choose + ASSUMPTIONS.call

    def stages(self) -> Iterator[tuple[Stage, int, Iterator[Segment]]]:
        """Yield every stage of a step in order, with its layer and segments."""
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
