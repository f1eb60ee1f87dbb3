"""Temporary files and folders that a killed process leaves, and that the next start clears.

A temporary's name carries its host and process: ``.{name}.{host}-{pid}-{random}``, host and random
in hexadecimal. Whoever makes one first clears those of dead processes out of the same folder.
Standard library only: ``setup.py`` imports this module in an empty build environment.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path

MAX_AGE_S = 86400.0
"""A temporary is left over once nothing was written to it for a day, whoever made it."""

_PATTERN = re.compile(r"\..+\.([0-9a-f]{8})-([1-9][0-9]{0,9})-[0-9a-f]{16}", re.DOTALL)
_NAME_BYTES = 200  # of the file's own name in a temporary's: file systems allow 255 in all
# Windows
_STILL_ACTIVE, _QUERY_LIMITED_INFORMATION, _ACCESS_DENIED = 259, 0x1000, 5

# Names that this process is using. Others with its pid are an earlier process's, which had the
# same number: in a container, that is the rule.
_in_use: set[str] = set()


@functools.cache
def _host() -> str:
    """What a process's number is unique in: containers of one name do not see each other's."""
    namespace = ""
    with contextlib.suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(f"{platform.node()} {namespace}".encode()).hexdigest()[:8]


def _alive(pid: int) -> bool:
    """Whether a process of this host runs, as far as can be told."""
    if os.name == "nt":  # os.kill would end it
        import ctypes

        kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined]
        kernel32.OpenProcess.restype = ctypes.c_void_p
        handle = ctypes.c_void_p(kernel32.OpenProcess(_QUERY_LIMITED_INFORMATION, False, pid))
        if not handle:  # another user's process, or none
            error: int = ctypes.get_last_error()  # type: ignore[attr-defined]
            return error == _ACCESS_DENIED
        code = ctypes.c_ulong()
        known = kernel32.GetExitCodeProcess(handle, ctypes.byref(code))
        kernel32.CloseHandle(handle)
        return not known or code.value == _STILL_ACTIVE
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's process
        return True
    return True


def _left_over(path: str, name: str, now: float) -> bool:
    found = _PATTERN.fullmatch(name)
    if found is None or name in _in_use:
        return False
    host, pid = found.group(1), int(found.group(2))
    if host == _host() and (pid == os.getpid() or not _alive(pid)):
        return True
    return now - os.lstat(path).st_mtime > MAX_AGE_S


def clear_left_over(folder: Path) -> None:
    """Remove temporaries of dead processes, and those older than `MAX_AGE_S`; errors are ignored.

    Parameters
    ----------
    folder : Path
        Only names of exactly this module's pattern are removed from it.
    """
    now = time.time()
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if not entry.name.startswith(".") or not _left_over(entry.path, entry.name, now):
                    continue
                mode = os.lstat(entry.path).st_mode
                if stat.S_ISREG(mode):
                    os.unlink(entry.path)
                elif stat.S_ISDIR(mode):
                    shutil.rmtree(entry.path, ignore_errors=True)


@contextlib.contextmanager
def temporary_path(folder: Path, name: str) -> Iterator[str]:
    """Name a temporary file or folder, and remove it, if it is there, when the block ends.

    Left-over temporaries in the folder are cleared first.

    Parameters
    ----------
    folder : Path
    name : str
        Of the file that it is for.

    Yields
    ------
    str
        A path at which nothing exists yet.
    """
    clear_left_over(folder)
    short = os.fsencode(name)[:_NAME_BYTES].decode("utf-8", "ignore")
    unique = f".{short}.{_host()}-{os.getpid()}-{secrets.token_hex(8)}"
    path = os.path.join(folder, unique)
    # Removed twice: an interrupt at any one place, the first removal included, leaves nothing.
    try:
        try:
            _in_use.add(unique)
            yield path
        finally:
            _remove(path)
    finally:
        _remove(path)


@contextlib.contextmanager
def temporary_folder(parent: Path, name: str) -> Iterator[Path]:
    """Make a folder that only this user may enter, and remove it when the block ends.

    Parameters
    ----------
    parent, name
        See `temporary_path`.
    """
    with temporary_path(parent, name) as path:
        os.mkdir(path, 0o700)
        yield Path(path)


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):  # what stays is cleared by the next start
        if os.path.isdir(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.unlink(path)
    _in_use.discard(os.path.basename(path))
