"""The payload container and the cache of extracted kernels."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import pytest

from llama_pynq.emulation import container
from llama_pynq.emulation.container import Container, Payload
from llama_pynq.emulation.design import xclbin_design, zynq_design
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
