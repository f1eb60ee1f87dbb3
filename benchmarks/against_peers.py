"""Benchmark the emulated device against llama.cpp: same machine, threads, shapes and weights.

    python benchmarks/against_peers.py [--shapes 15M 110M] [--threads 1 2] [--rounds 5]
        [--peer-python PYTHON] [--llama-bench PATH] [--check] [--json FILE] [--markdown FILE]

The script installs nothing: --peer-python names a Python that has llama-cpp-python and gguf
(default: this one). llama.cpp's own llama-bench comes from --llama-bench or the PATH; no wheel
contains it. Without llama-bench, llama-cpp-python measures the same: llama_decode() alone, no
sampling, no text. A round runs every measurement once, ours and theirs alternating; the table shows
the medians. There is no pass or fail: each target stands beside its measurement.
"""

import argparse
import ctypes
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np

from llama_pynq import EmulatedDevice, LlamaDriver, LlamaOverlay, load_checkpoint
from llama_pynq.checkpoint.random import random_model
from llama_pynq.checkpoint.shapes import STORIES
from llama_pynq.emulation.emulator import Emulator
from llama_pynq.engine.llama import Llama
from llama_pynq.engine.results import Generation
from llama_pynq.engine.sampling import SamplingParams
from llama_pynq.kernel.abi import (
    REQUEST_STEPS,
    STATUS_SEQUENCE,
    STATUS_STEPS,
    STATUS_WORDS,
    RequestFlag,
    RowFlag,
    make_rows,
)
from llama_pynq.kernel.reference import FloatModel
from llama_pynq.kernel.registers import arguments

SHARED = Path(__file__).parents[2] / "shared" / "models"
PEER = Path(__file__).with_name("peer_llama_cpp.py")
TOKENS, PROMPT = 256, 128
HOST_TOKENS = 129  # the first token of a text takes a kernel call of its own
GREEDY, SAMPLED = 0.0, 0.8
LABELS = {GREEDY: "greedy", SAMPLED: "top-p 0.9"}


