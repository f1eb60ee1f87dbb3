"""A kernel library in a subprocess: of another system or processor, or with a sanitizer."""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from support.kernel_library import board_header

from llama_pynq.emulation.targets import WheelTarget
from llama_pynq.kernel import abi, limits
from llama_pynq.kernel.config import board_constants
from llama_pynq.kernel.registers import board_arguments

SOURCE = Path(__file__).parent / "run_calls.c"
_MARK = 1 << 63


def build_runner(python: Path, target: WheelTarget, out: Path) -> Path:
    """Compile run_calls.c for `target` with the zig package of an environment's `python`."""
    runner = out / ("run_calls.exe" if target.system == "Windows" else "run_calls")
    command = [str(python), "-m", "ziglang", "cc", "-target", target.triple, "-O1", str(SOURCE)]
    command += ["-o", str(runner)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return runner


class ForeignKernel:
    """Like `kernel_library.KernelLibrary`, in a process.

    Parameters
    ----------
    command : sequence of str or Path
        run_calls with the library's path.
    board : str
        Board that the library was compiled for.
    log : Path, optional
        Receives what the process writes to standard error.
    environment : dict, optional
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        board: str = "host",
        log: Path | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        constants = board_constants(board_header(board))
        self.arguments = board_arguments(constants)
        self._log = log
        with open(log or os.devnull, "wb") as stderr:
            self._process = subprocess.Popen(
                list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=stderr, env=environment,
            )  # fmt: skip
        (length,) = struct.unpack("<Q", self._read(8))
        self.cpu_features = frozenset(self._read(length).decode().split())
        self.sequence = 0
        words = np.zeros(abi.DESCRIBE_WORDS, np.uint32)
        self.call({"results": words}, abi.COMMAND_DESCRIBE)
        self.limits = limits.KernelLimits.from_words(words)

    def _read(self, n: int) -> bytes:
        data = self._process.stdout.read(n)
        assert len(data) == n, self._ended()
        return data

    def _ended(self) -> str:
        said = self._log.read_text(errors="replace")[:8000] if self._log else ""
        return f"{self._process.args} ended: {self._process.wait()}\n{said}"

    def call(self, buffers: dict[str, np.ndarray], command: int) -> None:
        """Run one call to its end; arguments missing from `buffers` are null."""
        self.sequence += 1
        scalars = {"command": command, "sequence": self.sequence}
        names = list(buffers)
        words = [0] * 128
        for i, argument in enumerate(self.arguments):
            if argument.buffer in buffers:
                words[i] = _MARK | names.index(argument.buffer)
            else:
                words[i] = scalars.get(argument.name, 0)
        message = struct.pack("<Q", len(names))
        message += struct.pack(f"<{len(names)}Q", *(buffers[name].nbytes for name in names))
        message += struct.pack("<128Q", *words)
        try:
            self._process.stdin.write(message + b"".join(buffers[n].tobytes() for n in names))
            self._process.stdin.flush()
        except BrokenPipeError:
            raise AssertionError(self._ended()) from None
        for name in names:
            buffers[name].reshape(-1).view(np.uint8)[:] = np.frombuffer(
                self._read(buffers[name].nbytes), np.uint8
            )

    def close(self) -> None:
        """End the process; its status must be 0."""
        self._process.stdin.close()
        status = self._process.wait()
        self._process.stdout.close()
        assert status == 0, self._ended()

    def __enter__(self) -> ForeignKernel:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None:
            self.close()
            return
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        with contextlib.suppress(OSError):
            self._process.stdin.close()
