"""Tensor types of GGML, as GGUF files hold them: from blocks of bytes to float32.

A row of a tensor is whole blocks. A block holds float16 scales and small integers; how they lie in
it is ggml's own format, which this module reads with NumPy, many blocks at once.

References
----------
ggml-org/ggml, src/ggml-common.h (the blocks) and src/ggml-quants.c (dequantize_row_*).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Blocks = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class GgmlType:
    """A type of tensor.

    Attributes
    ----------
    name : str
        As llama.cpp prints it.
    block : int
        Weights in a block.
    n_bytes : int
        Bytes of a block.
    to_float32 : callable
        Takes (n, n_bytes) uint8, returns (n, block) float32.
    integers : callable or None
        For a type whose weights are integers of 8 bits times a scale: takes blocks, returns the
        (n, block) int8. The scale is the float16 that a block begins with.
    """

    name: str
    block: int
    n_bytes: int
    to_float32: Callable[[Blocks], Floats]
    integers: Callable[[Blocks], npt.NDArray[np.int8]] | None = None


def block_scales(blocks: Blocks) -> Floats:
    """Scales of blocks whose type has `integers`.

    Parameters
    ----------
    blocks : (n, n_bytes) uint8

    Returns
    -------
    (n,) float32
    """
    return _f16(blocks, 0)[:, 0]


# ---- parts of a block -----------------------------------------------------------------


def _f16(blocks: Blocks, at: int) -> Floats:
    """The float16 at a byte of each block, (n, 1) float32."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(packed: Blocks) -> npt.NDArray[np.uint8]:
    """(n, k) bytes to (n, 2k) numbers of 4 bits: all low halves, then all high ones."""
    return np.concatenate((packed & 0xF, packed >> 4), axis=1)


def _bits(packed: Blocks) -> npt.NDArray[np.uint8]:
    """(n, k) bytes to (n, 8k) bits, the lowest of each byte first."""
    return np.unpackbits(packed, axis=1, bitorder="little")


