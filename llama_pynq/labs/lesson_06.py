"""Lesson 06, which board: bytes, capacity, bandwidth, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from numbers import Real
from typing import Any

from llama_pynq.boards import MIB, boards
from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.checkpoint.shapes import SHAPES
from llama_pynq.estimate.predict import predict
from llama_pynq.estimate.work import Work
from llama_pynq.labs import exercise, expect

MODEL = SHAPES["stories110M"]
"""Of the exercises with one shape."""

GROUP = 64
CONTEXT = 256


def _near(given: Real | float, right: float, tolerance: float = 0.02) -> bool:
    return math.isclose(float(given), right, rel_tol=tolerance)


def _hint(
    given: Any, right: float, mistakes: Mapping[str, float], otherwise: str, tolerance: float = 0.02
) -> str:
    """Nothing where `given` is right; else the hint whose mistake gives just this value."""
    if not isinstance(given, Real):
        return f"A number is asked for, and this is {given!r}."
    value = float(given)
    if _near(value, right, tolerance):
        return ""
    nearest = min(mistakes, key=lambda hint: abs(value - mistakes[hint]))
    if _near(value, mistakes[nearest], 0.01):
        return nearest
    return f"{otherwise} Yours is {value / right:.3g} times what it should be."


# ---- 06.1 -----------------------------------------------------------------------------


def _work(config: ModelConfig, context: int, weight_bits: int, kv_bits: int) -> Work:
    return Work(config, GROUP, weight_bits, kv_bits, rows=1, position=context - 1, sample=True)


def _bytes(config: ModelConfig, context: int, weight_bits: int = 8, kv_bits: int = 32) -> int:
    work = _work(config, context, weight_bits, kv_bits)
    return work.weight_bytes + work.kv_bytes


def _weight_mistakes(config: ModelConfig, context: int) -> dict[str, float]:
    """Wrong counts of an int8 model's bytes, by hint."""
    c, right = config, _bytes(config, context)
    with_scale = 1 + 4 / GROUP
    table = c.vocab_size * c.dim * with_scale
    layer = (2 * c.dim * (c.dim + c.kv_dim) + 3 * c.dim * c.hidden_dim) * with_scale
    gate = c.n_layers * c.dim * c.hidden_dim * with_scale
    cache = _work(c, c.seq_len, 8, 32).kv_bytes
    return {
        "That is a number of bits: 8 bits are a byte.": 8 * right,
        "That is in MB. Give bytes: the units come later.": right / 1e6,
        "That is in MiB. Give bytes: the units come later.": right / MIB,
        "Here a weight has 4 bytes, as in float32. It has weight_bits / 8 of them.": 4 * right,
        f"The scales are missing: each {GROUP} weights of a row share a float32, 4 bytes.": (
            right / with_scale
        ),
        "The embedding is counted as a matrix that is read in whole. A token reads one row of it, "
        "which is next to nothing; the classifier is what is read in whole, tied or not.": (
            right + table
        ),
        "The classifier is missing. It may share its table with the embedding (tied), but to get "
        "the logits every row of it is read.": right - table,
        "The embedding and the classifier are counted for each layer. They are there once.": (
            right + (c.n_layers - 1) * table
        ),
        "That is one layer and the classifier. How many layers are there?": layer + table,
        "The feed-forward part has three matrices: w1, w2 and w3.": right - gate,
        "The whole KV cache is counted, all seq_len positions. A token reads only those that are "
        "in use: context of them.": right + cache,
    }


