"""Cycle model: predicts how long a step takes on a board, from the kernel's structure.

Two processes run concurrently. Loaders fetch weights, keys and values from memory into FIFOs
(`streams`). Compute runs stage after stage (`stages`): a stage is a sequence of loops, each trips
times initiation interval plus pipeline depth, and a depth is a chain of operators (`operators`).
Compute stalls while a FIFO is empty. A board's constants come from its header in
``hls_src/boards/``, so a change there changes the prediction.

Every figure is modelled: nothing was measured on a board with this kernel.
``tests/estimate/test_predict.py`` checks the same building blocks against the published figures
of other accelerators.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llama_pynq.boards import Board, Memory
from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.errors import LimitError
from llama_pynq.estimate.operators import ASSUMPTIONS
from llama_pynq.estimate.stages import SMALL, Compute, Segment
from llama_pynq.estimate.streams import Streams, StreamsInTurn
from llama_pynq.estimate.work import Work
from llama_pynq.kernel.abi import MAX_GROUP, Stage
from llama_pynq.kernel.config import KernelConfig, kernel_of
from llama_pynq.weights.tiles import channel_bytes


@dataclass(frozen=True)
class Prediction:
    """Prediction of one step.

    Attributes
    ----------
    board : Board
    kernel : KernelConfig
    work : Work
    cycles : dict
        By (stage, layer), like the kernel's own profile.
    parts : dict
        The same cycles by what they are spent on: "weights" and "kv" are the streams from
        memory; `SMALL` lists the parts that should be small.
    free_cycles : float
        Cycles of the same step if the `SMALL` parts took no time; what the streams hide costs
        nothing.
    host_seconds : float
        Host overhead of a call, per step.
    read_bytes : int
        Read from memory, padding of tiles and heads included.
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
        """Cycles of the step, without host overhead."""
        return sum(self.cycles.values())

    @property
    def seconds(self) -> float:
        """Time of a step, host overhead included."""
        return self.total_cycles / (self.kernel.clock_mhz * 1e6) + self.host_seconds

    @property
    def tokens_per_second(self) -> float:
        """Tokens of all rows over `seconds`."""
        return self.work.rows / self.seconds

    @property
    def bytes(self) -> int:
        """Bytes that a step must read: every weight once, every row's keys and values."""
        return self.work.total_bytes

    @property
    def roof_seconds(self) -> float:
        """Time for `bytes` at the memory's peak times its efficiency."""
        return self.board.memory.read_seconds(self.bytes)

    @property
    def roof_tokens_per_second(self) -> float:
        """Tokens of all rows over `roof_seconds`."""
        return self.work.rows / self.roof_seconds

    @property
    def share_of_roof(self) -> float:
        """`roof_seconds` over `seconds`."""
        return self.roof_seconds / self.seconds

    @property
    def small_share(self) -> float:
        """Share of the step's cycles that the `SMALL` parts cost."""
        return max(0.0, 1 - self.free_cycles / self.total_cycles)

    @property
    def bound(self) -> str:
        """Bottleneck of the weight stream: the board's "memory" or the kernel's "channels"."""
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
    """Predict the cycles of one decode step, stage by stage.

    Parameters
    ----------
    config : ModelConfig
    board : Board
    rows : int
        Sequences decoded side by side.
    position : int
        Position of every row.
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
        If `rows` or `position` is outside the range of the kernel or the model.
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
    """Return cycles by stage and by part, and bytes read; parts in `free` cost streaming only."""
    kernel, work = compute.kernel, compute.work
    stages = [(stage, layer, list(segments)) for stage, layer, segments in compute.stages()]
    every = [segment for _, _, segments in stages for segment in segments]
    weights, kv = sum(p.weights for p in every), sum(p.kv for p in every)
    rounds = -(-work.config.n_kv_heads // kernel.kv_ports)
    active = work.config.n_kv_heads / rounds
    streams = Streams(memory, kernel, active, weights, kv)
    if kernel.shared_masters:
        streams = StreamsInTurn(memory, kernel, active, weights, kv, stretches=_stretches(every))
    cycles: dict[tuple[Stage, int], float] = {}
    parts: dict[str, float] = {}
    for stage, layer, segments in stages:
        for segment in segments:
            least = segment.engines if segment.part in free else segment.cycles
            if stage is Stage.EMBED:
                taken, needed = least, 0.0  # Embed reads memory itself; no prefetch meanwhile
            else:
                taken, needed = streams.run(least, segment.weights, segment.kv)
            stream = min(taken, max(needed, segment.engines))
            name = "weights" if segment.weights else "kv"
            parts[name] = parts.get(name, 0.0) + stream
            parts[segment.part] = parts.get(segment.part, 0.0) + taken - stream
            cycles[stage, layer] = cycles.get((stage, layer), 0.0) + taken
    sizes = channel_bytes(work.config, work.group_size, kernel.target, work.weight_bits)
    read = sum(sizes) + round(kv * kernel.kv_beat_bytes * active)
    return cycles, parts, read


def _stretches(segments: Sequence[Segment]) -> list[tuple[int, float]]:
    """Return the stretches of `StreamsInTurn`: consecutive beats of one stream, merged."""
    found: list[tuple[int, float]] = []
    for segment in segments:
        for stream, beats in enumerate((segment.weights, segment.kv)):
            if beats and found and found[-1][0] == stream:
                found[-1] = stream, found[-1][1] + beats
            elif beats:
                found.append((stream, beats))
    return found
