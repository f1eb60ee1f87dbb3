"""The kernel as a plain shared library: no PYNQ, no overlay; a kernel call is a function call.

`KernelSession` holds a model in a kernel's memory, `RandomModel` is a model of any shape, and
`stage_library` gives the single stages (``hls/stages.cpp``).
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import tempfile
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
from support.paths import HLS_SRC, REPOSITORY, TESTS

from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.emulation.build import compile_kernel, default_compiler
from llama_pynq.kernel import abi, limits
from llama_pynq.kernel.config import board_constants, read_constants
from llama_pynq.kernel.reference import QuantizedWeights
from llama_pynq.kernel.registers import board_arguments
from llama_pynq.kernel.stages import QuantizedMatrix, rope_turns
from llama_pynq.kernel.top import top_function
from llama_pynq.weights.tiles import channel_bytes, pack_channels

BOARDS = sorted(p.stem for p in (HLS_SRC / "boards").glob("*.h"))


def board_header(board: str) -> Path:
    """Config header of a board: one of hls_src/boards, or the tests' own ``odd``."""
    folder = HLS_SRC if board in BOARDS else TESTS / "hls"
    return folder / "boards" / f"{board}.h"


def header_constants(board):
    """Every integer constant of the board's header, config.h and contract.h."""
    return read_constants(board_header(board), HLS_SRC / "config.h", HLS_SRC / "contract.h")


def _sources_hash(*extra: str) -> str:
    digest = hashlib.sha256("\0".join(extra).encode())
    for path in sorted([*HLS_SRC.rglob("*.h"), *HLS_SRC.rglob("*.cpp"),
                        *(TESTS / "hls").rglob("*.*"),
                        REPOSITORY / "llama_pynq" / "emulation" / "build.py",
                        *(REPOSITORY / "llama_pynq" / "kernel" / name
                          for name in ("config.py", "registers.py", "top.py"))]):  # fmt: skip
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def compiled(name: str, sources: list[Path], flags: tuple[str, ...]) -> Path:
    """Compile once per content; cached in the system's temporary folder.

    LLAMA_TEST_FLAGS in the environment adds flags, as CXX chooses the compiler.
    """
    flags = (*flags, *shlex.split(os.environ.get("LLAMA_TEST_FLAGS", "")))
    key = _sources_hash(name, *map(str, flags), default_compiler())
    user = f"-{os.getuid()}" if hasattr(os, "getuid") else ""
    folder = Path(tempfile.gettempdir()) / f"llama_pynq_tests{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    # Another user may have made it: what lies there is loaded.
    assert not user or folder.lstat().st_uid == os.getuid(), f"{folder} is another user's"
    library = folder / f"{name}-{key}.so"
    if not library.exists():
        include = [HLS_SRC, TESTS / "hls"]
        compile_kernel(sources, include, library, "native", extra_flags=flags)
    return library


def compiled_kernel(board: str, streams: bool = False) -> Path:
    """Compile a board's whole kernel to a shared library.

    The emulated device's kernel uses the flags it is shipped with; the others are compiled with
    -O1, which is fast and shows that the results do not depend on the optimiser.
    """
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder) / "top.cpp"
        top.write_text(top_function(board_header(board)))
        flags = [f'-DLLAMA_BOARD_HEADER="boards/{board}.h"']
        if streams:
            flags.append("-DLLAMA_STREAMS")
        if streams or board != "host":
            flags.append("-O1")
        name = f"{board}{'-streams' if streams else ''}"
        return compiled(name, [top, HLS_SRC / "host" / "emulator.cpp"], tuple(flags))


def compiled_stages(board: str = "host") -> Path:
    """Compile tests/hls/stages.cpp to a shared library."""
    source = TESTS / "hls" / "stages.cpp"
    flags = [f'-DLLAMA_BOARD_HEADER="boards/{board}.h"']
    if board != "host":
        flags.append("-O1")  # as in compiled_kernel
    return compiled(f"{board}-stages", [source], tuple(flags))


