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
import heapq
import importlib
import math
import operator
import re
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Any, SupportsIndex

from llama_pynq.errors import TokenizerError
from llama_pynq.utils.foreign import identify_foreign_file

__all__ = ["BinTokenizer", "SentencePieceTokenizer", "StreamDecoder", "Tokenizer"]

_FIRST_BYTE_ID = 3  # run.c: <unk>, <s>, </s>, then the 256 bytes
_NO_MERGE_SCORE = -1e10  # run.c merges only above it
_MAX_FILE_BYTES = 64 << 20  # Llama 3's 128,000 tokens take 2 MB
_MAX_PIECE_BYTES = 1 << 16
_BYTE_PIECE = re.compile(rb"<0x([0-9A-Fa-f]{2})>")
_REMEDY = "give llama2.c's tokenizer.bin, or Llama 2's tokenizer.model"


class _TokenizerNotFoundError(TokenizerError, FileNotFoundError):
    """So that both ``except TokenizerError`` and ``except FileNotFoundError`` work."""


class Tokenizer(ABC):
    """What the two kinds of tokenizer share: everything but encoding.

    Make one with :meth:`load` or :meth:`from_bytes`.

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

    @staticmethod
    def load(path: str | PathLike[str]) -> Tokenizer:
        """Open a tokenizer; its kind is told by its content, not its name.

        Parameters
        ----------
        path : path-like
            llama2.c's ``.bin`` format, or a sentencepiece ``.model``.

        Returns
        -------
        BinTokenizer or SentencePieceTokenizer

        Raises
        ------
        TokenizerError
            If the file is missing (then also a FileNotFoundError), truncated, corrupt or
            foreign, or is a sentencepiece model and sentencepiece is not installed.
        """
        path = Path(path)
        return Tokenizer.from_bytes(_read(path), path)

    @staticmethod
    def from_bytes(data: bytes, path: str | PathLike[str]) -> Tokenizer:
        """Open a tokenizer that is in memory, such as one carried inside a packed model.

        Parameters
        ----------
        data : bytes
            What a tokenizer file holds.
        path : path-like
            Where it came from, for messages; not read.

        Returns
        -------
        BinTokenizer or SentencePieceTokenizer

        Raises
        ------
        TokenizerError
            As for :meth:`load`.
        """
        path = Path(path)
        if _starts_like_sentencepiece(data):
            return SentencePieceTokenizer(path, data)
        return BinTokenizer(path, data)

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


class BinTokenizer(Tokenizer):
    """llama2.c's tokenizer.bin, encoded as run.c encodes.

    The file is a little-endian uint32, the longest token's length in bytes, and then for
    each token a float32 score, a uint32 length and its bytes. The number of tokens is
    not in it: run.c takes it from the model, this class reads to the end, and
    :meth:`Tokenizer.check_vocab` compares.

    Parameters
    ----------
    path : Path
        For messages.
    data : bytes
        The file's content.

    Raises
    ------
    TokenizerError
        If the content is truncated, corrupt or foreign.
    """

    def __init__(self, path: Path, data: bytes) -> None:
        pieces, self._scores = _parse_bin(path, data)
        super().__init__(path, data, pieces)
        self._vocab = pieces
        self._ids = _lookup_table(pieces)

    def encode(self, text: str, bos: bool = True, eos: bool = False) -> list[int]:
        """Turn text into token ids, the same as llama2.c's run.c.

        A space goes in front of any text but the empty one. Each character becomes its
        token, or, if it has none, a token for each of its bytes. Then the pair of
        neighbours whose concatenation is a token of the highest score is merged, the
        leftmost of equals, until no pair is left.

        As in run.c, tokens take part in merges by the string that the file holds, so a
        vocabulary could be made in which text merges into BOS, or into a byte token such
        as ``<0x41>``. In Llama 2's and in tok512.bin no sequence of merges leads there.

        Where run.c leaves its arrays or emits a token of another meaning (no token for
        the space, no byte tokens at ids 3 to 258), this raises. A NUL character ends a C
        string and so run.c's text; here it is a character like any other.

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

        References
        ----------
        llama2.c, run.c, encode()
        """
        _check_text(text)
        tokens = [self.bos_id] if bos else []
        if text:
            space = self._ids.get(b" ")
            if space is None:
                raise TokenizerError(
                    f"{self.path} has no token for the space, which llama2.c puts in front "
                    f"of every text: it is not a Llama 2 vocabulary; {_REMEDY}"
                )
            tokens.append(space)
        for character in text:
            utf8 = character.encode()
            token = self._ids.get(utf8)
            if token is not None:
                tokens.append(token)
            else:
                tokens.extend(self._byte_token(byte, character) for byte in utf8)
        tokens = self._merge(tokens)
        if eos:
            tokens.append(self.eos_id)
        return tokens

    def _byte_token(self, byte: int, character: str) -> int:
        token = byte + _FIRST_BYTE_ID
        if token >= self.vocab_size or self._vocab[token] != b"<0x%02X>" % byte:
            raise TokenizerError(
                f"{self.path} has no token for {character!r} (U+{ord(character):04X}), nor the "
                f"byte tokens <0x00> to <0xFF> at ids 3 to 258 to spell it with: leave the "
                f"character out, or use a vocabulary trained with byte fallback"
            )
        return token

    def _merge(self, tokens: list[int]) -> list[int]:
        """Merge the best pair until none is left.

        run.c looks at every pair before every merge, which is quadratic. A heap of pairs
        finds the same one: a pair is worth what its concatenation is worth, so only the
        pairs beside a merge change. Pairs that a merge destroyed stay in the heap and
        are recognised when they come up. Positions never move, so that comparing them
        finds the leftmost of equals.
        """
        end = len(tokens)
        after = list(range(1, end + 1))
        before = list(range(-1, end - 1))
        heap: list[tuple[float, int, int, int, int]] = []

        def consider(left: int, right: int) -> None:
            token = self._ids.get(self._vocab[tokens[left]] + self._vocab[tokens[right]])
            if token is not None and self._scores[token] > _NO_MERGE_SCORE:
                pair = (-self._scores[token], left, tokens[left], tokens[right], token)
                heapq.heappush(heap, pair)

        for left in range(end - 1):
            consider(left, left + 1)
        while heap:
            _, left, left_token, right_token, token = heapq.heappop(heap)
            right = after[left]
            # A swallowed position holds -1, which no pair in the heap does.
            if tokens[left] != left_token or right == end or tokens[right] != right_token:
                continue
            tokens[left] = token
            tokens[right] = -1
            after[left] = after[right]
            if after[left] < end:
                before[after[left]] = left
                consider(left, after[left])
            if before[left] >= 0:
                consider(before[left], left)
        return [token for token in tokens if token >= 0]


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece ``.model``, encoded by the sentencepiece library.

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
        _refuse_cut_protobuf(path, data)
        try:
            sentencepiece: Any = importlib.import_module("sentencepiece")
        except ImportError as error:
            raise TokenizerError(
                f"{path} is a sentencepiece model, and sentencepiece is not installed here: "
                f"install it with 'pip install sentencepiece', or, where there is no wheel "
                f"(armv7l, such as PYNQ-Z1 and Z2), use the same vocabulary as a tokenizer.bin, "
                f"which llama2.c's tokenizer/base.py writes on another machine"
            ) from error
        try:
            model = sentencepiece.SentencePieceProcessor(model_proto=data)
        except RuntimeError as error:
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
                f"Llama vocabulary; {_REMEDY}"
            )
        names = model.id_to_piece(list(range(model.get_piece_size())))
        # The same bytes as in the .bin that llama2.c's tokenizer/base.py would write.
        names[self.bos_id], names[self.eos_id] = "\n<s>\n", "\n</s>\n"
        super().__init__(path, data, [name.replace("\u2581", " ").encode() for name in names])

    def encode(self, text: str, bos: bool = True, eos: bool = False) -> list[int]:
        """Turn text into token ids, see :meth:`Tokenizer.encode`."""
        _check_text(text)
        tokens: list[int] = self._model.encode(text)
        if bos:
            tokens.insert(0, self.bos_id)
        if eos:
            tokens.append(self.eos_id)
        return tokens


def _piece_bytes(piece: bytes) -> bytes:
    match = _BYTE_PIECE.fullmatch(piece)
    return bytes([int(match[1], 16)]) if match else piece


def _lookup_table(pieces: Sequence[bytes]) -> dict[bytes, int]:
    """Id of each piece; of several equal pieces, the one that run.c's look-up finds.

    run.c sorts with glibc's qsort, a stable merge sort, and looks up with bsearch, which
    returns whichever of several equals it meets first.
    """
    table = {piece: i for i, piece in enumerate(pieces)}
    if len(table) == len(pieces):
        return table
    order = sorted(range(len(pieces)), key=lambda i: pieces[i])
    for piece in {pieces[a] for a, b in pairwise(order) if pieces[a] == pieces[b]}:
        low, high = 0, len(order)
        while pieces[order[middle := (low + high) // 2]] != piece:
            if piece < pieces[order[middle]]:
                high = middle
            else:
                low = middle + 1
        table[piece] = order[middle]
    return table


def _check_text(text: str) -> None:
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


def _read(path: Path) -> bytes:
    if path.is_dir():
        raise TokenizerError(f"{path} is a folder, not a tokenizer: {_REMEDY}")
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except FileNotFoundError as error:
        raise _TokenizerNotFoundError(
            f"there is no file {path}: check the path (it is relative to {Path.cwd()}) "
            f"or download the tokenizer first"
        ) from error
    except OSError as error:
        raise TokenizerError(f"{path} cannot be opened: {error.strerror}") from error
    return data


def _starts_like_sentencepiece(data: bytes) -> bool:
    """Whether a protobuf starts here whose field 1 is a message whose field 1 is a string.

    No tokenizer.bin does: its longest token would have over 600,000 bytes.
    """
    return len(data) > 4 and data[0] == 0x0A and 0 < data[1] < 0x80 and data[2] == 0x0A


def _refuse_cut_protobuf(path: Path, data: bytes) -> None:
    """Refuse a model cut short, also where the cut falls between two tokens.

    sentencepiece writes the tokens (field 1) first and the trainer's and normaliser's
    settings (2 and 3) behind them. Without these its defaults would apply: another
    algorithm, another normalisation.
    """
    seen = set()
    offset = 0
    while offset < len(data):
        tag, offset = _varint(data, offset)
        length, offset = _varint(data, offset)
        if tag & 7 != 2:  # every field of the top level is a message
            raise TokenizerError(
                f"{path} starts like a sentencepiece model, but is corrupt at byte {offset}: "
                f"download it again"
            )
        seen.add(tag >> 3)
        offset += length
    if offset > len(data) or not {1, 2, 3} <= seen:
        raise TokenizerError(
            f"{path} is a truncated sentencepiece model ({len(data)} bytes): download it again"
        )


def _varint(data: bytes, offset: int) -> tuple[int, int]:
    """Value of a protobuf varint and the offset behind it; past the end reads as zeros."""
    value = shift = 0
    while True:
        byte = data[offset] if offset < len(data) else 0
        value |= (byte & 0x7F) << shift
        offset, shift = offset + 1, shift + 7
        if byte < 0x80:
            return value, offset


def _parse_bin(path: Path, data: bytes) -> tuple[list[bytes], list[float]]:
    """Pieces and scores of a tokenizer.bin."""
    longest = int.from_bytes(data[:4], "little")
    if len(data) < 12 or not 0 < longest <= _MAX_PIECE_BYTES or len(data) > _MAX_FILE_BYTES:
        raise TokenizerError(_foreign(path, data))
    pieces: list[bytes] = []
    scores: list[float] = []
    offset = 4
    while offset + 8 <= len(data):
        score, length = struct.unpack_from("<fI", data, offset)
        piece = data[offset + 8 : offset + 8 + length]
        if not 0 < length <= longest or not math.isfinite(score) or b"\0" in piece:
            # The first token is <unk> in every vocabulary: wrong there, wrong file.
            if not pieces:
                raise TokenizerError(_foreign(path, data))
            raise TokenizerError(
                f"{path} is a corrupt tokenizer.bin: token {len(pieces)} (byte {offset}) has "
                f"score {score} and {length} bytes, where a finite score and 1 to {longest} "
                f"bytes without a NUL must be; download it again"
            )
        if len(piece) < length:
            break
        offset += 8 + length
        pieces.append(piece)
        scores.append(score)
    if offset != len(data):
        raise TokenizerError(
            f"{path} is a truncated tokenizer.bin: it ends inside token {len(pieces)}, at byte "
            f"{len(data)}; download it again"
        )
    if len(pieces) <= Tokenizer.eos_id:
        raise TokenizerError(
            f"{path} has only {len(pieces)} token(s), and llama2.c needs <unk>, BOS and EOS "
            f"at ids 0 to 2: the file is truncated or foreign; {_REMEDY}"
        )
    return pieces, scores


def _foreign(path: Path, data: bytes) -> str:
    head = data[:4096]
    if re.match(rb"[A-Za-z0-9+/]+=* \d+\n", head):
        return (
            f"{path} is a tiktoken vocabulary, as Llama 3 uses; this package runs the Llama 2 "
            f"family: {_REMEDY}"
        )
    if found := identify_foreign_file(head):
        what, remedy = found
        return f"{path} is not a tokenizer but {what}: {remedy or _REMEDY}"
    if head[:4] == b"24ka" or _looks_like_legacy_checkpoint(head):
        return f"{path} is not a tokenizer but a llama2.c checkpoint: {_REMEDY}"
    if len(data) < 12:
        return f"{path} is too short for a tokenizer ({len(data)} bytes): download it again"
    return f"{path} is not a tokenizer that this package can read: {_REMEDY}"


def _looks_like_legacy_checkpoint(head: bytes) -> bool:
    if len(head) < 28:
        return False
    sizes = struct.unpack_from("<7i", head)
    return all(0 < abs(size) <= 1 << 20 for size in sizes)
