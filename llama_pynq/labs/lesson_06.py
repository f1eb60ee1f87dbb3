"""Lesson 06, which board: bytes, capacity, bandwidth, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from numbers import Real
from typing import Any

from llama_pynq.boards import MIB, find_board
from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.checkpoint.shapes import SHAPES
from llama_pynq.estimate.predict import predict
from llama_pynq.estimate.work import Work
from llama_pynq.labs import exercise, expect

MODEL = SHAPES["stories110M"]
"""Model of the exercises that use a single shape."""

GROUP = 64
CONTEXT = 256


def _near(given: Real | float, right: float, tolerance: float = 0.02) -> bool:
    return math.isclose(float(given), right, rel_tol=tolerance)


def _hint(
    given: Any, right: float, mistakes: Mapping[str, float], otherwise: str, tolerance: float = 0.02
) -> str:
    """Return an empty string if `given` is right, else the hint of the nearest mistake."""
    if not isinstance(given, Real):
        return f"Give a number, not {given!r}."
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
    """Return wrong counts of an int8 model's bytes, by hint."""
    c, right = config, _bytes(config, context)
    with_scale = 1 + 4 / GROUP
    table = c.vocab_size * c.dim * with_scale
    layer = (2 * c.dim * (c.dim + c.kv_dim) + 3 * c.dim * c.hidden_dim) * with_scale
    gate = c.n_layers * c.dim * c.hidden_dim * with_scale
    cache = _work(c, c.seq_len, 8, 32).kv_bytes
    return {
        "That is the number of bits: 8 bits are a byte.": 8 * right,
        "That is in MB. Give bytes: the units come later.": right / 1e6,
        "That is in MiB. Give bytes: the units come later.": right / MIB,
        "Here a weight has 4 bytes, as in float32. It has weight_bits / 8 of them.": 4 * right,
        f"The scales are missing: every {GROUP} weights of a row share a float32, 4 bytes.": (
            right / with_scale
        ),
        "The embedding is counted as a matrix that is read in full. A token reads one row of it, "
        "which is negligible; the classifier is read in full, tied or not.": right + table,
        "The classifier is missing. It may share its table with the embedding (tied), but the "
        "logits need every row of it.": right - table,
        "The embedding and the classifier are counted for each layer. They exist once.": (
            right + (c.n_layers - 1) * table
        ),
        "That is one layer and the classifier. How many layers are there?": layer + table,
        "The feed-forward part has three matrices: w1, w2 and w3.": right - gate,
        "The whole KV cache is counted, all seq_len positions. A token reads only those that are "
        "in use: context positions.": right + cache,
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
    """Check the learner's token_bytes(config, context, weight_bits, kv_bits)."""
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
            "That is only the keys, or only the values. Both are read.": right / 2,
            "That is the cache of one layer. Each layer has its own.": right / c.n_layers,
            "An element of the cache is a float32 here: kv_bits / 8 = 4 bytes.": right / 4,
            "That is the number of bits: kv_bits / 8 is bytes.": 8 * right,
            "That is one head's keys and values: n_kv_heads heads have kv_dim elements in all.": (
                right / c.n_kv_heads
            ),
        },
        "The weights are right; the bytes that 255 more positions add are not.",
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
        "Right for stories110M, but not for TinyLlama: is a number of stories110M hard-coded in "
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
    """Return TinyLlama's bytes with K and V for all heads: in the cache, or in wk and wv."""
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
    """Return the bytes of the weights and of a whole sequence's keys and values."""
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
    """Check the learner's needs_mib(config, weight_bits, kv_bits)."""
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
            "That is in KiB. Divide by 2**20.": right * 1024,
            "That is the cache of 256 positions. Reserve room for all of them: seq_len.": (
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
            "Only the weights became smaller: pass kv_bits on, too.": _stored(c, 4, 32) / MIB,
            "Only the cache became smaller: pass weight_bits on, too.": _stored(c, 8, 8) / MIB,
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
"""Relative error that a prediction may have."""


@exercise(
    "06.3",
    "Tokens per second from the bandwidth",
    stages=("the memory's sustained bandwidth over a token's bytes", "within 15% of the reference"),
)
def prediction(given: Any, model: str, board: str, context: int, reference: float) -> Iterator[str]:
    """Check the learner's tokens/s of a model on a board against a measured or modelled rate."""
    config, memory = SHAPES[model], find_board(board).memory
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
        "Eight times too large: is the bandwidth in bits per second? Take bytes.": 8 * right,
        "A thousand times too small: is the bandwidth in GB/s and the token in MB?": right / 1e3,
    }
    near = isinstance(given, Real) and _near(given, reference, CLOSE)
    hint = _hint(
        given,
        right,
        mistakes,
        "Divide what memory sustains in a second by the bytes that a token reads.",
        tolerance=0.05,
    )
    # A prediction below the roof may be nearer to the reference than the roof is: accept it.
    yield "" if near else hint
    yield expect(
        near,
        f"That is the memory's roof, {right:,.0f} tokens/s, and the reference is "
        f"{reference:,.0f}: here the roof is not the limit. Which share of it is reached? "
        "Look at the table of boards below, and correct your prediction.",
    )


