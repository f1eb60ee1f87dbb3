"""Every stage of the kernel: bit-identical to the NumPy reference, and close to float64."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import kernel_library
from support.kernel_library import RandomModel, model_words, request_words

from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.kernel import abi, float_math, stages
from llama_pynq.kernel.config import Target
from llama_pynq.kernel.stages import QuantizedMatrix
from llama_pynq.weights.tiles import pack_matrix

f32 = np.float32
TINY = np.finfo(f32).tiny
SUBNORMAL = np.array([1e-45, 1e-40, np.nextafter(TINY, f32(0))], f32)
same_every_run = settings(derandomize=True, deadline=None, max_examples=40)
seeds = st.integers(0, 2**32 - 1)
GROUPS = st.sampled_from([32, 64])


# These two boards differ most in tile rows, channels and row limits.
@pytest.fixture(scope="session", params=["host", "u280"])
def library(request):
    return kernel_library.stage_library(request.param)


def assert_same_bits(actual, expected, what=""):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.dtype == expected.dtype and actual.shape == expected.shape, what
    word = f"u{actual.dtype.itemsize}"
    different = actual.view(word) != expected.view(word)
    at = tuple(int(i) for i in np.argwhere(different)[0]) if different.any() else ()
    assert not different.any(), f"{what} at {at}: {actual[at]!r}, expected {expected[at]!r}"


def both_signs(values):
    values = np.asarray(values, f32)
    return np.concatenate([values, -values])


def wide_floats(rng, n, low=-30, high=20):
    """(n,) float32 of both signs with binary exponents from low to high, and some zeros."""
    values = rng.uniform(1, 2, n) * 2.0 ** rng.integers(low, high + 1, n)
    values *= rng.choice([-1.0, 1.0], n) * (rng.random(n) > 0.1)
    return values.astype(f32)


def every_float(step):
    """Every `step`-th finite float32, over all exponents and signs."""
    values = np.arange(0, 2**32, step, dtype=np.uint64).astype(np.uint32).view(f32)
    return values[np.isfinite(values)]


def mapped(library, stage, x):
    out = np.empty_like(x)
    library.call(stage, x, len(x), out)
    return out


# ---- float_math.h -----------------------------------------------------------------------


def request_size(library):
    return abi.REQUEST_ROW_BASE + abi.ROW_WORDS * library.max_rows


def test_flush_to_zero_only_inside_the_kernel(library):
    x = np.array([1e-40], f32)
    during, after = np.ones(1, f32), np.ones(1, f32)
    library.call("flush", x, during, after)
    assert_same_bits(during, np.zeros(1, f32))
    assert_same_bits(after, x)


def test_exp_over_all_floats(library):
    edges = [0, 1, 86, 88, 89, 1000, 3e38, np.nextafter(f32(86), f32(87)),
             np.nextafter(f32(88), f32(89)), np.nextafter(f32(88), f32(0))]  # fmt: skip
    # (n + 1/2) ln 2: the rounding of x / ln 2 changes here.
    ties = (np.arange(-124, 127) + 0.5) * np.log(2)
    ties = np.concatenate([np.nextafter(ties.astype(f32), f32(s)) for s in (-1e9, 1e9)])
    x = np.concatenate([both_signs(edges), both_signs(SUBNORMAL), ties, every_float(10007)])
    x = np.concatenate([x, np.linspace(-90, 90, 50001, dtype=f32)])
    assert_same_bits(mapped(library, "exp", x), float_math.exp(x))


def test_exp_at_its_limits_is_zero_and_e88(library):
    x = np.array([-86, np.nextafter(f32(-86), f32(-87)), -1e30, 88, 1e30], f32)
    y = mapped(library, "exp", x)
    assert y[0] >= TINY and y[1] == 0 and y[2] == 0
    assert y[3] == y[4] and np.isfinite(y[3])


def test_exp_error_within_the_stated_bound(library):
    x = np.linspace(-86, 88, 200001, dtype=f32)
    exact = np.exp(x.astype(np.float64))
    assert np.max(np.abs(mapped(library, "exp", x) / exact - 1)) < 1.2e-7


def test_log_over_all_positive_floats(library):
    x = every_float(5003)
    x = x[x >= TINY]
    near = f32(1) + np.arange(-200, 200, dtype=f32) * f32(2**-24)
    root = (f32(2**0.5).view(np.int32) + np.arange(-3, 4, dtype=np.int32)).view(f32)
    x = np.concatenate([x, near, root, np.array([TINY, np.finfo(f32).max, 1], f32)])
    y = mapped(library, "log", x)
    assert_same_bits(y, float_math.log(x))
    exact = np.log(x.astype(np.float64))
    error = np.abs(y - exact) / np.where(exact == 0, 1, np.abs(exact))
    assert error.max() < 8.5e-8


def test_cos_sin_over_the_circle(library):
    eighths = np.arange(8, dtype=np.int64)[:, None] * 2**29 + np.arange(-3, 4)
    phase = np.concatenate(
        [(eighths.reshape(-1) % 2**32).astype(np.uint32),
         np.arange(0, 2**32, 20011, dtype=np.uint64).astype(np.uint32)]
    )  # fmt: skip
    cosine, sine = np.empty((2, len(phase)), f32)
    library.call("cos_sin", phase, len(phase), cosine, sine)
    c, s = float_math.cos_sin(phase)
    assert_same_bits(cosine, c, "cosine")
    assert_same_bits(sine, s, "sine")
    angle = phase.astype(np.float64) * (2 * np.pi / 2**32)
    assert np.max(np.abs(cosine - np.cos(angle))) < 1.3e-7
    assert np.max(np.abs(sine - np.sin(angle))) < 1.3e-7


def test_round_to_even_ties(library):
    whole = np.arange(0, 200, dtype=f32)
    x = both_signs(np.concatenate([whole, whole + f32(0.5), [0.49999997, 1.4999999, 4194303.5]]))
    y = mapped(library, "round", x)
    assert_same_bits(y, float_math.round_to_even(x))
    np.testing.assert_array_equal(y, np.rint(x))


@same_every_run
@given(seed=seeds, leaves=st.sampled_from([16, 32]))
def test_tree_sum_of_mixed_magnitudes(library, seed, leaves):
    x = wide_floats(np.random.default_rng(seed), 8 * leaves).reshape(8, leaves)
    out = np.empty(8, f32)
    library.call("tree_sum", x, 8, leaves, out)
    assert_same_bits(out, float_math.tree_sum(x))


def test_tree_sum_with_subnormals_flushes_them(library):
    x = np.zeros((2, 16), f32)
    x[0, :3] = 1e-40, 3e-39, 1e-38
    x[1, 0], x[1, 8] = 1.5 * TINY, -TINY  # the difference is subnormal
    out = np.empty(2, f32)
    library.call("tree_sum", x, 2, 16, out)
    assert_same_bits(out, np.zeros(2, f32))


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**32, 2**64 - 1])
@pytest.mark.parametrize("position", [0, 1, 32767])
def test_gumbel_noise_of_seed_and_position(library, seed, position):
    ids = np.concatenate([np.arange(3000), [32767, 128255, 2**20 - 1]]).astype(np.uint32)
    key = np.array([seed & 0xFFFFFFFF, seed >> 32, position], np.uint32)
    out = np.empty(len(ids), f32)
    library.call("gumbel_noise", key, ids, len(ids), out)
    assert_same_bits(out, float_math.gumbel_noise(seed, position, ids))
    assert np.isfinite(out).all()


# ---- quantize.h -------------------------------------------------------------------------


def quantized(library, x, group_size):
    rows, n = x.shape
    groups = -(-n // group_size)
    q = np.full((rows, groups * group_size), 99, np.int8)
    scale = np.empty((rows, groups), f32)
    offset = np.empty((rows, groups), np.int32)
    library.call("quantize", x, rows, n, group_size, q, scale, offset)
    return q, scale, offset


def assert_quantized(actual, x, group_size):
    q, scale, offset = actual
    expected_q, expected_scale = stages.quantize_groups(x, group_size)
    assert_same_bits(q, expected_q, "q")
    assert_same_bits(scale, expected_scale, "scale")
    sums = q.reshape(*scale.shape, group_size).astype(np.int32).sum(axis=-1)
    np.testing.assert_array_equal(offset, 128 * sums)


@same_every_run
@given(seed=seeds, n=st.integers(1, 300), group_size=GROUPS, high=st.integers(-126, 127))
def test_quantize_any_width_and_scale(library, seed, n, group_size, high):
    x = wide_floats(np.random.default_rng(seed), 2 * n, max(high - 12, -126), high).reshape(2, n)
    actual = quantized(library, x, group_size)
    assert_quantized(actual, x, group_size)
    q, scale, _ = actual
    padded = np.zeros(q.shape)
    padded[:, :n] = x
    wide = np.repeat(scale, group_size, axis=1).astype(np.float64)
    # Error bound: half a step and two roundings of the quotient; tiny groups become zero.
    bound = np.where(wide > 0, wide * (0.5 + 127 * 2**-23), 2.0**-100)
    assert (np.abs(padded - q * wide) <= bound).all()


@pytest.mark.parametrize("group_size", [32, 64])
def test_quantize_edge_values(library, group_size):
    threshold = f32(2.0**-100)
    rows = [
        np.zeros(70),
        np.full(70, -0.0),
        np.resize(both_signs(SUBNORMAL), 70),
        np.full(70, threshold),
        np.full(70, np.nextafter(threshold, f32(0))),
        np.full(70, np.nextafter(threshold, f32(1))),
        np.resize([127, -127, 0.5, -0.5, 1.5, 2.5, -3.5, 126.5], 70),  # ties
        np.resize([np.finfo(f32).max, -1e38, 1.0], 70),
        np.resize([1.0, 1e-40, -1e-45, TINY], 70),
        np.resize([-1.0, 0.0, 0.25], 70),  # the largest is negative
    ]
    x = np.array(rows, f32)
    for row in x:  # row by row: below every board's row limit
        assert_quantized(quantized(library, row[None], group_size), row[None], group_size)
    assert (quantized(library, x[3:4], group_size)[0][0, :70] == 127).all()
    assert (quantized(library, x[4:5], group_size)[1] == 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_quantize_not_finite_poisons_the_scale(library, bad):
    x = np.ones((1, 96), f32)
    x[0, 40] = bad
    _, scale, _ = quantized(library, x, 32)
    assert np.isfinite(scale[0, [0, 2]]).all() and not np.isfinite(scale[0, 1])


# ---- rmsnorm.h, rope.h ------------------------------------------------------------------


@same_every_run
@given(seed=seeds, n=st.integers(1, 400), high=st.integers(-70, 62))
def test_rms_norm_any_width_and_scale(library, seed, n, high):
    rng = np.random.default_rng(seed)
    x, weight = wide_floats(rng, n, high - 8, high - 4), wide_floats(rng, n, -3, 3)
    total, y = np.empty(1, f32), np.empty(n, f32)
    library.call("sum_of_squares", x, n, total)
    library.call("normalize", x, weight, n, y)
    assert_same_bits(total[0], float_math.lane_sum(float_math.mul(x, x), abi.NORM_SUMS))
    assert_same_bits(y, stages.rms_norm(x[None], weight)[0])
    exact = x / np.sqrt(np.mean(np.square(x, dtype=np.float64)) + 1e-5) * weight
    np.testing.assert_allclose(y, exact, rtol=4e-6, atol=1e-37)


def test_rms_norm_subnormal_weights_and_inputs_are_zero(library):
    x = np.resize(np.array([3.0, 1e-40, -2.0, 1e-39], f32), 48)
    weight = np.resize(np.array([1.1e-38, 1.0, 1e-39], f32), 48)
    y = np.empty(48, f32)
    library.call("normalize", x, weight, 48, y)
    assert_same_bits(y, stages.rms_norm(x[None], weight)[0])
    assert (y[np.abs(weight) < TINY] == 0).all()


def test_rms_norm_of_zeros_is_zero(library):
    y = np.ones(33, f32)
    library.call("normalize", np.zeros(33, f32), np.ones(33, f32), 33, y)
    assert_same_bits(y, np.zeros(33, f32))


@same_every_run
@given(seed=seeds, pairs=st.integers(1, 64), heads=st.integers(1, 5),
       position=st.integers(0, 32767), theta=st.sampled_from([1.0, 100.5, 1e4, 5e5]))  # fmt: skip
def test_rotate_any_position(library, seed, pairs, heads, position, theta):
    x = wide_floats(np.random.default_rng(seed), 2 * pairs * heads, -10, 5)
    x = x.reshape(1, heads, 2 * pairs)
    turns = stages.rope_turns(2 * pairs, theta)
    actual = x.copy()
    library.call("rotate", turns, position, heads, 2 * pairs, actual)
    assert_same_bits(actual, stages.rotate(x, np.array([position]), turns))
    angle = position * theta ** (-np.arange(pairs) / pairs)
    z = (x[..., ::2] + 1j * x[..., 1::2]) * np.exp(1j * angle)
    exact = np.stack([z.real, z.imag], axis=-1).reshape(x.shape)
    # The angle's error in float64 is position * 2^-53: negligible here.
    np.testing.assert_allclose(actual, exact, rtol=0, atol=5e-7 * np.abs(x).max())


def test_rotate_subnormal_products_are_zero(library):
    x = np.array([[[TINY, -TINY, 1e-37, 2e-38]]], f32)
    turns = stages.rope_turns(4, 10000.0)
    actual = x.copy()
    library.call("rotate", turns, 5, 1, 4, actual)
    assert_same_bits(actual, stages.rotate(x, np.array([5]), turns))


# ---- matvec.h, epilogues.h --------------------------------------------------------------


def mat_vec(library, weight, q, scale, out, add=False, columns=None):
    columns = columns or weight.q.shape[1]
    channels = pack_matrix(weight, Target(library.channels, library.tile_rows), columns)
    aligned = []
    for part in channels:
        aligned.append(kernel_library.aligned(part.nbytes))
        aligned[-1][:] = part
    pointers = np.array([a.ctypes.data for a in aligned], np.uint64)
    rows, groups = scale.shape
    library.call("mat_vec", pointers, weight.q.shape[0], columns, weight.group_size, weight.bits, q,
                scale, rows, int(add), out)  # fmt: skip
    return out


@same_every_run
@given(seed=seeds, rows=st.integers(1, 32), out=st.integers(1, 200), groups=st.integers(1, 5),
       form=st.sampled_from([(32, 8), (64, 8), (64, 4)]), add=st.booleans(),
       padding=st.integers(0, 31))  # fmt: skip
def test_mat_vec_any_shape(library, seed, rows, out, groups, form, add, padding):
    rng = np.random.default_rng(seed)
    rows = min(rows, library.max_rows)
    group_size, bits = form
    n = groups * group_size
    most = 2 ** (bits - 1)
    weight = QuantizedMatrix(
        rng.integers(-most, most, (out, n)).astype(np.int8),
        wide_floats(rng, out * groups, -20, 3).reshape(out, groups),
        bits,
    )
    columns = n - 2 * padding * group_size // 64
    q = rng.integers(-127, 128, (rows, n)).astype(np.int8)
    q[:, columns:] = 0
    scale = np.abs(wide_floats(rng, rows * groups, -20, 3)).reshape(rows, groups)
    residual = wide_floats(rng, rows * out, -5, 5).reshape(rows, out)
    actual = mat_vec(library, weight, q, scale, residual.copy(), add, columns)
    product = stages.matvec(weight, q, scale)
    assert_same_bits(actual, float_math.add(residual, product) if add else product)
    # Dot products are exact as integers: in float64 one of 0 would leave the rounding of its terms.
    dots = np.einsum(
        "rgi,ogi->rog", q.reshape(rows, groups, -1).astype(np.int64),
        weight.q.reshape(out, groups, -1).astype(np.int64),
    )  # fmt: skip
    terms = dots * scale.astype(np.float64)[:, None] * weight.scale.astype(np.float64)[None]
    exact = terms.sum(axis=-1) + (residual if add else 0)
    size = np.abs(terms).sum(axis=-1) + np.abs(residual)
    assert (np.abs(actual - exact) <= (groups + 4) * 2.0**-24 * size).all()


@pytest.mark.parametrize(("group_size", "bits"), [(32, 8), (64, 8), (64, 4)])
def test_mat_vec_extreme_values(library, group_size, bits):
    n = 3 * group_size
    q = np.array([[-127] * n, [127] * n], np.int8)
    most = 2 ** (bits - 1)
    weight = np.array([[-most] * n, [most - 1] * n, [0] * n], np.int8)
    # Products below the smallest normal number, up to sums that overflow.
    for size in (2.0**-100, 2.0**-75, 1.0, 2.0**57):
        matrix = QuantizedMatrix(weight, np.full((3, 3), size, f32), bits)
        scale = np.full((2, 3), size, f32)
        actual = mat_vec(library, matrix, q, scale, np.empty((2, 3), f32))
        with np.errstate(over="ignore", invalid="ignore"):
            assert_same_bits(actual, stages.matvec(matrix, q, scale), f"scale {size}")


def test_mat_vec_adds_groups_in_ascending_order(library):
    # 1 + 2^-24 + 2^-24 is 1 if summed from the left, more from the right.
    q = np.zeros((1, 96), np.int8)
    q[0, ::32] = 1
    weight = np.zeros((1, 96), np.int8)
    weight[0, ::32] = 1
    matrix = QuantizedMatrix(weight, np.array([[1, 2**-24, 2**-24]], f32))
    actual = mat_vec(library, matrix, q, np.ones((1, 3), f32), np.empty((1, 1), f32))
    assert actual[0, 0] == 1


def gated(library, gate, up, group_size):
    rows, hidden = gate.shape
    groups = -(-hidden // group_size)
    q = np.full((rows, groups * group_size), 99, np.int8)
    scale, offset = np.empty((rows, groups), f32), np.empty((rows, groups), np.int32)
    library.call("gate", gate, up, rows, hidden, group_size, q, scale, offset)
    return q, scale, offset


@same_every_run
@given(seed=seeds, hidden=st.integers(1, 300), group_size=GROUPS)
def test_gate_and_quantize_any_width(library, seed, hidden, group_size):
    rng = np.random.default_rng(seed)
    gate = wide_floats(rng, 2 * hidden, -8, 7).reshape(2, hidden)
    up = wide_floats(rng, 2 * hidden, -8, 7).reshape(2, hidden)
    product = stages.swiglu(gate, up)
    assert_quantized(gated(library, gate, up, group_size), product, group_size)
    exact = gate / (1 + np.exp(-gate.astype(np.float64))) * up
    np.testing.assert_allclose(product, exact, rtol=1e-6, atol=1e-30)


def test_gate_and_quantize_edge_values(library):
    gate = np.resize(np.array([0, -0.0, 86, -86, -86.1, 88, -88.1, 1e30, -1e30, 1e-40], f32), 70)
    up = np.resize(np.array([1, -1, 1e-40, 1e-3, -0.0, 5, 127], f32), 70)
    product = stages.swiglu(gate, up)[None]
    for group_size in (32, 64):
        assert_quantized(gated(library, gate[None], up[None], group_size), product, group_size)


# ---- attention.h ------------------------------------------------------------------------


def attention_shape(heads, kv_heads, head_size, n_layers=2, seq_len=100):
    dim = heads * head_size
    return ModelConfig(dim, 32, n_layers, heads, kv_heads, 8, seq_len, True)


class Cache:
    """KV memory of every port, laid out as in hls_src/cache.h; NaN where nothing is stored."""

    def __init__(self, library, config, slots, kv_bits=32):
        self.config, self.kv_bits = config, kv_bits
        beat, stride = library.kv_beat_bytes, -(-config.head_size // 16) * 16
        self.beat = beat
        self.half = -(-stride * kv_bits // 8 // beat) * beat
        self.scales = beat if kv_bits == 8 else 0
        heads = -(-config.n_kv_heads // library.kv_ports)
        shape = (slots, config.n_layers, heads, config.seq_len, self.scales + 2 * self.half)
        self.ports = []
        for _ in range(library.kv_ports):
            memory = kernel_library.aligned(int(np.prod(shape)))
            memory.view(f32)[:] = np.nan
            self.ports.append(memory.reshape(shape))
        self.addresses = np.array([p.ctypes.data for p in self.ports], np.uint64)

    def put(self, slot, layer, head, position, key_and_value):
        """Store (2, head_size) float32 in its record; returns the stored values and scales."""
        record = self.ports[head % len(self.ports)][slot, layer, head // len(self.ports), position]
        record[:] = 0
        size = self.config.head_size
        halves = record[self.scales :].reshape(2, self.half)
        if self.kv_bits == 32:
            halves.view(f32)[:, :size] = key_and_value
            return key_and_value, 1.0
        q, scale = stages.quantize_groups(key_and_value, size)
        record[:8] = scale.reshape(2).view(np.uint8)
        halves[:, :size] = q.view(np.uint8)
        words = self.beat // 4  # byte k of word i of a beat is its value k * words + i
        beats = halves.reshape(2, -1, 4, words).transpose(0, 1, 3, 2)
        halves[:] = beats.reshape(2, -1).copy()
        return stages.round_heads(key_and_value)


def attend(library, config, slots, layer, cache, qkv, positions, row_slots):
    rows = len(positions)
    request = request_words(request_size(library), (0, config.n_layers), [0] * rows,
                            positions, row_slots)  # fmt: skip
    model = model_words(config, 32, slots, abi.MODEL_ROPE_TABLE + 256, 8, cache.kv_bits)
    out = np.empty((rows, config.dim), f32)
    library.call("attend", request, model, layer, cache.addresses, qkv, out)
    return out


@same_every_run
@given(seed=seeds, pairs=st.integers(1, 40), kv_heads=st.integers(1, 3),
       shared=st.integers(1, 4), longest=st.integers(1, 100),
       kv_bits=st.sampled_from(abi.KV_BITS))  # fmt: skip
def test_attend_rows_of_several_slots(library, seed, pairs, kv_heads, shared, longest, kv_bits):
    """Some positions in memory, the others from this call; memory past them is NaN."""
    rng = np.random.default_rng(seed)
    config = attention_shape(kv_heads * shared, kv_heads, 2 * pairs)
    slots, layer = 3, int(rng.integers(2))
    rows = int(rng.integers(1, min(library.max_rows, longest, 9) + 1))
    cache = Cache(library, config, slots, kv_bits)
    qkv = rng.normal(0, 2, (rows, config.dim + 2 * config.kv_dim)).astype(f32)
    # Slot 1 has one row; slot 2 has the last positions of a longer sequence, in random order.
    positions = rng.permutation(np.arange(longest - rows, longest))
    row_slots = np.full(rows, 2)
    if rows > 1:
        row_slots[0] = 1
        positions[0] = 40
        mine = np.arange(longest - rows + 1, longest)
        positions[1:] = rng.permutation(mine)
    keys = rng.normal(0, 2, (slots, 100, 2, kv_heads, 2 * pairs)).astype(f32)
    scales = np.ones((slots, 100, 2, kv_heads), f32)
    for slot in (1, 2):
        in_call = set(positions[row_slots == slot].tolist())
        for position in range(int(positions[row_slots == slot].max(initial=-1)) + 1):
            if position not in in_call:
                for head in range(kv_heads):
                    keys[slot, position, :, head], scales[slot, position, :, head] = cache.put(
                        slot, layer, head, position, keys[slot, position, :, head]
                    )
    actual = attend(library, config, slots, layer, cache, qkv, positions, row_slots)
    after = [port.copy() for port in cache.ports]
    own = qkv[:, config.dim :].reshape(rows, 2, kv_heads, 2 * pairs)
    for row in range(rows):
        for head in range(kv_heads):
            place = row_slots[row], positions[row], slice(None), head
            keys[place], scales[place] = cache.put(
                row_slots[row], layer, head, positions[row], own[row, :, head]
            )
    # This call's keys and values were written to memory; nothing else changed.
    for port, expected in zip(after, cache.ports):
        assert_same_bits(port, expected, "cache")
    for row in range(rows):
        past = keys[row_slots[row], : positions[row] + 1]
        query = qkv[row, : config.dim].reshape(-1, 2 * pairs)
        of_past = scales[row_slots[row], : positions[row] + 1]
        expected = stages.attend(query, past[:, 0], past[:, 1], of_past.swapaxes(0, 1))
        past = past * of_past[..., None]
        assert_same_bits(actual[row], expected.reshape(-1), f"row {row}")
        scores = np.einsum("hd,thd->ht", query.astype(np.float64),
                           np.repeat(past[:, 0], shared, axis=1)) / np.sqrt(2 * pairs)  # fmt: skip
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        exact = np.einsum("ht,thd->hd", weights, np.repeat(past[:, 1], shared, axis=1))
        size = np.abs(scores).max() + 10
        np.testing.assert_allclose(
            actual[row], exact.reshape(-1), rtol=0, atol=size * 3e-6 * np.abs(past).max()
        )


def test_attend_extreme_scores(library):
    """Scores so far apart that all weights but one are zero; products that underflow."""
    config = attention_shape(2, 1, 8)
    cache = Cache(library, config, 1)
    rng = np.random.default_rng(5)
    past = np.zeros((2, 70, 1, 8), f32)
    for position in range(70):
        size = (1e-25, 1.0, 1e3, 1e15)[position % 4]
        past[:, position, 0] = rng.normal(0, size, (2, 8))
        cache.put(0, 0, 0, position, past[:, position, 0])
    for scale in (1e-20, 1e-3, 1e10):
        qkv = rng.normal(0, scale, (1, 32)).astype(f32)
        past[:, 69, 0] = qkv[0, 16:].reshape(2, 8)
        actual = attend(library, config, 1, 0, cache, qkv, [69], [0])
        expected = stages.attend(qkv[0, :16].reshape(2, 8), past[0], past[1])
        assert_same_bits(actual[0], expected.reshape(-1), f"scale {scale}")


# ---- sample.h ---------------------------------------------------------------------------


@same_every_run
@given(seed=seeds, n=st.integers(1, 400), high=st.integers(-10, 12))
def test_log_sum_exp_any_length(library, seed, n, high):
    x = wide_floats(np.random.default_rng(seed), n, high - 10, high)
    out = np.empty(1, f32)
    library.call("log_sum_exp", x, n, out)
    assert_same_bits(out[0], stages.log_sum_exp(x))
    exact = np.logaddexp.reduce(x.astype(np.float64))
    # Rounding of a sum of up to n terms, and of the maximum.
    assert abs(out[0] - exact) <= 1e-6 + 2e-7 * abs(exact)


@pytest.mark.parametrize("n", [1, 5, 63, 64, 65, 500])
def test_insert_top_with_ties_keeps_the_earlier_id_first(library, n):
    logits = np.random.default_rng(n).integers(-8, 8, n).astype(f32)
    logits[logits == 3] = -0.0
    logits[logits == 4] = 0.0
    top = library.top_logits
    ids, values = np.empty(top, np.int32), np.empty(top, f32)
    library.call("insert_top", logits, n, ids, values)
    order = np.argsort(-logits, kind="stable")[:top]
    np.testing.assert_array_equal(ids[: len(order)], order)
    assert_same_bits(values[: len(order)], logits[order] + f32(0))  # -0 becomes 0
    assert (ids[len(order) :] == -1).all() and (values[len(order) :] == f32(-3e38)).all()


def sampled(library, logits, **options):
    """Sample one step; returns status, results (rows,) and full logits."""
    rows, vocab = logits.shape
    config = ModelConfig(8, 8, 1, 1, 1, vocab, 64, True)
    request = request_words(
        request_size(library),
        (0, 1),
        [0] * rows,
        **options,
    )
    model = model_words(config, 32, 4, abi.MODEL_ROPE_TABLE + 256)
    full = np.full((rows, vocab), np.nan, f32)
    dtype = abi.result_dtype(library.top_logits)
    words = np.full(abi.STATUS_WORDS + rows * dtype.itemsize // 4, 7, np.uint32)
    library.call("sample", request, model, logits, full, words)
    return words, words[abi.STATUS_WORDS :].view(dtype), full


@same_every_run
@given(seed=seeds, vocab=st.integers(1, 400), temperature=st.sampled_from([0, 1e-3, 0.8, 1, 30]),
       spread=st.sampled_from([0.0, 0.5, 5, 60]))  # fmt: skip
def test_sample_any_vocabulary(library, seed, vocab, temperature, spread):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, spread, (2, vocab)).astype(f32)
    row_seeds = rng.integers(0, 2**64, 2, dtype=np.uint64)
    positions = [5, 60]
    words, results, full = sampled(library, logits, positions=positions, slots=[0, 1],
                                   temperature=[0, temperature], seed=row_seeds)  # fmt: skip
    assert words[abi.STATUS_STATE] == abi.State.DONE
    assert_same_bits(full, logits)
    for row, t in enumerate([0, temperature]):
        expected = stages.sample(
            logits[row], t, int(row_seeds[row]), positions[row], library.top_logits
        )
        found = results[row]
        n = len(expected.top_ids)
        assert found["token"] == expected.token and found["position"] == positions[row]
        assert found["kept"] == expected.kept
        assert_same_bits(found["lse"], expected.lse)
        assert_same_bits(found["lse_temperature"], expected.lse_temperature)
        assert_same_bits(found["logit"], logits[row, expected.token])
        np.testing.assert_array_equal(found["top"]["id"][:n], expected.top_ids)
        assert_same_bits(np.ascontiguousarray(found["top"]["logit"][:n]), expected.top_logits)
        assert (found["top"]["id"][n:] == -1).all()


# ---- truncate.h -------------------------------------------------------------------------


@same_every_run
@given(seed=seeds, vocab=st.integers(1, 200), temperature=st.sampled_from([1e-3, 0.8, 1, 30]),
       spread=st.sampled_from([0.0, 0.5, 2, 5, 60]),
       top_k=st.sampled_from([0, 1, 5, 63, 64, 65, 150]),
       top_p=st.sampled_from([0, 1e-30, 0.5, 0.9, 0.999, 1]),
       min_p=st.sampled_from([0, 0.02, 0.5]))  # fmt: skip
def test_sample_truncated_is_the_references(
    library, seed, vocab, temperature, spread, top_k, top_p, min_p
):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, spread, (1, vocab)).astype(f32)
    row_seed = int(rng.integers(0, 2**64, dtype=np.uint64))
    _, results, _ = sampled(library, logits, positions=[7], temperature=temperature, seed=row_seed,
                            top_k=top_k, top_p=top_p, min_p=min_p)  # fmt: skip
    found, top = results[0], library.top_logits
    truncation = stages.Truncation(top_k, top_p or 1, min_p)
    expected = stages.sample(logits[0], temperature, row_seed, 7, top, truncation)
    assert (found["token"], found["kept"]) == (expected.token, expected.kept)
    every = stages.sample(logits[0], temperature, row_seed, 7, vocab, truncation)
    assert every.kept > 0
    if expected.kept:
        assert (found["token"], found["kept"]) == (every.token, every.kept)
        assert_same_bits(found["logit"], logits[0, every.token])
        kept_p = np.sort(np.exp(logits[0] / f32(temperature) - expected.lse_temperature))[::-1]
        if top_p and not top_k and not min_p and top_p < 0.999:
            mass = np.cumsum(kept_p)
            count = found["kept"]
            assert mass[count - 1] >= top_p - 1e-4
            assert count == 1 or mass[count - 2] < top_p + 1e-4
        if min_p:
            assert kept_p[found["kept"] - 1] >= min_p * kept_p[0] * (1 - 1e-5)
        if top_k:
            assert found["kept"] <= top_k
    else:
        assert found["token"] == abi.TOKEN_UNDECIDED
        assert top_k > top or every.kept > top


def test_sample_truncated_without_temperature_is_greedy(library):
    logits = np.random.default_rng(3).normal(0, 1, (1, 200)).astype(f32)
    _, results, _ = sampled(library, logits, positions=[9], top_k=3, top_p=0.5, min_p=0.1)
    assert results[0]["token"] == np.argmax(logits)


@pytest.mark.parametrize("options", [{"top_k": 3}, {"top_p": 0.8}, {"min_p": 0.6}])
def test_sample_truncated_draws_every_token_that_is_kept(library, options):
    logits = np.zeros((1, 90), f32)
    logits[0, [17, 40, 77]] = 5.0, 4.9, 4.8
    drawn = set()
    for seed in range(40):
        _, results, _ = sampled(library, logits, positions=[9], temperature=1, seed=seed, **options)
        drawn.add(int(results[0]["token"]))
    assert drawn == {17, 40, 77}


def test_sample_greedy_of_equal_logits_takes_the_first(library):
    logits = np.zeros((1, 100), f32)
    logits[0, [40, 77]] = 2
    _, results, _ = sampled(library, logits, positions=[0])
    assert results[0]["token"] == 40


def test_sample_host_chooses_ignores_noise(library):
    logits = np.random.default_rng(3).normal(0, 1, (1, 200)).astype(f32)
    options = {"positions": [9], "temperature": 5.0, "seed": 11}
    _, device, _ = sampled(library, logits, **options)
    _, host, _ = sampled(library, logits, host_chooses=True, **options)
    assert host[0]["token"] == np.argmax(logits) != device[0]["token"]
    for name in ("lse", "lse_temperature", "top"):
        assert host[0][name].tobytes() == device[0][name].tobytes()


def test_sample_full_logits_only_when_asked(library):
    logits = np.random.default_rng(3).normal(0, 1, (2, 50)).astype(f32)
    _, _, full = sampled(library, logits, positions=[0, 1], full=[False, True])
    assert np.isnan(full[0]).all()
    assert_same_bits(full[1], logits[1])


def test_sample_row_that_does_not_sample_returns_no_token(library):
    logits = np.random.default_rng(3).normal(0, 1, (2, 50)).astype(f32)
    words, results, full = sampled(library, logits, positions=[0, 1], sample=[False, True])
    assert words[abi.STATUS_STATE] == abi.State.DONE
    assert results["token"].tolist() == [-1, int(np.argmax(logits[1]))]
    assert np.isnan(full[0]).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_sample_not_finite_is_an_error(library, bad, temperature):
    logits = np.zeros((2, 50), f32)
    logits[1, 33] = bad
    words, _, _ = sampled(library, logits, positions=[0, 1], temperature=temperature)
    assert words[abi.STATUS_STATE] == abi.State.ERROR
    assert words[abi.STATUS_ERROR] == 13 and words[abi.STATUS_DETAIL] == 1


# ---- the model under test ---------------------------------------------------------------


def test_random_model_is_the_same_on_every_machine():
    model = RandomModel(ModelConfig(40, 40, 1, 2, 1, 40, 8, False), 32, seed=1)
    digest = hashlib.sha256()
    for name, layer in (("wk", 0), ("wcls", None)):
        digest.update(model.matrix(name, layer).q.tobytes())
        digest.update(model.matrix(name, layer).scale.tobytes())
    digest.update(model.vector("rms_att_weight", 0).tobytes())
    assert digest.hexdigest()[:16] == "2eb48fd793afbf64"
