"""The payload container and the cache of extracted kernels."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_pynq.emulation import container
from llama_pynq.emulation.container import Container, Payload
from llama_pynq.emulation.design import Design, xclbin_design, zynq_design
from llama_pynq.errors import OverlayMismatch

PAYLOADS = (
    Payload("x86-64", "Linux", "x86_64", (), b"library one"),
    Payload("x86-64-v3", "Linux", "x86_64", ("avx2", "fma"), bytes(range(256)) * 3),
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLAMA_PYNQ_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("channels", [1, 32])
def test_container_round_trip_keeps_everything(channels):
    for design in (xclbin_design(channels, 2, 300), zynq_design(channels, 2, 142)):
        contents = Container(design, PAYLOADS, "ab" * 32)
        assert container.unpack(container.pack(contents), "file") == contents


def test_container_layout_is_the_documented_one():
    data = container.pack(Container(zynq_design(2, 2, 100), PAYLOADS))
    assert data[:8] == b"LLPYEMU1"
    header_bytes = int.from_bytes(data[8:12], "little")
    start = -(-(44 + header_bytes) // 64) * 64
    assert data[start:].startswith(b"library one")
    assert data[start + 64 :].startswith(PAYLOADS[1].data)


def test_container_damage_is_found_wherever_it_is():
    contents = Container(zynq_design(2, 2, 100), PAYLOADS)
    good = container.pack(contents)
    rng = random.Random(1)
    for position in rng.sample(range(len(good)), 200):
        bad = bytearray(good)
        bad[position] ^= 1 << rng.randrange(8)
        with contextlib.suppress(OverlayMismatch):
            assert container.unpack(bytes(bad), "file") == contents  # padding


@pytest.mark.parametrize("size", [8, 40, 100, -1, -100])
def test_container_cut_short_is_refused(size):
    data = container.pack(Container(zynq_design(2, 2, 100), PAYLOADS[1:]))
    # Padding follows the last payload: cut into the payload itself.
    with pytest.raises(OverlayMismatch, match=r"file\.bit is damaged"):
        container.unpack(data[: size if size > 0 else size - 64], "file.bit")


def signed(data: bytes, change) -> bytes:
    """The container with another header, its checksum right."""
    length = int.from_bytes(data[8:12], "little")
    fields = json.loads(data[44 : 44 + length])
    fields = change(fields) or fields
    header = fields if isinstance(fields, bytes) else json.dumps(fields, sort_keys=True).encode()
    start = 44 + len(header)
    prefix = data[:8] + struct.pack("<I", len(header)) + hashlib.sha256(header).digest()
    return prefix + header + bytes(-start % 64) + data[44 + length + -(44 + length) % 64 :]


def setting(place: str, value):
    """A change of one field; `place` is its path in the header."""

    def change(fields) -> None:
        *names, last = [int(name) if name.isdigit() else name for name in place.split(".")]
        for name in names:
            fields = fields[name]
        fields[last] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        *(setting("payloads.1.size", n) for n in (-1, 1 << 62, 2.0, True, None, "3")),
        *(setting("payloads.1.offset", n) for n in (-64, 1, 1 << 62, 1e300, [])),
        *(setting("payloads.0.features", v) for v in ("avx2", [1], {}, ["x"] * 1000)),
        *(setting("payloads.0.level", v) for v in (7, None, "x" * 1000, "\x1b[2J")),
        setting("payloads", {}),
        setting("payloads", [5]),
        setting("metadata_sha256", 5),
        *(setting("design.arguments.0.offset", n) for n in (-4, 0, 17, 0x10000, 1 << 70, "16")),
        *(setting("design.arguments.0.size_bits", n) for n in (0, 33, 1 << 40)),
        setting("design.arguments.0.bank", "DDR[9]"),
        setting("design.arguments.0.depth", []),
        setting("design.protocol", "ap_ctrl_none"),
        setting("design.protocol", []),
        setting("design.base_address", -1),
        setting("design.address_range", 1 << 60),
        setting("design.clock_mhz", "100"),
        setting("design.colour", "red"),
        lambda fields: fields["design"].update(arguments=fields["design"]["arguments"] * 40),
        lambda fields: fields["design"].pop("banks"),
        lambda fields: b"[" * 100_000,
        lambda fields: b'{"design": NaN}',
        lambda fields: b"\xff",
        lambda fields: b" " * (2 << 20),
    ],
)
def test_container_whose_header_is_wrong_is_refused(change):
    data = container.pack(Container(xclbin_design(2, 2, 100), PAYLOADS))
    with pytest.raises(OverlayMismatch, match=r"^file\.bit is damaged: the header .* is wrong, "):
        container.unpack(signed(data, change), "file.bit")


JSON = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just([]) | st.just({})
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_container_of_any_header_is_one_or_refused(data):
    def change(fields) -> None:
        place = data.draw(
            st.sampled_from(
                [fields, fields["design"], fields["payloads"][1], fields["design"]["banks"][0]]
                + fields["design"]["arguments"]
            )
        )
        place[data.draw(st.sampled_from(sorted(place)))] = data.draw(JSON)

    good = container.pack(Container(xclbin_design(2, 2, 100), PAYLOADS))
    with contextlib.suppress(OverlayMismatch):
        assert isinstance(container.unpack(signed(good, change), "file").design, Design)


def test_container_of_another_kind_is_refused():
    with pytest.raises(OverlayMismatch, match=r"file\.bit holds no emulated kernel"):
        container.unpack(b"\xff" * 100, "file.bit")


def test_extract_writes_once(cache):
    path = container.extract(PAYLOADS[0])
    assert path.is_relative_to(cache)
    assert path.read_bytes() == PAYLOADS[0].data
    before = path.stat().st_ino
    assert container.extract(PAYLOADS[0]).stat().st_ino == before


def test_extract_rewrites_a_damaged_cache(cache):
    path = container.extract(PAYLOADS[0])
    path.write_bytes(b"library 0ne")
    assert container.extract(PAYLOADS[0]).read_bytes() == PAYLOADS[0].data
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_extract_says_what_to_do_when_the_cache_cannot_be_written(cache, monkeypatch):
    (cache / "file").write_text("not a folder")
    monkeypatch.setenv("LLAMA_PYNQ_CACHE", str(cache / "file"))
    with pytest.raises(OverlayMismatch, match="Set LLAMA_PYNQ_CACHE to a folder"):
        container.extract(PAYLOADS[0])
