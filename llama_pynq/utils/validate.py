"""Arguments that a user gave: whole numbers, numbers and bools, told apart."""

from __future__ import annotations

import numbers
import operator

from llama_pynq.errors import RequestError


def _is_bool(value: object) -> bool:
    """Whether a value is Python's bool or NumPy's."""
    return type(value).__name__ in ("bool", "bool_")


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
        if _is_bool(value):
            raise TypeError
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise RequestError(f"{name} is {value!r}: it must be a whole number") from None


def number(name: str, value: object) -> float:
    """The value as a float, whichever real type it has; infinity and NaN pass.

    Raises
    ------
    RequestError
        If it is not a number, or beyond float64. A bool is not a number.
    """
    if type(value) is float:
        return value
    if _is_bool(value) or not isinstance(value, numbers.Real):
        raise RequestError(f"{name} is {value!r}: it must be a number")
    try:
        return float(value)
    except OverflowError:
        raise RequestError(f"{name} is too large: it must be a number that float64 holds") from None


def positive_number(name: str, value: object) -> float:
    """The value as a float above 0; infinity passes.

    Raises
    ------
    RequestError
        If it is not a positive number.
    """
    try:
        found = number(name, value)
    except RequestError:
        found = 0.0
    if not found > 0:  # nor is NaN
        raise RequestError(f"{name} is {value!r}: it must be a positive number")
    return found


def flag(name: str, value: object) -> bool:
    """The value as a bool.

    Raises
    ------
    RequestError
        If it is neither True nor False.
    """
    if not _is_bool(value):
        raise RequestError(f"{name} is {value!r}: it must be True or False")
    return bool(value)
