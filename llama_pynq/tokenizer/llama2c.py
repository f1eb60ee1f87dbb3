"""Tokenizer of llama2.c's tokenizer.bin files, with the same ids as run.c.

It needs no other library, which matters on armv7l, where sentencepiece has no wheel.

References
----------
karpathy/llama2.c at 350e04f: run.c, encode(); tokenizer.py, export();
Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units", 2016.
"""

from __future__ import annotations

import heapq
import math
import re
import struct
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from llama_pynq.errors import TokenizerError
from llama_pynq.tokenizer.base import MAX_FILE_BYTES, REMEDY, Tokenizer, no_token
from llama_pynq.utils.foreign import identify_foreign_file

_FIRST_BYTE_ID = 3  # run.c: <unk>, <s>, </s>, then the 256 bytes
_NO_MERGE_SCORE = -1e10  # run.c merges only above this score
_MAX_PIECE_BYTES = 1 << 16


class BinTokenizer(Tokenizer):
    """Tokenizer of a llama2.c tokenizer.bin; encodes as run.c does.

    The file holds a little-endian uint32, the longest token's length in bytes, and then for
    each token a float32 score, a uint32 length and its bytes. The file does not hold the
    number of tokens: run.c takes it from the model; this class reads to the end, and
    :meth:`Tokenizer.check_vocab` compares. Files of 28 July to 4 August 2023 have characters
    U+0000 to U+00FF where later ones have byte tokens, ``<0x00>`` to ``<0xFF>``: they are
    read as byte tokens.

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
        names = {i: pieces[i].strip(b"\n").decode("utf-8", "replace") for i in (0, 1, 2)}
        special = {i: name for i, name in names.items() if i or name == "<unk>"}
        super().__init__(path, data, pieces, special)
        self._vocab = pieces
        self._ids = _lookup_table(pieces)

    def _encode(self, text: str) -> list[int]:
        """Ids of a text, the same as llama2.c's run.c.

        A space is prepended to a text that is not empty. Each character becomes its token,
        or, if it has none, a token for each of its bytes. Then the adjacent pair whose
        concatenation is the token of the highest score is merged, the leftmost of equals,
        until no pair is left.

        As in run.c, merges look tokens up by the string that the file holds, so a crafted
        vocabulary could merge text into BOS, or into a byte token such as ``<0x41>``. In
        Llama 2's and in tok512.bin no sequence of merges does.

        Where run.c would index out of bounds or emit a wrong token (no token for the space,
        no byte tokens at ids 3 to 258), this method raises. A NUL character ends run.c's
        text, which is a C string; here it is an ordinary character.

        References
        ----------
        llama2.c, run.c, encode()
        """
        tokens = []
        if text:
            space = self._ids.get(b" ")
            if space is None:
                raise TokenizerError(
                    f"{self.path} has no token for the space, which llama2.c puts in front "
                    f"of every text: it is not a Llama 2 vocabulary; {REMEDY}"
                )
            tokens.append(space)
        for character in text:
            utf8 = character.encode()
            token = self._ids.get(utf8)
            if token is not None:
                tokens.append(token)
            else:
                tokens.extend(self._byte_token(byte, character) for byte in utf8)
        return self._merge(tokens)

    def _byte_token(self, byte: int, character: str) -> int:
        token = byte + _FIRST_BYTE_ID
        if token >= self.vocab_size or self._vocab[token] != b"<0x%02X>" % byte:
            raise no_token(self.path, character)
        return token

    def _merge(self, tokens: list[int]) -> list[int]:
        """Merge the best pair until none is left.

        run.c scans every pair before every merge, which is quadratic. A heap of pairs finds
        the same pair: the score of a pair is that of its concatenation, so a merge changes
        the adjacent pairs only. Stale pairs stay in the heap and are skipped when popped.
        Positions never move, so comparing them finds the leftmost of equals.
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
            # Stale pair: a position merged into its left neighbour holds -1, no heap entry does.
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


