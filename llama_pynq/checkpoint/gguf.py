"""Reader of GGUF headers: a file's metadata, and where its tensors are.

Everything that a file says about sizes is checked against its own size before anything is allocated
or read, and a header that is longer than any known model's is not read. No value refers to another,
so nothing loops, and arrays of arrays, which no model has, are refused, so nothing recurses.

References
----------
ggml-org/ggml, docs/gguf.md; src/gguf.cpp, which refuses tensors out of order as this module does.
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from llama_pynq.checkpoint.ggml_types import OTHER_TYPES, TYPES, GgmlType
from llama_pynq.errors import CheckpointError

MAGIC = b"GGUF"

_MAX_HEADER_BYTES = 32 << 20  # Llama 3's, with 128,000 tokens and 280,000 merges, takes 8
_MAX_ENTRIES = 1 << 16  # of metadata, and of tensors
_MAX_NAME_BYTES = 1 << 10
_MAX_STRINGS = 1 << 21  # of an array: some models have 256,000 tokens, 500,000 merges
_MAX_DIMENSIONS = 4
_READ_BYTES = 1 << 20

_SCALARS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?",
            10: "<u8", 11: "<i8", 12: "<f8"}  # fmt: skip
_STRING, _ARRAY = 8, 9
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


@dataclass(frozen=True)
class GgufTensor:
    """Place of a tensor in its file.

    Attributes
    ----------
    type : GgmlType
    shape : tuple of int
        As NumPy has it: (out, in) for a matrix. GGUF writes the dimensions the other way round.
    offset : int
        From the start of the file, in bytes.
    n_bytes : int
    """

    type: GgmlType
    shape: tuple[int, ...]
    offset: int
    n_bytes: int


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says of its model.

    Attributes
    ----------
    metadata : dict of str to value
        An int, float, bool, str; a NumPy array; or a list of bytes for an array of strings.
    tensors : dict of str to GgufTensor
    raw : bytes
        The header as it was read, and perhaps some of the tensors behind it.
    """

    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]
    raw: bytes


def is_gguf(path: Path) -> bool:
    """Whether a file starts as GGUF does.

    Parameters
    ----------
    path : Path
    """
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read_header(file: BinaryIO, path: Path) -> GgufHeader:
    """Read and check the header of an open GGUF file of version 2 or 3.

    Parameters
    ----------
    file : BinaryIO
        Open for reading; its position is undefined afterwards.
    path : Path
        For messages.

    Raises
    ------
    CheckpointError
        If the file is truncated, damaged, of another version, or has tensors of a type that is not
        read.
    """
    try:
        return _read(_Reader(file))
    except ValueError as error:
        raise CheckpointError(f"{path} is a GGUF file that cannot be read: {error}") from None


