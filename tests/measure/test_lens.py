"""Activations and caches read from the device are bit-identical to the reference."""

import numpy as np
import pytest

from llama_pynq import EmulatedDevice, LlamaOverlay
from llama_pynq.checkpoint.load import load_checkpoint
from llama_pynq.errors import RequestError
from llama_pynq.kernel.reference import FloatModel, KernelModel
from llama_pynq.kernel.stages import attend
from llama_pynq.measure import lens
from llama_pynq.weights.quantize import QuantizedModel

TEXT = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the sun "
    "with her dog."
)


@pytest.fixture(scope="module")
def checkpoint(shared_models):
    """stories260K: two query heads per KV head, unlike the bundled model."""
    with load_checkpoint(shared_models / "stories260K.bin") as opened:
        yield opened


@pytest.fixture(scope="module")
def overlay(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("LLAMA_PYNQ_CACHE", str(tmp_path_factory.mktemp("cache")))
    with LlamaOverlay(device=EmulatedDevice(threads=1)) as overlay:
        yield overlay
    patch.undo()


@pytest.fixture(scope="module", params=[32, 8], ids=["float32-kv", "int8-kv"])
def llama(request, overlay, shared_models):
    files = shared_models / "stories260K.bin", shared_models / "tok512.bin"
    return overlay.load_model(*files, kv_bits=request.param)


@pytest.fixture(scope="module")
def seen(llama):
    found = lens.look(llama, TEXT)
    assert len(found.tokens) > llama.driver.limits.max_rows  # several calls per layer
    return found


@pytest.fixture(scope="module")
def reference(llama, checkpoint, seen):
    model = KernelModel(QuantizedModel(checkpoint), llama.driver.kv_bits)
    n = len(seen.tokens)
    stream = [model.embed(seen.tokens)]
    for layer in range(llama.config.n_layers):
        stream.append(model.layer(layer, stream[-1], range(n), [0] * n))
    return model, np.stack(stream)


def test_look_gives_the_residual_stream_of_every_layer(seen, reference):
    assert np.array_equal(seen.stream, reference[1])
    assert "".join(seen.pieces[1:]).strip() == TEXT and seen.pieces[0] == "<s>"


def test_look_gives_the_keys_and_values_of_the_devices_cache(seen, reference):
    n = len(seen.tokens)
    keys, values = reference[0].cached(0, n)
    assert np.array_equal(seen.keys, keys)
    assert np.array_equal(seen.values, values)


def test_read_cache_of_another_slot_is_another_text(llama, seen):
    with llama.session() as first, llama.session() as second:
        inside_slot = first.slot, second.slot
        with first.device() as driver:
            own = driver.read_cache(inside_slot[0], len(seen.tokens))
            other = driver.read_cache(inside_slot[1], len(seen.tokens))
    assert np.array_equal(own[0], seen.keys)
    assert not np.array_equal(other[0], seen.keys)
    with pytest.raises(RequestError, match="slot 99, 1 positions: the KV cache has"):
        llama.driver.read_cache(99, 1)


def test_attention_rows_are_what_the_layer_weighs_its_values_with(llama, seen, checkpoint):
    weights = QuantizedModel(checkpoint)
    found = lens.attention(seen, weights)
    c, n = llama.config, len(seen.tokens)
    assert found.shape == (c.n_layers, c.n_heads, n, n)
    assert np.allclose(found.sum(axis=-1), 1, atol=1e-5)
    assert not np.triu(found, 1).any()
    model = KernelModel(weights, llama.driver.kv_bits)
    values = np.repeat(seen.values, c.n_heads // c.n_kv_heads, axis=1)
    mixed = np.einsum("lhnm,lhmd->lnhd", found, values)
    kept = []
    real = attend

    def spy(*args):
        kept.append(real(*args))
        return kept[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llama_pynq.kernel.reference.attend", spy)
        for layer in range(c.n_layers):
            model.layer(layer, seen.stream[layer], range(n), [0] * n)
    assert np.allclose(mixed.reshape(-1, c.n_heads, c.head_size), kept, atol=1e-4)


def test_logit_lens_of_the_last_layer_is_the_models_own_answer(llama, seen):
    layers = lens.logit_lens(llama, seen)
    logits = llama.logits(seen.tokens)
    assert np.array_equal(layers.tokens[-1], logits.argmax(axis=1))
    best = np.exp(logits - logits.max(axis=1, keepdims=True))
    assert np.allclose(layers.probability[-1], 1 / best.sum(axis=1), rtol=1e-5)
    assert not np.array_equal(layers.tokens[0], layers.tokens[-1])
    assert [len(row) for row in layers.pieces] == [len(seen.tokens)] * (llama.config.n_layers + 1)


def test_quantization_error_is_relative_to_the_float_model(seen, checkpoint):
    model = FloatModel(checkpoint)
    error = lens.quantization_error(seen, model)
    assert error.shape == seen.stream.shape[:2]
    assert 0 < error.max() < 0.2
    assert error[0].max() < 0.01  # rounding of the embedding only
    again = lens.quantization_error(seen, model)
    assert np.array_equal(error, again)


def test_cache_use_counts_the_bytes_of_the_devices_buffers(llama):
    use = lens.cache_use(llama, [5, 7])
    ports = llama.driver.limits.kv_ports
    allocated = sum(llama.driver.buffers[f"kv_cache_{p}"].nbytes for p in range(ports))
    assert use.total_bytes == allocated
    assert use.used_bytes == 12 * use.position_bytes
    with pytest.raises(RequestError, match=r"texts of \[1, 1, 1, 1, 1"):
        lens.cache_use(llama, [1] * 99)


def test_look_at_a_text_beyond_the_context_says_how_long_it_is(llama):
    with pytest.raises(RequestError, match="tokens long, the model's context holds 512"):
        lens.look(llama, "once " * 600)
