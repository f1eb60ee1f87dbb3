"""Float arithmetic of the kernel in NumPy, bit for bit: the twin of ``hls_src/float_math.h``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

f32 = np.float32

_TINY = np.finfo(np.float32).tiny
_LN2_HIGH, _LN2_LOW = f32(0.693359375), f32(-0.000212194442)
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


def flush(x: np.ndarray) -> np.ndarray:
    """Flush subnormal float32 values to zero of the same sign, as AMD's float cores do."""
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

    No intermediate can be subnormal. Not flushing saves time: sampling calls this every token.
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
    """Sum over the last axis (a power of two): add the halves until one value is left."""
    while values.shape[-1] > 1:
        half = values.shape[-1] // 2
        values = add(values[..., :half], values[..., half:])
    return values[..., 0]


def lane_sum(products: np.ndarray, lanes: int) -> np.ndarray:
    """Sum over the last axis: add element i to partial sum i % lanes, then `tree_sum`."""
    n = products.shape[-1]
    padded = -(-n // lanes) * lanes
    values = np.zeros((*products.shape[:-1], padded), np.float32)
    values[..., :n] = products
    parts = values.reshape(*products.shape[:-1], -1, lanes)
    total = parts[..., 0, :]
    for i in range(1, parts.shape[-2]):
        total = add(total, parts[..., i, :])
    return tree_sum(total)


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
