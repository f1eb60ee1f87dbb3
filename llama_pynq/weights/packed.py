"""Packed files: a model's weights in the order that one board's hardware reads.

The container is safetensors: ``channel_0`` ... and ``tokenizer`` as uint8; the model's shape and
the checksums as metadata. `pack_cached` keeps packed files in the user's cache folder, keyed by
the checkpoint's content and the layout.
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
from llama_pynq.errors import CheckpointError
from llama_pynq.kernel.abi import ABI_VERSION, WORD_BYTES
from llama_pynq.kernel.config import Target
from llama_pynq.utils.files import cache_folder, replacing
from llama_pynq.weights.quantize import QuantizedModel
from llama_pynq.weights.tiles import blocks, channel_bytes

PACK_VERSION = 4
"""Version of the packed layout; part of the cache key."""

UPLOAD_SLICE_BYTES = 8 << 20
"""Slice size of an upload: a board's memory cannot hold a model twice."""

_CRC_DIGITS = 8


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
    """CRC-32 of the metadata and the tokenizer, which the channels' checksums do not cover."""
    text = json.dumps({k: v for k, v in meta.items() if k != "meta_crc32"}, sort_keys=True)
    return f"{zlib.crc32(tokenizer, zlib.crc32(text.encode())):0{_CRC_DIGITS}x}"


def write_packed(model: QuantizedModel, target: Target, path: Path, tokenizer: bytes = b"") -> None:
    """Pack a model into a safetensors file, atomically and without holding it in memory.

    Parameters
    ----------
    model : QuantizedModel
    target : Target
    path : Path
        Replaced only when the new file is complete.
    tokenizer : bytes, optional
        Content of a tokenizer file, stored with the weights.
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
        for kind, block in blocks(model, target):
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
    """A packed file whose metadata is read; the weights stay in the file until `upload`.

    Attributes
    ----------
    path : Path
    config : ModelConfig
    group_size, weight_bits : int
    target : Target
    note : str
        Origin of the weights, as text for the user.
    sizes : tuple of int
        Bytes of each channel.
    crcs : tuple of int
        CRC-32 of each channel.
    tokenizer : bytes
        Content of the tokenizer file stored with the weights; empty if none.
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
        """Bytes of all channels together."""
        return sum(self.sizes)

    def _slices(self, channel: int, slice_bytes: int) -> Iterator[tuple[int, np.ndarray]]:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(self.path), framework="numpy") as file:
                whole = file.get_slice(f"channel_{channel}")
                for at in range(0, self.sizes[channel], slice_bytes):
                    yield at, whole[at : min(at + slice_bytes, self.sizes[channel])]
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{self.path}: cannot be read any more ({error}). Load the checkpoint again"
            ) from error

    def upload(
        self,
        channel: int,
        write: Callable[[int, np.ndarray], None],
        slice_bytes: int = UPLOAD_SLICE_BYTES,
    ) -> None:
        """Pass a channel's bytes to ``write(offset, part)`` in slices, then check them.

        Parameters
        ----------
        channel : int
        write : callable
            Takes an offset in bytes and a (n,) uint8 part.
        slice_bytes : int
            Maximum bytes per slice.

        Raises
        ------
        CheckpointError
            If the checksum does not match, or the file cannot be read any more.
        """
        crc = 0
        for at, part in self._slices(channel, slice_bytes):
            crc = zlib.crc32(part.data, crc)
            write(at, part)
        if crc != self.crcs[channel]:
            raise CheckpointError(
                f"{self.path}: weight channel {channel} is damaged (checksum {crc:08x}, "
                f"expected {self.crcs[channel]:08x}). Pack the model again: llama-pynq pack"
            )


def is_packed(path: Path) -> bool:
    """Whether the file starts like an output of `write_packed`.

    Parameters
    ----------
    path : Path
    """
    with open(path, "rb") as file:
        start = file.read(4096)
    return start[8:9] == b"{" and b'"format": "llama_pynq"' in start


def open_packed(path: Path) -> PackedModel:
    """Open a packed file: read and check its metadata and tokenizer, not its weights.

    Parameters
    ----------
    path : Path

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
                    f"{path}: a damaged packed model (wrong checksum of its metadata and "
                    "tokenizer). Pack it again: llama-pynq pack"
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
    """Pack a checkpoint, or reuse its packed file in the cache if that opens without an error.

    Parameters
    ----------
    checkpoint : Checkpoint
    target : Target
    group_size : {32, 64}, optional
        See `QuantizedModel`.
    bits : {8, 4}
    rebuild : bool
        Pack again even if the cache has a file, for example one found damaged.
    """
    model = QuantizedModel(checkpoint, group_size, bits)
    key = (
        f"{checkpoint.sha256[:32]}-w{bits}-g{model.group_size}-c{target.channels}-t{target.tile_rows}"
        f"-n{model.config.vocab_size}-r{float(model.config.rope_theta)!r}"
        f"-v{PACK_VERSION}.{ABI_VERSION}"
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
            f"cannot write the packed model to {path}: {error.strerror or error}. Set "
            "LLAMA_PYNQ_CACHE to a writable folder with room for "
            f"{sum(channel_bytes(model.config, model.group_size, target, bits)) / 2**20:.0f} MiB"
        ) from error
    return open_packed(path)
