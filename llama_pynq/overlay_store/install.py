"""Fetch, add and remove overlays in the user's folder.

Only one process at a time changes a board's overlays. Readers see a complete folder or none.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urljoin

from llama_pynq.boards import board_key, boards
from llama_pynq.device import bitfiles
from llama_pynq.emulation import container, overlay_file, trust
from llama_pynq.errors import InstallError, LlamaPynqError, OverlayMismatch
from llama_pynq.kernel.abi import ABI_VERSION
from llama_pynq.overlay_store.metadata import OverlayMetadata, read_metadata
from llama_pynq.overlay_store.record import MOST_BYTES, RECORD_NAME, OverlayFile, OverlayRecord
from llama_pynq.overlay_store.search import (
    ADDED,
    INSTALLED,
    PACKAGE,
    FoundOverlay,
    how_to_get,
    overlays_of,
    user_folder,
)
from llama_pynq.utils.download import Progress, fetch, is_fetchable, read_small
from llama_pynq.utils.files import data_folder, sha256_of, user_path
from llama_pynq.utils.lock import FileLock

_UNKNOWN = "unknown"
_UTF8_MARK = b"\xef\xbb\xbf"

FileProgress = Callable[[str], Progress]
"""Called with a file's name; returns the progress callback for that file."""


@dataclass(frozen=True)
class Done:
    """Outcome of `install` and `add`.

    Attributes
    ----------
    overlay : FoundOverlay
    changed : bool
        False if the same overlay was there already, undamaged.
    backup : Path or None
        Folder that keeps the replaced overlay.
    """

    overlay: FoundOverlay
    changed: bool
    backup: Path | None = None


class _BoardLock(FileLock):
    def __init__(self, board: str) -> None:
        self.board = board
        super().__init__(data_folder() / f"{board}.lock")

    def _busy(self, pid: int | None, program: str) -> LlamaPynqError:
        return InstallError(
            f"another process ({'unknown' if pid is None else pid}) is at work on the overlays of "
            f"{self.board}: wait until it has ended, then give the command again"
        )

    def _unusable(self, why: str, path: Path) -> LlamaPynqError:
        if path == self.path:
            return InstallError(
                f"the overlays of {self.board} cannot be changed: {path} is unusable, {why}. "
                "Nothing was changed. Remove it, or set LLAMA_PYNQ_OVERLAYS to a folder of your own"
            )
        return _not_written(why)


def _not_written(why: str) -> InstallError:
    return InstallError(
        f"{data_folder()} cannot be written ({why}): set LLAMA_PYNQ_OVERLAYS to a folder that you "
        "may write to, or make room there"
    )


@contextlib.contextmanager
def _at_work_on(board: str) -> Iterator[None]:
    """Hold the board's lock; raise InstallError if the folder cannot be written."""
    try:
        with _BoardLock(board):
            for origin in (ADDED, INSTALLED):
                for left in user_folder(origin, board).parent.glob(f".{board}.*"):
                    shutil.rmtree(left)  # left by a process that was killed
            yield
    except OSError as error:
        raise _not_written(error.strerror or str(error)) from error


@contextlib.contextmanager
def _replacing_folder(target: Path, backup: Path | None = None) -> Iterator[Path]:
    """Yield a new folder that replaces `target` when the block ends without an error.

    Replacing takes two renames; a reader between them finds no overlay. The old folder moves to
    `backup`, or is deleted.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    new, old = staging / "new", backup or staging / "old"
    try:
        new.mkdir()
        yield new
        try:
            if os.path.lexists(target):
                os.rename(target, old)
            os.rename(new, target)
        except BaseException:
            if old.exists() and not target.exists():
                os.rename(old, target)
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _same(board: str, origin: str, record: OverlayRecord) -> FoundOverlay | None:
    """The board's overlay of that origin if it is undamaged and has the files of `record`."""
    for overlay in overlays_of(board):
        if overlay.origin == origin and overlay.record is not None and overlay.state == "ready":
            hashes = [{f.name: f.sha256 for f in r.files} for r in (overlay.record, record)]
            with contextlib.suppress(OverlayMismatch):
                overlay.check(metadata=False)
                if hashes[0] == hashes[1]:
                    return overlay
    return None


def _of(board: str, origin: str) -> FoundOverlay:
    return next(o for o in overlays_of(board) if o.origin == origin)


def _check_version(record: OverlayRecord, where: object) -> None:
    if record.abi not in (None, ABI_VERSION):
        raise OverlayMismatch(
            f"{where} is of an overlay that speaks version {record.abi} of the kernel's contract, "
            f"this llama_pynq version {ABI_VERSION}: take the overlay and the package of one "
            "release"
        )


# ---- install --------------------------------------------------------------------------


