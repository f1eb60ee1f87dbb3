"""From a checkpoint to the bytes in the hardware's order.

Weights become int8 in groups of 32 or 64, or int4 in groups of 64, with one float32 scale a
group; then tiles: 16 or 32 output rows (the board's kTileRows), group by group, with the
scales inline, the tiles dealt out to the weight channels (``hls_src/tile.h`` has the layout
word by word).

The container is safetensors: ``channel_0`` ... as uint8, the shape as metadata. A packed
file is cached under the user's cache folder, keyed by the checkpoint's content.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.checkpoint.llama2c import Checkpoint
from llama_pynq.errors import CheckpointError, LimitError
from llama_pynq.kernel.abi import (
    ABI_VERSION,
    MAX_GROUP,
    MIN_GROUP,
    WEIGHT_BITS,
    WORD_BYTES,
)
from llama_pynq.kernel.config import Target
from llama_pynq.kernel.stages import QuantizedMatrix
from llama_pynq.utils.files import cache_folder, replacing

PACK_VERSION = 4
"""Counts changes of the packed layout; part of the cache key."""

_SLICE_BYTES = 8 << 20
_TINY_SCALE = np.float32(2.0**-100)
_CRC_DIGITS = 8


# ---- quantisation ---------------------------------------------------------------------


_INT4_RANGES = tuple(np.float32(r) for r in (-8.0, -7.5, -7.0, -6.5, 6.5, 7.0, 7.5, 8.0))
"""What an int4 group's largest weight may become; the best of them is taken."""


