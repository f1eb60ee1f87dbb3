"""``overlay.json``, the record of an overlay: its files, their origin, reports and measurements.

The record lies beside the files. A build writes it; ``llama-pynq overlay`` reads it. In
``overlay/<board>/`` it may stand alone, as a link: then every file has a URL to fetch it from.
This module does without PYNQ, so that a machine with Vitis needs none.
"""

from __future__ import annotations

import datetime
import json
import re
from dataclasses import MISSING, asdict, dataclass
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any

from llama_pynq.boards import boards
from llama_pynq.errors import OverlayMismatch
from llama_pynq.utils import strict_json
from llama_pynq.utils.bounded import read_file
from llama_pynq.utils.download import is_fetchable
from llama_pynq.utils.files import sha256_of, write_atomically

RECORD_NAME = "overlay.json"
FORMAT = 1
MOST_BYTES = 1 << 20
"""Largest size of a record; one has some hundred bytes."""

_MOST_FILE_BYTES = 1 << 40


@dataclass(frozen=True)
class OverlayFile:
    """One file of an overlay.

    Attributes
    ----------
    name : str
        File name without a folder: ``llama.bit``, ``llama.hwh`` or ``llama.xclbin``.
    sha256 : str
        64 hexadecimal digits, lower case.
    n_bytes : int
    url : str or None
        Where the file can be fetched (`is_fetchable`); None for a file beside the record.
    """

    name: str
    sha256: str
    n_bytes: int
    url: str | None = None

    @classmethod
    def of(cls, path: Path) -> OverlayFile:
        """Describe a file.

        Parameters
        ----------
        path : Path
        """
        return cls(path.name, sha256_of(path), path.stat().st_size)


def _known(kind: type, values: Any) -> dict[str, Any]:
    """Check the fields of a JSON object against those of a dataclass, and return them."""
    if not isinstance(values, dict):
        raise TypeError(f"{values!r} is not a JSON object")
    known = {field.name: field for field in fields_of(kind)}
    for name in values:
        if name not in known:
            raise ValueError(f"it has a field {name!r} that this version does not know")
    for name, field in known.items():
        if name not in values and field.default is MISSING:
            raise KeyError(name)
    return values


def _check_kind(name: str, value: Any, *kinds: type | None) -> None:
    """Check the type of a value; a bool is no number, and None stands for null."""
    if value is None and None in kinds:
        return
    if type(value) not in kinds:
        raise TypeError(f"{name} is {value!r}")


