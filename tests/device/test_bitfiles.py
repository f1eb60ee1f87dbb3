"""Overlay files as foreign binaries: damage is found before PYNQ's parsers crash on it."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pynq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pynq.pl_server.embedded_device import parse_bit_header
from support.board_overlays import bit, hwh_text, write_files
from support.paths import REPOSITORY, TESTS

from llama_pynq.device import bitfiles
from llama_pynq.device.bitfiles import HEADER, SECTION, check_bit, check_hwh, check_xclbin
from llama_pynq.errors import OverlayMismatch
from llama_pynq.overlay_store.metadata import read_metadata

_COUNT = 448  # offset of m_numSections


@pytest.fixture(scope="module")
def hardware(tmp_path_factory) -> bytes:
    """An .xclbin as v++ writes it, with a dummy configuration."""
    return write_files(tmp_path_factory.mktemp("u50"), "u50").read_bytes()


def refused(data, message, check=check_xclbin):
    with pytest.raises(OverlayMismatch, match=message) as caught:
        check(bytes(data), "the/file")
    assert str(caught.value).startswith("the/file ")


def section(data: bytes, kind: int) -> tuple[int, int, int]:
    """Offset of a section's header, of its data, and its size."""
    for index in range(struct.unpack_from("<I", data, _COUNT)[0]):
        at = HEADER.size + SECTION.size * index
        found, _, offset, size = SECTION.unpack_from(data, at)
        if found == kind:
            return at, offset, size
    raise AssertionError(f"no section {kind}")


def patched(data: bytes, offset: int, format_: str, value) -> bytes:
    out = bytearray(data)
    struct.pack_into(format_, out, offset, value)
    return bytes(out)


def with_section(data: bytes, kind: int, content: bytes) -> bytes:
    """Put other content into a section: behind the others, as tools that patch a file do."""
    at, _, _ = section(data, kind)
    out = bytearray(data + content)
    struct.pack_into("<QQ", out, at + 24, len(data), len(content))
    struct.pack_into("<Q", out, 304, len(out))
    return bytes(out)


def test_real_file_of_vitis_passes_with_its_sections():
    real = (Path(pynq.__file__).parent / "pl_server" / "default.xclbin").read_bytes()
    header, sections = check_xclbin(real, "file")
    assert header.n_bytes <= len(real) and bitfiles.EMBEDDED_METADATA in sections
    assert bitfiles.parse_xclbin(real, "file").ip_dict is not None


@pytest.mark.parametrize("count", [0, 7, 70, 1 << 20, 1 << 31, 0xFFFFFFFF])
def test_section_count_that_leads_out_of_the_file_is_refused(hardware, count):
    refused(patched(hardware, _COUNT, "<I", count), f"announces {count} sections|lies at bytes")


@pytest.mark.parametrize(
    ("offset", "size"), [(1 << 40, 8), (8, 1 << 40), (0, 8), (1 << 63, 1 << 63), (600, 1 << 64 - 1)]
)
def test_section_that_leads_out_of_the_file_is_refused(hardware, offset, size):
    at, _, _ = section(hardware, bitfiles.MEM_TOPOLOGY)
    data = patched(patched(hardware, at + 24, "<Q", offset), at + 32, "<Q", size)
    refused(data, r"section 1 \(kind 6\) lies at bytes")


def test_section_that_is_there_twice_is_refused(hardware):
    at, _, _ = section(hardware, bitfiles.MEM_TOPOLOGY)
    refused(patched(hardware, at, "<I", bitfiles.IP_LAYOUT), "is a second one of kind 8")


@pytest.mark.parametrize("count", [-1, 100, 1 << 30])
@pytest.mark.parametrize(
    ("kind", "name"),
    [(bitfiles.MEM_TOPOLOGY, "MEM_TOPOLOGY"), (bitfiles.IP_LAYOUT, "IP_LAYOUT"),
     (bitfiles.CONNECTIVITY, "CONNECTIVITY")],
)  # fmt: skip
def test_table_that_leads_out_of_its_section_is_refused(hardware, kind, name, count):
    _, offset, _ = section(hardware, kind)
    refused(patched(hardware, offset, "<i", count), f"section {name} announces {count} entries")


def test_clocks_that_lead_out_of_their_section_are_refused(hardware):
    _, offset, _ = section(hardware, bitfiles.CLOCK_FREQ_TOPOLOGY)
    refused(patched(hardware, offset, "<H", 2), "CLOCK_FREQ_TOPOLOGY announces 2 entries")
    refused(patched(hardware, offset + 4, "<b", 4), "clock 0 of .* has the type 4")


