"""Tokenizers: equality with llama2.c and SentencePiece, streaming, and refused files."""

import hashlib
import json
import random
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.paths import MODELS, REPOSITORY

from llama_pynq.errors import LlamaPynqError, TokenizerError
from llama_pynq.tokenizer.llama2c import BinTokenizer
from llama_pynq.tokenizer.load import load_tokenizer, tokenizer_from_bytes
from llama_pynq.tokenizer.sentencepiece import SentencePieceTokenizer

needs_models = pytest.mark.skipif(
    not MODELS.is_dir(), reason=f"the real tokenizers are not in {MODELS}"
)
quick = settings(max_examples=150, deadline=None, derandomize=True)

CONTROL = [b"<unk>", b"\n<s>\n", b"\n</s>\n"]
BYTES = [b"<0x%02X>" % i for i in range(256)]
TEXTS = [
    "",
    " ",
    "  two, then three   spaces  ",
    "Once upon a time, there was a little girl named Lily.",
    "naïve façade, Ünïcödé, Ελληνικά, Привет, שלום, नमस्ते",
    "你好，世界。こんにちは 안녕하세요",
    "😀👩‍👩‍👧🇨🇭 \U0010ffff",
    "a\nb\r\n\n\tc\v\f\x1b[0m\x7f",
    "int main(void) {\n    return x[i] <= 0x0A ? -1 : +1;  // <0x0A>\n}\n",
    "<s> </s> <unk> \n<s>\n [INST] <0x41>",
    "\0 nul \0\0",
    "!!!!!!!! aaaaaaaaaaaaaaaaaaaaaaaa                                  x",
    "e\u0301 \u00a0\u2003\u3000\ufeff\u200b\ufffd",
]


def bin_file(path, pieces, longest=None):
    """Write a tokenizer.bin of (bytes, score) pairs."""
    if longest is None:
        longest = max(len(piece) for piece, _ in pieces)
    records = [struct.pack("<fI", score, len(piece)) + piece for piece, score in pieces]
    path.write_bytes(struct.pack("<I", longest) + b"".join(records))
    return path


def small_bin(path, *extra):
    """Write a tokenizer.bin of control and byte tokens, then (bytes, score) pairs."""
    return bin_file(path, [(piece, 0.0) for piece in CONTROL + BYTES] + list(extra))


def merge_quadratic(tokens, pieces, scores, ids):
    """Merge as run.c's encode() does: examine every pair before every merge."""
    tokens = list(tokens)
    while True:
        best_score, best = -1e10, None
        for i in range(len(tokens) - 1):
            merged = ids.get(pieces[tokens[i]] + pieces[tokens[i + 1]])
            if merged is not None and scores[merged] > best_score:
                best_score, best = scores[merged], (i, merged)
        if best is None:
            return tokens
        i, merged = best
        tokens[i : i + 2] = [merged]


def encode_quadratic(tokenizer, text):
    """Token ids by the direct form of llama2.c's algorithm, with BOS."""
    ids = tokenizer._ids
    tokens = [1]
    if text:
        tokens.append(ids[b" "])
    for character in text:
        utf8 = character.encode()
        tokens += [ids[utf8]] if utf8 in ids else [byte + 3 for byte in utf8]
    return merge_quadratic(tokens, tokenizer._vocab, tokenizer._scores, ids)


def refused(path, *parts, error=TokenizerError):
    """Check that loading is refused with a message that names the file and contains every part."""
    with pytest.raises(error) as caught:
        load_tokenizer(path)
    for part in (str(path), *parts):
        assert part in str(caught.value)


@pytest.fixture(scope="session")
def oracle():
    return json.loads((MODELS / "stories260K.oracle.json").read_text())


@pytest.fixture(scope="session")
def tok512():
    return load_tokenizer(MODELS / "tok512.bin")


@pytest.fixture(scope="session")
def tok32k():
    return load_tokenizer(MODELS / "tokenizer32k.bin")


@pytest.fixture(scope="session")
def model32k():
    pytest.importorskip("sentencepiece", reason="no sentencepiece on this machine")
    return load_tokenizer(MODELS / "tokenizer32k.model")


@pytest.fixture
def small(tmp_path):
    extra = [(b" ", -3.0), (b"a", -4.0), (b"b", -5.0), (b" a", -1.0), (b"ab", -1.0)]
    return load_tokenizer(small_bin(tmp_path / "small.bin", *extra))


