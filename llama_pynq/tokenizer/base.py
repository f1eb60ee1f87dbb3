"""Text to token ids and back: llama2.c's tokenizer.bin and sentencepiece models.

`BinTokenizer` gives the ids that llama2.c's run.c gives, and needs no other
library, which matters on armv7l where sentencepiece has no wheel. Where run.c goes on
with a wrong or a wild index, it raises instead (see `BinTokenizer.encode`).

How the two differ on the same vocabulary (Llama 2's has neither of the last two):

- The character U+2581 (LOWER ONE EIGHTH BLOCK) is sentencepiece's own sign for a space,
  and a sentencepiece model reads it as one; in a ``.bin`` file it is a character like
  any other.
- A character that is no token by itself but is part of a longer one: sentencepiece
  merges first and falls back to bytes afterwards; llama2.c splits it into bytes first,
  and then never finds the longer token.
- A sentencepiece model may normalise text (Unicode forms, runs of spaces) and may mark
  tokens as unused; a ``.bin`` file holds neither rule.

Both decode alike, by the pieces' bytes. sentencepiece itself prints ``⁇`` for token 0,
where llama2.c and this module print ``<unk>``. llama2.c drops single unprintable bytes
from its output, and so every character that was encoded as bytes; this module keeps
them.

References
----------
karpathy/llama2.c at 350e04f: run.c, encode() and decode(); tokenizer/base.py, export();
Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units", 2016.
"""

from __future__ import annotations

import codecs
import hashlib
import operator
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import SupportsIndex

from llama_pynq.errors import TokenizerError

MAX_FILE_BYTES = 64 << 20  # Llama 3's 128,000 tokens take 2 MB
_BYTE_PIECE = re.compile(rb"<0x([0-9A-Fa-f]{2})>")
REMEDY = "give llama2.c's tokenizer.bin, or Llama 2's tokenizer.model"


class Tokenizer(ABC):
    """What the two kinds of tokenizer share: everything but encoding.

    Make one with `load_tokenizer` or `tokenizer_from_bytes`.

    Attributes
    ----------
    path : Path
    sha256 : str
        Of the file's content, as hex.
    bos_id, eos_id : int
        Begin and end of a sequence: 1 and 2 in every Llama 2 vocabulary.
    """

    bos_id = 1
    eos_id = 2

    def __init__(self, path: Path, data: bytes, pieces: Sequence[bytes]) -> None:
        self.path = path
        self.sha256 = hashlib.sha256(data).hexdigest()
        self._pieces = [_piece_bytes(piece) for piece in pieces]
        # A byte token that happens to be 0x20 is not the dummy prefix.
        self._leads_with_space = [piece.startswith(b" ") for piece in pieces]
        self._plain: dict[int, str] = {}  # text of tokens met so far that are ASCII

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}, vocab_size={self.vocab_size})"

    @property
    def vocab_size(self) -> int:
        """Number of tokens; ids run from 0 to vocab_size - 1."""
        return len(self._pieces)

    @abstractmethod
    def encode(self, text: str, bos: bool = True, eos: bool = False) -> list[int]:
        """Turn text into token ids.

        Parameters
        ----------
        text : str
        bos, eos : bool
            Put the begin token in front, the end token behind.

        Returns
        -------
        list of int
            Each from 0 to vocab_size - 1.

        Raises
        ------
        TokenizerError
            If the text cannot be encoded; the message says which character and why.
        """

    def decode(self, tokens: Iterable[SupportsIndex]) -> str:
        """Turn token ids into text.

        BOS and EOS give no text. A space that a token starts with is dropped right
        after BOS and at the start: encoding put it there. Bytes that are not UTF-8
        become U+FFFD.

        Parameters
        ----------
        tokens : iterable of int

        Returns
        -------
        str
            ``decode(encode(text)) == text``, except where a sentencepiece model reads
            U+2581 as a space.

        Raises
        ------
        TokenizerError
            If an id is out of range.
        """
        stream = self.stream_decoder()
        parts = [stream.push(token) for token in tokens]
        parts.append(stream.flush())
        return "".join(parts)

    def piece(self, token: SupportsIndex) -> bytes:
        r"""Bytes that a token stands for, spaces included.

        BOS and EOS are ``b"\n<s>\n"`` and ``b"\n</s>\n"``, as llama2.c shows them. One
        token may be part of a character, so the bytes need not be UTF-8.

        Raises
        ------
        TokenizerError
            If the id is out of range.
        """
        return self._pieces[self._checked(token)]

    def stream_decoder(self, prompt_tokens: Iterable[SupportsIndex] = ()) -> StreamDecoder:
        """Start decoding one token at a time.

        Parameters
        ----------
        prompt_tokens : iterable of int
            Tokens that came before; their text is not repeated, but decides what happens
            to a leading space. Empty is like BOS alone.

        Returns
        -------
        StreamDecoder
        """
        return StreamDecoder(self, prompt_tokens)

    def check_vocab(self, vocab_size: int) -> None:
        """Make sure that a model was trained with a vocabulary of this size.

        Raises
        ------
        TokenizerError
            If the sizes differ: ids would name other tokens, or none.
        """
        if vocab_size != self.vocab_size:
            raise TokenizerError(
                f"the model has a vocabulary of {vocab_size} tokens, but the tokenizer "
                f"{self.path} has {self.vocab_size}: they do not belong together; use the "
                f"tokenizer that the model was trained with (tok512.bin for stories260K, "
                f"Llama 2's 32000 tokens for stories15M, 42M and 110M)"
            )

    def _checked(self, token: SupportsIndex) -> int:
        index = operator.index(token)
        if not 0 <= index < len(self._pieces):
            raise TokenizerError(
                f"token id {index} is out of range: {self.path} has ids 0 to "
                f"{self.vocab_size - 1}; was it made with another tokenizer?"
            )
        return index