def install(board: str, source: str | None, progress: FileProgress) -> Done:
    """Fetch the overlay of a board.

    Parameters
    ----------
    board : str
    source : str, optional
        An ``overlay.json``, or its folder, or its URL; default: the link that comes with
        llama_pynq. Files without a URL of their own must lie beside it.
    progress : callable

    Raises
    ------
    InstallError
        If there is nothing to fetch, or it cannot be fetched.
    OverlayMismatch
        If the fetched overlay is not for this board, or not of this version.
    """
    board = board_key(board)
    record, where = _packaged(board) if source is None else _record_from(source)
    if record.board != board:
        raise OverlayMismatch(f"{where} is of an overlay of {record.board}, not of {board}")
    _check_version(record, where)
    with _at_work_on(board):
        if (same := _same(board, INSTALLED, record)) is not None:
            return Done(same, False)
        folder = data_folder() / "parts"
        folder.mkdir(parents=True, exist_ok=True)
        parts = {f: folder / f"{board}-{f.sha256}" for f in record.files}
        for file, part in parts.items():
            assert file.url is not None
            fetch(file.url, part, file.sha256, file.n_bytes, progress(file.name))
        with _replacing_folder(user_folder(INSTALLED, board)) as staging:
            for file, part in parts.items():
                os.replace(part, staging / file.name)
            read_metadata(staging / record.main.name)
            record.write(staging)
        for left in folder.glob(f"{board}-*"):
            left.unlink()  # left from a file of another link
        return Done(_of(board, INSTALLED), True)


def _packaged(board: str) -> tuple[OverlayRecord, Path]:
    for overlay in overlays_of(board):
        if overlay.origin == PACKAGE and overlay.record is not None:
            if overlay.is_link:
                return overlay.record, overlay.folder / RECORD_NAME
            raise InstallError(f"{overlay.where} comes with llama_pynq: there is nothing to fetch")
    raise InstallError(f"there is no link to an overlay of {board}. {how_to_get(board)}")


def _record_from(source: str) -> tuple[OverlayRecord, str]:
    """Read the record that the user names; every file in the result has a URL."""
    if "://" in source:
        if not is_fetchable(source):
            raise InstallError(f"{source} is not https: it is not trusted")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / RECORD_NAME
            data, base = read_small(source, MOST_BYTES)
            if data.lstrip(_UTF8_MARK).lstrip().startswith(b"<"):
                raise InstallError(
                    f"{source} is a web page, no record: give the URL of {RECORD_NAME} itself"
                )
            path.write_bytes(data)
            try:
                record = OverlayRecord.read(path)
            except OverlayMismatch as error:
                raise OverlayMismatch(str(error).replace(str(path), source)) from error
    else:
        path = user_path(source)
        if path.is_dir():
            path = path.resolve() / RECORD_NAME
        if not path.is_file():
            raise InstallError(f"there is no {path}: give an {RECORD_NAME}, or the URL of one")
        if path.suffix in (".bit", ".hwh", ".xclbin"):
            raise InstallError(
                f"{path} is no {RECORD_NAME}: name the record or its folder; a file without a "
                "record: llama-pynq overlay add"
            )
        record, base = OverlayRecord.read(path), path.resolve().as_uri()
        for file in record.files:
            beside = path.parent / file.name
            if file.url is None and not beside.is_file():
                raise InstallError(
                    f"there is no {beside}: it is missing beside the record: copy the whole folder"
                )
        source = str(path)
    files = tuple(replace(f, url=f.url or urljoin(base, f.name)) for f in record.files)
    return replace(record, files=files), source


# ---- add ------------------------------------------------------------------------------


def add(path: Path, board: str | None, force: bool, board_found: Callable[[], str | None]) -> Done:
    """Register the user's own build: copy it to the folder of added overlays.

    Parameters
    ----------
    path : Path
        A .bit with its .hwh beside it, an .xclbin, or the folder of a build, which has a record.
    board : str, optional
        Default: the board of the record beside the file, else of the file's metadata, else of the
        device found.
    force : bool
        Replace an overlay that was added before; the old one is kept as a backup.
    board_found : callable
        Returns the board of the device found; called if nothing else names the board.

    Raises
    ------
    InstallError
        If the build's board is unknown, or an overlay was added for it already.
    OverlayMismatch
        If the build is not for this board, or not of this version.
    """
    if board is not None:
        board = board_key(board)
    path, record = _build_at(user_path(path))
    metadata = read_metadata(path)
    if record is None:
        record = _make_record(path, metadata, board, board_found)
    elif board not in (None, record.board):
        raise OverlayMismatch(
            f"{path.parent / RECORD_NAME} says that {path.name} was built for {record.board}, not "
            f"for {board}: leave out --board, or build it for {board}"
        )
    if metadata.boards and record.board not in metadata.boards:
        what = metadata.platform or metadata.part
        raise OverlayMismatch(
            f"{path} was built for {what}, which is {' or '.join(metadata.boards)}, not "
            f"{record.board}"
        )
    with _at_work_on(record.board):
        return _copy(path.parent, record, force)


def is_emulated_build(path: Path) -> bool:
    """Whether a file is an emulated overlay, or the .hwh beside one.

    Parameters
    ----------
    path : Path
    """
    path = _loaded(path)
    return path.is_file() and container.MAGIC in bitfiles.read_overlay(path)


