"""SentencePiece models: equality with tokenizer.bin, and refused files."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.paths import MODELS, REPOSITORY
from support.tokenizer_cases import TEXTS, needs_models, quick, refused


@needs_models
def test_encode_sentencepiece_equals_llama2c(oracle, model32k):
    for text, ids in oracle["encode_tokenizer32k"]:
        assert model32k.encode(text) == ids


@needs_models
@pytest.mark.parametrize("text", TEXTS)
def test_bin_and_sentencepiece_agree(tok32k, model32k, text):
    assert tok32k.encode(text) == model32k.encode(text)


@needs_models
@quick
@given(text=st.text())
def test_bin_and_sentencepiece_agree_on_any_text(tok32k, model32k, text):
    text = text.replace("\u2581", "")
    assert tok32k.encode(text, eos=True) == model32k.encode(text, eos=True)


@needs_models
def test_bin_and_sentencepiece_differ_on_the_space_sign(tok32k, model32k):
    assert model32k.encode("a\u2581b") == model32k.encode("a b")
    assert tok32k.decode(tok32k.encode("a\u2581b")) == "a\u2581b"


@needs_models
def test_piece_bin_and_sentencepiece_agree(tok32k, model32k):
    for token in range(32000):
        assert tok32k.piece(token) == model32k.piece(token)


@needs_models
@pytest.mark.parametrize("text", TEXTS)
def test_decode_equals_sentencepiece(model32k, text):
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_file=str(MODELS / "tokenizer32k.model"))
    tokens = model32k.encode(text)
    assert model32k.decode(tokens) == processor.decode(tokens)


@needs_models
def test_load_truncated_sentencepiece_is_refused(tmp_path):
    data = (MODELS / "tokenizer32k.model").read_bytes()
    path = tmp_path / "tokenizer.model"
    between_tokens = 2 + data[1]
    for end in (1000, len(data) - 3, between_tokens):
        path.write_bytes(data[:end])
        refused(path, f"is a truncated sentencepiece model ({end} bytes)")


@needs_models
def test_load_corrupt_sentencepiece_is_refused(tmp_path):
    pytest.importorskip("sentencepiece", reason="no sentencepiece on this machine")
    data = bytearray((MODELS / "tokenizer32k.model").read_bytes())
    path = tmp_path / "tokenizer.model"
    data[3] = 0x7F  # inside the first token: its length
    path.write_bytes(data)
    refused(path, "but sentencepiece cannot read it: the file is corrupt; download it again")
    data[2 + data[1]] = 0x0B  # the tag of the second token
    path.write_bytes(data)
    refused(path, "starts like a sentencepiece model, but is corrupt at byte")


@needs_models
def test_load_sentencepiece_not_installed_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    path = MODELS / "tokenizer32k.model"
    refused(path, "pip install sentencepiece", "armv7l", "tokenizer.bin, which llama2.c's")


def test_import_does_not_load_sentencepiece():
    code = "import sys, llama_pynq.tokenizer.load; sys.exit('sentencepiece' in sys.modules)"
    root = REPOSITORY
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


@needs_models
@pytest.mark.parametrize("byte", [0x41, 0xFF, 0xC0])
def test_piece_that_is_not_utf8_is_refused_by_name(tmp_path, byte):
    data = bytearray((MODELS / "tokenizer32k.model").read_bytes())
    at = data.index("\u2581the".encode())
    data[at] = byte
    path = tmp_path / "tokenizer.model"
    path.write_bytes(data)
    refused(path, "is a damaged sentencepiece model: the piece b'", "is not UTF-8")


def test_endless_varint_is_read_once(tmp_path):
    """A varint of megabytes took quadratic time."""
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"\x0a\x02\x0a\x00" + b"\xff" * 2_000_000)
    refused(path, "corrupt at byte")
