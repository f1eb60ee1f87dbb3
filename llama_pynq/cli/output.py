"""What commands write: JSON, and files that are never replaced unasked."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from llama_pynq.errors import LlamaPynqError
from llama_pynq.utils.files import user_path


def json_option(command: argparse.ArgumentParser) -> None:
    """Add ``--json`` to a command."""
    command.add_argument("--json", action="store_true", help="print JSON, not a table")


def print_json(data: Any) -> None:
    """Print data as JSON; paths become strings, NaN is an error."""
    print(json.dumps(data, indent=2, default=str, allow_nan=False))


def force_option(command: argparse.ArgumentParser) -> None:
    """Add ``--force`` to a command that writes a file."""
    command.add_argument("--force", action="store_true", help="replace an existing file")


_PACKED = "a packed model"


def _model_in(path: Path) -> str | None:
    """What kind of model or tokenizer a file holds; None if it holds neither."""
    from llama_pynq.checkpoint.llama2c import has_llama2c_header
    from llama_pynq.tokenizer.llama2c import starts_like_bin
    from llama_pynq.tokenizer.sentencepiece import starts_like_sentencepiece
    from llama_pynq.utils.foreign import foreign_model, is_text, text_of_model
    from llama_pynq.weights.packed import is_packed

    with path.open("rb") as file:
        head = file.read(4096)
    if is_text(head):
        return text_of_model(head, path.name)
    if is_packed(path):
        return _PACKED
    if has_llama2c_header(head):
        return "a llama2.c checkpoint"
    if starts_like_bin(head) or starts_like_sentencepiece(head):
        return "a tokenizer"
    return foreign_model(head, path.name)


def file_to_write(name: str, force: bool, packed: bool = False) -> Path:
    """Check a file that a command is about to write, before it works for minutes.

    Parameters
    ----------
    name : str
    force : bool
        Whether an existing file may be replaced; a model or a tokenizer never.
    packed : bool
        Whether the command writes packed models: it may replace one.

    Raises
    ------
    LlamaPynqError
        If it is a folder, lies in no folder, or exists and may not be replaced.
    """
    path = user_path(name)
    if path.is_dir():
        raise LlamaPynqError(f"{path} is a folder: give the name of the file to write")
    if os.path.lexists(path) and not path.is_file():
        raise LlamaPynqError(f"{path} is no regular file: give the name of the file to write")
    if path.exists() and (kind := _model_in(path)) and not (packed and kind == _PACKED):
        raise LlamaPynqError(
            f"{path} is {kind}, and no command writes over one, not even with --force. It would be "
            "the file to write: give another name. A model to read is --model, its tokenizer "
            "--tokenizer"
        )
    if os.path.lexists(path) and not force:
        raise LlamaPynqError(f"{path} exists: choose another name, or replace it with --force")
    if not path.parent.is_dir():
        raise LlamaPynqError(f"there is no folder {path.parent} for {path.name}")
    return path