def starts_like_bin(head: bytes) -> bool:
    """Whether a file starts as a tokenizer.bin does: the longest length, then a token ``<unk>``."""
    return head[12:17] == b"<unk>" or head.startswith(b"\5\0\0\0<unk>")


def _lookup_table(pieces: Sequence[bytes]) -> dict[bytes, int]:
    """Id of each piece; of equal pieces, the one that run.c's look-up finds.

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


def _parse_bin(path: Path, data: bytes) -> tuple[list[bytes], list[float]]:
    """Parse the pieces and scores of a tokenizer.bin."""
    longest = int.from_bytes(data[:4], "little")
    if len(data) < 12 or not 0 < longest <= _MAX_PIECE_BYTES or len(data) > MAX_FILE_BYTES:
        raise TokenizerError(_foreign(path, data))
    pieces: list[bytes] = []
    scores: list[float] = []
    offset = 4
    while offset + 8 <= len(data):
        score, length = struct.unpack_from("<fI", data, offset)
        piece = data[offset + 8 : offset + 8 + length]
        nul = b"\0" in piece and (piece != b"\0" or len(pieces) != _FIRST_BYTE_ID)
        if not 0 < length <= longest or not math.isfinite(score) or nul:
            # The first token is <unk> in every vocabulary: a bad one means a foreign file.
            if not pieces:
                raise TokenizerError(_foreign(path, data))
            raise TokenizerError(
                f"{path} is a corrupt tokenizer.bin: token {len(pieces)} (byte {offset}) has "
                f"score {score} and {length} bytes, expected a finite score and 1 to {longest} "
                f"bytes without a NUL; download it again"
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
            f"at ids 0 to 2: the file is truncated or foreign; {REMEDY}"
        )
    return _named_bytes(path, pieces), scores


def _named_bytes(path: Path, pieces: list[bytes]) -> list[bytes]:
    """Name the byte tokens of a file of July 2023, which has the characters of their numbers."""
    first, last = _FIRST_BYTE_ID, _FIRST_BYTE_ID + 256
    if pieces[first:last] == [chr(byte).encode() for byte in range(256)]:
        return [*pieces[:first], *(b"<0x%02X>" % byte for byte in range(256)), *pieces[last:]]
    if pieces[first : first + 1] == [b"\0"]:
        raise TokenizerError(
            f"{path} is a corrupt tokenizer.bin: token {first} is a NUL, and the tokens behind it "
            "are not the other bytes; download it again"
        )
    return pieces


def _foreign(path: Path, data: bytes) -> str:
    head = data[:4096]
    if head.startswith(b"\5\0\0\0<unk>"):
        return (
            f"{path} is a tokenizer.bin of 24 to 28 July 2023, without the scores that encoding "
            "needs: download llama2.c's tokenizer.bin again, or export it from tokenizer.model "
            "with today's tokenizer.py"
        )
    if re.match(rb"[A-Za-z0-9+/]+=* \d+\n", head):
        return (
            f"{path} is a tiktoken vocabulary, as Llama 3 uses; this package runs the Llama 2 "
            f"family: {REMEDY}"
        )
    if found := identify_foreign_file(head):
        what, remedy = found
        return f"{path} is not a tokenizer but {what}: {remedy or REMEDY}"
    if head[:4] == b"24ka" or _looks_like_legacy_checkpoint(head):
        return f"{path} is not a tokenizer but a llama2.c checkpoint: {REMEDY}"
    if len(data) < 12:
        return f"{path} is too short for a tokenizer ({len(data)} bytes): download it again"
    return f"{path} is not a tokenizer that this package can read: {REMEDY}"


def _looks_like_legacy_checkpoint(head: bytes) -> bool:
    if len(head) < 28:
        return False
    sizes = struct.unpack_from("<7i", head)
    return all(0 < abs(size) <= 1 << 20 for size in sizes)
