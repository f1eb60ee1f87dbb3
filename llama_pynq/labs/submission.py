"""Read submissions: notebooks that anyone may have written, and the answers in them."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

from llama_pynq.labs import RESULT_TYPE

MAX_BYTES = 64 << 20
"""Larger notebooks are not read."""

# Names that an honest answer seldom needs.
WATCHED = frozenset(
    "labs lesson IPython get_ipython sys gc inspect builtins importlib ctypes threading atexit "
    "subprocess os shutil socket open eval exec setattr globals __import__".split()
)
EXERCISE = re.compile(r"exercise-(\d\d)-(\d+)")
"""Id of an exercise's cell."""

TOO_DEEP = "nested too deeply to be looked at"

MAX_ANSWER = 1 << 20
"""Longer answers are not run; in characters."""


class Unreadable(Exception):
    """The file is no submission; the message says why."""


def read_notebook(path: Path) -> dict[str, Any]:
    """Return a notebook's JSON, with every cell's source as one string.

    Raises
    ------
    Unreadable
        If the file is no notebook of format 4.
    """
    with open(path, "rb") as file:
        text = file.read(MAX_BYTES + 1)
    if len(text) > MAX_BYTES:
        raise Unreadable(f"is larger than {MAX_BYTES >> 20} MiB: clear its outputs")
    if not text.strip():
        raise Unreadable("is empty")
    try:
        notebook = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"is not JSON, or cut short: {error}") from None
    if not isinstance(notebook, dict) or not isinstance(notebook.get("nbformat"), int):
        raise Unreadable("is JSON, but no notebook")
    if notebook["nbformat"] != 4 or not isinstance(notebook.get("cells"), list):
        found = str(notebook["nbformat"])[:10]
        raise Unreadable(
            "has no list of cells" if found == "4" else f"is a notebook of format {found}, not 4"
        )
    for cell in notebook["cells"]:
        source = cell.get("source") if isinstance(cell, dict) else None
        if isinstance(source, list) and all(isinstance(line, str) for line in source):
            source = cell["source"] = "".join(source)
        if not isinstance(source, str) or not isinstance(cell.get("cell_type"), str):
            raise Unreadable("is damaged: it has a cell without a type or source")
    return notebook


def read_answers(path: Path) -> dict[str, str]:
    """Return the sources of a submission's exercise cells, by cell id.

    Raises
    ------
    Unreadable
        If the file is a link, no notebook, or has two exercise cells of one id.
    """
    if path.is_symlink() or not path.is_file():
        raise Unreadable("is a link or no ordinary file: submit the notebook itself")
    answers: dict[str, str] = {}
    for cell in read_notebook(path)["cells"]:
        name = cell.get("id")
        if cell["cell_type"] == "code" and isinstance(name, str) and EXERCISE.fullmatch(name):
            if name in answers:
                raise Unreadable(f"has two cells {name}: keep only one")
            answers[name] = cell["source"]
    return answers


def unusable(source: str) -> str:
    """Why an answer cannot be run; empty for any program, right or wrong."""
    if len(source) > MAX_ANSWER:
        return f"the answer is longer than {MAX_ANSWER} characters"
    try:
        source.encode()
    except UnicodeEncodeError as error:
        return (
            f"the answer holds half of a character ({source[error.start]!a}, a surrogate) at "
            f"position {error.start}: no program can"
        )
    return ""


def suspicious(source: str) -> str:
    """Describe what an answer uses but should not need; empty for an ordinary answer."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # ValueError: NUL, or half of a character
        return "not plain Python (a magic, or a syntax error)"
    except (RecursionError, MemoryError):
        return TOO_DEEP
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.ImportFrom):
            names.update((node.module or "").split("."), *(a.name.split(".") for a in node.names))
        elif isinstance(node, ast.Import):
            names.update(*(a.name.split(".") for a in node.names))
        elif isinstance(node, ast.Constant) and RESULT_TYPE in str(node.value):
            names.add(RESULT_TYPE)
    odd = sorted(name for name in names if name in WATCHED | {RESULT_TYPE} or "lesson_" in name)
    return f"uses {', '.join(odd)}" if odd else ""
