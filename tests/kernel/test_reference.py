"""The NumPy models against results of llama2.c, and against each other."""

import json
from decimal import Decimal, localcontext

import numpy as np
import pytest
from support.kernel_library import RandomModel

from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.checkpoint.load import load_checkpoint
from llama_pynq.kernel import float_math, stages
from llama_pynq.kernel.reference import FloatModel, KernelModel
from llama_pynq.kernel.stages import QuantizedMatrix, rope_turns
from llama_pynq.weights.quantize import QuantizedModel

f32 = np.float32
CONFIG = ModelConfig(48, 70, 2, 4, 2, 90, 80, False)


@pytest.fixture(scope="module")
def oracle(shared_models):
    return json.loads((shared_models / "stories260K.oracle.json").read_text())


@pytest.fixture(scope="module")
def checkpoint(shared_models):
    with load_checkpoint(shared_models / "stories260K.bin") as opened:
        yield opened


def teacher_forced(model, ids):
    """Teacher-forced logits of every position, (len(ids), vocab_size)."""
    chunk = 16
    return np.concatenate(
        [
            model.forward(ids[at : at + chunk], range(at, at + len(ids[at : at + chunk])))
            for at in range(0, len(ids), chunk)
        ]
    )


def mean_nll(logits, targets):
    logits = logits.astype(np.float64)
    log_sums = np.logaddexp.reduce(logits, axis=1)
    return float(np.mean(log_sums - logits[np.arange(len(targets)), targets]))


@pytest.fixture(scope="module")
def float_logits(checkpoint, oracle):
    return teacher_forced(FloatModel(checkpoint), oracle["greedy_ids"][:200])


@pytest.fixture(scope="module")
def kernel_logits(checkpoint, oracle):
    model = QuantizedModel(checkpoint)
    assert model.group_size == 64
    return teacher_forced(KernelModel(model), oracle["greedy_ids"][:200])


# ---- against llama2.c -------------------------------------------------------------------


def test_float_model_greedy_ids_same_as_llama2c(checkpoint, oracle):
    model = FloatModel(checkpoint)
    ids = [1]
    for position in range(len(oracle["greedy_ids"]) - 1):
        ids.append(int(np.argmax(model.forward(ids[-1:], [position])[0])))
    assert ids == oracle["greedy_ids"]


def test_float_model_logits_same_as_llama2c(float_logits, oracle):
    for position, expected in oracle["logits_at_position"].items():
        logits = float_logits[int(position)]
        np.testing.assert_allclose(logits[:6], expected["first6"], rtol=0, atol=2e-5)
        assert np.argmax(logits) == expected["argmax"]
        assert logits.max() == pytest.approx(expected["max"], abs=2e-5)


def test_float_model_nll_same_as_llama2c(float_logits, oracle):
    expected = oracle["teacher_forced_mean_nll_of_greedy_ids"]
    assert mean_nll(float_logits, oracle["greedy_ids"][1:201]) == pytest.approx(expected, abs=1e-5)


def test_kernel_model_perplexity_within_half_a_percent(float_logits, kernel_logits, oracle):
    targets = oracle["greedy_ids"][1:201]
    change = mean_nll(kernel_logits, targets) - mean_nll(float_logits, targets)
    assert abs(np.expm1(change)) < 0.005


@pytest.mark.parametrize(
    ("weight_bits", "kv_bits", "limit"), [(8, 8, 0.01), (4, 32, 0.15), (4, 8, 0.15)]
)
def test_kernel_model_perplexity_of_the_smaller_formats(
    checkpoint, float_logits, oracle, weight_bits, kv_bits, limit
):
    """int4 costs a model of 260,000 parameters much accuracy; larger models lose less."""
    model = KernelModel(QuantizedModel(checkpoint, bits=weight_bits), kv_bits)
    targets = oracle["greedy_ids"][1:201]
    logits = teacher_forced(model, oracle["greedy_ids"][:200])
    change = np.expm1(mean_nll(logits, targets) - mean_nll(float_logits, targets))
    assert -0.01 < change < limit


def test_kernel_model_top_token_nearly_always_the_floats(float_logits, kernel_logits):
    same = kernel_logits.argmax(axis=1) == float_logits.argmax(axis=1)
    assert same.mean() >= 0.98


