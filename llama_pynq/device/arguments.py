"""Arguments of the kernel driver's methods: told apart before a register is written."""

from __future__ import annotations

from typing import Any

import numpy as np

from llama_pynq.errors import LimitError, RequestError
from llama_pynq.kernel.abi import KV_BITS, ROW_DTYPE, RequestFlag
from llama_pynq.utils.validate import whole_number
from llama_pynq.weights.packed import PackedModel

_ALL_FLAGS = sum(int(flag) for flag in RequestFlag)
_INT32 = range(-(2**31), 2**31)


def _items(name: str, value: Any, what: str) -> list[Any]:
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError
        return list(value)
    except TypeError:
        raise RequestError(f"{name} is {value!r}: it must be {what}") from None


def check_rows(rows: object) -> None:
    """Raise RequestError unless rows are a one-dimensional array of `ROW_DTYPE`."""
    if not isinstance(rows, np.ndarray) or rows.dtype != ROW_DTYPE or rows.ndim != 1:
        what = type(rows).__name__
        if isinstance(rows, np.ndarray):
            what = f"an array of shape {rows.shape} and dtype {rows.dtype}"
        raise RequestError(f"rows is {what}: it must be an array that make_rows(n) returns")


def layer_range(layers: object) -> tuple[int, int]:
    """The layers [begin, end) as ints; whether the model has them, the kernel says.

    Raises
    ------
    RequestError
    """
    what = "a pair of whole numbers, the first layer and the end"
    found = _items("layers", layers, what)
    if len(found) != 2:
        raise RequestError(f"layers is {layers!r}: it must be {what}")
    begin, end = (whole_number("layers", value) for value in found)
    if begin not in _INT32 or end not in _INT32:
        raise RequestError(f"layers is {layers!r}: it is no range of a model's layers")
    return begin, end


def call_flags(flags: object) -> int:
    """The flags as an int.

    Raises
    ------
    RequestError
        If they are no whole number, or have a bit that is no `RequestFlag`.
    """
    found = whole_number("flags", flags)
    if found & ~_ALL_FLAGS:
        raise RequestError(f"flags is {flags!r}: it has bits that are no RequestFlag")
    return found


def token_ids(stop_tokens: object, vocab_size: int) -> tuple[int, ...]:
    """Stop tokens as a tuple of ints.

    Raises
    ------
    RequestError
        If one is no whole number, or outside the vocabulary.
    """
    found = tuple(
        whole_number("a stop token", value)
        for value in _items("stop_tokens", stop_tokens, "a sequence of token ids")
    )
    for token in found:
        if not 0 <= token < vocab_size:
            raise RequestError(
                f"stop_tokens holds {token}, which is outside the vocabulary, 0 to {vocab_size - 1}"
            )
    return found


def residual_stream(activations: object, n_rows: int, dim: int) -> np.ndarray:
    """Activations as (n_rows, dim) float32.

    Raises
    ------
    RequestError
        If they have another shape, are no real numbers, or not finite as float32.
    """
    try:
        found = np.asarray(activations)
    except ValueError:  # ragged lists
        found = np.asarray(None)
    if found.dtype.kind not in "fiu" or found.shape != (n_rows, dim):
        raise RequestError(
            f"activations have shape {found.shape} and dtype {found.dtype}: they must be "
            f"({n_rows}, {dim}) float32, one for each row"
        )
    with np.errstate(over="ignore"):
        found = found.astype(np.float32)
    if not np.isfinite(found).all():
        raise RequestError("activations hold NaN, or values beyond float32")
    return found


def index(name: str, value: object, most: int) -> int:
    """A whole number of 0 to below `most`.

    Raises
    ------
    RequestError
    """
    found = whole_number(name, value)
    if not 0 <= found < most:
        raise RequestError(f"{name} is {found}: it must be 0 to {most - 1}")
    return found


def count(name: str, value: object, most: int) -> int:
    """A whole number of 1 to `most`.

    Raises
    ------
    RequestError
        If it is no whole number.
    LimitError
        If it is outside.
    """
    found = whole_number(name, value)
    if not 1 <= found <= most:
        raise LimitError(f"{name} {found}: this kernel takes 1 to {most}")
    return found


def check_model(packed: object, slots: object, kv_bits: object) -> tuple[int, int]:
    """Check a packed model; slots and kv_bits as ints.

    Raises
    ------
    RequestError
    """
    if not isinstance(packed, PackedModel):
        raise RequestError(
            f"packed is {type(packed).__name__}: it must be a PackedModel, as open_packed() gives"
        )
    bits = whole_number("kv_bits", kv_bits)
    if bits not in KV_BITS:
        raise RequestError(f"kv_bits is {kv_bits!r}: it must be 32 (float32) or 8 (int8)")
    return check_slots(slots), bits


def check_slots(slots: object) -> int:
    """Slots as an int of at least 1.

    Raises
    ------
    RequestError
    """
    found = whole_number("slots", slots)
    if not 1 <= found < 2**31:
        raise RequestError(f"slots is {slots!r}: it must be at least 1")
    return found


def check_is(name: str, value: object, kind: type, where: str) -> None:
    """Raise RequestError unless a value is of a class; `where` says what returns one."""
    if not isinstance(value, kind):
        raise RequestError(f"{name} is {type(value).__name__}: it must be what {where}")