@pytest.mark.parametrize(
    "kind",
    [bitfiles.MEM_TOPOLOGY, bitfiles.IP_LAYOUT, bitfiles.CONNECTIVITY,
     bitfiles.CLOCK_FREQ_TOPOLOGY],
)  # fmt: skip
@pytest.mark.parametrize("size", [0, 1, 4, 11])
def test_table_too_short_for_an_entry_is_refused(hardware, kind, size):
    refused(with_section(hardware, kind, bytes(size)), "too few for an entry")


def test_names_that_do_not_end_are_refused(hardware):
    _, offset, _ = section(hardware, bitfiles.IP_LAYOUT)
    data = bytearray(hardware)
    data[offset + 24 : offset + 88] = b"x" * 64
    refused(data, "the name of IP 0 of IP_LAYOUT is no text, or does not end")
    _, offset, _ = section(hardware, bitfiles.MEM_TOPOLOGY)
    refused(patched(hardware, offset + 8 + 24, "<B", 0xFF), "the name of bank 0 of MEM_TOPOLOGY")
    refused(patched(hardware, offset + 8, "<B", 10), "bank 0 of MEM_TOPOLOGY has the type 10")


@pytest.mark.parametrize("place", [4, 8])
@pytest.mark.parametrize("value", [-1, 3, 1 << 30])
def test_connection_to_no_ip_or_bank_is_refused(hardware, place, value):
    _, offset, _ = section(hardware, bitfiles.CONNECTIVITY)
    refused(
        patched(hardware, offset + 4 + place, "<i", value), "connection 0 of CONNECTIVITY leads to"
    )


BOMB = (
    b"""<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><project>&b;</project>"""
)


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        (BOMB, "has a document type at line 1"),
        (b'<!DOCTYPE x SYSTEM "file:///etc/passwd"><x/>', "has a document type"),
        (b"<x>" * 100_000, "nests XML more than 100 deep"),
        (b"<x>", "is not well-formed XML"),
        (b"", "is not well-formed XML"),
        (b"\0\0", "is not well-formed XML"),
        (b"<x>\xff</x>", "is not well-formed XML"),
        (b'<?xml version="1.0" encoding="klingon"?><x/>', "is not well-formed XML"),
        (b'<?xml version="1.0" encoding="latin-1"?><x>\xe4</x>', "is not UTF-8|PYNQ cannot"),
        (b" " * ((64 << 20) + 1), "more than any tool writes"),
    ],
)
def test_xml_that_no_tool_writes_is_refused(hardware, tmp_path, xml, message):
    if "UTF-8" not in message:
        refused(xml, message, check_hwh)
    data = with_section(hardware, bitfiles.EMBEDDED_METADATA, xml)
    refused(data, f"its section EMBEDDED_METADATA .*({message})")
    path = write_files(tmp_path, "kv260")
    path.with_suffix(".hwh").write_bytes(xml)
    with pytest.raises(OverlayMismatch, match=message) as caught:
        read_metadata(path)
    assert str(tmp_path) in str(caught.value)


def test_metadata_that_pynq_cannot_read_is_refused(hardware):
    at, offset, size = section(hardware, bitfiles.EMBEDDED_METADATA)
    xml = hardware[offset : offset + size].replace(b'offset="0x10"', b'offset="here"')
    data = with_section(hardware, bitfiles.EMBEDDED_METADATA, xml)
    refused(data, r"ValueError.*damaged or no overlay", lambda *a: _parsed(*a))
    refused(patched(hardware, at, "<I", 99), "it has no section EMBEDDED_METADATA")


def _parsed(data, source):
    try:
        bitfiles.parse_xclbin(data, source)
    except OverlayMismatch as error:
        assert f"PYNQ cannot read {source}" in str(error)
        raise OverlayMismatch(f"{source} {error}") from None


@pytest.mark.parametrize("json", [b"{", b"[" * 100_000, b"\xff", b""])
def test_build_metadata_that_is_no_json_is_refused(hardware, json):
    at, _, _ = section(hardware, bitfiles.CLOCK_FREQ_TOPOLOGY)
    data = patched(hardware, at, "<I", bitfiles.BUILD_METADATA)
    refused(with_section(data, bitfiles.BUILD_METADATA, json), "its section BUILD_METADATA is")
    check_xclbin(with_section(data, bitfiles.BUILD_METADATA, b'{"build": {}}\0'), "file")