def _six_bit_pairs(packed: Blocks) -> tuple[Floats, Floats]:
    """The 8 scales and 8 minima of 6 bits in the 12 bytes of Q4_K and Q5_K, each (n, 8)."""
    low, high, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate((low & 63, (rest & 0xF) | (low >> 6 << 4)), axis=1)
    minima = np.concatenate((high & 63, (rest >> 4) | (high >> 6 << 4)), axis=1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _sub_blocks(q: np.ndarray, scale: Floats, minimum: Floats | None = None) -> Floats:
    """(n, 256) integers times the scales (n, k) of their k parts, less minima; (n, 256)."""
    parts = q.astype(np.float32).reshape(len(q), scale.shape[1], -1) * scale[:, :, None]
    if minimum is not None:
        parts -= minimum[:, :, None]
    return parts.reshape(len(q), -1)


# ---- types ----------------------------------------------------------------------------


def _from_f32(blocks: Blocks) -> Floats:
    return blocks.view("<f4").astype(np.float32)


def _from_f16(blocks: Blocks) -> Floats:
    return blocks.view("<f2").astype(np.float32)


def _from_bf16(blocks: Blocks) -> Floats:
    return (blocks.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _integers_q4_0(blocks: Blocks) -> npt.NDArray[np.int8]:
    return _nibbles(blocks[:, 2:]).view(np.int8) - np.int8(8)


def _integers_q5_0(blocks: Blocks) -> npt.NDArray[np.int8]:
    q = _nibbles(blocks[:, 6:]) | _bits(blocks[:, 2:6]) << 4
    return q.view(np.int8) - np.int8(16)


def _integers_q8_0(blocks: Blocks) -> npt.NDArray[np.int8]:
    return blocks[:, 2:].view(np.int8)


def _integers_iq4_nl(blocks: Blocks) -> npt.NDArray[np.int8]:
    return _IQ4_NL[_nibbles(blocks[:, 2:])]


def _of_integers(name: str, n_bytes: int, integers: Callable[[Blocks], np.ndarray]) -> GgmlType:
    """A type of blocks of 32 integers and a scale."""

    def to_float32(blocks: Blocks) -> Floats:
        return _f16(blocks, 0) * integers(blocks).astype(np.float32)

    return GgmlType(name, 32, n_bytes, to_float32, integers)


def _from_q4_1(blocks: Blocks) -> Floats:
    return _f16(blocks, 0) * _nibbles(blocks[:, 4:]).astype(np.float32) + _f16(blocks, 2)


def _from_q5_1(blocks: Blocks) -> Floats:
    q = _nibbles(blocks[:, 8:]) | _bits(blocks[:, 4:8]) << 4
    return _f16(blocks, 0) * q.astype(np.float32) + _f16(blocks, 2)


_IQ4_NL = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8
)
"""Values of IQ4_NL's 16 codes (ggml-common.h, kvalues_iq4nl)."""


def _two_bits(packed: Blocks) -> np.ndarray:
    """The 256 numbers of 2 bits in 64 bytes: of each 32 bytes the lowest 2 bits, then the next."""
    halves = packed.reshape(len(packed), 2, 1, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    return (halves >> shifts & 3).reshape(len(packed), 256)


def _from_q2_k(blocks: Blocks) -> Floats:
    scales = blocks[:, :16]
    scale = _f16(blocks, 80) * (scales & 0xF).astype(np.float32)
    minimum = _f16(blocks, 82) * (scales >> 4).astype(np.float32)
    return _sub_blocks(_two_bits(blocks[:, 16:80]), scale, minimum)


def _from_q3_k(blocks: Blocks) -> Floats:
    packed = blocks[:, 96:108]
    low = _nibbles(packed[:, :8])  # the lower 4 bits of 16 scales; the upper 2 are in the last 4
    high = np.concatenate([packed[:, 8:] >> shift & 3 for shift in (0, 2, 4, 6)], axis=1)
    scale = _f16(blocks, 108) * ((low | high << 4).astype(np.float32) - 32)
    # Bit i of each of the 32 mask bytes belongs to the i-th 32 weights.
    mask = np.concatenate([blocks[:, :32] >> i & 1 for i in range(8)], axis=1)
    q = _two_bits(blocks[:, 32:96]).astype(np.float32) - 4 * (1 - mask.astype(np.float32))
    return _sub_blocks(q, scale)


def _from_q4_k(blocks: Blocks) -> Floats:
    scales, minima = _six_bit_pairs(blocks[:, 4:16])
    q = _nibbles(blocks[:, 16:].reshape(-1, 32)).reshape(len(blocks), 256)
    return _sub_blocks(q, _f16(blocks, 0) * scales, _f16(blocks, 2) * minima)


def _from_q5_k(blocks: Blocks) -> Floats:
    scales, minima = _six_bit_pairs(blocks[:, 4:16])
    q = _nibbles(blocks[:, 48:].reshape(-1, 32)).reshape(len(blocks), 256)
    high = np.concatenate([blocks[:, 16:48] >> i & 1 for i in range(8)], axis=1)
    return _sub_blocks(q | high << 4, _f16(blocks, 0) * scales, _f16(blocks, 2) * minima)


def _from_q6_k(blocks: Blocks) -> Floats:
    low = _nibbles(blocks[:, :128].reshape(-1, 64)).reshape(len(blocks), 256)
    high = _two_bits(blocks[:, 128:192])
    scale = _f16(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    return _sub_blocks((low | high << 4).astype(np.float32) - 32, scale)


TYPES = {
    0: GgmlType("F32", 1, 4, _from_f32),
    1: GgmlType("F16", 1, 2, _from_f16),
    2: _of_integers("Q4_0", 18, _integers_q4_0),
    3: GgmlType("Q4_1", 32, 20, _from_q4_1),
    6: _of_integers("Q5_0", 22, _integers_q5_0),
    7: GgmlType("Q5_1", 32, 24, _from_q5_1),
    8: _of_integers("Q8_0", 34, _integers_q8_0),
    10: GgmlType("Q2_K", 256, 84, _from_q2_k),
    11: GgmlType("Q3_K", 256, 110, _from_q3_k),
    12: GgmlType("Q4_K", 256, 144, _from_q4_k),
    13: GgmlType("Q5_K", 256, 176, _from_q5_k),
    14: GgmlType("Q6_K", 256, 210, _from_q6_k),
    20: _of_integers("IQ4_NL", 18, _integers_iq4_nl),
    30: GgmlType("BF16", 1, 2, _from_bf16),
}
"""The types that are read, by GGUF's number."""

OTHER_TYPES = {
    15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S", 22: "IQ2_S",
    23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0",
    35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
"""Names of types that are not read, for messages."""
