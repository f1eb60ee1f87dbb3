"""The package's notebooks, and copies of them to work on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from llama_pynq.errors import LlamaPynqError
from llama_pynq.utils.files import package_folders, user_path, write_atomically, write_new


@dataclass(frozen=True)
class Copy:
    """Result of copying one notebook.

    Attributes
    ----------
    path : Path
        The copy.
    state : {"copied", "kept", "unchanged", "replaced"}
        "kept": a different file of that name exists and stays; "unchanged": an identical one does.
    backup : Path or None
        Copy of the file that was replaced.
    """

    path: Path
    state: str
    backup: Path | None = None


def notebook_sources() -> list[Path]:
    """Return the package's own notebooks, in the order of the lessons."""
    folders = package_folders("notebooks")
    found = {path.name: path for folder in folders for path in _in(Path(folder))}
    return [found[name] for name in sorted(found)]


def _in(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*.ipynb") if not path.name.startswith(".")]


def copy_notebooks(
    folder: str | os.PathLike[str], *, reset: bool = False, now: datetime | None = None
) -> list[Copy]:
    """Copy the notebooks to a folder; existing files are never lost.

    Parameters
    ----------
    folder : str or path
        Created if missing; ``~`` is the home folder.
    reset : bool
        Replace changed notebooks, each after a backup of it beside it:
        ``01_prompting.backup-20261123-104500.ipynb``. By default, changed notebooks are kept.
    now : datetime, optional
        Time in the backups' names; default: the current time.

    Returns
    -------
    list of Copy
        One for each of the package's notebooks.

    Raises
    ------
    LlamaPynqError
        If `folder` is a file, or is not writable.
    """
    folder = user_path(folder)
    if folder.exists() and not folder.is_dir():
        raise LlamaPynqError(f"{folder} is a file: give a folder for the notebooks")
    stamp = f"{now or datetime.now():%Y%m%d-%H%M%S}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [_copy(source, folder / source.name, stamp if reset else None)
                for source in notebook_sources()]  # fmt: skip
    except OSError as error:
        raise LlamaPynqError(
            f"the notebooks cannot be copied to {folder} ({error.strerror or error}): give a "
            "folder that you may write to"
        ) from error


def _copy(source: Path, target: Path, stamp: str | None) -> Copy:
    data = source.read_bytes()
    try:
        write_new(target, data)
        return Copy(target, "copied")
    except FileExistsError:
        pass
    if not target.is_file():
        return Copy(target, "kept")  # a folder, or a broken link
    before = target.read_bytes()
    if before == data:
        return Copy(target, "unchanged")
    if stamp is None:
        return Copy(target, "kept")
    backup = _write_backup(target, before, stamp)
    write_atomically(target, data)
    return Copy(target, "replaced", backup)


def _write_backup(path: Path, data: bytes, stamp: str) -> Path:
    """Write a backup beside `path`, under a name that is not in use."""
    number = 1
    while True:
        more = f"-{number}" if number > 1 else ""
        backup = path.with_name(f"{path.stem}.backup-{stamp}{more}{path.suffix}")
        try:
            write_new(backup, data)
            return backup
        except FileExistsError:
            number += 1
