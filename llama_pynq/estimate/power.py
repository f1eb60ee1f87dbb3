"""Power model of a board that generates text; every figure is marked as modelled.

Power is the sum of four terms: static, fabric (clocks and logic), memory reads and products. The
terms are few and rounded because little is published. They are checked against `PUBLISHED`;
`ERROR` is the largest deviation. Step times come from `predict.predict`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llama_pynq.boards import Board
from llama_pynq.energy import Energy
from llama_pynq.estimate.predict import Prediction, predict
from llama_pynq.estimate.resources import resources

ERROR = 0.35
"""Largest relative error against `PUBLISHED`; a test checks it."""


@dataclass(frozen=True)
class Terms:
    """Constants of the power model for one kind of board.

    Attributes
    ----------
    static_watts : float
        Power at the board's own sensor, with the bitstream loaded and nothing running.
    static_source : str
    fabric_watts_per_lut_mhz : float
        Clock trees, logic and routing per LUT in use and MHz, with the LUT's share of DSPs and
        memories.
    joules_per_byte : float
        Read from memory, controller and interface included.
    joules_per_mac : float
        Per int8 multiply-accumulate.
    source : str
        Source of the fabric, byte and MAC constants.
    """

    static_watts: float
    static_source: str
    fabric_watts_per_lut_mhz: float
    joules_per_byte: float
    joules_per_mac: float
    source: str


_DDR4, _HBM2 = 112e-12, 31e-12
_FABRIC = 5e-8
_MAC = 2.1e-12
_SOURCE = (
    "memory: 14 pJ/bit for GDDR5, used for DDR4 too, and 3.9 for HBM2 (O'Connor et al., MICRO "
    "2017); product: 0.3 pJ in 45 nm (Horowitz, ISSCC 2014), times 7 for an FPGA's hard "
    "multipliers (Kuon and Rose, TCAD 2007); the papers' figures are quoted from memory, not "
    "looked up; fabric: fitted to PUBLISHED"
)


def _terms(static: float, source: str, byte: float = _DDR4) -> Terms:
    return Terms(static, source, _FABRIC, byte, _MAC, _SOURCE)


_KV260 = _terms(
    3.5, "a K26 module reads 4.3 to 4.8 W while a DPU runs (Simfero, 2026), of which the DPU is "
    "about 1 W",
)  # fmt: skip
_CARD = _terms(
    14.0, "U200 and U250 read 16 to 25 W with 10 to 27% of the device in use (Hastlayer, "
    "Benchmarks.md): less at 0%",
)  # fmt: skip

TERMS: dict[str, Terms] = {
    "kv260": _KV260,
    "zcu104": _terms(
        14.05, "the board's 12 V input in a cell of PYNQ's own notebook (zcu104_pmbus.ipynb), "
        "which states no load",
    ),
    "aws-f1": _terms(3.0, "fitted to HLSTransform's 9 W, the chip alone"),
    "u200": _CARD,
    "u250": _CARD,
    "u50": _terms(
        17.4,
        "a card that was only queried: 12.213 V at 1.363 A, 3.3 V at 0.223 A (XRT, pull "
        "request 5184)",
        _HBM2,
    ),
    "u280": _terms(
        14.5,
        "as the U55C, which has the same part; its DDR4, which the kernel does not use, is "
        "not counted",
        _HBM2,
    ),
    "u55c": _terms(
        14.5,
        "two cards read 14.5 and 15.0 W in the examples of Paderborn's PC2 (Power and Energy "
        "Measurements of FPGAs), which state no load",
        _HBM2,
    ),
}  # fmt: skip
"""Terms by board. Boards without a published reading, such as a PYNQ-Z2, are not listed: they
have no modelled watts."""


def watts(
    terms: Terms, luts: float, clock_mhz: float, bytes_per_s: float, macs_per_s: float
) -> float:
    """Return the power in watts at the given rates of bytes read and multiply-accumulates.

    Parameters
    ----------
    terms : Terms
    luts : float
        LUTs in use.
    clock_mhz : float
    bytes_per_s, macs_per_s : float
        Bytes read from memory, and int8 multiply-accumulates.
    """
    return (
        terms.static_watts
        + terms.fabric_watts_per_lut_mhz * luts * clock_mhz
        + terms.joules_per_byte * bytes_per_s
        + terms.joules_per_mac * macs_per_s
    )


def watts_of(prediction: Prediction) -> float | None:
    """Return a board's power during the predicted step; None if `TERMS` lacks the board.

    Parameters
    ----------
    prediction : Prediction
    """
    terms = TERMS.get(prediction.board.name)
    return None if terms is None else _step_watts(terms, prediction)


def _step_watts(terms: Terms, prediction: Prediction) -> float:
    board, work = prediction.board, prediction.work
    luts = resources(board, prediction.kernel).lut
    macs = work.rows * work.weight_bytes * 8 / work.weight_bits  # one product per weight
    return watts(
        terms,
        luts,
        prediction.kernel.clock_mhz,
        prediction.read_bytes / prediction.seconds,
        macs / prediction.seconds,
    )


def joules_per_token(prediction: Prediction) -> float | None:
    """Return the energy per token of the predicted step; None if `TERMS` lacks the board.

    Parameters
    ----------
    prediction : Prediction
    """
    power = watts_of(prediction)
    return None if power is None else power / prediction.tokens_per_second


def idle_watts(board: Board) -> float | None:
    """Return a board's power while its kernel waits; None if `TERMS` lacks the board.

    Parameters
    ----------
    board : Board
    """
    return TERMS[board.name].static_watts if board.name in TERMS else None


# ---- checked against published measurements -------------------------------------------


@dataclass(frozen=True)
class Published:
    """A published accelerator: its measured watts, and the model's inputs for it."""

    name: str
    watts: float
    terms: Terms
    luts: float
    clock_mhz: float
    bytes_per_s: float
    source: str


