"""The vocabulary in a GGUF file's metadata, as a tokenizer file that the libraries read.

A vocabulary of the kind "llama" becomes a sentencepiece model, one of the kind "gpt2" a
tokenizer.json: then the field's own libraries encode, and a packed file stores what they read.

References
----------
ggml-org/ggml, docs/gguf.md, "Tokenizer"; llama.cpp, src/llama-vocab.cpp, for the regular expression
of each name of a pre-tokenizer.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llama_pynq.errors import TokenizerError
from llama_pynq.tokenizer.huggingface import OWN_KEY

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_BPE = 2  # sentencepiece_model.proto, TrainerSpec.ModelType


def tokenizer_file(metadata: Mapping[str, Any], path: Path) -> bytes:
    """Content of a tokenizer file with a GGUF file's vocabulary.

    Parameters
    ----------
    metadata : mapping
        From `checkpoint.gguf.read_header`.
    path : Path
        For messages.

    Returns
    -------
    bytes
        A sentencepiece model or a tokenizer.json, for `tokenizer.load.tokenizer_from_bytes`.

    Raises
    ------
    TokenizerError
        If the file has no vocabulary, or one of a kind that is not read.
    """
    kind = metadata.get("tokenizer.ggml.model")
    writer = {"llama": _sentencepiece, "gpt2": _tokenizer_json}.get(str(kind))
    if writer is None:
        what = "no vocabulary" if kind is None else f"a vocabulary of the kind {kind!r}"
        raise TokenizerError(f"{path} has {what}, and the kinds llama and gpt2 are read")
    try:
        return writer(_Vocabulary(metadata))
    except (ValueError, TypeError) as error:
        raise TokenizerError(f"{path}: its vocabulary cannot be read: {error}") from None


class _Vocabulary:
    """The entries of the metadata, checked."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata
        raw = self.get("tokens", list, [])
        if not raw:
            raise ValueError("there are no tokens")
        self.tokens = [_utf8(token, f"token {i}") for i, token in enumerate(raw)]
        n = len(raw)
        types = metadata.get("tokenizer.ggml.token_type")
        self.types = [_NORMAL] * n if types is None else [int(kind) for kind in types]
        scores = metadata.get("tokenizer.ggml.scores")
        self.scores = None if scores is None else [float(score) for score in scores]
        for name, values in (("token_type", self.types), ("scores", self.scores)):
            if values is not None and len(values) != n:
                raise ValueError(f"{n} tokens have {len(values)} entries of {name}")

    def get(self, name: str, kind: type, default: Any) -> Any:
        value = self._metadata.get(f"tokenizer.ggml.{name}", default)
        if type(value) is not kind and value is not default:
            raise ValueError(f"tokenizer.ggml.{name} is {value!r}, not of type {kind.__name__}")
        return value

    def token_id(self, name: str, default: int) -> int:
        """The id that an entry names; -1 for none."""
        value = self.get(f"{name}_token_id", int, default)
        if not -1 <= value < len(self.tokens):
            raise ValueError(f"{name}_token_id is {value}, of {len(self.tokens)} tokens")
        return int(value)


def _utf8(data: bytes, what: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{what} ({data!r}) is not UTF-8 at its byte {error.start}") from None


# ---- the kind "gpt2": byte-level BPE --------------------------------------------------

_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def _split(pattern: str) -> list[dict[str, Any]]:
    rule = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return [rule, _BYTES]


_PRE_TOKENIZERS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [{**_BYTES, "use_regex": True}],
    "smollm": [{"type": "Digits", "individual_digits": True}, {**_BYTES, "use_regex": True}],
    "llama-bpe": _split(_LLAMA_3),
    "qwen2": _split(_LLAMA_3.replace("{1,3}", "")),
}
_PRE_TOKENIZERS["llama3"] = _PRE_TOKENIZERS["llama-v3"] = _PRE_TOKENIZERS["llama-bpe"]


