"""The container of an emulated overlay: compiled kernels in place of a bitstream.

An ``.xclbin`` holds the container in its BITSTREAM section, a ``.bit`` as its configuration data.
All integers are little-endian:

======  =====  ==========================================================================
offset  bytes  content
======  =====  ==========================================================================
0       8      magic, ``LLPYEMU1``
8       4      H, length of the header in bytes
12      32     SHA-256 of the header
44      H      header: JSON, UTF-8, keys sorted
44 + H         zeros up to the next multiple of 64; the payloads start here, at P
P + o   n      a payload: a shared library, `o` (a multiple of 64) and `n` from the header
======  =====  ==========================================================================

The header holds ``design`` (the fields of `Design`), ``metadata_sha256`` (of the .hwh that
belongs to a .bit, else null) and ``payloads``, a list of objects with ``level`` (the
compiler's -march), ``system`` and ``machine`` (as Python's `platform` names them),
``features`` (CPU features the code may use, see `cpu`), ``sha256``, ``offset``, ``size``.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import errno
import functools
import hashlib
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_pynq.emulation.design import PROTOCOLS, Bank, Design, PlacedArgument
from llama_pynq.emulation.trust import only_mine
from llama_pynq.errors import OverlayMismatch
from llama_pynq.utils import strict_json
from llama_pynq.utils.bounded import read_file
from llama_pynq.utils.files import cache_folder, write_atomically

MAGIC = b"LLPYEMU1"
_HEADER_START = 44
_ALIGNMENT = 64

# Bounds of what a header may say, far above what a build writes.
_MOST_HEADER_BYTES = 1 << 20
_MOST_PAYLOADS, _MOST_FEATURES = 64, 256
_MOST_ARGUMENTS = 128  # as many words does the emulated kernel take
_MOST_CHARACTERS = 200
_MOST_ADDRESS, _MOST_RANGE = (1 << 64) - 1, 1 << 24


@dataclass(frozen=True)
class Payload:
    """The kernel compiled for one instruction-set level.

    Parameters
    ----------
    level : str
        The compiler's ``-march``.
    system, machine : str
        As ``platform.system()`` and ``platform.machine()`` name them.
    features : tuple of str
        CPU features without which the code may stop with an illegal instruction.
    data : bytes
        The shared library.
    """

    level: str
    system: str
    machine: str
    features: tuple[str, ...]
    data: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True)
class Container:
    """A `Design` and the kernels that implement it."""

    design: Design
    payloads: tuple[Payload, ...]
    metadata_sha256: str | None = None


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _ALIGNMENT)


def pack(container: Container) -> bytes:
    """Serialise `container`; equal containers give equal bytes."""
    entries = []
    blob = b""
    for payload in container.payloads:
        entries.append(
            {
                "level": payload.level,
                "system": payload.system,
                "machine": payload.machine,
                "features": list(payload.features),
                "sha256": payload.sha256,
                "offset": len(blob),
                "size": len(payload.data),
            }
        )
        blob += _padded(payload.data)
    header = json.dumps(
        {
            "design": dataclasses.asdict(container.design),
            "metadata_sha256": container.metadata_sha256,
            "payloads": entries,
        },
        sort_keys=True,
    ).encode()
    prefix = MAGIC + struct.pack("<I", len(header)) + hashlib.sha256(header).digest()
    return _padded(prefix + header) + blob


def unpack(data: bytes, source: str) -> Container:
    """Read a container; `source` names the file in error messages.

    Raises
    ------
    OverlayMismatch
        If `data` is not such a container, is truncated, or is damaged.
    """
    if data[:8] != MAGIC:
        raise OverlayMismatch(
            f"{source} holds no emulated kernel: it was built for hardware or by another "
            f"program. Load it on its board, or use the package's own llama.xclbin here."
        )
    damaged = OverlayMismatch(
        f"{source} is damaged: its contents do not match its checksums. "
        f"Reinstall llama_pynq, or build the emulated overlay again."
    )
    if len(data) < _HEADER_START:
        raise damaged
    (length,) = struct.unpack_from("<I", data, 8)
    header = data[_HEADER_START : _HEADER_START + length]
    if len(header) != length or hashlib.sha256(header).digest() != data[12:_HEADER_START]:
        raise damaged
    try:
        if length > _MOST_HEADER_BYTES:
            raise ValueError(f"it has {length} bytes")
        fields = _object(strict_json.parse(header), "design", "metadata_sha256", "payloads")
        entries = _list(fields["payloads"], _MOST_PAYLOADS)
        payloads = [_payload(e, data, _HEADER_START + length) for e in entries]
        design = _design(fields["design"])
        metadata = fields["metadata_sha256"]
        if metadata is not None:
            metadata = _text(metadata)
    except ValueError as error:
        raise OverlayMismatch(
            f"{source} is damaged: the header of its emulated kernel is wrong, {error}. "
            "Reinstall llama_pynq, or build the emulated overlay again."
        ) from None
    for entry, payload in zip(entries, payloads, strict=True):
        if payload.sha256 != entry["sha256"]:
            raise damaged
    return Container(design, tuple(payloads), metadata)


# ---- the header's schema ------------------------------------------------------------------


def _object(value: Any, *names: str) -> dict[str, Any]:
    """A JSON object with exactly these keys."""
    if not isinstance(value, dict) or sorted(value) != sorted(names):
        raise ValueError(f"{_short(value)} is no object of {', '.join(names)}")
    return value


def _list(value: Any, most: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise ValueError(f"{_short(value)} is no list of up to {most}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _MOST_CHARACTERS or not value.isprintable():
        raise ValueError(f"{_short(value)} is no name")
    return value


def _number(value: Any, least: int, most: int, multiple: int = 1) -> int:
    if type(value) is not int or not least <= value <= most or value % multiple:
        raise ValueError(f"{_short(value)} is no multiple of {multiple} from {least} to {most}")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:60]}..."


def _payload(entry: Any, data: bytes, header_end: int) -> Payload:
    fields = _object(entry, "level", "system", "machine", "features", "sha256", "offset", "size")
    start = header_end + -header_end % _ALIGNMENT
    size = _number(fields["size"], 0, len(data))
    begin = start + _number(fields["offset"], 0, len(data), _ALIGNMENT)
    if begin + size > len(data):
        raise ValueError(f"a payload ends at byte {begin + size} of {len(data)}")
    level, system, machine = (_text(fields[name]) for name in ("level", "system", "machine"))
    features = tuple(map(_text, _list(fields["features"], _MOST_FEATURES)))
    return Payload(level, system, machine, features, bytes(data[begin : begin + size]))


def _design(value: Any) -> Design:
    fields = _object(value, *(field.name for field in dataclasses.fields(Design)))
    if fields["protocol"] not in PROTOCOLS:
        raise ValueError(f"{_short(fields['protocol'])} is no protocol")
    banks = []
    for bank in _list(fields["banks"], _MOST_ARGUMENTS):
        bank = _object(bank, "tag", "base_address")
        banks.append(Bank(_text(bank["tag"]), _number(bank["base_address"], 0, _MOST_ADDRESS)))
    size = _number(fields["address_range"], 4, _MOST_RANGE, 4)
    names = [field.name for field in dataclasses.fields(PlacedArgument)]
    arguments = []
    for argument in _list(fields["arguments"], _MOST_ARGUMENTS):
        argument = _object(argument, *names)
        for name in ("name", "ctype", "depth"):
            _text(argument[name])
        for name in ("bundle", "bank"):
            if argument[name] is not None:
                _text(argument[name])
        if argument["bank"] not in (None, *(bank.tag for bank in banks)):
            raise ValueError(f"{argument['name']!r} is connected to no bank of the design")
        bits = _number(argument["size_bits"], 32, 64, 32)
        # Behind the four control registers.
        _number(argument["offset"], 0x10, size - bits // 8, 4)
        arguments.append(PlacedArgument(**argument))
    return Design(
        fields["protocol"],
        _number(fields["base_address"], 0, _MOST_ADDRESS),
        size,
        tuple(arguments),
        tuple(banks),
        _number(fields["clock_mhz"], 0, 100_000),
    )


def extract(payload: Payload) -> Path:
    """Write a payload to a file in the cache, for the dynamic loader; its path.

    A cached file may be damaged: it is compared with the checksum every time, and rewritten
    if it differs. Where another user could change the file before it is loaded, as in a shared
    cache folder, it is written to a temporary folder of this process instead.

    Raises
    ------
    OverlayMismatch
        If the cache folder cannot be written, or is another user's.
    """
    folder = cache_folder() / "kernels"
    path = folder / f"{payload.sha256}.so"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        if hasattr(os, "geteuid"):
            if folder.stat().st_uid != os.geteuid():
                raise OSError(errno.EPERM, f"it is of another user, uid {folder.stat().st_uid}")
            with contextlib.suppress(OSError):  # a file system without modes
                folder.chmod(0o700)
        if not only_mine(folder):
            path = _own_folder() / path.name
        try:
            if read_file(path, len(payload.data)) == payload.data:
                return path
        except OSError:
            pass
        write_atomically(path, payload.data)
    except OSError as error:
        raise OverlayMismatch(
            f"cannot unpack the emulated kernel to {path}: {error.strerror}. "
            f"Set LLAMA_PYNQ_CACHE to a folder that can be written."
        ) from error
    return path


@functools.cache
def _own_folder() -> Path:
    folder, process = tempfile.mkdtemp(prefix="llama_pynq-"), os.getpid()

    @atexit.register
    def remove() -> None:
        if os.getpid() == process:  # not a forked child
            shutil.rmtree(folder, ignore_errors=True)

    return Path(folder)


def describe_levels(payloads: Sequence[Payload]) -> str:
    """The levels in `payloads`, for error messages."""
    return ", ".join(f"{p.level} ({p.system} {p.machine})" for p in payloads)
