"""Opening a tokenizer: its content tells the kind, and foreign files are named."""

import hashlib
import struct
from pathlib import Path

import pytest
from support.paths import MODELS
from support.tokenizer_cases import needs_models, refused

from llama_pynq.errors import LlamaPynqError, TokenizerError
from llama_pynq.tokenizer.llama2c import BinTokenizer
from llama_pynq.tokenizer.load import load_tokenizer, tokenizer_from_bytes
from llama_pynq.tokenizer.sentencepiece import SentencePieceTokenizer


@needs_models
def test_load_tells_kinds_by_content(tok512, tok32k, model32k, tmp_path):
    assert isinstance(tok32k, BinTokenizer) and isinstance(model32k, SentencePieceTokenizer)
    disguised = tmp_path / "tokenizer.bin"
    disguised.write_bytes((MODELS / "tokenizer32k.model").read_bytes())
    assert isinstance(load_tokenizer(str(disguised)), SentencePieceTokenizer)
    assert (tok512.vocab_size, tok32k.vocab_size, model32k.vocab_size) == (512, 32000, 32000)
    assert tok512.sha256.startswith("037cb335")
    assert tok32k.sha256.startswith("50a52ef8")
    assert model32k.sha256.startswith("9e556afd")
    for tokenizer in (tok512, tok32k, model32k):
        assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    assert tok512.path == MODELS / "tok512.bin"
    assert repr(tok512).endswith("tok512.bin', vocab_size=512)")


def test_load_hashes_the_content(small):
    assert small.sha256 == hashlib.sha256(small.path.read_bytes()).hexdigest()


def test_from_bytes_equals_load(small):
    tokenizer = tokenizer_from_bytes(small.path.read_bytes(), "packed.llama")
    assert tokenizer.path == Path("packed.llama")
    assert (tokenizer.vocab_size, tokenizer.sha256) == (small.vocab_size, small.sha256)
    assert tokenizer.encode("ab") == small.encode("ab")
    with pytest.raises(TokenizerError, match=r"^packed.llama is not a tokenizer"):
        tokenizer_from_bytes(b"GGUF" + bytes(90), "packed.llama")


def test_load_missing_file_is_refused(tmp_path):
    refused(tmp_path / "no.bin", "there is no file", "check the path")
    refused(tmp_path / "no.bin", error=FileNotFoundError)
    refused(tmp_path / "no.bin", error=LlamaPynqError)
    refused(tmp_path, "is a folder, not a tokenizer")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "but an empty file: download"),
        (b"\x05\0\0", "is too short for a tokenizer (3 bytes)"),
        (b'{"version": "1.0", "truncation": null}', "is a JSON text, but no tokenizer.json"),
        (b"version https://git-lfs.github.com/spec/v1\n", "but a git-lfs pointer"),
        (b"<!doctype html>", "but an HTML page"),
        (b"PK\x03\x04" + bytes(90), "but a zip archive, as torch.save writes"),
        (b"GGUF" + bytes(90), "but a GGUF file"),
        (b"IQ== 0\nIg== 1\nIw== 2\n", "is a tiktoken vocabulary, as Llama 3 uses"),
        (struct.pack("<7i", 64, 172, 5, 8, 4, 512, 512) + bytes(90), "but a llama2.c checkpoint"),
        (struct.pack("<Ii", 0x616B3432, 2) + bytes(250), "but a llama2.c checkpoint"),
        (b"\xff\xfe" * 50, "is not a tokenizer that this package can read"),
    ],
)
def test_load_foreign_file_is_named(tmp_path, content, message):
    path = tmp_path / "tokenizer.bin"
    path.write_bytes(content)
    refused(path, message)


@needs_models
def test_load_model_as_tokenizer_is_named():
    refused(MODELS / "stories260K.bin", "is not a tokenizer but a llama2.c checkpoint")
