"""Search for a board's overlay: the folders, their precedence, and the state of each overlay.

The first of these that exists is used:

1. ``added``: the user's own builds, in `utils.files.data_folder`;
2. ``installed``: overlays that ``llama-pynq overlay install`` fetched, beside them;
3. ``package``: ``overlay/<board>/`` of llama_pynq itself, which holds the files or a link.

Each folder has an ``overlay.json`` (`record.OverlayRecord`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llama_pynq.boards import boards
from llama_pynq.device import bitfiles
from llama_pynq.errors import OverlayMismatch, OverlayNotFound
from llama_pynq.kernel.abi import ABI_VERSION
from llama_pynq.overlay_store.metadata import read_metadata
from llama_pynq.overlay_store.record import RECORD_NAME, OverlayRecord
from llama_pynq.utils.files import data_folder, package_folders, sha256_of, user_path

if TYPE_CHECKING:
    from pynq.pl_server.device import Device

ADDED, INSTALLED, PACKAGE = "added", "installed", "package"

EMULATE = (
    "Meanwhile the emulated device runs everything, with no board: "
    "LlamaOverlay(device=llama_pynq.EmulatedDevice()), or --emulate. Where it was not installed, "
    "as on a board, compile it once before: python -m llama_pynq.emulation.build (g++; minutes on "
    "a board)"
)

# ---- overlays found -------------------------------------------------------------------


@dataclass(frozen=True)
class FoundOverlay:
    """An overlay's folder, and what is in it.

    Attributes
    ----------
    board : str
    origin : {"added", "installed", "package"}
    folder : Path
    record : OverlayRecord or None
        None if it cannot be read.
    damage : str or None
        What is wrong with the overlay, by names and sizes only; `check` hashes the files.
    """

    board: str
    origin: str
    folder: Path
    record: OverlayRecord | None
    damage: str | None

    @property
    def is_link(self) -> bool:
        """Whether the files are still to be fetched."""
        return self.record is not None and self.damage is None and not self.path.exists()

    @property
    def path(self) -> Path:
        """The file that is loaded; the folder if there is no record."""
        return self.folder if self.record is None else self.folder / self.record.main.name

    @property
    def other_version(self) -> str | None:
        """The mismatch of contract versions, for messages; None if none is known."""
        if self.record is None or self.record.abi in (None, ABI_VERSION):
            return None
        return (
            f"speaks version {self.record.abi} of the kernel's contract, this llama_pynq version "
            f"{ABI_VERSION}"
        )

    @property
    def state(self) -> str:
        """One of "damaged", "other version", "link" and "ready"."""
        if self.damage is not None:
            return "damaged"
        if self.other_version is not None:
            return "other version"
        return "link" if self.is_link else "ready"

    def check(self, metadata: bool = True) -> None:
        """Hash the files, and read their metadata.

        Parameters
        ----------
        metadata : bool
            False: hash only, as before every use.

        Raises
        ------
        OverlayMismatch
            If a file differs from the record, or the overlay is damaged or of another version.
        """
        for problem in (self.damage, self.other_version):
            if problem is not None:
                raise OverlayMismatch(f"{self.where} {problem}. {self._remedy()}")
        assert self.record is not None
        if self.is_link:
            return
        for file in self.record.files:
            if sha256_of(self.folder / file.name) != file.sha256:
                raise OverlayMismatch(
                    f"{self.where} is damaged: {file.name} is not the file of its record, by its "
                    f"sha256. {self._remedy()}"
                )
        if metadata:
            read_metadata(self.path)

    @property
    def where(self) -> str:
        """The overlay, for messages."""
        return f"the {self.origin} overlay of {self.board}, {self.folder},"

    def _remedy(self) -> str:
        board = self.board
        link = any(o.is_link and not o.other_version for o in overlays_of(board))
        if self.origin == PACKAGE:
            return "Reinstall llama_pynq" if self.other_version is None else _build(board)
        if self.origin == INSTALLED and link:
            return f"llama-pynq overlay install {board} fetches it anew"
        return f"llama-pynq overlay remove {board} takes it away. {_build(board)}"


def _read(board: str, origin: str, folder: Path) -> FoundOverlay:
    record, damage = None, None
    try:
        record = OverlayRecord.read(folder / RECORD_NAME)
        damage = _damage(board, folder, record)
    except FileNotFoundError:
        damage = f"has no {RECORD_NAME}"
    except OverlayMismatch as error:
        damage = f"cannot be used: {error}"
    except OSError as error:
        damage = f"cannot be read ({error.strerror})"
    return FoundOverlay(board, origin, folder, record, damage)


def _damage(board: str, folder: Path, record: OverlayRecord) -> str | None:
    if record.board != board:
        return f"is of another board by its record, {record.board}"
    sizes = {f.name: (folder / f.name).stat().st_size for f in record.files
             if (folder / f.name).is_file()}  # fmt: skip
    if not sizes and all(f.url for f in record.files):
        return None
    for file in record.files:
        if file.name not in sizes:
            return f"lacks {file.name}"
        if sizes[file.name] != file.n_bytes:
            return f"is damaged: {file.name} has {sizes[file.name]} bytes, not {file.n_bytes}"
    return None


def user_folder(origin: str, board: str) -> Path:
    """Folder for an added or installed overlay of a board; it may not exist."""
    return data_folder() / origin / board


def overlays_of(board: str) -> list[FoundOverlay]:
    """Every overlay of a board, in order of precedence."""
    places = [(origin, user_folder(origin, board)) for origin in (ADDED, INSTALLED)]
    found = [_read(board, *place) for place in places if _may_exist(place[1])]
    for folder in package_folders("overlay"):
        path = Path(folder) / board
        if _may_exist(path / RECORD_NAME):
            found.append(_read(board, PACKAGE, path))
    return found


def _may_exist(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        pass  # another user's folder: report it, do not skip it silently
    return True


def record_of(path: Path) -> OverlayRecord | None:
    """The record beside an overlay's file; None if there is none, or it is of another file."""
    try:
        record = OverlayRecord.read(path.parent / RECORD_NAME)
        if record.main.name == path.name and record.main.sha256 == sha256_of(path):
            return record
    except (OSError, OverlayMismatch):
        pass
    return None