# ---------------------------------------------------------------- known answers


@needs_models
def test_encode_equals_llama2c(oracle, tok512, tok32k):
    for text, ids in oracle["encode_tok512"]:
        assert tok512.encode(text) == ids
    for text, ids in oracle["encode_tokenizer32k"]:
        assert tok32k.encode(text) == ids


@needs_models
def test_encode_sentencepiece_equals_llama2c(oracle, model32k):
    for text, ids in oracle["encode_tokenizer32k"]:
        assert model32k.encode(text) == ids


@needs_models
def test_decode_equals_llama2c(oracle, tok512):
    # BOS and the tokens of 200 steps; the list is longer.
    assert tok512.decode(oracle["greedy_ids"][:201]) == oracle["greedy_text_200_steps"]


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


# ---------------------------------------------------------------- encode


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
@pytest.mark.parametrize("text", [*TEXTS, "\u2581 one eighth block"])
def test_encode_equals_quadratic(tok512, tok32k, text):
    for tokenizer in (tok512, tok32k):
        assert tokenizer.encode(text) == encode_quadratic(tokenizer, text)


@quick
@given(
    pieces=st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "ab", "<", "4", "1", " ", "é", "<0x41>", "\n"]).flatmap(
                lambda head: st.text("ab <41é", max_size=3).map(lambda tail: head + tail)
            ),
            st.sampled_from([0.0, -0.0, -1.0, -2.0, -1e9, -1e10, -2e10]),
        ),
        max_size=25,
    ),
    text=st.text("ab <0x41>é\n中", max_size=40),
)
def test_encode_equals_quadratic_in_any_vocabulary(tmp_path_factory, pieces, text):
    extra = [(b" ", -3.0)] + [(piece.encode(), score) for piece, score in pieces]
    path = small_bin(tmp_path_factory.getbasetemp() / "any.bin", *extra)
    tokenizer = load_tokenizer(path)
    tokens = tokenizer.encode(text)
    assert tokens == encode_quadratic(tokenizer, text)
    assert all(0 <= token < tokenizer.vocab_size for token in tokens)


def test_encode_of_equal_scores_merges_the_leftmost(small):
    # " a" and "ab" have equal scores: the pair with the dummy prefix is further left.
    assert small.encode("ab", bos=False) == [262, 261]
    assert small.encode("bab", bos=False) == [259, 261, 263]


def test_encode_score_at_the_limit_never_merges(tmp_path):
    extra = [(b" ", 0.0), (b"a", 0.0), (b"b", 0.0), (b"ab", -1e10), (b"ba", -9e9)]
    tokenizer = load_tokenizer(small_bin(tmp_path / "t.bin", *extra))
    assert tokenizer.encode("ab", bos=False) == [259, 260, 261]
    assert tokenizer.encode("ba", bos=False) == [259, 263]


@pytest.mark.parametrize(("copies", "found"), [(2, 260), (3, 261), (4, 260), (5, 261)])
def test_encode_duplicate_pieces_are_found_as_run_c_finds_them(tmp_path, copies, found):
    # Results of llama2.c's run.c at 350e04f, compiled with glibc 2.36, for these files.
    extra = [(b" ", 0.0)] + [(b"a", 0.0)] * copies
    tokenizer = load_tokenizer(small_bin(tmp_path / "t.bin", *extra))
    assert tokenizer.encode("a") == [1, 259, found]


def test_encode_bos_and_eos(small):
    assert small.encode("b", bos=True, eos=True) == [1, 259, 261, 2]
    assert small.encode("", bos=True, eos=True) == [1, 2]
    assert small.encode("", bos=False) == []


def test_encode_byte_fallback(small):
    assert small.encode("é\0", bos=False) == [259, 0xC3 + 3, 0xA9 + 3, 3]


def test_encode_without_byte_tokens_is_refused(tmp_path):
    pieces = [(piece, 0.0) for piece in [*CONTROL, b" ", b"a"]]
    tokenizer = load_tokenizer(bin_file(tmp_path / "t.bin", pieces))
    assert tokenizer.encode("a") == [1, 3, 4]
    with pytest.raises(TokenizerError) as caught:
        tokenizer.encode("aé")
    assert "has no token for 'é' (U+00E9), nor the byte tokens" in str(caught.value)
    assert "leave the character out" in str(caught.value)
    # Token 100 exists here but is not a byte token.
    pieces += [(b"x%d" % i, 0.0) for i in range(300)]
    tokenizer = load_tokenizer(bin_file(tmp_path / "t.bin", pieces))
    with pytest.raises(TokenizerError, match=r"no token for 'c' \(U\+0063\)"):
        tokenizer.encode("c")


