"""Work of one step, and the bytes that each of its stages must read."""

from __future__ import annotations

from dataclasses import dataclass

from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.kernel.abi import Stage
from llama_pynq.kernel.config import KernelConfig
from llama_pynq.kernel.kv_cache import head_stride, record_beats


@dataclass(frozen=True)
class Work:
    """Work of one step: the model, its formats, and the rows of the call.

    Attributes
    ----------
    config : ModelConfig
    group_size, weight_bits, kv_bits : int
    rows : int
        Sequences decoded side by side, a row each.
    position : int
        Position of every row, which attends to position + 1 positions.
    sample : bool
        Whether the classifier runs.
    """

    config: ModelConfig
    group_size: int
    weight_bits: int
    kv_bits: int
    rows: int
    position: int
    sample: bool

    @property
    def row_bytes(self) -> int:
        return self.group_size * self.weight_bits // 8

    @property
    def dim_groups(self) -> int:
        return -(-self.config.dim // self.group_size)

    @property
    def hidden_groups(self) -> int:
        return -(-self.config.hidden_dim // self.group_size)

    @property
    def head_stride(self) -> int:
        return head_stride(self.config.head_size)

    def record_beats(self, kernel: KernelConfig) -> int:
        """Beats of one position of one head."""
        return record_beats(self.config.head_size, self.kv_bits, kernel.kv_beat_bytes)

    def stage_bytes(self) -> dict[tuple[Stage, int], int]:
        """Bytes that each stage must read, without padding of tiles or heads, by (stage, layer).

        Weights and norms count once, keys and values for every row. Stages that read nothing,
        or only rows of the embedding, are left out.
        """
        c = self.config

        def matrix(rows: int, columns: int) -> int:
            groups = -(-columns // self.group_size)
            return rows * (columns * self.weight_bits // 8 + 4 * groups)

        head = 2 * c.head_size * self.kv_bits // 8 + (8 if self.kv_bits == 8 else 0)
        norm = 4 * c.dim
        layer = {
            Stage.ATTENTION_NORM: norm,
            Stage.QKV: matrix(c.dim + 2 * c.kv_dim, c.dim),
            Stage.ATTENTION: self.rows * c.n_kv_heads * (self.position + 1) * head,
            Stage.ATTENTION_OUT: matrix(c.dim, c.dim),
            Stage.FFN_NORM: norm,
            Stage.GATE_UP: matrix(2 * c.hidden_dim, c.dim),
            Stage.DOWN: matrix(c.dim, c.hidden_dim),
        }
        found = {(stage, i): n for i in range(c.n_layers) for stage, n in layer.items()}
        if self.sample:
            found[Stage.FINAL_NORM, c.n_layers] = norm
            found[Stage.CLASSIFIER, c.n_layers] = matrix(c.vocab_size, c.dim)
        return found

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values of every row's positions, without padding of heads."""
        stages = self.stage_bytes().items()
        return sum(n for (stage, _), n in stages if stage is Stage.ATTENTION)

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights and norms that a step must read, without padding of tiles."""
        return self.total_bytes - self.kv_bytes

    @property
    def total_bytes(self) -> int:
        """Bytes that a step must read: every weight once, every row's keys and values."""
        return sum(self.stage_bytes().values())
