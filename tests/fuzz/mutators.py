"""Mutations of bytes, of JSON and of text; each takes a `random.Random`, and is the same for it.

A mutant of a file with checksums goes through its format's own `_seal` function (see the borders):
it passes the first gate and reaches the code behind it.
"""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, NamedTuple

MAX_BYTES = 1 << 20
"""Mutants do not grow beyond this."""

INTEGERS = sorted(
    {n for bits in (0, 1, 2, 4, 5, 6, 7, 8, 15, 16, 20, 31, 32, 40, 62, 63, 64)
     for n in (2**bits - 1, 2**bits, 2**bits + 1, -(2**bits))}
    | {3, 5, 10, 100, 1000, -3, 10**9, 10**18}
)  # fmt: skip
FLOATS = [0.0, -0.0, 0.5, 1.0, -1.0, 1e-45, 1e-5, 3.4e38, 1e39, 1e308, float("inf"),
          float("-inf"), float("nan")]  # fmt: skip
TEXTS = [
    "", " ", "0", "-1", "1e999", "nan", "None", "true", "a", "a" * 5000, "\x00", "a\x00b", "\n",
    "\r\n", "\ufeff", "\u2581", "\ud800", "\udfff\ud800", "é", "\u0301", "\U0010ffff", "٣", "½",
    "..", "../x", "/", "~", "~no-such-user", "%s%n", "{}", "[", "'", '"', "\\", "--", "-", "=1+1",
    "<0x41>", "<s>", "[INST]", "2026-02-30", "0x10", "1_0", "file:///dev/null", "http://[",
    "\x1b[0m",
]  # fmt: skip


class Field(NamedTuple):
    """An integer or float of a format: its offset in the file, and its `struct` format."""

    offset: int
    format: str


