"""What a border of the package is to the fuzzer, and how one case of it is judged."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from llama_pynq.errors import LlamaPynqError


class Skipped(Exception):
    """The border cannot be tried here; the message says why."""


@dataclass(frozen=True)
class Border:
    """A place where bytes, texts or arguments of others enter the package.

    Attributes
    ----------
    make : callable
        Makes one input from a `random.Random`.
    read : callable
        Gives an input to the package and checks what it promises; may return False for "refused"
        where the package refuses without an exception.
    refusals : tuple of exception types
        How the package may refuse an input; any other exception is a fault.
    """

    make: Callable[[Random], bytes]
    read: Callable[[bytes], object]
    refusals: tuple[type[BaseException], ...] = (LlamaPynqError,)


Opener = Callable[[Path], Border]
"""Makes a border, with its corpus, in an empty folder of its own."""


def case_rng(name: str, seed: int, index: int) -> Random:
    """The random numbers of one case: the same on every machine."""
    return Random(f"{name} {seed} {index}")


def judge(border: Border, data: bytes) -> tuple[str, str]:
    """Outcome of one input: ("read" | "refused" | "raised", traceback)."""
    try:
        return ("refused" if border.read(data) is False else "read"), ""
    except border.refusals:
        return "refused", ""
    except BaseException:
        return "raised", traceback.format_exc(limit=-12)[-6000:]
