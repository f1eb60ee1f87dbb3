"""Speed and memory of a device with a model, measured."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from .driver import make_rows
from .llama import Llama
from .llama_overlay import LlamaOverlay


@dataclass(frozen=True)
class Figure:
    """One measured figure.

    Attributes
    ----------
    name : str
    value : float
    unit : str
    source : str
        What measured it.
    """

    name: str
    value: float
    unit: str
    source: str


def memory_bytes(peak: bool = False) -> int | None:
    """Resident memory of this process, now or at its highest; None where it is not known."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    key = "VmHWM:" if peak else "VmRSS:"
    for line in status.read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    return None


def _median_seconds(call: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(overlay: LlamaOverlay, llama: Llama, tokens: int, repeats: int) -> list[Figure]:
    """Measure decode, prefill, time to first token, load time and memory.

    Parameters
    ----------
    overlay : LlamaOverlay
    llama : Llama
        Loaded on it.
    tokens : int
        Tokens to decode, and length of the prompt that prefill reads; the context may
        shorten both.
    repeats : int
        Of each measurement; the median counts.
    """
    driver = llama.driver
    clock = "host clock, median of " + str(repeats)
    length = min(tokens, llama.config.seq_len - 1)
    limits = driver.limits

    def prefill() -> None:
        for first in range(0, length, limits.max_rows):
            n = min(limits.max_rows, length - first)
            rows = make_rows(n)
            rows["token"] = 1
            rows["position"] = range(first, first + n)
            driver.run(rows)

    def decode() -> float:
        # Through generate(), from BOS, with no token that would end it.
        start = time.perf_counter()
        driver_rows = make_rows(1)
        driver_rows["token"], driver_rows["flags"] = 1, 1
        done = 0
        while done < length:
            steps = min(limits.max_steps, length - done)
            driver_rows["position"] = done
            driver.run(driver_rows, n_steps=steps)
            done += steps
        return time.perf_counter() - start

    first = _median_seconds(lambda: llama.generate("", max_new_tokens=1, seed=0), repeats)
    read = _median_seconds(prefill, repeats)
    write = _median_seconds(decode, repeats)
    figures = [
        Figure("decode", length / write, "tokens/s", clock),
        Figure("prefill", length / read, "tokens/s", clock),
        Figure("time to first token", first * 1e3, "ms", clock),
        Figure("load", llama.load_seconds, "s", "host clock, once"),
        Figure("packed weights", llama.packed.weight_bytes / 2**20, "MiB", "size of the file"),
    ]
    peak = memory_bytes(peak=True)
    if peak is not None:
        figures.append(Figure("peak memory", peak / 2**20, "MiB", "VmHWM of this process"))
    return figures


def report(overlay: LlamaOverlay, llama: Llama, figures: list[Figure], as_json: bool) -> str:
    """The figures as a table, or as JSON."""
    c = llama.config
    model = f"dim {c.dim}, {c.n_layers} layers, vocabulary {c.vocab_size}, {llama.packed.note}"
    if as_json:
        return json.dumps(
            {
                "device": overlay.describe(),
                "model": model,
                "config": asdict(c),
                "figures": [asdict(f) for f in figures],
            },
            indent=2,
        )
    width = max(len(f.name) for f in figures)
    lines = [f"device  {overlay.describe()}", f"model   {model}", ""]
    lines += [
        f"{f.name:<{width}}  {f.value:>10.1f} {f.unit:<9} measured: {f.source}" for f in figures
    ]
    return "\n".join(lines)


def main(overlay: LlamaOverlay, llama: Llama, tokens: int, repeats: int, as_json: bool) -> None:
    """Measure and print."""
    print(
        report(overlay, llama, measure(overlay, llama, tokens, repeats), as_json), file=sys.stdout
    )
