"""A lint of the pragmas for Vitis HLS: every hardware loop and every port of the kernel.

Reads the source text only, in place of the messages of a synthesis.
"""

import re
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from support.kernel_library import BOARDS, board_header
from support.paths import HLS_SRC

from llama_pynq.kernel.config import board_constants
from llama_pynq.kernel.registers import board_arguments
from llama_pynq.kernel.top import top_function

SOURCES = [
    *sorted(HLS_SRC.glob("*.h")),
    *sorted((HLS_SRC / "stages").glob("*.h")),
    HLS_SRC / "shims" / "stream.h",
]

SEQUENTIAL = {
    "ANY_ROW": "a few rows, once a step",
    "DESCRIBE_BOARD": "four words, in a DESCRIBE call",
    "EARLIER_ROWS": "a few rows, once a call",
    "LONGEST": "a few rows, once a layer; only the host uses the result",
    "MOVE_ROWS": "a few rows, once a step",
    "PLAN_ROWS": "a few rows, once a step; each depends on the previous row",
    "READ_WORD": "inlined: unrolled inside pipelines; elsewhere as fast as beats arrive",
    "STOP_LIST": "sixteen words, once a call",
    "TASKS": "runs engines one after the other: the loops are inside `task`",
}
"""Innermost loops that need no pipeline, and why."""


@dataclass
class Loop:
    """One loop: place, label, head in parentheses, its own pragmas, body."""

    where: str
    function: str
    label: str
    head: str
    body: str
    start: int
    end: int
    pragmas: list[str] = field(default_factory=list)
    inside: "Loop | None" = None

    def has(self, kind: str) -> bool:
        return any(re.match(rf"{kind}\b", pragma) for pragma in self.pragmas)

    @property
    def name(self) -> str:
        return f"{self.where}, {self.function}, {self.label or self.head}"


def _closing(text: str, at: int) -> int:
    """Index of the bracket that closes the bracket at `at`."""
    pair = {"(": ")", "{": "}"}[text[at]]
    depth = 0
    for i in range(at, len(text)):
        depth += (text[i] == text[at]) - (text[i] == pair)
        if depth == 0:
            return i
    raise AssertionError("brackets do not match")


def _own_level(body: str) -> str:
    """A body without nested brackets and their contents."""
    depth, out = 0, []
    for c in body:
        depth -= c == "}"
        if depth == 0:
            out.append(c)
        depth += c == "{"
    return "".join(out)


_KEYWORDS = {"if", "for", "while", "switch", "return", "sizeof", "static_assert", "alignas"}


def functions(text: str) -> list[tuple[str, int, int]]:
    """Name, begin and end of the body of every function definition."""
    found = []
    for match in re.finditer(r"(\w+|operator\(\))\s*\(", text):
        if match.group(1) in _KEYWORDS:
            continue
        close = _closing(text, match.end() - 1)
        after = re.match(r"\)(\s*\))?(\s*\[\w+\])*\s*(const\s*)?\{", text[close:])
        if after:
            start = close + after.end() - 1
            found.append((match.group(1), start, _closing(text, start)))
    return found


def loops_of(text: str, where: str) -> list[Loop]:
    text = re.sub(r"//[^\n]*", "", text)
    bodies = functions(text)
    result: list[Loop] = []
    for match in re.finditer(r"(?:\b([A-Z][A-Z0-9_]*)\s*:\s*)?\b(?:for|while)\s*\(", text):
        close = _closing(text, match.end() - 1)
        head = " ".join(text[match.end() : close].split())
        rest = text[close + 1 :]
        opening = close + 1 + len(rest) - len(rest.lstrip())
        block = text[opening] == "{"
        end = _closing(text, opening) if block else text.index(";", opening)
        body = text[opening + 1 : end] if block else text[opening:end]
        around = [b for b in bodies if b[1] < match.start() < b[2]]
        function = max(around, key=lambda b: b[1])[0] if around else "?"
        loop = Loop(where, function, match.group(1) or "", head, body, match.start(), end)
        loop.pragmas = re.findall(r"#pragma HLS ([^\n]*)", _own_level(body))
        outer = [o for o in result if o.start < loop.start < o.end]
        loop.inside = max(outer, key=lambda o: o.start) if outer else None
        result.append(loop)
    return result


