"""Lesson 07, batching: one read of the weights for several sequences."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from numbers import Real
from typing import Any

from llama_pynq.labs import exercise, expect
from llama_pynq.report.comparison import PUBLISHED


def _near(given: Any, right: float, tolerance: float = 0.02) -> bool:
    return isinstance(given, Real) and math.isclose(given, right, rel_tol=tolerance)


# ---- 07.1 -----------------------------------------------------------------------------


@exercise(
    "07.1",
    "The speed-up that memory allows",
    stages=(
        "one sequence is the baseline",
        "no context: nothing but weights",
        "each sequence reads its own keys and values",
    ),
)
def speed_up(given: Callable[..., Any]) -> Iterator[str]:
    """Check the learner's speed_up(weight_bytes, kv_bytes, rows)."""
    weights, kv = 16e6, 2e6
    one = given(weights, kv, 1)
    yield expect(
        _near(one, 1),
        f"For one sequence it must be 1, not {one}: compare with the tokens/s of one sequence, "
        "which reads weight_bytes + kv_bytes for a token.",
    )
    four = given(weights, 0, 4)
    if _near(four, 1):
        yield (
            "Without context four sequences gain nothing here: are the weights read once for each "
            "of them? One reading serves all rows of a step."
        )
    elif _near(four, 1 / 4):
        yield (
            "A step of four sequences makes four tokens, and reads the weights once. That means "
            "more tokens per second, not fewer."
        )
    else:
        yield expect(
            _near(four, 4),
            f"With no keys and values to read, four sequences read as much as one: they are 4 "
            f"times as fast, not {four}.",
        )
    right = 4 * (weights + kv) / (weights + 4 * kv)
    four = given(weights, kv, 4)
    if _near(four, 4):
        yield (
            "Weights are shared; keys and values are not. Each sequence has its own, so a step "
            "reads weight_bytes + rows * kv_bytes."
        )
    elif _near(four, right / 4):
        yield (
            "That compares the bytes of a step. A step of four sequences makes four tokens: "
            "multiply by rows."
        )
    else:
        yield expect(
            _near(four, right),
            f"Not right with keys and values: rows tokens come out of a step that reads "
            f"weight_bytes + rows * kv_bytes. Yours is {four:.3g}.",
        )


# ---- 07.2 -----------------------------------------------------------------------------


@exercise(
    "07.2",
    "A guess for this device",
    stages=("a number for each batch", "no faster than sharing all of it"),
)
def guess(given: Any, sizes: list[int]) -> Iterator[str]:
    """Check the learner's guessed speed-ups by number of sequences; no measurement counts."""
    larger = [n for n in sizes if n > 1]
    example = ", ".join(f"{n}: {(n + 1) / 2:g}" for n in larger or [2])
    if not isinstance(given, Mapping):
        yield f"Give the speed-ups by the number of sequences, such as {{{example}}}."
        return
    missing = [str(n) for n in larger if not isinstance(given.get(n), Real)]
    yield expect(not missing, f"A number for {', '.join(missing)} sequences is missing.")
    most = [n for n in larger if given[n] > n]
    least = [n for n in larger if given[n] <= 0]
    if most:
        yield (
            f"{most[0]} sequences, more than {most[0]} times as fast? Even if all of them "
            "cost only as much as one, the speed-up would be the number of sequences."
        )
    else:
        yield expect(not least, "A speed-up is tokens/s over tokens/s: it is more than 0.")


# ---- 07.3 -----------------------------------------------------------------------------


