"""The notebooks' solutions, for the tests of their checks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

SOLUTIONS = Path(__file__).parent / "notebooks" / "solutions"


def cells(notebook: str) -> dict[str, str]:
    """Text of every exercise cell, by the cell's id."""
    text = (SOLUTIONS / f"{notebook}.py").read_text(encoding="utf-8")
    parts = re.split(r"^# %% (\S+)\n", text, flags=re.MULTILINE)
    return {name: source.strip() for name, source in zip(parts[1::2], parts[2::2])}


def solution(notebook: str, **given: Any) -> dict[str, Any]:
    """What the solutions define, given the names that the notebook has by then."""
    names = dict(given)
    for source in cells(notebook).values():
        exec(source, names)
    return names
