"""Quantisation of weights to int8 and int4."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import checkpoint_files
from support.checkpoint_files import quantize_q80, random_weights
from support.weight_shapes import CONFIG, UNTIED

from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.errors import LimitError
from llama_pynq.kernel.config import Target
from llama_pynq.weights.quantize import QuantizedModel, quantize_weights
from llama_pynq.weights.tiles import channel_bytes

f32 = np.float32


@settings(derandomize=True, deadline=None, max_examples=50)
@given(seed=st.integers(0, 1000), rows=st.integers(1, 5), n=st.integers(1, 200),
       group_size=st.sampled_from([32, 64]), size=st.integers(-90, 120))  # fmt: skip
def test_quantize_weights_within_half_a_step(seed, rows, n, group_size, size):
    w = (np.random.default_rng(seed).normal(0, 1, (rows, n)) * 2.0**size).astype(f32)
    matrix = quantize_weights(w, group_size)
    assert matrix.q.dtype == np.int8 and matrix.scale.dtype == f32
    assert matrix.group_size == group_size
    step = np.repeat(matrix.scale, group_size, axis=1)[:, :n].astype(np.float64)
    assert (np.abs(matrix.q[:, :n] * step - w) <= step * (0.5 + 1e-5)).all()
    assert (matrix.q[:, n:] == 0).all() and np.abs(matrix.q.astype(int)).max() == 127


@settings(derandomize=True, deadline=None, max_examples=50)
@given(seed=st.integers(0, 1000), rows=st.integers(1, 5), n=st.integers(1, 200),
       size=st.integers(-90, 120))  # fmt: skip
def test_quantize_weights_int4_best_of_its_scales(seed, rows, n, size):
    """Never worse than the scale max / 7, and no weight is off by more than a step."""
    w = (np.random.default_rng(seed).normal(0, 1, (rows, n)) * 2.0**size).astype(f32)
    matrix = quantize_weights(w, 64, 4)
    assert matrix.bits == 4 and matrix.q.min() >= -8 and matrix.q.max() <= 7
    assert (matrix.q[:, n:] == 0).all()
    padded = np.zeros(matrix.q.shape)
    padded[:, :n] = w
    groups = padded.reshape(rows, -1, 64)
    error = matrix.dequantize().astype(np.float64).reshape(groups.shape) - groups
    largest = np.abs(groups).max(axis=-1, keepdims=True)
    plain = np.where(largest > 0, largest, 1) / 7
    rounded = np.rint(groups / plain) * plain
    squares = np.square(rounded - groups).sum(axis=-1)
    assert (np.square(error).sum(axis=-1) <= squares * (1 + 1e-4)).all()
    assert (np.abs(error) <= largest / 6.5 * 1.001).all()


def test_quantize_weights_int4_exact_where_it_can_be():
    q = np.random.default_rng(1).integers(-7, 8, (3, 128)).astype(np.int8)
    q[:, ::64] = -7
    q[0, 64] = -8
    scale = np.array([[0.5, 0.25], [2.0, 1.0], [4.0, 2.0**-90]], f32)
    w = (q.reshape(3, 2, 64) * scale[..., None]).reshape(3, 128)
    np.testing.assert_array_equal(quantize_weights(w, 64, 4).dequantize(), w)


def test_quantize_weights_same_as_llama2c():
    w = np.random.default_rng(3).normal(0, 0.1, (5, 128)).astype(f32)
    q, scale = quantize_q80(w, 64)
    matrix = quantize_weights(w, 64)
    np.testing.assert_array_equal(matrix.q, q)
    np.testing.assert_array_equal(matrix.scale.reshape(-1), scale)


def test_quantize_weights_tiny_groups_become_zero():
    w = np.zeros((1, 128), f32)
    w[0, 32:64] = 127 * 2.0**-100
    w[0, 64:96] = 126 * 2.0**-100
    w[0, 96:] = 1e-42
    matrix = quantize_weights(w, 32)
    np.testing.assert_array_equal(matrix.scale, np.array([[0, 2.0**-100, 0, 0]], f32))
    assert (matrix.q[0, 32:64] == 127).all()
    assert not matrix.q[0, :32].any() and not matrix.q[0, 64:].any()


def test_quantized_model_of_float_weights(new_checkpoint):
    checkpoint = new_checkpoint(UNTIED, seed=1)
    model = QuantizedModel(checkpoint)
    assert not model.exact
    assert model.note == f"float32 weights quantised to int8 in groups of {model.group_size}"
    w = random_weights(UNTIED, 1)
    expected = quantize_weights(w["w2"][1], model.group_size)
    np.testing.assert_array_equal(model.matrix("w2", 1).q, expected.q)
    np.testing.assert_array_equal(model.matrix("w2", 1).scale, expected.scale)
    np.testing.assert_array_equal(model.vector("rms_ffn_weight", 1), w["rms_ffn_weight"][1])


@pytest.mark.parametrize("stored", [32, 64])
def test_quantized_model_uses_the_files_int8_as_it_is(new_checkpoint, stored):
    checkpoint = new_checkpoint(CONFIG, 2, stored)
    model = QuantizedModel(checkpoint)
    assert model.exact and model.group_size == stored
    assert model.note == f"int8 weights used as they are (groups of {stored})"
    for name, layer in (("wq", 1), ("w2", 0), ("wcls", None), ("token_embedding_table", None)):
        q, scale = checkpoint.quantized(name, layer)
        matrix = model.matrix(name, layer)
        np.testing.assert_array_equal(matrix.q, q)
        np.testing.assert_array_equal(matrix.scale, scale)


@pytest.mark.parametrize("stored, asked, size", [(128, None, 64), (128, 32, 32), (96, None, 32)])
def test_quantized_model_splits_larger_groups_exactly(new_checkpoint, stored, asked, size):
    config = ModelConfig(384, 384, 1, 4, 2, 50, 32, True)
    checkpoint = new_checkpoint(config, 2, stored)
    model = QuantizedModel(checkpoint, asked)
    assert model.exact and model.group_size == size
    q, scale = checkpoint.quantized("wk", 0)
    matrix = model.matrix("wk", 0)
    np.testing.assert_array_equal(matrix.q, q)
    np.testing.assert_array_equal(matrix.scale, np.repeat(scale, stored // size, axis=1))
    np.testing.assert_array_equal(matrix.dequantize(), checkpoint.tensor("wk", 0))


@pytest.mark.parametrize("stored, asked", [(16, None), (4, 32), (32, 64)])
def test_quantized_model_requantises_smaller_groups_and_says_so(new_checkpoint, stored, asked):
    checkpoint = new_checkpoint(CONFIG, 2, stored)
    model = QuantizedModel(checkpoint, asked)
    size = asked or 64
    assert not model.exact and model.group_size == size
    assert model.note == (
        f"int8 weights requantised from groups of {stored} to groups of {size}: "
        "the kernel reads 32 or 64"
    )
    expected = quantize_weights(checkpoint.tensor("w1", 1), size)
    np.testing.assert_array_equal(model.matrix("w1", 1).q, expected.q)


def test_quantized_model_keeps_negative_scales(new_checkpoint, monkeypatch):
    """q and scale of a group may both be negated: a weight is their product."""
    plain = QuantizedModel(new_checkpoint(CONFIG, 2, 64)).matrix("w1", 0)
    original = checkpoint_files.quantize_q80

    def negated(w, group_size):
        q, scale = original(w, group_size)
        return -q, -scale

    monkeypatch.setattr(checkpoint_files, "quantize_q80", negated)
    matrix = QuantizedModel(new_checkpoint(CONFIG, 2, 64)).matrix("w1", 0)
    assert (matrix.scale < 0).all()
    np.testing.assert_array_equal(matrix.dequantize(), plain.dequantize())


def test_quantized_model_zeroes_tiny_scales_of_the_file(new_checkpoint):
    weights = random_weights(CONFIG, 0)
    weights["wv"][0, 3, :32] = 1e-33
    weights["wv"][0, 3, 32:] = 1e-40
    matrix = QuantizedModel(new_checkpoint(CONFIG, 2, 32, weights=weights)).matrix("wv", 0)
    assert not matrix.scale[3].any()
    assert (matrix.scale[[0, 1, 2, 4]] > 0).all()


@pytest.mark.parametrize("size", [0, 16, 48, 128])
def test_quantized_model_other_group_size_is_refused(new_checkpoint, size):
    with pytest.raises(LimitError, match=f"group_size {size}: the kernel reads groups of 32 or 64"):
        QuantizedModel(new_checkpoint(), size)


def test_quantized_model_int4_says_so_and_halves_the_bytes(new_checkpoint):
    checkpoint = new_checkpoint(CONFIG, 2, 32)
    model = QuantizedModel(checkpoint, bits=4)
    assert (model.weight_bits, model.group_size, model.exact) == (4, 64, False)
    assert model.note == "int8 (groups of 32) weights quantised to int4 in groups of 64"
    expected = quantize_weights(checkpoint.tensor("w1", 1), 64, 4)
    np.testing.assert_array_equal(model.matrix("w1", 1).q, expected.q)
    config = ModelConfig(768, 2048, 12, 12, 12, 32000, 256, True)
    size = {bits: sum(channel_bytes(config, 64, Target(4, 32), bits)) for bits in (8, 4)}
    assert size[4] == pytest.approx(size[8] * 36 / 68, rel=0.001)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (dict(bits=5), "weight_bits 5: the kernel reads weights of 8 or 4 bits"),
        (dict(bits=4, group_size=32), "group_size 32: the kernel reads int4 in groups of 64 only"),
    ],
)
def test_quantized_model_other_bits_are_refused(new_checkpoint, options, text):
    with pytest.raises(LimitError, match=text):
        QuantizedModel(new_checkpoint(), **options)
