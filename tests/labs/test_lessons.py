"""Lessons 01, 02, 03 and 05: the checks pass the solution and name each typical mistake."""

import numpy as np
import pytest
from support.lesson_notebooks import SOLUTIONS, solution

from llama_pynq import labs
from llama_pynq.checkpoint.config import ModelConfig

CONFIG = ModelConfig(288, 768, 6, 6, 6, 32000, 256, True)
TEXTS = {(0, 1): "a", (0, 2): "a", (1, 1): "b", (1, 2): "c"}


def solved(lesson):
    (path,) = SOLUTIONS.glob(f"{lesson}_*.py")
    return solution(path.stem, np=np, config=CONFIG)


def wrong(name, *answers):
    result = labs.check(name, *answers)
    assert result.state == "wrong"
    return result.passed, result.hint


ANSWERS = {
    "01.1": ("same_at_0", "same_at_1"),
    "01.2": ("probabilities",),
    "01.3": ("tokens_kept",),
    "02.1": ("weight_bytes",),
    "02.2": ("attention_growth",),
    "02.3": ("speedup_without",),
    "03.1": ("joules_per_token", "mwh"),
    "03.2": ("energy",),
    "03.3": ("fpga_mwh_at_8", "cpu_watts_are"),
    "05.1": ("position_bytes",),
    "05.2": ("attention_weights",),
    "05.3": ("merge",),
}
MORE = {"01.1": (TEXTS,), "02.1": (CONFIG,)}


@pytest.mark.parametrize("name", ANSWERS)
def test_solution_passes_every_stage(name):
    space = solved(name[:2])
    result = labs.check(name, *(space[a] for a in ANSWERS[name]), *MORE.get(name, ()))
    assert (result.state, result.hint) == ("passed", "")
    assert result.passed == len(result.stages)


@pytest.mark.parametrize("lesson", ["01", "02", "03", "05"])
def test_every_exercise_of_the_lesson_is_in_this_list(lesson):
    assert [e.name for e in labs.exercises(lesson)] == [n for n in ANSWERS if n[:2] == lesson]


def softmax(x, t=1.0):
    terms = np.exp(x / t)
    return terms / terms.sum()


