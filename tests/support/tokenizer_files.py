"""Reader of llama2.c's tokenizer.bin, independent of llama_pynq.tokenizer."""

from __future__ import annotations

import struct


def read_tokenizer_bin(data: bytes) -> list[tuple[float, bytes]]:
    """Read (score, piece) of every token; checks the stored length of the longest piece."""
    (longest,) = struct.unpack_from("<I", data)
    tokens, at = [], 4
    while at < len(data):
        score, length = struct.unpack_from("<fi", data, at)
        tokens.append((score, data[at + 8 : at + 8 + length]))
        at += 8 + length
    assert at == len(data)
    assert longest == max(len(piece) for _, piece in tokens)
    return tokens
