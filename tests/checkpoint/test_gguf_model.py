"""Llamas in GGUF files, beside llama.cpp's own Python library and llama2.c's formats."""

from dataclasses import replace

import gguf
import numpy as np
import pytest
from support.checkpoint_files import random_weights
from support.gguf_files import is_layered, write_gguf, write_gguf_model

from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.checkpoint.load import load_checkpoint
from llama_pynq.errors import CheckpointError
from llama_pynq.weights.quantize import QuantizedModel

CONFIG = ModelConfig(64, 160, 2, 4, 2, 96, 128, tied=False, rope_theta=1e5)
INTEGERS = ["Q4_0", "Q5_0", "Q8_0"]
WRITABLE = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]


@pytest.fixture(scope="module")
def weights():
    return random_weights(CONFIG, seed=4)


def dequantised(array, kind):
    """An array as the library reads back what it writes of that type."""
    number = gguf.GGMLQuantizationType[kind]
    if kind in ("F32", "F16"):
        return array.astype({"F32": np.float32, "F16": np.float16}[kind]).astype(np.float32)
    return gguf.quants.dequantize(gguf.quants.quantize(array, number), number)


@pytest.mark.parametrize("kind", WRITABLE)
def test_tensors_are_what_the_library_wrote(tmp_path, weights, kind):
    write_gguf_model(tmp_path / "m.gguf", CONFIG, weights, kind)
    with load_checkpoint(tmp_path / "m.gguf") as checkpoint:
        assert checkpoint.config == CONFIG
        for name, array in weights.items():
            layers = range(2) if is_layered(name) else [None]
            for layer in layers:
                part = array if layer is None else array[layer]
                found = checkpoint.tensor(name, layer)
                assert found.dtype == np.float32 and found.flags.c_contiguous
                if part.ndim == 1:
                    assert np.array_equal(found, part)
                    continue
                assert np.array_equal(found, dequantised(part, kind))
                slices = list(checkpoint.row_slices(name, layer, step=7))
                assert [len(s) for s in slices[:-1]] == [7] * (len(slices) - 1)
                assert np.array_equal(np.concatenate(slices), found)
                assert checkpoint.holds_int8(name, layer) == (kind in INTEGERS)
                assert checkpoint.kind_of(name, layer) == kind
                if kind in INTEGERS:
                    q, scale = checkpoint.quantized(name, layer)
                    assert (q.dtype, scale.shape) == (np.int8, (len(part), part.shape[1] // 32))
                    product = q.astype(np.float32) * np.repeat(scale, 32, axis=1)
                    assert np.array_equal(product, found)
                else:
                    with pytest.raises(CheckpointError, match="read it with tensor"):
                        checkpoint.quantized(name, layer)


def test_integers_are_packed_as_they_are_and_others_name_their_error(tmp_path, weights):
    write_gguf_model(tmp_path / "m.gguf", CONFIG, weights, ["Q8_0", "Q4_1", "Q4_0", "F16"])
    with load_checkpoint(tmp_path / "m.gguf") as checkpoint:
        model = QuantizedModel(checkpoint)
        assert (model.group_size, model.weight_bits) == (32, 8)
        before = len(model.note)
        assert "Q4_1 (relative error unknown)" in model.note
        squares = {"F16": [0.0, 0.0], "Q4_1": [0.0, 0.0]}
        for name in weights:
            for layer in range(2) if is_layered(name) else [None]:
                if name.startswith("rms"):
                    continue
                matrix, w = model.matrix(name, layer), checkpoint.tensor(name, layer)
                back = matrix.q.astype(np.float32) * np.repeat(matrix.scale, 32, axis=1)
                kind = checkpoint.kind_of(name, layer)
                if kind in squares:
                    squares[kind][0] += np.square(back - w, dtype=np.float64).sum()
                    squares[kind][1] += np.square(w, dtype=np.float64).sum()
                else:
                    assert np.array_equal(back, w)
        errors = {kind: f"{np.sqrt(e / w):.1e}" for kind, (e, w) in squares.items()}
        assert model.note == (
            f"Q4_0, Q8_0 used as they are; F16 (relative error {errors['F16']}), Q4_1 (relative "
            f"error {errors['Q4_1']}) quantised to int8 in groups of 32"
        )
        assert len(model.note) == before, "the header is written before the weights"
        assert "Q8_0 (relative error" in QuantizedModel(checkpoint, 64).note
        assert QuantizedModel(checkpoint, bits=4).note.endswith("to int4 in groups of 64")


def test_tied_model_has_no_classifier_of_its_own(tmp_path):
    config = replace(CONFIG, tied=True)
    weights = random_weights(config, seed=1)
    write_gguf_model(tmp_path / "m.gguf", config, weights)
    with load_checkpoint(tmp_path / "m.gguf", rope_theta=500.0) as checkpoint:
        assert checkpoint.config == replace(config, rope_theta=500.0)
        assert np.array_equal(checkpoint.tensor("wcls"), weights["token_embedding_table"])
        checkpoint.cut_vocab(50)
        assert checkpoint.tensor("wcls").shape == (50, 64)


def test_sliding_window_bounds_the_context(tmp_path, weights):
    for window, seq_len in ((100, 100), (500, 128), (0, 128)):
        entry = {"llama.attention.sliding_window": window}
        write_gguf_model(tmp_path / "m.gguf", CONFIG, weights, metadata=entry)
        with load_checkpoint(tmp_path / "m.gguf") as checkpoint:
            assert checkpoint.config.seq_len == seq_len


def test_scaled_rotary_embedding_is_the_files(tmp_path, weights):
    divisors = np.linspace(1, 8, 8, dtype=np.float32)
    tensor = {"rope_freqs.weight": (divisors, "F32")}
    linear = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0}
    for metadata, extra, expected in (
        ({}, tensor, tuple(divisors.tolist())),
        (linear, {}, (2.0,) * 8),
        ({"llama.rope.scale_linear": 4.0}, {}, (4.0,) * 8),
        ({"llama.rope.scaling.type": "none"}, {}, None),
        ({}, {"rope_freqs.weight": (np.ones(8, np.float32), "F32")}, None),
    ):
        write_gguf_model(tmp_path / "m.gguf", CONFIG, weights, "Q8_0", metadata, extra)
        with load_checkpoint(tmp_path / "m.gguf") as checkpoint:
            assert checkpoint.config.rope_divisors == expected


def test_weights_that_are_not_finite_are_named(tmp_path, weights):
    for kind, name in (("F16", "token_embd.weight"), ("Q8_0", "token_embd.weight, scales")):
        bad = {**weights, "token_embedding_table": weights["token_embedding_table"].copy()}
        bad["token_embedding_table"][3, 5] = np.inf
        with np.errstate(invalid="ignore"):
            write_gguf_model(tmp_path / "m.gguf", CONFIG, bad, kind)
        with load_checkpoint(tmp_path / "m.gguf") as checkpoint:
            read = checkpoint.quantized if kind == "Q8_0" else checkpoint.tensor
            with pytest.raises(CheckpointError, match=f"m.gguf: {name} holds"):
                read("token_embedding_table")


BIAS = {"blk.0.attn_q.bias": (np.zeros(64, np.float32), "F32")}


@pytest.mark.parametrize(
    ("metadata", "extra", "message"),
    [
        ({"general.architecture": "qwen2"}, {}, "its architecture is 'qwen2', and llama is read"),
        ({"llama.attention.layer_norm_rms_epsilon": 1e-6}, {}, "its norms add 1e-06 to the mean"),
        ({"llama.attention.key_length": 32}, {}, "llama.attention.key_length is 32"),
        ({"llama.rope.dimension_count": 8}, {}, "llama.rope.dimension_count is 8"),
        ({"llama.expert_count": 8}, {}, "it is a mixture of experts"),
        ({"llama.rope.scaling.type": "yarn"}, {}, "its rotary embedding is scaled (yarn)"),
        (
            {},
            {"rope_freqs.weight": (np.ones(7, np.float32), "F32")},
            "rope_freqs.weight is F32 (7,)",
        ),
        (
            {},
            {"rope_freqs.weight": (np.zeros(8, np.float32), "F32")},
            "rope_divisors are (0.0, 0.0",
        ),
        ({}, BIAS, "it has a tensor blk.0.attn_q.bias, which Llama 2 has not"),
        ({"llama.block_count": None}, {}, "llama.block_count is missing"),
        ({"llama.block_count": 3}, {}, "there is no tensor blk.2.attn_norm.weight"),
        ({"llama.block_count": 1 << 30}, {}, "llama.block_count is 1073741824: it must be"),
        ({"llama.block_count": 1 << 20}, {}, "there is no tensor blk."),
        ({"llama.block_count": "2"}, {}, "llama.block_count is '2': it must be a whole number"),
        ({"llama.feed_forward_length": 128}, {}, "blk.0.ffn_gate.weight has the shape (160, 64)"),
        ({"llama.attention.head_count": 0}, {}, "llama.attention.head_count is 0"),
        ({"llama.attention.head_count": 5}, {}, "dim 64 is not a multiple of n_heads 5"),
        ({"llama.attention.head_count_kv": [2, 4]}, {}, "llama.attention.head_count_kv is"),
        (
            {"llama.rope.freq_base": "x"},
            {},
            "freq_base is 'x': it must be of type float",
        ),
        ({"llama.rope.freq_base": -1.0}, {}, "rope_theta is -1.0"),
        ({"split.count": 3}, {}, "it is one part of several"),
        ({"split.count": [1, 2]}, {}, "split.count is array([1, 2]"),
        ({"llama.attention.layer_norm_rms_epsilon": ["a"]}, {}, "rms_epsilon is [b'a']"),
    ],
)
def test_a_model_that_computes_otherwise_is_refused_by_name(
    tmp_path, weights, metadata, extra, message
):
    path = tmp_path / "m.gguf"
    write_gguf_model(path, CONFIG, weights, metadata=metadata, extra=extra)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_head_counts_of_every_layer_may_stand_in_an_array(tmp_path, weights):
    entry = {"llama.attention.head_count_kv": [2, 2]}
    write_gguf_model(tmp_path / "m.gguf", CONFIG, weights, metadata=entry)
    with load_checkpoint(tmp_path / "m.gguf") as checkpoint:
        assert checkpoint.config == CONFIG


def test_a_file_without_a_model_is_refused(tmp_path):
    write_gguf(tmp_path / "m.gguf", {"general.architecture": "llama"}, {})
    with pytest.raises(CheckpointError, match=r"llama\.embedding_length is missing"):
        load_checkpoint(tmp_path / "m.gguf")
    with pytest.raises(CheckpointError, match="reading is 'export', and .* is no llama2.c file"):
        load_checkpoint(tmp_path / "m.gguf", reading="export")