# ---- the two models ---------------------------------------------------------------------


class Dequantized:
    """A random model's weights dequantised to float32, for `FloatModel`."""

    def __init__(self, model):
        self.config, self._model = model.config, model

    def tensor(self, name, layer=None):
        if name.startswith("rms"):
            return self._model.vector(name, layer)
        n = self.config.hidden_dim if name == "w2" else self.config.dim
        return self._model.matrix(name, layer).dequantize()[:, :n]


def test_kernel_model_near_the_float_model_of_the_same_weights():
    """Only activations are rounded. The model has odd widths, grouped queries, three blocks."""
    model = RandomModel(CONFIG, 32, seed=4)
    tokens = np.random.default_rng(0).integers(0, 90, 70).tolist()
    exact = teacher_forced(FloatModel(Dequantized(model)), tokens)
    rounded = teacher_forced(KernelModel(model), tokens)
    assert np.corrcoef(exact.reshape(-1), rounded.reshape(-1))[0, 1] > 0.999
    assert np.abs(exact - rounded).mean() < 0.03 * exact.std()


@pytest.mark.parametrize("arithmetic", ["float", "kernel"])
def test_models_rows_attend_to_their_own_slot(arithmetic):
    weights = RandomModel(CONFIG, 32, seed=4)

    def new():
        return KernelModel(weights) if arithmetic == "kernel" else FloatModel(Dequantized(weights))

    both = new()
    logits = both.forward([1, 2, 3, 4], [0, 0, 1, 1], [0, 2, 0, 2])
    for slot, tokens in ((0, [1, 3]), (2, [2, 4])):
        alone = new().forward(tokens, [0, 1])
        np.testing.assert_allclose(logits[slot // 2 :: 2], alone, rtol=0, atol=1e-4)
        if arithmetic == "kernel":
            assert logits[slot // 2 :: 2].tobytes() == alone.tobytes()


def test_kernel_model_reset_forgets():
    model = KernelModel(RandomModel(CONFIG, 32, seed=4))
    first = model.forward([1, 2], [0, 1])
    model.forward([9, 9], [0, 1])
    model.reset()
    with pytest.raises(KeyError):
        model.cached(0, 1)
    assert model.forward([1, 2], [0, 1]).tobytes() == first.tobytes()


# ---- arithmetic -------------------------------------------------------------------------


def test_flush_subnormals_become_zero_of_their_sign():
    tiny = np.finfo(f32).tiny
    below = np.nextafter(tiny, f32(0))
    x = np.array([below, -below, 1e-45, -1e-45, tiny, -tiny, 0, -0.0, 1], f32)
    expected = np.array([0, -0.0, 0, -0.0, tiny, -tiny, 0, -0.0, 1], f32)
    assert float_math.flush(x).tobytes() == expected.tobytes()


def test_matvec_exact_for_whole_numbers():
    rng = np.random.default_rng(1)
    weight = QuantizedMatrix(rng.integers(-127, 128, (9, 96)).astype(np.int8), np.ones((9, 3), f32))
    q = rng.integers(-127, 128, (4, 96)).astype(np.int8)
    expected = q.astype(int) @ weight.q.T.astype(int)
    np.testing.assert_array_equal(stages.matvec(weight, q, np.ones((4, 3), f32)), expected)


def test_lane_sum_order_is_sixteen_lanes_then_a_tree():
    x = np.zeros(48, f32)
    # In one lane the small terms are lost one by one; in separate lanes they are not.
    x[0], x[16], x[32] = 1, 2**-24, 2**-24
    assert float_math.lane_sum(x, 16) == 1
    x[16], x[32], x[1], x[17] = 0, 0, 2**-24, 2**-24
    assert float_math.lane_sum(x, 16) == f32(1 + 2**-23)


@pytest.mark.parametrize("theta", [10000.0, 500000.0, 100.5, 1.0])
@pytest.mark.parametrize("head_size", [2, 8, 48, 64, 128])
def test_rope_turns_exact_to_the_last_bit(head_size, theta):
    with localcontext() as context:
        context.prec = 80

        def arctan_inverse(n):
            total, power, k = Decimal(0), Decimal(1) / n, 0
            while abs(power) > Decimal(10) ** -78:
                total += (power if k % 2 == 0 else -power) / (2 * k + 1)
                power, k = power / (n * n), k + 1
            return total

        pi = 4 * (4 * arctan_inverse(5) - arctan_inverse(239))  # Machin's formula
        for i, turns in enumerate(rope_turns(head_size, theta)):
            angle = Decimal(theta) ** (Decimal(-2 * i) / head_size)
            exact = angle / (2 * pi) * 2**64
            assert abs(exact - int(turns)) <= Decimal("0.5")


def test_rope_turns_gives_every_position_its_angle():
    turns = rope_turns(64, 10000.0)
    x = np.tile(np.array([1, 0], f32), 32).reshape(1, 1, 64)
    for position in (0, 1, 7, 1000, 32767):
        rotated = stages.rotate(x, np.array([position]), turns)[0, 0]
        angle = position * 10000.0 ** (-np.arange(32) / 32)
        np.testing.assert_allclose(rotated[::2], np.cos(angle), rtol=0, atol=2e-7)
        np.testing.assert_allclose(rotated[1::2], np.sin(angle), rtol=0, atol=2e-7)


def test_rope_turns_result_belongs_to_the_caller():
    rope_turns(8, 10000.0)[:] = 0
    assert rope_turns(8, 10000.0).all()


# ---- sampling noise ---------------------------------------------------------------------


def test_gumbel_noise_has_its_distribution():
    n = 1000
    noise = np.concatenate(
        [float_math.gumbel_noise(7, position, np.arange(n)) for position in range(200)]
    )
    noise = noise.astype(np.float64)
    deviation = np.pi / np.sqrt(6)
    assert abs(noise.mean() - 0.57721566) < 4 * deviation / np.sqrt(noise.size)
    assert noise.std() == pytest.approx(deviation, rel=0.01)
    # Kolmogorov-Smirnov test, significance 1 in 1000.
    order = np.sort(noise)
    distance = np.abs(np.exp(-np.exp(-order)) - (np.arange(noise.size) + 0.5) / noise.size).max()
    assert distance < 1.95 / np.sqrt(noise.size)


def test_gumbel_noise_of_neighbours_is_unrelated():
    ids = np.arange(20000)
    base = float_math.gumbel_noise(7, 3, ids)
    for other in (
        float_math.gumbel_noise(8, 3, ids), float_math.gumbel_noise(7, 4, ids),
        float_math.gumbel_noise(7 + 2**32, 3, ids), np.roll(base, 1),
    ):  # fmt: skip
        assert abs(np.corrcoef(base, other)[0, 1]) < 4 / np.sqrt(len(ids))


def test_gumbel_noise_of_an_id_does_not_depend_on_its_company():
    ids = np.array([500, 3, 77])
    expected = float_math.gumbel_noise(2**63 + 5, 9, np.arange(501))[ids]
    assert float_math.gumbel_noise(2**63 + 5, 9, ids).tobytes() == expected.tobytes()


def test_sample_follows_the_softmax():
    logits = np.array([2.0, 1.0, 0.0, -1.0, 1.5], f32)
    temperature = 0.7
    counts = np.zeros(5)
    n = 1500
    for position in range(n):
        counts[stages.sample(logits, temperature, 11, position, 1).token] += 1
    p = np.exp(logits.astype(np.float64) / temperature)
    p /= p.sum()
    chi_squared = np.sum((counts - n * p) ** 2 / (n * p))
    assert chi_squared < 18.5  # significance 1 in 1000, four degrees of freedom


def test_sample_log_sum_exps_are_those_of_the_logits():
    logits = np.random.default_rng(2).normal(0, 4, 333).astype(f32)
    found = stages.sample(logits, 0.5, 1, 2, 10)
    assert found.lse == pytest.approx(np.logaddexp.reduce(logits.astype(np.float64)), abs=2e-6)
    tempered = np.logaddexp.reduce(logits.astype(np.float64) / 0.5)
    assert found.lse_temperature == pytest.approx(tempered, abs=4e-6)
    assert found.top_ids.tolist() == np.argsort(-logits)[:10].tolist()