def _round_groups(grouped: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """(..., group) float32 to integers as float32, and (...) scales."""
    if bits == 8:
        s = np.abs(grouped).max(axis=-1) / np.float32(127)
        s[s < _TINY_SCALE] = 0
        return np.rint(_divide_by(grouped, s)), s
    at = np.abs(grouped).argmax(axis=-1)[..., None]
    largest = np.take_along_axis(grouped, at, axis=-1)[..., 0]
    shares = _divide_by(grouped, largest)  # -1 to 1: no square of one overflows
    least = np.full(largest.shape, np.inf, np.float32)
    q, s = np.zeros_like(grouped), np.zeros_like(largest)
    for limit in _INT4_RANGES:
        rounded = np.clip(np.rint(shares * limit), -8, 7)
        error = np.square(shares - rounded / limit).sum(axis=-1)
        better = error < least
        least = np.where(better, error, least)
        q[better], s[better] = rounded[better], (largest / limit)[better]
    dead = np.abs(s) < _TINY_SCALE
    q[dead], s[dead] = 0, 0
    return q, s


def _divide_by(grouped: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """grouped / scale, 0 where the scale is 0."""
    divisor = np.where(scale != 0, scale, np.float32(1))
    return np.where(scale[..., None] != 0, grouped / divisor[..., None], np.float32(0))


def quantize_weights(w: np.ndarray, group_size: int, bits: int = 8) -> QuantizedMatrix:
    """Symmetric int8 or int4 weights, one scale per group along the input.

    Parameters
    ----------
    w : (out, in) float32
        Finite.
    group_size : int
    bits : {8, 4}
        An int8 group's scale is its largest magnitude / 127; an int4 group's is the one of
        `_INT4_RANGES` that leaves the least squared error, and may be negative.

    Returns
    -------
    QuantizedMatrix
        Zero-padded to whole groups; groups whose scale is under 2^-100 become zero, so that
        no product in the kernel is subnormal for their sake.

    References
    ----------
    llama2.c, export.py, quantize_q80()
    """
    out, n = w.shape
    groups = -(-n // group_size)
    q = np.empty((out, groups, group_size), np.int8)
    scale = np.empty((out, groups), np.float32)
    # A slice of rows at a time: the temporaries of a whole embedding table would be several
    # times the packed model.
    step = max(1, _SLICE_BYTES // (4 * groups * group_size))
    for rows in (slice(first, first + step) for first in range(0, out, step)):
        part = np.zeros((len(w[rows]), groups * group_size), np.float32)
        part[:, :n] = w[rows]
        grouped = part.reshape(-1, groups, group_size)
        q[rows], scale[rows] = _round_groups(grouped, bits)
    return QuantizedMatrix(q.reshape(out, -1), scale, bits)


class QuantizedModel:
    """A checkpoint as groups the kernel can read, one tensor at a time.

    Parameters
    ----------
    checkpoint : Checkpoint
    group_size : {32, 64}, optional
        Default: the checkpoint's own where the kernel can use it, else 64, as llama2.c's.
    bits : {8, 4}
        4: half the bytes a token reads, in groups of 64.

    Attributes
    ----------
    config : ModelConfig
    group_size : int
    weight_bits : int
    exact : bool
        True where a version 2 file's int8 values and scales are used as they are.
    note : str
        How the weights were made, for the user.
    """

    def __init__(
        self, checkpoint: Checkpoint, group_size: int | None = None, bits: int = 8
    ) -> None:
        if bits not in WEIGHT_BITS:
            raise LimitError(f"weight_bits {bits}: the kernel reads weights of 8 or 4 bits")
        if bits == 4 and group_size not in (None, MAX_GROUP):
            raise LimitError(f"group_size {group_size}: the kernel reads int4 in groups of 64 only")
        if group_size not in (None, MIN_GROUP, MAX_GROUP):
            raise LimitError(
                f"group_size {group_size}: the kernel reads groups of {MIN_GROUP} or {MAX_GROUP}"
            )
        self._checkpoint = checkpoint
        self.config = checkpoint.config
        stored = checkpoint.group_size
        self.weight_bits = bits
        if bits == 4:
            group_size = MAX_GROUP
        elif group_size is None and stored is not None:
            # Groups larger than the kernel's are several groups with the same scale.
            for size in (MAX_GROUP, MIN_GROUP):
                if stored % size == 0:
                    group_size = size
                    break
        self.group_size = group_size or MAX_GROUP
        self.exact = bits == 8 and stored is not None and stored % self.group_size == 0
        if stored is None or bits == 4:
            kind = "float32" if stored is None else f"int8 (groups of {stored})"
            self.note = f"{kind} weights quantised to int{bits} in groups of {self.group_size}"
        elif self.exact:
            self.note = f"int8 weights used as they are (groups of {stored})"
        else:
            self.note = (
                f"int8 weights requantised from groups of {stored} to groups of "
                f"{self.group_size}: the kernel reads 32 or 64"
            )

    def matrix(self, name: str, layer: int | None = None) -> QuantizedMatrix:
        """One weight matrix, (out, groups * group_size) int8 with its scales."""
        if not self.exact:
            w = self._checkpoint.tensor(name, layer)
            return quantize_weights(w, self.group_size, self.weight_bits)
        q, scale = self._checkpoint.quantized(name, layer)
        repeat = self._checkpoint.group_size // self.group_size  # type: ignore[operator]
        scale = np.repeat(scale, repeat, axis=1)
        dead = scale < _TINY_SCALE
        if dead.any():
            scale = np.where(dead, np.float32(0), scale)
        return QuantizedMatrix(q, scale)

    def vector(self, name: str, layer: int | None = None) -> np.ndarray:
        """One norm weight, (dim,) float32."""
        return self._checkpoint.tensor(name, layer)


# ---- layout ---------------------------------------------------------------------------


def row_bytes(columns: int, group_size: int, bits: int) -> int:
    """Bytes of one output row of a packed matrix, scales included."""
    groups = -(-columns // group_size)
    half = MIN_GROUP if has_half_group(columns, group_size, bits) else 0
    return groups * (group_size * bits // 8 + 4) - half


def has_half_group(columns: int, group_size: int, bits: int) -> bool:
    """Whether the last group of a row is stored without its second half, which is padding."""
    return bits == 8 and group_size == MAX_GROUP and 1 <= columns % MAX_GROUP <= MIN_GROUP


def pack_matrix(matrix: QuantizedMatrix, target: Target, columns: int) -> np.ndarray:
    """Tiles of one matrix, per channel.

    Parameters
    ----------
    matrix : QuantizedMatrix
    target : Target
    columns : int
        Inputs that are no padding.

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
    q[:rows] = matrix.q.view(np.uint8) ^ 0x80  # two's complement: + 128
    if matrix.bits == 4:
        halves = (q - np.uint8(120)).reshape(waves * wave, groups, 2, size // 2)  # + 8
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
        # The last group's values move up, over each row's second half.
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
    """W1's and W3's tiles in turn, padded to `units` hidden units."""

    def tiles(a: np.ndarray) -> np.ndarray:
        padded = np.zeros((units, a.shape[1]), a.dtype)
        padded[: len(a)] = a
        return padded.reshape(units // tile, 1, tile, -1)

    q = np.concatenate([tiles(gate.q), tiles(up.q)], axis=1)
    scale = np.concatenate([tiles(gate.scale), tiles(up.scale)], axis=1)
    return QuantizedMatrix(q.reshape(2 * units, -1), scale.reshape(2 * units, -1), gate.bits)


def _blocks(model: QuantizedModel, target: Target) -> Iterator[tuple[str, np.ndarray]]:
    """What goes into the channels, in order: ("norm", bytes) or ("tiles", (channels, bytes))."""
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
    """All of a (small) model's channels in memory, (bytes,) uint8 each."""
    parts: list[list[np.ndarray]] = [[] for _ in range(target.channels)]
    for kind, block in _blocks(model, target):
        for channel, part in [(0, block)] if kind == "norm" else enumerate(block):
            parts[channel].append(part)
    return [np.concatenate(p) for p in parts]


def channel_bytes(config: ModelConfig, group_size: int, target: Target, bits: int = 8) -> list[int]:
    """Bytes each weight channel takes; the first also holds the norms."""
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


# ---- packed files ---------------------------------------------------------------------


def _header(
    model: QuantizedModel, target: Target, crcs: list[str], sizes: list[int], tokenizer: bytes
) -> bytes:
    meta = {
        "format": "llama_pynq",
        "pack_version": str(PACK_VERSION),
        "abi": str(ABI_VERSION),
        "config": json.dumps(asdict(model.config), sort_keys=True),
        "group_size": str(model.group_size),
        "weight_bits": str(model.weight_bits),
        "channels": str(target.channels),
        "tile_rows": str(target.tile_rows),
        "note": model.note,
        "crc32": ",".join(crcs),
    }
    tensors: dict[str, object] = {
        "__metadata__": {**meta, "meta_crc32": _meta_crc(meta, tokenizer)}
    }
    at = 0
    names = [f"channel_{c}" for c in range(target.channels)]
    blobs = [*zip(names, sizes), ("tokenizer", len(tokenizer))]
    for name, size in blobs:
        tensors[name] = {"dtype": "U8", "shape": [size], "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(tensors).encode()
    return text + b" " * (-(len(text) + 8) % WORD_BYTES)


def _meta_crc(meta: dict[str, str], tokenizer: bytes) -> str:
    """Checksum of all that the channels' own do not cover."""
    text = json.dumps({k: v for k, v in meta.items() if k != "meta_crc32"}, sort_keys=True)
    return f"{zlib.crc32(tokenizer, zlib.crc32(text.encode())):0{_CRC_DIGITS}x}"


def write_packed(model: QuantizedModel, target: Target, path: Path, tokenizer: bytes = b"") -> None:
    """Pack `model` into a safetensors file, atomically and without holding it in memory.

    Parameters
    ----------
    model : QuantizedModel
    target : Target
    path : Path
        Replaced only once the new file is whole.
    tokenizer : bytes, optional
        A tokenizer file's content, carried along.
    """
    sizes = channel_bytes(model.config, model.group_size, target, model.weight_bits)

    def header(crcs: list[str]) -> bytes:
        return _header(model, target, crcs, sizes, tokenizer)

    head = header(["0" * _CRC_DIGITS] * target.channels)
    data_at = 8 + len(head)
    starts = [data_at + sum(sizes[:c]) for c in range(target.channels)]
    with replacing(path) as file:
        at = list(starts)
        crcs = [0] * target.channels
        for kind, block in _blocks(model, target):
            parts = [(0, block)] if kind == "norm" else list(enumerate(block))
            for channel, part in parts:
                file.seek(at[channel])
                file.write(part.data)
                crcs[channel] = zlib.crc32(part.data, crcs[channel])
                at[channel] += len(part)
        assert at == [start + size for start, size in zip(starts, sizes)], "layout drifted"
        file.seek(data_at + sum(sizes))
        file.write(tokenizer)
        file.seek(0)
        file.write(len(head).to_bytes(8, "little"))
        file.write(header([f"{crc:0{_CRC_DIGITS}x}" for crc in crcs]))


@dataclass(frozen=True)
class PackedModel:
    """A packed file, opened: its shape is read, its weights are not.

    Attributes
    ----------
    path : Path
    config : ModelConfig
    group_size, weight_bits : int
    target : Target
    note : str
        How the weights were made.
    sizes : tuple of int
        Bytes of each channel.
    crcs : tuple of int
        CRC-32 of each channel.
    tokenizer : bytes
        Content of the tokenizer file carried along; empty if none.
    """

    path: Path
    config: ModelConfig
    group_size: int
    weight_bits: int
    target: Target
    note: str
    sizes: tuple[int, ...]
    crcs: tuple[int, ...]
    tokenizer: bytes

    @property
    def weight_bytes(self) -> int:
        return sum(self.sizes)

    def _slices(self, channel: int) -> Iterator[tuple[int, np.ndarray]]:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(self.path), framework="numpy") as file:
                whole = file.get_slice(f"channel_{channel}")
                for at in range(0, self.sizes[channel], _SLICE_BYTES):
                    yield at, whole[at : min(at + _SLICE_BYTES, self.sizes[channel])]
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{self.path}: cannot be read any more ({error}). Load the checkpoint again"
            ) from error

    def upload(self, channel: int, write: Callable[[int, np.ndarray], None]) -> None:
        """Hand a channel's bytes to ``write(offset, part)`` in slices, then check them.

        Raises
        ------
        CheckpointError
            If the bytes are not those that were packed.
        """
        crc = 0
        for at, part in self._slices(channel):
            crc = zlib.crc32(part.data, crc)
            write(at, part)
        if crc != self.crcs[channel]:
            raise CheckpointError(
                f"{self.path}: weight channel {channel} is damaged (its checksum is "
                f"{crc:08x}, {self.crcs[channel]:08x} was packed). Pack the model again: "
                "llama-pynq pack"
            )


def is_packed(path: Path) -> bool:
    """Whether the file starts like one of `write_packed`'s."""
    with open(path, "rb") as file:
        start = file.read(4096)
    return start[8:9] == b"{" and b'"format": "llama_pynq"' in start


def open_packed(path: Path) -> PackedModel:
    """Read a packed file's shape.

    Raises
    ------
    CheckpointError
        If the file is not a packed model, is damaged, or was packed by another version.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            meta = file.metadata() or {}
            if meta.get("format") != "llama_pynq":
                raise CheckpointError(
                    f"{path}: a safetensors file, but not a packed model of llama_pynq. "
                    "Give a llama2.c checkpoint (.bin), or pack one: llama-pynq pack"
                )
            if (meta["pack_version"], meta["abi"]) != (str(PACK_VERSION), str(ABI_VERSION)):
                raise CheckpointError(
                    f"{path}: packed for version {meta['pack_version']}.{meta['abi']} of the "
                    f"layout, this is {PACK_VERSION}.{ABI_VERSION}. Pack the model again: "
                    "llama-pynq pack"
                )
            tokenizer = file.get_tensor("tokenizer").tobytes()
            if meta["meta_crc32"] != _meta_crc(meta, tokenizer):
                raise CheckpointError(
                    f"{path}: a damaged packed model (its description or its tokenizer is not "
                    "what was packed). Pack it again: llama-pynq pack"
                )
            config = ModelConfig(**json.loads(meta["config"]))
            target = Target(int(meta["channels"]), int(meta["tile_rows"]))
            group_size = int(meta["group_size"])
            bits = int(meta["weight_bits"])
            sizes = channel_bytes(config, group_size, target, bits)
            stored = [file.get_slice(f"channel_{c}").get_shape()[0] for c in range(target.channels)]
            if stored != sizes:
                raise CheckpointError(f"{path}: channel sizes {stored}, expected {sizes}: damaged")
            return PackedModel(
                path=Path(path),
                config=config,
                group_size=group_size,
                weight_bits=bits,
                target=target,
                note=meta["note"],
                sizes=tuple(sizes),
                crcs=tuple(int(crc, 16) for crc in meta["crc32"].split(",")),
                tokenizer=tokenizer,
            )
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        if isinstance(error, CheckpointError) or isinstance(error, FileNotFoundError):
            raise
        raise CheckpointError(f"{path}: a damaged packed model ({error}). Pack it again") from error


def pack_cached(
    checkpoint: Checkpoint,
    target: Target,
    group_size: int | None = None,
    bits: int = 8,
    *,
    rebuild: bool = False,
) -> PackedModel:
    """The packed form of a checkpoint, from the cache where it is there and whole.

    Parameters
    ----------
    checkpoint : Checkpoint
    target : Target
    group_size : {32, 64}, optional
        See `QuantizedModel`.
    bits : {8, 4}
    rebuild : bool
        Pack again even if a file is there (it was found damaged).
    """
    model = QuantizedModel(checkpoint, group_size, bits)
    key = (
        f"{checkpoint.sha256[:32]}-w{bits}-g{model.group_size}-c{target.channels}-t{target.tile_rows}"
        f"-r{float(model.config.rope_theta)!r}-v{PACK_VERSION}.{ABI_VERSION}"
    )
    path = cache_folder() / "models" / f"{key}.safetensors"
    if not rebuild and path.exists():
        try:
            return open_packed(path)
        except CheckpointError:
            pass  # rebuilt below
    try:
        write_packed(model, target, path)
    except OSError as error:
        raise CheckpointError(
            f"cannot keep the packed model at {path}: {error.strerror or error}. Set "
            "LLAMA_PYNQ_CACHE to a folder that can be written and has room for "
            f"{sum(channel_bytes(model.config, model.group_size, target, bits)) / 2**20:.0f} MiB"
        ) from error
    return open_packed(path)
