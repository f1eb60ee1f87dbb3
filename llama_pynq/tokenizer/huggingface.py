"""Tokenizer of Hugging Face's tokenizer.json, encoded by the tokenizers library."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from llama_pynq.errors import TokenizerError
from llama_pynq.tokenizer.base import REMEDY, Tokenizer, no_token
from llama_pynq.utils import strict_json
from llama_pynq.utils.strict_json import shown

OWN_KEY = "llama_pynq"
"""Key of tokenizer.json under which this package keeps what the format has no place for."""


class HuggingFaceTokenizer(Tokenizer):
    """Tokenizer of a tokenizer.json, encoded by the tokenizers library.

    The format does not say which tokens begin and end a text. They stand in an object of the
    package's own beside the others: ``{"llama_pynq": {"bos_id": 1, "eos_ids": [2], "add_bos":
    true}}``, which `tokenizer.gguf` and `with_ends` write. Without "add_bos", BOS begins a text if
    the file's own post-processor says so.

    Parameters
    ----------
    path : Path
        For messages.
    data : bytes
        The file's content.

    Raises
    ------
    TokenizerError
        If tokenizers is not installed, or the content is damaged or of a kind that is not read.
    """

    def __init__(self, path: Path, data: bytes) -> None:
        try:
            library: Any = importlib.import_module("tokenizers")
        except ImportError as error:
            raise TokenizerError(
                f"{path} holds a tokenizer.json, and tokenizers is not installed here: install it "
                "with pip install 'llama_pynq[models]', or tokenizers alone"
            ) from error
        try:
            fields = strict_json.parse(data.decode("utf-8-sig"))
            own = fields.pop(OWN_KEY, {})
            _check_model(fields)
            model = _called(library.Tokenizer.from_str, json.dumps(fields))
            model.encode_special_tokens = True  # they are text, unless parse_special finds them
            size = model.get_vocab_size(with_added_tokens=True)
            names = [model.id_to_token(i) for i in range(size)]
            is_byte_level = _decoder_kind(fields) == "ByteLevel"
            added = {int(t["id"]): t for t in fields.get("added_tokens") or []}
            bos_id, eos_ids, adds_bos = _own(own, size)
            if adds_bos is None:  # as the file's own post-processor does
                begun = _called(partial(model.encode, add_special_tokens=True), "")
                adds_bos = bos_id in begun.ids
        except TokenizerError:
            raise
        except Exception as error:  # the library raises plain Exception
            if starts_like_tokenizer_json(data) and b'"model"' not in data:
                raise TokenizerError(
                    f"{path} is a JSON text, but no tokenizer.json, which has a model: {REMEDY}"
                ) from None
            raise TokenizerError(
                f"{path} is a tokenizer.json that cannot be read: {error}; download it again"
            ) from error
        if None in names:
            raise TokenizerError(
                f"{path}: the token {names.index(None)} of {size} has no text: the file is damaged"
            )
        self._model = model
        self._unknown = _unknown_id(fields, model)
        self.bos_id, self.eos_id = bos_id, eos_ids[0]
        self.more_stop_ids = tuple(eos_ids[1:])
        self.adds_bos = adds_bos
        special = {i: str(t["content"]) for i, t in added.items() if t.get("special")}
        for i in self.stop_ids:
            special.setdefault(i, names[i])
        self.leading_spaces = 0
        if is_byte_level:
            pieces = [n.encode() if i in added else _bytes_of(n) for i, n in enumerate(names)]
        else:
            pieces = [n.encode() if i in added else _spaced(n) for i, n in enumerate(names)]
            self.leading_spaces = _stripped(fields)
        super().__init__(path, data, pieces, special)

    def _encode(self, text: str) -> list[int]:
        """Ids of a text, the same as the library's.

        Raises
        ------
        TokenizerError
            If a character has no token, where the library gives the unknown token.
        """
        try:
            found = _called(partial(self._model.encode, add_special_tokens=False), text)
        except ValueError as error:
            raise TokenizerError(f"{self.path} cannot encode the text: {error}") from None
        ids: list[int] = found.ids
        if self._unknown in ids:
            begin, _ = found.offsets[ids.index(self._unknown)]
            raise no_token(self.path, text[begin : begin + 1] or "\ufffd")
        return ids


def _check_model(fields: dict[str, Any]) -> None:
    """Raise ValueError for what the library cannot read: it may end the process, not raise."""
    model = fields["model"]
    kind = model.get("type", "BPE")
    if kind != "BPE":
        raise ValueError(f"its model is of type {shown(kind)}, and BPE is read")
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise ValueError(f"its model has a {key}, and none of that kind is read")
    vocabulary, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocabulary, dict) or not isinstance(merges, list):
        raise ValueError("its model has no vocab, or no merges")
    if sorted(map(_whole, vocabulary.values())) != list(range(len(vocabulary))):
        raise ValueError("the ids of its vocab are not the numbers from 0 on")
    for i, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        known = isinstance(pair, list) and all(isinstance(part, str) for part in pair)
        if not known or len(pair) != 2 or not {*pair, "".join(pair)} <= vocabulary.keys():
            raise ValueError(f"merge {i}, {shown(merge)}, is not of two tokens to a third")


def _whole(value: object) -> int:
    if type(value) is not int:
        raise ValueError(f"its vocab has the id {shown(value)}")
    return value


def _called(function: Callable[[str], Any], text: str) -> Any:
    """Call the library, whose panics are no `Exception`.

    Raises
    ------
    ValueError
        If it panics.
    """
    try:
        return function(text)
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"the library tokenizers fails on it ({error})") from None


def starts_like_tokenizer_json(data: bytes) -> bool:
    """Whether the data starts as a JSON object."""
    return data[:64].removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{"


def with_ends(data: bytes, bos_id: object, eos_ids: object) -> bytes:
    """Put what a model's configuration says of its tokens into a tokenizer.json.

    Parameters
    ----------
    data : bytes
        A tokenizer.json.
    bos_id : int or None
    eos_ids : int, list of int, or None

    Returns
    -------
    bytes
        For `HuggingFaceTokenizer`.

    Raises
    ------
    ValueError
        If the data are not JSON.
    """
    fields = strict_json.parse(data)
    if not isinstance(fields, dict):
        raise ValueError("it is not an object")
    ends = eos_ids if isinstance(eos_ids, list) else [eos_ids]
    fields[OWN_KEY] = {
        "bos_id": -1 if bos_id is None else bos_id,
        "eos_ids": [end for end in ends if end is not None],
    }
    return json.dumps(fields, ensure_ascii=False).encode()


def _own(own: Any, size: int) -> tuple[int, list[int], bool | None]:
    """BOS (-1: none), ends of a text, and whether BOS begins one, as the file has them."""
    bos_id, eos_ids, adds_bos = own.get("bos_id", -1), own.get("eos_ids", []), own.get("add_bos")
    for i in (bos_id, *eos_ids):
        if type(i) is not int or not -1 <= i < size:
            raise ValueError(f"{OWN_KEY} names the token {i!r} of {size}")
    if not eos_ids:
        raise ValueError(f"it does not say which token ends a text ({OWN_KEY}, eos_ids); {REMEDY}")
    if bos_id < 0:
        return bos_id, eos_ids, False
    return bos_id, eos_ids, None if adds_bos is None else bool(adds_bos)


def _decoder_kind(fields: dict[str, Any]) -> str:
    """ByteLevel, or Spaces for the sequence that sentencepiece's vocabularies have."""
    decoder = fields.get("decoder") or {}
    parts = decoder.get("decoders", [decoder])
    kinds = [part.get("type") for part in parts]
    if kinds == ["ByteLevel"]:
        return "ByteLevel"
    if set(kinds) <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"} and kinds:
        return "Spaces"
    raise ValueError(f"its decoder is {kinds}, and ByteLevel or sentencepiece's kind are read")


