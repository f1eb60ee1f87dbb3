"""The kernel as a plain shared library: no PYNQ, no overlay, one call a function call."""

from __future__ import annotations

import ctypes
import hashlib
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np

from llama_pynq import contract
from llama_pynq.emulation.build import compile_kernel
from llama_pynq.interface import arguments, board_constants, top_function
from llama_pynq.packing import QuantizedModel, Target, channel_bytes, pack_channels
from llama_pynq.reference import rope_turns

REPOSITORY = Path(__file__).parents[1]
HLS_SRC = REPOSITORY / "hls_src"
BOARDS = sorted(p.stem for p in (HLS_SRC / "boards").glob("*.h"))


def _sources_hash(*extra: str) -> str:
    digest = hashlib.sha256("\0".join(extra).encode())
    for path in sorted([*HLS_SRC.rglob("*.h"), *HLS_SRC.rglob("*.cpp"),
                        *(REPOSITORY / "tests" / "hls").iterdir(),
                        REPOSITORY / "llama_pynq" / "interface.py"]):  # fmt: skip
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def compiled(name: str, sources: list[Path], flags: tuple[str, ...]) -> Path:
    """Compile once per content; kept in the system's temporary folder."""
    key = _sources_hash(name, *map(str, flags))
    folder = Path(tempfile.gettempdir()) / "llama_pynq_tests"
    folder.mkdir(exist_ok=True)
    library = folder / f"{name}-{key}.so"
    if not library.exists():
        include = [HLS_SRC, REPOSITORY / "tests" / "hls"]
        compile_kernel(sources, include, library, "native", extra_flags=flags)
    return library


class KernelLibrary:
    """One board's kernel, compiled by g++.

    Parameters
    ----------
    board : str
        Stem of a header in hls_src/boards.
    streams : bool
        With the fabric's streams and loaders instead of the host's cursor.
    """

    def __init__(self, board: str = "host", streams: bool = False, threads: int = 1) -> None:
        header = HLS_SRC / "boards" / f"{board}.h"
        top = Path(tempfile.mkdtemp()) / "top.cpp"
        top.write_text(top_function(header))
        flags = [f'-DLLAMA_BOARD_HEADER="boards/{board}.h"']
        if streams:
            flags.append("-DLLAMA_STREAMS")
        name = f"{board}{'-streams' if streams else ''}"
        path = compiled(name, [top, HLS_SRC / "host" / "emulator.cpp"], tuple(flags))
        self.channels = board_constants(header)["kChannels"]
        self.arguments = arguments(self.channels)
        self._library = ctypes.CDLL(str(path))
        self._library.emulator_new.restype = ctypes.c_void_p
        self._emulator = ctypes.c_void_p(self._library.emulator_new(threads))
        self._sequence = 0
        words = np.zeros(4096, np.uint32)
        self._call({"results": words}, command=contract.COMMAND_DESCRIBE)
        self.limits = contract.KernelLimits.from_words(words)

    def _call(self, buffers: dict[str, np.ndarray], command: int) -> None:
        self._sequence += 1
        args = (ctypes.c_uint64 * 64)()
        for i, argument in enumerate(self.arguments):
            if argument.name == "command":
                args[i] = command
            elif argument.name == "sequence":
                args[i] = self._sequence
            elif argument.name in buffers:
                args[i] = buffers[argument.name].ctypes.data
        assert self._library.emulator_start(self._emulator, args) == 0
        while not self._library.emulator_wait(self._emulator, 1_000_000):
            pass


@lru_cache
def kernel_library(board: str = "host", streams: bool = False, threads: int = 1) -> KernelLibrary:
    return KernelLibrary(board, streams, threads)


def aligned(n_bytes: int) -> np.ndarray:
    """Zeroed bytes at a page boundary, as device memory is."""
    raw = np.zeros(n_bytes + 4096, np.uint8)
    start = -raw.ctypes.data % 4096
    return raw[start : start + n_bytes]


