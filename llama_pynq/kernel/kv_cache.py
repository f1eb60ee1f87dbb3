"""Layout of the KV cache in the device's memory: the twin of ``hls_src/cache.h``."""

from __future__ import annotations

import numpy as np


def read_records(records: np.ndarray, kv_bits: int, beat: int, head_size: int) -> np.ndarray:
    """Keys and values of records of the KV cache.

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
    # Byte k of a beat's word i is its value k * words + i.
    beats = flat[..., beat:].view(np.int8).reshape(*flat.shape[:-1], -1, beat // 4, 4)
    values = np.swapaxes(beats, -1, -2).reshape(*flat.shape[:-1], 2, -1)[..., :head_size]
    return np.moveaxis(values * scales[..., None], -2, 0)
