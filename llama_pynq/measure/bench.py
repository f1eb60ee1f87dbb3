"""Benchmark: speed, memory and power of a device with a model."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from llama_pynq import __version__
from llama_pynq.engine.llama import Llama
from llama_pynq.engine.results import Generation
from llama_pynq.kernel.abi import RowFlag, make_rows
from llama_pynq.llama_overlay import LlamaOverlay
from llama_pynq.measure.power import PowerRecorder, Rails


@dataclass(frozen=True)
class Figure:
    """One figure of a report, with its unit, kind and source.

    Attributes
    ----------
    name : str
    value : float
    unit : str
    kind : {"measured", "counted", "modelled"}
        "measured": by a clock, a sensor or the operating system; "counted": follows from the
        model; "modelled": from the power model of a board.
    source : str
        What was measured, and how.
    """

    name: str
    value: float
    unit: str
    kind: str
    source: str


@dataclass(frozen=True)
class Report:
    """Result of `measure`.

    Attributes
    ----------
    version : str
        Of llama_pynq.
    device, model : str
        One line each.
    config : dict
        Shape of the model.
    tokens : int
        Length of the text and of the prompt measured.
    repeats : int
    figures : list of Figure
    notes : list of str
        What could not be measured, and why.
    """

    version: str
    device: str
    model: str
    config: dict[str, object]
    tokens: int
    repeats: int
    figures: list[Figure]
    notes: list[str] = field(default_factory=list)

    def json(self) -> str:
        """Return the report as JSON."""
        return json.dumps(asdict(self), indent=2, allow_nan=False)

    def table(self) -> str:
        """Return the report as a text table."""
        lines = [f"device  {self.device}", f"model   {self.model}", ""]
        width = max(len(f.name) for f in self.figures)
        lines += [
            f"{f.name:<{width}}  {_digits(f.value):>9} {f.unit:<9}  {f.kind}: {f.source}"
            for f in self.figures
        ]
        return "\n".join([*lines, *self.notes])


def _digits(value: float) -> str:
    """Format with one decimal place, or with three digits below 10."""
    return f"{value:.1f}" if abs(value) >= 10 or value == 0 else f"{value:.3g}"


def peak_memory_bytes() -> int | None:
    """Return the peak resident memory of this process so far; None if unknown."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


def _median_seconds(call: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure_energy(
    overlay: LlamaOverlay, llama: Llama, tokens: int, found: Rails, idle_s: float = 2.0
) -> tuple[list[Figure], list[str]]:
    """Determine power and energy of one text from the rails found.

    Returns
    -------
    list of Figure, list of str
        Figures and notes. Without a rail or a reading: no figures, and the reasons.
    """
    with PowerRecorder(found, idle_s=idle_s if found else 0) as recorder:
        out = llama.generate(
            "", max_new_tokens=tokens, temperature=0, seed=0, ignore_eos=True, power=recorder
        )
    assert isinstance(out, Generation)
    energy = out.energy
    if energy is None:
        return [], [f"no power: {out.energy_note}"]
    text = f"the first {len(out.tokens)} tokens; {energy.source}"
    figures = [
        Figure("power, mean", energy.mean_watts, "W", energy.kind, text),
        Figure("power, peak", energy.peak_watts, "W", energy.kind, text),
        Figure("energy", energy.joules_per_token, "J/token", energy.kind, text),
        Figure("energy, the paper's unit", energy.mwh_per_token, "mWh/token", energy.kind, text),
    ]
    if energy.idle_watts is not None:
        figures.append(Figure("power, idle", energy.idle_watts, "W", energy.kind, energy.source))
    return figures, []


def measure(
    overlay: LlamaOverlay, llama: Llama, tokens: int, repeats: int, power: Rails | None = None
) -> Report:
    """Measure decode, prefill, time to first token, load time and memory.

    Parameters
    ----------
    overlay : LlamaOverlay
    llama : Llama
        Loaded on the overlay, and idle.
    tokens : int
        Tokens to decode, and length of the prompt that prefill reads, at least 2; the context
        may shorten both.
    repeats : int
        Runs of each measurement; the median counts.
    power : Rails, optional
        From `sensors.rails`: measure power and energy too.
    """
    driver, config = llama.driver, llama.config
    length = min(tokens, config.seq_len)
    max_rows = driver.limits.max_rows

    def decode(temperature: float) -> float:
        out = llama.generate(
            "", max_new_tokens=length, temperature=temperature, seed=0, ignore_eos=True
        )
        assert isinstance(out, Generation) and out.tokens_per_second is not None
        return out.tokens_per_second

    def prefill() -> None:
        for first in range(0, length, max_rows):
            rows = make_rows(min(max_rows, length - first))
            rows["token"] = llama.tokenizer.bos_id
            rows["position"] = range(first, first + len(rows))
            if first + len(rows) == length:
                rows["flags"][-1] = RowFlag.SAMPLE
            driver.run(rows)

    def first_token() -> None:
        llama.generate("", max_new_tokens=1, temperature=0, seed=0, ignore_eos=True)

    first_token()  # warm up: the first call also wakes threads and touches memory
    greedy = statistics.median(decode(0.0) for _ in range(repeats))
    sampled = statistics.median(decode(0.8) for _ in range(repeats))
    read = _median_seconds(prefill, repeats)
    first = _median_seconds(first_token, repeats)
    peak = peak_memory_bytes()
    upload = _median_seconds(lambda: driver.adopt(llama), repeats)

    clock = f"host clock, median of {repeats}"
    text = f"the first {length} tokens"
    figures = [
        Figure("decode, greedy", greedy, "tokens/s", "measured", f"{text}; {clock}"),
        Figure("decode, top-p 0.9", sampled, "tokens/s", "measured", f"{text}; {clock}"),
        Figure("prefill", length / read, "tokens/s", "measured",
               f"{length} tokens, {max_rows} a call; {clock}"),
        Figure("time to first token", first * 1e3, "ms", "measured", f"empty prompt; {clock}"),
        Figure("load", llama.load_seconds * 1e3, "ms", "measured",
               "including packing, if not done before; host clock, once"),
        Figure("load, weights only", upload * 1e3, "ms", "measured",
               f"packed file to device; {clock}"),
        Figure("packed weights", llama.packed.weight_bytes / 2**20, "MiB", "counted",
               "on the device"),
    ]  # fmt: skip
    if peak is not None:
        figures.append(
            Figure("peak memory", peak / 2**20, "MiB", "measured",
                   "this process, with Python and PYNQ; VmHWM")
        )  # fmt: skip
    notes: list[str] = []
    if power is not None:
        of_energy, notes = measure_energy(overlay, llama, length, power)
        figures += of_energy
    return Report(
        version=__version__,
        device=overlay.describe(),
        model=f"dim {config.dim}, {config.n_layers} layers, vocabulary {config.vocab_size}; "
        f"{llama.packed.note}; KV cache {driver.kv_format}",
        config=asdict(config),
        tokens=length,
        repeats=repeats,
        figures=figures,
        notes=notes,
    )