def trust_emulated(path: Path, trusted: bool) -> Path:
    """Let this user's emulated devices load a file from now on; return the record of that.

    Parameters
    ----------
    path : Path
        An emulated overlay.
    trusted : bool
        Whether the user said that its code may run.

    Raises
    ------
    OverlayMismatch
        If the user did not, or the file is damaged.
    InstallError
        If the record cannot be written.
    """
    path = _loaded(path)
    _, digest = overlay_file.read(path)
    if not trusted:
        raise OverlayMismatch(trust.untrusted(path))
    return trust.record(digest, str(path.absolute()), "llama-pynq overlay add --trust")


def _loaded(path: Path) -> Path:
    """The file that is loaded, where the one beside it may be given."""
    path = user_path(path)
    return path.with_suffix(".bit") if path.suffix == ".hwh" else path


def _build_at(path: Path) -> tuple[Path, OverlayRecord | None]:
    """The file to load, and the record beside it, whose files are checked."""
    if path.is_dir():
        path = path / RECORD_NAME
        if not path.exists():
            raise InstallError(f"there is no {path}: give the .bit or .xclbin file itself")
    path = _loaded(path)
    if not path.is_file():
        raise InstallError(f"there is no file {path}: give a .bit or .xclbin file")
    beside = path.parent / RECORD_NAME
    if not beside.exists():
        return path, None
    record = OverlayRecord.read(beside)
    main = path.parent / record.main.name
    if path not in (beside, main):
        return path, None  # the record is of another file
    _check_version(record, beside)
    for file in record.files:
        found = path.parent / file.name
        if not found.is_file():
            raise OverlayMismatch(f"{found} is missing, which {beside} names")
        if sha256_of(found) != file.sha256:
            raise OverlayMismatch(
                f"{found} is not the file that {beside} was written for, by its sha256: build "
                "again, or delete the record if you are sure of the file"
            )
    return main, record


def _make_record(
    path: Path, metadata: OverlayMetadata, board: str | None,
    board_found: Callable[[], str | None],
) -> OverlayRecord:  # fmt: skip
    """Make a record from a file's metadata; what the metadata lacks stays unknown."""
    if board is None:
        board = metadata.boards[0] if len(metadata.boards) == 1 else board_found()
    if board is None:
        raise InstallError(
            f"{path} does not say for which board it is, and no board is found here: add --board, "
            f"one of {', '.join(metadata.boards or boards())}"
        )
    paths = [path] if path.suffix == ".xclbin" else [path, path.with_suffix(".hwh")]
    written = datetime.date.fromtimestamp(path.stat().st_mtime).isoformat()
    return OverlayRecord(
        board=board,
        abi=None,
        clock_mhz=metadata.clock_mhz,
        files=tuple(OverlayFile.of(p) for p in paths),
        tools=metadata.tools,
        built=metadata.built or written,
        built_by=_UNKNOWN,
        source=_UNKNOWN,
        platform=metadata.platform,
    )


def _copy(folder: Path, record: OverlayRecord, force: bool) -> Done:
    board, target = record.board, user_folder(ADDED, record.board)
    if (same := _same(board, ADDED, record)) is not None:
        return Done(same, False)
    backup = None
    if os.path.lexists(target):
        if not force:
            raise InstallError(
                f"there is an overlay of yours for {board} already, {target}: replace it with "
                "--force, which keeps it as a backup"
            )
        stamp = f"{datetime.datetime.now():%Y%m%d-%H%M%S}"
        backup = _free_name(target.with_name(f"{board}.backup-{stamp}"))
    with _replacing_folder(target, backup) as staging:
        for file in record.files:
            shutil.copyfile(folder / file.name, staging / file.name)
            if sha256_of(staging / file.name) != file.sha256:
                raise InstallError(f"{folder / file.name} changed while it was copied: try again")
        # The files are here now; URLs would mark the record as a link to fetch.
        files = tuple(replace(file, url=None) for file in record.files)
        replace(record, files=files).write(staging)
    return Done(_of(board, ADDED), True, backup)


def _free_name(path: Path) -> Path:
    number, free = 1, path
    while os.path.lexists(free):
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def backups_of(board: str) -> list[Path]:
    """Folders in which `add` kept replaced overlays, the newest last."""
    place = user_folder(ADDED, board)
    return sorted(place.parent.glob(f"{place.name}.backup-*"), key=lambda path: path.name)


# ---- remove ---------------------------------------------------------------------------


def remove(board: str) -> FoundOverlay:
    """Delete the first overlay of a board that is in the user's folder, and return it.

    Raises
    ------
    InstallError
        If there is none.
    """
    board = board_key(board)
    with _at_work_on(board):
        for overlay in overlays_of(board):
            if overlay.origin != PACKAGE:
                doomed = Path(tempfile.mkdtemp(dir=overlay.folder.parent, prefix=f".{board}."))
                os.rename(overlay.folder, doomed / "old")
                shutil.rmtree(doomed)
                return overlay
        raise InstallError(
            f"there is no overlay of {board} to remove: none was installed or added in "
            f"{data_folder()}"
        )