def compile_kernels(builds: Iterable[tuple[str, bool]]) -> None:
    """Compile several (board, streams) builds in parallel."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        list(pool.map(lambda build: compiled_kernel(*build), builds))


class StageLibrary:
    """Stages of one board's kernel; arrays are passed as pointers, numbers as int32."""

    def __init__(self, board: str) -> None:
        self._library = ctypes.CDLL(str(compiled_stages(board)))
        sizes = np.zeros(8, np.int32)
        self.call("limits", sizes)
        (self.max_rows, self.tile_rows, self.channels, self.top_logits, self.max_dim,
         self.max_qkv, self.kv_ports, self.kv_beat_bytes) = (int(n) for n in sizes)  # fmt: skip

    def call(self, stage: str, *args: np.ndarray | int) -> None:
        def word(arg):
            if isinstance(arg, np.ndarray):
                assert arg.flags.c_contiguous, stage
                return ctypes.c_void_p(arg.ctypes.data)
            return ctypes.c_int32(arg)

        getattr(self._library, f"stage_{stage}")(*map(word, args))


@lru_cache
def stage_library(board: str = "host") -> StageLibrary:
    return StageLibrary(board)


class KernelLibrary:
    """Kernel of one board, compiled by g++.

    Parameters
    ----------
    board : str
        See `board_header`.
    streams : bool
        Use the fabric's streams and loaders instead of the host's cursor.
    threads : int
        Host threads.
    """

    def __init__(self, board: str = "host", streams: bool = False, threads: int = 1) -> None:
        path = compiled_kernel(board, streams)
        constants = board_constants(board_header(board))
        self.arguments = board_arguments(constants)
        self._library = ctypes.CDLL(str(path))
        self._library.emulator_new.restype = ctypes.c_void_p
        self._emulator = ctypes.c_void_p(self._library.emulator_new(threads))
        self.sequence = 0
        words = np.zeros(abi.DESCRIBE_WORDS, np.uint32)
        self.call({"results": words}, abi.COMMAND_DESCRIBE)
        self.limits = limits.KernelLimits.from_words(words)

    def call(self, buffers: dict[str, np.ndarray], command: int) -> None:
        """Run one call to its end; arguments missing from `buffers` are null."""
        self.sequence += 1
        args = (ctypes.c_uint64 * 128)()
        for i, argument in enumerate(self.arguments):
            if argument.name == "command":
                args[i] = command
            elif argument.name == "sequence":
                args[i] = self.sequence
            elif argument.buffer in buffers:
                args[i] = buffers[argument.buffer].ctypes.data
        assert self._library.emulator_start(self._emulator, args) == 0
        while not self._library.emulator_wait(self._emulator, 1_000_000):
            pass

    def start_stream_log(self) -> None:
        """Start the stream log (build with streams only): see hls/hls_stream.h."""
        self._library.stream_log_start()

    def stream_log(self) -> tuple[np.ndarray, np.ndarray]:
        """Ids of the streams written and read since the start, numbered in order of creation."""
        logs = []
        for reads in (0, 1):
            ids = ctypes.POINTER(ctypes.c_int)()
            n = self._library.stream_log(reads, ctypes.byref(ids))
            logs.append(np.ctypeslib.as_array(ids, (n,)).copy())
        return logs[0], logs[1]


@lru_cache
def kernel_library(board: str = "host", streams: bool = False, threads: int = 1) -> KernelLibrary:
    return KernelLibrary(board, streams, threads)


def aligned(n_bytes: int) -> np.ndarray:
    """Zeroed bytes aligned to a page, like device memory."""
    raw = np.zeros(n_bytes + 4096, np.uint8)
    start = -raw.ctypes.data % 4096
    return raw[start : start + n_bytes]


