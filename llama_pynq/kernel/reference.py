"""NumPy reference models: float32, and the kernel's own arithmetic.

`FloatModel` is llama2.c's float32 model, the baseline of the accuracy figures. `KernelModel`
repeats the kernel's arithmetic step by step: int8 groups, float32 outside, subnormals flushed,
every addition in the kernel's order. The kernel equals `KernelModel` bit for bit.

Both run rows as the kernel does: row i attends to the positions of its own slot, up to and
including its own position. Both are oracles, written for clarity, not speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.kernel.float_math import add, f32
from llama_pynq.kernel.stages import (
    RMS_EPSILON,
    QuantizedMatrix,
    attend,
    matvec,
    quantize_groups,
    rms_norm,
    rope_turns,
    rotate,
    round_heads,
    swiglu,
)


class _Weights(Protocol):
    """Source of a model's tensors: a `Checkpoint`, or an object with the same interface."""

    config: ModelConfig

    def tensor(self, name: str, layer: int | None = None) -> np.ndarray: ...


class _Cache:
    """Keys, values and their scales, per layer and slot."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._slots: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}

    def write(
        self, layer: int, slot: int, position: int, kv: np.ndarray, scales: np.ndarray | None = None
    ) -> None:
        """Store (2, n_kv_heads, head_size) keys and values, (2, n_kv_heads) scales (default 1)."""
        c = self._config
        shape = (2, c.seq_len, c.n_kv_heads)
        new = np.zeros((*shape, c.head_size), np.float32), np.ones(shape, np.float32)
        cache, cached_scales = self._slots.setdefault((layer, slot), new)
        cache[:, position] = kv
        cached_scales[:, position] = 1 if scales is None else scales

    def read(self, layer: int, slot: int, positions: int) -> tuple[np.ndarray, ...]:
        """Return keys, values and scales in the shapes of `attend`."""
        cache, scales = self._slots[layer, slot]
        return cache[0, :positions], cache[1, :positions], scales[:, :positions]


class FloatModel:
    """llama2.c's float32 model.

    Parameters
    ----------
    weights : Checkpoint
        Source of the tensors; all are read into memory.

    References
    ----------
    llama2.c, run.c, forward()
    """

    def __init__(self, weights: _Weights) -> None:
        self.config = c = weights.config
        per_layer = (
            "rms_att_weight", "wq", "wk", "wv", "wo", "rms_ffn_weight", "w1", "w2", "w3",
        )  # fmt: skip
        self._layers = [
            {name: weights.tensor(name, layer) for name in per_layer} for layer in range(c.n_layers)
        ]
        self._embedding = weights.tensor("token_embedding_table")
        self._final = weights.tensor("rms_final_weight")
        self._classifier = weights.tensor("wcls")
        self._cache = _Cache(c)
        self._frequency = c.rope_theta ** (-np.arange(0, c.head_size, 2) / c.head_size)
        if c.rope_divisors is not None:
            self._frequency /= c.rope_divisors

    def reset(self) -> None:
        """Forget every sequence."""
        self._cache = _Cache(self.config)

    def forward(
        self, tokens: Sequence[int], positions: Sequence[int], slots: Sequence[int] | None = None
    ) -> np.ndarray:
        """Run rows through the model, and return the logits of each.

        Parameters
        ----------
        tokens : sequence of int
            One per row.
        positions : sequence of int
            Position of each row in its slot; those before it must have been run.
        slots : sequence of int, optional
            Sequence of each row; default 0.

        Returns
        -------
        (rows, vocab_size) float32
        """
        x = self.residual_stream(tokens, positions, slots)[-1]
        return self._norm(x, self._final) @ self._classifier.T

    @staticmethod
    def _norm(v: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return v / np.sqrt(np.mean(v * v, axis=-1, keepdims=True) + RMS_EPSILON) * weight

    def residual_stream(
        self, tokens: Sequence[int], positions: Sequence[int], slots: Sequence[int] | None = None
    ) -> np.ndarray:
        """Run rows through the layers, and return the stream before each and after the last.

        Parameters
        ----------
        tokens, positions, slots
            As for `FloatModel.forward`.

        Returns
        -------
        (n_layers + 1, rows, dim) float32
        """
        c, norm = self.config, self._norm
        slots = slots or [0] * len(tokens)
        x = self._embedding[list(tokens)].copy()
        stream = [x]
        angle = np.outer(positions, self._frequency)
        cos, sin = (f(angle).astype(np.float32)[:, None, :] for f in (np.cos, np.sin))

        def rotated(v: np.ndarray) -> np.ndarray:
            v = v.reshape(len(tokens), -1, c.head_size)
            out = np.empty_like(v)
            out[..., 0::2] = v[..., 0::2] * cos - v[..., 1::2] * sin
            out[..., 1::2] = v[..., 0::2] * sin + v[..., 1::2] * cos
            return out

        for layer, w in enumerate(self._layers):
            h = norm(x, w["rms_att_weight"])
            q, k = rotated(h @ w["wq"].T), rotated(h @ w["wk"].T)
            v = (h @ w["wv"].T).reshape(len(tokens), c.n_kv_heads, c.head_size)
            for row, (slot, position) in enumerate(zip(slots, positions)):
                self._cache.write(layer, slot, position, np.stack([k[row], v[row]]))
            attention = np.empty_like(q)
            for row, (slot, position) in enumerate(zip(slots, positions)):
                keys, values, _ = self._cache.read(layer, slot, position + 1)
                shared = c.n_heads // c.n_kv_heads
                keys, values = (np.repeat(a, shared, axis=1) for a in (keys, values))
                scores = np.einsum("hd,thd->ht", q[row], keys) / np.sqrt(f32(c.head_size))
                scores = np.exp(scores - scores.max(axis=1, keepdims=True))
                scores /= scores.sum(axis=1, keepdims=True)
                attention[row] = np.einsum("ht,thd->hd", scores, values)
            x = x + attention.reshape(len(tokens), c.dim) @ w["wo"].T
            h = norm(x, w["rms_ffn_weight"])
            gate = h @ w["w1"].T
            x = x + (gate / (1 + np.exp(-gate)) * (h @ w["w3"].T)) @ w["w2"].T
            stream.append(x)
        return np.stack(stream)


class QuantizedWeights(Protocol):
    """Weights interface of `KernelModel`, as `weights.quantize.QuantizedModel` has it.

    Attributes
    ----------
    config : ModelConfig
    group_size, weight_bits : int
    """

    config: ModelConfig
    group_size: int
    weight_bits: int

    def matrix(self, name: str, layer: int | None = None) -> QuantizedMatrix:
        """One weight matrix; see `QuantizedModel.matrix`.

        Parameters
        ----------
        name : str
        layer : int, optional
        """

    def vector(self, name: str, layer: int | None = None) -> np.ndarray:
        """One norm weight; see `QuantizedModel.vector`.

        Parameters
        ----------
        name : str
        layer : int, optional
        """


class KernelModel:
    """Bit-exact model of the kernel's arithmetic.

    Parameters
    ----------
    weights : QuantizedWeights
        The same values and scales that are packed for the kernel.
    kv_bits : {32, 8}
        Bits per KV cache value: float32 or int8.
    """

    def __init__(self, weights: QuantizedWeights, kv_bits: int = 32) -> None:
        self.config = weights.config
        self._kv_bits = kv_bits
        self._weights = weights
        self._cache = _Cache(self.config)
        c = self.config
        self._turns = rope_turns(c.head_size, c.rope_theta, c.rope_divisors)
        self._embedding = weights.matrix("token_embedding_table")

    def reset(self) -> None:
        """Forget every sequence."""
        self._cache = _Cache(self.config)

    def embed(self, tokens: Sequence[int]) -> np.ndarray:
        """Dequantised embedding of each token, (rows, dim) float32.

        Parameters
        ----------
        tokens : sequence of int
        """
        rows = QuantizedMatrix(self._embedding.q[list(tokens)], self._embedding.scale[list(tokens)])
        return rows.dequantize()[:, : self.config.dim]

    def layer(
        self, index: int, x: np.ndarray, positions: Sequence[int], slots: Sequence[int]
    ) -> np.ndarray:
        """Run one layer: residual stream (rows, dim) in, (rows, dim) out.

        Parameters
        ----------
        index : int
            The layer.
        x : (rows, dim) float32
        positions, slots : sequence of int
            As for `forward`.
        """
        c, w, size = self.config, self._weights, self._weights.group_size
        rows = len(x)
        h = quantize_groups(rms_norm(x, w.vector("rms_att_weight", index)), size)
        q, k, v = (
            matvec(w.matrix(name, index), *h).reshape(rows, -1, c.head_size)
            for name in ("wq", "wk", "wv")
        )
        q, k = (rotate(part, np.asarray(positions), self._turns) for part in (q, k))
        for row in range(rows):
            kv, scales = np.stack([k[row], v[row]]), None
            if self._kv_bits == 8:
                kv, scales = round_heads(kv)
            self._cache.write(index, slots[row], positions[row], kv, scales)
        attention = np.stack(
            [
                attend(q[row], *self._cache.read(index, slots[row], positions[row] + 1))
                for row in range(rows)
            ]
        )
        h = quantize_groups(attention.reshape(rows, c.dim), size)
        x = add(x, matvec(w.matrix("wo", index), *h))
        h = quantize_groups(rms_norm(x, w.vector("rms_ffn_weight", index)), size)
        hidden = swiglu(matvec(w.matrix("w1", index), *h), matvec(w.matrix("w3", index), *h))
        return add(x, matvec(w.matrix("w2", index), *quantize_groups(hidden, size)))

    def cached(self, slot: int, positions: int) -> np.ndarray:
        """KV cache of a slot, (2, n_layers, n_kv_heads, positions, head_size) float32.

        Same as `KernelDriver.read_cache`: int8 values are multiplied by their scale.

        Parameters
        ----------
        slot : int
        positions : int
            Number of positions, from the first.
        """
        layers = []
        for index in range(self.config.n_layers):
            keys, values, scales = self._cache.read(index, slot, positions)
            layers.append(np.stack([keys, values]) * scales[..., None])
        return np.stack(layers, axis=1).swapaxes(2, 3)

    def classify(self, x: np.ndarray) -> np.ndarray:
        """Logits (rows, vocab_size) float32 of a residual stream.

        Parameters
        ----------
        x : (rows, dim) float32
        """
        w = self._weights
        h = quantize_groups(rms_norm(x, w.vector("rms_final_weight")), w.group_size)
        return matvec(w.matrix("wcls"), *h)

    def forward(
        self, tokens: Sequence[int], positions: Sequence[int], slots: Sequence[int] | None = None
    ) -> np.ndarray:
        """Run rows through the model, and return the logits of each.

        Parameters
        ----------
        tokens, positions, slots
            As for `FloatModel.forward`.

        Returns
        -------
        (rows, vocab_size) float32
        """
        slots = slots or [0] * len(tokens)
        x = self.embed(tokens)
        for index in range(self.config.n_layers):
            x = self.layer(index, x, positions, slots)
        return self.classify(x)
