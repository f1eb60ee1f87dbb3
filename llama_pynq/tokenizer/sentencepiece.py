"""Tokenizer of sentencepiece models, encoded by the sentencepiece library."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llama_pynq.errors import TokenizerError
from llama_pynq.tokenizer.base import REMEDY, Tokenizer, no_token

# Fields of sentencepiece_model.proto's NormalizerSpec; both are true by default.
_ADD_DUMMY_PREFIX, _REMOVE_EXTRA_WHITESPACES = 3, 4


class SentencePieceTokenizer(Tokenizer):
    """Tokenizer of a sentencepiece ``.model``, encoded by the sentencepiece library.

    Parameters
    ----------
    path : Path
        For messages.
    data : bytes
        The file's content.

    Raises
    ------
    TokenizerError
        If sentencepiece is not installed, cannot read the content, or the model has no
        BOS or EOS token.
    """

    def __init__(self, path: Path, data: bytes) -> None:
        settings = _normalizer_spec(path, data)
        try:
            sentencepiece: Any = importlib.import_module("sentencepiece")
        except ImportError as error:
            raise TokenizerError(
                f"{path} is a sentencepiece model, and sentencepiece is not installed here: "
                f"install it with 'pip install sentencepiece', or, where there is no wheel "
                f"(armv7l, such as PYNQ-Z1 and Z2), use the same vocabulary as a tokenizer.bin, "
                f"which llama2.c's tokenizer.py writes on another machine"
            ) from error
        try:
            model = sentencepiece.SentencePieceProcessor(model_proto=data)
        # Its own message holds bytes of the file, which need not be UTF-8.
        except (RuntimeError, UnicodeDecodeError) as error:
            raise TokenizerError(
                f"{path} starts like a sentencepiece model, but sentencepiece cannot read it: "
                f"the file is corrupt; download it again"
            ) from error
        self._model = model
        self.bos_id = model.bos_id()
        self.eos_id = model.eos_id()
        if self.bos_id < 0 or self.eos_id < 0:
            raise TokenizerError(
                f"{path} is a sentencepiece model without a BOS or EOS token, so it is not a "
                f"Llama vocabulary; {REMEDY}"
            )
        try:
            names = model.id_to_piece(list(range(model.get_piece_size())))
        except UnicodeDecodeError as error:
            raise TokenizerError(
                f"{path} is a damaged sentencepiece model: the piece {error.object!r} is not UTF-8 "
                f"({error.reason} at its byte {error.start}); download it again"
            ) from error
        special = {
            i: name for i, name in enumerate(names) if model.is_control(i) or model.is_unknown(i)
        }
        # The same bytes as in the .bin that llama2.c's tokenizer.py would write.
        names[self.bos_id], names[self.eos_id] = "\n<s>\n", "\n</s>\n"
        pieces = [name.replace("\u2581", " ").encode() for name in names]
        super().__init__(path, data, pieces, special)
        if settings.get(_REMOVE_EXTRA_WHITESPACES, 1):
            self.leading_spaces = sys.maxsize
        else:
            self.leading_spaces = int(bool(settings.get(_ADD_DUMMY_PREFIX, 1)))

    def _encode(self, text: str) -> list[int]:
        """Ids of a text, the same as sentencepiece's.

        Raises
        ------
        TokenizerError
            If a character has no token, where sentencepiece gives the unknown token.
        """
        tokens: list[int] = self._model.encode(text)
        if self._model.unk_id() in tokens:
            pieces: list[str] = self._model.encode(text, out_type=str)
            unknown = pieces[tokens.index(self._model.unk_id())]
            raise no_token(self.path, unknown[:1])
        return tokens


def starts_like_sentencepiece(data: bytes) -> bool:
    """Whether the data starts as a protobuf whose field 1 is a message whose field 1 is a string.

    A tokenizer.bin never does: its longest token would have over 600,000 bytes.
    """
    return len(data) > 4 and data[0] == 0x0A and 0 < data[1] < 0x80 and data[2] == 0x0A


def _normalizer_spec(path: Path, data: bytes) -> dict[int, int]:
    """The normaliser's numeric settings by field; refuses a truncated model.

    sentencepiece writes the tokens (field 1) first, then the settings of the trainer and of
    the normaliser (fields 2 and 3). Without these fields its defaults would apply: another
    algorithm, another normalisation. A cut may fall between two tokens.
    """
    parts = {}
    for field, begin, end in _messages(path, data):
        parts[field] = data[begin:end]
    if not {1, 2, 3} <= parts.keys():
        raise _truncated(path, data)
    spec, settings, offset = parts[3], dict[int, int](), 0
    while offset < len(spec):
        tag, offset = _varint(spec, offset)
        value, offset = _varint(spec, offset)
        if tag & 7 == 2:  # bytes: the name, the table of characters
            offset += value
        elif tag & 7:
            break  # not one of its fields: sentencepiece reads them itself
        else:
            settings[tag >> 3] = value
    return settings


def _messages(path: Path, data: bytes) -> Iterator[tuple[int, int, int]]:
    """Field, begin and end of each message at the top level; every field there is a message."""
    offset = 0
    while offset < len(data):
        tag, offset = _varint(data, offset)
        length, offset = _varint(data, offset)
        if tag & 7 != 2:
            raise TokenizerError(
                f"{path} starts like a sentencepiece model, but is corrupt at byte {offset}: "
                f"download it again"
            )
        if offset + length > len(data):
            raise _truncated(path, data)
        yield tag >> 3, offset, offset + length
        offset += length


def _truncated(path: Path, data: bytes) -> TokenizerError:
    return TokenizerError(
        f"{path} is a truncated sentencepiece model ({len(data)} bytes): download it again"
    )


def _varint(data: bytes, offset: int) -> tuple[int, int]:
    """Value of a protobuf varint and the offset behind it; bytes past the end read as zeros.

    A varint has ten bytes at most: of a longer one, those are read.
    """
    value = 0
    for shift in range(0, 70, 7):
        byte = data[offset] if offset < len(data) else 0
        value |= (byte & 0x7F) << shift
        offset += 1
        if byte < 0x80:
            break
    return value, offset