@pytest.mark.parametrize("suffix", [".xclbin", ".bit", ".hwh"])
def test_overlay_that_is_no_file_is_refused_and_not_waited_for(tmp_path, suffix):
    path = write_files(tmp_path, "u50" if suffix == ".xclbin" else "kv260").with_suffix(suffix)
    read = path.with_suffix(".bit") if suffix == ".hwh" else path
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(OverlayMismatch, match=f"{path} cannot be read: it is no regular file"):
        read_metadata(read)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(OverlayMismatch, match=f"{path} cannot be read: it is no regular file"):
        read_metadata(read)
    path.unlink()
    path.mkdir()
    with pytest.raises(OverlayMismatch, match=f"{path} cannot be read: Is a directory"):
        read_metadata(read)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=600))
def test_any_bytes_after_the_magic_are_refused(data):
    refused(b"xclbin2\0" + data, "incomplete|damaged")


# ---- one bit, anywhere -------------------------------------------------------------------


def flipped(run, *arguments) -> tuple[int, int]:
    done = run(TESTS / "support" / "flip_bits.py", *arguments, PYTHONPATH=str(REPOSITORY))
    assert done.returncode == 0, done.stderr[-2000:]
    words = done.stdout.split()
    return int(words[1]), int(words[3])


def test_xclbin_with_a_flipped_bit_of_its_header_never_crashes_pynq(run, tmp_path):
    path = write_files(tmp_path, "u50")
    passed, stopped = flipped(run, path, 0, 0, 296, 320)  # the length, and its neighbours
    assert passed and stopped
    passed, stopped = flipped(run, path, 0, 0, _COUNT, HEADER.size + 6 * SECTION.size)
    assert passed and stopped


@pytest.mark.parametrize("kind", [bitfiles.MEM_TOPOLOGY, bitfiles.IP_LAYOUT, bitfiles.CONNECTIVITY])
def test_xclbin_with_a_flipped_bit_of_a_count_never_crashes_pynq(run, tmp_path, kind):
    path = write_files(tmp_path, "u50")
    _, offset, _ = section(path.read_bytes(), kind)
    passed, stopped = flipped(run, path, 0, 0, offset, offset + 4)
    assert stopped >= 30


def test_xclbin_with_a_flipped_bit_anywhere_never_crashes_pynq(run, tmp_path):
    passed, stopped = flipped(run, write_files(tmp_path, "u50"), 7, 1500)
    assert passed and stopped


def test_hwh_with_a_flipped_bit_anywhere_is_read_or_refused(run, tmp_path):
    path = write_files(tmp_path, "kv260").with_suffix(".hwh")
    passed, stopped = flipped(run, path, 3, 60)
    assert passed + stopped == 60


def test_bit_file_with_a_flipped_bit_is_one_that_pynq_reads_or_is_refused():
    good = bit("7z020clg400")
    read = 0
    for at in range(8 * len(good)):
        bad = bytearray(good)
        bad[at // 8] ^= 1 << at % 8
        try:
            check_bit(bytes(bad), "the/file")
        except OverlayMismatch as error:
            assert str(error).startswith("the/file ")
        else:
            assert parse_bit_header(bytes(bad))["part"]
            read += 1
    assert 0 < read < 8 * len(good)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_bit_file_of_any_header_is_one_that_pynq_reads_or_is_refused(data):
    data = bit("x")[:13] + data
    try:
        check_bit(data, "the/file")
    except OverlayMismatch:
        return
    assert parse_bit_header(data)["length"]


def test_bit_file_whose_length_pynq_would_go_back_by_is_refused():
    """PYNQ takes lengths as signed: it would read the same field for ever."""
    good = bit("7z020clg400")
    size = struct.pack(">h", -3)
    refused(good[:14] + size + good[16:] + bytes(70_000), "field 'a' of its header", check_bit)


def test_good_hwh_passes():
    check_hwh(hwh_text().encode(), "file")


def test_overlay_file_is_read_on_trial_before_a_device_loads_it(hardware, tmp_path):
    """For every device: PYNQ's own device classes would raise whatever the parser does."""
    path = tmp_path / "llama.xclbin"
    path.write_bytes(hardware)
    bitfiles.check_overlay_file(path)
    _, offset, size = section(hardware, bitfiles.EMBEDDED_METADATA)
    xml = hardware[offset : offset + size].replace(b'offset="0x10"', b'offset="here"')
    path.write_bytes(with_section(hardware, bitfiles.EMBEDDED_METADATA, xml))
    with pytest.raises(OverlayMismatch, match=f"PYNQ cannot read {path}"):
        bitfiles.check_overlay_file(path)