# ---- 06.4 -----------------------------------------------------------------------------


@exercise(
    "06.4",
    "What int4 weights gain",
    stages=("the ratio of the bytes", "within 15% of the model of the board"),
)
def int4_gain(given: Any, model: str, board: str) -> Iterator[str]:
    """Check the learner's speed-up by int4 weights with the whole context in use."""
    config = SHAPES[model]
    full = config.seq_len
    wide, narrow = (_work(config, full, bits, 32).weight_bytes for bits in (8, 4))
    ratio = _bytes(config, full, 8) / _bytes(config, full, 4)
    rates = [
        predict(config, find_board(board), position=full - 1, weight_bits=bits).tokens_per_second
        for bits in (8, 4)
    ]
    modelled = rates[1] / rates[0]
    near = isinstance(given, Real) and _near(given, modelled, CLOSE)
    hint = _hint(
        given,
        ratio,
        {
            "Twice as fast would be right if a token read only weights, and the weights had no "
            "scales.": 2,
            "That is the ratio of the weights alone. The cache is read too, as float32.": (
                wide / narrow
            ),
            "That is the gain with a quarter of the context in use. Here it is all of it.": (
                _bytes(config, full // 4, 8) / _bytes(config, full // 4, 4)
            ),
            "Turn it round: fewer bytes per token mean more tokens/s.": 1 / ratio,
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
    """Check the learner's value(tokens_per_second, watts, price)."""
    # Chosen so that no two products or quotients are equal.
    rate, watts, price = 120.0, 6.0, 300.0
    both = given(rate, watts, price)
    if not (isinstance(both, (tuple, list)) and len(both) == 2):
        yield f"Return two numbers, not {both!r}: return speed, energy."
        return
    speed, energy = both
    yield _hint(
        speed,
        rate / price,
        {
            "That is money per token/s. Do it the other way round: tokens/s per unit of money.": (
                price / rate
            ),
            "That is the energy of a token: give the speed for the money first.": watts / rate,
            "Divide by the price, do not multiply.": rate * price,
        },
        "Divide tokens/s by the price.",
    )
    yield _hint(
        energy,
        watts / rate,
        {
            "That is tokens per joule: give the inverse.": rate / watts,
            "Watts are joules per second. With more tokens in a second, is a token's share larger "
            "or smaller? Divide.": watts * rate,
            "That is in mWh, HLSTransform's unit: 1 mWh is 3.6 J. Give joules.": watts / rate / 3.6,
            "That is power per price. A token's energy does not depend on the price.": (
                watts / price
            ),
        },
        "Divide watts by tokens/s.",
    )
