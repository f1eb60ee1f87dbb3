"""GGUF files written by llama.cpp's own library, gguf."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from llama_pynq.checkpoint.config import ModelConfig


def write_gguf(
    path: Path, metadata: dict[str, Any], tensors: dict[str, tuple[np.ndarray, str]]
) -> None:
    """Write a file.

    Parameters
    ----------
    path : Path
    metadata : dict
        Values by key: str, int, float, bool, or a list of one of these.
    tensors : dict
        A float32 array, and the name of the type to quantise it to, by name.
    """
    writer = gguf.GGUFWriter(path, metadata.get("general.architecture", "llama"))
    for key, value in metadata.items():
        if key == "general.architecture":
            continue
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    for name, (array, kind) in tensors.items():
        number = gguf.GGMLQuantizationType[kind]
        if kind == "F32":
            writer.add_tensor(name, np.ascontiguousarray(array, np.float32))
        elif kind == "F16":
            writer.add_tensor(name, array.astype(np.float16))
        else:
            writer.add_tensor(name, gguf.quants.quantize(array, number), raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


GGUF_NAMES = {
    "token_embedding_table": "token_embd",
    "rms_final_weight": "output_norm",
    "wcls": "output",
    "rms_att_weight": "attn_norm",
    "wq": "attn_q",
    "wk": "attn_k",
    "wv": "attn_v",
    "wo": "attn_output",
    "rms_ffn_weight": "ffn_norm",
    "w1": "ffn_gate",
    "w2": "ffn_down",
    "w3": "ffn_up",
}


def is_layered(name: str) -> bool:
    """Whether a tensor, by llama2.c's name, exists once per layer."""
    return GGUF_NAMES[name].startswith(("attn", "ffn"))


def model_metadata(config: ModelConfig) -> dict[str, Any]:
    """Metadata of a Llama of this shape, as convert_hf_to_gguf.py writes it."""
    return {
        "general.architecture": "llama",
        "llama.block_count": config.n_layers,
        "llama.context_length": config.seq_len,
        "llama.embedding_length": config.dim,
        "llama.feed_forward_length": config.hidden_dim,
        "llama.attention.head_count": config.n_heads,
        "llama.attention.head_count_kv": config.n_kv_heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": config.rope_theta,
        "llama.rope.dimension_count": config.dim // config.n_heads,
        "llama.vocab_size": config.vocab_size,
    }


def write_gguf_model(
    path: Path,
    config: ModelConfig,
    weights: dict[str, np.ndarray],
    kinds: str | Sequence[str] = "F32",
    metadata: dict[str, Any] | None = None,
    extra: dict[str, tuple[np.ndarray, str]] | None = None,
) -> None:
    """Write a model.

    Parameters
    ----------
    path : Path
    config : ModelConfig
    weights : dict
        As from `checkpoint_files.random_weights`.
    kinds : str or sequence of str
        Types of the matrices, in turn; norms are float32.
    metadata : dict, optional
        Entries beside, or instead of, those of the shape; None leaves one out.
    extra : dict, optional
        More tensors.
    """
    kinds = [kinds] if isinstance(kinds, str) else list(kinds)
    tensors: dict[str, tuple[np.ndarray, str]] = {}
    for name, array in weights.items():
        for layer, part in enumerate(array if is_layered(name) else [array]):
            prefix = f"blk.{layer}." if is_layered(name) else ""
            kind = kinds[len(tensors) % len(kinds)] if part.ndim == 2 else "F32"
            tensors[f"{prefix}{GGUF_NAMES[name]}.weight"] = (part, kind)
    entries = {**model_metadata(config), **(metadata or {})}
    entries = {key: value for key, value in entries.items() if value is not None}
    write_gguf(path, entries, {**tensors, **(extra or {})})
