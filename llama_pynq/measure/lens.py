"""Activations of a text inside the model, layer by layer.

`look` runs the device one layer at a time, using the contract's layer range, and reads back the
residual stream, and the keys and values that the kernel wrote into its cache. `attention`,
`logit_lens` and `quantization_error` analyse its result for lessons and views. Values computed on
the host are documented as such.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llama_pynq.engine.llama import Llama, check_model
from llama_pynq.engine.slots import Session
from llama_pynq.errors import KernelError, RequestError
from llama_pynq.kernel.abi import RequestFlag, RowFlag, make_rows
from llama_pynq.kernel.reference import FloatModel, QuantizedWeights
from llama_pynq.kernel.stages import (
    matvec,
    quantize_groups,
    rms_norm,
    rope_turns,
    rotate,
)


@dataclass(frozen=True)
class Inside:
    """Residual stream, keys and values of a text, as the device computed them.

    Attributes
    ----------
    tokens : list of int
        n of them, BOS included.
    pieces : list of str
        Their texts.
    stream : (n_layers + 1, n, dim) float32
        The residual stream before each layer, and after the last.
    keys, values : (n_layers, n_kv_heads, n, head_size) float32
        Read from the device's KV cache.
    device : str
    model : str
        `Llama.summary`; empty if unknown.
    """

    tokens: list[int]
    pieces: list[str]
    stream: np.ndarray
    keys: np.ndarray
    values: np.ndarray
    device: str
    model: str = ""


def look(llama: Llama, text: str) -> Inside:
    """Run a text through the device layer by layer, and record its activations.

    Parameters
    ----------
    llama : Llama
    text : str

    Raises
    ------
    RequestError
        If the text is longer than the context.
    KernelError
        If activations are not finite.
    """
    check_model(llama)
    tokens, c = llama.tokenizer.encode(text, bos=True), llama.config
    if len(tokens) > c.seq_len:
        raise RequestError(
            f"the text is {len(tokens)} tokens long, the model's context holds {c.seq_len}"
        )
    stream = np.empty((c.n_layers + 1, len(tokens), c.dim), np.float32)
    most = llama.driver.limits.max_rows
    with llama.session() as session:
        for first in range(0, len(tokens), most):
            part = slice(first, min(first + most, len(tokens)))
            rows = make_rows(part.stop - first)
            rows["token"], rows["slot"] = tokens[part], session.slot
            rows["position"] = np.arange(first, part.stop)
            # An empty layer range returns the embedding.
            x = _through(session, rows, (0, 0), None)
            for layer in range(c.n_layers + 1):
                if not np.isfinite(x).all():
                    where = f"layer {layer - 1} gives" if layer else "the embedding holds"
                    raise KernelError(
                        f"{llama.driver.device.name}: {where} values that are not finite; the "
                        "weights overflow float32"
                    )
                stream[layer, part] = x
                if layer < c.n_layers:
                    x = _through(session, rows, (layer, layer + 1), x)
        with session.device() as driver:
            keys, values = driver.read_cache(session.slot, len(tokens))
    pieces = _shown(llama, tokens)
    return Inside(tokens, pieces, stream, keys, values, llama.driver.device.name, llama.summary)


def _shown(llama: Llama, tokens: Sequence[int]) -> list[str]:
    """Return the text of each token; an incomplete character becomes a replacement character."""
    t = llama.tokenizer
    names = {t.bos_id: "<s>", t.eos_id: "</s>"}
    return [names.get(i) or t.piece(i).decode("utf-8", "replace") for i in tokens]


def _through(
    session: Session, rows: np.ndarray, layers: tuple[int, int], x: np.ndarray | None
) -> np.ndarray:
    with session.device() as driver:
        driver.run(rows, layers=layers, activations=x, flags=RequestFlag.ACTIVATIONS_OUT)
        return driver.read_activations(len(rows))


# ---- attention ------------------------------------------------------------------------


def attention(inside: Inside, weights: QuantizedWeights) -> np.ndarray:
    """Return the attention weights of every position, by layer and head.

    The keys are read from the device. The kernel does not export its queries: they are computed on
    the host from the device's residual stream, in the kernel's arithmetic.

    Parameters
    ----------
    inside : Inside
    weights : QuantizedWeights
        Of the model: ``QuantizedModel(checkpoint)``.

    Returns
    -------
    (n_layers, n_heads, n, n) float32
        Row i sums to 1 over positions 0 to i.
    """
    if not hasattr(weights, "matrix"):
        raise RequestError(
            f"{type(weights).__name__} given for the weights: they are QuantizedModel(checkpoint)"
        )
    c, n = weights.config, len(inside.tokens)
    turns = rope_turns(c.head_size, c.rope_theta)
    seen = np.tril(np.ones((n, n), bool))
    found = np.empty((c.n_layers, c.n_heads, n, n), np.float32)
    for layer in range(c.n_layers):
        norm = rms_norm(inside.stream[layer], weights.vector("rms_att_weight", layer))
        q = matvec(weights.matrix("wq", layer), *quantize_groups(norm, weights.group_size))
        q = rotate(q.reshape(n, c.n_heads, c.head_size), np.arange(n), turns)
        keys = np.repeat(inside.keys[layer], c.n_heads // c.n_kv_heads, axis=0)
        scores = np.einsum("nhd,hmd->hnm", q, keys) / np.sqrt(np.float32(c.head_size))
        scores = np.where(seen, scores, -np.inf)
        weight = np.exp(scores - scores.max(axis=-1, keepdims=True))
        found[layer] = weight / weight.sum(axis=-1, keepdims=True)
    return found


# ---- logit lens -----------------------------------------------------------------------


@dataclass(frozen=True)
class Lens:
    """The classifier's output for the residual stream of every layer (logit lens).

    Attributes
    ----------
    tokens : (n_layers + 1, n) int
        The most probable next token after each position.
    pieces : list of list of str
        Their texts.
    probability : (n_layers + 1, n) float32
        Of that token.
    model : str
        `Llama.summary`; empty if unknown.
    """

    tokens: np.ndarray
    pieces: list[list[str]]
    probability: np.ndarray
    model: str = ""


def logit_lens(llama: Llama, inside: Inside) -> Lens:
    """Run the device's classifier after every layer, as if that were the last.

    Parameters
    ----------
    llama : Llama
    inside : Inside
        From `look`, of the same model.

    Raises
    ------
    RequestError
        If it is of another model.

    References
    ----------
    nostalgebraist, interpreting GPT: the logit lens, 2020
    """
    check_model(llama)
    if inside.model not in ("", llama.summary):
        raise RequestError(
            f"the activations are of another model ({inside.model}): look(llama, text) again"
        )
    depth, n, _ = inside.stream.shape
    end, most = llama.config.n_layers, llama.driver.limits.max_rows
    tokens = np.empty((depth, n), np.int64)
    probability = np.empty((depth, n), np.float32)
    with llama.session() as session:
        for level in range(depth):
            for first in range(0, n, most):
                part = slice(first, min(first + most, n))
                rows = make_rows(part.stop - first)
                rows["slot"], rows["position"] = session.slot, np.arange(first, part.stop)
                rows["flags"] = RowFlag.SAMPLE
                with session.device() as driver:
                    x = inside.stream[level, part]
                    (out,) = driver.run(rows, layers=(end, end), activations=x).rows
                best = out["top"][:, 0]
                tokens[level, part] = best["id"]
                probability[level, part] = np.exp(best["logit"] - out["lse"])
    pieces = [_shown(llama, row) for row in tokens.tolist()]
    return Lens(tokens, pieces, probability, llama.summary)


def quantization_error(inside: Inside, model: FloatModel) -> np.ndarray:
    """Return the relative error of the device's residual stream against the float32 model's.

    Parameters
    ----------
    inside : Inside
    model : FloatModel
        Of the same checkpoint, computed on the host.

    Returns
    -------
    (n_layers + 1, n) float32
        Norm of the difference over the norm of the float32 model's stream, before each layer and
        after the last, at each position.
    """
    model.reset()
    exact = model.residual_stream(inside.tokens, range(len(inside.tokens)))
    away = np.linalg.norm(inside.stream - exact, axis=-1)
    return away / np.linalg.norm(exact, axis=-1)


# ---- the cache ------------------------------------------------------------------------


@dataclass(frozen=True)
class CacheUse:
    """Size of the KV cache, and how much of it texts fill.

    Attributes
    ----------
    slots, seq_len : int
        Sequences that the cache holds, and positions of each.
    position_bytes : int
        Keys and values of one position, all layers and heads, as stored in memory.
    used : tuple of int
        Positions used by each text.
    kv_format : str
    model : str
        `Llama.summary`; empty if unknown.
    """

    slots: int
    seq_len: int
    position_bytes: int
    used: tuple[int, ...]
    kv_format: str
    model: str = ""

    @property
    def total_bytes(self) -> int:
        """Size of the cache."""
        return self.slots * self.seq_len * self.position_bytes

    @property
    def used_bytes(self) -> int:
        """Bytes that the texts fill."""
        return sum(self.used) * self.position_bytes


def cache_use(llama: Llama, lengths: Sequence[int]) -> CacheUse:
    """Return the use of the cache by texts.

    Parameters
    ----------
    llama : Llama
    lengths : sequence of int
        Of each text, in tokens.

    Raises
    ------
    RequestError
        If there are more texts than slots, or one is longer than the context.
    """
    driver, c = llama.driver, llama.config
    if len(lengths) > driver.slots or any(not 0 <= n <= c.seq_len for n in lengths):
        raise RequestError(
            f"texts of {list(lengths)} tokens: the KV cache has {driver.slots} slots of "
            f"{c.seq_len} positions"
        )
    ports = driver.limits.kv_ports
    one = ports * driver.limits.kv_port_bytes(c, driver.kv_bits, 1) // c.seq_len
    return CacheUse(driver.slots, c.seq_len, one, tuple(lengths), driver.kv_format, llama.summary)
