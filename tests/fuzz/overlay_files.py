"""Borders of overlay files: records, emulated overlays, metadata of a board's overlay."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
from pathlib import Path
from random import Random

from fuzz.border import Border
from fuzz.mutators import Field, json_text, mutate_bytes, mutate_json
from support.board_overlays import PARTS, PLATFORMS, record_of_files, write_files

from llama_pynq import EmulatedDevice
from llama_pynq.emulation import container, hwh, xclbin
from llama_pynq.emulation.container import Container, Payload
from llama_pynq.emulation.design import xclbin_design, zynq_design
from llama_pynq.errors import OverlayMismatch
from llama_pynq.overlay_store.metadata import read_metadata
from llama_pynq.overlay_store.record import OverlayRecord

# XRT's xclbin.h: offsets in the header, and size of a section's entry.
_LENGTH, _MODE, _UUID, _COUNT, _SECTIONS, _ENTRY = 304, 332, 416, 448, 456, 40


def record(folder: Path) -> Border:
    """``overlay.json``, which may come from the network."""
    corpus = []
    for board in ("kv260", "u50"):
        write_files(folder / board, board)
        record_of_files(folder / board, board, report={"lut": 0.5}, measured="no").write(
            folder / board
        )
        corpus.append(json.loads((folder / board / "overlay.json").read_text()))
    path = folder / "overlay.json"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        found = OverlayRecord.read(path)
        assert found.main.name and "/" not in found.main.name
        assert isinstance(found.origin, str)
        found.write(folder)
        assert OverlayRecord.read(path) == found

    return Border(
        lambda rng: json_text(rng, mutate_json(rng, rng.choice(corpus))), read, (OverlayMismatch,)
    )


# ---- .xclbin --------------------------------------------------------------------------


def xclbin_fields(data: bytes) -> list[Field]:
    """Header words, the section table, and the counts at the start of sections."""
    found = [Field(_LENGTH, "<Q"), Field(_MODE, "<I")] + [Field(_COUNT, "<I")] * 4
    found += [Field(at, "<I") for at in range(0, 40, 4)]
    if len(data) < _SECTIONS:
        return found
    count = min(struct.unpack_from("<I", data, _COUNT)[0], 16)
    for at in range(_SECTIONS, min(_SECTIONS + count * _ENTRY, len(data) - _ENTRY), _ENTRY):
        found += [Field(at, "<I"), Field(at + 24, "<Q"), Field(at + 32, "<Q")] * 2
        offset, size = struct.unpack_from("<QQ", data, at + 24)
        if offset + 64 < len(data) and size > 8 and offset > _SECTIONS:
            found += [Field(offset, "<i")] * 2
            found += [Field(offset + i, "<I") for i in range(4, min(size, 120) - 4, 4)]
    return found


def _xclbin_chunks(data: bytes) -> list[bytes]:
    """The header, each entry of the section table, and the rest."""
    cuts = [0, _SECTIONS, *(_SECTIONS + _ENTRY * i for i in range(1, 7)), len(data)]
    return [data[a:b] for a, b in zip(cuts, cuts[1:])]


def _seal_container(data: bytearray) -> None:
    at = data.find(container.MAGIC)
    if at < 0 or at + 44 > len(data):
        return
    (size,) = struct.unpack_from("<I", data, at + 8)
    data[at + 12 : at + 44] = hashlib.sha256(data[at + 44 : at + 44 + size]).digest()


def _seal_xclbin(rng: Random, data: bytearray) -> bytes:
    """Make length, container's hash and UUID right again."""
    _seal_container(data)
    if len(data) >= _SECTIONS:
        if rng.random() < 0.9:
            struct.pack_into("<Q", data, _LENGTH, len(data))
        data[_UUID : _UUID + 16] = bytes(16)
        data[_UUID : _UUID + 16] = hashlib.sha256(data).digest()[:16]
    return bytes(data)


def _payload() -> Payload:
    """No library: these cases read containers, and never load what is in them."""
    return Payload("native", "Linux", "x86_64", ("sse2",), b"\x7fELF" + bytes(300))


def _mutated_container(rng: Random, packed: bytes) -> bytes:
    """A container whose header is edited as JSON, with its hash made right again."""
    (size,) = struct.unpack_from("<I", packed, 8)
    header = json_text(rng, mutate_json(rng, json.loads(packed[44 : 44 + size])))
    start = packed[:8] + struct.pack("<I", len(header)) + hashlib.sha256(header).digest() + header
    return start + bytes(-len(start) % 64) + packed[44 + size + (-(44 + size) % 64) :]


def _reader() -> EmulatedDevice:
    """A device that trusts the files, which nobody recorded: what is in them is read."""
    return EmulatedDevice(threads=1, trust=True)