def test_encode_without_space_token_is_refused(tmp_path):
    tokenizer = load_tokenizer(small_bin(tmp_path / "t.bin"))
    assert tokenizer.encode("") == [1]
    with pytest.raises(TokenizerError, match="has no token for the space"):
        tokenizer.encode("a")


@needs_models
def test_encode_half_a_surrogate_pair_is_refused(tok512, model32k):
    for tokenizer in (tok512, model32k):
        with pytest.raises(TokenizerError, match=r"lone surrogate \('\\ud83d', .* at position 2"):
            tokenizer.encode("ab\ud83dc")


@needs_models
def test_encode_of_bytes_is_a_type_error(tok512, model32k):
    for tokenizer in (tok512, model32k):
        with pytest.raises(TypeError, match="text must be a str, not bytes"):
            tokenizer.encode(b"abc")


@needs_models
def test_encode_time_grows_with_length_not_its_square(tok32k):
    def seconds(n):
        text = "".join(random.Random(n).choices("etaoin shrdlu", k=n))
        start = time.perf_counter()
        tok32k.encode(text)
        return time.perf_counter() - start

    seconds(1000)
    # Quadratic time would take 64 times as long; the slack allows for a busy machine.
    assert seconds(40_000) < 20 * min(seconds(5_000) for _ in range(3)) + 0.5


# ---------------------------------------------------------------- decode


@needs_models
@quick
@given(text=st.text())
@example(text=" leading space")
@example(text="\u2581")
@example(text="\0")
def test_decode_of_encode_is_the_text(tok512, tok32k, model32k, text):
    for tokenizer in (tok512, tok32k):
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.decode(tokenizer.encode(text, bos=False, eos=True)) == text
    # The one exception: see the docstring of llama_pynq.tokenizer.
    assert model32k.decode(model32k.encode(text)) == text.replace("\u2581", " ")


@needs_models
@pytest.mark.parametrize("text", TEXTS)
def test_decode_equals_sentencepiece(model32k, text):
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_file=str(MODELS / "tokenizer32k.model"))
    tokens = model32k.encode(text)
    assert model32k.decode(tokens) == processor.decode(tokens)


def test_decode_drops_one_space_after_bos_and_at_the_start(small):
    assert small.decode([1, 262, 262]) == "a a"
    assert small.decode([262, 262]) == "a a"
    assert small.decode([1, 259, 262]) == " a"
    assert small.decode([1, 0x20 + 3, 260]) == " a"  # a byte token is not the dummy prefix
    assert small.decode([1, 262, 2, 1, 262, 2, 262]) == "aa a"


def test_decode_invalid_utf8_is_replaced(small):
    assert small.decode([0xC3 + 3, 260, 0xFF + 3, 0xF0 + 3, 0x9F + 3]) == "\ufffda\ufffd\ufffd"
    # EOS also ends an incomplete character.
    assert small.decode([0xC3 + 3, 2, 0xA9 + 3]) == "\ufffd\ufffd"


def test_piece_gives_raw_bytes(small):
    assert small.piece(262) == b" a"
    assert small.piece(0xC3 + 3) == b"\xc3"
    assert [small.piece(i) for i in range(3)] == CONTROL
    assert small.piece(np.int32(260)) == b"a"


@pytest.mark.parametrize("token", [-1, 264, 1 << 40])
def test_token_out_of_range_is_refused(small, token):
    for use in (small.piece, lambda token: small.decode([1, token]), small.stream_decoder().push):
        with pytest.raises(TokenizerError) as caught:
            use(token)
        assert f"token id {token} is out of range: {small.path} has ids 0 to 263" in str(
            caught.value
        )


# ---------------------------------------------------------------- streaming


@needs_models
@quick
@given(data=st.data())
def test_stream_decoder_equals_decode_and_never_splits(tok512, data):
    byte = st.integers(3, 258)
    tokens = data.draw(st.lists(st.integers(0, 511) | byte | st.sampled_from([1, 2]), max_size=60))
    stream = tok512.stream_decoder()
    text = ""
    for token in tokens:
        part = stream.push(token)
        part.encode()  # fails on half a surrogate pair
        text += part
    assert text + stream.flush() == tok512.decode(tokens)
    assert stream.flush() == ""


