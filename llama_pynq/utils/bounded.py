"""Read files that others wrote within bounds: no FIFO is waited for, no JSON is taken on trust."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any, NoReturn


def read_file(path: Path, most_bytes: int) -> bytes:
    """Read a whole regular file; a link to one counts as one.

    Parameters
    ----------
    path : Path
    most_bytes : int
        Largest size that a file of its kind has.

    Raises
    ------
    OSError
        If it cannot be read, is no regular file (a folder, a FIFO, a device), or is larger.
    """
    flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    handle = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    try:
        found = os.fstat(handle)
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        with open(handle, "rb", closefd=False) as file:
            data = file.read(most_bytes + 1)
    finally:
        os.close(handle)
    if len(data) > most_bytes:
        size = max(found.st_size, len(data))
        raise OSError(errno.EFBIG, f"it has {size} bytes, more than {most_bytes}", str(path))
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it has the key {twice!r} twice")
    return values


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"it has the number {name}, which JSON does not know")


def parse_json(data: bytes) -> Any:
    """Parse JSON strictly: UTF-8, finite numbers, each key once, no lone surrogates.

    Parameters
    ----------
    data : bytes
        Bounded by the caller, as by `read_file`.

    Raises
    ------
    ValueError
        If it is anything else, or nested too deeply; the message completes "the file is damaged:".
    """
    try:
        values = json.loads(
            data.decode("utf-8-sig"), object_pairs_hook=_unique, parse_constant=_no_constant
        )
        json.dumps(values, ensure_ascii=False, allow_nan=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from None
    except UnicodeEncodeError:
        raise ValueError("it has a lone surrogate, which is no character") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON ({error})") from None
    return values