class StreamDecoder:
    """Decodes token by token, and never returns part of a character.

    The results of all pushes and of one flush, put together, are what
    :meth:`Tokenizer.decode` returns for the same tokens.

    Parameters
    ----------
    tokenizer : Tokenizer
    prompt_tokens : iterable of int
        Tokens that came before, see :meth:`Tokenizer.stream_decoder`.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_tokens: Iterable[SupportsIndex] = ()) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._open = False  # within a character
        self._drop_space = True
        for token in prompt_tokens:
            self.push(token)

    def push(self, token: SupportsIndex) -> str:
        """Add a token.

        Parameters
        ----------
        token : int

        Returns
        -------
        str
            The characters that are now complete; empty while one is still open.

        Raises
        ------
        TokenizerError
            If the id is out of range. The decoder is unchanged.
        """
        tokenizer = self._tokenizer
        if type(token) is int and not (self._drop_space or self._open):
            plain = tokenizer._plain.get(token)
            if plain is not None:
                return plain
        index = tokenizer._checked(token)
        if index == tokenizer.bos_id or index == tokenizer.eos_id:
            # Nothing can complete a character across the border of a sequence.
            text = self.flush()
            self._drop_space = index == tokenizer.bos_id
            return text
        piece = tokenizer._pieces[index]
        whole = not self._drop_space
        if self._drop_space:
            self._drop_space = False
            if tokenizer._leads_with_space[index]:
                piece = piece[1:]
        if not self._open and piece.isascii():  # as nearly always, and many times faster
            text = piece.decode()
            if whole:
                tokenizer._plain[index] = text
            return text
        text = self._utf8.decode(piece)
        self._open = bool(self._utf8.getstate()[0])
        return text

    def flush(self) -> str:
        """End the text.

        Returns
        -------
        str
            U+FFFD if a character is still incomplete, else nothing.
        """
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        self._open = False
        return text


def _piece_bytes(piece: bytes) -> bytes:
    match = _BYTE_PIECE.fullmatch(piece)
    return bytes([int(match[1], 16)]) if match else piece


def check_text(text: str) -> None:
    """Refuse what has no UTF-8 encoding: half a UTF-16 pair.

    Raises
    ------
    TypeError, TokenizerError
    """
    if not isinstance(text, str):
        raise TypeError(f"text must be a str, not {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"the text holds half a UTF-16 pair ({text[error.start]!r}) at position "
            f"{error.start}, which is no character: fix where it was read or cut "
            f"(text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace') repairs it)"
        ) from None