class _Reader:
    """The header's bytes, read from the file as far as they are needed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.n_bytes = os.fstat(file.fileno()).st_size
        self._data = bytearray()
        self.at = 0
        file.seek(0)

    @property
    def bytes_read(self) -> bytes:
        return bytes(self._data)

    def _fill(self, end: int, what: str) -> None:
        """Have the bytes up to `end`."""
        if end > self.n_bytes:
            raise ValueError(
                f"{what} at byte {self.at} would end at byte {end}, the file ends at "
                f"{self.n_bytes}: it is truncated or damaged; download it again"
            )
        if end > _MAX_HEADER_BYTES:
            raise ValueError(
                f"{what} at byte {self.at} ends at byte {end}: a header of more than "
                f"{_MAX_HEADER_BYTES >> 20} MiB is not read"
            )
        while len(self._data) < end:
            part = self._file.read(max(_READ_BYTES, end - len(self._data)))
            if not part:
                raise ValueError(f"it ends at byte {len(self._data)}, in its header")
            self._data += part

    def take(self, n: int, what: str) -> bytes:
        """The next `n` bytes."""
        end = self.at + n
        if end > len(self._data):
            self._fill(end, what)
        part = bytes(self._data[self.at : end])
        self.at = end
        return part

    def u32(self, what: str) -> int:
        return int(_U32.unpack(self.take(4, what))[0])

    def u64(self, what: str) -> int:
        return int(_U64.unpack(self.take(8, what))[0])

    def count(self, what: str, most: int) -> int:
        n = self.u64(what)
        if n > most:
            raise ValueError(f"{what} at byte {self.at - 8} is {n}, and at most {most} are read")
        return n

    def text(self, what: str, most: int | None = None) -> str:
        """The next string."""
        n = self.u64(f"the length of {what}")
        if most is not None and n > most:
            raise ValueError(f"{what} at byte {self.at} has {n} bytes, and at most {most} are read")
        begin = self.at
        try:
            return self.take(n, what).decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{what} is not UTF-8 at byte {begin + error.start}") from None

    def strings(self, n: int, what: str) -> list[bytes]:
        """The next `n` strings, as bytes: there may be hundreds of thousands."""
        if 8 * n > self.n_bytes - self.at:
            raise ValueError(f"{what} has {n} strings, more than the rest of the file holds")
        found, data, at, unpack = [], self._data, self.at, _U64.unpack_from
        for _ in range(n):
            if at + 8 > len(data):
                self._fill(at + 8, what)
            begin = at + 8
            at = begin + unpack(data, at)[0]
            if at > len(data):
                self._fill(at, what)
            found.append(bytes(data[begin:at]))
        self.at = at
        return found

    def value(self, kind: int, what: str) -> Any:
        """The next value of metadata."""
        if kind == _STRING:
            return self.text(what)
        if kind in _SCALARS:
            dtype = np.dtype(_SCALARS[kind])
            return np.frombuffer(self.take(dtype.itemsize, what), dtype)[0].item()
        if kind != _ARRAY:
            raise ValueError(f"{what} is of type {kind}, which does not exist")
        kind, n = self.u32(f"the type of {what}"), self.u64(f"the length of {what}")
        if kind == _STRING:
            if n > _MAX_STRINGS:
                raise ValueError(f"{what} has {n} strings, and at most {_MAX_STRINGS} are read")
            return self.strings(n, what)
        if kind not in _SCALARS:
            raise ValueError(f"{what} is an array of type {kind}, and none of that is read")
        dtype = np.dtype(_SCALARS[kind])
        return np.frombuffer(self.take(n * dtype.itemsize, what), dtype)


def _read(reader: _Reader) -> GgufHeader:
    if reader.take(4, "the magic number") != MAGIC:
        raise ValueError("it does not start with GGUF")
    version = reader.u32("the version")
    if version not in (2, 3):
        big = version in (2 << 24, 3 << 24)
        raise ValueError(
            f"its version is {version}, and 2 and 3 are read"
            + (": it is for computers of the other byte order" if big else "")
            + "; convert the original model again with llama.cpp's convert_hf_to_gguf.py"
        )
    n_tensors = reader.count("the number of tensors", _MAX_ENTRIES)
    n_values = reader.count("the number of metadata entries", _MAX_ENTRIES)
    metadata: dict[str, Any] = {}
    for _ in range(n_values):
        key = reader.text("a metadata key", _MAX_NAME_BYTES)
        if key in metadata:
            raise ValueError(f"the metadata key {key!r} comes twice")
        metadata[key] = reader.value(reader.u32(f"the type of {key}"), key)
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
        raise ValueError(f"general.alignment is {alignment!r}: it must be a power of two")
    places = [_place(reader) for _ in range(n_tensors)]
    at = data = -(-reader.at // alignment) * alignment
    tensors: dict[str, GgufTensor] = {}
    for name, kind, shape, offset in places:
        if name in tensors:
            raise ValueError(f"the tensor {name!r} comes twice")
        if data + offset != at:
            raise ValueError(
                f"the tensor {name!r} begins at byte {data + offset}, and not at {at}, where the "
                "one before it ends"
            )
        n_bytes = math.prod(shape) // kind.block * kind.n_bytes
        tensors[name] = GgufTensor(kind, shape, at, n_bytes)
        if at + n_bytes > reader.n_bytes:
            raise ValueError(
                f"the tensor {name!r} ends at byte {at + n_bytes}, the file at {reader.n_bytes}: "
                "it is truncated; download it again"
            )
        at += -(-n_bytes // alignment) * alignment
    return GgufHeader(metadata, tensors, reader.bytes_read)


def _place(reader: _Reader) -> tuple[str, GgmlType, tuple[int, ...], int]:
    """Name, type, shape, and offset from the start of the data, of the next tensor."""
    name = reader.text("a tensor's name", _MAX_NAME_BYTES)
    n = reader.u32(f"the number of dimensions of {name!r}")
    if not 0 < n <= _MAX_DIMENSIONS:
        raise ValueError(f"the tensor {name!r} has {n} dimensions")
    shape = tuple(reader.u64(f"a dimension of {name!r}") for _ in range(n))[::-1]
    number, offset = reader.u32(f"the type of {name!r}"), reader.u64(f"the offset of {name!r}")
    kind = TYPES.get(number)
    if kind is None:
        known = ", ".join(found.name for found in TYPES.values())
        what = OTHER_TYPES.get(number, f"number {number}")
        raise ValueError(
            f"the tensor {name!r} is of type {what}, and {known} are read: quantise the model to "
            "one of these with llama.cpp's llama-quantize"
        )
    # A product of large numbers is fine in Python; the file's size bounds it.
    if 0 in shape or shape[-1] % kind.block:
        raise ValueError(
            f"the tensor {name!r} has the shape {shape}: its rows are no whole blocks of "
            f"{kind.block} weights ({kind.name})"
        )
    return name, kind, shape, offset