@dataclass(frozen=True)
class OverlayRecord:
    """The record of an overlay: its files, their origin, and what is known of them.

    Attributes
    ----------
    board : str
        A key of `llama_pynq.boards.boards`.
    abi : int or None
        Version of the kernel's contract, ``kAbiVersion``; None if a file was added without its
        record. The driver asks the kernel in any case.
    clock_mhz : float or None
        Clock that the kernel was built for; None if nobody recorded it.
    files : tuple of OverlayFile
        ``.bit`` and ``.hwh``, or ``.xclbin``.
    tools : dict of str to str
        Name and version of each vendor tool: ``{"vivado": "2022.1"}``.
    built : str
        Date of the build, ISO 8601.
    built_by, source : str
        A person or project; the commit of hls_src (``git describe --always --dirty``).
    platform : str or None
        The shell that an .xclbin was linked for.
    report : dict of str to float
        Figures from the tools: ``lut``, ``dsp``, ``bram36``, ``uram``, ``wns_ns``. May be empty.
    measured : str or None
        On which board it was run, when and with what result; None if it never was.
    """

    board: str
    abi: int | None
    clock_mhz: float | None
    files: tuple[OverlayFile, ...]
    tools: dict[str, str]
    built: str
    built_by: str
    source: str
    platform: str | None = None
    report: dict[str, float] | None = None
    measured: str | None = None

    @property
    def main(self) -> OverlayFile:
        """The file that is loaded: the ``.xclbin`` or the ``.bit``."""
        return next(f for f in self.files if not f.name.endswith(".hwh"))

    @property
    def origin(self) -> str:
        """One line: when it was built, by whom, from what, with what, and for which shell."""
        tools = ", ".join(f"{name} {version}" for name, version in self.tools.items())
        return (
            f"{self.built} by {self.built_by}, from {self.source}"
            f"{f', with {tools}' if tools else ''}"
            f"{f', for {self.platform}' if self.platform else ''}"
        )

    def write(self, folder: Path) -> Path:
        """Write the record atomically, and return its path.

        Parameters
        ----------
        folder : Path
        """
        path = folder / RECORD_NAME
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n"
        write_atomically(path, text.encode())
        return path

    @classmethod
    def read(cls, path: Path) -> OverlayRecord:
        """Read and check a record.

        Parameters
        ----------
        path : Path

        Raises
        ------
        OverlayMismatch
            If it cannot be read, is damaged, of another format, or names files that an overlay
            cannot have.
        FileNotFoundError
            If there is none.
        """
        try:
            fields = strict_json.parse(read_file(path, MOST_BYTES))
        except FileNotFoundError:
            raise
        except OSError as error:
            raise OverlayMismatch(f"{path} cannot be read ({error.strerror})") from error
        except ValueError as error:
            raise OverlayMismatch(f"{path} is damaged: {error}") from error
        try:
            return cls._checked(fields)
        except (KeyError, TypeError, ValueError) as error:
            what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            raise OverlayMismatch(f"{path} is no record of an overlay: {what}") from error

    @classmethod
    def _checked(cls, fields: Any) -> OverlayRecord:
        if not isinstance(fields, dict):
            raise TypeError("it is not a JSON object")
        fields = dict(fields)
        if (found := fields.pop("format")) != FORMAT:
            raise ValueError(
                f"its format is {found!r}, this version of llama_pynq reads {FORMAT}: install "
                "the version that it came with"
            )
        if not isinstance(fields["files"], list):
            raise TypeError(f"files is {fields['files']!r}, not a list")
        files = tuple(OverlayFile(**_known(OverlayFile, f)) for f in fields["files"])
        record = cls(**{**_known(cls, fields), "files": files})
        if not isinstance(record.board, str) or record.board not in boards():
            raise ValueError(f"it names a board {record.board!r}, not one of {', '.join(boards())}")
        for name, allowed in {
            "abi": (int, None), "clock_mhz": (int, float, None), "tools": (dict,),
            "built": (str,), "built_by": (str,), "source": (str,), "platform": (str, None),
            "report": (dict, None), "measured": (str, None),
        }.items():  # fmt: skip
            _check_kind(name, getattr(record, name), *allowed)
        for name, version in record.tools.items():
            _check_kind(f"the version of {name}", version, str)
        shown = (record.built, record.built_by, record.source, record.platform, record.measured,
                 *record.tools, *record.tools.values(), *(record.report or ()))  # fmt: skip
        for text in shown:
            if text is not None and not text.isprintable():
                raise ValueError(f"{text!r} holds characters that move a terminal's cursor")
        for name, figure in (record.report or {}).items():
            _check_kind(f"{name} of the report", figure, int, float)
        if record.clock_mhz is not None and not 0 < record.clock_mhz < 1e6:
            raise ValueError(f"clock_mhz is {record.clock_mhz!r}")
        datetime.date.fromisoformat(record.built)
        for file in record.files:
            cls._check_file(file)
        kinds = sorted(Path(f.name).suffix for f in record.files)
        if kinds not in ([".bit", ".hwh"], [".xclbin"]):
            raise ValueError(f"its files are {kinds}, not a .bit and its .hwh, or an .xclbin")
        if len({Path(f.name).stem for f in record.files}) > 1:
            raise ValueError("its .bit and .hwh have different names: PYNQ finds one by the other")
        return record

    @staticmethod
    def _check_file(file: OverlayFile) -> None:
        for name, value in (("name", file.name), ("sha256", file.sha256)):
            _check_kind(f"{name} of a file", value, str)
        # A record may come from the network: a name must not lead out of its folder.
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", file.name):
            raise ValueError(f"{file.name!r} is no plain file name")
        if not re.fullmatch(r"[0-9a-f]{64}", file.sha256):
            raise ValueError(f"the sha256 of {file.name} is {file.sha256!r}")
        _check_kind(f"n_bytes of {file.name}", file.n_bytes, int)
        if not 0 <= file.n_bytes <= _MOST_FILE_BYTES:
            raise ValueError(f"n_bytes of {file.name} is {file.n_bytes!r}")
        _check_kind(f"the URL of {file.name}", file.url, str, None)
        if file.url is not None and not is_fetchable(file.url):
            raise ValueError(f"the URL of {file.name} is {file.url!r}: https or file is expected")
