"""Base class of the tokenizers, and decoding, which is the same for both formats.

Decoding joins the bytes of the pieces. It differs from other programs in three points:

- sentencepiece prints ``⁇`` for an unknown token, llama2.c ``<unk>``; this module nothing, unless
  special tokens are asked for.
- llama2.c drops single unprintable bytes from its output, and so every character that was
  encoded as bytes; this module keeps them.
- sentencepiece drops a leading space at the start only; llama2.c and this module also after BOS.

References
----------
karpathy/llama2.c at 350e04f: run.c, decode()
"""

from __future__ import annotations

import codecs
import hashlib
import operator
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import SupportsIndex

from llama_pynq.errors import TokenizerError

MAX_FILE_BYTES = 64 << 20  # Llama 3's 128,000 tokens take 2 MB
REMEDY = "give llama2.c's tokenizer.bin, or Llama 2's tokenizer.model"

MAX_PADDING = 256
"""Rows by which a model's vocabulary may be larger than its tokenizer; a large one, by 1 in 32."""

_BYTE_PIECE = re.compile(rb"<0x([0-9A-Fa-f]{2})>")


class Tokenizer(ABC):
    """Base class of the tokenizers: everything but encoding.

    Create one with `tokenizer.load.load_tokenizer` or `tokenizer.load.tokenizer_from_bytes`.

    Parameters
    ----------
    path : Path
        Origin of the file's content, for messages.
    data : bytes
        Content of the tokenizer file.
    pieces : sequence of bytes
        Every token's bytes, by id; byte tokens as ``<0x00>`` to ``<0xFF>``.
    special : mapping of int to str
        Names of the tokens that stand for no text: unknown, BOS, EOS and control tokens.

    Attributes
    ----------
    path : Path
    sha256 : str
        SHA-256 of the file's content, as hex.
    bos_id, eos_id : int
        Begin and end of a sequence: 1 and 2 in every Llama 2 vocabulary.
    special : dict of int to str
        As given.
    more_stop_ids : tuple of int
        Tokens that end a text beside BOS and EOS.
    adds_bos : bool
        Whether a text of this vocabulary begins with BOS.
    leading_spaces : int
        How many leading spaces decoding drops: 1 where encoding adds one.
    """

    bos_id = 1
    eos_id = 2
    more_stop_ids: tuple[int, ...] = ()
    adds_bos = True
    leading_spaces = 1

    def __init__(
        self, path: Path, data: bytes, pieces: Sequence[bytes], special: Mapping[int, str]
    ) -> None:
        self.path = path
        self.special = dict(special)
        self.sha256 = hashlib.sha256(data).hexdigest()
        self._pieces = [_piece_bytes(piece) for piece in pieces]
        # The byte token <0x20> is not the dummy prefix.
        self._leads_with_space = [piece.startswith(b" ") for piece in pieces]
        self._plain: dict[int, str] = {}  # cache: text of the ASCII tokens decoded so far

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}, vocab_size={self.vocab_size})"

    @property
    def vocab_size(self) -> int:
        """Number of tokens; ids run from 0 to vocab_size - 1."""
        return len(self._pieces)

    def encode(
        self, text: str, bos: bool = True, eos: bool = False, *, parse_special: bool = False
    ) -> list[int]:
        """Turn text into token ids.

        Parameters
        ----------
        text : str
        bos, eos : bool
            Prepend BOS, unless texts of this vocabulary begin without, or `parse_special` finds
            one there; append EOS.
        parse_special : bool
            Take the names of special tokens, such as ``</s>`` or ``[INST]``, for these tokens; the
            text between two of them is encoded as a text of its own. By default they are text
            like any other.

        Returns
        -------
        list of int
            Each from 0 to vocab_size - 1.

        Raises
        ------
        TokenizerError
            If the text cannot be encoded; the message says which character and why.
        """
        check_text(text)
        tokens = self._parsed(text) if parse_special else self._encode(text)
        if bos and self.adds_bos and tokens[:1] != [self.bos_id]:
            tokens.insert(0, self.bos_id)
        if eos:
            tokens.append(self.eos_id)
        return tokens

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end a generated text: EOS, BOS, with which llama2.c's models end a story."""
        ids = (self.bos_id, self.eos_id, *self.more_stop_ids)
        return tuple(dict.fromkeys(i for i in ids if i >= 0))

    @abstractmethod
    def _encode(self, text: str) -> list[int]:
        """Ids of a text in which no special token is looked for."""

    def _parsed(self, text: str) -> list[int]:
        """Ids of a text with the names of special tokens in it; of two names, the longer counts."""
        ids = {name: token for token, name in self.special.items() if name}
        names = "|".join(map(re.escape, sorted(ids, key=len, reverse=True)))
        tokens: list[int] = []
        for part in re.split(f"({names})", text) if ids else [text]:
            tokens += [ids[part]] if part in ids else self._encode(part)
        return tokens

    def decode(self, tokens: Iterable[SupportsIndex], *, skip_special_tokens: bool = True) -> str:
        """Turn token ids into text.

        Special tokens give no text. The leading space of a token is dropped right after BOS
        and at the start, where encoding adds it. Bytes that are not UTF-8 become U+FFFD.

        Parameters
        ----------
        tokens : iterable of int
        skip_special_tokens : bool
            False gives the names of special tokens: ``<s>``, ``</s>``, ``<unk>``, ``[INST]``.

        Returns
        -------
        str
            ``decode(encode(text)) == text``, except for what a sentencepiece model changes itself:
            by its normalisation (NFKC and case), runs of spaces if it removes them, U+2581, which
            it reads as a space, and the space that it appends if it adds one as a suffix.

        Raises
        ------
        TokenizerError
            If an id is out of range.
        """
        stream = self.stream_decoder(skip_special_tokens=skip_special_tokens)
        parts = [stream.push(token) for token in tokens]
        parts.append(stream.flush())
        return "".join(parts)

    def piece(self, token: SupportsIndex) -> bytes:
        r"""Bytes of a token, a leading space included.

        BOS and EOS are ``b"\n<s>\n"`` and ``b"\n</s>\n"``, as llama2.c shows them. A
        token may hold part of a character, so the bytes need not be valid UTF-8.

        Parameters
        ----------
        token : int

        Raises
        ------
        TokenizerError
            If the id is out of range.
        """
        return self._pieces[self._checked(token)]

    def stream_decoder(
        self,
        prompt_tokens: Iterable[SupportsIndex] = (),
        *,
        skip_special_tokens: bool = True,
    ) -> StreamDecoder:
        """Create a decoder that takes one token at a time.

        Parameters
        ----------
        prompt_tokens : iterable of int
            Preceding tokens. Their text is not returned, but they decide whether a leading
            space is dropped. Empty is the same as BOS alone.
        skip_special_tokens : bool
            As for `decode`.

        Returns
        -------
        StreamDecoder
        """
        return StreamDecoder(self, prompt_tokens, skip_special_tokens)

    def check_vocab(self, vocab_size: int) -> None:
        """Check that a model's vocabulary is the tokenizer's, or that with a few rows of padding.

        Some trainers pad the vocabulary to a round number: 32,016 rows for 32,000 tokens.

        Parameters
        ----------
        vocab_size : int
            The model's.

        Raises
        ------
        TokenizerError
            If the tokenizer is larger, or smaller by more than `MAX_PADDING`: ids would name
            other tokens, or none.
        """
        padding = vocab_size - self.vocab_size
        if not 0 <= padding <= max(MAX_PADDING, self.vocab_size // 32):
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
    """Decode token by token, never returning part of a character.

    The concatenated results of all pushes and one flush equal :meth:`Tokenizer.decode` of the
    same tokens.

    Parameters
    ----------
    tokenizer : Tokenizer
    prompt_tokens : iterable of int
        Preceding tokens, see :meth:`Tokenizer.stream_decoder`.
    skip_special_tokens : bool
        As for :meth:`Tokenizer.decode`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_tokens: Iterable[SupportsIndex] = (),
        skip_special_tokens: bool = True,
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special_tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._open = False  # inside a multi-byte character
        self._drop = tokenizer.leading_spaces  # leading spaces still to drop
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
            The characters that the token completes; empty while one is incomplete.

        Raises
        ------
        TokenizerError
            If the id is out of range. The decoder is unchanged.
        """
        tokenizer = self._tokenizer
        if type(token) is int and not (self._drop or self._open):
            plain = tokenizer._plain.get(token)
            if plain is not None:
                return plain
        index = tokenizer._checked(token)
        if index in tokenizer.special:
            # A character cannot continue across the boundary of a sequence.
            text = self.flush()
            if index == tokenizer.bos_id:
                self._drop = tokenizer.leading_spaces
            return text if self._skip_special else text + tokenizer.special[index]
        piece = tokenizer._pieces[index]
        whole = not self._drop
        if self._drop:
            if tokenizer._leads_with_space[index]:
                piece = piece[1:]
            self._drop = 0 if piece else self._drop - 1
        if not self._open and piece.isascii():  # fast path for nearly every token
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
            U+FFFD if a character is still incomplete, else an empty string.
        """
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        self._open = False
        return text


def _piece_bytes(piece: bytes) -> bytes:
    match = _BYTE_PIECE.fullmatch(piece)
    return bytes([int(match[1], 16)]) if match else piece


def no_token(path: Path, character: str) -> TokenizerError:
    """Error for a character that no token and no byte tokens can spell.

    Parameters
    ----------
    path : Path
        The tokenizer's file.
    character : str
    """
    return TokenizerError(
        f"{path} has no token for {character!r} (U+{ord(character):04X}), nor the byte tokens "
        f"<0x00> to <0xFF> to spell it with: leave the character out, or use a vocabulary trained "
        f"with byte fallback"
    )


def check_text(text: str) -> None:
    """Refuse text that has no UTF-8 encoding: a lone surrogate, half a UTF-16 pair.

    Raises
    ------
    TypeError
        If the text is not a str.
    TokenizerError
        If it holds a lone surrogate.
    """
    if not isinstance(text, str):
        raise TypeError(f"text must be a str, not {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"the text holds a lone surrogate ({text[error.start]!r}, half a UTF-16 pair) at "
            f"position {error.start}: fix where the text was read or cut "
            f"(text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace') repairs it)"
        ) from None