@pytest.mark.parametrize(
    "name, answers, passed, hint",
    [
        ("01.1", (False, False, TEXTS), 0, "what would a seed decide"),
        ("01.1", (True, True, TEXTS), 1, "Compare the two texts"),
        ("01.1", ("yes", True, TEXTS), 0, "write True or False"),
        ("01.2", (lambda x, t: np.exp(x / t),), 0, "divide each exp by the sum"),
        ("01.2", (lambda x, t: x / x.sum(),), 1, "not exp(logit)"),
        ("01.2", (lambda x, t: softmax(x, 1 / t),), 2, "You multiply by the temperature"),
        ("01.2", (lambda x, t: softmax(x),), 2, "changes nothing yet"),
        ("01.2", (softmax,), 3, "Subtract the largest logit"),
        ("01.3", (lambda p, t: len(p),), 0, "one is enough; you keep 3"),
        ("01.3", (lambda p, t: int(np.sum(np.cumsum(p) < t)) + 1,), 1, "most probable"),
        (
            "01.3",
            (lambda p, t: int(np.sum(np.cumsum(np.sort(p)[::-1]) <= t)) + 1,),
            2,
            "Keep the token that reaches top_p",
        ),
        (
            "01.3",
            (lambda p, t: int(np.sum(np.cumsum(np.sort(p)[::-1]) < t + 1e-9 * (t == 1))) + 1,),
            3,
            "never keep more tokens than there are",
        ),
        ("02.1", (8 * 15e7, CONFIG), 0, "far too many"),
        ("02.1", (solved("02")["weights"], CONFIG), 1, "4 bytes more"),
        ("02.1", (solved("02")["weights"] * 68 / 64 - 32000 * 306, CONFIG), 2, "The classifier"),
        ("02.1", (solved("02")["weights"] * 68 / 64 + 32000 * 306, CONFIG), 2, "The embedding"),
        ("02.1", (solved("02")["weights"] * 68 / 64 - 6 * 768 * 306, CONFIG), 2, "gate, up"),
        (
            "02.1",
            (solved("02")["weights"] * 68 / 64 - 6 * 288 * 306, CONFIG),
            2,
            "attention output",
        ),
        ("02.1", (1.2 * 68 / 64 * solved("02")["weights"], CONFIG), 2, "Go through the list"),
        ("02.2", (255 / 31,), 0, "which are p + 1"),
        ("02.2", (2,), 0, "in proportion"),
        ("02.3", (lambda s: 1 - s,), 1, "twice as fast, not 0.5"),
        ("02.3", (lambda s: 1 + 2 * s,), 2, "its inverse"),
        ("02.3", (lambda s: 0.0,), 0, "nothing changes"),
        ("03.1", (lambda w, r: r / w, lambda j: j), 0, "the other way round"),
        ("03.1", (lambda w, r: r * w, lambda j: j), 0, "do not multiply"),
        ("03.1", (lambda w, r: w / r, lambda j: j / 3600), 1, "3.6 J are 1 mWh"),
        ("03.2", (lambda t, w: np.mean(w) * len(t) * 0.1,), 0, "n samples have n - 1"),
        ("03.2", (lambda t, w: np.sum((t[1:] - t[:-1]) * w[1:]),), 1, "mean of an interval's"),
        (
            "03.2",
            (lambda t, w: (t[1] - t[0]) * np.sum((w[1:] + w[:-1]) / 2),),
            2,
            "its own length",
        ),
        ("03.2", (lambda t, w: np.trapz(w, t),), 3, "nan spreads"),
        ("03.2", (lambda t, w: np.trapz(np.nan_to_num(w), t),), 3, "as 0 W"),
        (
            "03.2",
            (lambda t, w: np.trapz(w[~np.isnan(w)], t[~np.isnan(w)]),),
            3,
            "a line across the gap",
        ),
        ("03.3", (9 / 8, "constant"), 0, "That is joules"),
        ("03.3", (9 / 8 / 3.6, "measured"), 1, "nothing was read"),
        ("05.1", (lambda n, h, d, i: n * h * d * 4,), 0, "the values take as much"),
        ("05.1", (lambda n, h, d, i: n * h * d * 2,), 0, "a float32 takes 4 bytes"),
        ("05.1", (lambda n, h, d, i: n * h * d * (2 if i else 8),), 1, "The scales are missing"),
        ("05.1", (lambda n, h, d, i: n * h * (2 * d + 4 if i else 8 * d),), 1, "a scale each"),
        ("05.2", (lambda q, k: k @ q,), 0, "that sum to 1"),
        ("05.2", (lambda q, k: np.full(9, 1 / 9),), 1, "not the softmax"),
        ("05.2", (lambda q, k: softmax(k @ q),), 2, "square root of head_size"),
        ("05.2", (lambda q, k: softmax(k @ q / 16),), 2, "by head_size itself"),
        ("05.2", (lambda q, k: softmax(k @ q / 4),), 3, "subtract the largest"),
        ("05.3", (lambda a, b, c, d: (a, d),), 0, "3, not 1"),
        ("05.3", (lambda a, b, c, d: (max(a, c), b + d),), 1, "scale the first by exp(1 - 3)"),
        (
            "05.3",
            (
                lambda a, b, c, d: (
                    max(a, c),
                    (b * np.exp(a) + d * np.exp(c)) / np.exp(max(a, c)),
                ),
            ),
            2,
            "take exp only of numbers that are at most 0",
        ),
    ],
)
def test_mistake_is_named(name, answers, passed, hint):
    got_passed, got_hint = wrong(name, *answers)
    assert hint in got_hint
    assert got_passed == passed
