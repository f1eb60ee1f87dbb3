"""Time of a decode step, stage by stage: measured on the device, or modelled for a board.

The kernel records a time stamp at the beginning of every stage (`RequestFlag.PROFILE`);
``estimate/predict.py`` predicts the same stages. Both are returned as `StepTimes`, whose `kind`
tells them apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from llama_pynq.boards import Board, boards, find_board
from llama_pynq.engine.llama import Llama, check_model
from llama_pynq.engine.slots import Session
from llama_pynq.errors import RequestError
from llama_pynq.estimate.predict import predict
from llama_pynq.estimate.work import Work
from llama_pynq.kernel.abi import RequestFlag, RowFlag, Stage, make_rows
from llama_pynq.llama_overlay import LlamaOverlay
from llama_pynq.overlay_store.devices import board_of_device
from llama_pynq.utils.validate import whole_number

StageKey = tuple[Stage, int]
_WARM_UP = 50  # steps


@dataclass(frozen=True)
class StepTimes:
    """Times of one decode step, stage by stage.

    Attributes
    ----------
    position : int
        Position of the token, which attends to position + 1 positions.
    cycles : dict
        Cycles of `clock_mhz` by (stage, layer), in order.
    bytes : dict
        Bytes of weights, keys and values that the stage must read, by (stage, layer).
    clock_mhz : float
        The kernel's clock; on the emulated device, that of its time stamps.
    source : str
        What the times come from.
    measured : bool
        False: modelled.
    roof_seconds : float or None
        Time to read the bytes at the memory's peak times its efficiency; None if the memory is
        unknown.
    model : str
        `Llama.summary`; empty if unknown.
    """

    position: int
    cycles: dict[StageKey, float]
    bytes: dict[StageKey, int]
    clock_mhz: float
    source: str
    measured: bool
    roof_seconds: float | None = None
    model: str = ""

    @property
    def kind(self) -> str:
        """Either "measured" or "modelled"."""
        return "measured" if self.measured else "modelled"

    @property
    def total_us(self) -> float:
        """Time of the kernel's step, without the host overhead of a call."""
        return sum(self.cycles.values()) / self.clock_mhz

    @property
    def share_of_roof(self) -> float | None:
        """`roof_seconds` over the step's time."""
        return None if self.roof_seconds is None else self.roof_seconds * 1e6 / self.total_us

    def us(self, stage: Stage, layer: int | None = None) -> float:
        """Microseconds of a stage, in one layer or in all of them.

        Parameters
        ----------
        stage : Stage
        layer : int, optional
            Default: all layers.
        """
        return self._sum(self.cycles, stage, layer) / self.clock_mhz

    def stage_bytes(self, stage: Stage, layer: int | None = None) -> int:
        """Bytes that a stage must read, in one layer or in all of them.

        Parameters
        ----------
        stage : Stage
        layer : int, optional
            Default: all layers.
        """
        return int(self._sum(self.bytes, stage, layer))

    def _sum(self, of: dict[StageKey, float] | dict[StageKey, int], stage: Stage,
             layer: int | None) -> float:  # fmt: skip
        return sum(v for (s, at), v in of.items() if s is stage and layer in (None, at))


def board_of(overlay: LlamaOverlay) -> Board | None:
    """Return the board that an overlay runs on or emulates; None for the plain emulated device.

    Parameters
    ----------
    overlay : LlamaOverlay
    """
    # One config header serves several boards, so the board that the device names comes first.
    return boards().get(board_of_device(overlay.device) or overlay.llama.limits.board)


def _work(llama: Llama, position: int) -> Work:
    packed = llama.packed
    return Work(
        packed.config, packed.group_size, packed.weight_bits, llama.driver.kv_bits, 1, position,
        True,
    )  # fmt: skip


# ---- measured -------------------------------------------------------------------------


