"""SentencePiece models: equality with tokenizer.bin, and refused files."""

import io
import itertools
import subprocess
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.paths import MODELS, REPOSITORY
from support.tokenizer_cases import TEXTS, needs_models, quick, refused

from llama_pynq.errors import TokenizerError
from llama_pynq.models import BUNDLED
from llama_pynq.tokenizer.load import tokenizer_from_bytes


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


def test_damage_that_sentencepiece_reports_with_the_files_bytes_is_refused(tmp_path):
    """Its message for a piece that comes twice holds the piece, which is no UTF-8 here."""
    pytest.importorskip("sentencepiece", reason="no sentencepiece on this machine")
    data = (BUNDLED / "tokenizer.model").read_bytes()
    piece = "\u2581the".encode()
    begin = data.index(piece) - 4  # tag and length of the record, tag and length of the piece
    record = data[begin : begin + 2 + data[begin + 1]]
    assert record[0] == 0x0A and record[2] == 0x0A
    broken = record.replace(piece, piece[:-1] + b"\xc4")
    path = tmp_path / "tokenizer.model"
    path.write_bytes(data[:begin] + broken + broken + data[begin + len(record) :])
    refused(path, "sentencepiece cannot read it: the file is corrupt; download it again")


# ---- models of other settings, trained here, beside the library itself ---------------


def trained(**settings):
    """A small model, and sentencepiece's own reader of it."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="no sentencepiece on this machine")
    texts = ["hello world the cat sat on the mat", "  two  spaces ", "the dog and the cat "] * 30
    out = io.BytesIO()
    chosen = {
        "vocab_size": 320,
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "control_symbols": ["[INST]", "[/INST]", "<pad>"],
        "user_defined_symbols": ["<u>"],
        "hard_vocab_limit": False,
        "minloglevel": 9,
        **settings,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=out, **chosen
    )
    data = out.getvalue()
    return (
        tokenizer_from_bytes(data, "trained.model"),
        sentencepiece.SentencePieceProcessor(model_proto=data),
    )


SPACES = list(itertools.product([False, True], repeat=3))


@pytest.fixture(scope="module", params=SPACES, ids=lambda p: "-".join(str(int(x)) for x in p))
def spaces(request):
    """Models of every combination of the three settings of spaces."""
    prefix, remove, suffix = request.param
    return trained(
        add_dummy_prefix=prefix, remove_extra_whitespaces=remove, treat_whitespace_as_suffix=suffix
    )


@settings(quick, max_examples=60)
@given(text=st.text(alphabet="the cat<u>é \n", max_size=12) | st.text(max_size=8))
@example(text=" the  cat ")
@example(text="  ")
@example(text="[INST] the<pad>")
def test_spaces_are_kept_where_the_library_keeps_them(spaces, text):
    ours, library = spaces
    ids = library.encode(text)
    assert ours.encode(text, bos=False) == ids
    assert ours.decode(ids) == library.decode(ids)
    assert ours.decode([ours.bos_id, *ids]) == library.decode(ids)


@settings(quick, max_examples=60)
@given(data=st.data())
def test_decode_of_any_ids_equals_the_library(spaces, data):
    ours, library = spaces
    text = [i for i in range(ours.vocab_size) if not library.is_byte(i)]
    text = [i for i in text if i not in (ours.bos_id, library.unk_id())]
    ids = data.draw(st.lists(st.sampled_from(text), max_size=8))
    assert ours.decode(ids) == library.decode(ids)


def test_a_model_without_dummy_prefix_keeps_its_first_space():
    ours, _ = trained(add_dummy_prefix=False, remove_extra_whitespaces=False)
    for text in (" hello", "hello", "  the cat "):
        assert ours.decode(ours.encode(text)) == text


def test_control_tokens_are_shown_only_when_asked_for():
    ours, library = trained()
    inst, pad = library.piece_to_id("[INST]"), library.piece_to_id("<pad>")
    ids = [1, inst, *library.encode("hello"), pad, 0, 2]
    assert ours.decode(ids) == "hello"
    assert ours.decode(ids, skip_special_tokens=False) == "<s>[INST]hello<pad><unk></s>"
    shown = ours.stream_decoder([1], skip_special_tokens=False)
    assert [shown.push(i) for i in (inst, pad, 2)] == ["[INST]", "<pad>", "</s>"]


def test_special_tokens_are_parsed_only_when_asked_for():
    ours, library = trained()
    inst, end = library.piece_to_id("[INST]"), library.piece_to_id("[/INST]")
    text = "[INST] the cat [/INST]</s><s>hello"
    assert ours.encode(text) == [1, *library.encode(text)]
    assert inst not in ours.encode(text)
    parts = [inst, *library.encode(" the cat "), end, 2, 1, *library.encode("hello")]
    assert ours.encode(text, parse_special=True) == [1, *parts]
    assert ours.encode("<s>hello", parse_special=True) == [1, *library.encode("hello")]
    assert ours.encode("hello", parse_special=True) == ours.encode("hello")


def test_a_character_without_a_token_is_refused_as_by_a_bin_file():
    ours, library = trained(byte_fallback=False, vocab_size=60, model_type="unigram")
    assert library.unk_id() in library.encode("the \u00e9")
    with pytest.raises(TokenizerError, match=r"no token for 'é' \(U\+00E9\), nor the byte tokens"):
        ours.encode("the \u00e9")
    assert ours.encode("the cat", bos=False) == library.encode("the cat")
