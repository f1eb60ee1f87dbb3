"""Overlay files as foreign binaries: their structure is checked before a parser trusts it.

PYNQ's parsers follow the counts, offsets and lengths of a file through ctypes, and a wrong one ends
the process. Every reader of an ``.xclbin``, ``.bit`` or ``.hwh`` comes here first. The layout of an
``.xclbin`` (axlf) is that of XRT's ``xclbin.h``, which PYNQ mirrors in ``pynq._3rdparty.xclbin``.

This module needs only the standard library.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.parsers import expat

from llama_pynq.errors import OverlayMismatch
from llama_pynq.utils.bounded import read_file

XCLBIN_MAGIC = b"xclbin2\0"
BIT_PREFIX = bytes.fromhex("00090ff00ff00ff00ff0000001")

BITSTREAM, EMBEDDED_METADATA, MEM_TOPOLOGY = 0, 2, 6
CONNECTIVITY, IP_LAYOUT, CLOCK_FREQ_TOPOLOGY, BUILD_METADATA = 7, 8, 11, 14
GROUP_TOPOLOGY, GROUP_CONNECTIVITY = 26, 27

HEADER = struct.Struct("<8s i 28s 256s Q  QQQ HBB I 16s 64s 16s 16s I 4x")
SECTION = struct.Struct("<I 16s 4x QQ")
UUID = slice(416, 432)

MOST_BYTES = 1 << 30
"""Largest overlay file that is read; the configuration of a large card has some 100 MB."""

_MOST_XML_BYTES = 64 << 20
_MOST_XML_DEPTH = 100
_MOST_JSON_BYTES = 64 << 20
_MOST_SECTIONS = 1 << 12
# What PYNQ's tables of names know: _mem_types and _clock_types of pynq.pl_server.xclbin_parser.
_MEMORY_TYPES, _CLOCK_TYPES = 10, 4


@dataclass(frozen=True)
class XclbinHeader:
    """The fields of an axlf header that this package uses.

    Attributes
    ----------
    n_bytes : int
        Length of the file without a signature.
    mode : int
        XCLBIN_MODE: 6 is software emulation.
    uuid : bytes
    platform : str
        The shell that it was linked for.
    """

    n_bytes: int
    mode: int
    uuid: bytes
    platform: str


def read_overlay(path: Path) -> bytes:
    """Read an overlay file, or the .hwh beside one, within bounds.

    Raises
    ------
    OverlayMismatch
        If it is no regular file, too large, or cannot be read.
    """
    try:
        return read_file(path, MOST_BYTES)
    except OSError as error:
        raise OverlayMismatch(f"{path} cannot be read: {error.strerror}") from error


def check_overlay_file(path: Path) -> None:
    """Check an overlay's file, and the .hwh beside a .bit if there is one, before PYNQ loads them.

    Files of other kinds pass. PYNQ's parser reads an .xclbin on trial; for a .hwh, which it reads
    for seconds on a board, only the structure is checked.

    Raises
    ------
    OverlayMismatch
        If a file is damaged; the message names the file and the place in it.
    """
    if path.suffix == ".xclbin":
        parse_xclbin(read_overlay(path), str(path))
    elif path.suffix == ".bit":
        check_bit(read_overlay(path), str(path))
        metadata = path.with_suffix(".hwh")
        if metadata.exists():
            check_hwh(read_overlay(metadata), str(metadata))


def _damaged(source: str, what: str) -> OverlayMismatch:
    return OverlayMismatch(f"{source} is damaged: {what}. Copy or build it again")


# ---- .xclbin --------------------------------------------------------------------------


def check_xclbin(data: bytes, source: str) -> tuple[XclbinHeader, dict[int, bytes]]:
    """Check header, section table and parsed sections of an ``.xclbin``.

    Parameters
    ----------
    data : bytes
    source : str
        Name of the file, for messages.

    Returns
    -------
    XclbinHeader
    dict of int to bytes
        Content of the sections by kind; of several of one kind, as for soft kernels, the last.

    Raises
    ------
    OverlayMismatch
        If it is no xclbin, is incomplete, or a count, an offset or a name leads out of it.
    """
    if data[:8] != XCLBIN_MAGIC:
        raise OverlayMismatch(
            f"{source} is not an .xclbin file: it does not start with 'xclbin2'. "
            "Check the path, or download the file again."
        )
    if len(data) < HEADER.size + SECTION.size:
        raise OverlayMismatch(
            f"{source} is incomplete: it has {len(data)} bytes, its header alone "
            f"{HEADER.size + SECTION.size}. Copy it again"
        )
    fields = HEADER.unpack_from(data)
    platform = fields[13].split(b"\0")[0].decode("ascii", "replace")
    header = XclbinHeader(fields[5], fields[11], fields[14], platform)
    if header.n_bytes > len(data):
        raise OverlayMismatch(
            f"{source} is incomplete: its header says {header.n_bytes} bytes, it has {len(data)}. "
            "Copy it again"
        )
    sections = _sections(data, header.n_bytes, fields[16], source)
    _check_sections(sections, source)
    return header, sections


def parse_xclbin(data: bytes, source: str) -> Any:
    """Check an ``.xclbin``, then have PYNQ's parser read its metadata.

    Parameters
    ----------
    data : bytes
    source : str
        Name of the file, for messages.

    Returns
    -------
    pynq.pl_server.xclbin_parser.XclBin

    Raises
    ------
    OverlayMismatch
        As `check_xclbin`, and if PYNQ cannot read what its sections say.
    """
    from pynq.pl_server.xclbin_parser import XclBin  # loads for seconds

    check_xclbin(data, source)
    try:
        return XclBin(xclbin_data=bytearray(data))
    except Exception as error:  # its kernel's description may raise anything
        raise unreadable(source, error) from error


def unreadable(source: object, error: Exception) -> OverlayMismatch:
    """Error for a file whose structure is right, and on which PYNQ's parser failed."""
    return OverlayMismatch(
        f"PYNQ cannot read {source} ({type(error).__name__}: {error}): it is damaged or no "
        "overlay. Copy or build it again"
    )