@exercise(
    "06.1",
    "Bytes that a token reads",
    stages=(
        "the weights, each once",
        "the keys and values of the context",
        "any shape: tied or not, fewer heads for keys and values",
        "any format: int4 weights, int8 keys and values",
    ),
)
def token_bytes(given: Callable[..., Any]) -> Iterator[str]:
    """What the learner's token_bytes(config, context, weight_bits, kv_bits) counts."""
    c = MODEL
    yield _hint(
        given(c, 1, 8, 32),
        _bytes(c, 1),
        _weight_mistakes(c, 1),
        "Not the bytes of stories110M's weights. Add up rows × columns of every matrix in the "
        "table, with the layers and the scales.",
    )
    read = given(c, CONTEXT, 8, 32) - given(c, 1, 8, 32)
    right = _bytes(c, CONTEXT) - _bytes(c, 1)
    yield _hint(
        read,
        right,
        {
            "More context makes no difference here: the KV cache is forgotten. A token reads the "
            "key and the value of every position before it, in every layer.": 0,
            "Keys or values? Both are read.": right / 2,
            "That is the cache of one layer. Each layer has its own.": right / c.n_layers,
            "A value of the cache is a float32 here: kv_bits / 8 = 4 bytes.": right / 4,
            "That is a number of bits: kv_bits / 8 is bytes.": 8 * right,
            "One head's keys and values: there are n_kv_heads of them, kv_dim values in all.": (
                right / c.n_kv_heads
            ),
        },
        "The weights are right; what 255 more positions add is not.",
    )
    wide = SHAPES["tinyllama"]
    right = _bytes(wide, CONTEXT)
    yield _hint(
        given(wide, CONTEXT, 8, 32),
        right,
        {
            "For TinyLlama the embedding is a table of its own (tied=False). It has to be stored, "
            "but a token reads one row of it, not all.": (
                right + wide.vocab_size * wide.dim * (1 + 4 / GROUP)
            ),
            "TinyLlama has 32 heads but keys and values for 4 only: kv_dim, not dim, counts for "
            "wk, wv and the cache.": _unshared(cache=True, matrices=True),
            "TinyLlama has keys and values for 4 heads only: use kv_dim for the cache as well.": (
                _unshared(cache=True)
            ),
            "TinyLlama has keys and values for 4 heads only: use kv_dim for wk and wv as well.": (
                _unshared(matrices=True)
            ),
        },
        "Right for stories110M, but not for TinyLlama: is a number of stories110M written into "
        "the function?",
        tolerance=0.01,
    )
    yield _hint(
        given(c, CONTEXT, 4, 32),
        _bytes(c, CONTEXT, 4, 32),
        {
            "With int4 weights your function gives the same as with int8: use weight_bits.": (
                _bytes(c, CONTEXT)
            ),
            "With int4 weights the scales stay float32, 4 bytes for each 64 weights: do not halve "
            "them.": _work(c, CONTEXT, 8, 32).weight_bytes / 2 + _work(c, CONTEXT, 8, 32).kv_bytes,
            "int4 is for the weights. The keys and values stay as they are: kv_bits.": (
                _bytes(c, CONTEXT) / 2
            ),
        },
        "Not right for int4 weights.",
        tolerance=0.01,
    ) or _hint(
        given(c, CONTEXT, 8, 8) - given(c, 1, 8, 8),
        _bytes(c, CONTEXT, 8, 8) - _bytes(c, 1, 8, 8),
        {
            "With an int8 cache your function gives the same as with float32: use kv_bits.": (
                _bytes(c, CONTEXT) - _bytes(c, 1)
            ),
            "In int8, each head's key and each head's value of a position has a float32 scale.": (
                (_bytes(c, CONTEXT) - _bytes(c, 1)) / 4
            ),
        },
        "Not right for an int8 cache.",
    )


def _unshared(cache: bool = False, matrices: bool = False) -> float:
    """TinyLlama's bytes with keys and values for all heads: in the cache, in wk and wv."""
    c = SHAPES["tinyllama"]
    more = 2 * c.n_layers * (c.dim - c.kv_dim)
    result = float(_bytes(c, CONTEXT))
    if matrices:
        result += more * c.dim * (1 + 4 / GROUP)
    if cache:
        result += more * CONTEXT * 4
    return result


# ---- 06.2 -----------------------------------------------------------------------------