def _tokenizer_json(vocabulary: _Vocabulary) -> bytes:
    pre = vocabulary.get("pre", str, "")
    if pre not in _PRE_TOKENIZERS:
        known = ", ".join(_PRE_TOKENIZERS)
        raise ValueError(f"its pre-tokenizer is {pre!r}, and {known} are read")
    ids = {token: i for i, token in enumerate(vocabulary.tokens)}
    if len(ids) < len(vocabulary.tokens):
        twice = next(t for i, t in enumerate(vocabulary.tokens) if ids[t] != i)
        raise ValueError(f"the token {twice!r} comes twice")
    merges = []
    for i, raw in enumerate(vocabulary.get("merges", list, [])):
        merge = _utf8(raw, f"merge {i}")
        # A token's name holds no space, but an added one's may, which is never merged.
        left, _, right = merge.partition(" ")
        if left not in ids or right not in ids or left + right not in ids:
            raise ValueError(f"merge {i}, {merge!r}, is not of two tokens to a third")
        merges.append([left, right])
    added = [
        {"id": i, "content": vocabulary.tokens[i], "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False, "special": kind != _USER_DEFINED}
        for i, kind in enumerate(vocabulary.types)
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    ]  # fmt: skip
    eos = vocabulary.token_id("eos", -1)
    ends = [eos, vocabulary.token_id("eot", -1), vocabulary.token_id("eom", -1)]
    fields = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _PRE_TOKENIZERS[pre]},
        "post_processor": None,
        "decoder": {**_BYTES, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            # Llama 3 takes a word that is a token as it is.
            "ignore_merges": "llama" in pre,
            "vocab": ids,
            "merges": merges,
        },
        OWN_KEY: {
            "bos_id": vocabulary.token_id("bos", -1),
            "eos_ids": [i for i in ends if i >= 0],
            # llama.cpp's default for this kind is false, but for Llama 3.
            "add_bos": vocabulary.get("add_bos_token", bool, "llama" in pre),
        },
    }
    return json.dumps(fields, ensure_ascii=False).encode()


# ---- the kind "llama": sentencepiece --------------------------------------------------


def _field(number: int, value: bytes | int | float) -> bytes:
    """A field of a protobuf message."""
    if isinstance(value, bytes):
        return _varint(number << 3 | 2) + _varint(len(value)) + value
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    return _varint(number << 3) + _varint(value & (1 << 64) - 1)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _sentencepiece(vocabulary: _Vocabulary) -> bytes:
    """A ModelProto: the pieces, and the settings of Llama's trainer and normaliser."""
    if vocabulary.scores is None:
        raise ValueError("there are no scores")
    pieces = []
    for i, (token, score) in enumerate(zip(vocabulary.tokens, vocabulary.scores)):
        if not token:
            raise ValueError(f"token {i} has no text")
        kind = vocabulary.types[i]
        if kind not in (_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE):
            raise ValueError(f"token {i} has the type {kind}")
        pieces.append(
            _field(1, _field(1, token.encode()) + _field(2, float(score)) + _field(3, kind))
        )
    trainer = b"".join((
        _field(3, _BPE),
        _field(35, 1),  # byte_fallback
        _field(40, vocabulary.token_id("unknown", 0)),
        _field(41, vocabulary.token_id("bos", 1)),
        _field(42, vocabulary.token_id("eos", 2)),
        _field(43, vocabulary.token_id("padding", -1)),
        *(
            _field(number, vocabulary.tokens[i].encode())
            for number, i in (
                (45, vocabulary.token_id("unknown", 0)),
                (46, vocabulary.token_id("bos", 1)),
                (47, vocabulary.token_id("eos", 2)),
            )
            if i >= 0
        ),
    ))  # fmt: skip
    prefix = vocabulary.get("add_space_prefix", bool, True)
    normalizer = _field(1, b"identity") + _field(3, int(prefix)) + _field(4, 0) + _field(5, 1)
    return b"".join(pieces) + _field(2, trainer) + _field(3, normalizer)