def measure_steps(
    overlay: LlamaOverlay, positions: Iterable[int], repeats: int = 7
) -> list[StepTimes]:
    """Decode a token at the given positions, and read the kernel's own time stamps.

    Parameters
    ----------
    overlay : LlamaOverlay
        With a model loaded.
    positions : iterable of int
        From 0 to the model's context less one.
    repeats : int
        Runs per position; the fastest counts, since interference only slows a run.

    Returns
    -------
    list of StepTimes
        In ascending order of position.

    Raises
    ------
    RequestError
        If a position is outside the context, or `repeats` is not positive.
    """
    if not isinstance(overlay, LlamaOverlay):
        raise RequestError(f"{type(overlay).__name__} given: give the overlay, not its model")
    llama = overlay.llama.model
    wanted = sorted({whole_number("position", p) for p in positions})
    seq_len = llama.config.seq_len
    outside = [p for p in wanted if not 0 <= p < seq_len]
    if outside:
        raise RequestError(f"position {outside[0]} is outside the context, 0 to {seq_len - 1}")
    if whole_number("repeats", repeats) < 1:
        raise RequestError(f"repeats is {repeats}: it must be at least 1")
    emulated = not overlay.is_board
    where = "this computer's CPU, emulating" if emulated else f"{overlay.device.name}"
    board = None if emulated else board_of(overlay)
    steps, filled = list[StepTimes](), 0
    bos = llama.tokenizer.bos_id
    with llama.session() as session:
        for position in wanted:
            _fill(session, bos, filled, position)
            filled = position
            if not steps:  # warm up caches, clocks and threads of an idle host
                for _ in range(_WARM_UP):
                    _profile(session, bos, position)
            runs = [_profile(session, bos, position) for _ in range(repeats)]
            cycles = min(runs, key=lambda run: sum(run.values()))
            work = _work(llama, position)
            steps.append(
                StepTimes(
                    position,
                    cycles,
                    work.stage_bytes(),
                    overlay.clock_mhz,
                    f"the kernel's time stamps on {where}, fastest of {repeats}",
                    True,
                    None if board is None else board.memory.read_seconds(work.total_bytes),
                    llama.summary,
                )
            )
    return steps


def _fill(session: Session, bos: int, begin: int, end: int) -> None:
    """Fill the KV cache for positions [begin, end); the tokens do not affect the time."""
    first = begin
    while first < end:
        with session.device() as driver:
            rows = make_rows(min(driver.limits.max_rows, end - first))
            rows["token"], rows["slot"] = bos, session.slot
            rows["position"] = np.arange(first, first + len(rows))
            driver.run(rows)
        first += len(rows)


def _profile(session: Session, bos: int, position: int) -> dict[StageKey, float]:
    rows = make_rows(1)
    rows["token"], rows["slot"] = bos, session.slot
    rows["position"], rows["flags"] = position, RowFlag.SAMPLE
    with session.device() as driver:
        (events,) = driver.run(rows, flags=RequestFlag.PROFILE).profile
    cycles: dict[StageKey, float] = {}
    for event in events:
        key = Stage(int(event["stage"])), int(event["layer"])
        ticks = int(event["end"]) - int(event["begin"]) & 0xFFFFFFFF
        cycles[key] = cycles.get(key, 0.0) + ticks
    return cycles


# ---- modelled -------------------------------------------------------------------------


def model_steps(llama: Llama, board: Board | str, positions: Sequence[int]) -> list[StepTimes]:
    """Predict the same times for a board with the cycle model (``estimate/predict.py``).

    The result is in ascending order of position.

    Parameters
    ----------
    llama : Llama
    board : Board or str
        One of `boards.boards`, or its name, as `boards.board_key` takes it.
    positions : sequence of int

    Raises
    ------
    LimitError
        If a position is outside the model's context.
    BoardNotFound
        If there is no such board.
    RequestError
        If no model was given.
    """
    check_model(llama)
    if isinstance(board, str):
        board = find_board(board)
    steps = []
    for position in sorted(set(positions)):
        packed = llama.packed
        p = predict(
            packed.config,
            board,
            position=position,
            weight_bits=packed.weight_bits,
            group_size=packed.group_size,
            kv_bits=llama.driver.kv_bits,
        )
        steps.append(
            StepTimes(
                position,
                p.cycles,
                p.work.stage_bytes(),
                p.kernel.clock_mhz,
                f"llama_pynq's cycle model of a {board.title}",
                False,
                p.roof_seconds,
                llama.summary,
            )
        )
    return steps