def _stripped(fields: dict[str, Any]) -> int:
    """Leading spaces that the decoder drops."""
    decoder = fields["decoder"]
    for part in decoder.get("decoders", [decoder]):
        if part["type"] == "Strip":
            return int(part.get("start", 0))
        if part["type"] == "Metaspace":
            return int(part.get("prepend_scheme", "always") != "never")
    return 0


def _unknown_id(fields: dict[str, Any], model: Any) -> int | None:
    name = fields.get("model", {}).get("unk_token")
    return None if name is None else model.token_to_id(name)


def _spaced(name: str) -> bytes:
    return name.replace("\u2581", " ").encode()


@cache
def _byte_of() -> dict[str, int]:
    """GPT-2's character for each byte, the other way round.

    References
    ----------
    openai/gpt-2, src/encoder.py, bytes_to_unicode(): printable Latin-1 stands for itself, the other
    bytes for the characters from U+0100 on.
    """
    itself = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in itself]
    return {
        **{chr(byte): byte for byte in itself},
        **{chr(256 + i): byte for i, byte in enumerate(others)},
    }


def _bytes_of(name: str) -> bytes:
    """Bytes of a byte-level token's name; a name with other characters is its own text."""
    table = _byte_of()
    if all(character in table for character in name):
        return bytes(table[character] for character in name)
    return name.encode()
