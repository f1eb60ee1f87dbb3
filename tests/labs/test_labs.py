"""The notebooks' checks: stages passed, and hints for the learner."""

import sys
import types

import numpy as np
import pytest

from llama_pynq import labs
from llama_pynq.errors import RequestError
from llama_pynq.labs import exercise, expect


@pytest.fixture(autouse=True)
def _lesson(monkeypatch):
    monkeypatch.setitem(sys.modules, "llama_pynq.labs.lesson_99", types.ModuleType("lesson_99"))
    monkeypatch.setattr(labs, "_exercises", {})

    @exercise("99.1", "Double it", stages=("of one", "of any number"))
    def double(given):
        yield expect(given(1) == 2, f"of 1 it gives {given(1)}, not 2")
        yield expect(given(-3) == -6, "right for 1, but not for -3: is there an abs()?")


def test_check_passes_a_right_answer():
    result = labs.check("99.1", lambda x: 2 * x)
    assert (result.state, result.passed, result.hint) == ("passed", 2, "")


def test_check_stops_at_the_first_wrong_stage_and_gives_its_hint():
    result = labs.check("99.1", lambda x: 2 * abs(x))
    assert (result.state, result.passed) == ("wrong", 1)
    assert "abs()" in result.hint
    assert [line.split()[0] for line in repr(result).splitlines()[1:3]] == ["✔", "✘"]


@pytest.mark.parametrize("answer", [..., None, lambda x: None, lambda x: ...])
def test_check_of_an_exercise_as_it_came_is_to_do(answer):
    result = labs.check("99.1", answer)
    assert (result.state, result.passed) == ("to do", 0)
    assert "Replace the ..." in result.hint


def test_check_of_a_function_that_forgot_its_return_says_so():
    def double(x):
        x = 2 * x

    result = labs.check("99.1", double)
    assert (result.state, result.hint) == (
        "wrong",
        "Your function returned nothing: is the return missing?",
    )


def test_check_reports_what_the_answer_raises():
    def answer(x):
        raise KeyError("scale")

    assert "KeyError: 'scale'" in labs.check("99.1", answer).hint


def test_check_of_an_unknown_exercise_lists_those_there_are():
    with pytest.raises(RequestError, match=r"no exercise '99.7': choose one of 99.1"):
        labs.check("99.7", 1)
    with pytest.raises(RequestError, match="no lesson '98'"):
        labs.check("98.1", 1)


def test_result_is_shown_as_text_and_as_html_without_colour_alone():
    @exercise("99.2", "A <b>", stages=("it is 1",))
    def one(given):
        yield expect(given == 1, "1 < 2")

    bundle = labs.check("99.2", 2)._repr_mimebundle_()
    assert "A &lt;b&gt;" in bundle["text/html"] and "1 &lt; 2" in bundle["text/html"]
    assert "(wrong)" in bundle["text/html"]
    assert bundle["text/plain"].splitlines() == [
        "Exercise 99.2, A <b>: wrong",
        "  ✘ it is 1",
        "  1 < 2",
    ]
    assert bundle[labs.RESULT_TYPE]["state"] == "wrong"


def test_a_number_as_text_is_refused_in_words_and_one_in_an_array_is_taken():
    @exercise("99.3", "a number", stages=("it is 2.5",))
    def number(given):
        yield expect(given == 2.5, "no")

    assert (
        labs.check("99.3", "2.5").hint == "'2.5' is text. Give the number itself, without quotes."
    )
    assert labs.check("99.3", np.array(2.5)).state == "passed"
    assert labs.check("99.3", "constant").hint == "no"