class Peer:
    """llama.cpp in a separate process."""

    def __init__(self, python: str, llama_bench: str | None) -> None:
        self.llama_bench = llama_bench or shutil.which("llama-bench")
        if self.llama_bench is not None and not shutil.which(self.llama_bench):
            sys.exit(f"--llama-bench: {self.llama_bench} is not an executable program")
        try:
            self._process = subprocess.Popen(
                [python, str(PEER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            self.name = self.ask("versions")
        except (OSError, RuntimeError) as error:
            sys.exit(
                f"{python} cannot run {PEER.name} ({error}): give --peer-python a Python that has "
                "llama-cpp-python, gguf and numpy (install them with pip)"
            )

    def ask(self, do: str, **arguments: Any) -> Any:
        """Send one request to the process and return its answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            print(json.dumps({"do": do, **arguments}), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        answer = json.loads(line) if line else {"error": "the process ended"}
        if "error" in answer:
            raise RuntimeError(f"llama.cpp, {do}: {answer['error']}")
        return answer["value"]

    def raw(self, gguf: Path, threads: int, prompt: int) -> float:
        """Tokens/s as llama-bench reports it: prefill of `prompt` tokens, or decode of 256 if 0."""
        if self.llama_bench is None:
            return self.ask("decode", tokens=prompt or TOKENS, batch=prompt or 1)
        n_gen = 0 if prompt else TOKENS
        options = f"-p {prompt} -n {n_gen} -t {threads} -r 1 -o json".split()
        command = [self.llama_bench, "-m", str(gguf), *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()}")
        return float(json.loads(done.stdout)[0]["avg_ts"])

    @property
    def raw_name(self) -> str:
        return "llama-bench" if self.llama_bench else "llama_decode() from Python"


@contextmanager
def kernel_clock() -> Iterator[SimpleNamespace]:
    """Count the kernel's calls within the block, and sum their seconds from start to done."""
    clock, began = SimpleNamespace(seconds=0.0, calls=0), list[float]()
    really_start, really_wait = Emulator.start, Emulator.wait

    def start(emulator: Emulator, memory: Any) -> None:
        began.append(time.perf_counter())
        really_start(emulator, memory)

    def wait(emulator: Emulator, timeout_us: int) -> bool:
        done = really_wait(emulator, timeout_us)
        if done and began:
            clock.seconds += time.perf_counter() - began.pop()
            clock.calls += 1
        return done

    with patch.multiple(Emulator, start=start, wait=wait):
        yield clock


def generate(llama: Llama, temperature: float, sequences: int = 1, n: int = TOKENS) -> float:
    """Tokens/s of `sequences` texts of `n` tokens each, on the caller's clock."""
    params = SamplingParams(n, temperature, seed=1, ignore_eos=True)
    begin = time.perf_counter()
    out = llama.generate([""] * sequences, params=params)
    seconds = time.perf_counter() - begin
    assert isinstance(out, list) and all(len(text.tokens) == n for text in out)
    return sequences * n / seconds


def stream(llama: Llama, temperature: float) -> float:
    """Tokens/s of one streamed text of 256 tokens."""
    finished: list[Generation] = []
    begin = time.perf_counter()
    params = SamplingParams(TOKENS, temperature, seed=1, ignore_eos=True)
    pieces = llama.stream("", params=params, on_finish=finished.append)
    for _ in pieces:
        pass
    seconds = time.perf_counter() - begin
    assert len(finished[0].tokens) == TOKENS
    return TOKENS / seconds


def prefill(llama: Llama) -> float:
    """Tokens/s of prefill, up to and including the first token of the answer."""
    # 128 tokens: BOS, a space, and capitals, which the random vocabulary never merges.
    text = "".join(chr(ord("A") + i * 7 % 26) for i in range(PROMPT - 2))
    out = llama.generate(text, max_new_tokens=1, temperature=0)
    assert isinstance(out, Generation) and len(out.prompt_tokens) == PROMPT
    return PROMPT / out.prompt_seconds


def host_us(llama: Llama, temperature: float, n_steps: int) -> tuple[float, float]:
    """Host time of generate() outside the kernel, in µs per token, and the tokens per call."""
    limits = replace(llama.driver.limits, max_steps=n_steps)
    with (
        patch.object(LlamaDriver, "limits", limits),
        patch.object(llama.scheduler, "call_seconds", 60.0),  # so that only max_steps limits a call
        kernel_clock() as kernel,
    ):
        seconds = HOST_TOKENS / generate(llama, temperature, n=HOST_TOKENS)
    return 1e6 * (seconds - kernel.seconds) / HOST_TOKENS, HOST_TOKENS / kernel.calls


def host_alone_us(llama: Llama, temperature: float, n_steps: int) -> float:
    """Host time in µs per token with a fake kernel that completes at once.

    The fake leaves the results of the last real call in place. The remaining time is the work of
    Python and the driver: no thread wakes, and no kernel evicts their data from the CPU's caches.
    """
    limits = replace(llama.driver.limits, max_steps=n_steps)
    names = [a.name for a in arguments(limits.channels, limits.kv_ports)]
    places = [names.index(name) for name in ("request", "results", "sequence")]

    def start(emulator: Emulator, memory: Any) -> None:
        request, results, sequence = (emulator.arguments[place] for place in places)
        status = (ctypes.c_uint32 * STATUS_WORDS).from_address(results)
        status[STATUS_STEPS] = ctypes.c_uint32.from_address(request + 4 * REQUEST_STEPS).value
        status[STATUS_SEQUENCE] = sequence

    with (
        patch.object(LlamaDriver, "limits", limits),
        patch.object(llama.scheduler, "call_seconds", 60.0),
    ):
        generate(llama, temperature, n=2 * n_steps + 1)
        with patch.multiple(Emulator, start=start, wait=lambda *_: True):
            rates = [generate(llama, temperature, n=HOST_TOKENS) for _ in range(9)]
    return 1e6 / statistics.median(rates)


def waking_us(llama: Llama) -> float:
    """Wake-up latency in µs per call: `kernel_clock` minus the kernel's own time stamps.

    The emulated device's thread wakes at the start of a call and wakes the caller at its end.
    """
    driver, rows, ticks = llama.driver, make_rows(1), 0
    rows["token"], rows["flags"] = llama.tokenizer.bos_id, RowFlag.SAMPLE
    with kernel_clock() as kernel:
        for position in range(HOST_TOKENS):
            rows["position"] = position
            ticks += int(driver.run(rows, flags=RequestFlag.PROFILE).profile[0]["end"][-1])
    return (1e6 * kernel.seconds - ticks / driver.limits.clock_mhz) / HOST_TOKENS


def one_round(llama: Llama, peer: Peer, gguf: Path, threads: int) -> Iterator[tuple[str, float]]:
    """Run every measurement once and yield (name, value); ours and theirs alternate."""
    for temperature, label in LABELS.items():
        yield f"generate, {label}", generate(llama, temperature)
        yield f"tg256 beside {label}", peer.raw(gguf, threads, 0)
        yield f"stream, {label}", stream(llama, temperature)
        theirs = peer.ask("stream", tokens=TOKENS, temperature=temperature)
        yield f"their stream, {label}", theirs
    prefill(llama)  # warm-up: llama-bench also runs its prompt once first
    yield "prefill", prefill(llama)
    yield "pp128", peer.raw(gguf, threads, PROMPT)
    yield "one sequence", generate(llama, GREEDY)
    yield "four sequences", generate(llama, GREEDY, 4)
    for temperature, label in LABELS.items():
        for n_steps in (1, 16):
            cost, per_call = host_us(llama, temperature, n_steps)
            yield f"host, {label}, n_steps={n_steps}", cost
            yield f"per call, {label}, n_steps={n_steps}", per_call
            alone = host_alone_us(llama, temperature, n_steps)
            yield f"host alone, {label}, n_steps={n_steps}", alone
    yield "waking the kernel", waking_us(llama)


@dataclass
class Row:
    """One line of the table: medians, in tokens/s unless `what` names another unit."""

    shape: str
    threads: int
    what: str
    ours: float
    target: str
    beside: str
    theirs: float | None = None
    ratio: float | None = None
    ratios: tuple[float, float] | None = None  # lowest and highest of the rounds

    def line(self) -> str:
        """Return the row as Markdown."""
        other = ["", "", ""]
        if self.ratios is not None:
            low, high = self.ratios
            other = [f"{self.theirs:.1f}", f"{self.ratio:.2f}", f"{low:.2f}–{high:.2f}"]
        cells = [self.shape, self.threads, self.what, f"{self.ours:.1f}", *other]
        return " | ".join(["", *map(str, cells), self.target, self.beside, ""]).strip()


HEAD = "| shape | threads | what | ours | theirs | ratio | of rounds | target | beside |"


def rows(shape: str, threads: int, found: dict[str, list[float]], raw: str) -> Iterator[Row]:
    """Yield the rows of one shape and thread count, with the targets of the project's issue 3."""
    median = {name: statistics.median(values) for name, values in found.items()}
    tg = {("stories110M", 1): 1.15, ("stories110M", 2): 1.3}.get((shape, threads), 1.0)

    def row(what: str, theirs: str, target: float, beside: str) -> Row:
        mine, other = median[what], median[theirs]
        ratios = [a / b for a, b in zip(found[what], found[theirs])]
        spread = min(ratios), max(ratios)
        return Row(shape, threads, what, mine, f"{target:g}", beside, other, mine / other, spread)

    for label in LABELS.values():
        for how in ("generate", "stream"):
            yield row(f"{how}, {label}", f"tg256 beside {label}", tg, f"{raw} tg256")
        yield row(f"stream, {label}", f"their stream, {label}", 1.3, "llama-cpp-python's stream")
    yield row("prefill", "pp128", 0.7, f"{raw} pp128")
    yield row("four sequences", "one sequence", 1.7 if threads == 1 else 2.0, "ours, of one")
    for name in (name for name in median if name.startswith("host, ")):
        per_call = f"{median[name.replace('host', 'per call')]:.1f} tokens a call"
        limit = "< 50" if name.endswith("n_steps=1") else "< 5"
        yield Row(shape, threads, f"{name}: µs a token", median[name], limit, per_call)
        alone = name.replace("host", "host alone")
        beside = "a kernel that answers at once"
        yield Row(shape, threads, f"{alone}: µs a token", median[alone], limit, beside)
    what = "waking the kernel"
    yield Row(shape, threads, f"{what}: µs a call", median[what], "", "not in the above")


@contextmanager
def ours(checkpoint: Path, tokenizer: Path, threads: int) -> Iterator[Llama]:
    """Load our model on an emulated device."""
    # Own name, own lock: a notebook on this machine may hold the default device.
    device = EmulatedDevice(threads=threads, name="emulated-against-peers")
    with LlamaOverlay(device=device) as overlay:
        llama = overlay.load_model(checkpoint, tokenizer)
        yield llama


def assert_same_model(llama: Llama, peer: Peer) -> None:
    """Assert that both sides run the same weights: their logits differ by rounding only."""
    ids = [1, *range(300, 30000, 2000)]
    mine, their = llama.logits(ids), np.array(peer.ask("logits", tokens=ids))
    error = float(np.sqrt(np.mean((mine - their) ** 2)) / their.std())
    assert error < 0.05, f"the two models' logits differ by {100 * error:.1f}% of their spread"


def check(peer: Peer, folder: Path) -> None:
    """Assert that llama.cpp and our reference agree on stories260K in float32: logits and text."""
    model, tokenizer, gguf = (
        SHARED / "stories260K.bin",
        SHARED / "tok512.bin",
        folder / "check.gguf",
    )
    if not model.exists():
        sys.exit(f"--check needs {model}: put the real models there, or drop --check")
    with load_checkpoint(model) as checkpoint:
        reference = FloatModel(checkpoint)
    peer.ask(
        "convert", checkpoint=str(model), tokenizer=str(tokenizer), to=str(gguf), quantized=False
    )
    peer.ask("open", path=str(gguf), threads=1, context=512)
    ids = json.loads((SHARED / "stories260K.oracle.json").read_text())["greedy_ids"][:200]
    mine = reference.forward(ids, range(len(ids)))
    their = np.array(peer.ask("logits", tokens=ids))
    worst = float(np.abs(mine - their).max())
    same = int((mine.argmax(1) == their.argmax(1)).sum())
    print(f"check: stories260K, float32, {len(ids)} tokens: largest logit difference "
          f"{worst:.4f}, same greedy token at {same}")  # fmt: skip
    assert worst < 0.05 and same == len(ids), "the conversion to GGUF is wrong"


def read_gb_per_s(threads: int) -> float:
    """Memory read bandwidth: NumPy's max over 512 MiB, the best of five."""
    parts = np.array_split(np.ones(1 << 27, np.float32), threads)
    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(5):
            begin = time.perf_counter()
            list(pool.map(np.max, parts))
            best = min(best, time.perf_counter() - begin)
    return sum(part.nbytes for part in parts) / best / 1e9


def machine() -> dict[str, Any]:
    """Describe the machine: CPU, cores, load, memory read bandwidth."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    of = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    # The CPU name that a virtual machine reports may not tell the generation.
    family = f" (family {of['cpu family']}, model {of['model']})" if "cpu family" in of else ""
    cores = os.cpu_count() or 1
    return {
        "date": time.strftime("%Y-%m-%d %H:%M %Z"),
        "cpu": of.get("model name", platform.processor()) + family,
        "cores": cores,
        "load": os.getloadavg()[0],
        "memory read by NumPy, GB/s, 1 thread": round(read_gb_per_s(1), 1),
        f"memory read by NumPy, GB/s, {cores} threads": round(read_gb_per_s(cores), 1),
    }


def table(found: list[Row], about: dict[str, Any]) -> str:
    """Format the results as Markdown."""
    lines = [f"- {name}: {value}" for name, value in about.items()]
    return "\n".join([*lines, "", HEAD, "|---" * 9 + "|", *(row.line() for row in found)])


def run(shape: str, threads: int, rounds: int, peer: Peer, folder: Path) -> list[Row]:
    """Measure one shape with one thread count."""
    checkpoint, tokenizer = random_model(shape)
    gguf = folder / f"{shape}.gguf"
    if not gguf.exists():
        peer.ask("convert", checkpoint=str(checkpoint), tokenizer=str(tokenizer), to=str(gguf))
    peer.ask("open", path=str(gguf), threads=threads, context=2 * TOKENS)
    with ours(checkpoint, tokenizer, threads) as llama:
        assert_same_model(llama, peer)
        found: dict[str, list[float]] = {}
        for i in range(rounds + 1):
            print(f"{shape}, {threads} threads: round {i} of {rounds}", file=sys.stderr)
            for name, value in one_round(llama, peer, gguf, threads):
                if i:  # round 0 is the warm-up: it wakes threads and touches memory
                    found.setdefault(name, []).append(value)
    return list(rows(shape, threads, found, peer.raw_name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    names = [name.removeprefix("stories") for name in STORIES]
    add("--shapes", nargs="+", choices=names, default=["15M", "110M"])
    add("--threads", nargs="+", type=int, default=[1, 2])
    add("--rounds", type=int, default=5, help="rounds per median (%(default)s)")
    add("--peer-python", default=sys.executable, metavar="PYTHON",
        help="a Python with llama-cpp-python and gguf (this one)")  # fmt: skip
    add("--llama-bench", metavar="PATH", help="default: the one in the PATH, if any")
    add("--check", action="store_true", help="compare the two on stories260K first")
    add("--json", type=Path, metavar="FILE", help="write the figures here too")
    add("--markdown", type=Path, metavar="FILE", help="write the table here too")
    args = parser.parse_args()
    peer = Peer(args.peer_python, args.llama_bench)
    about = {**machine(), "ours": "llama_pynq, the emulated device, int8 weights",
             "theirs": f"{peer.name}, {peer.raw_name}; Q8_0, its defaults",
             "rounds": args.rounds}  # fmt: skip
    if about["load"] > 0.3:
        print("this machine is not idle: expect low and noisy figures", file=sys.stderr)
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        if args.check:
            check(peer, Path(folder))
        for shape in args.shapes:
            for threads in args.threads:
                found += run(f"stories{shape}", threads, args.rounds, peer, Path(folder))
    text = table(found, about)
    print(text)
    if args.markdown:
        args.markdown.write_text(text + "\n", encoding="utf-8")
    if args.json:
        report = {"machine": about, "rows": [asdict(row) for row in found]}
        args.json.write_text(json.dumps(report, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
