"""Open a checkpoint file."""

from __future__ import annotations

import os
from os import PathLike
from pathlib import Path
from typing import BinaryIO

from llama_pynq.checkpoint.base import Checkpoint
from llama_pynq.checkpoint.gguf import MAGIC
from llama_pynq.checkpoint.gguf_model import read_gguf
from llama_pynq.checkpoint.huggingface import read_folder
from llama_pynq.checkpoint.llama2c import read_llama2c
from llama_pynq.errors import CheckpointError
from llama_pynq.utils.files import user_path


class _CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """A missing file: caught as CheckpointError and as FileNotFoundError."""


def load_checkpoint(
    path: str | PathLike[str], rope_theta: float | None = None, reading: str | None = None
) -> Checkpoint:
    """Open a checkpoint and check its header and size; its content tells the format.

    Parameters
    ----------
    path : path-like
        A ``.bin`` file written by llama2.c's export.py, of version 0, 1 or 2; a GGUF file of the
        architecture llama; or a Hugging Face folder of a Llama or Mistral.
    rope_theta : float, optional
        Base of the rotary embedding. Default: the model's; 10000 for a llama2.c file, which does
        not hold it.
    reading : {"export"}, optional
        How to read a version 2 file whose hidden_dim is no multiple of its group size, which
        llama2.c's export.py and runq.c read differently: "export" takes export.py's order, in
        which groups go on from one row to the next. By default such a file is refused.

    Returns
    -------
    Checkpoint
        Weights are read, and checked for NaN, on demand by :meth:`Checkpoint.tensor`.

    Raises
    ------
    CheckpointError
        If the file is missing (then also a FileNotFoundError), foreign, truncated,
        over-long, or ambiguous.
    """
    path = user_path(path)
    if os.path.isdir(path):  # unlike Path's, no error where it may not look
        _refuse_reading(path, reading)
        return read_folder(path, rope_theta)
    file = _open(path)
    try:
        if file.read(len(MAGIC)) == MAGIC:
            _refuse_reading(path, reading)
            return read_gguf(path, file, rope_theta)
        file.seek(0)
        return read_llama2c(path, file, 10000.0 if rope_theta is None else rope_theta, reading)
    except BaseException:
        file.close()
        raise


def _refuse_reading(path: Path, reading: str | None) -> None:
    if reading is not None:
        raise CheckpointError(
            f"reading is {reading!r}, and {path} is no llama2.c file: leave it out"
        )


def _open(path: Path) -> BinaryIO:
    try:
        return open(path, "rb", buffering=0)
    except FileNotFoundError as error:
        raise _CheckpointNotFoundError(
            f"there is no file {path}: check the path (it is relative to {Path.cwd()}) "
            f"or download the checkpoint first"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be opened: {error.strerror}") from error