# ---- the one to use -------------------------------------------------------------------


def _build(board: str) -> str:
    if why := boards()[board].no_build:
        return f"No build is known here: {why}"
    return (
        f"To build one, with AMD's tools in a checkout of llama_pynq: make -C hls_src overlay "
        f"BOARD={board}, then llama-pynq overlay add hls_src/build/{board}/overlay"
    )


def how_to_get(board: str) -> str:
    """How to get an overlay of a board, for messages."""
    if any(o.is_link and not o.other_version for o in overlays_of(board)):
        return f"To fetch one: llama-pynq overlay install {board}"
    return f"None comes with this version of llama_pynq. {_build(board)}"


def overlay_file(name: str | Path, device: Device) -> Path:
    """The file that PYNQ loads for `name`: a path, or the bare name of an installed overlay.

    Raises
    ------
    OverlayNotFound
        If there is none.
    OverlayMismatch
        If the file, or the .hwh beside it, is damaged so that PYNQ's parsers could fail on it.
    """
    import pynq  # loads for seconds

    try:
        path = Path(pynq.Bitstream(str(user_path(name)), device=device).bitfile_name)
    except OSError as error:
        # PYNQ's error if neither the path nor an installed package has the file.
        if error.errno is None and "does not exist" in str(error):
            raise OverlayNotFound(
                f"there is no overlay {name}: give the path of an .xclbin or .bit file, or the "
                "name of an installed one, such as llama.xclbin"
            ) from None
        raise
    bitfiles.check_overlay_file(path)
    return path


def overlay_for(device: Device) -> Path:
    """The overlay file for a board, its hash checked.

    Raises
    ------
    OverlayMismatch
        If there is none, or the first by precedence is damaged or of another version.
    """
    from llama_pynq.overlay_store.devices import board_of_device  # loads PYNQ, for seconds

    board = board_of_device(device)
    if board is None:
        raise OverlayMismatch(
            f"no overlay can be chosen for the device {device.name!r}: by its name it is none of "
            f"{', '.join(boards())}. Give the overlay's file: LlamaOverlay('llama.bit'), or "
            f"--overlay. {EMULATE}"
        )
    for overlay in overlays_of(board):
        if overlay.is_link:
            continue
        try:
            overlay.check(metadata=False)
        except OverlayMismatch as error:
            raise OverlayMismatch(f"{error}. {EMULATE}") from error
        return overlay.path
    raise OverlayMismatch(
        f"there is no overlay of {board} on this computer, neither in {data_folder()} nor in the "
        f"package. {how_to_get(board)}. {EMULATE}"
    )
