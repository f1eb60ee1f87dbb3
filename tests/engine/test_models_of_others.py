"""Models of others' files: GGUF and Hugging Face folders, and conversations with them."""

import json
from dataclasses import replace

import numpy as np
import pytest
from support import checkpoint_files
from support.checkpoint_files import random_weights, write_checkpoint
from support.gguf_files import is_layered, write_gguf_model
from support.huggingface_files import CONFIG as FOLDER
from support.huggingface_files import logits as hf_logits
from support.huggingface_files import random_tensors, write_folder
from support.paths import TESTS

from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.checkpoint.load import load_checkpoint
from llama_pynq.engine.loading import tokenizer_inside
from llama_pynq.errors import RequestError, TokenizerError
from llama_pynq.kernel.reference import FloatModel, KernelModel
from llama_pynq.models import BUNDLED
from llama_pynq.tokenizer.gguf import tokenizer_file
from llama_pynq.weights.packed import write_packed
from llama_pynq.weights.quantize import QuantizedModel

# ---- models of the field's files -----------------------------------------------------


@pytest.fixture(scope="module")
def gguf_vocabulary():
    """Metadata of a vocabulary of 512 tokens, byte-level."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=names, initial_alphabet=alphabet, show_progress=False
    )
    text = (TESTS / "engine" / "test_loading.py").read_text()
    model.train_from_iterator(text.splitlines(), trainer)
    tokens = [model.id_to_token(i) for i in range(512)]
    merges = json.loads(model.to_str())["model"]["merges"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * 3 + [1] * 509,
        "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


GGUF_SHAPE = ModelConfig(64, 192, 2, 4, 2, 512, 128, tied=False, rope_theta=1e5)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_gguf_of_integers_is_the_llama2c_file_of_the_same_integers(
    overlay, tmp_path, gguf_vocabulary, monkeypatch, kind
):
    """Bit for bit, and from its packed file."""
    weights = random_weights(GGUF_SHAPE, seed=9)
    write_gguf_model(tmp_path / "m.gguf", GGUF_SHAPE, weights, kind, gguf_vocabulary)
    with load_checkpoint(tmp_path / "m.gguf") as checkpoint:
        read, integers = {}, {}
        for name, array in weights.items():
            parts = range(len(array)) if is_layered(name) else [None]
            tensors = [checkpoint.tensor(name, i) for i in parts]
            read[name] = np.stack(tensors) if is_layered(name) else tensors[0]
            if not name.startswith("rms"):
                stored = [checkpoint.quantized(name, i) for i in parts]
                integers.update(zip([w.tobytes() for w in tensors], stored))

    def same_integers(w, group_size):
        q, scale = integers[w.tobytes()]
        return q, scale.ravel()

    monkeypatch.setattr(checkpoint_files, "quantize_q80", same_integers)
    write_checkpoint(tmp_path / "m.bin", GGUF_SHAPE, 2, 32, weights=read)
    model = overlay.load_model(tmp_path / "m.gguf")
    assert model.config == GGUF_SHAPE
    assert model.packed.note == f"{kind} used as they are"
    ids = model.tokenizer.encode("def test_model(overlay):")
    assert len(ids) > 1 and ids[0] != 1
    logits = overlay.logits(ids)
    text = overlay.generate("def ", max_new_tokens=20, seed=1)
    with load_checkpoint(tmp_path / "m.gguf") as checkpoint:
        tokenizer = tokenizer_inside(checkpoint)
        path = tmp_path / "m.safetensors"
        write_packed(QuantizedModel(checkpoint), overlay.llama.limits.target, path, tokenizer)
    assert np.array_equal(overlay.load_model(path).driver.logits(ids), logits)
    again = overlay.generate("def ", max_new_tokens=20, seed=1)
    assert (again.text, again.tokens) == (text.text, text.tokens)
    (tmp_path / "tokenizer.json").write_bytes(tokenizer)
    overlay.load_model(tmp_path / "m.bin", tmp_path / "tokenizer.json", rope_theta=1e5)
    assert np.array_equal(overlay.logits(ids), logits)
    assert overlay.generate("def ", max_new_tokens=20, seed=1).tokens == text.tokens


@pytest.mark.parametrize("kind", ["F16", "Q4_1", "Q5_1"])
def test_gguf_of_other_types_is_near_the_float_model(overlay, tmp_path, gguf_vocabulary, kind):
    weights = random_weights(GGUF_SHAPE, seed=9)
    write_gguf_model(tmp_path / "m.gguf", GGUF_SHAPE, weights, kind, gguf_vocabulary)
    overlay.load_model(tmp_path / "m.gguf")
    with load_checkpoint(tmp_path / "m.gguf") as checkpoint:
        expected = FloatModel(checkpoint).forward(range(20), range(20))
    found = overlay.logits(range(20))
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
    assert overlay.generate("", max_new_tokens=3).prompt_tokens == [1], "BOS begins an empty text"


def test_gguf_without_a_vocabulary_takes_a_tokenizers_file(overlay, tmp_path):
    config = replace(GGUF_SHAPE, vocab_size=1024)
    write_gguf_model(tmp_path / "m.gguf", config, random_weights(config, seed=2), "Q8_0")
    with pytest.raises(TokenizerError, match=r"m\.gguf comes without a tokenizer"):
        overlay.load_model(tmp_path / "m.gguf")
    overlay.load_model(tmp_path / "m.gguf", BUNDLED / "tokenizer.bin")
    assert overlay.generate("Once", max_new_tokens=3).tokens


# ---- conversations -------------------------------------------------------------------

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QUESTION = [{"role": "user", "content": "What is <|im_end|> for?"}]


@pytest.fixture
def chatting(overlay, tmp_path, gguf_vocabulary):
    weights = random_weights(GGUF_SHAPE, seed=9)
    metadata = {**gguf_vocabulary, "tokenizer.chat_template": TEMPLATE}
    write_gguf_model(tmp_path / "m.gguf", GGUF_SHAPE, weights, "Q8_0", metadata)
    return overlay.load_model(tmp_path / "m.gguf")


def test_chat_is_generate_with_the_files_template(overlay, chatting, tmp_path):
    """Also streamed, and from the packed file, which holds the template."""
    text = "<|im_start|>user\nWhat is <|im_end|> for?<|im_end|>\n<|im_start|>assistant\n"
    expected = overlay.generate(text, parse_special=True, max_new_tokens=12, seed=3)
    out = overlay.chat(QUESTION, max_new_tokens=12, seed=3)
    assert (out.text, out.prompt_tokens) == (expected.text, expected.prompt_tokens)
    assert out.prompt_tokens[0] == 1 and out.prompt_tokens.count(1) == 2
    assert "".join(overlay.stream_chat(QUESTION, max_new_tokens=12, seed=3)) == out.text
    with load_checkpoint(tmp_path / "m.gguf") as checkpoint:
        path = tmp_path / "m.safetensors"
        limits = overlay.llama.limits
        write_packed(QuantizedModel(checkpoint), limits.target, path, tokenizer_inside(checkpoint))
    overlay.load_model(path)
    assert overlay.chat(QUESTION, max_new_tokens=12, seed=3).tokens == out.tokens
    overlay.reset()
    assert overlay.chat(QUESTION, max_new_tokens=12, seed=3).tokens == out.tokens


def test_chat_takes_another_template_by_name(overlay, chatting, tmp_path):
    overlay.load_model(tmp_path / "m.gguf", chat_template="zephyr")
    out = overlay.chat(QUESTION, max_new_tokens=2, seed=3)
    shown = overlay.llama.model.tokenizer.decode(out.prompt_tokens)
    assert shown.startswith("<|user|>\nWhat is") and shown.endswith("<|assistant|>\n")


def test_conversation_that_outgrows_the_context_is_named_with_numbers(overlay, chatting):
    long = [{"role": "user", "content": "a b c " * 300}]
    with pytest.raises(RequestError, match=r"is \d+ tokens long, the context holds 128: leave out"):
        overlay.chat(long)
    with pytest.raises(RequestError, match="message 0: its content is None"):
        overlay.stream_chat([{"role": "user"}])
    assert overlay.chat(QUESTION, max_new_tokens=2).tokens


def test_model_without_a_template_says_how_to_name_one(overlay, bundled):
    with pytest.raises(RequestError, match="has no chat template: name the one .* chatml, llama2"):
        overlay.chat(QUESTION)
    overlay.load_model(chat_template="llama2")
    assert overlay.chat(QUESTION, max_new_tokens=2).tokens


# ---- Hugging Face folders ------------------------------------------------------------


def test_a_hugging_face_folder_loads_with_its_tokenizer_and_template(
    overlay, tmp_path, gguf_vocabulary
):
    tensors = random_tensors(FOLDER, seed=5)
    folder = write_folder(tmp_path / "m", FOLDER, tensors, 2)
    with pytest.raises(TokenizerError, match="comes without a tokenizer"):
        overlay.load_model(folder)
    entries = {key: [t.encode() for t in value] if key.endswith(("tokens", "merges")) else value
               for key, value in gguf_vocabulary.items()}  # fmt: skip
    plain = json.loads(tokenizer_file(entries, folder))
    del plain["llama_pynq"]  # a file of others has no such key
    (folder / "tokenizer.json").write_text(json.dumps(plain))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    model = overlay.load_model(folder)
    assert model.tokenizer.stop_ids == (1, 2) and not model.tokenizer.adds_bos
    ids = model.tokenizer.encode("def test_model(overlay):")
    expected = hf_logits(FOLDER, tensors, ids)
    assert np.abs(overlay.logits(ids) - expected).max() < 0.05 * np.abs(expected).max()
    assert "F32 (relative error" in model.packed.note and "unknown" not in model.packed.note
    out = overlay.chat(QUESTION, max_new_tokens=5, seed=2)
    again = overlay.load_model(folder)
    assert again.packed.path == model.packed.path, "it was packed once"
    assert overlay.chat(QUESTION, max_new_tokens=5, seed=2).tokens == out.tokens
    (folder / "tokenizer.json").write_text("[1]")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json cannot be read: it is not an"):
        overlay.load_model(folder)
    assert overlay.chat(QUESTION, max_new_tokens=5, seed=2).tokens == out.tokens


def test_scaled_rotary_embedding_reaches_the_kernel(overlay, tmp_path, gguf_vocabulary):
    """From the GGUF file and from its packed file: the reference's bits."""
    weights = random_weights(GGUF_SHAPE, seed=9)
    scaled = {"rope_freqs.weight": (np.linspace(1, 8, 8, dtype=np.float32), "F32")}
    path, packed = tmp_path / "m.gguf", tmp_path / "m.safetensors"
    write_gguf_model(path, GGUF_SHAPE, weights, "Q8_0", gguf_vocabulary, scaled)
    ids = [int(i) for i in np.random.default_rng(1).integers(3, 512, 60)]
    with load_checkpoint(path) as checkpoint:
        expected = KernelModel(QuantizedModel(checkpoint)).forward(ids, range(60))
        text = tokenizer_inside(checkpoint)
        write_packed(QuantizedModel(checkpoint), overlay.llama.limits.target, packed, text)
    for file in (path, packed):
        assert overlay.load_model(file).config.rope_divisors[-1] == 8
        assert np.array_equal(overlay.logits(ids), expected)
    write_gguf_model(path, GGUF_SHAPE, weights, "Q8_0", gguf_vocabulary)
    overlay.load_model(path)
    assert not np.array_equal(overlay.logits(ids), expected)
