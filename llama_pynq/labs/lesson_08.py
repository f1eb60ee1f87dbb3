"""Lesson 08, build your own overlay: a header's constants, and a kernel with other values."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from numbers import Integral
from pathlib import Path

import numpy as np

from llama_pynq.boards import Board, find_board
from llama_pynq.checkpoint.shapes import STORIES
from llama_pynq.estimate.predict import predict
from llama_pynq.estimate.resources import resources
from llama_pynq.kernel.config import KernelConfig, board_headers, constant_name, kernel_of
from llama_pynq.kernel.limits import KernelLimits
from llama_pynq.labs import exercise, expect

SHAPE = STORIES["stories110M"]
"""The model whose speed the lesson predicts."""

_NEAR = 0.03
"""Relative error that a computed figure may have."""
_SPEED_NEAR, _DSP_NEAR = 0.04, 0.1
"""Absolute errors that the predicted ratios may have."""


def with_constants(header: str, changes: Mapping[str, int], name: str) -> str:
    """Return a board's config header with other constants and another board name.

    Parameters
    ----------
    header : str
        Text of a file in ``hls_src/boards``.
    changes : dict
        Values by name, such as ``{"kTopLogits": 16}``.
    name : str
        The new ``kBoardName``; at most 16 characters.

    Raises
    ------
    ValueError
        If the header has no such constant, or a value is not a whole number above 0.
    """
    text, _ = re.subn(r'(kBoardName\[\] = )".*";', rf'\g<1>"{name[:16]}";', header)
    for constant, value in changes.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{constant} = {value!r}: give a whole number above 0")
        pattern = rf"(constexpr int {re.escape(constant)} = )\d+;"
        text, found = re.subn(pattern, rf"\g<1>{value};", text)
        if not found:
            known = ", ".join(re.findall(r"constexpr int (k\w+) = \d+;", header))
            raise ValueError(f"the header has no constant {constant!r}. It has {known}")
    return text


def _near(value: float, right: float) -> bool:
    return abs(value - right) <= _NEAR * abs(right)


def _first(value: float, mistakes: Mapping[str, float], otherwise: str) -> str:
    """Return the hint of the mistake that gives this value, else `otherwise`."""
    return next((hint for hint, wrong in mistakes.items() if _near(value, wrong)), otherwise)


def halved(board: Board) -> KernelConfig:
    """Return the board's kernel with half as many bytes per beat on each weight port."""
    kernel = kernel_of(board)
    return replace(kernel, beat_bytes=kernel.beat_bytes // 2)


def kernel_from(header: Path, board: Board) -> KernelConfig:
    """Return the kernel of a header, at a clock that the board's shell allows."""
    kernel = KernelConfig.from_header(header)
    return replace(kernel, clock_mhz=min(kernel.clock_mhz, board.max_clock_mhz))


# ---- 08.1 -----------------------------------------------------------------------------


@exercise(
    "08.1",
    "Bytes a cycle",
    ("what the weight ports can take", "what the memory gives", "which of the two is the limit"),
)
def _bytes_per_cycle(ports: float, memory: float, limit: str, board_name: str) -> Iterator[str]:
    board = find_board(board_name)
    kernel, chips = kernel_of(board), board.memory
    width = kernel.channels * kernel.beat_bytes
    clock = kernel.clock_mhz * 1e6
    hint = _first(
        ports,
        {
            "That is one port. The kernel reads kChannels of them in parallel.": kernel.beat_bytes,
            "That is bits. A beat is kBeatBytes bytes.": 8 * width,
            "That is bytes in a second. Leave the clock out: bytes in one cycle.": width * clock,
            "That is the width of the memory's ports. How many bytes do the kernel's weight "
            "ports take in a cycle, according to its header?": chips.ports * chips.port_bytes,
        },
        f"Not {ports:g}. Each of the kernel's weight ports takes one beat in a cycle.",
    )
    yield "" if _near(ports, width) else hint

    given = chips.peak_bytes_per_s * chips.efficiency / clock
    hint = _first(
        memory,
        {
            "That is the peak. Long reads reach only a share of it, the memory's efficiency.": (
                given / chips.efficiency
            ),
            "That is bytes a second. Divide by the cycles in a second.": given * clock,
            "Divide by the clock in Hz, not in MHz.": given * 1e6,
            "Multiply by the efficiency, do not divide by it.": given / chips.efficiency**2,
        },
        f"Not {memory:g}. Divide the bytes a second that reach the fabric by the cycles a second.",
    )
    yield "" if _near(memory, given) else hint

    right = "memory" if given < width else "ports"
    yield expect(
        str(limit).strip().lower() == right,
        f'Answer "memory" or "ports": the smaller of {width:g} and {given:.1f} bytes a cycle is '
        "what the engines get.",
    )


# ---- 08.2 -----------------------------------------------------------------------------


@exercise(
    "08.2",
    "Predict half the width",
    ("two shares of what it was", "the speed", "the DSP slices"),
)
def _half(speed: float, dsp: float, board_name: str) -> Iterator[str]:
    board = find_board(board_name)
    before, after = kernel_of(board), halved(board)
    old, new = (predict(SHAPE, board, kernel=k).tokens_per_second for k in (before, after))
    yield expect(
        0 < speed <= 2 and 0 < dsp <= 2,
        f"{speed:g} and {dsp:g}: give shares, such as 0.8 for a fifth less.",
    )
    hint = ""
    # Accept from the model's ratio to the ratio if all time were spent on weights.
    chips = board.memory
    given = chips.peak_bytes_per_s * chips.efficiency / (before.clock_mhz * 1e6)
    streams = [min(given, k.channels * k.beat_bytes) for k in (before, after)]
    answers = sorted((new / old, streams[1] / streams[0]))
    if not answers[0] - _SPEED_NEAR <= speed <= answers[1] + _SPEED_NEAR:
        if speed > 0.97:
            hint = (
                "It does get slower: half the width is less than the memory gives (exercise "
                "08.1), so now the ports are the limit."
            )
        elif _near(speed, 0.5):
            hint = (
                "Not half. Before, the memory was the limit and the ports had slack. Compare half "
                "their bytes a cycle with what the memory gives."
            )
        else:
            hint = (
                f"Not {speed:g}. Take the smaller of ports and memory, before and after, from "
                "exercise 08.1, and divide."
            )
    yield hint
    used = resources(board, after).dsp / resources(board, before).dsp
    hint = ""
    if abs(dsp - used) > _DSP_NEAR:
        hint = (
            f"Not {dsp:g}. Only the engines' multipliers follow the width. Attention, norms, "
            "exponentials and the sampler have DSP slices too, and keep them: the figure below "
            "shows every unit."
        )
    yield hint


# ---- 08.3 -----------------------------------------------------------------------------

WANTED = {"channels": 4, "max_rows": 8, "top_logits": 16}
"""Limits that the learner's kernel must report."""


@exercise(
    "08.3",
    "Change the header",
    ("constants of the header", "its rules hold", "the limits asked for, and no others"),
)
def _changes(changes: Mapping[str, int]) -> Iterator[str]:
    header = board_headers()["host"]
    text = header.read_text(encoding="utf-8")
    if not isinstance(changes, Mapping):
        yield 'Give a dictionary from names to numbers, such as {"kMaxSteps": 32}'
    try:
        changed = with_constants(text, changes, "mine")
        hint = ""
    except ValueError as error:
        changed, hint = text, f"The change fails: {error}"
    yield hint

    def value(name: str) -> int:
        found = re.search(rf"constexpr int {name} = (\d+);", changed)
        assert found is not None
        return int(found.group(1))

    channels, rows, tile = value("kChannels"), value("kTileRows"), value("kScaleLanes")
    hint = expect(
        channels % 2 == 0,
        f"kChannels = {channels} is odd: W1's and W3's tiles alternate over the channels, so the "
        "compiler refuses it (config.h, static_assert).",
    )
    if not hint:
        hint = expect(
            rows in (16, 32) and rows % tile == 0,
            f"kTileRows = {rows} with kScaleLanes = {tile} breaks a rule of config.h. You need "
            "neither for this exercise.",
        )
    yield hint

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mine.h"
        path.write_text(changed, encoding="utf-8")
        before, after = KernelLimits.from_header(header), KernelLimits.from_header(path)
    for name, wanted in WANTED.items():
        got = getattr(after, name)
        if got != wanted:
            yield f"{name} is {got}, not {wanted}: {constant_name(name)} in the header sets it."
            return
    asked = replace(before, board="mine", **WANTED)
    other = [name for name in vars(asked) if getattr(asked, name) != getattr(after, name)]
    yield expect(not other, f"More has changed than was asked for: {', '.join(other)}.")


# ---- 08.4 -----------------------------------------------------------------------------


@exercise(
    "08.4",
    "What stays the same",
    ("yes or no, three times", "the text", "the logits", "where the weights are stored"),
)
def _same(
    text: bool, logits: bool, bytes_of_channel: bool, measured: Mapping[str, bool]
) -> Iterator[str]:
    """Check against `measured`, or against the design if it is empty (nothing could be built)."""
    answers = (text, logits, bytes_of_channel)
    yield expect(
        all(isinstance(answer, (bool, np.bool_)) for answer in answers),
        "Answer each with True or False.",
    )
    for what, stay, answer in (("text", "stays", text), ("logits", "stay", logits)):
        if not measured.get(what, True):
            yield f"Here the {what} did not stay the same: that is a fault of llama_pynq."
            return
        yield expect(
            answer,
            f"The {what} {stay}. Groups are added in ascending order whatever the channels, rows "
            "or lanes (lesson 04), and nothing else in the header affects a result.",
        )
    right = measured.get("channel 0", False)
    yield expect(
        bytes_of_channel == right,
        "They are not the same: tiles are dealt out to the channels, so with more channels each "
        "holds fewer of them."
        if not right
        else "They are the same: your changes leave kChannels and kTileRows as they were.",
    )
