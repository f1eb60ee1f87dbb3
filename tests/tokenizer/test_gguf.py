"""Vocabularies of GGUF files, beside the tokenizers that they come from."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.paths import MODELS
from support.tokenizer_cases import TEXTS, needs_models, quick

from llama_pynq.errors import TokenizerError
from llama_pynq.tokenizer.gguf import tokenizer_file
from llama_pynq.tokenizer.load import tokenizer_from_bytes

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


def opened(metadata):
    entries = {f"tokenizer.ggml.{name}": value for name, value in metadata.items()}
    return tokenizer_from_bytes(tokenizer_file(entries, "m.gguf"), "m.gguf")


def sentencepiece_metadata(processor, **more):
    """Entries as convert_hf_to_gguf.py writes them for a sentencepiece model."""
    is_kind = {
        UNKNOWN: processor.is_unknown,
        CONTROL: processor.is_control,
        UNUSED: processor.is_unused,
        BYTE: processor.is_byte,
    }
    kinds = [
        next((kind for kind, test in is_kind.items() if test(i)), NORMAL)
        for i in range(processor.vocab_size())
    ]
    n = range(processor.vocab_size())
    return {
        "model": "llama",
        "tokens": [processor.id_to_piece(i).encode() for i in n],
        "scores": np.array([processor.get_score(i) for i in n], np.float32),
        "token_type": np.array(kinds, np.int32),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        **more,
    }


@pytest.fixture(scope="module")
def library():
    sentencepiece = pytest.importorskip("sentencepiece", reason="no sentencepiece on this machine")
    return sentencepiece.SentencePieceProcessor(model_file=str(MODELS / "tokenizer32k.model"))


@pytest.fixture(scope="module")
def of_llama(library):
    return opened(sentencepiece_metadata(library))


@needs_models
def test_llama_vocabulary_gives_the_ids_of_its_sentencepiece_model(of_llama, model32k):
    tokenizer = of_llama
    assert tokenizer.vocab_size == 32000
    assert tokenizer.stop_ids == (1, 2)
    for text in TEXTS:
        assert tokenizer.encode(text) == model32k.encode(text)
        assert tokenizer.decode(model32k.encode(text)) == model32k.decode(model32k.encode(text))


@needs_models
@quick
@given(text=st.text())
def test_llama_vocabulary_of_any_text(of_llama, model32k, text):
    assert of_llama.encode(text, eos=True) == model32k.encode(text, eos=True)


@needs_models
def test_llama_vocabulary_without_a_space_in_front(library):
    tokenizer = opened(sentencepiece_metadata(library, add_space_prefix=False))
    for text in ("hello", " hello", "  two"):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
    assert tokenizer.piece(tokenizer.encode("hello")[1])[:1] != b" "


# ---- the kind "gpt2" -------------------------------------------------------------------


def gpt2_metadata(model, pre, **more):
    """Entries as convert_hf_to_gguf.py writes them for a byte-level BPE."""
    fields = json.loads(model.to_str())
    names = [model.id_to_token(i) for i in range(model.get_vocab_size())]
    kinds = [CONTROL if name in SPECIAL else NORMAL for name in names]
    return {
        "model": "gpt2",
        "pre": pre,
        "tokens": [name.encode() for name in names],
        "token_type": np.array(kinds, np.int32),
        "merges": [" ".join(merge).encode() for merge in fields["model"]["merges"]],
        "bos_token_id": 1,
        "eos_token_id": 2,
        **more,
    }


SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def trained(pre):
    """A byte-level BPE with a pre-tokenizer as its model has it on the hub."""
    tokenizers = pytest.importorskip("tokenizers", reason="no tokenizers on this machine")
    parts = tokenizers.pre_tokenizers
    byte_level = parts.ByteLevel(add_prefix_space=False)
    model = tokenizers.Tokenizer(tokenizers.models.BPE(ignore_merges=pre == "llama-bpe"))
    if pre == "gpt-2":
        model.pre_tokenizer = byte_level
    elif pre == "smollm":
        model.pre_tokenizer = parts.Sequence([parts.Digits(individual_digits=True), byte_level])
    else:
        pattern = LLAMA_3 if pre == "llama-bpe" else LLAMA_3.replace("{1,3}", "")
        split = parts.Split(tokenizers.Regex(pattern), "isolated")
        model.pre_tokenizer = parts.Sequence(
            [split, parts.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    if pre == "qwen2":
        model.normalizer = tokenizers.normalizers.NFC()
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=500, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=parts.ByteLevel.alphabet(),
    )  # fmt: skip
    model.train_from_iterator([*TEXTS, "hello world's 12345 e\u0301 don't\r\n\r\n  x"] * 5, trainer)
    return model


@pytest.fixture(scope="module", params=["gpt-2", "smollm", "llama-bpe", "qwen2"])
def pair(request):
    model = trained(request.param)
    return opened(gpt2_metadata(model, request.param)), model


@quick
@given(
    text=st.text() | st.text(alphabet="he wor12345'sS\u0301\r\n\t ", max_size=30)
    | st.sampled_from(TEXTS)
)  # fmt: skip
def test_gpt2_vocabulary_gives_the_ids_of_its_tokenizer_json(pair, text):
    tokenizer, model = pair
    model.encode_special_tokens = True
    ids = model.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode(text, bos=False) == ids
    assert tokenizer.decode(ids) == model.decode(ids)


def test_bos_and_ends_are_the_files():
    model = trained("llama-bpe")
    assert opened(gpt2_metadata(model, "llama-bpe")).encode("a")[0] == 1
    assert opened(gpt2_metadata(model, "smollm")).encode("a")[0] != 1
    assert opened(gpt2_metadata(model, "smollm", add_bos_token=True)).encode("a")[0] == 1
    ends = opened(gpt2_metadata(model, "smollm", eot_token_id=0))
    assert (ends.eos_id, ends.stop_ids) == (2, (1, 2, 0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "bert"}, "a vocabulary of the kind 'bert', and the kinds llama and gpt2"),
        ({"model": None}, "m.gguf has no vocabulary"),
        ({"pre": "deepseek-llm"}, "its pre-tokenizer is 'deepseek-llm', and gpt-2, smollm"),
        ({"tokens": []}, "there are no tokens"),
        ({"tokens": [b"\xff"] * 500}, r"token 0 (b'\xff') is not UTF-8 at its byte 0"),
        ({"tokens": [b"a"] * 500}, "the token 'a' comes twice"),
        ({"token_type": np.ones(3, np.int32)}, "500 tokens have 3 entries of token_type"),
        ({"merges": [b"h e", b"xx yy"]}, "merge 1, 'xx yy', is not of two tokens to a third"),
        ({"merges": [b"he"]}, "merge 0, 'he', is not of two tokens"),
        ({"eos_token_id": 500}, "eos_token_id is 500, of 500 tokens"),
        ({"eos_token_id": "2"}, "tokenizer.ggml.eos_token_id is '2', not of type int"),
        ({"add_bos_token": 1}, "tokenizer.ggml.add_bos_token is 1, not of type bool"),
        ({"eos_token_id": -1}, "it does not say which token ends a text"),
        ({"model": "llama"}, "there are no scores"),
        ({"model": "llama", "scores": np.zeros(7, np.float32)}, "500 tokens have 7 entries of"),
    ],
)
def test_damaged_vocabularies_are_named(change, message):
    metadata = {**gpt2_metadata(trained("smollm"), "smollm"), **change}
    with pytest.raises(TokenizerError) as caught:
        opened({name: value for name, value in metadata.items() if value is not None})
    assert message in str(caught.value)