def _calls(text: str) -> set[str]:
    return set(re.findall(r"\b([A-Z]\w+)(?:<[^<>]*>)?\s*\(", text))


def _texts() -> dict[str, str]:
    texts = {path.name: path.read_text() for path in SOURCES}
    texts |= {f"{board} top": top_function(board_header(board)) for board in BOARDS}
    return texts


TEXTS = _texts()
LOOPS = [loop for where, text in TEXTS.items() for loop in loops_of(text, where)]
HARDWARE = [loop for loop in LOOPS if not loop.has("UNROLL")]


def _with_loops() -> set[str]:
    """Functions that run loops, directly or in functions that they call."""
    names = {loop.function for loop in HARDWARE}
    calls: dict[str, set[str]] = {}
    for text in TEXTS.values():
        plain = re.sub(r"//[^\n]*", "", text)
        for name, start, end in functions(plain):
            calls.setdefault(name, set()).update(_calls(plain[start:end]))
    before = -1
    while len(names) != before:
        before = len(names)
        names |= {name for name, called in calls.items() if called & names}
    return names


WITH_LOOPS = _with_loops()


def names(loops: list[Loop]) -> list[str]:
    return [loop.name for loop in loops]


def test_the_lint_sees_the_kernels_loops():
    labels = {loop.label for loop in HARDWARE}
    assert {"BEATS", "DOT", "LAYERS", "STEPS", "SEND_BEATS", "COUNT_CYCLES", "LEVELS"} <= labels
    assert len(LOOPS) > 120
    assert {"MatVec", "NormalizeRow", "RunStep", "ForEach"} <= WITH_LOOPS
    assert not {"Exp", "TreeSum", "FloatOf", "PlaceMatrix"} & WITH_LOOPS


def test_every_loop_that_is_not_unrolled_is_labelled():
    assert names([loop for loop in HARDWARE if not loop.label]) == []


def test_labels_are_unique_in_their_function():
    """Reports and directives name a loop as function/label."""
    seen = sorted((loop.where, loop.function, loop.label) for loop in HARDWARE)
    assert [a for a, b in pairwise(seen) if a == b] == []


def test_every_innermost_loop_is_pipelined_or_says_why_not():
    wanting = [
        loop
        for loop in HARDWARE
        if not loop.has("PIPELINE")
        and not loop.has("DATAFLOW")
        and not any(other.inside is loop for other in HARDWARE)
        and not _calls(loop.body) & WITH_LOOPS
    ]
    assert sorted({loop.label for loop in wanting}) == sorted(SEQUENTIAL)


def test_loops_inside_a_pipeline_are_unrolled():
    """Vitis would unroll them implicitly, or drop the pipeline: the source must be explicit."""
    assert names([loop for loop in HARDWARE if loop.inside and loop.inside.has("PIPELINE")]) == []
    called = [
        loop.name for loop in HARDWARE if loop.has("PIPELINE") and _calls(loop.body) & WITH_LOOPS
    ]
    assert [name for name in called if "READ_NORM" not in name] == []  # READ_WORD: see above


def test_every_pipeline_names_its_interval():
    pipelines = [pragma for loop in HARDWARE for pragma in loop.pragmas if "PIPELINE" in pragma]
    assert [pragma for pragma in pipelines if not re.fullmatch(r"PIPELINE II = .+", pragma)] == []


def test_loops_have_one_exit():
    """The dialect that Vitis HLS takes. A `break` in a switch is not an exit."""
    for loop in HARDWARE:
        body = loop.body
        while found := re.search(r"\bswitch\s*\([^)]*\)\s*\{", body):
            body = body[: found.start()] + body[_closing(body, found.end() - 1) + 1 :]
        assert not re.search(r"\b(break|continue|goto|return)\b", body), loop.name


