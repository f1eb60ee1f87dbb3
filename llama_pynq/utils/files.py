"""Cache and data folders, folders of the package, atomic writes, hashes of files."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import BinaryIO

from llama_pynq.errors import LlamaPynqError
from llama_pynq.utils.temporary import temporary_path

BOARD_MARKS = (
    Path("/proc/device-tree/chosen/pynq_board"),
    Path("/sys/class/fpga_manager/fpga0/firmware"),
)
"""Files whose presence tells PYNQ that it runs on a board."""

_HASH_BLOCK = 1 << 20


def user_path(path: str | os.PathLike[str]) -> Path:
    """Return a path as a user writes it: ``~`` and ``~name`` are home folders.

    Every path that a user gives, as an argument or in the environment, goes through here.

    Raises
    ------
    LlamaPynqError
        If there is no such home folder, or the path holds a NUL.
    """
    if not isinstance(path, (str, os.PathLike)) or isinstance(os.fspath(path), bytes):
        raise LlamaPynqError(f"{path!r} is no path: give a text, or a pathlib.Path")
    try:
        expanded = Path(path).expanduser()
    except RuntimeError:
        user = Path(path).parts[0]
        raise LlamaPynqError(
            f"{path}: this computer knows no home folder {user}; write it without ~"
        ) from None
    if "\0" in str(expanded):
        raise LlamaPynqError(f"{str(path)!r} holds a NUL character, which no path may")
    return expanded


def _folder(variable: str, xdg: str, default: str) -> Path:
    """Folder that `variable` names, else ``llama_pynq`` in the user's XDG or app data folder."""
    if folder := os.environ.get(variable):
        return user_path(folder)
    base = os.environ.get("LOCALAPPDATA" if os.name == "nt" else xdg)
    if base:
        return user_path(base) / "llama_pynq"
    try:
        home = Path.home()
    except RuntimeError:
        raise LlamaPynqError(
            f"this account has no home folder: set {variable} to a folder that it may write"
        ) from None
    return home / ("AppData/Local" if os.name == "nt" else default) / "llama_pynq"


def cache_folder() -> Path:
    """``$LLAMA_PYNQ_CACHE``, else ``llama_pynq`` in the user's cache folder."""
    return _folder("LLAMA_PYNQ_CACHE", "XDG_CACHE_HOME", ".cache")


def data_folder() -> Path:
    """``$LLAMA_PYNQ_OVERLAYS``, else ``llama_pynq`` in the user's data folder.

    For files that must survive a cleared cache: an overlay takes hours to build.
    """
    return _folder("LLAMA_PYNQ_OVERLAYS", "XDG_DATA_HOME", ".local/share")


def _new_file(path: str) -> BinaryIO:
    """Make a file that nobody else may read yet."""
    return open(path, "x+b", opener=lambda name, flags: os.open(name, flags, 0o600))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces `path` when the block ends without an error.

    Until then, and after an error, `path` is unchanged. An interrupt leaves the old file or the
    new one, and no other.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_path(path.parent, path.name) as temporary:
        with _new_file(temporary) as file:
            yield file
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file atomically: readers see the whole file or none."""
    with replacing(path) as file:
        file.write(data)


def write_new(path: Path, data: bytes) -> None:
    """Write a new file atomically, never replacing an existing one.

    Raises
    ------
    FileExistsError
        If `path` exists; it is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_path(path.parent, path.name) as temporary:
        with _new_file(temporary) as file:
            file.write(data)
        os.chmod(temporary, 0o644)
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise
        except OSError:  # no hard links on this file system, such as a memory card's
            if os.path.lexists(path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
            os.rename(temporary, path)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def checkout_folder() -> Path | None:
    """The checkout that this package runs from; None for an installed package."""
    folder = Path(__file__).parents[2]
    return folder if (folder / "hls_src" / "config.h").exists() else None


def package_folders(name: str) -> list[str]:
    """Locate a folder of the checkout that is installed as the subpackage ``llama_pynq.<name>``.

    Python started inside the checkout imports llama_pynq/ from there, whatever is installed; then
    the folder is the checkout's own.

    Parameters
    ----------
    name : str
        ``hls_src``, ``notebooks`` or ``overlay``.

    Raises
    ------
    LlamaPynqError
        If there is no such folder: the installation is damaged.
    """
    try:
        return list(import_module(f"llama_pynq.{name}").__path__)
    except ImportError as error:
        checkout = checkout_folder()
        if checkout is not None and (checkout / name).is_dir():
            return [str(checkout / name)]
        raise LlamaPynqError(
            f"llama_pynq was imported from {Path(__file__).parents[1]}, which lacks {name}/: the "
            "installation is damaged. Install it again: pip install --force-reinstall ."
        ) from error
