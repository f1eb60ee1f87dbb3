"""The model in NumPy, in two arithmetics.

`FloatModel` is llama2.c's float32 model: it gives the accuracy figures. `KernelModel` is
the kernel's own arithmetic, step by step: int8 groups, float32 outside, subnormals
flushed, every addition in the kernel's order. The kernel equals it bit for bit.

Both run rows as the kernel does: row i attends to its own slot's positions up to its own.
They are written to be read and compared with, not to be fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.kernel.abi import (
    BLOCK,
    NORM_SUMS,
    REDUCE_LANES,
    TOKEN_UNDECIDED,
    VALUE_SUMS,
)

f32 = np.float32
_TINY = np.finfo(np.float32).tiny
_LOWEST = f32(-1e30)
_NO_LOGIT = f32(-3e38)
RMS_EPSILON = f32(1e-5)


# ---- arithmetic -----------------------------------------------------------------------


def flush(x: np.ndarray) -> np.ndarray:
    """Subnormal float32 values become zero of the same sign, as in AMD's float cores."""
    x = np.asarray(x, dtype=np.float32)
    return np.where(np.abs(x) < _TINY, np.copysign(f32(0), x), x)


def add(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """Float32 sum, flushed."""
    return flush(np.add(a, b, dtype=np.float32))


def sub(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """Float32 difference, flushed."""
    return flush(np.subtract(a, b, dtype=np.float32))


def mul(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """Float32 product, flushed."""
    return flush(np.multiply(a, b, dtype=np.float32))


def div(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """Float32 quotient, flushed."""
    return flush(np.divide(a, b, dtype=np.float32))


def round_to_even(x: np.ndarray) -> np.ndarray:
    """Nearest integer, ties to even, as a float32; |x| < 2^22."""
    magic = f32(12582912.0)
    return sub(add(x, magic), magic)


def _horner(x: np.ndarray, coefficients: Sequence[float]) -> np.ndarray:
    value = np.full_like(x, f32(coefficients[0]))
    for c in coefficients[1:]:
        value = add(mul(value, x), f32(c))
    return value


_LN2_HIGH, _LN2_LOW = f32(0.693359375), f32(-0.000212194442)


def exp(x: ArrayLike) -> np.ndarray:
    """e^x; 0 below -86, e^88 above 88. Relative error 1.2e-7."""
    shape = np.shape(x)
    x = np.asarray(x, dtype=np.float32).reshape(-1)
    limited = np.clip(x, f32(-86), f32(88))
    n = round_to_even(mul(limited, f32(1.44269502)))
    r = sub(sub(limited, mul(n, _LN2_HIGH)), mul(n, _LN2_LOW))
    p = _horner(r, (0.00139269268, 0.00836377405, 0.0416665487, 0.166665733, 0.5))
    mantissa = add(add(f32(1), r), mul(mul(r, r), p))
    scaled = (mantissa.view(np.int32) + (n.astype(np.int32) << 23)).view(np.float32)
    return np.where(x < f32(-86), f32(0), scaled).reshape(shape)


def log(x: ArrayLike) -> np.ndarray:
    """Natural logarithm of normal positive float32. Relative error 8.5e-8.

    Nothing here can be subnormal, so nothing is flushed: sampling calls this every token.
    """
    x = np.asarray(x, dtype=np.float32)
    bits = x.reshape(-1).view(np.int32)
    m = ((bits & 0x7FFFFF) | 0x3F800000).view(np.float32)
    upper = m > f32(1.41421354)
    mantissa = np.where(upper, m * f32(0.5), m)
    e = ((bits >> 23) - 127 + upper).astype(np.float32)
    f = mantissa - f32(1)
    square = f * f
    p = np.full_like(f, _LOG_COEFFICIENTS[0])
    for c in _LOG_COEFFICIENTS[1:]:
        p = p * f + c
    tail = (f * square) * p
    tail = tail + e * _LN2_LOW
    tail = tail - f32(0.5) * square
    return ((f + tail) + e * _LN2_HIGH).reshape(x.shape)


_LOG_COEFFICIENTS = tuple(
    f32(c)
    for c in (
        -0.0790274367,
        0.126223192,
        -0.129981831,
        0.142144963,
        -0.166412815,
        0.200010449,
        -0.25000307,
        0.333333313,
    )
)


def cos_sin(phase: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine of uint32 phases in turns * 2^32. Absolute error 1.3e-7."""
    phase = np.asarray(phase, dtype=np.uint32)
    quadrant = (phase + np.uint32(0x20000000)) >> np.uint32(30)
    rest = (phase - (quadrant << np.uint32(30))).view(np.int32)
    a = mul(rest.astype(np.float32), f32(1.46291812e-09))
    z = mul(a, a)
    s = _horner(z, (-0.000195878907, 0.00833274797, -0.166666642))
    near_sine = add(a, mul(mul(a, z), s))
    c = _horner(z, (2.45479423e-05, -0.00138883025, 0.0416666642))
    near_cosine = add(sub(f32(1), mul(f32(0.5), z)), mul(mul(z, z), c))
    swap = (quadrant & 1) == 1
    u = np.where(swap, near_sine, near_cosine)
    v = np.where(swap, near_cosine, near_sine)
    return (
        np.where((quadrant == 1) | (quadrant == 2), -u, u),
        np.where(quadrant >= 2, -v, v),
    )


def tree_sum(values: np.ndarray) -> np.ndarray:
    """Sum over the last axis (a power of two): halves are added until one is left."""
    while values.shape[-1] > 1:
        half = values.shape[-1] // 2
        values = add(values[..., :half], values[..., half:])
    return values[..., 0]


def lane_sum(products: np.ndarray, lanes: int) -> np.ndarray:
    """Sum over the last axis: element i to partial sum i % lanes, then the tree."""
    n = products.shape[-1]
    padded = -(-n // lanes) * lanes
    values = np.zeros((*products.shape[:-1], padded), np.float32)
    values[..., :n] = products
    parts = values.reshape(*products.shape[:-1], -1, lanes)
    total = parts[..., 0, :]
    for i in range(1, parts.shape[-2]):
        total = add(total, parts[..., i, :])
    return tree_sum(total)


# ---- sampling noise -------------------------------------------------------------------


def _mix(h: np.ndarray) -> np.ndarray:
    h = np.asarray(h, dtype=np.uint32)
    h = h ^ (h >> np.uint32(16))
    h = h * np.uint32(0x85EBCA6B)
    h = h ^ (h >> np.uint32(13))
    h = h * np.uint32(0xC2B2AE35)
    return h ^ (h >> np.uint32(16))


def gumbel_noise(seed: int, position: int, ids: np.ndarray) -> np.ndarray:
    """Gumbel(0, 1) noise, a function of (seed, position, token id) only.

    Parameters
    ----------
    seed : int
        0 to 2^64 - 1.
    position : int
    ids : (n,) int

    Returns
    -------
    (n,) float32
        argmax(logit / temperature + noise) is a sample of the softmax.
    """
    golden = 0x9E3779B9
    key = _mix(np.array([(seed & 0xFFFFFFFF) ^ golden], np.uint32))
    key = _mix(key ^ np.uint32(seed >> 32))
    key = _mix(key ^ np.uint32((position * golden) & 0xFFFFFFFF))
    h = _mix(key ^ (np.asarray(ids, dtype=np.uint32) * np.uint32(golden)))
    u = ((h >> np.uint32(9)) * np.uint32(2) + np.uint32(1)).astype(np.float32) * f32(2**-24)
    return -log(-log(u))


# ---- stages ---------------------------------------------------------------------------


def quantize_groups(x: np.ndarray, group_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Activations to symmetric int8, one scale per group; the last group is zero-padded.

    Parameters
    ----------
    x : (rows, n) float32
    group_size : int

    Returns
    -------
    q : (rows, groups * group_size) int8
    scale : (rows, groups) float32
        max(|group|) / 127; 0 where that maximum is under 2^-100; not finite where a value
        of the group is not.

    References
    ----------
    llama2.c, runq.c, quantize()
    """
    rows, n = x.shape
    groups = -(-n // group_size)
    padded = np.zeros((rows, groups * group_size), np.float32)
    padded[:, :n] = x
    padded = padded.reshape(rows, groups, group_size)
    largest = np.max(np.abs(padded), axis=-1)
    live = ~(largest < f32(2.0**-100))
    safe = np.where(live, largest, f32(1))
    up = np.where(live, div(f32(127), safe), f32(0))
    with np.errstate(invalid="ignore"):
        rounded = round_to_even(mul(padded, up[..., None]))
        q = np.where(np.abs(rounded) <= 128, rounded, 0).astype(np.int8)  # NaN is not
    return q.reshape(rows, -1), np.where(live, div(largest, f32(127)), f32(0))


@dataclass(frozen=True)
class QuantizedMatrix:
    """A weight matrix as the kernel knows it.

    Attributes
    ----------
    q : (out, groups * group_size) int8
    scale : (out, groups) float32
    bits : {8, 4}
        4: q is -8 to 7, and is stored two to a byte.
    """

    q: np.ndarray
    scale: np.ndarray
    bits: int = 8

    @property
    def group_size(self) -> int:
        return self.q.shape[1] // self.scale.shape[1]

    def dequantize(self) -> np.ndarray:
        """(out, groups * group_size) float32."""
        groups = self.q.reshape(*self.scale.shape, -1).astype(np.float32)
        return mul(groups, self.scale[..., None]).reshape(self.q.shape)


def matvec(weight: QuantizedMatrix, q: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Quantised rows times a quantised matrix, groups added in ascending order.

    Parameters
    ----------
    weight : QuantizedMatrix
    q : (rows, in) int8
    scale : (rows, groups) float32

    Returns
    -------
    (rows, out) float32
    """
    rows, groups = scale.shape
    size = weight.group_size
    total = np.zeros((rows, weight.q.shape[0]), np.float32)
    # A group's dot product is below 2^24, so float32 matmul would be exact as well; float64
    # leaves no doubt.
    for g in range(groups):
        part = slice(g * size, (g + 1) * size)
        dot = q[:, part].astype(np.float64) @ weight.q[:, part].astype(np.float64).T
        scaled = mul(mul(dot.astype(np.float32), weight.scale[:, g]), scale[:, g : g + 1])
        total = add(total, scaled)
    return total


def rms_norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """x / sqrt(mean(x^2) + 1e-5) * weight, over the last axis."""
    x, weight = flush(x), flush(weight)  # both may come from outside the kernel
    count = f32(x.shape[-1])
    total = add(lane_sum(mul(x, x), NORM_SUMS), mul(count, RMS_EPSILON))
    with np.errstate(invalid="ignore"):
        # An overflow must not end as a row of zeros.
        finite = total < f32(np.inf)
        factor = np.where(finite, div(np.sqrt(count), np.sqrt(total)), f32(np.nan))
        return mul(mul(x, factor[..., None]), weight)


def rope_turns(head_size: int, theta: float) -> np.ndarray:
    """Turns per position of each pair, as a 64-bit fraction.

    Computed in decimal arithmetic, so that every machine gets the same bits.

    Parameters
    ----------
    head_size : int
    theta : float

    Returns
    -------
    (head_size // 2,) uint64
        theta^(-2i / head_size) / (2 pi) * 2^64
    """
    return _rope_turns(head_size, float(theta)).copy()


@lru_cache(maxsize=8)
def _rope_turns(head_size: int, theta: float) -> np.ndarray:
    with localcontext() as context:
        context.prec = 50
        pi = Decimal("3.14159265358979323846264338327950288419716939937510")
        log_theta = Decimal(theta).ln()
        table = []
        for i in range(head_size // 2):
            turns = (log_theta * Decimal(-2 * i) / Decimal(head_size)).exp() / (2 * pi)
            scaled = (turns * Decimal(2) ** 64).to_integral_value(ROUND_HALF_EVEN)
            table.append(int(scaled) % 2**64)
    return np.array(table, dtype=np.uint64)


def rotate(x: np.ndarray, positions: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """Rotary embedding of pairs (2i, 2i + 1).

    Parameters
    ----------
    x : (rows, heads, head_size) float32
    positions : (rows,) int
    turns : (head_size // 2,) uint64
    """
    phase = turns[None, :] * np.asarray(positions, np.uint64)[:, None]
    c, s = cos_sin((phase >> np.uint64(32)).astype(np.uint32))
    c, s = c[:, None, :], s[:, None, :]
    a, b = x[..., 0::2], x[..., 1::2]
    out = np.empty_like(x)
    out[..., 0::2] = sub(mul(a, c), mul(b, s))
    out[..., 1::2] = add(mul(a, s), mul(b, c))
    return out


def attend(
    query: np.ndarray, keys: np.ndarray, values: np.ndarray, scales: np.ndarray | None = None
) -> np.ndarray:
    """One row's attention, block by block, with an online softmax.

    Parameters
    ----------
    query : (n_heads, head_size) float32
    keys, values : (positions, n_kv_heads, head_size) float32
        Of an int8 cache the integers.
    scales : (2, positions, n_kv_heads) float32, optional
        What keys and values are multiplied by; default 1.

    Returns
    -------
    (n_heads, head_size) float32
    """
    n_heads, head_size = query.shape
    positions, n_kv_heads, _ = keys.shape
    shared = n_heads // n_kv_heads
    root = np.sqrt(f32(head_size))
    if scales is None:
        scales = np.ones((2, positions, n_kv_heads), np.float32)
    maximum = np.full(n_heads, _LOWEST)
    total = np.zeros(n_heads, np.float32)
    out = np.zeros((n_heads, head_size), np.float32)
    for first in range(0, positions, BLOCK):
        # (block, n_heads, head_size)
        k = np.repeat(keys[first : first + BLOCK], shared, axis=1)
        v = np.repeat(values[first : first + BLOCK], shared, axis=1)
        key_scale, value_scale = np.repeat(scales[:, first : first + BLOCK], shared, axis=2)
        scores = np.full((n_heads, BLOCK), _LOWEST)
        dots = mul(lane_sum(mul(query[None], k), REDUCE_LANES), key_scale)
        scores[:, : len(k)] = div(dots, root).T
        larger = np.maximum(maximum, scores.max(axis=1))
        weights = exp(sub(scores, larger[:, None]))
        shrink = exp(sub(maximum, larger))
        total = add(mul(total, shrink), tree_sum(weights))
        sums = np.zeros((n_heads, head_size, VALUE_SUMS), np.float32)
        scaled = mul(weights[:, : len(k)], value_scale.T)
        for t in range(len(k)):
            part = sums[..., t % VALUE_SUMS]
            sums[..., t % VALUE_SUMS] = add(part, mul(scaled[:, t : t + 1], v[t]))
        out = add(mul(out, shrink[:, None]), tree_sum(sums))
        maximum = larger
    return div(out, total[:, None])


def round_heads(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What an int8 KV cache holds of (rows, heads, head_size): integers, (rows, heads) scales."""
    q, scale = quantize_groups(x.reshape(-1, x.shape[-1]), x.shape[-1])
    return q.astype(np.float32).reshape(x.shape), scale.reshape(x.shape[:-1])


def swiglu(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """silu(gate) * up."""
    return mul(div(gate, add(f32(1), exp(-gate))), up)


def log_sum_exp(logits: np.ndarray) -> np.float32:
    """Log-sum-exp of (n,) float32, online over blocks of 32."""
    maximum: np.ndarray = np.array(_LOWEST)
    total: np.ndarray = np.array(f32(0))
    for first in range(0, len(logits), BLOCK):
        values = np.full(BLOCK, _LOWEST)
        part = logits[first : first + BLOCK]
        values[: len(part)] = part
        larger = np.maximum(maximum, values.max())
        total = add(mul(total, exp(sub(maximum, larger))), tree_sum(exp(sub(values, larger))))
        maximum = larger
    return f32(add(maximum, log(total)))


@dataclass(frozen=True)
class Truncation:
    """What top-k, top-p and min-p keep; 0, 1 and 0 keep all."""

    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __bool__(self) -> bool:
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0


KEEP_ALL = Truncation()


def choose_from_top(
    ids: np.ndarray,
    logits: np.ndarray,
    lse_temperature: float | np.float32,
    vocab_size: int,
    temperature: float,
    truncation: Truncation,
    seed: int,
    position: int,
) -> tuple[int, int] | None:
    """The token that noise makes the best of those that truncation keeps.

    Parameters
    ----------
    ids, logits : (n,)
        The n largest of `vocab_size`, descending; of equals the lower id first.
    lse_temperature : float
        Log-sum-exp of logit / temperature over the whole vocabulary.
    vocab_size : int
    temperature : float
    truncation : Truncation
    seed, position : int
        Of the noise.

    Returns
    -------
    (int, int) or None
        Index of the token, and how many were kept; None if n are too few to tell.
    """
    limited, nucleus = 0 < truncation.top_k < vocab_size, truncation.top_p < 1
    limit = truncation.top_k if limited else vocab_size
    if limited and nucleus and limit > len(logits):
        return None  # what top-k leaves is a distribution of its own, whose total is not known
    tempered = div(logits[:limit], f32(temperature))
    weights = exp(sub(tempered, tempered[0]))
    mass = np.cumsum(weights, dtype=np.float32)
    total = mass[-1] if limited else exp(sub(f32(lse_temperature), tempered[0]))
    # One further than there are: whether the next would be kept.
    ends = np.append(weights < f32(truncation.min_p), limit <= len(logits))
    if nucleus:
        ends[1:] |= mass >= mul(f32(truncation.top_p), total)
    if not ends.any():
        return None
    kept = int(ends.argmax())
    scores = add(tempered[:kept], gumbel_noise(seed, position, ids[:kept]))
    return int(scores.argmax()), kept


@dataclass(frozen=True)
class Sample:
    """What the kernel returns for a row: see `hls_src/contract.h`, kResult..."""

    token: int
    kept: int
    lse: np.float32
    lse_temperature: np.float32
    top_ids: np.ndarray
    top_logits: np.ndarray


def sample(
    logits: np.ndarray,
    temperature: float,
    seed: int,
    position: int,
    top_logits: int,
    truncation: Truncation = KEEP_ALL,
) -> Sample:
    """Greedy (temperature 0) or Gumbel-max sampling of (vocab_size,) float32 logits."""
    n = len(logits)
    order = np.argsort(-logits, kind="stable")[:top_logits]
    top = logits[order] + f32(0)  # a zero has no sign among them
    lse = log_sum_exp(logits)
    if temperature == 0:
        return Sample(int(order[0]), 1, lse, lse, order, top)
    tempered = div(logits, f32(temperature))
    lse_temperature = log_sum_exp(tempered)
    if not truncation:
        scores = add(tempered, gumbel_noise(seed, position, np.arange(n)))
        return Sample(int(np.argmax(scores)), n, lse, lse_temperature, order, top)
    choice = choose_from_top(
        order, top, lse_temperature, n, temperature, truncation, seed, position
    )
    token, kept = (int(order[choice[0]]), choice[1]) if choice else (TOKEN_UNDECIDED, 0)
    return Sample(token, kept, lse, lse_temperature, order, top)


# ---- models ---------------------------------------------------------------------------


class _Weights(Protocol):
    """Where a model's tensors come from: a `Checkpoint`, or anything shaped like one."""

    config: ModelConfig

    def tensor(self, name: str, layer: int | None = None) -> np.ndarray: ...


class _Cache:
    """Keys and values per layer and slot, and their scales."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._slots: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}

    def write(
        self, layer: int, slot: int, position: int, kv: np.ndarray, scales: np.ndarray | None = None
    ) -> None:
        """(2, n_kv_heads, head_size) keys and values; (2, n_kv_heads) scales, default 1."""
        c = self._config
        shape = (2, c.seq_len, c.n_kv_heads)
        new = np.zeros((*shape, c.head_size), np.float32), np.ones(shape, np.float32)
        cache, cached_scales = self._slots.setdefault((layer, slot), new)
        cache[:, position] = kv
        cached_scales[:, position] = 1 if scales is None else scales

    def read(self, layer: int, slot: int, positions: int) -> tuple[np.ndarray, ...]:
        """Keys, values and scales as `attend` takes them."""
        cache, scales = self._slots[layer, slot]
        return cache[0, :positions], cache[1, :positions], scales[:, :positions]


class FloatModel:
    """llama2.c's float32 model.

    Parameters
    ----------
    weights : Checkpoint
        Read whole into memory.

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

    def reset(self) -> None:
        """Forget every sequence."""
        self._cache = _Cache(self.config)

    def forward(
        self, tokens: Sequence[int], positions: Sequence[int], slots: Sequence[int] | None = None
    ) -> np.ndarray:
        """Logits of each row, (rows, vocab_size) float32."""
        x = self.residual_stream(tokens, positions, slots)[-1]
        return self._norm(x, self._final) @ self._classifier.T

    @staticmethod
    def _norm(v: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return v / np.sqrt(np.mean(v * v, axis=-1, keepdims=True) + RMS_EPSILON) * weight

    def residual_stream(
        self, tokens: Sequence[int], positions: Sequence[int], slots: Sequence[int] | None = None
    ) -> np.ndarray:
        """Before each layer and after the last, (n_layers + 1, rows, dim) float32."""
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
    """What `KernelModel` computes with: `packed.QuantizedModel` is one."""

    config: ModelConfig
    group_size: int
    weight_bits: int

    def matrix(self, name: str, layer: int | None = None) -> QuantizedMatrix: ...

    def vector(self, name: str, layer: int | None = None) -> np.ndarray: ...


class KernelModel:
    """The kernel's arithmetic, step by step.

    Parameters
    ----------
    weights : QuantizedWeights
        The same values and scales that are packed for the kernel.
    kv_bits : {32, 8}
        What the KV cache holds.
    """

    def __init__(self, weights: QuantizedWeights, kv_bits: int = 32) -> None:
        self.config = weights.config
        self._kv_bits = kv_bits
        self._weights = weights
        self._cache = _Cache(self.config)
        self._turns = rope_turns(self.config.head_size, self.config.rope_theta)
        self._embedding = weights.matrix("token_embedding_table")

    def reset(self) -> None:
        """Forget every sequence."""
        self._cache = _Cache(self.config)

    def embed(self, tokens: Sequence[int]) -> np.ndarray:
        """(rows, dim) float32: the tokens' rows of the embedding, dequantised."""
        rows = QuantizedMatrix(self._embedding.q[list(tokens)], self._embedding.scale[list(tokens)])
        return rows.dequantize()[:, : self.config.dim]

    def layer(
        self, index: int, x: np.ndarray, positions: Sequence[int], slots: Sequence[int]
    ) -> np.ndarray:
        """One layer: residual stream (rows, dim) in, (rows, dim) out."""
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
        """The KV cache, (2, n_layers, n_kv_heads, positions, head_size) float32.

        As `driver.LlamaDriver.read_cache`: of an int8 cache, integers times their scale.
        """
        layers = []
        for index in range(self.config.n_layers):
            keys, values, scales = self._cache.read(index, slot, positions)
            layers.append(np.stack([keys, values]) * scales[..., None])
        return np.stack(layers, axis=1).swapaxes(2, 3)

    def classify(self, x: np.ndarray) -> np.ndarray:
        """Logits (rows, vocab_size) float32 of a residual stream (rows, dim)."""
        w = self._weights
        h = quantize_groups(rms_norm(x, w.vector("rms_final_weight")), w.group_size)
        return matvec(w.matrix("wcls"), *h)

    def forward(
        self, tokens: Sequence[int], positions: Sequence[int], slots: Sequence[int] | None = None
    ) -> np.ndarray:
        """Logits of each row, (rows, vocab_size) float32."""
        slots = slots or [0] * len(tokens)
        x = self.embed(tokens)
        for index in range(self.config.n_layers):
            x = self.layer(index, x, positions, slots)
        return self.classify(x)
