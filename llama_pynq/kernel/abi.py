"""Kernel ABI: every buffer that the kernel and its driver share, word by word.

Twin of ``hls_src/contract.h``; a test compares the two. All words are 32-bit little-endian.
Board-dependent values (rows, top logits, limits) are not here: the kernel reports them, see
`limits.KernelLimits`.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

import numpy as np

MAGIC = 0x4C4C4D41
ABI_VERSION = 3

COMMAND_DESCRIBE = 0
COMMAND_RUN = 1

MIN_GROUP, MAX_GROUP = 32, 64
"""Group sizes that the kernel reads; the weights of a group share one scale."""
WEIGHT_BITS = (8, 4)
"""Bits per packed weight; int4 in groups of `MAX_GROUP` only."""
KV_BITS = (32, 8)
"""Bits per KV cache value: float32, or int8 with one scale per key and per value of a head."""
REDUCE_LANES, NORM_SUMS, VALUE_SUMS = 16, 256, 8
"""Partial sums of a dot product, of a norm, and of an attention block's weighted values."""
BLOCK = 32
"""KV cache positions, or logits, per online-softmax step."""
WORD_BYTES = 64
"""Bytes of a weight word: one row's group of 64, or two rows' groups of 32."""

# request: word offsets
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
    """Return (n,) zeroed rows of `ROW_DTYPE`: greedy, without truncation.

    Parameters
    ----------
    n : int
    """
    return np.zeros(n, ROW_DTYPE)


# model descriptor: fields in word order, then the RoPE table
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

# results: word offsets; the self-description follows the status words
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

# profile
MAX_STEP_EVENTS = 4096
"""Events that one step's record holds."""


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
    """Final state of a call."""

    DONE = 1
    ABORTED = 2
    ERROR = 3


class Stage(IntEnum):
    """Stages of a step in the profile."""

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
    2: "the model buffer holds no descriptor of this ABI version",
    3: "word {detail} of the model descriptor is invalid or over this kernel's limits",
    4: "{detail} rows: outside 1 to the kernel's maximum",
    5: "{detail} steps: outside 1 to the kernel's maximum (1 for a layer range or activations in)",
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
"""Placeholders for a token: none sampled; undecided, so the host picks.

A token is undecided if truncation keeps more tokens than the top logits hold.
"""


def result_dtype(top_logits: int) -> np.dtype:
    """Dtype of one row's result of one step.

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