def _sections(data: bytes, n_bytes: int, count: int, source: str) -> dict[int, bytes]:
    end = HEADER.size + SECTION.size * count
    if not 0 < count <= _MOST_SECTIONS or end > n_bytes:
        raise _damaged(
            source, f"its header announces {count} sections, whose table does not fit into "
            f"{n_bytes} bytes"
        )  # fmt: skip
    parsed = {EMBEDDED_METADATA, *_TABLES, BUILD_METADATA}
    found: dict[int, bytes] = {}
    for index in range(count):
        kind, _, offset, size = SECTION.unpack_from(data, HEADER.size + SECTION.size * index)
        if size and not end <= offset <= offset + size <= n_bytes:
            raise _damaged(
                source, f"section {index} (kind {kind}) lies at bytes {offset} to {offset + size} "
                f"of {n_bytes}"
            )  # fmt: skip
        if kind in found and kind in parsed:
            raise _damaged(source, f"section {index} is a second one of kind {kind}")
        found[kind] = data[offset : offset + size]
    return found


# Tables of fixed entries: name, format of the count, offset of the first entry, its format.
_TABLES = {
    MEM_TOPOLOGY: ("MEM_TOPOLOGY", "<i", 8, struct.Struct("<BB6xqQ16s")),
    GROUP_TOPOLOGY: ("GROUP_TOPOLOGY", "<i", 8, struct.Struct("<BB6xqQ16s")),
    CONNECTIVITY: ("CONNECTIVITY", "<i", 4, struct.Struct("<iii")),
    GROUP_CONNECTIVITY: ("GROUP_CONNECTIVITY", "<i", 4, struct.Struct("<iii")),
    IP_LAYOUT: ("IP_LAYOUT", "<i", 8, struct.Struct("<IIQ64s")),
    CLOCK_FREQ_TOPOLOGY: ("CLOCK_FREQ_TOPOLOGY", "<H", 2, struct.Struct("<Hb5x128s")),
}


