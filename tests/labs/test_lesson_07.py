"""Lesson 07: the checks pass the solution and name each typical mistake."""

from __future__ import annotations

import pytest
from support.lesson_notebooks import solution

from llama_pynq import labs
from llama_pynq.checkpoint.shapes import STORIES
from llama_pynq.estimate.predict import predict

MEASURED = {1: 876.0, 2: 1088.0, 4: 1491.0, 8: 1814.0}


@pytest.fixture(scope="module")
def solved():
    return solution("07_batching")


def _hint(name, *answers):
    result = labs.check(name, *answers)
    assert result.state == "wrong", result
    return result.passed, result.hint


@pytest.mark.parametrize("measured", [MEASURED, {1: 60.0}, {1: 800.0, 2: 790.0}])
def test_the_solutions_pass_whatever_was_measured(solved, measured):
    results = [
        labs.check("07.1", solved["speed_up"]),
        labs.check("07.2", solved["guess"], list(measured)),
        labs.check("07.3", solved["largest_batch"], measured),
        labs.check("07.4", solved["joules"], solved["sequences"]),
    ]
    assert [r.state for r in results] == ["passed"] * 4, results
    assert [r.passed for r in results] == [len(e.stages) for e in labs.exercises("07")]


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_the_speed_up_is_the_roofs(solved, rows):
    from llama_pynq.boards import boards

    one, many = (
        predict(STORIES["stories15M"], boards()["u250"], rows=n, position=99) for n in (1, rows)
    )
    expected = many.roof_tokens_per_second / one.roof_tokens_per_second
    found = solved["speed_up"](one.work.weight_bytes, one.work.kv_bytes, rows)
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    "wrong, passed, hint",
    [
        (lambda w, k, n: w + n * k, 0, "For one sequence it must be 1"),
        (lambda w, k, n: n * (w + k) / (n * (w + k)), 1, "read once for each"),
        (lambda w, k, n: (w + n * k) / (n * (w + k)), 1, "not fewer"),
        (lambda w, k, n: n, 2, "Each sequence has its own"),
        (lambda w, k, n: (1 + n) / 2, 1, "they are 4 times as fast"),
        (lambda w, k, n: (w + k) / (w + n * k), 1, "One reading serves all rows"),
        (lambda w, k, n: n * (w + k) / (w + n * n * k), 2, "Not right with keys and values"),
    ],
)
def test_a_wrong_speed_up_is_told_why(wrong, passed, hint):
    found, text = _hint("07.1", wrong)
    assert (found, hint in text) == (passed, True), text


@pytest.mark.parametrize(
    "given, passed, hint",
    [
        (3, 0, "by the number of sequences"),
        ({2: 1.5, 4: ..., 8: 2}, 0, "A number for 4 sequences is missing"),
        ({2: 1.5, 4: 5, 8: 6}, 1, "4 sequences, more than 4 times"),
        ({2: 1.5, 4: 0, 8: 6}, 1, "more than 0"),
    ],
)
def test_an_impossible_guess_is_told_why(given, passed, hint):
    found, text = _hint("07.2", given, list(MEASURED))
    assert (found, hint in text) == (passed, True), text


def test_a_guess_far_from_what_will_be_measured_is_no_mistake():
    assert labs.check("07.2", {2: 0.5, 4: 4, 8: 8}, list(MEASURED)).state == "passed"


def _largest(wait, default=0):
    return lambda rates, ms: max(
        (n for n, rate in rates.items() if wait(n, rate) <= ms), default=default
    )


@pytest.mark.parametrize(
    "wrong, passed, hint",
    [
        (_largest(lambda n, rate: 1e3 / rate), 0, "Each of them waits 8 times as long"),
        (_largest(lambda n, rate: n / rate), 0, "Each of them waits 8 times as long"),
        (lambda rates, ms: max(r for n, r in rates.items() if 1e3 * n / r <= ms), 0, "its tokens"),
        (_largest(lambda n, rate: 1e6 * n / rate), 0, "Multiply seconds by 1000"),
        (lambda rates, ms: next(n for n, r in rates.items() if 1e3 * n / r <= ms), 0, "smallest"),
        (lambda rates, ms: _largest(lambda n, r: 1e3 * n / r)(rates, ms - 0.01), 1, "just allowed"),
        (_largest(lambda n, rate: 1e3 * n / rate, default=1), 2, "not even one"),
        (
            lambda rates, ms: ([0] + [n for n, r in rates.items() if 1e3 * n / r <= ms])[-1],
            3,
            "not for the last",
        ),
        (
            lambda rates, ms: _largest(lambda n, r: 1e3 * n / r)(
                {n: r for n, r in rates.items() if r in (100, 160, 250, 320)}, ms
            ),
            4,
            "With at most 2.68 ms it is 4, not 0",
        ),
    ],
)  # fmt: skip
def test_a_wrong_batch_is_told_why(wrong, passed, hint):
    found, text = _hint("07.3", wrong, MEASURED)
    assert (found, hint in text) == (passed, True), text


RIGHT = 9 / 57.11, 126.9 / 107


@pytest.mark.parametrize(
    "joules, sequences, passed, hint",
    [
        (0.16, 8, 0, "two numbers"),
        (RIGHT[::-1], 7.5, 0, "The FPGA comes first"),
        ((57.11 / 9, 107 / 126.9), 7.5, 0, "tokens per joule"),
        ((0.04, 0.33), 8.25, 0, "1 mWh is 3.6 J"),
        ((1, 2), 7.5, 0, "Watts over tokens/s"),
        (RIGHT, 1 / 7.5, 1, "Turn it round"),
        (RIGHT, 107 / 57.11, 1, "how many times as fast"),
        (RIGHT, 14.1, 1, "ratio of the watts"),
        (RIGHT, 100, 1, "1/n of the joules"),
    ],
)
def test_a_wrong_break_even_is_told_why(joules, sequences, passed, hint):
    found, text = _hint("07.4", joules, sequences)
    assert (found, hint in text) == (passed, True), text


@pytest.mark.parametrize("sequences", [7.526, 8, 8.25])
def test_the_paper_s_rounding_and_whole_sequences_are_accepted(sequences):
    assert labs.check("07.4", RIGHT, sequences).state == "passed"


def test_nothing_filled_in_is_to_do():
    def empty(*_):
        """Empty answer, as in the notebook."""
        ...

    cases = [
        ("07.1", empty),
        ("07.2", ..., [1, 2]),
        ("07.3", empty, MEASURED),
        ("07.4", ..., ...),
    ]
    assert [labs.check(*case).state for case in cases] == ["to do"] * 4
