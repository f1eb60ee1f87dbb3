"""Latencies of operators, and cycles of the loops that are made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from llama_pynq.kernel.abi import MAX_GROUP
from llama_pynq.kernel.config import KernelConfig


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
