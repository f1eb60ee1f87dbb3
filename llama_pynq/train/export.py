"""Write llama2.c's version 2 file: int8 weights in groups, one float32 scale per group."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.utils.files import write_atomically
from llama_pynq.weights.quantize import quantize_weights

MAGIC, VERSION, HEADER_BYTES = 0x616B3432, 2, 256
MATRICES = ("wq", "wk", "wv", "wo", "w1", "w2", "w3")
LAYER_NORMS = ("rms_att_weight", "rms_ffn_weight")

# (tensor name as in `checkpoint`, layer); the layer is None for a tensor of the whole model.
Key = tuple[str, int | None]


def norm_keys(n_layers: int) -> list[Key]:
    """Return the keys of the float32 tensors in file order."""
    keys: list[Key] = [(name, layer) for name in LAYER_NORMS for layer in range(n_layers)]
    return [*keys, ("rms_final_weight", None)]


def matrix_keys(n_layers: int) -> list[Key]:
    """Return the keys of the quantised tensors in file order, for a tied classifier."""
    keys: list[Key] = [(name, layer) for name in MATRICES for layer in range(n_layers)]
    return [("token_embedding_table", None), *keys]


def export_model(
    path: Path,
    config: ModelConfig,
    weights: Mapping[Key, npt.NDArray[np.float32]],
    group_size: int = 64,
) -> None:
    """Write a model with a tied classifier; `checkpoint.load` reads it.

    Parameters
    ----------
    path : Path
    config : ModelConfig
        Must have a tied classifier.
    weights : mapping of Key to float32 array
        `norm_keys` as (dim,), `matrix_keys` as (out, in).
    group_size : int
        Number of consecutive weights along the input that share a scale.

    Raises
    ------
    ValueError
        If the classifier is not tied, group_size does not divide dim and hidden_dim, or a weight
        is not finite.

    References
    ----------
    llama2.c, export.py, version2_export()
    """
    if not config.tied:
        raise ValueError("only models with a tied classifier can be exported")
    if config.dim % group_size or config.hidden_dim % group_size:
        raise ValueError(
            f"group size {group_size} must divide dim {config.dim} and "
            f"hidden_dim {config.hidden_dim}: llama2.c mis-reads such files otherwise"
        )
    for (name, layer), weight in weights.items():
        if not np.isfinite(weight).all():
            raise ValueError(f"{name} of layer {layer} is not finite: the training diverged")
    header = struct.pack(
        "<Ii7iBi",
        MAGIC,
        VERSION,
        config.dim,
        config.hidden_dim,
        config.n_layers,
        config.n_heads,
        config.n_kv_heads,
        config.vocab_size,
        config.seq_len,
        config.tied,
        group_size,
    )
    parts = [header.ljust(HEADER_BYTES, b"\0")]
    parts += [weights[key].astype("<f4").tobytes() for key in norm_keys(config.n_layers)]
    for key in matrix_keys(config.n_layers):
        matrix = quantize_weights(weights[key], group_size)
        parts += [matrix.q.tobytes(), matrix.scale.astype("<f4").tobytes()]
    write_atomically(path, b"".join(parts))
