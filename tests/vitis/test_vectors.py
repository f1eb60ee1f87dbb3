"""Test vectors and test bench of the C simulation."""

import subprocess

import numpy as np
import pytest
from support.kernel_library import compiled_kernel
from support.paths import HLS_SRC

from llama_pynq.vitis.project import Project
from llama_pynq.vitis.vectors import write_vectors


@pytest.fixture
def bench(tmp_path):
    """Compile a board's test bench with its kernel and the fabric's streams."""

    def build(board, header, damage=lambda text: text):
        project = Project.of(board, tmp_path / board)
        path = write_vectors(project)
        path.write_text(damage(path.read_text()))
        program = tmp_path / board / "test_bench"
        command = ["g++", "-std=c++14", "-Wall", "-Wextra", "-Werror", f"-I{project.folder}"]
        command += [str(HLS_SRC / "scripts" / "test_bench.cpp"), str(compiled_kernel(header, True))]
        subprocess.run([*command, "-o", str(program)], check=True)
        return subprocess.run([program], capture_output=True, text=True, check=False)

    return build


@pytest.mark.parametrize(
    ("board", "header"), [("pynq-z2", "pynq_z2"), ("kv260", "kv260"), ("u50", "u50")]
)
def test_bench_passes_on_the_boards_kernel(bench, board, header):
    done = bench(board, header)
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    assert lines[-1] == "PASS"
    assert any(line.startswith("logits: 0 of ") for line in lines)


def test_bench_fails_on_one_wrong_bit(bench):
    def damage(text):
        start = text.index("kAfter_logits[] = {") + len("kAfter_logits[] = {\n")
        word = int(text[start : text.index(",", start)], 16)
        return text[:start] + hex(word ^ 1) + text[text.index(",", start) :]

    done = bench("kv260", "kv260", damage)
    assert done.returncode == 1
    assert "logits[0] is 0x" in done.stdout
    assert done.stdout.splitlines()[-2:] == ["logits: 1 of 406 words differ", "FAIL"]


def test_vectors_are_the_same_every_time(tmp_path):
    texts = [write_vectors(Project.of("kv260", tmp_path / n)).read_bytes() for n in "ab"]
    assert texts[0] == texts[1]


def test_expected_tokens_do_not_depend_on_the_board(tmp_path):
    from llama_pynq.kernel.abi import STATUS_WORDS
    from llama_pynq.kernel.limits import KernelLimits
    from llama_pynq.vitis.vectors import STEPS, make_vectors

    tokens = []
    for board in ("pynq-z2", "kv260", "u250"):
        limits = KernelLimits.from_header(Project.of(board, tmp_path).header)
        results = make_vectors(limits).after["results"][STATUS_WORDS:]
        rows = results[: STEPS * limits.result_dtype.itemsize // 4].view(limits.result_dtype)
        tokens.append(rows["token"].tolist())
    assert tokens[0] == tokens[1] == tokens[2]
    assert len(np.unique(tokens[0])) > 1
