"""The layout of weights in the channels' memory."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.kernel_library import RandomModel
from support.weight_shapes import TARGETS

from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.kernel.config import Target
from llama_pynq.weights.tiles import channel_bytes, pack_channels, row_bytes


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
