"""A lesson of two exercises, its notebook, and submissions.

A graded notebook runs in another process; its kernel finds the lesson's checks through a
``sitecustomize.py`` on the path.
"""

import importlib.util
import json
import sys

CHECKS = """
from llama_pynq.labs import exercise, expect


@exercise("99.1", "Double it", stages=("of one", "of any number"))
def double(given):
    yield expect(given(1) == 2, f"of 1 it gives {given(1)}, not 2")
    yield expect(given(-3) == -6, "right for 1, but not for -3: is there an abs()?")


@exercise("99.2", "A number", stages=("it is 42",))
def number(given, factor):
    yield expect(given * factor == 84, f"{given} is not 42")
"""
SITE = """
import importlib.util, sys

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "llama_pynq.labs.lesson_99":
            return importlib.util.spec_from_file_location(name, {path!r})

sys.meta_path.append(Finder)
"""
TO_DO_1, TO_DO_2 = "def double(x):\n    ...", "number = ..."
RIGHT_1, RIGHT_2 = "def double(x):\n    return 2 * x", "number = 42"


def cell(name, source, kind="code", **more):
    if kind == "code":
        more = {"execution_count": None, "outputs": [], **more}
    return {"cell_type": kind, "id": name, "metadata": {}, "source": source, **more}


def notebook(first=TO_DO_1, second=TO_DO_2):
    cells = [
        cell("title", "# 99 · Tiny\n\n**Time.** 1 minute.", "markdown"),
        cell("open", "from llama_pynq import labs\n\nFACTOR = 2"),
        cell("exercise-99-1", first),
        cell("measure", "if double(1) == 0:\n    double(2)"),
        cell("check-99-1", 'labs.check("99.1", double)'),
        cell("exercise-99-2", second),
        cell("check-99-2", 'labs.check("99.2", number, FACTOR)'),
        cell("close", "print('done')"),
    ]
    return {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def write(path, content):
    """Write a notebook, a text or bytes; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, dict):
        content = json.dumps(content, ensure_ascii=False)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def register(folder, monkeypatch):
    """Register the lesson here and in kernels; returns the path of its notebook."""
    checks = write(folder / "lesson_99.py", CHECKS)
    site = write(folder / "site" / "sitecustomize.py", SITE.format(path=str(checks)))
    monkeypatch.setenv("PYTHONPATH", str(site.parent))
    name = "llama_pynq.labs.lesson_99"
    spec = importlib.util.spec_from_file_location(name, checks)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    from llama_pynq import labs

    monkeypatch.setattr(labs, "_exercises", {})
    spec.loader.exec_module(module)
    return write(folder / "99_tiny.ipynb", notebook())
