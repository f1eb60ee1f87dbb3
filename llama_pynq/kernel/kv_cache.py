"""Layout of the KV cache in the device's memory: the twin of ``hls_src/cache.h``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llama_pynq.kernel.abi import REDUCE_LANES

if TYPE_CHECKING:
    from llama_pynq.checkpoint.config import ModelConfig


def head_stride(head_size: int) -> int:
    """Elements stored per key or value: head_size padded to whole reductions."""
    return -(-head_size // REDUCE_LANES) * REDUCE_LANES


def record_beats(head_size: int, kv_bits: int, beat_bytes: int) -> int:
    """Beats of one record: key and value of one KV head at one position.

    Parameters
    ----------
    head_size : int
    kv_bits : {32, 8}
        An int8 record has one more beat, for its two scales.
    beat_bytes : int
        Bytes of a KV port's beat.
    """
    half = -(-head_stride(head_size) * kv_bits // 8 // beat_bytes)
    return 2 * half + (1 if kv_bits == 8 else 0)


def port_bytes(
    config: ModelConfig, kv_bits: int, slots: int, kv_ports: int, beat_bytes: int
) -> int:
    """Bytes of one port's share of the KV cache.

    Parameters
    ----------
    config : ModelConfig
    kv_bits : {32, 8}
    slots : int
        Sequences that the cache holds.
    kv_ports, beat_bytes : int
        KV ports of the kernel; bytes of a KV port's beat.
    """
    heads = -(-config.n_kv_heads // kv_ports)
    record = record_beats(config.head_size, kv_bits, beat_bytes) * beat_bytes
    return slots * config.n_layers * heads * config.seq_len * record


def read_records(records: np.ndarray, kv_bits: int, beat: int, head_size: int) -> np.ndarray:
    """Decode KV cache records into keys and values.

    Parameters
    ----------
    records : (..., record_bytes) uint8
    kv_bits : {32, 8}
    beat : int
        Bytes of a KV port's beat.
    head_size : int

    Returns
    -------
    (2, ..., head_size) float32
        Keys, then values.
    """
    flat = np.ascontiguousarray(records)
    if kv_bits == 32:
        halves = np.split(flat.view(np.float32), 2, axis=-1)
        return np.stack(halves)[..., :head_size]
    scales = flat[..., :8].view(np.float32)
    # Byte k of a beat's 32-bit word i holds value k * words + i, words = 32-bit words per beat.
    beats = flat[..., beat:].view(np.int8).reshape(*flat.shape[:-1], -1, beat // 4, 4)
    values = np.swapaxes(beats, -1, -2).reshape(*flat.shape[:-1], 2, -1)[..., :head_size]
    return np.moveaxis(values * scales[..., None], -2, 0)