class KernelSession:
    """A model in a kernel's memory; ``run`` is one call.

    Parameters
    ----------
    library : KernelLibrary
    model : QuantizedModel
        Anything with config, group_size, matrix() and vector().
    slots : int
    """

    def __init__(self, library: KernelLibrary, model: QuantizedModel, slots: int = 4) -> None:
        self.library, self.limits = library, library.limits
        config, size = model.config, model.group_size
        self.config = config
        target = Target.of(self.limits)
        self.buffers = {}
        for c, part in enumerate(pack_channels(model, target)):
            assert len(part) == channel_bytes(config, size, target)[c]
            buffer = aligned(len(part))
            buffer[:] = part
            self.buffers[f"weights_{c}"] = buffer
        words = np.zeros(self.limits.model_words, np.uint32)
        values = [contract.MAGIC, contract.ABI_VERSION, config.dim, config.hidden_dim,
                  config.n_layers, config.n_heads, config.n_kv_heads, config.vocab_size,
                  config.seq_len, size, int(config.tied),
                  int(np.float32(config.rope_theta).view(np.uint32)), slots]  # fmt: skip
        words[: len(values)] = values
        table = rope_turns(config.head_size, config.rope_theta).view(np.uint32)
        words[contract.MODEL_ROPE_TABLE : contract.MODEL_ROPE_TABLE + len(table)] = table
        stride = -(-config.head_size // contract.REDUCE_LANES) * contract.REDUCE_LANES
        blocks = -(-config.seq_len // contract.BLOCK)
        heads = slots * config.n_layers * config.n_kv_heads
        self.buffers |= {
            "model": words,
            # Stale memory is not zero: NaN shows any read of it.
            "kv_cache": aligned(heads * blocks * 2 * contract.BLOCK * stride * 4),
            "request": np.zeros(self.limits.request_words, np.uint32),
            "results": np.zeros(self.limits.results_words, np.uint32),
            "logits": np.zeros((self.limits.max_rows, config.vocab_size), np.float32),
            "activations": np.zeros((self.limits.max_rows, config.dim), np.float32),
            "profile": np.zeros(
                self.limits.profile_step_words * self.limits.max_steps, np.uint32
            ),
        }
        self.buffers["kv_cache"].view(np.float32)[:] = np.nan

    def run(self, tokens, positions, slots=None, *, sample=None, full=True, temperature=0.0, seed=0,
            steps=1, layers=None, flags=0, stop=(), abort=None):  # fmt: skip
        """One call; returns (status words, results of (steps, rows), logits of (rows, vocab))."""
        n = len(tokens)
        rows = np.zeros(n, contract.ROW_DTYPE)
        rows["token"], rows["position"] = tokens, positions
        rows["slot"] = 0 if slots is None else slots
        sampled = np.ones(n, bool) if sample is None else np.asarray(sample)
        rows["flags"] = sampled * (contract.RowFlag.SAMPLE | full * contract.RowFlag.FULL_LOGITS)
        rows["temperature"], rows["seed"] = temperature, seed
        request = self.buffers["request"]
        request[:] = 0
        begin, end = layers or (0, self.config.n_layers)
        request[: contract.REQUEST_STOP_TOKENS + 1] = [n, steps, begin, end, flags, len(stop)]
        request[contract.REQUEST_STOP_LIST : contract.REQUEST_STOP_LIST + len(stop)] = stop
        base = contract.REQUEST_ROW_BASE
        request[base : base + n * contract.ROW_WORDS] = rows.view(np.uint32)
        if abort is not None:
            request[contract.REQUEST_ABORT] = abort
        self.library._call(self.buffers, contract.COMMAND_RUN)
        words = self.buffers["results"]
        dtype = self.limits.result_dtype
        count = steps * n * dtype.itemsize // 4
        results = words[contract.STATUS_WORDS : contract.STATUS_WORDS + count].view(dtype)
        return (
            words[: contract.STATUS_WORDS].copy(),
            results.reshape(steps, n).copy(),
            self.buffers["logits"].reshape(-1)[: n * self.config.vocab_size]
            .reshape(n, -1).copy(),
        )  # fmt: skip