def _stored(config: ModelConfig, weight_bits: int, kv_bits: int) -> float:
    """Bytes of the weights and of a whole sequence's keys and values."""
    c = config
    table = c.vocab_size * (c.dim * weight_bits / 8 + 4 * math.ceil(c.dim / GROUP))
    return _bytes(c, c.seq_len, weight_bits, kv_bits) + (0 if c.tied else table)


@exercise(
    "06.2",
    "Memory that a model needs",
    stages=(
        "stories110M, int8, in MiB",
        "int4 weights and an int8 cache",
        "TinyLlama, whose embedding is not tied",
    ),
)
def needs_mib(given: Callable[..., Any]) -> Iterator[str]:
    """What the learner's needs_mib(config, weight_bits, kv_bits) counts."""
    c = MODEL
    right = _stored(c, 8, 32) / MIB
    yield _hint(
        given(c, 8, 32),
        right,
        {
            "That is in MB, 10^6 bytes. PYNQ's memory is counted in MiB, 2^20 bytes.": (
                right * MIB / 1e6
            ),
            "That is in bytes. Divide by 2**20.": right * MIB,
            "That is in GiB. Divide by 2**20, not by 2**30.": right / 1024,
            "That is in GB. Divide by 2**20.": right * MIB / 1e9,
            "KiB? Divide by 2**20.": right * 1024,
            "That is the cache of 256 positions. Room is needed for all of them: seq_len.": (
                _bytes(c, 256) / MIB
            ),
            "Those are the weights alone. The KV cache lies in the same memory.": (
                _work(c, 1, 8, 32).weight_bytes / MIB
            ),
            "The tied classifier is the embedding's table: it is stored once.": (
                right + c.vocab_size * c.dim * (1 + 4 / GROUP) / MIB
            ),
        },
        "Not what stories110M needs: its weights, and keys and values for seq_len positions.",
    )
    yield _hint(
        given(c, 4, 8),
        _stored(c, 4, 8) / MIB,
        {
            "The formats make no difference here: pass weight_bits and kv_bits on.": right,
            "Only the weights became smaller: pass kv_bits on too.": _stored(c, 4, 32) / MIB,
            "Only the cache became smaller: pass weight_bits on too.": _stored(c, 8, 8) / MIB,
        },
        "Right for int8 and float32, but not for int4 weights and an int8 cache.",
    )
    wide = SHAPES["tinyllama"]
    right = _stored(wide, 8, 32) / MIB
    yield _hint(
        given(wide, 8, 32),
        right,
        {
            "TinyLlama's embedding is not tied. A token reads one row of it, but the whole table "
            "lies in memory, beside the classifier.": _bytes(wide, wide.seq_len) / MIB
        },
        "Right for stories110M, but not for TinyLlama.",
    )


# ---- 06.3 -----------------------------------------------------------------------------

CLOSE = 0.15
"""How near a prediction has to come."""


@exercise(
    "06.3",
    "Tokens per second from the bandwidth",
    stages=("the memory's sustained bandwidth over a token's bytes", "within 15% of the reference"),
)
def prediction(given: Any, model: str, board: str, context: int, reference: float) -> Iterator[str]:
    """The learner's tokens/s of a model on a board, beside a measured or modelled rate."""
    config, memory = SHAPES[model], boards()[board].memory
    read = _bytes(config, context)
    peak = memory.peak_bytes_per_s
    right = peak * memory.efficiency / read
    weights = _work(config, context, 8, 32).weight_bytes
    mistakes = {
        "That is the peak, which no program gets. Long reads reach a share of it: "
        "memory.efficiency.": peak / read,
        "The KV cache is forgotten: it is read for each token too.": (
            peak * memory.efficiency / weights
        ),
        "Two things are forgotten: that memory sustains only a share of its peak, and the KV "
        "cache.": peak / weights,
        "That is the time of a token in seconds. Tokens per second is one over it.": 1 / right,
        "That is the time of a token in milliseconds. Tokens per second is 1000 over it.": (
            1e3 / right
        ),
        "Eight times too small: the bandwidth is in bytes per second already, not in bits.": (
            right / 8
        ),
        "Eight times too large: divide bytes per second by bytes, not by bits or so.": 8 * right,
        "A thousand times too small: is the bandwidth in GB/s and the token in MB?": right / 1e3,
    }
    near = isinstance(given, Real) and _near(given, reference, CLOSE)
    hint = _hint(
        given,
        right,
        mistakes,
        "Divide what memory sustains in a second by what a token reads.",
        tolerance=0.05,
    )
    # Who knows that the roof is not reached may well have a better number than the roof.
    yield "" if near else hint
    yield expect(
        near,
        f"That is the memory's roof, {right:,.0f} tokens/s, and the reference is "
        f"{reference:,.0f}: here the roof is not what decides. Which share of it is reached? "
        "Look at the table of boards below, and correct your prediction.",
    )


