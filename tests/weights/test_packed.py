"""Weights: quantisation, channel layout, packed files, and their cache."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.checkpoint_files import quantize_q80, random_weights, write_checkpoint
from support.kernel_library import RandomModel

from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.checkpoint.load import load_checkpoint
from llama_pynq.errors import CheckpointError, LimitError
from llama_pynq.kernel.config import Target
from llama_pynq.weights import packed
from llama_pynq.weights.packed import (
    PackedModel,
    is_packed,
    open_packed,
    pack_cached,
    write_packed,
)
from llama_pynq.weights.quantize import QuantizedModel, quantize_weights
from llama_pynq.weights.tiles import channel_bytes, pack_channels, row_bytes

f32 = np.float32
CONFIG = ModelConfig(64, 128, 2, 4, 2, 100, 32, True)
UNTIED = ModelConfig(64, 172, 2, 4, 2, 101, 32, False)
HALF = ModelConfig(96, 160, 2, 4, 2, 70, 16, True)  # the last groups are stored as half groups
TARGETS = [Target(2, 32), Target(4, 32), Target(32, 16)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("LLAMA_PYNQ_CACHE", str(folder))
    return folder


@pytest.fixture
def new_checkpoint(tmp_path):
    """Write and open checkpoints; closed at the end."""
    opened = []

    def make(config=CONFIG, version=0, group_size=None, name="model.bin", rope_theta=10000.0,
             **options):  # fmt: skip
        write_checkpoint(tmp_path / name, config, version, group_size, **options)
        opened.append(load_checkpoint(tmp_path / name, rope_theta))
        return opened[-1]

    yield make
    for checkpoint in opened:
        checkpoint.close()


def uploaded(packed: PackedModel, **options: int) -> list[np.ndarray]:
    """All channels as ``upload`` delivers them."""
    channels = []
    for channel, size in enumerate(packed.sizes):
        memory = np.zeros(size, np.uint8)

        def write(at, part, memory=memory):
            memory[at : at + len(part)] = part

        packed.upload(channel, write, **options)
        channels.append(memory)
    return channels


# ---- quantising -------------------------------------------------------------------------


@settings(derandomize=True, deadline=None, max_examples=50)
@given(seed=st.integers(0, 1000), rows=st.integers(1, 5), n=st.integers(1, 200),
       group_size=st.sampled_from([32, 64]), size=st.integers(-90, 120))  # fmt: skip
def test_quantize_weights_within_half_a_step(seed, rows, n, group_size, size):
    w = (np.random.default_rng(seed).normal(0, 1, (rows, n)) * 2.0**size).astype(f32)
    matrix = quantize_weights(w, group_size)
    assert matrix.q.dtype == np.int8 and matrix.scale.dtype == f32
    assert matrix.group_size == group_size
    step = np.repeat(matrix.scale, group_size, axis=1)[:, :n].astype(np.float64)
    assert (np.abs(matrix.q[:, :n] * step - w) <= step * (0.5 + 1e-5)).all()
    assert (matrix.q[:, n:] == 0).all() and np.abs(matrix.q.astype(int)).max() == 127


@settings(derandomize=True, deadline=None, max_examples=50)
@given(seed=st.integers(0, 1000), rows=st.integers(1, 5), n=st.integers(1, 200),
       size=st.integers(-90, 120))  # fmt: skip
def test_quantize_weights_int4_best_of_its_scales(seed, rows, n, size):
    """Never worse than the scale max / 7, and no weight is off by more than a step."""
    w = (np.random.default_rng(seed).normal(0, 1, (rows, n)) * 2.0**size).astype(f32)
    matrix = quantize_weights(w, 64, 4)
    assert matrix.bits == 4 and matrix.q.min() >= -8 and matrix.q.max() <= 7
    assert (matrix.q[:, n:] == 0).all()
    padded = np.zeros(matrix.q.shape)
    padded[:, :n] = w
    groups = padded.reshape(rows, -1, 64)
    error = matrix.dequantize().astype(np.float64).reshape(groups.shape) - groups
    largest = np.abs(groups).max(axis=-1, keepdims=True)
    plain = np.where(largest > 0, largest, 1) / 7
    rounded = np.rint(groups / plain) * plain
    squares = np.square(rounded - groups).sum(axis=-1)
    assert (np.square(error).sum(axis=-1) <= squares * (1 + 1e-4)).all()
    assert (np.abs(error) <= largest / 6.5 * 1.001).all()


def test_quantize_weights_int4_exact_where_it_can_be():
    q = np.random.default_rng(1).integers(-7, 8, (3, 128)).astype(np.int8)
    q[:, ::64] = -7
    q[0, 64] = -8
    scale = np.array([[0.5, 0.25], [2.0, 1.0], [4.0, 2.0**-90]], f32)
    w = (q.reshape(3, 2, 64) * scale[..., None]).reshape(3, 128)
    np.testing.assert_array_equal(quantize_weights(w, 64, 4).dequantize(), w)


def test_quantize_weights_same_as_llama2c():
    w = np.random.default_rng(3).normal(0, 0.1, (5, 128)).astype(f32)
    q, scale = quantize_q80(w, 64)
    matrix = quantize_weights(w, 64)
    np.testing.assert_array_equal(matrix.q, q)
    np.testing.assert_array_equal(matrix.scale.reshape(-1), scale)


def test_quantize_weights_tiny_groups_become_zero():
    w = np.zeros((1, 128), f32)
    w[0, 32:64] = 127 * 2.0**-100
    w[0, 64:96] = 126 * 2.0**-100
    w[0, 96:] = 1e-42
    matrix = quantize_weights(w, 32)
    np.testing.assert_array_equal(matrix.scale, np.array([[0, 2.0**-100, 0, 0]], f32))
    assert (matrix.q[0, 32:64] == 127).all()
    assert not matrix.q[0, :32].any() and not matrix.q[0, 64:].any()


@pytest.mark.parametrize(
    ("columns", "size", "bits", "expected"),
    [
        (288, 64, 8, 4 * 68 + 36),
        (288, 32, 8, 9 * 36),
        (288, 64, 4, 5 * 36),
        (768, 64, 8, 12 * 68),
        (33, 64, 8, 68),
        (1, 64, 8, 36),
    ],
)
def test_row_bytes_store_half_of_a_last_group_that_is_half_padding(columns, size, bits, expected):
    assert row_bytes(columns, size, bits) == expected


@given(columns=st.integers(1, 1000))
def test_groups_of_64_never_take_more_bytes_than_groups_of_32(columns):
    assert row_bytes(columns, 64, 8) <= row_bytes(columns, 32, 8)


def test_quantized_model_of_float_weights(new_checkpoint):
    checkpoint = new_checkpoint(UNTIED, seed=1)
    model = QuantizedModel(checkpoint)
    assert not model.exact
    assert model.note == f"float32 weights quantised to int8 in groups of {model.group_size}"
    w = random_weights(UNTIED, 1)
    expected = quantize_weights(w["w2"][1], model.group_size)
    np.testing.assert_array_equal(model.matrix("w2", 1).q, expected.q)
    np.testing.assert_array_equal(model.matrix("w2", 1).scale, expected.scale)
    np.testing.assert_array_equal(model.vector("rms_ffn_weight", 1), w["rms_ffn_weight"][1])


@pytest.mark.parametrize("stored", [32, 64])
def test_quantized_model_uses_the_files_int8_as_it_is(new_checkpoint, stored):
    checkpoint = new_checkpoint(CONFIG, 2, stored)
    model = QuantizedModel(checkpoint)
    assert model.exact and model.group_size == stored
    assert model.note == f"int8 weights used as they are (groups of {stored})"
    for name, layer in (("wq", 1), ("w2", 0), ("wcls", None), ("token_embedding_table", None)):
        q, scale = checkpoint.quantized(name, layer)
        matrix = model.matrix(name, layer)
        np.testing.assert_array_equal(matrix.q, q)
        np.testing.assert_array_equal(matrix.scale, scale)


@pytest.mark.parametrize("stored, asked, size", [(128, None, 64), (128, 32, 32), (96, None, 32)])
def test_quantized_model_splits_larger_groups_exactly(new_checkpoint, stored, asked, size):
    config = ModelConfig(384, 384, 1, 4, 2, 50, 32, True)
    checkpoint = new_checkpoint(config, 2, stored)
    model = QuantizedModel(checkpoint, asked)
    assert model.exact and model.group_size == size
    q, scale = checkpoint.quantized("wk", 0)
    matrix = model.matrix("wk", 0)
    np.testing.assert_array_equal(matrix.q, q)
    np.testing.assert_array_equal(matrix.scale, np.repeat(scale, stored // size, axis=1))
    np.testing.assert_array_equal(matrix.dequantize(), checkpoint.tensor("wk", 0))


@pytest.mark.parametrize("stored, asked", [(16, None), (4, 32), (32, 64)])
def test_quantized_model_requantises_smaller_groups_and_says_so(new_checkpoint, stored, asked):
    checkpoint = new_checkpoint(CONFIG, 2, stored)
    model = QuantizedModel(checkpoint, asked)
    size = asked or 64
    assert not model.exact and model.group_size == size
    assert model.note == (
        f"int8 weights requantised from groups of {stored} to groups of {size}: "
        "the kernel reads 32 or 64"
    )
    expected = quantize_weights(checkpoint.tensor("w1", 1), size)
    np.testing.assert_array_equal(model.matrix("w1", 1).q, expected.q)


def test_quantized_model_zeroes_tiny_scales_of_the_file(new_checkpoint):
    weights = random_weights(CONFIG, 0)
    weights["wv"][0, 3, :32] = 1e-33
    weights["wv"][0, 3, 32:] = 1e-40
    matrix = QuantizedModel(new_checkpoint(CONFIG, 2, 32, weights=weights)).matrix("wv", 0)
    assert not matrix.scale[3].any()
    assert (matrix.scale[[0, 1, 2, 4]] > 0).all()


@pytest.mark.parametrize("size", [0, 16, 48, 128])
def test_quantized_model_other_group_size_is_refused(new_checkpoint, size):
    with pytest.raises(LimitError, match=f"group_size {size}: the kernel reads groups of 32 or 64"):
        QuantizedModel(new_checkpoint(), size)


def test_quantized_model_int4_says_so_and_halves_the_bytes(new_checkpoint):
    checkpoint = new_checkpoint(CONFIG, 2, 32)
    model = QuantizedModel(checkpoint, bits=4)
    assert (model.weight_bits, model.group_size, model.exact) == (4, 64, False)
    assert model.note == "int8 (groups of 32) weights quantised to int4 in groups of 64"
    expected = quantize_weights(checkpoint.tensor("w1", 1), 64, 4)
    np.testing.assert_array_equal(model.matrix("w1", 1).q, expected.q)
    config = ModelConfig(768, 2048, 12, 12, 12, 32000, 256, True)
    size = {bits: sum(channel_bytes(config, 64, Target(4, 32), bits)) for bits in (8, 4)}
    assert size[4] == pytest.approx(size[8] * 36 / 68, rel=0.001)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (dict(bits=5), "weight_bits 5: the kernel reads weights of 8 or 4 bits"),
        (dict(bits=4, group_size=32), "group_size 32: the kernel reads int4 in groups of 64 only"),
    ],
)
def test_quantized_model_other_bits_are_refused(new_checkpoint, options, text):
    with pytest.raises(LimitError, match=text):
        QuantizedModel(new_checkpoint(), **options)


# ---- layout -----------------------------------------------------------------------------


class Reader:
    """Independent reader of packed channels, from the layout in hls_src/tile.h alone."""

    def __init__(self, channels, config, size, target, bits=8):
        self.channels, self.size, self.target, self.bits = channels, size, target, bits
        self.row_bytes = size * bits // 8
        c = config
        groups, hidden_groups = -(-c.dim // size), -(-c.hidden_dim // size)
        self.units = -(-hidden_groups * size // target.tile_rows) * target.tile_rows
        norm = groups * size * 4
        at = [0] * target.channels
        self.places, self.dropped = {}, {}

        def norm_vector(name):
            self.places[name] = at[0]
            at[0] += norm

        def matrix(name, rows, n_groups):
            self.places[name] = (list(at), n_groups)
            waves = -(-rows // (target.tile_rows * target.channels))
            half = size == 64 and bits == 8 and (c.hidden_dim if name[0] == "w2" else c.dim) % 64
            dropped = 32 if 1 <= half <= 32 else 0
            self.dropped[name] = dropped
            for channel in range(target.channels):
                at[channel] += (
                    waves * target.tile_rows * (n_groups * (self.row_bytes + 4) - dropped)
                )

        for layer in range(c.n_layers):
            norm_vector(("rms_att_weight", layer))
            matrix(("qkv", layer), c.dim + 2 * c.kv_dim, groups)
            matrix(("wo", layer), c.dim, groups)
            norm_vector(("rms_ffn_weight", layer))
            matrix(("gate_up", layer), 2 * self.units, groups)
            matrix(("w2", layer), c.dim, hidden_groups)
        norm_vector(("rms_final_weight", None))
        matrix(("wcls", None), c.vocab_size, groups)
        if not c.tied:
            matrix(("token_embedding_table", None), c.vocab_size, groups)
        self.end = at

    def row(self, name, row):
        """(q, scale) of one output row: at most (groups * size,), and (groups,)."""
        bases, groups = self.places[name]
        rows = self.target.tile_rows
        tile, within = divmod(row, rows)
        wave, channel = divmod(tile, self.target.channels)
        q, scale = [], []
        dropped = self.dropped[name]
        for g in range(groups):
            at = bases[channel] + (wave * groups + g) * rows * (self.row_bytes + 4)
            at -= wave * rows * dropped
            size = self.row_bytes - (dropped if g == groups - 1 else 0)
            values = self.channels[channel][at + within * size :][:size]
            if self.bits == 4:
                values = np.concatenate([values & 15, values >> 4])
            q.append(values.astype(np.int16) - 2 ** (self.bits - 1))
            at += rows * size + 4 * within
            scale.append(self.channels[channel][at : at + 4].view("<f4"))
        return np.concatenate(q), np.concatenate(scale)

    def vector(self, name, n):
        at = self.places[name]
        return self.channels[0][at : at + 4 * n].view("<f4")


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize(("size", "bits"), [(32, 8), (64, 8), (64, 4)])
@pytest.mark.parametrize("tied", [True, False])
def test_pack_channels_puts_every_row_where_tile_h_says(target, size, bits, tied):
    config = ModelConfig(72, 101, 2, 6, 2, 203, 16, tied)
    model = RandomModel(config, size, seed=2, weight_bits=bits)
    channels = pack_channels(model, target)
    assert [len(c) for c in channels] == channel_bytes(config, size, target, bits)
    reader = Reader(channels, config, size, target, bits)
    assert reader.end == [len(c) for c in channels]

    def check(place, first, matrix):
        for row in range(len(matrix.q)):
            q, scale = reader.row(place, first + row)
            np.testing.assert_array_equal(q, matrix.q[row, : len(q)], f"{place} {row}")
            assert len(q) == matrix.q.shape[1] - reader.dropped[place]
            np.testing.assert_array_equal(scale, matrix.scale[row], f"{place} {row}")

    for layer in range(2):
        check(("qkv", layer), 0, model.matrix("wq", layer))
        check(("qkv", layer), 72, model.matrix("wk", layer))
        check(("qkv", layer), 96, model.matrix("wv", layer))
        check(("wo", layer), 0, model.matrix("wo", layer))
        check(("w2", layer), 0, model.matrix("w2", layer))
        gate, up = model.matrix("w1", layer), model.matrix("w3", layer)
        for unit in range(101):
            tile, within = divmod(unit, target.tile_rows)
            for odd, matrix in ((0, gate), (1, up)):
                row = (2 * tile + odd) * target.tile_rows + within
                q, scale = reader.row(("gate_up", layer), row)
                np.testing.assert_array_equal(q, matrix.q[unit, : len(q)])
                np.testing.assert_array_equal(scale, matrix.scale[unit])
        for name in ("rms_att_weight", "rms_ffn_weight"):
            np.testing.assert_array_equal(
                reader.vector((name, layer), 72), model.vector(name, layer)
            )
    check(("wcls", None), 0, model.matrix("wcls"))
    if not tied:
        check(("token_embedding_table", None), 0, model.matrix("token_embedding_table"))


def test_pack_channels_padding_is_zero():
    config = ModelConfig(72, 101, 1, 6, 2, 203, 16, True)
    reader = Reader(
        pack_channels(RandomModel(config, 32), Target(2, 32)), config, 32, Target(2, 32)
    )
    for place, row in ((("qkv", 0), 120), (("wcls", None), 203), (("gate_up", 0), 6 * 32 + 5)):
        q, scale = reader.row(place, row)
        assert not q.any() and not scale.any()
    assert not reader.vector(("rms_final_weight", None), 96)[72:].any()


# ---- packed files -----------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("config", [CONFIG, UNTIED, HALF])
def test_packed_file_holds_what_pack_channels_makes(new_checkpoint, tmp_path, config, target):
    model = QuantizedModel(new_checkpoint(config))
    path = tmp_path / "folder" / "model.safetensors"
    write_packed(model, target, path, tokenizer=b"tokens\0here")
    assert is_packed(path)
    packed = open_packed(path)
    assert packed.config == config and packed.target == target
    assert packed.group_size == model.group_size and packed.note == model.note
    assert packed.tokenizer == b"tokens\0here"
    assert packed.weight_bytes == sum(packed.sizes)
    for found, expected in zip(uploaded(packed), pack_channels(model, target)):
        np.testing.assert_array_equal(found, expected)


def test_packed_file_keeps_rope_theta_to_the_last_bit(new_checkpoint, tmp_path):
    theta = 10000.1 + 1e-9
    path = tmp_path / "m.safetensors"
    write_packed(QuantizedModel(new_checkpoint(rope_theta=theta)), Target(2, 32), path)
    assert open_packed(path).config.rope_theta == theta


def test_packed_file_weights_start_on_a_weight_word(new_checkpoint, tmp_path):
    path = tmp_path / "m.safetensors"
    write_packed(QuantizedModel(new_checkpoint()), Target(2, 32), path)
    head = int.from_bytes(path.read_bytes()[:8], "little")
    assert (8 + head) % 64 == 0


def test_packed_file_without_tokenizer_says_so(new_checkpoint, tmp_path):
    path = tmp_path / "m.safetensors"
    write_packed(QuantizedModel(new_checkpoint()), Target(2, 32), path)
    assert open_packed(path).tokenizer == b""


@pytest.mark.parametrize("slice_bytes", [64, 4096, 5000])
def test_upload_in_slices_gives_the_same_bytes(new_checkpoint, tmp_path, slice_bytes):
    model = QuantizedModel(new_checkpoint())
    path = tmp_path / "m.safetensors"
    write_packed(model, Target(2, 32), path)
    channels = uploaded(open_packed(path), slice_bytes=slice_bytes)
    for found, expected in zip(channels, pack_channels(model, Target(2, 32)), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.fixture
def packed_path(new_checkpoint, tmp_path):
    path = tmp_path / "m.safetensors"
    write_packed(QuantizedModel(new_checkpoint()), Target(2, 32), path, tokenizer=b"tokenizer")
    return path


@pytest.mark.parametrize("channel", [0, 1])
@pytest.mark.parametrize("where", [0, 0.5, 1])
def test_packed_file_with_a_flipped_bit_is_found_at_upload(packed_path, channel, where):
    packed = open_packed(packed_path)
    data = bytearray(packed_path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little") + sum(packed.sizes[:channel])
    data[start + int(where * (packed.sizes[channel] - 1))] ^= 0x10
    packed_path.write_bytes(data)
    damaged = open_packed(packed_path)
    damaged.upload(1 - channel, lambda at, part: None)
    with pytest.raises(CheckpointError, match=f"weight channel {channel} is damaged.*checksum"):
        damaged.upload(channel, lambda at, part: None)


@pytest.mark.parametrize("keep", [0, 5, 8, 300, 0.5, -1])
def test_packed_file_truncated_is_refused(packed_path, keep):
    data = packed_path.read_bytes()
    keep = int(keep * len(data)) if isinstance(keep, float) else keep
    packed_path.write_bytes(data[:keep])
    with pytest.raises(CheckpointError, match="a damaged packed model"):
        open_packed(packed_path)


def rewrite_header(path, change):
    """Change the metadata of a packed file without changing the header's length."""
    data = path.read_bytes()
    n = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n])
    change(header)
    text = json.dumps(header).encode()
    assert len(text) <= n
    path.write_bytes(data[:8] + text.ljust(n) + data[8 + n :])