def _entries(sections: dict[int, bytes], kind: int, source: str) -> list[tuple]:
    """Entries of a table; an empty list if the file has none."""
    if kind not in sections:
        return []
    data, (name, count_format, start, entry) = sections[kind], _TABLES[kind]
    # PYNQ maps the table's first entry even if the count is 0.
    if len(data) < start + entry.size:
        raise _damaged(source, f"its section {name} has {len(data)} bytes, too few for an entry")
    (count,) = struct.unpack_from(count_format, data)
    if not 0 <= count <= (len(data) - start) // entry.size:
        raise _damaged(source, f"its section {name} announces {count} entries in {len(data)} bytes")
    return [entry.unpack_from(data, start + entry.size * index) for index in range(count)]


def _check_sections(sections: dict[int, bytes], source: str) -> None:
    tables = {kind: _entries(sections, kind, source) for kind in _TABLES}
    for kind in (MEM_TOPOLOGY, GROUP_TOPOLOGY):
        for index, (type_, _, _, _, tag) in enumerate(tables[kind]):
            place = f"bank {index} of {_TABLES[kind][0]}"
            _check_text(tag, place, source)
            if type_ >= _MEMORY_TYPES:
                raise _damaged(source, f"{place} has the type {type_}, which PYNQ does not know")
    for index, (_, _, _, name) in enumerate(tables[IP_LAYOUT]):
        _check_text(name, f"IP {index} of IP_LAYOUT", source)
    for index, (_, type_, name) in enumerate(tables[CLOCK_FREQ_TOPOLOGY]):
        place = f"clock {index} of CLOCK_FREQ_TOPOLOGY"
        _check_text(name, place, source)
        if not 0 <= type_ < _CLOCK_TYPES:
            raise _damaged(source, f"{place} has the type {type_}, which PYNQ does not know")
    banks = next((len(tables[k]) for k in (MEM_TOPOLOGY, GROUP_TOPOLOGY) if k in sections), 0)
    for kind in (CONNECTIVITY, GROUP_CONNECTIVITY):
        for index, (_, ip, bank) in enumerate(tables[kind]):
            # PYNQ reads the group's connections only where there are no others.
            n_banks = banks if kind == CONNECTIVITY or CONNECTIVITY not in sections else None
            if not 0 <= ip < len(tables[IP_LAYOUT]) or (
                n_banks is not None and not 0 <= bank < n_banks
            ):
                raise _damaged(
                    source, f"connection {index} of {_TABLES[kind][0]} leads to IP {ip} and bank "
                    f"{bank}, of {len(tables[IP_LAYOUT])} and {n_banks}"
                )  # fmt: skip
    if EMBEDDED_METADATA not in sections:
        raise _damaged(source, "it has no section EMBEDDED_METADATA, which describes the kernel")
    metadata, place = sections[EMBEDDED_METADATA], "its section EMBEDDED_METADATA"
    check_xml(metadata, source, place)
    try:
        metadata.decode()  # as PYNQ does, whatever encoding the XML declares
    except UnicodeDecodeError as error:
        raise _damaged(source, f"{place} is not UTF-8 at byte {error.start}") from None
    if BUILD_METADATA in sections:
        _check_json(sections[BUILD_METADATA], source)


def _check_text(field: bytes, place: str, source: str) -> None:
    """Check a name: PYNQ reads on until a zero byte, wherever that is."""
    text, end, _ = field.partition(b"\0")
    try:
        text.decode()
    except UnicodeDecodeError:
        end = b""
    if not end:
        raise _damaged(source, f"the name of {place} is no text, or does not end")


def _check_json(data: bytes, source: str) -> None:
    try:
        if len(data) > _MOST_JSON_BYTES:
            raise ValueError(f"it has {len(data)} bytes")
        json.loads(data.rstrip(b"\0"))
    except RecursionError:
        raise _damaged(source, "its section BUILD_METADATA is nested too deeply") from None
    except ValueError as error:
        raise _damaged(source, f"its section BUILD_METADATA is not JSON ({error})") from None


# ---- .hwh and other XML -----------------------------------------------------------------


def check_hwh(data: bytes, source: str) -> None:
    """Check that a ``.hwh`` is plain XML.

    Raises
    ------
    OverlayMismatch
        As `check_xml`.
    """
    check_xml(data, source, "it")