def emulated_xclbin(folder: Path) -> Border:
    """An .xclbin of the emulated device, up to the point where its library would be loaded."""
    design = xclbin_design(2, 2, 300)
    inner = container.pack(Container(design, (_payload(),)))
    corpus = [xclbin.write(inner, design)]
    path = folder / "llama.xclbin"
    device = _reader()

    def make(rng: Random) -> bytes:
        if rng.random() < 0.5:
            changed = _mutated_container(rng, inner)
            return xclbin.write(changed, design)
        data = bytearray(mutate_bytes(rng, corpus, xclbin_fields, _xclbin_chunks))
        return _seal_xclbin(rng, data) if rng.random() < 0.85 else bytes(data)

    def read(data: bytes) -> None:
        path.write_bytes(data)
        xclbin.read(data, str(path))
        device.get_bitfile_metadata(str(path))

    return Border(make, read, (OverlayMismatch,))


def emulated_bit(folder: Path) -> Border:
    """A .bit of the emulated device with its .hwh; what is mutated is one of the two."""
    design = zynq_design(2, 2, 100)
    metadata = hwh.write_hwh(design)
    path = folder / "llama.bit"
    device = _reader()

    def bit(hwh_data: bytes) -> bytes:
        digest = hashlib.sha256(hwh_data).hexdigest()
        return container.pack(Container(design, (_payload(),), digest))

    corpus = [hwh.write_bit(bit(metadata))]
    fields = [Field(at, ">H") for at in (0, 11, 14, 16, 28, 30)]

    def make(rng: Random) -> bytes:
        kind, text = rng.random(), metadata
        if kind < 0.4:
            text = mutated_xml(rng, metadata)
            data = hwh.write_bit(bit(text))
        elif kind < 0.7:
            data = hwh.write_bit(_mutated_container(rng, bit(metadata)))
        else:
            changed = bytearray(mutate_bytes(rng, corpus, lambda _: fields))
            _seal_container(changed)
            data = bytes(changed)
        return len(text).to_bytes(4, "little") + text + data

    def read(data: bytes) -> None:
        size = int.from_bytes(data[:4], "little")
        path.with_suffix(".hwh").write_bytes(data[4 : 4 + size])
        path.write_bytes(data[4 + size :])
        hwh.read_bit(data[4 + size :], str(path))
        device.get_bitfile_metadata(str(path))

    return Border(make, read, (OverlayMismatch,))


def _xml_chunks(data: bytes) -> list[bytes]:
    return data.splitlines(keepends=True)


def mutated_xml(rng: Random, data: bytes) -> bytes:
    """Lines of an .hwh removed, repeated and swapped; attributes and names edited."""
    if rng.random() < 0.02:
        return b"<a>" * 20_000
    if rng.random() < 0.02:
        entities = b"".join(
            b'<!ENTITY e%d "%s">' % (i, b"&e%d;" % (i - 1) * 10) for i in range(1, 9)
        )
        return b'<!DOCTYPE x [<!ENTITY e0 "lol">' + entities + b"]><x>&e8;</x>"
    if rng.random() < 0.5:
        lines = _xml_chunks(data)
        at = rng.randrange(len(lines))
        parts = lines[at].split(b'"')
        if len(parts) > 2:
            odd = rng.randrange(len(parts) // 2) * 2 + 1
            old = parts[odd]
            values = (b"", b"0", b"-1", b"0x", b"x" * 300, b"4294967296", b"1e9", b"TRUE", old[:-1])
            parts[odd] = rng.choice((*values, old + b"0", b"&#0;", b"\xff"))
        lines[at] = b'"'.join(parts)
        return b"".join(lines)
    return mutate_bytes(rng, [data], None, _xml_chunks)


# ---- a board's overlay ----------------------------------------------------------------


def hardware_xclbin(folder: Path) -> Border:
    """An .xclbin for a card: PYNQ's parser reads it through ctypes."""
    corpus = []
    for board in PLATFORMS:
        corpus.append(write_files(folder / board, board).read_bytes())
    path = folder / "llama.xclbin"

    def make(rng: Random) -> bytes:
        data = bytearray(mutate_bytes(rng, corpus, xclbin_fields, _xclbin_chunks))
        if len(data) >= _SECTIONS and rng.random() < 0.8:
            struct.pack_into("<Q", data, _LENGTH, len(data))
        return bytes(data)

    return Border(make, lambda data: _metadata(path, data), (OverlayMismatch,))


def hardware_bit(folder: Path) -> Border:
    """A .bit for a Zynq board with its .hwh, one of the two mutated."""
    files = write_files(folder / "kv260", "kv260")
    bits = [write_files(folder / board, board).read_bytes() for board in PARTS]
    metadata = files.with_suffix(".hwh").read_bytes()
    path = folder / "llama.bit"
    fields = [Field(at, ">H") for at in (0, 11, 14)] + [Field(at, "<B") for at in range(13, 100)]

    def make(rng: Random) -> bytes:
        if rng.random() < 0.5:
            text, data = mutated_xml(rng, metadata), rng.choice(bits)
        else:
            text, data = metadata, mutate_bytes(rng, bits, lambda _: fields)
        return len(text).to_bytes(4, "little") + text + data

    def read(data: bytes) -> None:
        size = int.from_bytes(data[:4], "little")
        path.with_suffix(".hwh").write_bytes(data[4 : 4 + size])
        _metadata(path, data[4 + size :])

    return Border(make, read, (OverlayMismatch,))


def _metadata(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    found = read_metadata(path)
    assert found.boards is not None
    dataclasses.asdict(found)
