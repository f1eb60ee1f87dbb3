"""The fuzzer itself: the same inputs from a seed, and a fault of each kind found and kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from random import Random

import pytest
from fuzz import mutators
from fuzz.border import case_rng
from fuzz.mutators import Field
from fuzz.runner import environment, run_border
from support.paths import REPOSITORY

# A border with a fault of each kind; PYTHONPATH puts this fuzz.borders before the real one's.
_FAULTY = """
import os, time
from pathlib import Path
from typing import NamedTuple
from fuzz.border import Border, Skipped
from llama_pynq.errors import CheckpointError

class Entry(NamedTuple):
    opener: object
    cases: int

def read(data):
    n = data[0]
    if n == 3:
        raise KeyError("raw")
    if n == 5:
        os.kill(os.getpid(), 11)
    if n == 7:
        os._exit(4)
    if n == 9:
        time.sleep(60)
    if n == 11:
        bytearray(1 << 40)
    if n % 2:
        raise CheckpointError("refused")

cases = iter(range(100))

def opener(folder):
    import fuzz.worker, sys
    first = int(sys.argv[3])
    numbers = iter(range(first, 100))
    return Border(lambda rng: bytes([next(numbers)]), read, (CheckpointError,))

def none(folder):
    raise Skipped("there is no corpus")

BORDERS = {"faulty": Entry(opener, 14), "none": Entry(none, 1)}
"""


@pytest.fixture
def faulty(tmp_path, monkeypatch):
    """Run workers with a package `fuzz` whose table has the faulty border."""
    package = tmp_path / "tests" / "fuzz"
    package.mkdir(parents=True)
    for name in ("border.py", "worker.py", "mutators.py"):
        (package / name).symlink_to(REPOSITORY / "tests" / "fuzz" / name)
    (package / "borders.py").write_text(textwrap.dedent(_FAULTY))
    monkeypatch.setattr("fuzz.runner.TESTS", package.parent)


def test_faults_of_every_kind_are_found_and_their_inputs_kept(faulty, tmp_path):
    report = run_border("faulty", 1, 14, folder=tmp_path / "failing", silent_s=8)
    kinds = {failure.case: failure.kind for failure in report.failures}
    assert kinds == {
        3: "raised",
        5: "ended the process (SIGSEGV)",
        7: "ended the process (status 4)",
        9: "hung",
        11: "raised",
    }
    assert (report.cases, report.refused, report.read) == (14, 2, 7)
    for failure in report.failures:
        assert failure.saved.read_bytes() == bytes([failure.case])
        assert f"-m fuzz faulty --input {failure.saved}" in str(failure)
    assert "KeyError" in report.failures[0].detail
    assert "Segmentation fault" in report.failures[1].detail
    assert "MemoryError" in report.failures[4].detail


def test_border_without_a_corpus_is_skipped_with_the_reason(faulty, tmp_path):
    report = run_border("none", 1, 14, folder=tmp_path)
    assert str(report) == "none: skipped, there is no corpus"


def test_saved_input_runs_again_by_its_command(tmp_path):
    saved = tmp_path / "saved"
    saved.write_bytes(json.dumps("kv-260").encode())
    command = [sys.executable, "-m", "fuzz", "board-names", "--input", str(saved)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["board-names:", "read"]), done.stderr
    saved.write_bytes(b"no JSON")
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "JSONDecodeError" in done.stdout


def test_campaign_tries_borders_in_turns_and_counts(tmp_path):
    command = [sys.executable, "-m", "fuzz", "board-names", "texts", "--minutes", "0.15"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    *counts, last = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in counts] == ["board-names", "texts"]
    assert "0 kinds of failure" in last


def test_one_seed_gives_one_input():
    def inputs(seed):
        found = []
        for index in range(50):
            rng = case_rng("x", seed, index)
            found.append(mutators.mutate_bytes(rng, [bytes(range(200)), b"abc" * 50]))
            found.append(repr(mutators.mutate_json(rng, {"a": [1, "b", {"c": None}]})))
            found.append(mutators.json_text(rng, {"a": 1})[:100])
        return found

    assert inputs(1) == inputs(1) != inputs(2)


def test_most_mutants_differ_from_their_corpus():
    data = bytes(range(256))
    mutants = [mutators.mutate_bytes(Random(i), [data]) for i in range(500)]
    assert sum(m == data for m in mutants) < 50
    assert len({len(m) for m in mutants}) > 20


def test_fields_become_boundary_values_and_nothing_else_changes():
    fields, seen = [Field(4, "<I"), Field(8, ">H"), Field(12, "<f")], set()
    for i in range(2000):
        data = bytearray(range(32))
        mutators.edit_field(Random(i), data, fields)
        assert data[:4] + data[10:12] + data[16:] == bytes(range(32))[:4] + b"\x0a\x0b" + bytes(
            range(16, 32)
        )
        seen.add(bytes(data[4:8]))
    assert {b"\0" * 4, b"\xff" * 4, b"\0\0\0\x80", b"\xff\xff\xff\x7f"} <= seen
    data = bytearray(3)
    mutators.edit_field(Random(0), data, fields)  # none fits
    assert data == bytes(3)


def test_json_edits_change_types_bounds_and_nesting_and_leave_the_original():
    value = {"a": 1, "b": ["x", {"c": 0.5}], "d": None}
    mutants = [mutators.mutate_json(Random(i), value) for i in range(3000)]
    assert value == {"a": 1, "b": ["x", {"c": 0.5}], "d": None}
    firsts = [m["a"] for m in mutants if isinstance(m, dict) and "a" in m]
    assert {type(first) for first in firsts} >= {int, float, str, list, dict, bool, type(None)}
    assert any(first != first for first in firsts if isinstance(first, float))  # NaN
    assert {"a", "b", "d"} - {"d"} in [set(m) for m in mutants if isinstance(m, dict)]
    deep = [mutators.json_text(Random(i), value) for i in range(200)]
    assert any(len(text) >= 100_000 for text in deep)


def test_workers_keep_out_of_the_users_folders(tmp_path):
    """Cache, overlays, locks and home of a worker are its own."""
    code = (
        "import os, sys; from pathlib import Path; from fuzz.worker import own_folders; "
        "own_folders(Path(sys.argv[1])); "
        "from llama_pynq.utils.files import cache_folder, data_folder; "
        "from llama_pynq.utils.lock import lock_folder; "
        "print(cache_folder(), data_folder(), lock_folder(), Path.home(), os.getcwd(), sep='\\n')"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    assert all(line.startswith(str(tmp_path) + os.sep) for line in done.stdout.splitlines())
