"""GGML's tensor types beside llama.cpp's own Python library."""

import gguf
import numpy as np
import pytest

from llama_pynq.checkpoint.ggml_types import OTHER_TYPES, TYPES

_SCALES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,)}  # bytes of the float16 in a block
_TWO = ("Q4_1", "Q5_1", "Q4_K", "Q5_K")
_FLOATS = {"F32": "<f4", "F16": "<f2"}


def random_blocks(kind, n, rng):
    """Blocks of any bits, with finite scales."""
    blocks = rng.integers(0, 256, (n, kind.n_bytes), np.uint8)
    if kind.block == 1:
        dtype = _FLOATS.get(kind.name, "<f4")
        values = rng.normal(size=(n, 1)).astype(dtype).view(np.uint8)
        return np.ascontiguousarray(values[:, -kind.n_bytes :])
    for at in _SCALES.get(kind.name, (0, 2) if kind.name in _TWO else (0,)):
        blocks[:, at : at + 2] = rng.normal(size=(n, 1)).astype("<f2").view(np.uint8)
    return blocks


@pytest.mark.parametrize("number", TYPES, ids=lambda number: TYPES[number].name)
def test_blocks_of_any_bits_are_what_the_library_reads(number):
    kind, oracle = TYPES[number], gguf.GGMLQuantizationType(number)
    assert oracle.name == kind.name
    assert gguf.GGML_QUANT_SIZES[oracle] == (kind.block, kind.n_bytes)
    blocks = random_blocks(kind, 1000, np.random.default_rng(number))
    data = blocks.reshape(-1).view(_FLOATS.get(kind.name, np.uint8))
    expected = np.asarray(gguf.quants.dequantize(data, oracle), np.float32)
    found = kind.to_float32(blocks)
    assert found.shape == (1000, kind.block) and found.dtype == np.float32
    assert np.array_equal(found.reshape(-1), expected.reshape(-1))


def test_names_of_types_that_are_not_read_are_the_librarys():
    for number, name in OTHER_TYPES.items():
        assert gguf.GGMLQuantizationType(number).name == name
        assert number not in TYPES
