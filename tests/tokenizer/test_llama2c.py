"""tokenizer.bin: equality with llama2.c, and refused files."""

import random
import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tokenizer_cases import (
    CONTROL,
    TEXTS,
    bin_file,
    needs_models,
    quick,
    refused,
    small_bin,
)
from support.tokenizer_files import read_tokenizer_bin

from llama_pynq.errors import TokenizerError
from llama_pynq.models import BUNDLED
from llama_pynq.tokenizer.load import load_tokenizer


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


@needs_models
def test_encode_equals_llama2c(oracle, tok512, tok32k):
    for text, ids in oracle["encode_tok512"]:
        assert tok512.encode(text) == ids
    for text, ids in oracle["encode_tokenizer32k"]:
        assert tok32k.encode(text) == ids


@needs_models
def test_decode_equals_llama2c(oracle, tok512):
    # BOS and the tokens of 200 steps; the list is longer.
    assert tok512.decode(oracle["greedy_ids"][:201]) == oracle["greedy_text_200_steps"]


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
def test_encode_time_grows_with_length_not_its_square(tok32k):
    def seconds(n):
        text = "".join(random.Random(n).choices("etaoin shrdlu", k=n))
        start = time.perf_counter()
        tok32k.encode(text)
        return time.perf_counter() - start

    seconds(1000)
    # Quadratic time would take 64 times as long; the slack allows for a busy machine.
    assert seconds(40_000) < 20 * min(seconds(5_000) for _ in range(3)) + 0.5


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


# ---- files of July 2023 -----------------------------------------------------------------


def july(data, scores=True):
    """The file that tokenizer.py wrote on 28 July 2023; before, it had no scores."""
    tokens = read_tokenizer_bin(data)
    for byte in range(256):
        assert tokens[3 + byte][1] == b"<0x%02X>" % byte
        tokens[3 + byte] = (tokens[3 + byte][0], chr(byte).encode())
    if not scores:
        return b"".join(struct.pack("<I", len(piece)) + piece for _, piece in tokens)
    longest = max(len(piece) for _, piece in tokens)
    records = (struct.pack("<fI", score, len(piece)) + piece for score, piece in tokens)
    return struct.pack("<I", longest) + b"".join(records)


@pytest.mark.parametrize("text", TEXTS)
def test_file_of_july_2023_encodes_as_todays(tmp_path, text):
    today = load_tokenizer(BUNDLED / "tokenizer.bin")
    path = tmp_path / "tokenizer.bin"
    path.write_bytes(july((BUNDLED / "tokenizer.bin").read_bytes()))
    old = load_tokenizer(path)
    ids = old.encode(text)
    assert ids == today.encode(text)
    assert old.decode(ids) == today.decode(ids)


def test_file_of_july_2023_without_scores_is_named(tmp_path):
    path = tmp_path / "tokenizer.bin"
    path.write_bytes(july((BUNDLED / "tokenizer.bin").read_bytes(), scores=False))
    refused(path, "is a tokenizer.bin of 24 to 28 July 2023, without", "with today's tokenizer.py")


def test_nul_among_other_tokens_is_corrupt(tmp_path):
    data = july((BUNDLED / "tokenizer.bin").read_bytes())
    at = data.index(struct.pack("<I", 1) + b"A") + 4
    path = tmp_path / "tokenizer.bin"
    path.write_bytes(data[:at] + b"B" + data[at + 1 :])
    refused(path, "token 3 is a NUL, and the tokens behind it are not the other bytes")


def test_special_tokens_of_a_bin_file(small):
    assert small.encode("<s>ab</s>a", parse_special=True) == [1, 262, 261, 2, 262]
    assert small.decode([1, 262, 0, 2]) == "a"
    assert small.decode([1, 262, 0, 2], skip_special_tokens=False) == "<s>a<unk></s>"
    plain = small.encode("</s>")
    assert 2 not in plain
    assert small.decode(plain) == "</s>"