PUBLISHED = (
    Published(
        "HLSTransform, VU9P", 9.0, TERMS["aws-f1"], 400e3, 250, 57.11 * 117e6,
        "arXiv 2405.00738: 9 W, 57.11 tok/s of stories110M; a third of the device, assumed",
    ),
    Published(
        "LlamaF, ZCU102", 1.48 / 0.291, _KV260, 164e3, 205, 1.48 * 1.1e9,
        "1.48 tok/s at 0.291 tok/s/W, 1.1 GB a token; LUT and clock assumed",
    ),
    Published(
        "TeLLMe, KV260", 7.0, _KV260, 98e3, 250, 9 * 0.2e9,
        "abstract: 7 W, 9 tok/s; 0.2 GB a token and 98,000 LUT assumed",
    ),
    Published(
        "TeLLMe v2, KV260", 5.0, _KV260, 98e3, 250, 25 * 0.15e9,
        "abstract: 5 W, 25 tok/s; 0.15 GB a token and 98,000 LUT assumed",
    ),
)  # fmt: skip


# ---- energy of texts ------------------------------------------------------------------

_POSITIONS = 5  # predicted per text; the cost of a step is nearly linear in its position


@dataclass(frozen=True)
class EnergyModel:
    """Modelled energy of texts on a board, for the model loaded on the emulated board.

    Parameters
    ----------
    driver : KernelDriver
        With weights loaded: the model's shape and formats are used.
    board : Board
        Listed in `TERMS`.
    """

    driver: Any
    board: Board
    _active: dict[tuple[Any, ...], float] = field(default_factory=dict, repr=False)

    @property
    def _terms(self) -> Terms:
        return TERMS[self.board.name]

    def _watts(self, prediction: Prediction) -> float:
        return _step_watts(self._terms, prediction)

    def idle_watts(self) -> float:
        """Power while the kernel waits."""
        return self._terms.static_watts

    def _predict(self, position: int, rows: int) -> Prediction:
        packed = self.driver.packed
        return predict(
            packed.config,
            self.board,
            rows=rows,
            position=position,
            weight_bits=packed.weight_bits,
            group_size=packed.group_size,
            kv_bits=self.driver.kv_bits,
        )

    def active_watts(self) -> float:
        """Power while a token is decoded, halfway through the context."""
        packed = self.driver.packed
        if packed is None:
            return self.idle_watts()
        # Cached: a recorder calls this many times a second, and a prediction takes about 35 ms.
        key = packed.config, packed.weight_bits, packed.group_size, self.driver.kv_bits
        if key not in self._active:
            self._active[key] = self._watts(self._predict(packed.config.seq_len // 2, 1))
        return self._active[key]

    def energy(self, texts: Sequence[tuple[int, int]]) -> Energy:
        """Return the energy of texts generated side by side.

        Parameters
        ----------
        texts : sequence of (int, int)
            Tokens of the prompt and of the answer, a pair for each sequence.
        """
        most = self.board_rows
        seconds = joules = 0.0
        peak = 0.0
        for first in range(0, len(texts), most):
            part = texts[first : first + most]
            # Prefill takes all of the kernel's rows a step; decode takes one step per token.
            prompt = sum(n for n, _ in part)
            steps = -(-prompt // most) + max(0, *(m - 1 for _, m in part))
            # The last token of a text is sampled but never fed back.
            last = max(0, *(n + m - 2 for n, m in part))
            places = np.linspace(0, last, _POSITIONS).astype(int)
            predictions = [self._predict(int(p), len(part)) for p in places]
            at = [p.seconds for p in predictions]
            power = [self._watts(p) for p in predictions]
            seconds += steps * float(np.mean(at))
            joules += steps * float(np.mean(np.array(at) * power))
            peak = max(peak, *power)
        return Energy(
            joules=joules,
            seconds=seconds,
            covered_seconds=seconds,
            mean_watts=joules / seconds,
            peak_watts=peak,
            tokens=sum(m for _, m in texts),
            source=f"llama_pynq's model of {self.board.title}, good to {ERROR:.0%}",
            measured=False,
            idle_watts=self.idle_watts(),
        )

    @property
    def board_rows(self) -> int:
        return int(self.driver.limits.max_rows)