# ---- 06.4 -----------------------------------------------------------------------------


@exercise(
    "06.4",
    "What int4 weights gain",
    stages=("the ratio of the bytes", "within 15% of the model of the board"),
)
def int4_gain(given: Any, model: str, board: str) -> Iterator[str]:
    """How many times as fast a model is with int4 weights, its whole context in use."""
    config = SHAPES[model]
    full = config.seq_len
    wide, narrow = (_work(config, full, bits, 32).weight_bytes for bits in (8, 4))
    ratio = _bytes(config, full, 8) / _bytes(config, full, 4)
    rates = [
        predict(config, boards()[board], position=full - 1, weight_bits=bits).tokens_per_second
        for bits in (8, 4)
    ]
    modelled = rates[1] / rates[0]
    near = isinstance(given, Real) and _near(given, modelled, CLOSE)
    hint = _hint(
        given,
        ratio,
        {
            "Twice: that would be if a token read nothing but weights, and the weights had no "
            "scales.": 2,
            "That is the ratio of the weights alone. The cache is read too, as float32.": (
                wide / narrow
            ),
            "That is the gain with a quarter of the context in use. Here it is all of it.": (
                _bytes(config, full // 4, 8) / _bytes(config, full // 4, 4)
            ),
            "Turn it round: fewer bytes are more tokens.": 1 / ratio,
        },
        "Divide the bytes of a token with int8 weights by those with int4.",
        tolerance=0.04,
    )
    yield "" if near else hint
    yield expect(
        near,
        f"The bytes say {ratio:.2f}, the model of this board {modelled:.2f}: something other than "
        "the memory's bandwidth limits it. Look at 'of roof' in the tables.",
    )


# ---- 06.5 -----------------------------------------------------------------------------


@exercise(
    "06.5",
    "Speed for the money, energy for a token",
    stages=("tokens/s per unit of money", "joules per token"),
)
def value(given: Callable[..., Any]) -> Iterator[str]:
    """The learner's value(tokens_per_second, watts, price)."""
    # No two of these, multiplied or divided, give the same.
    rate, watts, price = 120.0, 6.0, 300.0
    both = given(rate, watts, price)
    if not (isinstance(both, (tuple, list)) and len(both) == 2):
        yield f"Return two numbers, and this is {both!r}: return speed, energy."
        return
    speed, energy = both
    yield _hint(
        speed,
        rate / price,
        {
            "That is money per token/s. It is the other way round: tokens/s per unit of money.": (
                price / rate
            ),
            "That is the energy of a token: give the speed for the money first.": watts / rate,
            "A price is divided by, not multiplied with.": rate * price,
        },
        "tokens/s over the price.",
    )
    yield _hint(
        energy,
        watts / rate,
        {
            "Tokens per joule: the inverse is asked for.": rate / watts,
            "Watts are joules per second. With more tokens in a second, is a token's share larger "
            "or smaller? Divide.": watts * rate,
            "That is in mWh, HLSTransform's unit: 1 mWh is 3.6 J. Give joules.": watts / rate / 3.6,
            "That is power for the money. A token's energy does not depend on the price.": (
                watts / price
            ),
        },
        "Watts over tokens/s.",
    )