def test_loops_of_unknown_length_say_how_long_they_may_be():
    """Otherwise reports show question marks instead of latencies."""
    for loop in HARDWARE:
        condition = loop.head.split(";")[1] if ";" in loop.head else loop.head
        index = re.match(r"(?:int|unsigned) (\w+)", loop.head)
        known = {index.group(1)} if index else set()
        unknown = set(re.findall(r"[A-Za-z_]\w*", condition)) - known
        unknown = {name for name in unknown if not re.fullmatch(r"k[A-Z]\w*|N", name)}
        assert not unknown or loop.has("LOOP_TRIPCOUNT"), f"{loop.name}: {unknown}"


def test_pragmas_are_ones_that_vitis_knows():
    """UG1399, HLS pragmas: Vitis only warns of a misspelt one."""
    known = {
        "ALLOCATION", "ARRAY_PARTITION", "ARRAY_RESHAPE", "BIND_STORAGE", "DATAFLOW", "DEPENDENCE",
        "INLINE", "INTERFACE", "LOOP_TRIPCOUNT", "PIPELINE", "STABLE", "STREAM", "UNROLL",
    }  # fmt: skip
    for where, text in TEXTS.items():
        pragmas = re.findall(r"#pragma[ \t]+([^\n]*)", text)
        words = [pragma.split() for pragma in pragmas if pragma != "once"]
        assert all(w[0] == "HLS" and w[1] in known for w in words), where


# ---- ports ----------------------------------------------------------------------------


def interfaces(top: str) -> dict[str, dict[str, str]]:
    """Options of each m_axi port of a top function."""
    return {
        match.group(1): dict(re.findall(r"(\w+) = ([^=]+?)(?= \w+ =|$)", match.group(2)))
        for match in re.finditer(r"#pragma HLS INTERFACE m_axi port = (\w+) (.*)", top)
    }


@pytest.mark.parametrize("board", BOARDS)
def test_every_pointer_is_an_axi_master_with_bundle_and_depth(board):
    constants = board_constants(board_header(board))
    args = board_arguments(constants)
    found = interfaces(TEXTS[f"{board} top"])
    assert sorted(found) == sorted(arg.name for arg in args if arg.is_pointer)
    for arg in args:
        if arg.is_pointer:
            options = found[arg.name]
            assert options["bundle"] == arg.bundle
            assert options["offset"] == "slave"
            assert options["depth"]
            streams = arg.name.startswith(("weights_", "kv_"))
            assert ("max_read_burst_length" in options) == streams
            assert ("num_read_outstanding" in options) == streams


@pytest.mark.parametrize("board", BOARDS)
def test_arguments_of_a_bundle_have_the_same_options(board):
    """Otherwise Vitis HLS ignores them and uses its defaults: UG1448, message 200-466."""
    of_bundle = {}
    for options in interfaces(TEXTS[f"{board} top"]).values():
        bundle = options.pop("bundle")
        assert of_bundle.setdefault(bundle, options) == options, bundle


@pytest.mark.parametrize("board", BOARDS)
def test_every_argument_and_the_return_are_registers(board):
    constants = board_constants(board_header(board))
    args = board_arguments(constants)
    ports = re.findall(r"INTERFACE s_axilite port = (\w+)", TEXTS[f"{board} top"])
    assert ports == [*(arg.name for arg in args), "return"]


def test_the_lint_finds_what_it_is_for():
    """Three faults in a made-up function; the lint finds each once."""
    text = """
    inline void Bad(int n, float* x) {
      for (int i = 0; i < n; ++i) {
        x[i] = 0.0f;
      }
    TWICE:
      for (int i = 0; i < kLanes; ++i) {
    #pragma HLS PIPELINE II = 1
        for (int j = 0; j < kLanes; ++j) {
          if (x[j] > 0.0f) break;
        }
      }
    }
    """
    found = loops_of(text, "bad.h")
    assert [loop.label for loop in found] == ["", "TWICE", ""]
    assert found[2].inside is found[1]
    assert found[1].has("PIPELINE")
    assert not found[2].has("PIPELINE")
    assert [loop.function for loop in found] == ["Bad"] * 3
