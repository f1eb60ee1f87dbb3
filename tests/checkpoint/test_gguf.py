"""GGUF headers: those of llama.cpp's own writer, and damaged ones."""

import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.gguf_files import write_gguf

from llama_pynq.checkpoint.gguf import read_header
from llama_pynq.errors import CheckpointError

METADATA = {
    "general.architecture": "llama",
    "llama.block_count": 3,
    "llama.rope.freq_base": 1e5,
    "a.bool": True,
    "a.text": "naïve ☕",
    "tokenizer.ggml.tokens": ["<unk>", "ab", "☕", ""],
    "tokenizer.ggml.scores": [0.0, -1.0, -2.5, -3.0],
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    rng = np.random.default_rng(0)
    tensors = {
        "a.weight": (rng.normal(size=(3, 64)).astype(np.float32), "F32"),
        "b.weight": (rng.normal(size=(5, 64)).astype(np.float32), "Q8_0"),
        "c.weight": (rng.normal(size=(7,)).astype(np.float32), "F16"),
        "d.weight": (rng.normal(size=(2, 32)).astype(np.float32), "Q4_0"),
    }
    write_gguf(path, METADATA, tensors)
    return path, tensors


def header_of(path):
    with open(path, "rb", buffering=0) as file:
        return read_header(file, path)


def test_header_is_what_the_library_wrote(written):
    path, tensors = written
    header = header_of(path)
    tokens = [token.encode() for token in METADATA["tokenizer.ggml.tokens"]]
    found = {k: v for k, v in header.metadata.items() if k in METADATA}
    scores = found.pop("tokenizer.ggml.scores")
    assert found.pop("llama.rope.freq_base") == pytest.approx(1e5)
    assert found == {
        **{k: v for k, v in METADATA.items() if k in found},
        "tokenizer.ggml.tokens": tokens,
    }
    assert np.array_equal(scores, METADATA["tokenizer.ggml.scores"])
    assert list(header.tensors) == list(tensors)
    data = path.read_bytes()
    for name, (array, kind) in tensors.items():
        place = header.tensors[name]
        assert (place.type.name, place.shape) == (kind, array.shape)
        blocks = np.frombuffer(data[place.offset : place.offset + place.n_bytes], np.uint8)
        values = place.type.to_float32(blocks.reshape(-1, place.type.n_bytes)).reshape(array.shape)
        assert np.abs(values - array).max() < {"F32": 1e-9, "F16": 3e-3}.get(kind, 0.4)


def entry(key, kind, value):
    name = key.encode()
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + value


def crafted(entries=(), tensors=(), version=3, n_tensors=None, n_entries=None):
    """A file of raw parts."""
    head = struct.pack(
        "<4sIQQ", b"GGUF", version, len(tensors) if n_tensors is None else n_tensors,
        len(entries) if n_entries is None else n_entries,
    )  # fmt: skip
    data = head + b"".join(entries) + b"".join(tensors)
    return data + bytes(-len(data) % 32)


def tensor(name=b"t", shape=(32,), kind=0, offset=0):
    dims = b"".join(struct.pack("<Q", size) for size in shape)
    return (struct.pack("<Q", len(name)) + name + struct.pack("<I", len(shape)) + dims
            + struct.pack("<IQ", kind, offset))  # fmt: skip


STRINGS = struct.pack("<IQ", 8, 1 << 63)
NESTED = struct.pack("<IQ", 9, 1) * 100_000


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"GGUF", "the version at byte 4 would end at byte 8, the file ends at 4: it is truncated"),
        (crafted(version=1), "its version is 1, and 2 and 3 are read"),
        (crafted(version=3 << 24), "for computers of the other byte order"),
        (crafted(n_tensors=1 << 63), "the number of tensors at byte 8 is 9223372036854775808"),
        (crafted(n_entries=1 << 40), "the number of metadata entries at byte 16 is"),
        (crafted([struct.pack("<Q", 1 << 62)]), "a metadata key at byte 32 has"),
        (crafted([entry("k", 8, struct.pack("<Q", 1 << 63))]), "the file ends at 64"),
        (crafted([entry("k", 9, STRINGS)]), "k has 9223372036854775808 strings, and at most"),
        (crafted([entry("k", 9, struct.pack("<IQ", 4, 1 << 61))]), "k at byte 49 would end at"),
        (crafted([entry("k", 9, NESTED)]), "k is an array of type 9, and none of that is read"),
        (crafted([entry("k", 13, b"")]), "k is of type 13, which does not exist"),
        (crafted([entry("k", 0, b"1")] * 2), "the metadata key 'k' comes twice"),
        (crafted([entry("k", 8, struct.pack("<Q", 2) + b"\xff\xfe")]), "k is not UTF-8 at byte"),
        (crafted([entry("general.alignment", 4, struct.pack("<I", 0))]), "alignment is 0"),
        (crafted([entry("general.alignment", 4, struct.pack("<I", 48))]), "alignment is 48"),
        (crafted([], [tensor()]), "the tensor 't' ends at byte 192, the file at 64"),
        (crafted([], [tensor(shape=(1 << 63,) * 4)]), "the tensor 't' ends at byte"),
        (crafted([], [tensor(shape=(0,))]), "'t' has the shape (0,)"),
        (crafted([], [tensor(shape=(33,), kind=8)]), "its rows are no whole blocks of 32"),
        (crafted([], [tensor(shape=(1,) * 5)]), "the tensor 't' has 5 dimensions"),
        (crafted([], [tensor(kind=16)]), "the tensor 't' is of type IQ2_XXS, and F32, F16"),
        (crafted([], [tensor(kind=99)]), "the tensor 't' is of type number 99"),
        (crafted([], [tensor(offset=1 << 62)]), "the tensor 't' begins at byte"),
        (crafted([], [tensor(shape=(1,))] * 2) + bytes(64), "the tensor 't' comes twice"),
    ],
)  # fmt: skip
def test_damaged_header_is_named_at_once(tmp_path, data, message):
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(CheckpointError) as caught:
        header_of(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(caught.value).startswith(f"{path} is a GGUF file that cannot be read: ")
    assert message in str(caught.value)
    assert peak < 8 << 20


def test_a_header_that_never_ends_is_not_read(tmp_path):
    """A sparse file of 1 GiB, of which a string of metadata claims nearly all."""
    path = tmp_path / "m.gguf"
    data = crafted([entry("k", 8, struct.pack("<Q", (1 << 30) - 100))])
    with path.open("wb") as file:
        file.write(data)
        file.truncate(1 << 30)
    with pytest.raises(
        CheckpointError, match="k at byte 45 ends at .*: a header of more than 32 MiB"
    ):
        header_of(path)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(data=st.data())
def test_mutants_are_read_or_refused(written, tmp_path_factory, data):
    path, _ = written
    mutant = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(len(mutant), 700) - 1))
        mutant[at] = data.draw(st.integers(0, 255))
    mutant = mutant[: data.draw(st.sampled_from([len(mutant), len(mutant) - 1, 500, 100, 30]))]
    other = tmp_path_factory.getbasetemp() / "mutant.gguf"
    other.write_bytes(mutant)
    try:
        header = header_of(other)
    except CheckpointError:
        return
    for place in header.tensors.values():
        assert place.offset + place.n_bytes <= len(mutant)


def test_half_a_million_strings_are_read(tmp_path):
    tokens = [f"token {i}" for i in range(500_000)]
    path = tmp_path / "m.gguf"
    write_gguf(path, {"tokenizer.ggml.tokens": tokens}, {})
    found = header_of(path).metadata["tokenizer.ggml.tokens"]
    assert len(found) == 500_000 and found[-1] == b"token 499999"
