"""Reader of safetensors headers; the format's own library writes files, and is asked about ours."""

import json
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save_file

from llama_pynq.checkpoint.safetensors import (
    DTYPE_BITS,
    MAX_HEADER_BYTES,
    SafetensorsError,
    read_header,
)
from llama_pynq.errors import CheckpointError

HERE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
DTYPES = {"U8": "u1", "I8": "i1", "U16": "<u2", "F16": "<f2", "F32": "<f4", "I64": "<i8"}


def header_of(path):
    with open(path, "rb") as file:
        return read_header(file, path)


def file_of(header, data=b"", *, length=None) -> bytes:
    """A file's bytes; `header` is JSON text or an object."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype="U8", shape=(4,), offsets=(0, 4), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


# ---- files of the library --------------------------------------------------------------


@HERE
@given(
    shapes=st.dictionaries(
        st.text(max_size=8).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 3), max_size=3)),
        max_size=5,
    ),
    metadata=st.none()
    | st.dictionaries(st.text(max_size=8), st.text(max_size=8), min_size=1, max_size=4),
)
def test_what_the_library_writes_is_read(tmp_path, shapes, metadata):
    tensors = {
        name: np.full(shape, i + 1, DTYPES[dtype])
        for i, (name, (dtype, shape)) in enumerate(shapes.items())
    }
    path = tmp_path / "model.safetensors"
    save_file(tensors, str(path), metadata)
    header, data = header_of(path), path.read_bytes()
    assert header.metadata == (metadata or {})
    assert set(header.tensors) == set(tensors)
    for name, tensor in header.tensors.items():
        assert (tensor.dtype, list(tensor.shape)) == shapes[name]
        assert data[tensor.offset :][: tensor.n_bytes] == tensors[name].tobytes()


@pytest.mark.parametrize("dtype", sorted(DTYPE_BITS))
def test_dtype_is_one_that_the_library_knows(tmp_path, dtype):
    n_bytes = DTYPE_BITS[dtype]  # of eight elements
    path = tmp_path / "model.safetensors"
    path.write_bytes(file_of({"a": entry(dtype, (8,), (0, n_bytes))}, bytes(n_bytes)))
    assert header_of(path).tensors["a"].n_bytes == n_bytes
    deserialize(path.read_bytes())


# ---- files that are wrong --------------------------------------------------------------

LONG = {"a": entry(), "b": entry(offsets=(4, 8))}
WRONG = [
    (b"", "ends at byte 0, before its header"),
    (b"\0\0\0", "ends at byte 3, before its header"),
    (file_of(b"{}", length=1 << 60), f"header of {1 << 60} bytes, and at most {MAX_HEADER_BYTES}"),
    (file_of(b"{}", length=MAX_HEADER_BYTES + 1), "at most"),
    (file_of(b"{}", length=3), "header has 3 bytes, the whole file 10: it is truncated"),
    (file_of(b""), "does not start with '{'"),
    (file_of(b" {}"), "does not start with '{'"),
    (file_of(b"[]"), "does not start with '{'"),
    (file_of(b'{"a": '), "from byte 8 on: it is not JSON"),
    (file_of(b"{}\0"), "not JSON"),
    (file_of(b'{"\xff": 1}'), "not UTF-8 at byte 10"),
    (file_of(b'{"a": ' * 50_000), "nests too deeply"),
    (file_of(b'{"a": 1, "a": 1}'), "the key 'a' comes twice"),
    (file_of({"__metadata__": []}), "__metadata__ is \\[\\], not an object"),
    (file_of({"__metadata__": {"a": 1}}), "__metadata__, 'a' is 1, not a string"),
    (file_of({"a": 1}), "tensor 'a' is 1, not dtype, shape and data_offsets"),
    (file_of({"a": entry(extra=1)}, bytes(4)), "tensor 'a' is {.*, not dtype, shape"),
    (file_of({"a": entry("u8")}, bytes(4)), "tensor 'a': dtype 'u8' is none of BOOL, F4"),
    (file_of({"a": entry(["U8"])}, bytes(4)), "dtype \\['U8'\\] is none of"),
    (file_of({"a": entry(shape=(4.0,))}, bytes(4)), r"shape\[0\] is 4.0, not a whole number"),
    (file_of({"a": entry(shape=(True, 4))}, bytes(4)), r"shape\[0\] is True, not a whole"),
    (file_of({"a": entry(shape=(-4,))}, bytes(4)), r"shape\[0\] is -4, not a whole number"),
    (file_of({"a": {**entry(), "shape": 4}}, bytes(4)), "shape is 4, not a list"),
    (file_of({"a": entry(shape=(1 << 33,) * 2)}, bytes(4)), "has more elements than 2\\^64"),
    (file_of({"a": entry(shape=(1 << 63, 4, 0), offsets=(0, 0))}), "more elements than 2\\^64"),
    (file_of({"a": entry(shape=(1 << 65,))}, bytes(4)), "not a whole number"),
    (file_of({"a": entry(offsets=(4, 0))}, bytes(4)), r"\[4, 0\] are not a begin and an end"),
    (file_of({"a": entry(offsets=(0, 4, 8))}, bytes(8)), "are not a begin and an end"),
    (file_of({"a": entry("F32")}, bytes(4)), "are 4 bytes; 4 elements of F32 are 16"),
    (file_of({"a": entry("F4", (3,), (0, 2))}, bytes(2)), "3 elements of F4 are 1.5"),
    (file_of({"a": entry()}, bytes(3)), "tensors end at byte 72, the file at 71"),
    (file_of({"a": entry()}, bytes(5)), "tensors end at byte 72, the file at 73"),
    (file_of({"a": entry(offsets=(1, 5))}, bytes(5)), "tensor 'a': its data begin at byte"),
    (file_of({**LONG, "b": entry(offsets=(5, 9))}, bytes(9)), "'b': .*without gap or overlap"),
    (file_of({**LONG, "b": entry(offsets=(2, 6))}, bytes(6)), "'b': .*without gap or overlap"),
    (file_of({"a": entry(offsets=(1 << 63, (1 << 63) + 4))}, bytes(4)), "begin at byte"),
]


@pytest.mark.parametrize(("data", "why"), WRONG, ids=[why for _, why in WRONG])
def test_wrong_file_is_refused_with_its_place(tmp_path, data, why):
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=f"model.safetensors is no sound .*{why}"):
        header_of(path)


VALUE = (
    st.none() | st.booleans() | st.floats() | st.text(max_size=4)
    | st.sampled_from([-1, 0, 1, 3, 4, 5, 8, 1 << 31, 1 << 32, 1 << 62, 1 << 63, 1 << 64, 1 << 70])
    | st.lists(st.integers(-1, 1 << 64) | st.booleans(), max_size=3)
    | st.sampled_from([*DTYPE_BITS, "u8", "F128"])
    | st.dictionaries(st.text(max_size=2), st.integers(), max_size=2)
)  # fmt: skip


@HERE
@given(data=st.data())
def test_what_is_read_the_library_reads_alike(tmp_path, data):
    """One value of a sound header is replaced, or one byte: no other error, and no tensor that
    the library does not see."""
    header = {
        "__metadata__": {"a": "b"},
        "x": entry("F32", (2, 3), (0, 24)),
        "y": entry("U8", (0, 5), (24, 24)),
        "z": entry("BF16", (4,), (24, 32)),
    }
    name = data.draw(st.sampled_from(sorted(header)))
    key = data.draw(st.sampled_from(sorted(header[name])))
    if isinstance(header[name][key], list) and header[name][key] and data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(header[name][key]) - 1))
        header[name][key][at] = data.draw(VALUE)
    else:
        header[name][key] = data.draw(VALUE)
    content = bytearray(file_of(header, bytes(32)))
    if data.draw(st.booleans()):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    try:
        tensors = header_of(path).tensors
    except SafetensorsError:
        return
    assert all(t.offset + t.n_bytes <= len(content) for t in tensors.values())
    try:
        theirs = dict(deserialize(bytes(content)))
    except SafetensorError as error:  # pragma: no cover
        raise AssertionError(f"the library refuses {bytes(content)!r}: {error}") from None
    assert {n: (t.dtype, list(t.shape), t.n_bytes) for n, t in tensors.items()} == {
        n: (t["dtype"], list(t["shape"]), len(t["data"])) for n, t in theirs.items()
    }


def test_header_longer_than_the_cap_is_not_read(tmp_path):
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 1 << 40) + b"{")
        file.truncate(1 << 41)  # sparse
    with pytest.raises(SafetensorsError, match="at most"):
        header_of(path)


def test_file_cut_after_it_was_opened_is_an_error(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(file_of({"a": entry()}, bytes(4)))
    with path.open("rb", buffering=0) as file:
        path.write_bytes(path.read_bytes()[:20])
        with pytest.raises(SafetensorsError, match="truncated"):
            read_header(file, path)
