"""Hugging Face folders of random Llamas, and the model that they describe, in NumPy.

Written from transformers' modeling_llama.py, independently of llama_pynq.checkpoint: rotation turns
the first half of a head with the second.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

Tensors = dict[str, np.ndarray]

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-05,
    "rope_theta": 50000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def random_tensors(config: dict[str, Any], seed: int = 0) -> Tensors:
    """Tensors of a model, float32, by Hugging Face's names."""
    rng = np.random.default_rng(seed)
    dim, hidden, vocab = (config[k] for k in ("hidden_size", "intermediate_size", "vocab_size"))
    kv = dim // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes = {"model.embed_tokens.weight": (vocab, dim), "model.norm.weight": (dim,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, dim)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        shapes |= {
            f"{layer}input_layernorm.weight": (dim,),
            f"{layer}self_attn.q_proj.weight": (dim, dim),
            f"{layer}self_attn.k_proj.weight": (kv, dim),
            f"{layer}self_attn.v_proj.weight": (kv, dim),
            f"{layer}self_attn.o_proj.weight": (dim, dim),
            f"{layer}post_attention_layernorm.weight": (dim,),
            f"{layer}mlp.gate_proj.weight": (hidden, dim),
            f"{layer}mlp.up_proj.weight": (hidden, dim),
            f"{layer}mlp.down_proj.weight": (dim, hidden),
        }
    found = {}
    for name, shape in shapes.items():
        noise = rng.standard_normal(shape, dtype=np.float32)
        found[name] = 1 + noise / 8 if len(shape) == 1 else noise / np.float32(np.sqrt(shape[-1]))
    return found


def write_folder(folder: Path, config: dict[str, Any], tensors: Tensors, shards: int = 1) -> Path:
    """Write a folder as `save_pretrained` does; returns it."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    names = sorted(tensors)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder
    files = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors"
             for i, name in enumerate(names)}  # fmt: skip
    for file in set(files.values()):
        part = {name: tensors[name] for name in names if files[name] == file}
        save_file(part, folder / file, {"format": "pt"})
    index = {"metadata": {"total_size": 0}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def frequencies(config: dict[str, Any]) -> np.ndarray:
    """Angle of each pair a position, as transformers' modeling_rope_utils.py computes it."""
    size = config["hidden_size"] // config["num_attention_heads"]
    plain = config["rope_theta"] ** (-np.arange(0, size, 2) / size)
    rope = config.get("rope_scaling") or {"rope_type": "default"}
    if rope["rope_type"] == "default":
        return plain
    if rope["rope_type"] == "linear":
        return plain / rope["factor"]
    length = rope["original_max_position_embeddings"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    found = []
    for frequency in plain:
        wavelength = 2 * np.pi / frequency
        if wavelength < length / high:
            found.append(frequency)
        elif wavelength > length / low:
            found.append(frequency / rope["factor"])
        else:
            smooth = (length / wavelength - low) / (high - low)
            found.append((1 - smooth) * frequency / rope["factor"] + smooth * frequency)
    return np.array(found)


def logits(config: dict[str, Any], tensors: Tensors, ids: list[int]) -> np.ndarray:
    """Logits after each token, (len(ids), vocab_size) float64, as transformers computes them."""
    t = {name: value.astype(np.float64) for name, value in tensors.items()}
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    size = config["hidden_size"] // heads
    angles = np.outer(np.arange(len(ids)), frequencies(config))
    cos, sin = (np.concatenate([f(angles)] * 2, axis=-1)[:, None] for f in (np.cos, np.sin))

    def norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + config["rms_norm_eps"]) * weight

    def turned(x: np.ndarray) -> np.ndarray:
        half = size // 2
        return x * cos + np.concatenate([-x[..., half:], x[..., :half]], axis=-1) * sin

    x = t["model.embed_tokens.weight"][ids]
    mask = np.triu(np.full((len(ids), len(ids)), -np.inf), 1)
    for i in range(config["num_hidden_layers"]):
        p = f"model.layers.{i}."
        h = norm(x, t[f"{p}input_layernorm.weight"])
        q, k, v = (
            (h @ t[f"{p}self_attn.{n}_proj.weight"].T).reshape(len(ids), -1, size) for n in "qkv"
        )
        q, k = turned(q), turned(k)
        k, v = (np.repeat(y, heads // kv_heads, axis=1) for y in (k, v))
        scores = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(size) + mask
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        mixed = np.einsum("hij,jhd->ihd", scores, v).reshape(len(ids), -1)
        x = x + mixed @ t[f"{p}self_attn.o_proj.weight"].T
        h = norm(x, t[f"{p}post_attention_layernorm.weight"])
        gate = h @ t[f"{p}mlp.gate_proj.weight"].T
        up = h @ t[f"{p}mlp.up_proj.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * up) @ t[f"{p}mlp.down_proj.weight"].T
    head = "model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"
    return norm(x, t["model.norm.weight"]) @ t[head].T