@pytest.mark.parametrize("key", ["pack_version", "abi"])
def test_packed_file_of_another_version_is_refused(packed_path, key):
    rewrite_header(packed_path, lambda h: h["__metadata__"].update({key: "9"}))
    with pytest.raises(CheckpointError, match=r"packed for version \d.\d of the layout, this is"):
        open_packed(packed_path)


def test_packed_file_with_other_sizes_is_refused(packed_path):
    rewrite_header(packed_path, lambda h: h["__metadata__"].update(group_size="32"))
    with pytest.raises(CheckpointError, match="damaged packed model"):
        open_packed(packed_path)


@pytest.mark.parametrize(
    "key", ["config", "group_size", "weight_bits", "channels", "crc32", "note"]
)
def test_packed_file_lacking_metadata_is_refused(packed_path, key):
    rewrite_header(packed_path, lambda h: h["__metadata__"].pop(key))
    with pytest.raises(CheckpointError, match="a damaged packed model"):
        open_packed(packed_path)


def test_packed_file_of_something_else_is_refused(tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "other.safetensors"
    save_file({"a": np.zeros(4, f32)}, str(path), metadata={"format": "pt"})
    assert not is_packed(path)
    with pytest.raises(CheckpointError, match="not a packed model of llama_pynq"):
        open_packed(path)


def test_packed_file_missing_is_not_called_damaged(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_packed(tmp_path / "none.safetensors")


@pytest.mark.parametrize("content", [b"", b"{", b"\0" * 100])
def test_is_packed_of_other_files_is_false(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    assert not is_packed(path)


def test_write_packed_that_fails_leaves_nothing(new_checkpoint, tmp_path, monkeypatch):
    model = QuantizedModel(new_checkpoint())
    whole = packed.blocks

    def fails(*args):
        yield next(whole(*args))
        raise OSError("the disk is full")

    monkeypatch.setattr(packed, "blocks", fails)
    path = tmp_path / "folder" / "m.safetensors"
    with pytest.raises(OSError, match="the disk is full"):
        write_packed(model, Target(2, 32), path)
    assert list(path.parent.iterdir()) == []


def test_write_packed_that_fails_keeps_the_old_file(new_checkpoint, packed_path, monkeypatch):
    before = packed_path.read_bytes()

    def fails(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(packed, "blocks", fails)
    with pytest.raises(KeyboardInterrupt):
        write_packed(QuantizedModel(new_checkpoint()), Target(2, 32), packed_path)
    assert packed_path.read_bytes() == before
    assert [p.name for p in packed_path.parent.glob(".m*")] == []


# ---- the cache --------------------------------------------------------------------------


@pytest.fixture
def packs(monkeypatch):
    """List of the paths that write_packed writes."""
    written = []
    whole = packed.write_packed

    def count(model, target, path, *rest):
        written.append(path)
        whole(model, target, path, *rest)

    monkeypatch.setattr(packed, "write_packed", count)
    return written


def test_pack_cached_second_use_does_not_pack(new_checkpoint, packs, cache):
    checkpoint = new_checkpoint()
    first = pack_cached(checkpoint, Target(2, 32))
    second = pack_cached(checkpoint, Target(2, 32))
    assert len(packs) == 1 and first == second
    assert first.path.parent == cache / "models"


def test_pack_cached_goes_by_content_not_by_name(new_checkpoint, packs):
    pack_cached(new_checkpoint(name="a.bin", seed=1), Target(2, 32))
    pack_cached(new_checkpoint(name="b.bin", seed=1), Target(2, 32))
    assert len(packs) == 1
    pack_cached(new_checkpoint(name="a.bin", seed=2), Target(2, 32))
    assert len(set(packs)) == 2


def test_pack_cached_keeps_every_variant_apart(new_checkpoint, packs):
    for target in TARGETS:
        for size, bits in ((32, 8), (64, 8), (64, 4)):
            for theta in (10000.0, 10000.001, 500000.0):
                packed = pack_cached(new_checkpoint(rope_theta=theta), target, size, bits)
                assert (packed.target, packed.group_size) == (target, size)
                assert packed.weight_bits == bits
                assert packed.config.rope_theta == theta
    assert len(set(packs)) == len(packs) == 27


def test_pack_cached_damaged_file_is_packed_again(new_checkpoint, packs):
    checkpoint = new_checkpoint()
    first = pack_cached(checkpoint, Target(2, 32))
    first.path.write_bytes(first.path.read_bytes()[:-100])
    again = pack_cached(checkpoint, Target(2, 32))
    assert len(packs) == 2
    assert again == first
    uploaded(again)


def test_pack_cached_rebuild_packs_again(new_checkpoint, packs):
    checkpoint = new_checkpoint()
    pack_cached(checkpoint, Target(2, 32))
    pack_cached(checkpoint, Target(2, 32), rebuild=True)
    assert len(packs) == 2


def test_pack_cached_folder_that_cannot_be_written_is_named(new_checkpoint, cache):
    cache.parent.mkdir(exist_ok=True)
    cache.write_text("a file, not a folder")
    with pytest.raises(CheckpointError, match="cannot write the packed model .*LLAMA_PYNQ_CACHE"):
        pack_cached(new_checkpoint(), Target(2, 32))


@pytest.mark.parametrize(
    "change",
    [
        lambda meta: meta.update(config=meta["config"].replace("10000", "10300")),
        lambda meta: meta.update(note="measured on a board"),
        lambda meta: meta.update(crc32=meta["crc32"][:8]),
        lambda meta: meta.pop("crc32"),
    ],
    ids=["rope_theta", "note", "crc32-short", "crc32-gone"],
)
def test_packed_file_with_a_changed_description_is_refused(packed_path, change):
    rewrite_header(packed_path, lambda header: change(header["__metadata__"]))
    with pytest.raises(CheckpointError, match="a damaged packed model"):
        open_packed(packed_path)


def test_packed_file_with_a_changed_tokenizer_is_refused(packed_path):
    data = bytearray(packed_path.read_bytes())
    assert open_packed(packed_path).tokenizer
    data[-1] ^= 1  # the tokenizer is last in the file
    packed_path.write_bytes(data)
    with pytest.raises(CheckpointError, match="wrong checksum of its metadata and tokenizer"):
        open_packed(packed_path)