def integer(rng: Random, near: int = 0) -> int:
    """A boundary value, or one near the value that stood there."""
    kind = rng.randrange(4)
    if kind == 0:
        return near + rng.choice((-64, -2, -1, 1, 2, 64))
    if kind == 1:
        return rng.choice((near * 2, near // 2, -near, near ^ 1 << rng.randrange(64)))
    return rng.choice(INTEGERS)


def text(rng: Random, near: str = "") -> str:
    """An odd text, a character run, or `near` with one character changed."""
    kind = rng.randrange(4)
    if kind == 0 and near:
        at = rng.randrange(len(near))
        return near[:at] + rng.choice(TEXTS) + near[at + rng.randrange(2) :]
    if kind == 1:
        planes = ((0, 128), (0, 256), (0x370, 0x3000), (0x4E00, 0x9FFF), (0, 0x110000))
        low, high = rng.choice(planes)
        return "".join(chr(rng.randrange(low, high)) for _ in range(rng.randrange(1, 24)))
    if kind == 2:
        return near + rng.choice(TEXTS)
    return rng.choice(TEXTS)


# ---- bytes ----------------------------------------------------------------------------


def edit_field(rng: Random, data: bytearray, fields: Sequence[Field]) -> None:
    """Set one field to a boundary value, in place."""
    fields = [f for f in fields if f.offset + struct.calcsize(f.format) <= len(data)]
    if not fields:
        return
    field = rng.choice(fields)
    if field.format[-1] in "efd":
        value = rng.choice(FLOATS)
        try:
            struct.pack_into(field.format, data, field.offset, value)
        except OverflowError:
            struct.pack_into(field.format, data, field.offset, float("inf"))
        return
    (old,) = struct.unpack_from(field.format, data, field.offset)
    size = struct.calcsize(field.format)
    order = "big" if field.format.startswith(">") else "little"
    value = integer(rng, old) % (1 << 8 * size)
    data[field.offset : field.offset + size] = value.to_bytes(size, order)  # type: ignore[arg-type]


def _place(rng: Random, data: bytes | bytearray) -> int:
    """An offset: half of them in the first 512 bytes, where headers are."""
    return rng.randrange(min(len(data), 512) if rng.random() < 0.5 else len(data))


def _flip(rng: Random, data: bytearray) -> bytearray:
    for at in rng.sample(range(len(data)), min(len(data), rng.choice((1, 1, 4, 16)))):
        data[at] ^= 1 << rng.randrange(8)
    data[_place(rng, data)] ^= 1 << rng.randrange(8)
    return data


def _overwrite(rng: Random, data: bytearray) -> bytearray:
    at, n = _place(rng, data), rng.choice((1, 2, 4, 8, 64))
    fill = rng.choice((b"\0", b"\xff", b"\x80", bytes([rng.randrange(256)])))
    data[at : at + n] = fill * len(data[at : at + n])
    return data


def _cut(rng: Random, data: bytearray) -> bytearray:
    return data[: _place(rng, data)]


def _extend(rng: Random, data: bytearray) -> bytearray:
    n = rng.choice((1, 3, 4, 8, 64, 4096))
    return data + rng.choice((bytes(n), b"\xff" * n, rng.randbytes(n), bytes(data[:n])))


def _remove(rng: Random, data: bytearray) -> bytearray:
    at, n = _place(rng, data), rng.choice((1, 2, 4, 8, 40, 256))
    return data[:at] + data[at + n :]


def _repeat(rng: Random, data: bytearray) -> bytearray:
    at, n = _place(rng, data), rng.choice((1, 4, 8, 40, 256))
    return data[: at + n] + data[at:]


def _swap(rng: Random, data: bytearray) -> bytearray:
    n = rng.choice((1, 4, 8, 40))
    a, b = _place(rng, data), _place(rng, data)
    data[a : a + n], data[b : b + n] = data[b : b + n], data[a : a + n]
    return data


_BYTE_EDITS = (_flip, _flip, _overwrite, _cut, _extend, _remove, _repeat, _swap)


def mutate_bytes(
    rng: Random,
    corpus: Sequence[bytes],
    fields: Callable[[bytes], Sequence[Field]] | None = None,
    chunks: Callable[[bytes], list[bytes]] | None = None,
) -> bytes:
    """A mutant of one of the corpus's files, or a splice of two.

    Parameters
    ----------
    rng : Random
    corpus : sequence of bytes
    fields : callable, optional
        Integers and floats of a file at known offsets.
    chunks : callable, optional
        A file cut into its records, to be removed, repeated, swapped and spliced whole.
    """
    data = bytearray(rng.choice(corpus))
    kinds = ["bytes", "bytes", "bytes", "splice"]
    kinds += ["fields"] * 6 * (fields is not None) + ["chunks"] * 3 * (chunks is not None)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        kind, other = rng.choice(kinds), rng.choice(corpus)
        if kind == "fields" and fields is not None:
            edit_field(rng, data, fields(bytes(data)))
        elif kind == "chunks" and chunks is not None:
            data = bytearray(b"".join(_edit_list(rng, chunks(bytes(data)), chunks(other))))
        elif kind == "splice" and data and other:
            at = _place(rng, data)
            aligned = other != data and rng.random() < 0.5
            data = data[:at] + other[at if aligned else _place(rng, other) :]
        elif data:
            data = rng.choice(_BYTE_EDITS)(rng, data)
    return bytes(data[:MAX_BYTES])


def _edit_list(rng: Random, items: list[Any], others: Sequence[Any]) -> list[Any]:
    """Remove, repeat, swap or take over an item of a list."""
    items = list(items)
    kind = rng.randrange(5)
    if not items or kind == 0:
        items[rng.randrange(len(items) + 1) : 0] = [rng.choice(list(others))] if others else []
        return items
    at = rng.randrange(len(items))
    if kind == 1:
        del items[at]
    elif kind == 2:
        items.insert(rng.randrange(len(items) + 1), items[at])
    elif kind == 3:
        other = rng.randrange(len(items))
        items[at], items[other] = items[other], items[at]
    else:
        items[at:] = others[at:]
    return items


# ---- JSON -----------------------------------------------------------------------------


def _deep(rng: Random) -> Any:
    value: Any = 0
    for _ in range(rng.choice((3, 40))):
        value = [value] if rng.random() < 0.5 else {"a": value}
    return value


def json_value(rng: Random, old: Any = None) -> Any:
    """Another value in the place of `old`: another type, a boundary, an odd text, a nesting."""
    kind = rng.randrange(9)
    if kind == 0 and isinstance(old, str):
        return text(rng, old)
    if kind <= 1 and isinstance(old, (int, float)) and old == old and abs(old) < 1e300:
        return integer(rng, int(old))
    if kind == 2:
        return str(old)
    if kind == 3:
        return [old]
    if kind == 4:
        return rng.choice(INTEGERS)
    if kind == 5:
        return rng.choice(FLOATS)
    if kind == 6:
        return text(rng)
    if kind == 7:
        return _deep(rng)
    return rng.choice((None, True, False, [], {}, [None], {"a": 1}, float(old) if type(old) is int
                       and abs(old) < 1e300 else 0.5))  # fmt: skip


def _nodes(value: Any, path: tuple = ()) -> list[tuple]:
    found = [path]
    if isinstance(value, dict):
        for key, item in value.items():
            found += _nodes(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            found += _nodes(item, (*path, index))
    return found


def mutate_json(rng: Random, value: Any, edits: int | None = None) -> Any:
    """A copy of a JSON value with one to three nodes replaced, removed, repeated or moved."""
    value = copy.deepcopy(value)
    for _ in range(edits or rng.choice((1, 1, 1, 2, 3))):
        path = rng.choice(_nodes(value))
        if not path:
            if rng.random() < 0.2:
                value = json_value(rng, value)
            continue
        parent = value
        for step in path[:-1]:
            parent = parent[step]
        key = path[-1]
        kind = rng.randrange(6)
        if kind <= 2:
            parent[key] = json_value(rng, parent[key])
        elif kind == 3:
            del parent[key]
        elif kind == 4 and isinstance(parent, dict):
            parent[text(rng, str(key))] = parent[key]
        elif isinstance(parent, list):
            parent[:] = _edit_list(rng, parent, parent)
        else:
            other = rng.choice(list(parent))
            parent[key], parent[other] = parent[other], parent[key]
    return value


def json_text(rng: Random, value: Any) -> bytes:
    """JSON of a value; one in ten is damaged as text, one in twenty nested 100,000 deep."""
    kind = rng.random()
    if kind < 0.05:
        return rng.choice((b"[", b'{"a":', b"[[1],")) * 100_000
    data = json.dumps(value).encode()
    if kind < 0.15:
        data = mutate_bytes(rng, [data])
    elif kind < 0.18:
        data = rng.choice((b"\xef\xbb\xbf" + data, data.decode("latin-1").encode("utf-16")))
    return data
