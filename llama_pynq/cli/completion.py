"""Completion of commands, options, boards and shapes in a shell, by argcomplete if installed."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer a shell that asks for completions, and exit; else return at once."""
    if "_ARGCOMPLETE" not in os.environ:
        return
    try:
        import argcomplete
    except ImportError:
        return
    from llama_pynq.boards import boards
    from llama_pynq.checkpoint.shapes import SHAPES

    names = {"board": boards(), "shape": SHAPES}  # argcomplete itself completes files
    for action in _actions(parser):
        if action.dest in names:
            action.completer = argcomplete.ChoicesCompleter(  # type: ignore[attr-defined]
                names[action.dest]
            )
    argcomplete.autocomplete(parser)


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