@needs_models
@quick
@given(text=st.text(), cut=st.integers(0, 80))
def test_stream_decoder_goes_on_from_a_prompt(tok512, text, cut):
    tokens = tok512.encode(text)
    prompt, rest = tokens[:cut], tokens[cut:]
    before = tok512.stream_decoder()
    shown = "".join(before.push(token) for token in prompt)
    after = tok512.stream_decoder(prompt_tokens=prompt)
    shown += "".join(after.push(token) for token in rest)
    assert shown + after.flush() == text


@needs_models
def test_stream_decoder_waits_for_the_whole_character(tok32k):
    text = "x😀é"
    tokens = tok32k.encode(text)
    stream = tok32k.stream_decoder()
    parts = [stream.push(token) for token in tokens]
    assert len(parts) > len(text)
    assert [part for part in parts if part] == ["x", "😀", "é"]


def test_stream_decoder_leading_space(small):
    assert small.stream_decoder().push(262) == "a"
    assert small.stream_decoder([1]).push(262) == "a"
    assert small.stream_decoder([1, 262]).push(262) == " a"


def test_stream_decoder_incomplete_end_is_replaced(small):
    stream = small.stream_decoder()
    assert [stream.push(0xF0 + 3), stream.push(0x9F + 3)] == ["", ""]
    assert stream.flush() == "\ufffd"
    stream.push(0xF0 + 3)
    assert stream.push(260) == "\ufffda"


def test_stream_decoder_is_unchanged_by_a_refused_token(small):
    stream = small.stream_decoder()
    stream.push(0xC3 + 3)
    with pytest.raises(TokenizerError):
        stream.push(999)
    assert stream.push(0xA9 + 3) == "é"


# ---------------------------------------------------------------- vocabulary size


def test_check_vocab(small):
    small.check_vocab(264)
    with pytest.raises(TokenizerError) as caught:
        small.check_vocab(32000)
    assert "the model has a vocabulary of 32000 tokens" in str(caught.value)
    assert f"the tokenizer {small.path} has 264" in str(caught.value)
    assert "use the tokenizer that the model was trained with" in str(caught.value)


# ---------------------------------------------------------------- wrong files


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


@pytest.mark.parametrize("cut", [1, 2, 9])
def test_load_truncated_bin_is_refused(small, cut):
    small.path.write_bytes(small.path.read_bytes()[:-cut])
    refused(small.path, "is a truncated tokenizer.bin: it ends inside token 263, at byte")


def test_load_overlong_bin_is_refused(small):
    small.path.write_bytes(small.path.read_bytes() + b"\0\0\0")
    refused(small.path, "is a truncated tokenizer.bin: it ends inside token 264")
    small.path.write_bytes(small.path.read_bytes() + b"\0" * 20)
    refused(small.path, "is a corrupt tokenizer.bin: token 264 (byte")


@pytest.mark.parametrize(
    ("piece", "score", "message"),
    [
        (b"", 0.0, "has score 0.0 and 0 bytes"),
        (b"toolong", 0.0, "has score 0.0 and 7 bytes, expected a finite score and 1 to 6 bytes"),
        (b"a\0b", 0.0, "without a NUL"),
        (b"a", float("nan"), "has score nan"),
        (b"a", float("inf"), "has score inf"),
    ],
)
def test_load_corrupt_bin_is_refused(tmp_path, piece, score, message):
    path = bin_file(tmp_path / "t.bin", [(p, 0.0) for p in CONTROL] + [(piece, score)], longest=6)
    refused(path, "is a corrupt tokenizer.bin: token 3 (byte 44)", message, "download it again")


def test_load_bin_with_too_few_tokens_is_refused(tmp_path):
    path = bin_file(tmp_path / "t.bin", [(b"<unk>", 0.0), (b"\n<s>\n", 0.0)])
    refused(path, "has only 2 token(s)", "at ids 0 to 2")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "but an empty file: download"),
        (b"\x05\0\0", "is too short for a tokenizer (3 bytes)"),
        (b'{"version": "1.0", "truncation": null}', "but a JSON text, such as config.json or tok"),
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
