"""Pack weights into tiles in the order the hardware reads: twin of ``hls_src/tile.h``."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.kernel.abi import MAX_GROUP, MIN_GROUP
from llama_pynq.kernel.config import Target
from llama_pynq.kernel.stages import QuantizedMatrix
from llama_pynq.weights.quantize import QuantizedModel


def row_bytes(columns: int, group_size: int, bits: int) -> int:
    """Bytes of one output row of a packed matrix, scales included."""
    groups = -(-columns // group_size)
    half = MIN_GROUP if has_half_group(columns, group_size, bits) else 0
    return groups * (group_size * bits // 8 + 4) - half


def has_half_group(columns: int, group_size: int, bits: int) -> bool:
    """Whether the last group of a row is stored without its second half, which is padding."""
    return bits == 8 and group_size == MAX_GROUP and 1 <= columns % MAX_GROUP <= MIN_GROUP


def pack_matrix(matrix: QuantizedMatrix, target: Target, columns: int) -> np.ndarray:
    """Pack one matrix into tiles, per channel.

    Parameters
    ----------
    matrix : QuantizedMatrix
    target : Target
    columns : int
        Input columns, without padding.

    Returns
    -------
    (channels, bytes) uint8
        Padding rows hold q = 0 with scale 0.
    """
    rows, groups = matrix.scale.shape
    size = matrix.group_size
    wave = target.channels * target.tile_rows
    waves = -(-rows // wave)
    q = np.full((waves * wave, groups * size), 128, np.uint8)
    q[:rows] = matrix.q.view(np.uint8) ^ 0x80  # q + 128: flips the sign bit
    if matrix.bits == 4:
        halves = (q - np.uint8(120)).reshape(waves * wave, groups, 2, size // 2)  # q + 8
        q = halves[:, :, 0] | halves[:, :, 1] << np.uint8(4)
        size //= 2
    scale = np.zeros((waves * wave, groups), "<f4")
    scale[:rows] = matrix.scale
    tiles = (waves, target.channels, target.tile_rows, groups)
    # (channels, waves, groups, tile_rows, ...)
    q = q.reshape(*tiles, size).transpose(1, 0, 3, 2, 4)
    scale = scale.reshape(tiles).transpose(1, 0, 3, 2)
    out = np.empty((*q.shape[:3], target.tile_rows * (size + 4)), np.uint8)
    out[..., : target.tile_rows * size] = q.reshape(*q.shape[:3], -1)
    out[..., target.tile_rows * size :] = np.ascontiguousarray(scale).view(np.uint8)
    if has_half_group(columns, matrix.group_size, matrix.bits):
        # Drop the second halves of the last group; its first halves move next to the scales.
        last, room = out[:, :, -1], target.tile_rows * size
        halves = q[:, :, -1, :, :MIN_GROUP].reshape(*q.shape[:2], -1)
        last[..., room // 2 : room] = halves
        kept = np.ones(out.shape[2:], bool)
        kept[-1, : room // 2] = False
        out = out[:, :, kept]
    return np.ascontiguousarray(out.reshape(target.channels, -1))


def _stack(*parts: QuantizedMatrix) -> QuantizedMatrix:
    return QuantizedMatrix(
        np.concatenate([p.q for p in parts]),
        np.concatenate([p.scale for p in parts]),
        parts[0].bits,
    )


def _alternate(
    gate: QuantizedMatrix, up: QuantizedMatrix, units: int, tile: int
) -> QuantizedMatrix:
    """Interleave W1 and W3 tile by tile, padded to `units` hidden units."""

    def tiles(a: np.ndarray) -> np.ndarray:
        padded = np.zeros((units, a.shape[1]), a.dtype)
        padded[: len(a)] = a
        return padded.reshape(units // tile, 1, tile, -1)

    q = np.concatenate([tiles(gate.q), tiles(up.q)], axis=1)
    scale = np.concatenate([tiles(gate.scale), tiles(up.scale)], axis=1)
    return QuantizedMatrix(q.reshape(2 * units, -1), scale.reshape(2 * units, -1), gate.bits)


def blocks(model: QuantizedModel, target: Target) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the channels' content in order: ("norm", bytes) or ("tiles", (channels, bytes))."""
    config, size = model.config, model.group_size
    groups = -(-config.dim // size)
    hidden = -(-config.hidden_dim // size) * size
    units = -(-hidden // target.tile_rows) * target.tile_rows

    def norm(name: str, layer: int | None = None) -> tuple[str, np.ndarray]:
        padded = np.zeros(groups * size, "<f4")
        padded[: config.dim] = model.vector(name, layer)
        return "norm", padded.view(np.uint8)

    def tiles(matrix: QuantizedMatrix, columns: int = config.dim) -> tuple[str, np.ndarray]:
        return "tiles", pack_matrix(matrix, target, columns)

    for layer in range(config.n_layers):
        yield norm("rms_att_weight", layer)
        yield tiles(_stack(*(model.matrix(name, layer) for name in ("wq", "wk", "wv"))))
        yield tiles(model.matrix("wo", layer))
        yield norm("rms_ffn_weight", layer)
        w1, w3 = model.matrix("w1", layer), model.matrix("w3", layer)
        yield tiles(_alternate(w1, w3, units, target.tile_rows))
        yield tiles(model.matrix("w2", layer), config.hidden_dim)
    yield norm("rms_final_weight")
    yield tiles(model.matrix("wcls"))
    if not config.tied:
        yield tiles(model.matrix("token_embedding_table"))


def pack_channels(model: QuantizedModel, target: Target) -> list[np.ndarray]:
    """Pack a (small) model in memory: (bytes,) uint8 per channel."""
    parts: list[list[np.ndarray]] = [[] for _ in range(target.channels)]
    for kind, block in blocks(model, target):
        for channel, part in [(0, block)] if kind == "norm" else enumerate(block):
            parts[channel].append(part)
    return [np.concatenate(p) for p in parts]


def channel_bytes(config: ModelConfig, group_size: int, target: Target, bits: int = 8) -> list[int]:
    """Bytes of each weight channel; the first also holds the norms."""
    dim_groups = -(-config.dim // group_size)
    hidden_groups = -(-config.hidden_dim // group_size)
    units = -(-hidden_groups * group_size // target.tile_rows) * target.tile_rows
    wave = target.channels * target.tile_rows

    def tiles(rows: int, columns: int) -> int:
        return -(-rows // wave) * target.tile_rows * row_bytes(columns, group_size, bits)

    per_layer = (
        tiles(config.dim + 2 * config.kv_dim, config.dim)
        + tiles(config.dim, config.dim)
        + tiles(2 * units, config.dim)
        + tiles(config.dim, config.hidden_dim)
    )
    tables = 1 if config.tied else 2
    common = config.n_layers * per_layer + tables * tiles(config.vocab_size, config.dim)
    norms = (2 * config.n_layers + 1) * dim_groups * group_size * 4
    return [common + (norms if c == 0 else 0) for c in range(target.channels)]
