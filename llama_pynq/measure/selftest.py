"""Self-test: check a device's results stage by stage, and measure its speed.

The kernel's arithmetic is a specification, so each stage of a small model has one right answer,
kept here as a hash (`GOLDEN`). If a stage differs, the NumPy reference locates the difference:
the position, or the weight channel or KV port. The report is text to paste into an issue.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import platform
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version as installed_version
from pathlib import Path

import numpy as np
import pynq

from llama_pynq import __version__
from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.checkpoint.load import load_checkpoint
from llama_pynq.checkpoint.random import random_model, write_random_checkpoint
from llama_pynq.driver import LlamaDriver
from llama_pynq.engine.llama import Llama
from llama_pynq.engine.results import Generation
from llama_pynq.errors import KernelTimeout
from llama_pynq.estimate.predict import predict
from llama_pynq.kernel.abi import RequestFlag, RowFlag, Stage, make_rows
from llama_pynq.kernel.reference import KernelModel
from llama_pynq.llama_overlay import LlamaOverlay
from llama_pynq.measure.timing import board_of, measure_steps
from llama_pynq.utils.files import sha256_of
from llama_pynq.weights.packed import open_packed, write_packed
from llama_pynq.weights.quantize import QuantizedModel

CONFIG = ModelConfig(192, 344, 2, 24, 12, 640, 96, tied=True)
"""Model with golden answers: it has rows for every weight channel, heads for every KV port."""

FORMATS = {
    "int8/32": (32, 8, 32),
    "int8/64": (64, 8, 32),
    "int4/64, int8 KV": (64, 4, 8),
}
"""Group size, bits of a weight, bits of the KV cache, by name."""

GOLDEN = {
    "int8/32": {
        "embedding": "79d424d97a1acc3c",
        "keys and values": "714af22e1e18659f",
        "layers": "2a111b355c9948d4",
        "classifier": "28f6785feeeff920",
        "sampling": "dcc0542fca801b3b",
        "many steps": "3900bdd86a720358",
    },
    "int8/64": {
        "embedding": "ad94334309a4dfa6",
        "keys and values": "afe160528370ae7b",
        "layers": "4c95529891bf21ef",
        "classifier": "fac5b33e1d550f85",
        "sampling": "6bacb20e7f785410",
        "many steps": "92a6f5e897e6150a",
    },
    "int4/64, int8 KV": {
        "embedding": "070c24ef838efba6",
        "keys and values": "77f4a9457c42b003",
        "layers": "ba4947ef77140ec2",
        "classifier": "2ef74a4d8683f9ce",
        "sampling": "67fad3d2f7815f17",
        "many steps": "8f382aeb4542e3f9",
    },
}
"""First 16 digits of the SHA-256 of each stage's answer, by format and stage."""

STORY = "2601cb3b689ecb0b"
"""Likewise, of the tokens that the bundled model generates."""

TOKENS = [(31 * i + 5) % CONFIG.vocab_size for i in range(24)]
SLOT, SLOTS = 1, 2
STEPS = 16  # per call; every board takes as many
TOP = 16  # logits that every board returns
_SEED = 2**40 + 3
_ROUND_TRIP_BYTES = 4 << 20
_REPEATS = 5
_CLOCK_STEPS = 64
_AGAIN = 20
_AS_REFERENCE = "but equal to the reference on this host: is NumPy's arithmetic IEEE here?"