@exercise(
    "07.3",
    "As many readers as can be served in time",
    stages=(
        "the wait of one reader, not of all",
        "milliseconds",
        "0 where nobody is served in time",
        "in whatever order the rates come",
        "with what was measured here",
    ),
)
def largest_batch(given: Callable[..., Any], measured: Mapping[int, float]) -> Iterator[str]:
    """Check the learner's largest_batch(rates, most_ms); rates are of all sequences together."""
    rates = {1: 100.0, 2: 160.0, 4: 250.0, 8: 320.0}  # waits: 10, 12.5, 16, 25 ms
    found = given(dict(rates), 20)
    if found == 8:
        yield (
            "8: at 320 tokens/s a token comes every 3 ms, but for only one of the 8 readers. Each "
            "of them waits 8 times as long, 25 ms. Or are seconds compared with milliseconds?"
        )
    elif found in rates.values():
        yield "Return the number of sequences, not its tokens/s."
    elif found == 1:
        yield (
            "1: but 4 readers wait 4 / 250 s = 16 ms each, which is less than 20. Are seconds and "
            "milliseconds mixed up, or is the smallest batch returned?"
        )
    elif found == 0:
        yield (
            "0: but one reader waits 1 / 100 s = 10 ms, which is less than 20. Multiply seconds "
            "by 1000."
        )
    else:
        yield expect(found == 4, f"{found}: 4 readers wait 16 ms each, 8 wait 25; so 4 is right.")
    found = given(dict(rates), 12.5)
    yield expect(
        found == 2,
        f"With at most 12.5 ms it is {found}, but 2 readers wait 12.5 ms, which is just allowed.",
    )
    found = given(dict(rates), 5)
    yield expect(
        found == 0, f"With at most 5 ms nobody is served in time, not even one: 0, not {found}."
    )
    backwards = dict(reversed(rates.items()))
    found = given(backwards, 20)
    yield expect(
        found == 4,
        f"With the same rates listed from 8 down to 1 it gives {found}: look for the largest, not "
        "for the last.",
    )
    waits = {n: 1e3 * n / rate for n, rate in measured.items()}
    limit = sorted(waits.values())[len(waits) // 2] * (1 + 1e-9)  # a margin for rounding
    right = max(n for n, wait in waits.items() if wait <= limit)
    found = given(dict(measured), limit)
    yield expect(found == right, f"With at most {limit:.2f} ms it is {right}, not {found}.")


# ---- 07.4 -----------------------------------------------------------------------------


@exercise(
    "07.4",
    "At batch 1 and beyond",
    stages=("joules per token, of both", "sequences until both need the same"),
)
def break_even(joules: Any, sequences: Any) -> Iterator[str]:
    """Check the learner's J/token of HLSTransform's two devices and the break-even batch."""
    figures = {cost.device.split(":")[0]: cost for cost in PUBLISHED}
    fpga, gpu = figures["FPGA"].joules_per_token, figures["GPU"].joules_per_token
    assert fpga is not None and gpu is not None
    if not (isinstance(joules, (tuple, list)) and len(joules) == 2):
        yield "joules must be two numbers: the FPGA's, then the GPU's."
        return
    first, second = joules
    if _near(first, gpu) and _near(second, fpga):
        yield "The FPGA comes first, then the GPU."
    elif _near(first, 1 / fpga) or _near(second, 1 / gpu):
        yield "Those are tokens per joule. Joules per token is watts over tokens/s."
    elif _near(first, fpga / 3.6, 0.04) or _near(second, gpu / 3.6, 0.04):
        yield "Those are mWh, the paper's unit: 1 mWh is 3.6 J. Watts over tokens/s is joules."
    else:
        yield expect(
            _near(first, fpga) and _near(second, gpu),
            f"Watts over tokens/s, for each device: yours are {first!r} and {second!r}.",
        )
    ratio = gpu / fpga
    if _near(sequences, 1 / ratio, 0.1):
        yield "Turn it round: the GPU's joules divided by the FPGA's."
    elif _near(sequences, 107 / 57.11, 0.05):
        yield "That is how many times as fast the GPU is. Compare joules per token."
    elif _near(sequences, 126.9 / 9, 0.05):
        yield "That is the ratio of the watts. The GPU also makes more tokens in a second."
    else:
        yield expect(
            isinstance(sequences, Real) and ratio * 0.97 <= float(sequences) <= 8.3,
            f"With n sequences at the same watts the GPU makes n times the tokens, so a token "
            f"takes 1/n of the joules. Which n makes that the FPGA's? Not {sequences!r}.",
        )