def parse_hwh(path: Path) -> Any:
    """Check a ``.hwh``, then have PYNQ's parser read it.

    Parameters
    ----------
    path : Path

    Returns
    -------
    pynq.metadata.runtime_metadata_parser.RuntimeMetadataParser

    Raises
    ------
    OverlayMismatch
        As `check_hwh`, and if PYNQ cannot read what it says.
    """
    from pynq.metadata.runtime_metadata_parser import RuntimeMetadataParser  # loads for seconds
    from pynqmetadata.frontends import Metadata

    check_hwh(read_overlay(path), str(path))
    try:
        return RuntimeMetadataParser(Metadata(input=str(path)))
    except Exception as error:  # its modules may raise anything
        raise unreadable(path, error) from error


def check_xml(data: bytes, source: str, place: str) -> None:
    """Check that data is well-formed XML of bounded size and depth, without a document type.

    Only a document type can define entities, which can expand to gigabytes or name other files;
    vendor tools write none.

    Parameters
    ----------
    data : bytes
    source : str
        Name of the file, for messages.
    place : str
        Where the XML stands, as a subject: ``"it"``.

    Raises
    ------
    OverlayMismatch
        If it is anything else.
    """
    if len(data) > _MOST_XML_BYTES:
        raise _damaged(source, f"{place} has {len(data)} bytes of XML, more than any tool writes")
    parser, depth = expat.ParserCreate(), 0

    def line() -> int:
        return parser.CurrentLineNumber

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _MOST_XML_DEPTH:
            raise _damaged(source, f"{place} nests XML more than {_MOST_XML_DEPTH} deep at line "
                           f"{line()}")  # fmt: skip

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1

    def doctype(*_: object) -> None:
        raise _damaged(source, f"{place} has a document type at line {line()}, as no tool writes")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.StartDoctypeDeclHandler = doctype
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise _damaged(source, f"{place} is not well-formed XML ({error})") from None


# ---- .bit -----------------------------------------------------------------------------


def _fields(data: bytes, source: str) -> Iterator[tuple[bytes, int, int]]:
    """Fields of a .bit file: key, and the bytes from where to where its value lies."""
    at = len(BIT_PREFIX)
    while (key := data[at : at + 1]) in (b"a", b"b", b"c", b"d"):
        size = int.from_bytes(data[at + 1 : at + 3], "big")
        at += 3
        if at + size > len(data):
            raise OverlayMismatch(
                f"{source} is incomplete: field {key.decode()!r} of its header announces {size} "
                f"bytes, and {max(len(data) - at, 0)} follow. Copy it again"
            )
        if size >= 1 << 15:  # PYNQ takes the length as signed
            raise _damaged(source, f"field {key.decode()!r} of its header announces {size} bytes")
        yield key, at, at + size
        at += size
    if len(data) < at + 5:
        raise OverlayMismatch(f"{source} is incomplete: its header ends early. Copy it again")
    if key != b"e":
        raise _damaged(source, f"its header has a field {key!r} at byte {at}")
    yield key, at + 5, at + 5 + int.from_bytes(data[at + 1 : at + 5], "big")


def check_bit(data: bytes, source: str) -> bytes:
    """Check the header of a ``.bit`` file; return its configuration data.

    Raises
    ------
    OverlayMismatch
        If it is no .bit file, is incomplete, or a length in its header leads out of it.
    """
    if not data.startswith(BIT_PREFIX):
        raise OverlayMismatch(
            f"{source} is not a Xilinx .bit file. Check the path, or download the file again."
        )
    seen: set[bytes] = set()
    for key, start, end in _fields(data, source):
        if key == b"e":
            if end != len(data):
                raise OverlayMismatch(
                    f"{source} is incomplete: it announces {end - start} bytes of configuration "
                    f"data and holds {len(data) - start}. Reinstall llama_pynq, or download the "
                    "file again."
                )
            if (end - start) % 4:
                raise _damaged(source, f"its configuration data, {end - start} bytes, is no whole "
                               "number of words")  # fmt: skip
            if missing := {b"a", b"b", b"c", b"d"} - seen:
                names = ", ".join(repr(name.decode()) for name in sorted(missing))
                raise _damaged(source, f"its header lacks the fields {names}")
            return data[start:end]
        if not data[start:end].isascii():
            raise _damaged(source, f"field {key.decode()!r} of its header is no text")
        seen.add(key)
    raise AssertionError("the last field is the data")
