"""Check numbers that a user gives: whole, finite, not bool."""

from __future__ import annotations

import numbers
import operator

from llama_pynq.errors import RequestError


def whole_number(name: str, value: object) -> int:
    """Convert any integer type to int.

    Raises
    ------
    RequestError
        If the value is not a whole number. A bool is refused: ``seed=True`` is a mistake.
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
    """Convert any real number type to float.

    Raises
    ------
    RequestError
        If the value is not a real number, or is a bool.
    """
    if type(value) is float:
        return value
    if type(value).__name__ in ("bool", "bool_") or not isinstance(value, numbers.Real):
        raise RequestError(f"{name} is {value!r}: it must be a number")
    return float(value)


def positive_number(name: str, value: object) -> float:
    """Convert a positive, finite number to float.

    Raises
    ------
    RequestError
        If the value is not a positive, finite number.
    """
    try:
        found = number(name, value)
    except RequestError:
        found = float("nan")
    if not 0 < found < float("inf"):
        raise RequestError(f"{name} is {value!r}: it must be a positive number")
    return found
