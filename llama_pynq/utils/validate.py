"""Numbers that a user gave: whole, finite, and no bools."""

from __future__ import annotations

import numbers
import operator

from llama_pynq.errors import RequestError


def whole_number(name: str, value: object) -> int:
    """The value as an int, whichever integer type it has.

    Raises
    ------
    RequestError
        If it is not a whole number. A bool is not: ``seed=True`` is a mistake, not a seed.
    """
    if type(value) is int:
        return value
    try:
        if type(value).__name__ in ("bool", "bool_"):
            raise TypeError
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise RequestError(f"{name} is {value!r}: it must be a whole number") from None


def number(name: str, value: object) -> float:
    """The value as a float, whichever real type it has.

    Raises
    ------
    RequestError
        If it is not a number; a bool is none.
    """
    if type(value) is float:
        return value
    if type(value).__name__ in ("bool", "bool_") or not isinstance(value, numbers.Real):
        raise RequestError(f"{name} is {value!r}: it must be a number")
    return float(value)


def positive_number(name: str, value: object) -> float:
    """The value as a float.

    Raises
    ------
    RequestError
        If it is not a positive, finite number.
    """
    try:
        found = number(name, value)
    except RequestError:
        found = float("nan")
    if not 0 < found < float("inf"):
        raise RequestError(f"{name} is {value!r}: it must be a positive number")
    return found
