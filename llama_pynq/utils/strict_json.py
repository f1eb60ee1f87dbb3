"""JSON of files that other programs wrote: every fault is a ValueError with its place."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

_MAX_DIGITS = 20  # of an integer: those of 2^64 and of no more


def parse(text: str | bytes) -> Any:
    """Parse JSON text as the standard has it.

    Parameters
    ----------
    text : str or bytes
        Bytes are UTF-8, with or without a byte order mark.

    Raises
    ------
    ValueError
        If the text is not UTF-8 or not JSON; nests too deeply; repeats a key of an object; holds
        NaN, Infinity, a number beyond float64, an integer of more than 20 digits, or half of a
        surrogate pair.
    """
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"it is not UTF-8 at byte {error.start}") from None
    try:
        value = _DECODER.decode(text)
    except RecursionError:
        raise ValueError("it nests too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error.msg} at character {error.pos}") from None
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {shown(key)} comes twice")
            seen.add(key)
    for text in (*found, *(value for value in found.values() if isinstance(value, str))):
        _refuse_surrogates(text)
    return found


def _refuse_surrogates(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{shown(text)} holds half of a surrogate pair") from None


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"the integer {digits[:_MAX_DIGITS]}... has {len(digits)} characters")
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {shown(digits)} is beyond float64")
    return value


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant
)


def shown(value: object, most: int = 60) -> str:
    """A value from a file, cut to a length that fits a message, without raw control characters."""
    text = ascii(value)
    return text if len(text) <= most else f"{text[:most]}..."
