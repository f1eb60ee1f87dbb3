"""Random llama2.c checkpoints of versions 0, 1 and 2.

Written from llama2.c's export.py, independently of llama_pynq.checkpoint.llama2c, so that one
checks the other.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llama_pynq.checkpoint.config import ModelConfig

Weights = dict[str, npt.NDArray[np.float32]]

# Tensor order of export.py: legacy_export(), version1_export(), version2_export().
LEGACY_ORDER = (
    "token_embedding_table rms_att_weight wq wk wv wo rms_ffn_weight w1 w2 w3 rms_final_weight"
).split()
NORMS = "rms_att_weight rms_ffn_weight rms_final_weight".split()
MATRICES = "token_embedding_table wq wk wv wo w1 w2 w3".split()


def random_weights(config: ModelConfig, seed: int = 0) -> Weights:
    """Random weights of a trained model's scale: norms near 1, matrices near 1 / sqrt(in).

    Returns
    -------
    dict of str to float32
        Per-layer tensors are stacked: (n_layers, out, in) or (n_layers, dim). ``wcls``
        is there only if the model is not tied.
    """
    rng = np.random.default_rng(seed)
    c = config
    kv_dim = c.n_kv_heads * (c.dim // c.n_heads)
    shapes = {
        "token_embedding_table": (c.vocab_size, c.dim),
        "rms_att_weight": (c.n_layers, c.dim),
        "wq": (c.n_layers, c.dim, c.dim),
        "wk": (c.n_layers, kv_dim, c.dim),
        "wv": (c.n_layers, kv_dim, c.dim),
        "wo": (c.n_layers, c.dim, c.dim),
        "rms_ffn_weight": (c.n_layers, c.dim),
        "w1": (c.n_layers, c.hidden_dim, c.dim),
        "w2": (c.n_layers, c.dim, c.hidden_dim),
        "w3": (c.n_layers, c.hidden_dim, c.dim),
        "rms_final_weight": (c.dim,),
        "wcls": (c.vocab_size, c.dim),
    }
    if c.tied:
        del shapes["wcls"]
    weights = {}
    for name, shape in shapes.items():
        noise = rng.standard_normal(shape, dtype=np.float32)
        if name.startswith("rms"):
            weights[name] = 1 + noise / 8
        else:
            weights[name] = noise / np.float32(np.sqrt(shape[-1]))
    return weights


def quantize_q80(
    w: npt.NDArray[np.float32], group_size: int
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Quantise in groups along the flattened tensor, as export.py does.

    Returns
    -------
    q : int8
        Shaped as w.
    scale : (w.size // group_size,) float32
    """
    groups = w.reshape(-1, group_size)
    scale = np.abs(groups).max(axis=1) / np.float32(127)
    q = np.round(groups / np.where(scale == 0, 1, scale)[:, None])
    return q.astype(np.int8).reshape(w.shape), scale.astype(np.float32)


def write_checkpoint(
    path: Path,
    config: ModelConfig,
    version: int,
    group_size: int | None = None,
    weights: Weights | None = None,
    seed: int = 0,
) -> Weights:
    """Write a checkpoint; the weights are random by default.

    Parameters
    ----------
    path : Path
    config : ModelConfig
    version : {0, 1, 2}
    group_size : int, optional
        Version 2 only. Need not divide hidden_dim: export.py does not check either.
    weights : dict, optional
        As from :func:`random_weights`.
    seed : int

    Returns
    -------
    dict of str to float32
        The weights before quantisation.
    """
    assert (version == 2) == (group_size is not None)
    if weights is None:
        weights = random_weights(config, seed)
    c = config
    sizes = [c.dim, c.hidden_dim, c.n_layers, c.n_heads, c.n_kv_heads, c.vocab_size, c.seq_len]
    classifier = [] if c.tied else ["wcls"]
    body: list[bytes] = []
    if version == 0:
        if not c.tied:
            sizes[5] *= -1
        header = struct.pack("<7i", *sizes)
        body = [weights[name].tobytes() for name in LEGACY_ORDER]
        head_size = c.dim // c.n_heads
        position, pair = np.ogrid[: c.seq_len, : head_size // 2]
        angle = position / c.rope_theta ** (2 * pair / head_size)
        body += [np.cos(angle).astype("<f4").tobytes(), np.sin(angle).astype("<f4").tobytes()]
        body += [weights[name].tobytes() for name in classifier]
    else:
        header = struct.pack("<Ii7iB", 0x616B3432, version, *sizes, c.tied)
        body = [weights[name].tobytes() for name in NORMS]
        if group_size is None:
            body += [weights[name].tobytes() for name in MATRICES + classifier]
        else:
            header += struct.pack("<i", group_size)
            for name in MATRICES + classifier:
                per_layer = weights[name] if weights[name].ndim == 3 else weights[name][None]
                for w in per_layer:
                    q, scale = quantize_q80(w, group_size)
                    body += [q.tobytes(), scale.tobytes()]
        header = header.ljust(256, b"\0")
    path.write_bytes(header + b"".join(body))
    return weights
