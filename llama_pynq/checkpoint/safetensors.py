"""Reader of safetensors headers: where a file's tensors are, checked before any is read.

A file holds eight bytes N (little-endian), a header of N bytes in JSON, and the tensors' data. The
reader is as strict as the format, and relies on nothing that the header says: a tensor that it
returns lies inside the file.

References
----------
https://github.com/huggingface/safetensors, README.md ("Format") and safetensors/src/tensor.rs.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from llama_pynq.errors import CheckpointError
from llama_pynq.utils import strict_json
from llama_pynq.utils.strict_json import shown

LENGTH_BYTES = 8
"""Bytes before the header: its length."""

MAX_HEADER_BYTES = 16 << 20
"""Longest header that is read; those of the largest models have a few hundred kilobytes."""

DTYPE_BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    **dict.fromkeys(("U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
"""Bits of an element of each dtype."""

_METADATA = "__metadata__"
_MAX_ELEMENTS = (1 << 64) - 1  # what the format's own library counts with


class SafetensorsError(CheckpointError):
    """A file is not safetensors, or its header is wrong.

    Attributes
    ----------
    why : str
        The message without the file's path.
    """

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path} is no sound safetensors file: {why}")
        self.why = why


@dataclass(frozen=True)
class Tensor:
    """Place of a tensor in its file.

    Attributes
    ----------
    dtype : str
        A key of `DTYPE_BITS`.
    shape : tuple of int
    offset : int
        From the start of the file, in bytes.
    n_bytes : int
    """

    dtype: str
    shape: tuple[int, ...]
    offset: int
    n_bytes: int


@dataclass(frozen=True)
class Header:
    """A file's header.

    Attributes
    ----------
    metadata : dict of str to str
        Empty if the file has none.
    tensors : dict of str to Tensor
        By name. Their data follow each other without gaps, up to the end of the file.
    """

    metadata: dict[str, str]
    tensors: dict[str, Tensor]


def read_header(file: BinaryIO, path: Path) -> Header:
    """Read and check the header of an open safetensors file.

    Parameters
    ----------
    file : BinaryIO
        Open for reading; its position is undefined afterwards.
    path : Path
        For messages.

    Raises
    ------
    SafetensorsError
        If the header is longer than `MAX_HEADER_BYTES`, is not JSON of the format, or describes
        other data than the file holds.
    OSError
        If the file cannot be read.
    """
    try:
        n_bytes = os.fstat(file.fileno()).st_size
        file.seek(0)
        length = _header_length(file.read(LENGTH_BYTES), n_bytes)
        data = b""
        while len(data) < length:
            part = file.read(length - len(data))
            if not part:
                raise ValueError(f"it ends at byte {LENGTH_BYTES + len(data)}, in its header")
            data += part
        fields = _parse(data)
        metadata = _metadata(fields.pop(_METADATA, {}))
        tensors = {
            name: _tensor(f"tensor {shown(name)}", entry, LENGTH_BYTES + length)
            for name, entry in fields.items()
        }
        _check_places(tensors, LENGTH_BYTES + length, n_bytes)
    except ValueError as error:
        raise SafetensorsError(path, str(error)) from None
    return Header(metadata, tensors)


def _header_length(start: bytes, n_bytes: int) -> int:
    if len(start) < LENGTH_BYTES:
        raise ValueError(f"it ends at byte {len(start)}, before its header")
    length = int.from_bytes(start, "little")
    if length > MAX_HEADER_BYTES:
        raise ValueError(
            f"its first {LENGTH_BYTES} bytes ask for a header of {length} bytes, and at most "
            f"{MAX_HEADER_BYTES} are read"
        )
    if length > n_bytes - LENGTH_BYTES:
        raise ValueError(
            f"its header has {length} bytes, the whole file {n_bytes}: it is truncated"
        )
    return length


def _parse(data: bytes) -> dict[str, Any]:
    if not data.startswith(b"{"):
        raise ValueError(f"its header, from byte {LENGTH_BYTES} on, does not start with '{{'")
    try:
        fields = strict_json.parse(data.decode())
    except UnicodeDecodeError as error:
        at = LENGTH_BYTES + error.start
        raise ValueError(f"its header is not UTF-8 at byte {at}") from None
    except ValueError as error:
        raise ValueError(f"its header, from byte {LENGTH_BYTES} on: {error}") from None
    assert isinstance(fields, dict), "it starts with {"
    return fields


def _metadata(entry: object) -> dict[str, str]:
    if not isinstance(entry, dict):
        raise ValueError(f"{_METADATA} is {shown(entry)}, not an object")
    for key, value in entry.items():
        if not isinstance(value, str):
            raise ValueError(f"{_METADATA}, {shown(key)} is {shown(value)}, not a string")
    return entry


def _whole_numbers(what: str, value: object) -> list[int]:
    """A list of integers from 0; JSON's true is none."""
    if not isinstance(value, list):
        raise ValueError(f"{what} is {shown(value)}, not a list")
    for i, number in enumerate(value):
        if type(number) is not int or not 0 <= number <= _MAX_ELEMENTS:
            raise ValueError(f"{what}[{i}] is {shown(number)}, not a whole number from 0")
    return value


def _tensor(what: str, entry: object, data_at: int) -> Tensor:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{what} is {shown(entry)}, not dtype, shape and data_offsets")
    dtype = entry["dtype"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise ValueError(f"{what}: dtype {shown(dtype)} is none of {', '.join(DTYPE_BITS)}")
    shape = _whole_numbers(f"{what}: shape", entry["shape"])
    count = 1
    for size in shape:
        count *= size
        if count > _MAX_ELEMENTS:
            raise ValueError(f"{what}: shape {shown(shape)} has more elements than 2^64")
    offsets = _whole_numbers(f"{what}: data_offsets", entry["data_offsets"])
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"{what}: data_offsets {shown(offsets)} are not a begin and an end")
    n_bytes = offsets[1] - offsets[0]
    if count * DTYPE_BITS[dtype] != 8 * n_bytes:
        raise ValueError(
            f"{what}: data_offsets {offsets} are {n_bytes} bytes; {count} elements of {dtype} are "
            f"{count * DTYPE_BITS[dtype] / 8:g}"
        )
    return Tensor(dtype, tuple(shape), data_at + offsets[0], n_bytes)


def _check_places(tensors: dict[str, Tensor], data_at: int, n_bytes: int) -> None:
    """Raise unless the tensors fill the file from `data_at` to its end."""
    at = data_at
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].n_bytes)):
        if tensor.offset != at:
            raise ValueError(
                f"tensor {shown(name)}: its data begin at byte {tensor.offset}, and those before "
                f"end at {at}: tensors follow one another without gap or overlap"
            )
        at += tensor.n_bytes
    if at != n_bytes:
        raise ValueError(f"its tensors end at byte {at}, the file at {n_bytes}")
