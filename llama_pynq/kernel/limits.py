"""Limits of a kernel build: its self-description, and the check that a model fits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llama_pynq.errors import LimitError
from llama_pynq.kernel.abi import (
    ABI_VERSION,
    DESCRIBE_BASE,
    DESCRIBE_BOARD,
    DESCRIBE_FIELDS,
    DESCRIBE_WORDS,
    MAX_STEP_EVENTS,
    MAX_STOP_TOKENS,
    MODEL_ROPE_TABLE,
    REQUEST_ROW_BASE,
    ROW_WORDS,
    STATUS_ABI,
    STATUS_WORDS,
    result_dtype,
)
from llama_pynq.kernel.config import (
    Target,
    board_name,
    constant_name,
    read_constants,
    require_constants,
)
from llama_pynq.kernel.kv_cache import port_bytes

if TYPE_CHECKING:
    from llama_pynq.checkpoint.config import ModelConfig


@dataclass(frozen=True)
class KernelLimits:
    """Limits of a kernel build, as its self-description reports them.

    Attributes
    ----------
    board : str
    abi : int
    channels, beat_bytes, tile_rows : int
        Weight memory: channels, bytes per beat, output rows per tile.
    max_rows, max_steps : int
        Limits of one call.
    max_dim, max_hidden_dim, max_head_size, max_layers, max_seq_len : int
        Limits of the model.
    top_logits : int
        Largest logits that a result holds.
    clock_mhz : int
        Kernel clock; ticks per microsecond in the profile.
    max_stop_tokens : int
        Stop tokens of one call.
    max_step_events : int
        Events that one step's profile record holds.
    kv_ports, kv_beat_bytes : int
        KV cache: ports that share the KV heads, bytes per beat.
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
        """Parse the (DESCRIBE_WORDS,) uint32 words that the describe command returns."""
        values = {name: int(words[DESCRIBE_BASE + i]) for i, name in enumerate(DESCRIBE_FIELDS)}
        name = words[DESCRIBE_BOARD:DESCRIBE_WORDS].astype("<u4").tobytes()
        return cls(
            board=name.split(b"\0")[0].decode("ascii", "replace"),
            abi=int(words[STATUS_ABI]),
            **values,
        )

    @classmethod
    def from_header(cls, header: Path) -> KernelLimits:
        """Limits that a kernel built from a board's config header reports.

        Raises
        ------
        ValueError
            If the header lacks a constant.
        """
        found, board = read_constants(header), board_name(header)
        fixed = {"max_stop_tokens": MAX_STOP_TOKENS, "max_step_events": MAX_STEP_EVENTS}
        names = {name: constant_name(name) for name in DESCRIBE_FIELDS if name not in fixed}
        require_constants(found, names.values(), header)
        if board is None:
            raise ValueError(f"{header} defines no 'constexpr char kBoardName[] = ...;'")
        values = {name: found[constant] for name, constant in names.items()}
        return cls(board=board, abi=ABI_VERSION, **fixed, **values)

    def within(self, board: KernelLimits) -> KernelLimits:
        """Cap this kernel's limits on models and calls at another board's.

        Fields that buffer layouts depend on (channels, tiles, top logits) stay.
        """
        names = ("max_rows", "max_steps", "max_dim", "max_hidden_dim", "max_head_size",
                 "max_layers", "max_seq_len")  # fmt: skip
        least = {name: min(getattr(self, name), getattr(board, name)) for name in names}
        return replace(self, board=board.board, **least)

    @property
    def target(self) -> Target:
        """Hardware layout that weights are packed for."""
        return Target(self.channels, self.tile_rows)

    def kv_port_bytes(self, config: ModelConfig, kv_bits: int, slots: int) -> int:
        """Bytes of one port's share of the KV cache; see `kv_cache.port_bytes`.

        Parameters
        ----------
        config : ModelConfig
        kv_bits : {32, 8}
        slots : int
            Sequences that the cache holds.
        """
        return port_bytes(config, kv_bits, slots, self.kv_ports, self.kv_beat_bytes)

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


def check_limits(config: ModelConfig, limits: KernelLimits) -> None:
    """Raise LimitError naming every limit that the model exceeds, with both values."""
    checks = (
        ("dim", config.dim, limits.max_dim),
        ("hidden_dim", config.hidden_dim, limits.max_hidden_dim),
        ("head_size", config.head_size, limits.max_head_size),
        ("n_layers", config.n_layers, limits.max_layers),
        ("seq_len", config.seq_len, limits.max_seq_len),
    )
    over = [f"{name} {value} (at most {limit})" for name, value, limit in checks if value > limit]
    if over:
        raise LimitError(
            f"the model does not fit the kernel on {limits.board}: {', '.join(over)}. "
            "Use a smaller model, or an overlay built with higher limits "
            f"(hls_src/boards/{limits.board.replace('-', '_')}.h)"
        )
