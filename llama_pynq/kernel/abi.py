"""What the kernel and its driver agree on: every buffer, word by word.

The twin of ``hls_src/contract.h``; a test holds the two in step. All words are 32 bits,
little-endian. What depends on the board (rows, top logits, limits) is not here: the
kernel says it itself, see `KernelLimits`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import IntEnum, IntFlag
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from llama_pynq.checkpoint.config import ModelConfig

MAGIC = 0x4C4C4D41
ABI_VERSION = 3

COMMAND_DESCRIBE = 0
COMMAND_RUN = 1

MIN_GROUP, MAX_GROUP = 32, 64
"""Group sizes the kernel reads: weights that share one scale."""
WEIGHT_BITS = (8, 4)
"""What weights are packed as; int4 in groups of `MAX_GROUP` only."""
KV_BITS = (32, 8)
"""What the KV cache holds: float32, or int8 with a scale for each head's key and value."""
REDUCE_LANES, NORM_SUMS, VALUE_SUMS = 16, 256, 8
"""Partial sums of a dot product, of a norm, and of the values of a block of attention."""
BLOCK = 32
"""Positions of the KV cache, or logits, that one online-softmax step takes."""
WORD_BYTES = 64
"""A weight word: one row's group of 64, or two rows' groups of 32."""

# request, in words
REQUEST_ROWS, REQUEST_STEPS, REQUEST_LAYER_BEGIN, REQUEST_LAYER_END = 0, 1, 2, 3
REQUEST_FLAGS, REQUEST_STOP_TOKENS = 4, 5
REQUEST_ABORT = 16
REQUEST_STOP_LIST = 32
MAX_STOP_TOKENS = 16
REQUEST_ROW_BASE = 48

ROW_DTYPE = np.dtype(
    [
        ("token", "<i4"),
        ("position", "<i4"),
        ("slot", "<i4"),
        ("flags", "<u4"),
        ("seed", "<u8"),
        ("temperature", "<f4"),
        ("top_k", "<i4"),
        ("top_p", "<f4"),
        ("min_p", "<f4"),
    ]
)
"""One row of a call; 40 bytes."""
ROW_WORDS = ROW_DTYPE.itemsize // 4


def make_rows(n: int) -> np.ndarray:
    """(n,) rows of a call, zeroed: `ROW_DTYPE`. Zero is greedy, and truncates nothing."""
    return np.zeros(n, ROW_DTYPE)


# model descriptor, in words
MODEL_FIELDS = (
    "magic",
    "abi",
    "dim",
    "hidden_dim",
    "n_layers",
    "n_heads",
    "n_kv_heads",
    "vocab_size",
    "seq_len",
    "group_size",
    "tied",
    "rope_theta",
    "slots",
    "weight_bits",
    "kv_bits",
)
MODEL_ROPE_TABLE = 16

# results, in words
STATUS_MAGIC, STATUS_ABI, STATUS_STATE, STATUS_ERROR = 0, 1, 2, 3
STATUS_DETAIL, STATUS_STEPS, STATUS_SEQUENCE = 4, 5, 15
STATUS_WORDS = 16
DESCRIBE_FIELDS = (
    "channels",
    "beat_bytes",
    "tile_rows",
    "max_rows",
    "max_steps",
    "max_dim",
    "max_hidden_dim",
    "max_head_size",
    "max_layers",
    "max_seq_len",
    "top_logits",
    "clock_mhz",
    "max_stop_tokens",
    "max_step_events",
    "kv_ports",
    "kv_beat_bytes",
)
DESCRIBE_BASE = 16
DESCRIBE_BOARD = 32
DESCRIBE_WORDS = 36


class RequestFlag(IntFlag):
    """Flags of a call."""

    PROFILE = 1
    ACTIVATIONS_IN = 2
    ACTIVATIONS_OUT = 4