class RandomModel:
    """Random int8 weights and scales, directly from a bit generator: the same on every machine.

    Implements what `KernelModel` and `pack_channels` need. Columns that pad a row to whole
    groups are random too: they must not affect the kernel's result.
    """

    def __init__(
        self, config: ModelConfig, group_size: int, seed: int = 0, weight_bits: int = 8
    ) -> None:
        self.config, self.group_size, self._seed = config, group_size, seed
        self.weight_bits = weight_bits

    def _bits(self, n: int, *key) -> np.ndarray:
        seed = zlib.crc32(repr((self._seed, *key)).encode())
        return np.random.PCG64(seed).random_raw(n)

    def _uniform(self, n: int, *key) -> np.ndarray:
        """(n,) float32 in [0, 1)."""
        return (self._bits(n, *key) >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)

    def matrix(self, name: str, layer: int | None = None) -> QuantizedMatrix:
        c = self.config
        rows, n = {
            "token_embedding_table": (c.vocab_size, c.dim), "wcls": (c.vocab_size, c.dim),
            "wq": (c.dim, c.dim), "wk": (c.kv_dim, c.dim), "wv": (c.kv_dim, c.dim),
            "wo": (c.dim, c.dim), "w1": (c.hidden_dim, c.dim), "w3": (c.hidden_dim, c.dim),
            "w2": (c.dim, c.hidden_dim),
        }[name]  # fmt: skip
        if name == "wcls" and c.tied:
            name = "token_embedding_table"
        groups = -(-n // self.group_size)
        count = rows * groups * self.group_size
        values = self._bits(-(-count // 8), name, layer).view(np.uint8)[:count]
        if self.weight_bits == 4:
            q, deviation = (values % np.uint8(16)).astype(np.int16) - 8, 4.6
        else:
            q, deviation = (values % np.uint8(255)).astype(np.int16) - 127, 73
        # Spread the logits, so that softmax is not flat.
        size = (4 if c.vocab_size == rows else 1) / (deviation * n**0.5)
        scale = (self._uniform(rows * groups, name, layer, "scale") + np.float32(0.5)) * np.float32(
            size
        )
        return QuantizedMatrix(
            q.astype(np.int8).reshape(rows, groups * self.group_size),
            scale.reshape(rows, groups),
            self.weight_bits,
        )

    def vector(self, name: str, layer: int | None = None) -> np.ndarray:
        return self._uniform(self.config.dim, name, layer) + np.float32(0.5)


def model_words(config: ModelConfig, group_size: int, slots: int, words: int,
                weight_bits: int = 8, kv_bits: int = 32) -> np.ndarray:  # fmt: skip
    """Model descriptor, (words,) uint32."""
    out = np.zeros(words, np.uint32)
    values = [abi.MAGIC, abi.ABI_VERSION, config.dim, config.hidden_dim,
              config.n_layers, config.n_heads, config.n_kv_heads, config.vocab_size,
              config.seq_len, group_size, int(config.tied),
              int(np.float32(config.rope_theta).view(np.uint32)), slots, weight_bits,
              kv_bits]  # fmt: skip
    out[: len(values)] = values
    table = rope_turns(config.head_size, config.rope_theta).view(np.uint32)
    out[abi.MODEL_ROPE_TABLE : abi.MODEL_ROPE_TABLE + len(table)] = table
    return out


def request_words(words: int, layers: tuple[int, int], tokens, positions, slots=None, *,
                  sample=None, full=True, host_chooses=False, temperature=0.0, seed=0, steps=1,
                  top_k=0, top_p=1.0, min_p=0.0, flags=0, stop=(),
                  abort=0) -> np.ndarray:  # fmt: skip
    """Request, (words,) uint32; row options are one value for all rows or one per row."""
    n = len(tokens)
    rows = np.zeros(n, abi.ROW_DTYPE)
    rows["token"], rows["position"] = tokens, positions
    rows["slot"] = 0 if slots is None else slots
    sampled = np.ones(n, bool) if sample is None else np.asarray(sample)
    rows["flags"] = (
        sampled * abi.RowFlag.SAMPLE
        | np.asarray(full) * abi.RowFlag.FULL_LOGITS
        | np.asarray(host_chooses) * abi.RowFlag.HOST_CHOOSES
    )
    rows["temperature"], rows["seed"] = temperature, seed
    rows["top_k"], rows["top_p"], rows["min_p"] = top_k, top_p, min_p
    request = np.zeros(words, np.uint32)
    request[: abi.REQUEST_STOP_TOKENS + 1] = [n, steps, *layers, flags, len(stop)]
    request[abi.REQUEST_STOP_LIST : abi.REQUEST_STOP_LIST + len(stop)] = stop
    request[abi.REQUEST_ABORT] = abort
    base = abi.REQUEST_ROW_BASE
    request[base : base + n * abi.ROW_WORDS] = rows.view(np.uint32)
    return request


UNTOUCHED = 0xDEADBEEF
"""Marks results that the kernel did not write."""


class KernelSession:
    """A model in a kernel's memory; ``run`` makes one call.

    Parameters
    ----------
    library : KernelLibrary
    model : QuantizedWeights
    slots : int
    kv_bits : {32, 8}
    """

    def __init__(
        self, library: KernelLibrary, model: QuantizedWeights, slots: int = 4, kv_bits: int = 32
    ) -> None:
        self.library, self.limits = library, library.limits
        config, size = model.config, model.group_size
        self.config = config
        target = self.limits.target
        self.buffers = {}
        for c, part in enumerate(pack_channels(model, target)):
            assert len(part) == channel_bytes(config, size, target, model.weight_bits)[c]
            buffer = aligned(len(part))
            buffer[:] = part
            self.buffers[f"weights_{c}"] = buffer
        for p in range(self.limits.kv_ports):
            cache = aligned(self.limits.kv_port_bytes(config, kv_bits, slots))
            # Stale memory is not zero: NaN reveals any read of it.
            cache.view(np.float32)[:] = np.nan
            self.buffers[f"kv_cache_{p}"] = cache
        self.buffers |= {
            "model": model_words(
                config, size, slots, self.limits.model_words, model.weight_bits, kv_bits
            ),
            "request": np.zeros(self.limits.request_words, np.uint32),
            "results": np.zeros(self.limits.results_words, np.uint32),
            "logits": np.zeros((self.limits.max_rows, config.vocab_size), np.float32),
            "activations": np.zeros((self.limits.max_rows, config.dim), np.float32),
            "profile": np.zeros(self.limits.profile_step_words * self.limits.max_steps, np.uint32),
        }

    def run(self, tokens, positions, slots=None, *, steps=1, layers=None,
            command=abi.COMMAND_RUN, patch=None, **row_options):  # fmt: skip
        """Make one call; returns (status words, results (steps, rows), logits (rows, vocab)).

        ``patch`` overwrites request words, to make invalid requests.
        """
        n = len(tokens)
        request = self.buffers["request"]
        request[:] = request_words(
            len(request), layers or (0, self.config.n_layers), tokens, positions, slots,
            steps=steps, **row_options,
        )  # fmt: skip
        for index, value in (patch or {}).items():
            request[index] = np.uint32(value & 0xFFFFFFFF)
        words = self.buffers["results"]
        words[:] = UNTOUCHED
        self.buffers["logits"][:] = np.nan
        self.library.call(self.buffers, command)
        dtype = self.limits.result_dtype
        count = steps * n * dtype.itemsize // 4
        results = words[abi.STATUS_WORDS : abi.STATUS_WORDS + count].view(dtype)
        return (
            words[: abi.STATUS_WORDS].copy(),
            results.reshape(steps, n).copy(),
            self.buffers["logits"].reshape(-1)[: n * self.config.vocab_size]
            .reshape(n, -1).copy(),
        )  # fmt: skip
