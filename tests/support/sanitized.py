"""The kernel compiled with g++'s sanitizers, and the program that calls it."""

from __future__ import annotations

import copy
import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.foreign_kernel import SOURCE, ForeignKernel
from support.kernel_library import board_header
from support.paths import HLS_SRC, TESTS

from llama_pynq.emulation.build import FLAGS, default_compiler
from llama_pynq.kernel.top import top_function

SANITIZERS = {
    "address": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "thread": ("-fsanitize=thread",),
}
# -g1: a report names function and line. With both sanitizers the host's build takes g++ a minute
# at -O1, a third of that at -O0.
_FLAGS = ("-g1", "-fno-omit-frame-pointer", "-pthread")
_LEVELS = {"address": "-O0", "thread": "-O1"}
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=1:detect_stack_use_after_return=1:strict_string_checks=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1",
}


def compiler(sanitizer: str) -> list[str]:
    """The C++ compiler with a sanitizer; the test is skipped if it has none."""
    command = [*shlex.split(default_compiler()), *SANITIZERS[sanitizer]]
    tried = subprocess.run(
        [*command, "-x", "c++", "-", "-o", os.devnull], input="int main() {}", text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    if tried.returncode:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{shlex.join(command)} compiles nothing: {tried.stderr[:500]}")
        pytest.skip(f"this compiler has no {sanitizer} sanitizer")
    return command


def run(command: Sequence[str | Path], **options: object) -> subprocess.CompletedProcess:
    """Run a command with the sanitizers' options; returns its output as text."""
    environment = {**os.environ, **OPTIONS}
    return subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, check=False,
        errors="replace", **options,
    )  # fmt: skip


def build(command: Sequence[str | Path]) -> None:
    """Run a compiler; what it says is the failure's message."""
    done = run(command)
    assert done.returncode == 0, f"{shlex.join(map(str, command))}\n{done.stderr[:4000]}"


class SanitizedKernel:
    """The kernel of one board with a sanitizer, and the program that runs it.

    Parameters
    ----------
    folder : Path
        Receives the library, the program and its log.
    sanitizer : str
        A key of `SANITIZERS`.
    board : str
    streams : bool
        Fabric's streams and loaders instead of the host's cursor.
    """

    def __init__(
        self,
        folder: Path,
        sanitizer: str,
        board: str = "host",
        streams: bool = False,
    ) -> None:
        self.sanitizer, self.board, self._log = sanitizer, board, folder / "stderr"
        self._library, self._runner = folder / "kernel.so", folder / "run_calls"
        top = folder / "top.cpp"
        top.write_text(top_function(board_header(board)))
        command = compiler(sanitizer)
        usual = [flag for flag in FLAGS if flag not in ("-O3", "-fno-sanitize=undefined")]
        level = "-O1" if streams else _LEVELS[sanitizer]
        flags = [*usual, *_FLAGS, level, f'-DLLAMA_BOARD_HEADER="boards/{board}.h"',
                 *["-DLLAMA_STREAMS"] * streams, f"-I{HLS_SRC}", f"-I{TESTS / 'hls'}"]  # fmt: skip
        self._compile = [*command, *flags, "-c"]
        self._link = [*command, "-shared", "-pthread", folder / "top.o"]
        build([*self._compile, top, "-o", folder / "top.o"])
        features = folder / "cpu_features.o"
        build([*self._compile, HLS_SRC / "host" / "cpu_features.cpp", "-o", features])
        self._link.append(features)
        self._build(HLS_SRC / "host" / "emulator.cpp")
        # As C++, so that the same compiler's sanitizer is in the program.
        build([*command, *_FLAGS, "-O1", "-fpermissive", "-w", "-x", "c++", SOURCE, "-x", "none",
               "-ldl", "-o", self._runner])  # fmt: skip

    def _build(self, emulator: Path) -> None:
        compiled = self._library.with_suffix(".o")
        build([*self._compile, emulator, "-o", compiled])
        build([*self._link, compiled, "-o", self._library])

    def with_emulator(self, source: Path) -> SanitizedKernel:
        """Return the same kernel with an emulator compiled from this source."""
        other = copy.copy(self)
        other._library = source.with_suffix(".so")
        other._build(source)
        return other

    def start(self, threads: int, within: bool = False) -> ForeignKernel:
        """Start the program; `ForeignKernel.close` fails if a sanitizer reported anything.

        Parameters
        ----------
        threads : int
        within : bool
            The emulator checks each call against the buffers' sizes, as for a driver.
        """
        environment = {**os.environ, **OPTIONS}
        command = [self._runner, self._library, str(threads), *["within"] * within]
        return ForeignKernel(command, self.board, self._log, environment)
