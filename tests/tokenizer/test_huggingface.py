"""tokenizer.json beside the tokenizers library itself."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.tokenizer_cases import TEXTS, quick, refused

from llama_pynq.errors import TokenizerError
from llama_pynq.tokenizer.huggingface import OWN_KEY
from llama_pynq.tokenizer.load import tokenizer_from_bytes

tokenizers = pytest.importorskip("tokenizers", reason="no tokenizers on this machine")

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CORPUS = [*TEXTS, "hello world, the cat sat on the mat's 12345 corners\n\n  and slept."] * 5


def byte_level(vocab_size=400):
    """A byte-level BPE, trained here."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL, initial_alphabet=alphabet,
        show_progress=False,
    )  # fmt: skip
    model.train_from_iterator(CORPUS, trainer)
    return model


def llama_like():
    """A BPE of sentencepiece's kind: spaces as U+2581, bytes as <0x00>."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=True, unk_token="<unk>"))
    normalizers, decoders = tokenizers.normalizers, tokenizers.decoders
    model.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    model.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    names = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=420, special_tokens=names, show_progress=False
    )
    model.train_from_iterator(["hello world, the cat sat on the mat"] * 9, trainer)
    fields = json.loads(model.to_str())
    fields["added_tokens"] = [t for t in fields["added_tokens"] if t["id"] < 3]
    return tokenizers.Tokenizer.from_str(json.dumps(fields))


def ours(model, **own):
    fields = json.loads(model.to_str())
    fields[OWN_KEY] = {"bos_id": 1, "eos_ids": [2, 0], "add_bos": False, **own}
    return tokenizer_from_bytes(json.dumps(fields).encode(), "tokenizer.json")


@pytest.fixture(scope="module", params=[byte_level, llama_like])
def pair(request):
    model = request.param()
    return ours(model), model


@quick
@given(text=st.text() | st.sampled_from(CORPUS))
@example(text=" leading")
@example(text="a<|im_start|>b")
def test_ids_and_text_are_the_librarys(pair, text):
    tokenizer, model = pair
    model.encode_special_tokens = True
    ids = model.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode(text) == ids
    kept = text.replace("\u2581", " ") if tokenizer.leading_spaces else text
    assert tokenizer.decode(ids) == model.decode(ids) == kept


@settings(quick, max_examples=300)
@given(data=st.data())
def test_any_ids_stream_as_the_library_decodes_them(pair, data):
    tokenizer, model = pair
    # The library drops a space at the start even if it was spelled as a byte.
    space = model.token_to_id("<0x20>")
    text = [i for i in range(tokenizer.vocab_size) if i not in (*tokenizer.special, space)]
    ids = data.draw(st.lists(st.sampled_from(text), max_size=20))
    stream = tokenizer.stream_decoder()
    shown = "".join(stream.push(i) for i in ids) + stream.flush()
    assert shown == tokenizer.decode(ids)
    if "\ufffd" not in shown:  # how many of them stand for broken bytes differs
        assert shown == model.decode(ids)


def test_special_tokens_are_text_unless_they_are_asked_for():
    model = byte_level()
    tokenizer = ours(model)
    text = "<|im_start|>hi<|im_end|> there"
    assert not {1, 2} & set(tokenizer.encode(text))
    model.encode_special_tokens = False
    ids = model.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode(text, parse_special=True) == ids
    assert ids[0] == 1 and 2 in ids
    assert tokenizer.decode(ids) == "hi there"
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_bos_and_stop_tokens_are_the_files():
    model = byte_level()
    plain, begun = ours(model), ours(model, add_bos=True)
    assert (plain.bos_id, plain.eos_id, plain.stop_ids) == (1, 2, (1, 2, 0))
    assert plain.encode("a", eos=True) == [*plain.encode("a"), 2]
    assert begun.encode("a") == [1, *plain.encode("a")]
    assert begun.encode("a", bos=False) == plain.encode("a")
    none = ours(model, bos_id=-1, add_bos=True)
    assert (none.bos_id, none.stop_ids) == (-1, (2, 0))
    assert none.encode("a") == plain.encode("a")


def test_a_character_without_a_token_is_refused():
    model = llama_like()
    fields = json.loads(model.to_str())
    fields["model"]["byte_fallback"] = False
    tokenizer = ours(tokenizers.Tokenizer.from_str(json.dumps(fields)))
    with pytest.raises(TokenizerError, match=r"no token for '☕' \(U\+2615\)"):
        tokenizer.encode("hello ☕")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f["model"].update(end_of_word_suffix="t"), "its model has a end_of_word_suffix"),
        # The library panics at these, or ends the process.
        (lambda f: f["model"].update(continuing_subword_prefix="x"), "continuing_subword_prefix"),
        (lambda f: f["model"]["vocab"].update(a=100_000), "are not the numbers from 0 on"),
        (lambda f: f["model"]["vocab"].update(a="1"), "its vocab has the id '1'"),
        (lambda f: f["model"]["merges"].append(["a", "zz"]), "is not of two tokens to a third"),
        (lambda f: f["model"]["merges"].append("a"), "'a', is not of two tokens to a third"),
        (lambda f: f["model"].update(type="Unigram"), "its model is of type 'Unigram'"),
        (lambda f: f.pop(OWN_KEY), "it does not say which token ends a text"),
        (lambda f: f[OWN_KEY].update(eos_ids=[100_000]), "llama_pynq names the token 100000 of"),
        (lambda f: f[OWN_KEY].update(bos_id="1"), "llama_pynq names the token '1' of"),
        (lambda f: f.update(decoder={"type": "WordPiece"}), "cannot be read"),
        (lambda f: f.update(decoder=None), "its decoder is [None]"),
        (lambda f: f.update(model={"type": "Nonsense"}), "its model is of type 'Nonsense'"),
        (lambda f: f.update(model=[]), "cannot be read"),
        (lambda f: f.update({OWN_KEY: [1]}), "cannot be read"),
        (lambda f: f.pop("model"), "is a JSON text, but no tokenizer.json"),
    ],
)
def test_damaged_files_are_named(tmp_path, change, message):
    fields = json.loads(byte_level().to_str())
    fields[OWN_KEY] = {"bos_id": 1, "eos_ids": [2], "add_bos": False}
    change(fields)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(fields))
    refused(path, message)


@pytest.mark.parametrize("data", [b"{", b"[" * 100_000, b'{"a": NaN}', b'{"a":' * 5000, b"{}"])
def test_other_json_is_refused(tmp_path, data):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(data)
    refused(path)


def test_without_the_library_the_message_says_so(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "tokenizers", None)
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    refused(path, "pip install 'llama_pynq[models]'")
