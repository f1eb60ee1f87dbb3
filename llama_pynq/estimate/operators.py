"""Operator latencies, and the cycles of loops built from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from llama_pynq.kernel.abi import MAX_GROUP
from llama_pynq.kernel.config import KernelConfig


@dataclass(frozen=True)
class Assumptions:
    """Assumptions of the cycle model, in cycles of the kernel's clock unless the name has a unit.

    Attributes
    ----------
    loop : int
        Entering and leaving a loop: one each (UG1399, pragma loop_flatten).
    call : int
        Start and end of a function or of a dataflow process. From experience.
    fmul : int
        Float multiplier: 4 in HLS projects whose adder takes 8 (stored HLS projects).
    fdiv_fast, fdiv_slow, fsqrt_fast, fsqrt_slow : int
        Float divider and square root, from `fast_mhz` up and below it; 28 is PG060's maximum,
        16 what HLS projects at 100 MHz show.
    fcmp_fast, fcmp_slow : int
        Float comparison and selection, likewise (stored HLS projects: 1 to 2).
    convert : int
        Conversion between integer and float: 4 to 6 (PG060).
    imul, wide_imul : int
        Integer multipliers: of 8 bits, and of 32 or 64 bits.
    read, store : int
        Block RAM: a read with output register, and a write.
    fast_mhz : int
        Kernel clock from which the ``_fast`` latencies apply.
    wait_for_status_us_server, wait_for_status_us_arm : float
        Host overhead of a kernel call: Python, registers, polling. The server's figure is the
        project's goal, the ARM core's is ten times the goal: assumptions, neither measured.
    call_ms : float
        Target for the longest call: the driver chooses the number of steps accordingly.
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


def loop(trips: float, interval: float, depth: float, entry: float = ASSUMPTIONS.loop) -> float:
    """Return the cycles of a pipelined loop: trip starts, depth of the last trip, entry, exit."""
    return (trips - 1) * interval + depth + entry if trips > 0 else entry


def dataflow(stages: Sequence[Sequence[float]]) -> float:
    """Return the cycles of a DATAFLOW loop, given the cycles of every process in every trip.

    A process starts a trip once it has finished the previous trip and its predecessor has
    finished this one. Each trip of a process adds `Assumptions.call`. Back-pressure is not
    modelled: a buffer between two processes holds as many trips as there are processes between
    them (``attention.h``: ``depth``).
    """
    free = [0.0] * len(stages[0])
    for trip in stages:
        ready = 0.0
        for i, cycles in enumerate(trip):
            ready = free[i] = max(ready, free[i]) + cycles + ASSUMPTIONS.call
    return free[-1] + ASSUMPTIONS.loop


def nest(outer: int, inner: float) -> float:
    """Return the cycles of a loop around `inner`, not flattened.

    HLS flattens two nested loops only if the bound of the inner one is constant.

    References
    ----------
    UG1399, pragma loop_flatten; UG1448, message 200-960
    """
    return outer * inner + ASSUMPTIONS.loop


@dataclass(frozen=True)
class Operators:
    """Latencies of operators, and of the operator chains in the kernel's functions."""

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
        """TreeSum of `leaves` floats, two inputs per adder."""
        return math.ceil(math.log2(leaves)) * self.fadd

    def add_tree(self, leaves: int) -> int:
        """Adder tree of `leaves` integers, three inputs per adder."""
        return math.ceil(math.log(leaves, 3))

    @property
    def exp(self) -> int:
        """``float_math.h``, Exp(): clamp, rounding, range reduction, polynomial."""
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
        """``float_math.h``, CosSin(), and the 64-bit product of the phase."""
        return self.wide_imul + self.convert + 2 * self.fmul + 3 * (self.fmul + self.fadd)

    @property
    def gumbel(self) -> int:
        """``float_math.h``, GumbelNoise(): a hash with three products, two logarithms."""
        return 3 * self.wide_imul + self.convert + self.fmul + 2 * self.log

    @property
    def quantize(self) -> int:
        """``quantize.h``, QuantizeInto(): a group's maximum, division, rounding, sum."""
        largest = self.add_tree(MAX_GROUP)
        rounding = self.fadd + 1
        total = self.add_tree(MAX_GROUP)
        return self.read + largest + self.fdiv + self.fmul + rounding + total + self.store