class RowFlag(IntFlag):
    """Flags of a row."""

    SAMPLE = 1
    FULL_LOGITS = 2
    HOST_CHOOSES = 4


class State(IntEnum):
    """How a call ended."""

    DONE = 1
    ABORTED = 2
    ERROR = 3


class Stage(IntEnum):
    """Stages that the profile tells apart."""

    EMBED = 0
    ATTENTION_NORM = 1
    QKV = 2
    ROPE = 3
    ATTENTION = 4
    ATTENTION_OUT = 5
    FFN_NORM = 6
    GATE_UP = 7
    DOWN = 8
    FINAL_NORM = 9
    CLASSIFIER = 10
    SAMPLE = 11
    END = 12


ERRORS = {
    1: "unknown command {detail}",
    2: "the model buffer holds no descriptor of this contract's version",
    3: "word {detail} of the model descriptor is over this kernel's limits",
    4: "{detail} rows: outside 1 to the kernel's maximum",
    5: "{detail} steps: outside 1 to the kernel's maximum, or not over all layers",
    6: "layer range starting at {detail} is not inside the model",
    7: "row {detail}: token id outside the vocabulary",
    8: "row {detail}: position outside the context",
    9: "row {detail}: sequence slot outside those allocated",
    10: "row {detail}: another row has the same slot and position",
    11: "row {detail}: temperature neither 0 nor 1e-4 to 1e6",
    12: "{detail} stop tokens: more than the kernel's list holds",
    13: "row {detail}: the logits are not finite; the weights overflow float32",
    14: "row {detail}: top_k below 0, top_p outside 0 to 1, or min_p outside 0 to below 1",
}
"""Text of each error code; `detail` is the status word of that name."""


TOKEN_NONE, TOKEN_UNDECIDED = -1, -2
"""Instead of a token: none was sampled; truncation keeps more than the top logits."""


def result_dtype(top_logits: int) -> np.dtype:
    """One row's result of one step.

    Parameters
    ----------
    top_logits : int
        kTopLogits of the board.
    """
    return np.dtype(
        [
            ("token", "<i4"),
            ("position", "<i4"),
            ("lse", "<f4"),
            ("lse_temperature", "<f4"),
            ("logit", "<f4"),
            ("kept", "<i4"),
            ("reserved", "<u4", (2,)),
            ("top", [("id", "<i4"), ("logit", "<f4")], (top_logits,)),
        ]
    )


