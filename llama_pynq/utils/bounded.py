"""Read files that others wrote within bounds: no FIFO is waited for, none is read without end."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


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
