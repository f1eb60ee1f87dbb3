"""Lesson 04: the checks pass the solution and name each typical mistake."""

import numpy as np
import pytest
from support.lesson_notebooks import solution

from llama_pynq import labs
from llama_pynq.kernel.stages import QuantizedMatrix, quantize_groups
from llama_pynq.kernel.stages import matvec as kernel_matvec

f32 = np.float32
SOLVED = solution("04_int8_by_hand", np=np)


@pytest.fixture(scope="module")
def activations():
    return np.random.default_rng(1).normal(size=(3, 128)).astype(f32)


@pytest.fixture(scope="module")
def classifier():
    rng = np.random.default_rng(2)
    q = rng.integers(-127, 128, (50, 128)).astype(np.int8)
    return QuantizedMatrix(q, rng.uniform(0.01, 0.1, (50, 2)).astype(f32))


def _check(name, *answers, state="wrong", hint=""):
    result = labs.check(name, *answers)
    assert (result.state, hint in result.hint) == (state, True), repr(result)
    return result


# ---- 04.1


def test_error_prediction_within_a_factor_of_four_passes():
    _check("04.1", SOLVED["error_percent"], 0.65, state="passed")
    _check("04.1", ..., 0.65, state="to do")


@pytest.mark.parametrize(
    "percent, hint", [(0, "always costs"), (0.0065, "not a fraction"), (12, "1/127")]
)
def test_error_prediction_that_is_far_off_is_told_why(percent, hint):
    _check("04.1", percent, 0.65, hint=hint)


# ---- 04.2


def _quantize(rounding=np.rint, steps=127, magnitude=np.abs, zeros=2.0**-100, shares=None):
    def quantize_group(x):
        largest = magnitude(x).max()
        if largest < zeros:
            return np.zeros(len(x), np.int8), f32(0)
        up = x * (f32(127) / largest) if shares is None else shares(x, largest)
        return rounding(up).astype(np.int8), largest / f32(steps)

    return quantize_group


def test_quantize_of_the_solution_passes(activations):
    _check("04.2", SOLVED["quantize_group"], activations, state="passed")
    _check("04.2", _quantize(), activations, state="passed")


@pytest.mark.parametrize(
    "answer, passed, hint",
    [
        (lambda x: x, 0, "return q, scale"),
        (lambda x: (np.rint(x), f32(1)), 0, ".astype(np.int8)"),
        (lambda x: (x.astype(np.int8), np.float64(1)), 0, "np.float32(127)"),
        (_quantize(steps=128), 1, "max / 128"),
        (_quantize(magnitude=lambda x: x), 1, "absolute values"),
        (_quantize(rounding=np.trunc), 2, "truncated towards zero"),
        (_quantize(rounding=np.floor), 2, "rounded down"),
        (_quantize(rounding=lambda x: np.floor(x + f32(0.5))), 3, "rounding half up"),
        (
            _quantize(rounding=lambda x: np.trunc(x + np.copysign(f32(0.5), x))),
            3,
            "away from zero",
        ),
        (_quantize(zeros=-1), 4, "divide 127 by 0"),
        (_quantize(zeros=1e-45), 4, "2**-100"),
        (
            _quantize(shares=lambda x, largest: x / (largest / f32(127))),
            5,
            "x / scale rounds differently",
        ),
    ],
)
def test_quantize_names_the_mistake(activations, answer, passed, hint):
    assert _check("04.2", answer, activations, hint=hint).passed == passed


# ---- 04.3


def test_dot_of_the_solution_passes():
    _check("04.3", SOLVED["dot_groups"], state="passed")


def _sum(w, x):
    return f32(np.dot(w.astype(np.int32), x.astype(np.int32)))


@pytest.mark.parametrize(
    "answer, passed, hint",
    [
        (lambda w, a, x, b: np.dot(w, x) * a * b, 0, "int8 overflows"),
        (lambda w, a, x, b: np.sum(w * x) * a * b, 0, "before you multiply"),
        (
            lambda w, a, x, b: np.dot(w.astype(np.int16), x.astype(np.int16)) * a * b,
            0,
            "use np.int32",
        ),
        (lambda w, a, x, b: np.sum(w.astype(np.int32) * x) * a * b, 1, "float64 in NumPy"),
        (lambda w, a, x, b: _sum(w, x) * (a * b), 2, "with each other first"),
        (lambda w, a, x, b: _sum(w, x) * b * a, 2, "x_scale comes first"),
        (
            lambda w, a, x, b: f32(float(_sum(w, x)) * float(a) * float(b)),
            2,
            "scaled in float64",
        ),
        (lambda w, a, x, b: _sum(w, x) * a, 2, "scale of the activations is missing"),
    ],
)
def test_dot_names_the_mistake(answer, passed, hint):
    assert _check("04.3", answer, hint=hint).passed == passed


# ---- 04.4


def _matvec(order=lambda groups: groups, dtype=f32, scaled=True):
    def matvec(q, scale, x, x_scale):
        total = np.zeros(len(q), dtype)
        for g in order(range(len(x_scale))):
            part = slice(64 * g, 64 * (g + 1))
            dots = (q[:, part].astype(np.int32) @ x[part].astype(np.int32)).astype(f32)
            total = total + dots * scale[:, g] * (x_scale[g] if scaled else f32(1))
        return total.astype(f32)

    return matvec


def _logits(activations, classifier):
    return kernel_matvec(classifier, *quantize_groups(activations, 64))


def test_matvec_of_the_solution_passes(activations, classifier):
    given = activations, classifier, _logits(activations, classifier)
    _check("04.4", SOLVED["matvec"], SOLVED["quantize_group"], *given, state="passed")
    _check("04.4", SOLVED["matvec"], lambda x: ..., *given, state="to do")


@pytest.mark.parametrize(
    "answer, passed, hint",
    [
        (lambda q, *_: np.zeros(len(q)), 0, "np.zeros(rows, np.float32)"),
        (_matvec(order=reversed), 1, "from the last to the first"),
        (_matvec(dtype=np.float64), 1, "float64 and rounded at the end"),
        (_matvec(scaled=False), 1, "scales of the activations"),
    ],
)
def test_matvec_names_the_mistake(activations, classifier, answer, passed, hint):
    given = activations, classifier, _logits(activations, classifier)
    result = _check("04.4", answer, SOLVED["quantize_group"], *given, hint=hint)
    assert result.passed == passed


def test_matvec_is_compared_with_the_device(activations, classifier):
    logits = _logits(activations, classifier)
    logits[1, 3] = np.nextafter(logits[1, 3], f32(np.inf))
    given = activations, classifier, logits
    result = _check("04.4", SOLVED["matvec"], SOLVED["quantize_group"], *given, hint="1 of 150")
    assert result.passed == 2
    _check("04.4", _matvec(), _quantize(steps=128), *given, hint="Did exercise 04.2 pass?")


# ---- 04.5


@pytest.mark.parametrize(
    "answers, state, hint",
    [
        ((SOLVED["changed_percent_64"], SOLVED["changed_percent_32"]), "passed", ""),
        ((0, 120), "wrong", "percentages"),
        ((50, 50), "wrong", "b + a"),
        ((0, 0), "wrong", "Not 0%"),
        ((0, 100), "wrong", "too much"),
        ((0, 1), "wrong", "too little"),
        ((0, ...), "to do", ""),
    ],
)
def test_order_prediction(answers, state, hint):
    _check("04.5", *answers, 39.5, state=state, hint=hint)
