"""Lesson 08: the checks pass the solution on every board and name each typical mistake."""

import pytest
from support.lesson_notebooks import solution

from llama_pynq import labs
from llama_pynq.boards import boards
from llama_pynq.kernel.config import board_headers, kernel_of
from llama_pynq.kernel.limits import KernelLimits
from llama_pynq.labs.lesson_08 import WANTED, halved, kernel_from, with_constants

HOST = board_headers()["host"].read_text()


def _solved(board="kv260"):
    board = boards()[board]
    return solution("08_build_your_own_overlay", board=board, kernel=kernel_of(board))


def _check(name, *answers, state="wrong", hint="", passed=None):
    result = labs.check(name, *answers)
    assert (result.state, hint in result.hint) == (state, True), repr(result)
    assert passed is None or result.passed == passed, repr(result)


# ---- headers


def test_with_constants_changes_what_the_kernel_will_say_of_itself(tmp_path):
    path = tmp_path / "mine.h"
    path.write_text(with_constants(HOST, {"kTopLogits": 16}, "a name much too long for 16 bytes"))
    limits = KernelLimits.from_header(path)
    assert (limits.top_logits, limits.board) == (16, "a name much too ")
    assert limits.max_rows == KernelLimits.from_header(board_headers()["host"]).max_rows


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"kTopLogit": 16}, "no constant 'kTopLogit'. It has kClockMhz, kChannels"),
        ({"kMaxRows": 8.0}, "kMaxRows = 8.0: give a whole number"),
        ({"kMaxRows": 0}, "whole number above 0"),
    ],
)
def test_with_constants_refuses_what_is_no_change_of_the_header(changes, message):
    with pytest.raises(ValueError, match=message):
        with_constants(HOST, changes, "mine")


def test_kernel_from_a_board_s_own_header_is_its_kernel():
    for board in boards().values():
        assert kernel_from(board_headers()[board.header], board) == kernel_of(board)


# ---- 08.1


@pytest.mark.parametrize("name", boards())
def test_bytes_per_cycle_and_half_the_width_of_the_solution_pass_on_every_board(name):
    s = _solved(name)
    answers = s["ports_bytes_per_cycle"], s["memory_bytes_per_cycle"], s["limit"]
    _check("08.1", *answers, name, state="passed")
    _check("08.2", s["speed_share"], s["dsp_share"], name, state="passed")


@pytest.mark.parametrize(
    "answers, passed, hint",
    [
        ((16, 54.4, "memory"), 0, "one port"),
        ((512, 54.4, "memory"), 0, "bits"),
        ((19.2e9, 54.4, "memory"), 0, "Leave the clock out"),
        ((7, 54.4, "memory"), 0, "Not 7"),
        ((64, 64, "memory"), 1, "That is the peak"),
        ((64, 16.32e9, "memory"), 1, "bytes a second"),
        ((64, 54.4e6, "memory"), 1, "not in MHz"),
        ((64, 64 / 0.85, "memory"), 1, "do not divide"),
        ((64, 7, "memory"), 1, "Not 7"),
        ((64, 54.4, "ports"), 2, "the smaller of 64 and 54.4"),
    ],
)
def test_bytes_per_cycle_names_the_mistake(answers, passed, hint):
    _check("08.1", *answers, "kv260", hint=hint, passed=passed)
    _check("08.1", ..., ..., ..., "kv260", state="to do")


def test_the_width_of_the_memory_s_ports_is_not_the_kernel_s():
    _check("08.1", 32, 11, "memory", "pynq-z2", hint="the memory's ports")


# ---- 08.2


@pytest.mark.parametrize(
    "answers, passed, hint",
    [
        ((61, 94), 0, "give shares"),
        ((1.0, 0.94), 1, "It does get slower"),
        ((0.5, 0.94), 1, "the ports had slack"),
        ((0.8, 0.94), 1, "Take the smaller"),
        ((0.6, 0.5), 2, "Only the engines' multipliers"),
    ],
)
def test_half_the_width_names_the_mistake(answers, passed, hint):
    _check("08.2", *answers, "kv260", hint=hint, passed=passed)


def test_halved_halves_the_beat_only():
    board = boards()["kv260"]
    assert (halved(board).beat_bytes, halved(board).channels) == (8, kernel_of(board).channels)


# ---- 08.3

RIGHT = {"kChannels": 4, "kMaxRows": 8, "kTopLogits": 16}


def test_changes_of_the_solution_pass():
    assert set(WANTED.values()) == set(RIGHT.values())
    _check("08.3", _solved()["changes"], state="passed")
    _check("08.3", ..., state="to do")


@pytest.mark.parametrize(
    "changes, passed, hint",
    [
        (4, 0, "Give a dictionary"),
        ({"channels": 4}, 0, "no constant 'channels'"),
        ({**RIGHT, "kMaxRows": "8"}, 0, "kMaxRows = '8'"),
        ({**RIGHT, "kChannels": 3}, 1, "kChannels = 3 is odd"),
        ({**RIGHT, "kTileRows": 24}, 1, "kTileRows = 24"),
        ({"kChannels": 4, "kMaxRows": 8}, 2, "top_logits is 64, not 16: kTopLogits"),
        ({**RIGHT, "kMaxSteps": 32}, 2, "max_steps"),
    ],
)
def test_changes_name_the_mistake(changes, passed, hint):
    _check("08.3", changes, hint=hint, passed=passed)


# ---- 08.4

MEASURED = {"text": True, "logits": True, "channel 0": False}


def test_what_stays_the_same_of_the_solution_passes_with_and_without_a_build():
    s = _solved()
    answers = s["same_text"], s["same_logits"], s["same_channel_bytes"]
    _check("08.4", *answers, MEASURED, state="passed")
    _check("08.4", *answers, {}, state="passed")
    _check("08.4", True, ..., False, MEASURED, state="to do")


@pytest.mark.parametrize(
    "answers, measured, passed, hint",
    [
        (("yes", True, False), MEASURED, 0, "True or False"),
        ((False, True, False), MEASURED, 1, "The text stays"),
        ((True, False, False), MEASURED, 2, "The logits stay"),
        ((True, True, True), MEASURED, 3, "dealt out to the channels"),
        ((True, True, False), {**MEASURED, "channel 0": True}, 3, "leave kChannels"),
        ((True, True, False), {**MEASURED, "logits": False}, 2, "a fault of llama_pynq"),
    ],
)
def test_what_stays_the_same_names_the_mistake(answers, measured, passed, hint):
    _check("08.4", *answers, measured, hint=hint, passed=passed)
