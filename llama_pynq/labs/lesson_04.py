"""Lesson 04, int8 by hand: quantise a group, multiply two, reproduce the device's logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from llama_pynq.kernel.stages import QuantizedMatrix, matvec, quantize_groups
from llama_pynq.labs import exercise, expect

f32 = np.float32
Quantize = Callable[[np.ndarray], tuple[np.ndarray, np.float32]]

_WITHIN = 4
"""Factor by which a predicted error may be off."""


def _same_bits(got: Any, right: Any) -> bool:
    return np.asarray(got, np.float32).tobytes() == np.asarray(right, np.float32).tobytes()


def _named(got: Any, right: Any, mistakes: Mapping[str, Any], otherwise: str) -> str:
    """Return an empty string if right, else the hint of the mistake that gives this value."""
    if np.array_equal(got, right):
        return ""
    for hint, wrong in mistakes.items():
        if np.array_equal(got, wrong) and not np.array_equal(wrong, right):
            return hint
    return otherwise


# ---- 04.1 -----------------------------------------------------------------------------


@exercise(
    "04.1", "Predict the error", ("a number above 0, in percent", "about as large as measured")
)
def _predict_error(predicted: float, measured: float) -> Iterator[str]:
    percent = float(predicted)
    yield expect(percent > 0, f"{percent:g} is not above 0. Rounding always costs something.")
    hint = ""
    if percent < measured / _WITHIN:
        hint = (
            f"{percent:g}% is too little. Is it in percent, and not a fraction? The integers "
            "go from -127 to 127: how far apart are two neighbours, and how far is a value from "
            "the nearest one on average?"
        )
    elif percent > measured * _WITHIN:
        hint = (
            f"{percent:g}% is too much. The largest value of a group becomes 127, so a step is "
            "1/127 of it. A value is at most half a step off, and most are off by less."
        )
    yield hint


# ---- 04.2 -----------------------------------------------------------------------------


def _pair(result: Any, size: int) -> str:
    """Return a hint about the types and shapes of ``(q, scale)``, empty if they are right."""
    if not (isinstance(result, tuple) and len(result) == 2):
        return "Return two things: return q, scale"
    q, scale = np.asarray(result[0]), np.asarray(result[1])
    if q.shape != (size,) or q.dtype != np.int8:
        return (
            f"q is {q.dtype} of shape {q.shape}, not int8 of shape ({size},): "
            "finish with .astype(np.int8)"
        )
    if scale.shape != () or scale.dtype != np.float32:
        return (
            f"scale is {scale.dtype} of shape {scale.shape}, not one float32. A float32 divided "
            "by a Python number can be a float64: write np.float32(127)"
        )
    return ""


def _values(seed: int) -> np.ndarray:
    """Return a group whose value of the largest magnitude is negative."""
    x: np.ndarray = np.random.default_rng(seed).normal(size=64).astype(np.float32)
    x[7] = -3.75
    return x


def _halves(x: np.ndarray) -> np.ndarray:
    return x * (f32(127) / np.abs(x).max())


def _dead_groups(quantize_group: Quantize) -> str:
    """Return a hint about groups of zeros or of tiny values, empty if both are right."""
    zeros: np.ndarray = np.zeros(64, np.float32)
    for x in (zeros, zeros + f32(1e-31)):
        q, scale = quantize_group(x.copy())
        if np.any(q) or scale != 0:
            break
    else:
        return ""
    try:
        with np.errstate(divide="raise", invalid="raise"):
            quantize_group(zeros.copy())
    except FloatingPointError:
        return (
            "A group of zeros makes your code divide 127 by 0. NumPy only warns and continues "
            "with inf. Handle a group whose largest magnitude is under 2**-100 before you divide."
        )
    return (
        f"A group of {x[0]:g} gives scale = {scale}, not 0: a group under 2**-100 counts as zeros, "
        "so that 127 / max stays finite in float32."
    )


@exercise(
    "04.2",
    "Quantise a group",
    (
        "returns an int8 array and a float32 scale",
        "the scale",
        "rounds to the nearest integer",
        "a tie goes to the even integer",
        "a group of zeros",
        "the device's activations",
    ),
)
def _quantize(quantize_group: Quantize, activations: np.ndarray) -> Iterator[str]:
    with np.errstate(all="ignore"):
        x = _values(4)
        result = quantize_group(x.copy())
        yield _pair(result, len(x))

        largest = np.abs(x).max()
        q, scale = result
        yield _named(
            scale,
            largest / f32(127),
            {
                "scale is max / 128, but int8 is used from -127 to 127 here, so that -x is as "
                "exact as x: divide by 127.": largest / f32(128),
                "The value of the largest magnitude in this group is negative: take the absolute "
                "values first.": x.max() / f32(127),
                "That is 127 / max, the factor that quantises. The scale converts back: "
                "max / 127.": f32(127) / largest,
            },
            f"scale is {scale}, not {largest / f32(127)}: the largest magnitude divided by 127.",
        )

        up = _halves(x)
        yield _named(
            q,
            np.rint(up),
            {
                "q is truncated towards zero, not rounded: .astype(np.int8) alone drops the "
                "fraction. Use np.rint before it.": np.trunc(up),
                "q is rounded down, to the integer below. Use np.rint.": np.floor(up),
            },
            f"q is wrong in {np.sum(q != np.rint(up))} of 64 places: multiply by 127 / max, "
            "round, convert.",
        )

        ties = np.zeros(64, np.float32)
        ties[:8] = 127, 0.5, 1.5, 2.5, 3.5, -0.5, -1.5, -2.5
        q, _ = quantize_group(ties.copy())
        rounded = np.rint(ties)
        yield _named(
            q,
            rounded,
            {
                "0.5 became 1 and 2.5 became 3: that is rounding half up. The kernel rounds "
                "half to even, as np.rint and np.round do.": np.floor(ties + f32(0.5)),
                "0.5 became 1 and -0.5 became -1: that is rounding half away from zero. The "
                "kernel rounds half to even, as np.rint and np.round do.": (
                    np.trunc(ties + np.copysign(f32(0.5), ties))
                ),
            },
            f"0.5, 1.5, 2.5, 3.5 became {q[1:5].tolist()}, not [0, 2, 2, 4]: half to even.",
        )

        yield _dead_groups(quantize_group)

        groups = activations.reshape(-1, 64)
        right_q, right_scale = quantize_groups(groups, 64)
        got = [quantize_group(group.copy()) for group in groups]
        off = sum(
            not (np.array_equal(q, a) and _same_bits(s, b[0]))
            for (q, s), a, b in zip(got, right_q, right_scale)
        )
        hint = expect(
            off == 0,
            f"{off} of {len(groups)} groups of activations differ from the kernel's. Does any "
            "step work in float64?",
        )
        if not hint:  # a value that x / scale rounds to another integer than x * (127 / max)
            near = _near_tie()
            got_one = quantize_group(near.copy())[0][1]
            hint = expect(
                got_one == quantize_groups(near[None], 64)[0][0, 1],
                f"All right except for one crafted value, which became {got_one}: multiply by "
                "127 / max, as the kernel does. x / scale rounds differently near a tie.",
            )
        yield hint


def _near_tie() -> np.ndarray:
    """Return a group whose second value rounds differently if divided by the scale."""
    rng = np.random.default_rng(0)
    while True:
        x: np.ndarray = np.zeros(64, np.float32)
        x[0] = rng.uniform(1, 2)
        x[1] = x[0] / f32(127) * f32(rng.integers(1, 120) + 0.5)
        divided = np.rint(x / (x[0] / f32(127)))
        if divided[1] != np.rint(_halves(x))[1]:
            return x


# ---- 04.3 -----------------------------------------------------------------------------


def _random_groups(n: int, seed: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    w, x = rng.integers(-127, 128, (2, n, 64)).astype(np.int8)
    w_scale, x_scale = rng.uniform(1e-3, 1e-1, (2, n)).astype(np.float32)
    return w, w_scale, x, x_scale


def _dots(w: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.sum(w.astype(np.int32) * x.astype(np.int32), axis=-1)


@exercise(
    "04.3",
    "Multiply two groups",
    ("the integers' dot product", "a float32", "scaled in the kernel's order"),
)
def _dot(dot_groups: Callable[..., np.float32]) -> Iterator[str]:
    one = f32(1)
    with np.errstate(all="ignore"):
        w, _, x, _ = _random_groups(1, 5)
        w[0], x[0] = np.abs(w[0]) // 2 + 64, np.abs(x[0]) // 2 + 64  # so that int16 overflows
        a, b = w[0], x[0]
        yield _named(
            dot_groups(a.copy(), one, b.copy(), one),
            _dots(a, b),
            {
                "int8 overflows: NumPy multiplies and adds int8 in int8, and every carry is "
                "lost. Convert both to np.int32 first.": np.dot(a, b),
                "The products overflow: int8 times int8 is int8 in NumPy, and only the sum is "
                "wider. Convert to np.int32 before you multiply.": np.sum(a * b),
                "int16 holds a product, but not the sum of 64 of them: use np.int32.": np.dot(
                    a.astype(np.int16), b.astype(np.int16)
                ),
            },
            f"With both scales 1 this dot product is {_dots(a, b)}.",
        )

        w, w_scale, x, x_scale = _random_groups(200, 6)
        got = [dot_groups(*group) for group in zip(w, w_scale, x, x_scale)]
        kinds = {np.asarray(value).dtype for value in got}
        yield expect(
            kinds == {np.dtype(np.float32)},
            f"The result is {', '.join(map(str, kinds))}, not float32: an int32 times a float32 "
            "is a float64 in NumPy. Convert the sum with np.float32(...) before you scale it.",
        )
        dot = _dots(w, x).astype(np.float32)
        exact = dot.astype(np.float64) * w_scale * x_scale
        off = sum(a != b for a, b in zip(got, (dot * w_scale) * x_scale))
        yield _named(
            np.array(got),
            (dot * w_scale) * x_scale,
            {
                "The two scales are multiplied with each other first. The kernel computes "
                "(dot * w_scale) * x_scale, and rounding in another place gives another number.": (
                    dot * (w_scale * x_scale)
                ),
                "x_scale comes first. The kernel computes (dot * w_scale) * x_scale.": (
                    (dot * x_scale) * w_scale
                ),
                "It is scaled in float64 and rounded once. The kernel's multipliers are float32: "
                "each product is rounded.": exact.astype(np.float32),
                "The scale of the activations is missing.": dot * w_scale,
            },
            f"{off} of 200 products differ from (dot * w_scale) * x_scale in float32.",
        )


# ---- 04.4 -----------------------------------------------------------------------------


def _in_order(matrix: QuantizedMatrix, x: np.ndarray, s: np.ndarray, wide: bool) -> np.ndarray:
    """Add the groups from the last to the first, or from the first in float64 if `wide`."""
    groups, size = len(s), matrix.group_size
    dots = _dots(matrix.q.reshape(-1, groups, size), x.reshape(groups, size)).astype(np.float32)
    scaled = (dots * matrix.scale) * s
    if wide:
        return scaled.sum(axis=1, dtype=np.float64).astype(np.float32)
    total = np.zeros(len(dots), np.float32)
    for g in reversed(range(groups)):
        total = total + scaled[:, g]
    return total


def _one_scale(matrix: QuantizedMatrix, x: np.ndarray) -> np.ndarray:
    dots = _dots(matrix.q.reshape(*matrix.scale.shape, -1), x.reshape(matrix.scale.shape[1], -1))
    scaled = dots.astype(np.float32) * matrix.scale
    total = np.zeros(len(dots), np.float32)
    for g in range(scaled.shape[1]):
        total = total + scaled[:, g]
    return total


@exercise(
    "04.4",
    "A matrix, and the device's logits",
    (
        "one float32 for each row of the matrix",
        "groups added in float32, the first one first",
        "the device's logits, bit for bit",
    ),
)
def _matvec(
    mine: Callable[..., np.ndarray],
    quantize_group: Quantize,
    activations: np.ndarray,
    matrix: QuantizedMatrix,
    logits: np.ndarray,
) -> Iterator[str]:
    with np.errstate(all="ignore"):
        rng = np.random.default_rng(7)
        q = rng.integers(-127, 128, (96, 8 * 64)).astype(np.int8)
        small = QuantizedMatrix(q, rng.uniform(1e-3, 1e-1, (96, 8)).astype(np.float32))
        x, s = quantize_groups(rng.normal(size=(1, 8 * 64)).astype(np.float32), 64)
        got = np.asarray(mine(small.q, small.scale, x[0], s[0]))
        yield expect(
            got.shape == (96,) and got.dtype == np.float32,
            f"A matrix of 96 rows gives {got.dtype} of shape {got.shape}, not float32 of shape "
            "(96,). Begin with np.zeros(rows, np.float32).",
        )
        right = matvec(small, x, s)[0]
        yield _named(
            got,
            right,
            {
                "The groups are added from the last to the first. Every sum rounds, so the order "
                "is part of the specification: it is ascending.": (
                    _in_order(small, x[0], s[0], wide=False)
                ),
                "The sum is kept in float64 and rounded at the end. The kernel's adders are "
                "float32: round after each group.": _in_order(small, x[0], s[0], wide=True),
                "The scales of the activations are missing: one per group.": _one_scale(
                    small, x[0]
                ),
            },
            f"{np.sum(got != right)} of 96 rows differ. Does group g use scale[:, g], "
            "x_scale[g] and the values q[:, 64 * g : 64 * (g + 1)]?",
        )
        answer = []
        for row in activations:
            pairs = [quantize_group(group.copy()) for group in row.reshape(-1, matrix.group_size)]
            x, s = np.concatenate([q for q, _ in pairs]), np.array([s for _, s in pairs])
            answer.append(mine(matrix.q, matrix.scale, x, s))
        off = int(np.sum(np.asarray(answer) != logits))
        hint = expect(
            off == 0,
            f"{off} of {logits.size} logits differ from the device's. Did exercise 04.2 pass?",
        )
        yield hint or expect(
            _same_bits(answer, logits), "A zero has the wrong sign: begin the sum with 0.0."
        )


# ---- 04.5 -----------------------------------------------------------------------------


@exercise(
    "04.5",
    "Predict what the order changes",
    ("two percentages", "groups of 64", "groups of 32"),
)
def _order(predicted_64: float, predicted_32: float, measured_32: float) -> Iterator[str]:
    a, b = float(predicted_64), float(predicted_32)
    yield expect(0 <= a <= 100 and 0 <= b <= 100, f"{a:g} and {b:g}: give percentages, 0 to 100.")
    yield expect(
        a == 0,
        f"Not {a:g}%. A row has 128 values, so there are two groups of 64, and one addition. "
        "What is b + a compared with a + b, in float32 too?",
    )
    hint = ""
    if b == 0:
        hint = (
            "Not 0%. Four groups take three additions, each of which rounds its sum. Another order "
            "has other partial sums, which round differently."
        )
    elif b > 90:
        hint = (
            f"{b:g}% is too much. Roundings are small, and the last sum often lands on the same "
            "float32 in either order."
        )
    elif not measured_32 / _WITHIN <= b:
        hint = f"{b:g}% is too little: three roundings of four similar terms differ often."
    yield hint
