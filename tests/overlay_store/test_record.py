"""Overlay records: written, read back, and refused if damaged."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_pynq.boards import boards
from llama_pynq.errors import OverlayMismatch
from llama_pynq.overlay_store.record import OverlayFile, OverlayRecord

NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
DIGESTS = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)


TEXT = st.text().filter(str.isprintable)


@st.composite
def records(draw: st.DrawFn) -> OverlayRecord:
    stem = draw(NAMES)
    kinds = draw(st.sampled_from([(".bit", ".hwh"), (".xclbin",)]))
    hosts = st.sampled_from(["https://example.org", "http://127.0.0.1:80", "http://[::1]", "file:"])
    url = st.none() | st.builds("{}/{}".format, hosts, NAMES)
    return OverlayRecord(
        board=draw(st.sampled_from(sorted(boards()))),
        abi=draw(st.none() | st.integers(1, 9)),
        clock_mhz=draw(st.none() | st.floats(50, 400)),
        files=tuple(
            OverlayFile(stem + kind, draw(DIGESTS), draw(st.integers(0, 1 << 40)), draw(url))
            for kind in kinds
        ),
        tools=draw(st.dictionaries(NAMES, NAMES)),
        built=draw(st.dates()).isoformat(),
        built_by=draw(TEXT),
        source=draw(TEXT),
        platform=draw(st.none() | NAMES),
        report=draw(st.none() | st.dictionaries(NAMES, st.floats(-9, 1e6))),
        measured=draw(st.none() | TEXT),
    )


@given(records())
def test_record_written_is_read_back(tmp_path_factory, record):
    folder = tmp_path_factory.mktemp("record")
    assert OverlayRecord.read(record.write(folder)) == record


@pytest.fixture
def fields(tmp_path: Path) -> dict:
    (tmp_path / "llama.bit").write_bytes(b"bits")
    (tmp_path / "llama.hwh").write_bytes(b"")
    files = tuple(OverlayFile.of(tmp_path / name) for name in ("llama.bit", "llama.hwh"))
    record = OverlayRecord(
        "kv260", 3, 300.0, files, {"vivado": "2022.1"}, "2026-11-23", "us", "v1", None, {}
    )
    return json.loads(record.write(tmp_path).read_text())


def test_record_hashes_its_files(fields):
    assert [f["n_bytes"] for f in fields["files"]] == [4, 0]
    # The well-known SHA-256 of the empty string (FIPS 180-4).
    assert fields["files"][1]["sha256"].startswith("e3b0c44298fc1c149afbf4c8996fb924")


def test_origin_is_one_line(fields, tmp_path):
    record = OverlayRecord.read(tmp_path / "overlay.json")
    assert record.origin == "2026-11-23 by us, from v1, with vivado 2022.1"
    bare = replace(record, tools={}, platform="xilinx_u50_x")
    assert bare.origin == "2026-11-23 by us, from v1, for xilinx_u50_x"


def damage(**changes):
    return lambda fields: {**fields, **changes}


def first_file(**changes):
    return lambda fields: {
        **fields,
        "files": [{**fields["files"][0], **changes}, fields["files"][1]],
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: [f], "it is not a JSON object"),
        (damage(format=2), "its format is 2, this version of llama_pynq reads 1"),
        (
            lambda f: {k: v for k, v in f.items() if k != "board"},
            "record of an overlay: it lacks 'b",
        ),
        (first_file(colour="red"), "it has a field 'colour' that this version does not know"),
        (lambda f: {**f, "files": ["llama.bit"]}, "'llama.bit' is not a JSON object"),
        (damage(board="kv261"), "names a board 'kv261', not one of pynq-z1"),
        (damage(abi="3"), "abi is '3'"),
        (damage(built="yesterday"), "yesterday"),
        (damage(colour="red"), "it has a field 'colour' that this version does not know"),
        (first_file(name="../llama.bit"), "'../llama.bit' is no plain file name"),
        (first_file(name="other.bit"), "different names"),
        (first_file(sha256="beef"), "the sha256 of llama.bit is 'beef'"),
        (first_file(n_bytes=-1), "n_bytes of llama.bit is -1"),
        (first_file(url="http://example.org/llama.bit"), "https or file is expected"),
        (first_file(url="http://localhost.example.org/llama.bit"), "https or file is expected"),
        (first_file(url="https:///llama.bit"), "https or file is expected"),
        (first_file(url="https://[::1/llama.bit"), "https or file is expected"),
        (first_file(url="ftp://localhost/llama.bit"), "https or file is expected"),
        (damage(measured=True), "measured is True"),
        (damage(built_by="evil\x1b[2J"), "holds characters that move a terminal's cursor"),
        (damage(source="a\nb"), "holds characters that move"),
        (damage(measured="\u202e"), "holds characters that move"),
        (damage(tools={"v\x07": "1"}), "holds characters that move"),
        (damage(abi=True), "abi is True"),
        (damage(clock_mhz=-1), "clock_mhz is -1"),
        (damage(clock_mhz=10**400), "has 401 characters"),
        (damage(board=["kv260"]), "names a board"),
        (damage(files={"name": "llama.bit"}), "not a list"),
        (damage(files=None), "files is None, not a list"),
        (damage(tools={"vivado": 2022.1}), "the version of vivado is 2022.1"),
        (damage(report={"lut": "many"}), "lut of the report is 'many'"),
        (first_file(url=5), "the URL of llama.bit is 5"),
        (first_file(name=None), "name of a file is None"),
        (first_file(sha256=0), "sha256 of a file is 0"),
        (first_file(n_bytes=True), "n_bytes of llama.bit is True"),
        (first_file(n_bytes=1 << 60), "n_bytes of llama.bit is 1152921504606846976"),
        (lambda f: {**f, "files": f["files"][:1]}, r"its files are \['.bit'\]"),
    ],
)
def test_damaged_record_is_refused_by_name(tmp_path, fields, change, message):
    path = tmp_path / "overlay.json"
    path.write_text(json.dumps(change(fields)))
    with pytest.raises(OverlayMismatch, match=message) as caught:
        OverlayRecord.read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[" * 100_000, "it nests too deeply"),
        (b'{"a":' * 100_000, "it nests too deeply"),
        (b'{"format": NaN}', "NaN is no JSON number"),
        (b'{"format": 1e999}', "the number '1e999' is beyond float64"),
        (b'{"format": 1, "format": 1}', "the key 'format' comes twice"),
        (rb'{"format": "\ud800"}', "half of a surrogate pair"),
        (rb'{"\udc80": 1}', "half of a surrogate pair"),
        (b"\xff{}", "it is not UTF-8 at byte 0"),
        (b"", "it is not JSON"),
    ],
)
def test_record_of_malicious_json_is_refused_by_name(tmp_path, text, message):
    path = tmp_path / "overlay.json"
    path.write_bytes(text)
    with pytest.raises(OverlayMismatch, match=f"^{path} is damaged: .*{message}"):
        OverlayRecord.read(path)


@pytest.mark.parametrize("kind", ["folder", "FIFO", "endless"])
def test_record_that_is_no_file_is_refused_by_name(tmp_path, kind):
    path = tmp_path / "overlay.json"
    if kind == "folder":
        path.mkdir()
    elif kind == "FIFO":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(OverlayMismatch, match=f"^{path} cannot be read"):
        OverlayRecord.read(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(record=records(), data=st.data())
def test_any_change_of_a_record_is_read_or_refused(tmp_path_factory, record, data):
    """Replace a value anywhere, or flip a bit: never another error than the package's own."""
    path = record.write(tmp_path_factory.mktemp("record"))
    fields = json.loads(path.read_text())
    place = data.draw(st.sampled_from([fields, *fields["files"]]))
    place[data.draw(st.sampled_from(sorted(place)))] = data.draw(JSON)
    text = bytearray(json.dumps(fields).encode())
    if data.draw(st.booleans()):
        text[data.draw(st.integers(0, len(text) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(text)
    try:
        assert isinstance(OverlayRecord.read(path).origin, str)
    except OverlayMismatch as error:
        assert str(path) in str(error)


def test_record_that_is_no_json_is_refused(tmp_path):
    path = tmp_path / "overlay.json"
    path.write_text("{")
    with pytest.raises(OverlayMismatch, match="is damaged: it is not JSON"):
        OverlayRecord.read(path)
