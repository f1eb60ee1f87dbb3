"""Six threads on one device: texts, logits, two models, resets, reads of the cache, and the end.

    python tests/fuzz/stress.py --seed 1 --rounds 100

Each thread draws its actions from its seed. Every text that is finished equals the text of a
device that nobody shares; an action may fail with an error of the package only. Prints what was
done, and exits with 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import collections
import random
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from llama_pynq import EmulatedDevice, LlamaOverlay, ModelConfig
from llama_pynq.errors import LlamaPynqError
from llama_pynq.models import BUNDLED

THREADS = 6
PROMPT, LENGTH, SEEDS = "Once upon a time", 24, 4
IDS = (1, 5, 9)
SECONDS = 600.0
"""A run of any number of rounds that takes longer counts as a deadlock of its last action."""


@dataclass
class Report:
    """What the threads did.

    Attributes
    ----------
    done, refused : Counter
        Actions that ended, and errors of the package, by action.
    wrong : list of str
        Texts that differ, foreign exceptions, and threads that never ended.
    """

    done: collections.Counter[str] = field(default_factory=collections.Counter)
    refused: collections.Counter[str] = field(default_factory=collections.Counter)
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{sum(self.done.values())} actions done: {dict(sorted(self.done.items()))}",
                 f"{sum(self.refused.values())} refused: {dict(sorted(self.refused.items()))}",
                 f"{len(self.wrong)} wrong", *self.wrong[:20]]  # fmt: skip
        return "\n".join(lines)


class Stress:
    """One overlay, two models, and the texts that are right for them.

    Parameters
    ----------
    folder : Path
        For the second model.
    seed : int
    """

    def __init__(self, folder: Path, seed: int) -> None:
        from support.checkpoint_files import write_checkpoint

        self.seed, self.report = seed, Report()
        config = ModelConfig(dim=64, hidden_dim=96, n_layers=2, n_heads=4, n_kv_heads=2,
                             vocab_size=1024, seq_len=96, tied=True)  # fmt: skip
        other = folder / "other.bin"
        write_checkpoint(other, config, 0)
        self.models: list[tuple[object, ...]] = [(), (other, BUNDLED / "tokenizer.bin")]
        self.overlay = LlamaOverlay(device=EmulatedDevice(threads=2, name=f"stress-{seed}"))
        self.golden: set[tuple[str, int, str]] = set()
        self.logits: list[np.ndarray] = []
        for files in self.models:
            self.overlay.load_model(*files)
            self.logits.append(self.overlay.logits(IDS))
            for at in range(SEEDS):
                text = self.overlay.generate(PROMPT, max_new_tokens=LENGTH, seed=at).text
                self.golden.add(("text", at, text))

    # ---- actions ---------------------------------------------------------------------

    def _check(self, what: str, right: bool) -> None:
        if not right:
            self.report.wrong.append(f"{what}: differs")

    def generate(self, rng: random.Random) -> None:
        at = rng.randrange(SEEDS)
        text = self.overlay.generate(PROMPT, max_new_tokens=LENGTH, seed=at).text
        self._check("generate", ("text", at, text) in self.golden)

    def batch(self, rng: random.Random) -> None:
        at = rng.randrange(SEEDS)
        prompts = [PROMPT] * rng.choice([2, 5, 9])
        for out in self.overlay.generate(prompts, max_new_tokens=LENGTH, seed=at):
            self._check("batch", ("text", at, out.text) in self.golden)

    def stream(self, rng: random.Random) -> None:
        at = rng.randrange(SEEDS)
        text = "".join(self.overlay.stream(PROMPT, max_new_tokens=LENGTH, seed=at))
        self._check("stream", ("text", at, text) in self.golden)

    def part(self, rng: random.Random) -> None:
        pieces = self.overlay.stream(PROMPT, max_new_tokens=90, seed=rng.randrange(SEEDS))
        for _ in range(rng.randrange(1, 12)):
            next(pieces, None)
        if rng.random() < 0.5:
            pieces.close()

    def read_logits(self, rng: random.Random) -> None:
        found = self.overlay.logits(IDS)
        self._check("logits", any(np.array_equal(found, right) for right in self.logits))

    def load(self, rng: random.Random) -> None:
        self.overlay.load_model(*rng.choice(self.models), slots=rng.choice([None, 2, 8, 16]))

    def reset(self, rng: random.Random) -> None:
        self.overlay.reset()

    def read_cache(self, rng: random.Random) -> None:
        self.overlay.llama.read_cache(0, rng.randrange(1, 9))

    def look(self, rng: random.Random) -> None:
        driver = self.overlay.llama
        f"{self.overlay!r} {self.overlay._repr_html_()} {driver.slots} {driver.kv_format}"
        f"{driver.running} {driver.config} {driver.packed is None} {driver.limits}"

    # ---- threads ---------------------------------------------------------------------

    def _work(self, number: int, rounds: int) -> None:
        rng = random.Random(f"{self.seed}-{number}")
        actions: dict[Callable[[random.Random], None], float] = {
            self.generate: 8, self.batch: 3, self.stream: 5, self.part: 4, self.read_logits: 4,
            self.load: 0.6, self.reset: 0.5, self.read_cache: 2, self.look: 2,
        }  # fmt: skip
        for _ in range(rounds):
            (action,) = rng.choices(list(actions), list(actions.values()))
            self._try(action, rng)

    def _try(self, action: Callable[[random.Random], None], rng: random.Random) -> None:
        name = action.__name__
        try:
            action(rng)
            self.report.done[name] += 1
        except LlamaPynqError as error:
            self.report.refused[f"{name}: {type(error).__name__}"] += 1
        except Exception:
            self.report.wrong.append(f"{name}: {traceback.format_exc()[-900:]}")

    def _threads(self, targets: list[Callable[[], None]]) -> None:
        threads = [threading.Thread(target=target, daemon=True) for target in targets]
        for thread in threads:
            thread.start()
        until = time.monotonic() + SECONDS
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
        self.report.wrong += ["a thread never ended" for thread in threads if thread.is_alive()]

    def run(self, rounds: int) -> Report:
        """Let each thread do `rounds` actions; then the device serves; then close it in use."""
        self._threads([lambda number=n: self._work(number, rounds) for n in range(THREADS)])
        rng = random.Random(self.seed)
        self.overlay.reset()
        self.load(rng)
        self.generate(rng)
        self.read_logits(rng)
        free = self.overlay.llama.model.slots.free
        if free != list(range(self.overlay.llama.slots)):
            self.report.wrong.append(f"slots lost: only {free} are free")
        self._threads([*[lambda: self._until_closed(rng)] * (THREADS - 1), self._close])
        memory = self.overlay.device.memory
        if memory.free_bytes != memory.size_bytes:
            self.report.wrong.append(f"{memory.size_bytes - memory.free_bytes} bytes not freed")
        return self.report

    def _until_closed(self, rng: random.Random) -> None:
        while not self.overlay.closed:  # refused once close() has begun
            self._try(self.generate, rng)
            time.sleep(0.001)

    def _close(self) -> None:
        time.sleep(0.2)
        self.overlay.close()


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--rounds", type=int, default=100, help="of each thread (%(default)s)")
    given = arguments.parse_args()
    seed, rounds = given.seed, given.rounds
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Stress(Path(folder), seed).run(rounds)
    print(f"seed {seed}, {THREADS} threads of {rounds} rounds, {time.monotonic() - start:.0f} s")
    print(report)
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    raise SystemExit(main())
