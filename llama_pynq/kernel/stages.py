"""Stages of the kernel in NumPy, bit for bit: the twin of ``hls_src/stages/``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from functools import lru_cache

import numpy as np

from llama_pynq.kernel.abi import (
    BLOCK,
    NORM_SUMS,
    REDUCE_LANES,
    TOKEN_UNDECIDED,
    VALUE_SUMS,
)
from llama_pynq.kernel.float_math import (
    add,
    cos_sin,
    div,
    exp,
    f32,
    flush,
    gumbel_noise,
    lane_sum,
    log,
    mul,
    round_to_even,
    sub,
    tree_sum,
)

RMS_EPSILON = f32(1e-5)

_LOWEST = f32(-1e30)


def quantize_groups(x: np.ndarray, group_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Quantise activations to symmetric int8, one scale per group; zero-pad the last group.

    Parameters
    ----------
    x : (rows, n) float32
    group_size : int

    Returns
    -------
    q : (rows, groups * group_size) int8
    scale : (rows, groups) float32
        max(|group|) / 127; 0 if that maximum is below 2^-100; not finite if a value of the
        group is not.

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
        q = np.where(np.abs(rounded) <= 128, rounded, 0).astype(np.int8)  # NaN becomes 0
    return q.reshape(rows, -1), np.where(live, div(largest, f32(127)), f32(0))


@dataclass(frozen=True)
class QuantizedMatrix:
    """A quantised weight matrix: integers, and one scale per group.

    Attributes
    ----------
    q : (out, groups * group_size) int8
    scale : (out, groups) float32
    bits : {8, 4}
        4: q is -8 to 7, packed two to a byte.
    """

    q: np.ndarray
    scale: np.ndarray
    bits: int = 8

    @property
    def group_size(self) -> int:
        """Weights that share a scale."""
        return self.q.shape[1] // self.scale.shape[1]

    def dequantize(self) -> np.ndarray:
        """Return the weights as (out, groups * group_size) float32."""
        groups = self.q.reshape(*self.scale.shape, -1).astype(np.float32)
        return mul(groups, self.scale[..., None]).reshape(self.q.shape)


def matvec(weight: QuantizedMatrix, q: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Multiply quantised rows by a quantised matrix; add the groups in ascending order.

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
    # A group's dot product is below 2^24, so a float32 matmul would be exact too; in float64 no
    # order of additions matters.
    for g in range(groups):
        part = slice(g * size, (g + 1) * size)
        dot = q[:, part].astype(np.float64) @ weight.q[:, part].astype(np.float64).T
        scaled = mul(mul(dot.astype(np.float32), weight.scale[:, g]), scale[:, g : g + 1])
        total = add(total, scaled)
    return total


def rms_norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """x / sqrt(mean(x^2) + 1e-5) * weight, over the last axis."""
    x, weight = flush(x), flush(weight)  # both may come from outside the kernel, unflushed
    count = f32(x.shape[-1])
    total = add(lane_sum(mul(x, x), NORM_SUMS), mul(count, RMS_EPSILON))
    with np.errstate(invalid="ignore"):
        # An overflow gives NaN: 1 / sqrt(inf) would give a row of zeros.
        finite = total < f32(np.inf)
        factor = np.where(finite, div(np.sqrt(count), np.sqrt(total)), f32(np.nan))
        return mul(mul(x, factor[..., None]), weight)


def rope_turns(head_size: int, theta: float, divisors: Sequence[float] | None = None) -> np.ndarray:
    """RoPE turns per position of each pair, as a 64-bit fraction.

    Computed in decimal arithmetic, so that every machine gets the same bits.

    Parameters
    ----------
    head_size : int
    theta : float
    divisors : sequence of float, optional
        What each pair's frequency is divided by; default 1.

    Returns
    -------
    (head_size // 2,) uint64
        theta^(-2i / head_size) / divisor / (2 pi) * 2^64
    """
    return _rope_turns(head_size, float(theta), tuple(divisors or ())).copy()


@lru_cache(maxsize=8)
def _rope_turns(head_size: int, theta: float, divisors: tuple[float, ...]) -> np.ndarray:
    with localcontext() as context:
        context.prec = 50
        pi = Decimal("3.14159265358979323846264338327950288419716939937510")
        log_theta = Decimal(theta).ln()
        table = []
        for i in range(head_size // 2):
            turns = (log_theta * Decimal(-2 * i) / Decimal(head_size)).exp() / (2 * pi)
            if divisors:
                turns /= Decimal(divisors[i])
            scaled = (turns * Decimal(2) ** 64).to_integral_value(ROUND_HALF_EVEN)
            table.append(int(scaled) % 2**64)
    return np.array(table, dtype=np.uint64)


def rotate(x: np.ndarray, positions: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """Apply the rotary embedding to pairs (2i, 2i + 1).

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
    """Attention of one row, block by block, with an online softmax.

    Parameters
    ----------
    query : (n_heads, head_size) float32
    keys, values : (positions, n_kv_heads, head_size) float32
        For an int8 cache, the integers.
    scales : (2, positions, n_kv_heads) float32, optional
        Scales of the keys and of the values; default 1.

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
    """Quantise (rows, heads, head_size) as an int8 KV cache: integers, (rows, heads) scales."""
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
    """Limits of top-k, top-p and min-p truncation; 0, 1 and 0 keep all tokens."""

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
    """Sample from the top logits that truncation keeps, by Gumbel-max.

    Parameters
    ----------
    ids, logits : (n,)
        The n largest of `vocab_size` logits, descending; ties in ascending order of id.
    lse_temperature : float
        Log-sum-exp of logit / temperature over the whole vocabulary.
    vocab_size : int
    temperature : float
    truncation : Truncation
    seed, position : int
        Seed and position of the Gumbel noise.

    Returns
    -------
    (int, int) or None
        Index of the token in `ids`, and the number of tokens kept; None if n logits are too
        few to decide.
    """
    limited, nucleus = 0 < truncation.top_k < vocab_size, truncation.top_p < 1
    limit = truncation.top_k if limited else vocab_size
    if limited and nucleus and limit > len(logits):
        return None  # top-p applies to what top-k keeps, and that total is unknown
    tempered = div(logits[:limit], f32(temperature))
    weights = exp(sub(tempered, tempered[0]))
    mass = np.cumsum(weights, dtype=np.float32)
    total = mass[-1] if limited else exp(sub(f32(lse_temperature), tempered[0]))
    # ends[i]: truncation drops token i. The last entry stands for the token after the n given.
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
    """Result that the kernel returns for a row; see kResult... in `hls_src/contract.h`."""

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
    top = logits[order] + f32(0)  # turns -0.0 into 0.0
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