Outcome = tuple[bool | None, str]


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes
    ----------
    name : str
    passed : bool or None
        None: it does not apply to this device.
    detail : str
        The result; of a failure, also its place and likely cause.
    """

    name: str
    passed: bool | None
    detail: str

    @property
    def line(self) -> str:
        """The check as a line of the report."""
        mark = {True: "ok", False: "FAILED", None: "-"}[self.passed]
        return f"{mark:<6}  {self.name:<36}  {self.detail}"


@dataclass
class SelfTest:
    """Result of `run`.

    Attributes
    ----------
    about : list of str
        Device, overlay and versions.
    checks : list of Check
    figures : list of str
        Speed, each measured or modelled.
    interrupted : bool
        Ctrl-C ended the test early.
    """

    about: list[str]
    checks: list[Check] = field(default_factory=list)
    figures: list[str] = field(default_factory=list)
    interrupted: bool = False

    @property
    def passed(self) -> bool:
        """Whether no check failed, and none is missing."""
        return not self.interrupted and all(check.passed is not False for check in self.checks)

    @property
    def verdict(self) -> str:
        """One-line summary."""
        failed = [check.name for check in self.checks if check.passed is False]
        done = sum(check.passed is not None for check in self.checks)
        if self.interrupted:
            return f"interrupted after {done} checks; failed so far: {'; '.join(failed) or 'none'}"
        if failed:
            return f"{len(failed)} of {done} checks FAILED: {'; '.join(failed)}"
        return f"all {done} checks passed"

    def text(self) -> str:
        """Return the whole report as text."""
        checks = [check.line for check in self.checks]
        return "\n".join([*self.about, "", *checks, "", *self.figures, "", self.verdict])


def run(
    overlay: LlamaOverlay,
    shape: str | None = "stories15M",
    show: Callable[[str], None] = lambda line: None,
) -> SelfTest:
    """Test a device. This replaces the model that is loaded.

    Parameters
    ----------
    overlay : LlamaOverlay
    shape : str, optional
        Shape of the random weights to measure speed with, a name of `shapes.STORIES`; None: use
        the bundled model.
    show : callable
        Called with each line as soon as it is known.
    """
    found = SelfTest(_about(overlay))
    for line in found.about:
        show(line)
    show("")
    try:
        for check in _made(overlay):
            found.checks.append(check)
            show(check.line)
        show("")
        found.figures += _figures(overlay, shape)
    except KeyboardInterrupt:
        found.interrupted = True
    for line in (*found.figures, "", found.verdict):
        show(line)
    return found


def _made(overlay: LlamaOverlay) -> Iterator[Check]:
    """Run the checks; an exception is a failed check, so that there is always a report."""
    try:
        for name, check in _checks(overlay):
            try:
                yield Check(name, *check())
            except KernelTimeout as error:
                yield Check(name, False, _said(error))
                overlay.reset()  # a hung kernel would fail all later checks
            except Exception as error:  # PYNQ, XRT and the system raise their own
                yield Check(name, False, _said(error))
    except Exception as error:
        yield Check("the checks that follow", False, f"not made: {_said(error)}")


def _figures(overlay: LlamaOverlay, shape: str | None) -> list[str]:
    try:
        return _speed(overlay, shape)
    except Exception as error:
        return [f"no speed: {_said(error)}"]


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _about(overlay: LlamaOverlay) -> list[str]:
    file = Path(overlay.bitfile_name)
    machine = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    built = [] if overlay.record is None else [f"built    {overlay.record.origin}"]
    now = datetime.now(timezone.utc)
    return [
        f"llama_pynq {__version__} self-test, {now:%Y-%m-%d %H:%M} UTC",
        f"device   {overlay.describe()}",
        f"overlay  {file.name}, sha256 {sha256_of(file)}",
        *built,
        f"host     {machine}, PYNQ {pynq.__version__}, NumPy {installed_version('numpy')}",
    ]


def _checks(overlay: LlamaOverlay) -> Iterator[tuple[str, Callable[[], Outcome]]]:
    driver = overlay.llama
    yield "kernel", lambda: _identity(driver)
    yield "host to memory and back", lambda: _round_trip(overlay)
    for name, (group_size, weight_bits, kv_bits) in FORMATS.items():
        with contextlib.closing(_Small(driver, group_size, weight_bits, kv_bits)) as small:
            yield f"{name}: weight channels", small.table
            if small.loaded:
                for stage in small.STAGES:
                    yield f"{name}: {stage}", functools.partial(small.check, name, stage)
    yield "a story", lambda: _story(overlay)
    yield "the same story, again and again", lambda: _again(overlay)
    yield "the kernel's clock", lambda: _clock(overlay)


def _identity(driver: LlamaDriver) -> Outcome:
    k = driver.limits
    return True, (
        f"{k.board}, contract {k.abi}: {k.channels} weight channels of {k.beat_bytes} bytes, "
        f"{k.kv_ports} KV ports of {k.kv_beat_bytes}, {k.max_rows} rows, {k.clock_mhz} MHz"
    )


def _round_trip(overlay: LlamaOverlay) -> Outcome:
    """Write every memory bank from the host, clear the host's copy, and read the bank back."""
    from pynq.pl_server.embedded_device import EmbeddedDevice

    if isinstance(overlay.device, EmbeddedDevice):
        return None, "processor and fabric share one memory: see the weight channels"
    banks: dict[str, list[str]] = {}
    for name, bank in overlay.llama.banks().items():
        banks.setdefault(bank or "the one memory", []).append(name)
    wrong = []
    for bank in banks:
        target = overlay.device.get_memory_by_name(bank) if bank in overlay.mem_dict else None
        buffer = pynq.allocate((_ROUND_TRIP_BYTES // 8,), "u8", target=target or overlay.device)
        try:
            pattern = np.arange(buffer.size, dtype="u8") * np.uint64(0x9E3779B97F4A7C15)
            buffer[:] = pattern
            buffer.sync_to_device()
            buffer[:] = 0
            buffer.sync_from_device()
            if not np.array_equal(buffer, pattern):
                wrong.append(f"{bank} (of {', '.join(banks[bank])})")
        finally:
            buffer.freebuffer()
    where = f"each of {len(banks)} banks" if len(banks) > 1 else "the board's memory"
    size = f"{_ROUND_TRIP_BYTES >> 20} MiB in {where}"
    return not wrong, f"{size}; wrong: {'; '.join(wrong)}" if wrong else size


# ---- a small model, stage by stage ----------------------------------------------------


def digest(*arrays: np.ndarray) -> str:
    """First 16 digits of the SHA-256 of the arrays' bits, little-endian."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes())
    return sha.hexdigest()[:16]


class _Small:
    """The small model in one format, on the device."""

    STAGES = ("embedding", "keys and values", "layers", "classifier", "sampling", "many steps")

    def __init__(
        self, driver: LlamaDriver, group_size: int, weight_bits: int, kv_bits: int
    ) -> None:
        self._driver, self._kv_bits = driver, kv_bits
        with contextlib.ExitStack() as files:
            folder = Path(files.enter_context(tempfile.TemporaryDirectory()))
            with (folder / "model.bin").open("wb") as file:
                write_random_checkpoint(file, CONFIG, seed=1)
            checkpoint = files.enter_context(load_checkpoint(folder / "model.bin"))
            model = QuantizedModel(checkpoint, group_size, weight_bits)
            write_packed(model, driver.limits.target, folder / "model.safetensors")
            self._packed = open_packed(folder / "model.safetensors")
            self._reference = KernelModel(model, kv_bits)
            self._files = files.pop_all()
        self._stream: np.ndarray | None = None

    def close(self) -> None:
        """Remove the model's files."""
        self._files.close()

    @property
    def loaded(self) -> bool:
        """Whether the model's weights are on the device."""
        return self._driver.packed is self._packed

    def _load(self) -> None:
        """Load the weights if the device does not have them, as after a reset."""
        if not self.loaded:
            self._stream = None
            self._driver.load_weights(self._packed, SLOTS, self._kv_bits)

    def table(self) -> Outcome:
        """Read the whole embedding through the kernel, and so from every weight channel."""
        self._load()
        tokens = list(range(CONFIG.vocab_size))
        positions = [i % CONFIG.seq_len for i in tokens]  # arbitrary, but distinct in a call
        got = self._through(tokens, positions, (0, 0), None)
        different = (got != self._reference.embed(tokens)).any(axis=1)
        if different.any():
            return False, f"{different.sum()} of {len(tokens)} rows differ: {self._at(different)}"
        return True, f"{len(tokens)} rows, each read by the kernel from its channel"

    def _at(self, different: np.ndarray) -> str:
        """Name the channels that hold the output rows that differ."""
        limits = self._driver.limits
        channels = np.flatnonzero(different) // limits.tile_rows % limits.channels
        count = np.bincount(channels, minlength=limits.channels)
        if (count > 0).all():
            return "of every weight channel"
        return "of " + ", ".join(f"weights_{c}" for c in np.flatnonzero(count))

    def check(self, format_name: str, stage: str) -> Outcome:
        """Compute a stage on the device, and compare its hash with the golden one."""
        arrays = self.compute(stage)
        got, golden = digest(*arrays), GOLDEN[format_name][stage]
        if got == golden:
            return True, got
        return False, f"{got}, not {golden}: {self._where(stage, arrays)}"

    def compute(self, stage: str) -> tuple[np.ndarray, ...]:
        """Return the device's results of a stage."""
        self._load()
        c, driver = CONFIG, self._driver
        stream = self._residual_stream()
        if stage == "embedding":
            return (stream[0],)
        if stage == "keys and values":
            return (driver.read_cache(SLOT, len(TOKENS)),)
        if stage == "layers":
            return (stream[1:],)
        last = len(TOKENS) - 1
        rows = make_rows(1)
        rows["token"], rows["position"], rows["slot"] = TOKENS[last], last, SLOT
        rows["flags"] = RowFlag.SAMPLE | RowFlag.FULL_LOGITS
        if stage == "many steps":
            rows["temperature"], rows["seed"] = 0.9, _SEED
            with driver.exclusive():
                steps = driver.run(rows, n_steps=STEPS).rows
            return steps["token"], steps["lse"]
        with driver.exclusive():
            layers, x = (c.n_layers, c.n_layers), stream[-1, last:]
            if stage == "classifier":
                driver.run(rows, layers=layers, activations=x)
                return (driver.read_logits(0),)
            rows["temperature"], rows["seed"], rows["top_k"] = 0.8, _SEED, 12
            (result,) = driver.run(rows, layers=layers, activations=x).rows[0]
        return tuple(
            np.atleast_1d(part)
            for part in (
                result["token"],
                result["lse"],
                result["lse_temperature"],
                result["top"]["id"][:TOP],
                result["top"]["logit"][:TOP],
            )
        )

    def _residual_stream(self) -> np.ndarray:
        """(n_layers + 1, n, dim) float32: before each layer and after the last; fills the cache."""
        if self._stream is None:
            c, positions = CONFIG, list(range(len(TOKENS)))
            parts = [self._through(TOKENS, positions, (0, 0), None)]
            for layer in range(c.n_layers):
                parts.append(self._through(TOKENS, positions, (layer, layer + 1), parts[-1]))
            self._stream = np.stack(parts)
        return self._stream

    def _through(
        self,
        tokens: list[int],
        positions: list[int],
        layers: tuple[int, int],
        x: np.ndarray | None,
    ) -> np.ndarray:
        """Residual stream after the given layers, (n, dim) float32."""
        driver, n = self._driver, len(tokens)
        most = driver.limits.max_rows
        out = []
        for first in range(0, n, most):
            part = slice(first, min(first + most, n))
            rows = make_rows(part.stop - first)
            rows["token"], rows["position"], rows["slot"] = tokens[part], positions[part], SLOT
            with driver.exclusive():
                driver.run(
                    rows,
                    layers=layers,
                    activations=None if x is None else x[part],
                    flags=RequestFlag.ACTIVATIONS_OUT,
                )
                out.append(driver.read_activations(len(rows)))
        return np.concatenate(out)

    def _where(self, stage: str, arrays: tuple[np.ndarray, ...]) -> str:
        """Say where a stage differs from the reference, given the device's input to the stage."""
        c, n, stream = CONFIG, len(TOKENS), self._residual_stream()
        positions, slots = list(range(n)), [SLOT] * n
        self._reference.reset()
        if stage == "embedding":
            tokens = np.zeros(c.vocab_size, bool)
            tokens[np.array(TOKENS)] = (arrays[0] != self._reference.embed(TOKENS)).any(axis=1)
            return f"rows {self._at(tokens)}" if tokens.any() else _AS_REFERENCE
        expected = [
            self._reference.layer(i, stream[i], positions, slots) for i in range(c.n_layers)
        ]
        if stage == "keys and values":
            different = (arrays[0] != self._reference.cached(SLOT, n)).any(axis=(0, 1, 3, 4))
            ports = {int(head) % self._driver.limits.kv_ports for head in np.flatnonzero(different)}
            names = ", ".join(f"kv_cache_{port}" for port in sorted(ports))
            return f"of {names}" if ports else _AS_REFERENCE
        if stage == "layers":
            for i in range(c.n_layers):
                different = (arrays[0][i] != expected[i]).any(axis=1)
                if different.any():
                    first = int(np.flatnonzero(different)[0])
                    return f"layer {i} differs at {different.sum()} of {n} positions, first {first}"
            return _AS_REFERENCE
        if stage == "classifier":
            different = arrays[0] != self._reference.classify(stream[-1, -1:])[0]
            return f"logits {self._at(different)}" if different.any() else _AS_REFERENCE
        return "the classifier's check says whether its logits are right"


def _story(overlay: LlamaOverlay) -> Outcome:
    llama = overlay.load_model()
    out = llama.generate("Once upon a time", max_new_tokens=80, temperature=0.8, top_p=0.9, seed=1)
    assert isinstance(out, Generation)
    got = digest(np.array(out.tokens, "<i4"))
    text = f"Once upon a time{out.text}…".replace("\n", " ")
    return got == STORY, f"{got}: {text}" if got == STORY else f"{got}, not {STORY}: {text}"


def _again(overlay: LlamaOverlay) -> Outcome:
    """Repeat one text: a design that just misses timing errs only now and then."""
    llama = overlay.llama.model
    texts = set()
    for _ in range(_AGAIN):
        out = llama.generate("The little fox", max_new_tokens=200, temperature=0.8, seed=2)
        assert isinstance(out, Generation)
        texts.add(tuple(out.tokens))
    if len(texts) > 1:
        return False, f"{len(texts)} different texts of one seed in {_AGAIN}: timing, heat or power"
    return True, f"{_AGAIN} times {len(texts.pop())} tokens, all alike"


def _clock(overlay: LlamaOverlay) -> Outcome:
    """Bound the kernel's clock from below: its cycles over the host's time of the call."""
    driver, expected = overlay.llama, overlay.clock_mhz
    steps = min(_CLOCK_STEPS, driver.limits.max_steps)
    best = 0.0
    for _ in range(_REPEATS):
        rows = make_rows(1)
        rows["flags"] = RowFlag.SAMPLE
        with driver.exclusive():
            done = driver.run(rows, n_steps=steps, flags=RequestFlag.PROFILE)
        if any(len(step) == 0 for step in done.profile):
            return False, "the kernel's profile is empty: it recorded no time stamps"
        cycles = sum(int(step["end"][-1]) - int(step["begin"][0]) for step in done.profile)
        best = max(best, cycles / done.elapsed_s / 1e6)
    text = f"{best:.1f} MHz at least, by the host's time; expected: {expected:g}"
    if best > 1.02 * expected:
        return False, f"{text}: it is faster than it was built for, or than its record says"
    return True, text


# ---- speed ----------------------------------------------------------------------------


def _speed(overlay: LlamaOverlay, shape: str | None) -> list[str]:
    """Report measured speed and bandwidth, and the cycle model's prediction for the board."""
    llama = overlay.load_model(*(random_model(shape) if shape else ()))
    position = min(255, llama.config.seq_len - 1)
    (step,) = measure_steps(overlay, [position], _REPEATS)
    rate = _decode(llama, position + 1)
    classifier = step.us(Stage.CLASSIFIER)
    who = f"measured, the kernel's time stamps of {overlay.clock_mhz:g} MHz"
    lines = [
        f"speed with {'random weights of ' + shape if shape else 'the bundled model'}, "
        f"{llama.packed.weight_bytes / 1e6:.1f} MB of weights, one sequence, position {position}",
        f"  decode             {rate:10,.1f} tokens/s  (measured, host's clock, median of "
        f"{_REPEATS})",
        f"  a step             {step.total_us:10,.1f} us        ({who})",
        f"  its bytes          {sum(step.bytes.values()) / step.total_us / 1e3:10,.2f} GB/s      "
        f"({who})",
        f"  the classifier's   {step.stage_bytes(Stage.CLASSIFIER) / classifier / 1e3:10,.2f} "
        f"GB/s      ({who})",
    ]
    board = board_of(overlay)
    if board is None:
        return [*lines, "  no board: nothing to expect of this computer"]
    packed = llama.packed
    # Predict at the middle position: the rate is a mean over all positions of the text.
    expected = predict(
        packed.config, board, position=position // 2, weight_bits=packed.weight_bits,
        group_size=packed.group_size, kv_bits=overlay.llama.kv_bits,
    )  # fmt: skip
    roof = f"{expected.share_of_roof:.0%} of the memory's roof"
    reads = board.memory.peak_bytes_per_s * board.memory.efficiency / 1e9
    lines.append(
        f"  its memory gives   {reads:10,.2f} GB/s      (peak times efficiency of long reads: "
        "llama_pynq/boards.py)"
    )
    lines.append(
        f"  a {board.title} should decode {expected.tokens_per_second:,.1f} tokens/s of it, {roof} "
        "(modelled)"
    )
    if overlay.is_board:
        lines.append(f"  measured over modelled: {rate / expected.tokens_per_second:.2f}")
    else:
        lines.append("  the figures above are of this computer's CPU: nothing to compare")
    return lines


def _decode(llama: Llama, tokens: int) -> float:
    """Median tokens/s of one sequence, by the host's clock, from the first token to the last."""
    rates = []
    for _ in range(_REPEATS):
        out = llama.generate("", max_new_tokens=tokens, temperature=0, seed=0, ignore_eos=True)
        assert isinstance(out, Generation) and out.tokens_per_second is not None
        rates.append(out.tokens_per_second)
    return statistics.median(rates)
