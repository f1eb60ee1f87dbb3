"""Open a checkpoint file."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import BinaryIO

from llama_pynq.checkpoint.llama2c import Checkpoint, read_llama2c
from llama_pynq.errors import CheckpointError
from llama_pynq.utils.files import user_path
from llama_pynq.utils.foreign import LLAMA2C_EXPORT


class _CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """A missing file: caught as CheckpointError and as FileNotFoundError."""


def load_checkpoint(
    path: str | PathLike[str], rope_theta: float = 10000.0, reading: str | None = None
) -> Checkpoint:
    """Open a llama2.c checkpoint and check its header and size.

    Parameters
    ----------
    path : path-like
        A ``.bin`` file written by llama2.c's export.py, of version 0, 1 or 2.
    rope_theta : float
        Base of the rotary embedding, which the file does not hold.
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
    file = _open(path)
    try:
        return read_llama2c(path, file, rope_theta, reading)
    except BaseException:
        file.close()
        raise


def _open(path: Path) -> BinaryIO:
    if path.is_dir():
        raise CheckpointError(
            f"{path} is a folder, not a checkpoint: give the path of the .bin file in it, "
            f"or export a Hugging Face folder {LLAMA2C_EXPORT} --hf {path}"
        )
    try:
        return open(path, "rb", buffering=0)
    except FileNotFoundError as error:
        raise _CheckpointNotFoundError(
            f"there is no file {path}: check the path (it is relative to {Path.cwd()}) "
            f"or download the checkpoint first"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be opened: {error.strerror}") from error
