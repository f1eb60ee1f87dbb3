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

import dataclasses
import hashlib
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llama_pynq.emulation.design import Bank, Design, PlacedArgument
from llama_pynq.errors import OverlayMismatch
from llama_pynq.utils.files import cache_folder, write_atomically

MAGIC = b"LLPYEMU1"
_HEADER_START = 44
_ALIGNMENT = 64


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
    if hashlib.sha256(header).digest() != data[12:_HEADER_START]:
        raise damaged
    fields = json.loads(header)
    start = len(_padded(data[: _HEADER_START + length]))
    payloads = []
    for entry in fields["payloads"]:
        begin = start + entry["offset"]
        payload = Payload(
            entry["level"],
            entry["system"],
            entry["machine"],
            tuple(entry["features"]),
            bytes(data[begin : begin + entry["size"]]),
        )
        if payload.sha256 != entry["sha256"]:
            raise damaged
        payloads.append(payload)
    design = dict(fields["design"])
    design["arguments"] = tuple(PlacedArgument(**a) for a in design["arguments"])
    design["banks"] = tuple(Bank(**b) for b in design["banks"])
    return Container(Design(**design), tuple(payloads), fields["metadata_sha256"])


def extract(payload: Payload) -> Path:
    """Write a payload to a file in the cache, for the dynamic loader; its path.

    A cached file may be damaged: it is compared with the checksum every time, and rewritten
    if it differs.

    Raises
    ------
    OverlayMismatch
        If the cache folder cannot be written.
    """
    path = cache_folder() / "kernels" / f"{payload.sha256}.so"
    try:
        if hashlib.sha256(path.read_bytes()).hexdigest() == payload.sha256:
            return path
    except OSError:
        pass
    try:
        write_atomically(path, payload.data)
    except OSError as error:
        raise OverlayMismatch(
            f"cannot unpack the emulated kernel to {path}: {error.strerror}. "
            f"Set LLAMA_PYNQ_CACHE to a folder that can be written."
        ) from error
    return path


def describe_levels(payloads: Sequence[Payload]) -> str:
    """The levels in `payloads`, for error messages."""
    return ", ".join(f"{p.level} ({p.system} {p.machine})" for p in payloads)
