"""What commands write: JSON, and files that are never replaced unasked."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from llama_pynq.errors import LlamaPynqError


def json_option(command: argparse.ArgumentParser) -> None:
    """Add ``--json`` to a command."""
    command.add_argument("--json", action="store_true", help="print JSON, not a table")


def print_json(data: Any) -> None:
    """Print data as JSON; paths become strings, NaN is an error."""
    print(json.dumps(data, indent=2, default=str, allow_nan=False))


def force_option(command: argparse.ArgumentParser) -> None:
    """Add ``--force`` to a command that writes a file."""
    command.add_argument("--force", action="store_true", help="replace an existing file")


def file_to_write(name: str, force: bool) -> Path:
    """Check a file that a command is about to write, before it works for minutes.

    Raises
    ------
    LlamaPynqError
        If it is a folder, lies in no folder, or exists and `force` is not given.
    """
    path = Path(name)
    if path.is_dir():
        raise LlamaPynqError(f"{path} is a folder: give the name of the file to write")
    if os.path.lexists(path) and not force:
        raise LlamaPynqError(f"{path} exists: choose another name, or replace it with --force")
    if not path.parent.is_dir():
        raise LlamaPynqError(f"there is no folder {path.parent} for {path.name}")
    return path