@dataclass(frozen=True)
class KernelLimits:
    """The kernel's self-description: what this build can do.

    Attributes
    ----------
    board : str
    abi : int
    channels, beat_bytes, tile_rows : int
        Weight memory: channels, bytes a beat, output rows a tile.
    max_rows, max_steps, max_stop_tokens, top_logits : int
        Limits of one call.
    max_dim, max_hidden_dim, max_head_size, max_layers, max_seq_len : int
        Limits of the model.
    clock_mhz : int
        Ticks a microsecond in the profile.
    max_step_events : int
        Events a profile record holds.
    kv_ports, kv_beat_bytes : int
        KV cache: ports that the heads are dealt out to, bytes a beat.
    """

    board: str
    abi: int
    channels: int
    beat_bytes: int
    tile_rows: int
    max_rows: int
    max_steps: int
    max_dim: int
    max_hidden_dim: int
    max_head_size: int
    max_layers: int
    max_seq_len: int
    top_logits: int
    clock_mhz: int
    max_stop_tokens: int
    max_step_events: int
    kv_ports: int
    kv_beat_bytes: int

    @classmethod
    def from_words(cls, words: np.ndarray) -> KernelLimits:
        """Read the (DESCRIBE_WORDS,) uint32 words of a described call."""
        values = {name: int(words[DESCRIBE_BASE + i]) for i, name in enumerate(DESCRIBE_FIELDS)}
        name = words[DESCRIBE_BOARD:DESCRIBE_WORDS].astype("<u4").tobytes()
        return cls(
            board=name.split(b"\0")[0].decode("ascii", "replace"),
            abi=int(words[STATUS_ABI]),
            **values,
        )

    @classmethod
    def from_header(cls, header: Path) -> KernelLimits:
        """What a kernel built from a board's config header will say of itself.

        Raises
        ------
        ValueError
            If the header lacks a constant.
        """
        text = header.read_text(encoding="utf-8")
        found = {n: int(v) for n, v in re.findall(r"constexpr int k(\w+) = (\d+);", text)}
        board = re.search(r'kBoardName\[\] = "(.*)";', text)
        fixed = {"abi": ABI_VERSION, "max_stop_tokens": MAX_STOP_TOKENS, "max_step_events": 4096}
        try:
            values = {
                name: fixed[name]
                if name in fixed
                else found["".join(part.capitalize() for part in name.split("_"))]
                for name in (*DESCRIBE_FIELDS, "abi")
            }
            assert board is not None
        except (KeyError, AssertionError) as error:
            raise ValueError(f"{header} lacks a constant of a board's config: {error}") from error
        return cls(board=board.group(1), **values)

    def within(self, board: KernelLimits) -> KernelLimits:
        """Limits of this kernel, held to another board's limits on models and calls.

        What the layout of buffers depends on (channels, tiles, top logits) stays.
        """
        names = ("max_rows", "max_steps", "max_dim", "max_hidden_dim", "max_head_size",
                 "max_layers", "max_seq_len")  # fmt: skip
        least = {name: min(getattr(self, name), getattr(board, name)) for name in names}
        return replace(self, board=board.board, **least)

    def kv_port_bytes(self, config: ModelConfig, kv_bits: int, slots: int) -> int:
        """Bytes that one port's share of the KV cache takes (``hls_src/cache.h``).

        Parameters
        ----------
        config : ModelConfig
        kv_bits : {32, 8}
        slots : int
            Sequences.
        """
        beat = self.kv_beat_bytes
        stride = -(-config.head_size // REDUCE_LANES) * REDUCE_LANES
        half = -(-stride * kv_bits // 8 // beat) * beat
        record = 2 * half + (beat if kv_bits == 8 else 0)
        heads = -(-config.n_kv_heads // self.kv_ports)
        return slots * config.n_layers * heads * config.seq_len * record

    @property
    def request_words(self) -> int:
        return REQUEST_ROW_BASE + ROW_WORDS * self.max_rows

    @property
    def model_words(self) -> int:
        return MODEL_ROPE_TABLE + self.max_head_size

    @property
    def result_dtype(self) -> np.dtype:
        return result_dtype(self.top_logits)

    @property
    def results_words(self) -> int:
        return STATUS_WORDS + self.max_steps * self.max_rows * self.result_dtype.itemsize // 4

    @property
    def profile_step_words(self) -> int:
        return 2 + 2 * self.max_step_events


def read_records(records: np.ndarray, kv_bits: int, beat: int, head_size: int) -> np.ndarray:
    """Keys and values of records of the KV cache.

    Parameters
    ----------
    records : (..., record_bytes) uint8
    kv_bits : {32, 8}
    beat : int
        Bytes of a KV port's beat.
    head_size : int

    Returns
    -------
    (2, ..., head_size) float32
        Keys, then values.
    """
    flat = np.ascontiguousarray(records)
    if kv_bits == 32:
        halves = np.split(flat.view(np.float32), 2, axis=-1)
        return np.stack(halves)[..., :head_size]
    scales = flat[..., :8].view(np.float32)
    # Byte k of a beat's word i is its value k * words + i.
    beats = flat[..., beat:].view(np.int8).reshape(*flat.shape[:-1], -1, beat // 4, 4)
    values = np.swapaxes(beats, -1, -2).reshape(*flat.shape[:-1], 2, -1)[..., :head_size]
    return np.moveaxis(values * scales[..., None], -2, 0)
