"""Kill a load, a pack and an `overlay add`, and see that the next one works.

    python tests/fuzz/kill.py --seed 1 --cases 60

A process is killed (SIGKILL) at a time that is drawn. After each, the same work in a new process
gives the same result: the text, the packed file, the overlay. In the end no file of a killed
process is left in the cache. Prints the kills, and exits with 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import hashlib
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

SECONDS = 120.0

LOAD = """
from llama_pynq import LlamaOverlay, EmulatedDevice
overlay = LlamaOverlay(device=EmulatedDevice(threads=2))
overlay.load_model({model!r}, {tokenizer!r})
print(overlay.generate("Once", seed=1, max_new_tokens=8).tokens, flush=True)
"""


@dataclass
class Report:
    """Kills that came in time, and those that came after the end; what was wrong."""

    killed: collections.Counter[str] = field(default_factory=collections.Counter)
    ended: collections.Counter[str] = field(default_factory=collections.Counter)
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join(
            [
                f"{sum(self.killed.values())} killed: {dict(self.killed)}",
                f"{sum(self.ended.values())} ended before: {dict(self.ended)}",
                f"{len(self.wrong)} wrong",
                *self.wrong[:20],
            ]  # fmt: skip
        )


class Kills:
    """Work in other processes, in a folder of its own.

    Parameters
    ----------
    folder : Path
    seed : int
    """

    def __init__(self, folder: Path, seed: int) -> None:
        from support.board_overlays import write_overlay
        from support.checkpoint_files import write_checkpoint

        from llama_pynq import ModelConfig
        from llama_pynq.models import BUNDLED

        self.folder, self.rng, self.report = folder, random.Random(seed), Report()
        self.environment = {
            **os.environ,
            "LLAMA_PYNQ_CACHE": str(folder / "cache"),
            "LLAMA_PYNQ_LOCKS": str(folder / "locks"),
            "LLAMA_PYNQ_OVERLAYS": str(folder / "overlays"),
        }
        config = ModelConfig(dim=256, hidden_dim=512, n_layers=4, n_heads=8, n_kv_heads=4,
                             vocab_size=1024, seq_len=64, tied=True)  # fmt: skip
        model, tokenizer = folder / "model.bin", BUNDLED / "tokenizer.bin"
        write_checkpoint(model, config, 0)
        overlay = write_overlay(folder / "source", "u50", bytes(1_000_000))
        packed = folder / "packed.safetensors"
        load = LOAD.format(model=str(model), tokenizer=str(tokenizer))
        command = [sys.executable, "-m", "llama_pynq"]
        self.work = {
            "load": [sys.executable, "-c", load],
            "pack": [*command, "pack", str(packed), "--model", str(model), "--force"],
            "overlay add": [*command, "overlay", "add", str(overlay.parent), "--force"],
        }
        self.packed = packed
        self.results, self.seconds = {}, {}
        for name in self.work:
            begin = time.monotonic()
            self.results[name] = self._result(name)
            self.seconds[name] = time.monotonic() - begin

    def _forget(self, name: str) -> None:
        """Remove what would spare the work."""
        if name == "load":
            for path in (self.folder / "cache" / "models").glob("*.safetensors"):
                path.unlink()

    def _result(self, name: str) -> str:
        done = subprocess.run(self.work[name], env=self.environment, capture_output=True,
                              text=True, timeout=SECONDS, check=False)  # fmt: skip
        if done.returncode:
            return f"status {done.returncode}: {done.stderr[-500:]}"
        if name == "pack":
            return hashlib.sha256(self.packed.read_bytes()).hexdigest()
        if name == "overlay add":
            verify = [*self.work["pack"][:3], "overlay", "verify", "u50"]
            checked = subprocess.run(verify, env=self.environment, capture_output=True, check=False)
            return f"verify: {checked.returncode}"
        return done.stdout

    def case(self, name: str) -> None:
        """Kill the work, and do it again."""
        self._forget(name)
        process = subprocess.Popen(
            self.work[name],
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(self.rng.random() * self.seconds[name])
        (self.report.ended if process.poll() is not None else self.report.killed)[name] += 1
        process.kill()
        process.wait()
        found = self._result(name)
        if found != self.results[name]:
            self.report.wrong.append(f"{name}: {found}, not {self.results[name]}")

    def run(self, cases: int) -> Report:
        """Kill `cases` processes, each work in turn."""
        for number in range(cases):
            self.case(list(self.work)[number % len(self.work)])
        self._result("load")
        left = [path for path in (self.folder / "cache" / "models").iterdir()
                if path.name.startswith(".")]  # fmt: skip
        left += [path for path in self.folder.iterdir() if path.name.startswith(".packed")]
        self.report.wrong += [f"left: {path} of {path.stat().st_size} bytes" for path in left]
        return self.report


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--cases", type=int, default=60, help="(%(default)s)")
    given = arguments.parse_args()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Kills(Path(folder), given.seed).run(given.cases)
    print(f"seed {given.seed}, {given.cases} cases, {time.monotonic() - begin:.0f} s")
    print(report)
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    raise SystemExit(main())
