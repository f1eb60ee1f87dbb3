"""Which emulated overlays are trusted: their files hold native code, and to load one is to run it.

A file is known by the SHA-256 of its bytes. Trusted are

- what the installed wheel's RECORD lists, or in a checkout the RECORD that ``setup.py`` writes
  beside the overlays that it builds: the package's folder is as trusted as its code;
- what this process built, and what this user's builds recorded;
- what ``llama-pynq overlay add FILE --trust`` took.

The last two are files ``data_folder()/trusted/<sha256>``, a JSON object with ``name``, ``when`` and
``why``. The folder counts only if it is this user's and nobody else may look into it.

This module needs only the standard library: ``setup.py`` imports it.
"""

from __future__ import annotations

import base64
import csv
import datetime
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from llama_pynq.errors import InstallError, LlamaPynqError, OverlayMismatch
from llama_pynq.utils import strict_json
from llama_pynq.utils.bounded import read_file
from llama_pynq.utils.files import data_folder, package_folders, write_atomically

MANIFEST = "RECORD"
"""Name of the list that ``setup.py`` writes beside the overlays of a checkout."""

_BUILT_HERE: set[str] = set()  # by this process, wherever the records of trust are
_PREFIX = "llama_pynq/overlay/"
_MOST_LIST_BYTES, _MOST_RECORD_BYTES = 16 << 20, 1 << 16


def digest_of(data: bytes) -> str:
    """The name by which a file is trusted: SHA-256 of its bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def is_trusted(digest: str) -> bool:
    """Whether the file of this SHA-256 may run."""
    return digest in _BUILT_HERE or _is_recorded(digest) or digest in _listed()


def check(digest: str, source: object) -> None:
    """Refuse an emulated overlay that nobody has trusted.

    Parameters
    ----------
    digest : str
        SHA-256 of the bytes that are to be loaded.
    source : Path or str
        Name of the file, for the message.

    Raises
    ------
    OverlayMismatch
        If it is not trusted; the message says what that means, and how to trust it.
    """
    if not is_trusted(digest):
        raise OverlayMismatch(untrusted(source))


def untrusted(source: object) -> str:
    """Why an emulated overlay is refused, and how to trust it."""
    return (
        f"{source} is an emulated overlay, which contains native code: loading it runs that code "
        "with all your rights. It does not come with this llama_pynq, no build of yours recorded "
        "it, and you have not trusted it. If you know whose it is, trust it this once: "
        "EmulatedDevice(trust=True), or --trust; or for good: llama-pynq overlay add "
        f"{source} --trust"
    )


# ---- the package's own ------------------------------------------------------------------


def _listed() -> set[str]:
    """SHA-256 of the overlays that the wheel's or the checkout's list names."""
    root = Path(__file__).parents[2]
    found: set[str] = set()
    for distribution in metadata.distributions(name="llama_pynq", path=[str(root)]):
        found.update(_hashes(distribution.read_text("RECORD") or "", _PREFIX))
    try:
        folders = package_folders("overlay")
    except LlamaPynqError:
        folders = []
    for folder in folders:
        try:
            data = read_file(Path(folder) / "llama" / MANIFEST, _MOST_LIST_BYTES)
        except OSError:
            continue
        found.update(_hashes(data.decode("utf-8", "replace"), ""))
    return found


def _hashes(text: str, prefix: str) -> Iterator[str]:
    """SHA-256 of the files under `prefix`, as a RECORD has them: Base64 without padding."""
    for row in csv.reader(text.splitlines()):
        if len(row) == 3 and row[0].startswith(prefix) and row[1].startswith("sha256="):
            coded = row[1].removeprefix("sha256=")
            try:
                yield base64.urlsafe_b64decode(coded + "=" * (-len(coded) % 4)).hex()
            except ValueError:
                continue


def write_manifest(folder: Path) -> None:
    """List the overlays in `folder`, which ``setup.py`` has just built, in a RECORD beside them.

    Parameters
    ----------
    folder : Path
    """
    lines = []
    for path in sorted(folder.glob("llama.*")):
        data = path.read_bytes()
        coded = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
        lines.append(f"{path.name},sha256={coded},{len(data)}\n")
    write_atomically(folder / MANIFEST, "".join(lines).encode())


# ---- the user's records -----------------------------------------------------------------


def trusted_folder() -> Path:
    """Folder of the records of trust; deleting a file there withdraws the trust."""
    return data_folder() / "trusted"


def _is_recorded(digest: str) -> bool:
    try:
        folder = trusted_folder()
        if _fault(folder.lstat(), 0o077) is not None:
            return False
        path = folder / digest
        if _fault(path.lstat(), 0o022) is not None:
            return False
        return isinstance(strict_json.parse(read_file(path, _MOST_RECORD_BYTES)), dict)
    except (OSError, ValueError, LlamaPynqError):
        return False


def _fault(found: os.stat_result, forbidden: int) -> str | None:
    """Why a file or folder is not this user's alone; None if it is."""
    if stat.S_ISLNK(found.st_mode):
        return "it is a link"
    if not hasattr(os, "geteuid"):
        return None
    if found.st_uid != os.geteuid():
        return f"it belongs to another user (uid {found.st_uid})"
    if found.st_mode & forbidden:
        return f"its mode is {stat.S_IMODE(found.st_mode):o}, which lets others in"
    return None


def record(digest: str, name: str, why: str) -> Path:
    """Trust a file from now on.

    Parameters
    ----------
    digest : str
        SHA-256 of the file.
    name : str
        Name of the file, for people.
    why : str
        What trusted it, for people.

    Returns
    -------
    Path
        The record.

    Raises
    ------
    InstallError
        If the folder of the records is not this user's alone, or cannot be written.
    """
    folder = trusted_folder()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        if (fault := _fault(folder.lstat(), 0o077)) is not None:
            raise InstallError(
                f"no record of trust can be kept in {folder}: {fault}. Make it yours alone (chmod "
                "700), or set LLAMA_PYNQ_OVERLAYS to a folder of your own"
            )
        when = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        text = json.dumps({"name": name, "when": when, "why": why}, indent=2) + "\n"
        write_atomically(folder / digest, text.encode())
    except OSError as error:
        raise InstallError(
            f"no record of trust can be kept in {folder} ({error.strerror or error}): set "
            "LLAMA_PYNQ_OVERLAYS to a folder that you may write to"
        ) from error
    return folder / digest


def record_build(digest: str, path: Path) -> str | None:
    """Trust what this process has just built.

    Returns
    -------
    str or None
        Why other processes will not trust it; None if they will.
    """
    _BUILT_HERE.add(digest)
    try:
        record(digest, str(path.absolute()), "built by llama_pynq.emulation.build")
    except LlamaPynqError as error:
        return str(error)
    return None


# ---- where the code lies ----------------------------------------------------------------


def only_mine(folder: Path) -> bool:
    """Whether only this user, or root, can change what a path below `folder` leads to.

    Parameters
    ----------
    folder : Path
        Exists.
    """
    if not hasattr(os, "geteuid"):
        return True
    folder = folder.resolve()
    if _fault(folder.stat(), 0o022) is not None:
        return False
    for parent in folder.parents:
        found = parent.stat()
        if found.st_uid not in (0, os.geteuid()):
            return False
        if found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX:
            return False
    return True
