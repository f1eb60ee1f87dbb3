"""Tokenizers of both kinds: decoding, streaming, and the size of the vocabulary."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.tokenizer_cases import CONTROL, needs_models, quick

from llama_pynq.errors import TokenizerError


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


def test_check_vocab(small):
    small.check_vocab(264)
    with pytest.raises(TokenizerError) as caught:
        small.check_vocab(32000)
    assert "the model has a vocabulary of 32000 tokens" in str(caught.value)
    assert f"the tokenizer {small.path} has 264" in str(caught.value)
    assert "use the tokenizer that the model was trained with" in str(caught.value)
