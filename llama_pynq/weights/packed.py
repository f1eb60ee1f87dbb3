"""Packed files: a model's weights in the order that one board's hardware reads.

The container is safetensors: ``channel_0`` ... and ``tokenizer`` as uint8; the model's shape and
the checksums as metadata. `pack_cached` keeps packed files in the user's cache folder, keyed by
the checkpoint's content and the layout.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import BinaryIO

import numpy as np

from llama_pynq.checkpoint.base import Checkpoint
from llama_pynq.checkpoint.config import MAX_DIMENSION, ModelConfig
from llama_pynq.checkpoint.safetensors import LENGTH_BYTES, Header, SafetensorsError, read_header
from llama_pynq.errors import CheckpointError
from llama_pynq.kernel.abi import ABI_VERSION, MAX_GROUP, MIN_GROUP, WEIGHT_BITS, WORD_BYTES
from llama_pynq.kernel.config import MAX_CHANNELS, TILE_ROWS, Target
from llama_pynq.utils import strict_json
from llama_pynq.utils.files import cache_folder, replacing, user_path
from llama_pynq.utils.strict_json import shown
from llama_pynq.utils.temporary import clear_left_over
from llama_pynq.weights.quantize import QuantizedModel
from llama_pynq.weights.tiles import blocks, channel_bytes

PACK_VERSION = 5
"""Version of the packed layout; part of the cache key."""

UPLOAD_SLICE_BYTES = 8 << 20
"""Slice size of an upload: a board's memory cannot hold a model twice."""

FORMAT, TOKENIZER = "llama_pynq", "tokenizer"
"""Value of the metadata's ``format``; name of the tokenizer's tensor."""

MAX_TOKENIZER_BYTES = 64 << 20
"""Longest tokenizer file that a packed file holds."""

_CRC_DIGITS = 8
_CRC, _DECIMAL = re.compile(r"[0-9a-f]{8}"), re.compile(r"0|[1-9][0-9]{0,8}")
_FORMAT_KEY = re.compile(rb'"format"\s*:\s*"llama_pynq"')
_META_KEYS = {
    *("format", "pack_version", "abi", "config", "group_size", "weight_bits", "channels"),
    *("tile_rows", "note", "chat_template", "crc32", "meta_crc32"),
}


def _header(
    model: QuantizedModel, target: Target, crcs: list[str], sizes: list[int], tokenizer: bytes
) -> bytes:
    meta = {
        "format": FORMAT,
        "pack_version": str(PACK_VERSION),
        "abi": str(ABI_VERSION),
        "config": json.dumps(asdict(model.config), sort_keys=True),
        "group_size": str(model.group_size),
        "weight_bits": str(model.weight_bits),
        "channels": str(target.channels),
        "tile_rows": str(target.tile_rows),
        "note": model.note,
        "chat_template": model.chat_template,
        "crc32": ",".join(crcs),
    }
    tensors: dict[str, object] = {
        "__metadata__": {**meta, "meta_crc32": _meta_crc(meta, tokenizer)}
    }
    at = 0
    names = [f"channel_{c}" for c in range(target.channels)]
    blobs = [*zip(names, sizes), (TOKENIZER, len(tokenizer))]
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

    A checkpoint that changes meanwhile gives an error, and no file.

    Parameters
    ----------
    model : QuantizedModel
    target : Target
    path : Path
        Replaced only when the new file is complete.
    tokenizer : bytes, optional
        Content of a tokenizer file, stored with the weights.

    Raises
    ------
    CheckpointError
        If the tokenizer has more than `MAX_TOKENIZER_BYTES`, or the checkpoint cannot be read,
        holds NaN or infinite weights, or changed meanwhile.
    """
    if len(tokenizer) > MAX_TOKENIZER_BYTES:
        raise CheckpointError(
            f"the tokenizer has {len(tokenizer)} bytes: a packed file holds one of at most "
            f"{MAX_TOKENIZER_BYTES}"
        )
    model.freeze()
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
    sizes, offsets : tuple of int
        Bytes of each channel, and where they start in the file.
    crcs : tuple of int
        CRC-32 of each channel.
    tokenizer : bytes
        Content of the tokenizer file stored with the weights; empty if none.
    chat_template : str
        The checkpoint's; empty if none.
    """

    path: Path
    config: ModelConfig
    group_size: int
    weight_bits: int
    target: Target
    note: str
    sizes: tuple[int, ...]
    offsets: tuple[int, ...]
    crcs: tuple[int, ...]
    tokenizer: bytes
    chat_template: str

    @property
    def weight_bytes(self) -> int:
        """Bytes of all channels together."""
        return sum(self.sizes)

    def _slices(self, channel: int, slice_bytes: int) -> Iterator[tuple[int, np.ndarray]]:
        """Read a channel by plain reads: a file cut short meanwhile is an error, no SIGBUS."""
        size = self.sizes[channel]
        buffer = np.empty(min(slice_bytes, size), np.uint8)
        try:
            with open(self.path, "rb", buffering=0) as file:
                file.seek(self.offsets[channel])
                for at in range(0, size, slice_bytes):
                    part = buffer[: min(slice_bytes, size - at)]
                    done = 0
                    while done < len(part):
                        n = file.readinto(part.data[done:])
                        if not n:
                            raise OSError(f"it ends at byte {self.offsets[channel] + at + done}")
                        done += n
                    yield at, part
        except OSError as error:
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
            Takes an offset in bytes and a (n,) uint8 part, which the next slice overwrites.
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
    """Whether the file can be read, and starts like an output of `write_packed`.

    Parameters
    ----------
    path : Path
    """
    try:
        with open(user_path(path), "rb") as file:
            start = file.read(4096)
    except OSError:  # whoever opens it next says why
        return False
    return start[LENGTH_BYTES:].startswith(b"{") and _FORMAT_KEY.search(start) is not None


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
    path = user_path(path)
    try:
        with open(path, "rb") as file:
            return _read(file, path)
    except FileNotFoundError:
        raise
    except SafetensorsError as error:
        raise _damaged(path, error.why) from None
    except OSError as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: a damaged packed model ({why}). Pack it again: llama-pynq pack"
    )


def _read(file: BinaryIO, path: Path) -> PackedModel:
    header = read_header(file, path)
    meta = header.metadata
    if meta.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: a safetensors file, but not a packed model of llama_pynq. "
            "Give a llama2.c checkpoint (.bin), or pack one: llama-pynq pack"
        )
    versions = meta.get("pack_version"), meta.get("abi")
    if None not in versions and versions != (str(PACK_VERSION), str(ABI_VERSION)):
        raise CheckpointError(
            f"{path}: packed for version {versions[0]}.{versions[1]} of the layout, this is "
            f"{PACK_VERSION}.{ABI_VERSION}. Pack the model again: llama-pynq pack"
        )
    try:
        tokenizer = _tokenizer(file, header)
        if meta.get("meta_crc32") != _meta_crc(meta, tokenizer):
            raise ValueError("wrong checksum of its metadata and tokenizer")
        return _described(path, header, tokenizer)
    except ValueError as error:  # a CheckpointError of ModelConfig, too
        raise _damaged(path, str(error)) from None


def _tokenizer(file: BinaryIO, header: Header) -> bytes:
    tensor = header.tensors.get(TOKENIZER)
    if tensor is None or tensor.dtype != "U8" or len(tensor.shape) != 1:
        raise ValueError(f"its tensor {TOKENIZER!r} is missing, or not a list of U8")
    if tensor.n_bytes > MAX_TOKENIZER_BYTES:
        raise ValueError(
            f"its tokenizer has {tensor.n_bytes} bytes, at most {MAX_TOKENIZER_BYTES} are read"
        )
    file.seek(tensor.offset)
    data = file.read(tensor.n_bytes)
    if len(data) != tensor.n_bytes:
        raise ValueError("it ends in its tokenizer")
    return data


def _described(path: Path, header: Header, tokenizer: bytes) -> PackedModel:
    """The model that a header describes, every value checked before it is used."""
    meta = header.metadata
    if set(meta) != _META_KEYS:
        raise ValueError(f"its metadata has the keys {shown(sorted(meta), 400)}")
    group_size = _integer(meta, "group_size", (MIN_GROUP, MAX_GROUP))
    bits = _integer(meta, "weight_bits", WEIGHT_BITS)
    if bits == 4 and group_size != MAX_GROUP:
        raise ValueError(f"int4 weights in groups of {group_size}")
    channels = _integer(meta, "channels", range(1, MAX_CHANNELS + 1))
    target = Target(channels, _integer(meta, "tile_rows", TILE_ROWS))
    config = _config(meta["config"])
    if not meta["note"].isprintable():
        raise ValueError(f"note is {shown(meta['note'])}")
    crcs = meta["crc32"].split(",")
    if len(crcs) != channels or not all(_CRC.fullmatch(crc) for crc in crcs):
        raise ValueError(f"crc32 is {shown(meta['crc32'])}, not a checksum of each channel")
    names = [f"channel_{c}" for c in range(channels)]
    if set(header.tensors) != {*names, TOKENIZER}:
        raise ValueError(f"its tensors are {shown(sorted(header.tensors), 400)}")
    tensors = [header.tensors[name] for name in names]
    sizes = channel_bytes(config, group_size, target, bits)
    for name, tensor, size in zip(names, tensors, sizes):
        if (tensor.dtype, tensor.shape) != ("U8", (size,)):
            raise ValueError(
                f"{name} is {tensor.dtype} {shown(list(tensor.shape))}, expected U8 [{size}]"
            )
    return PackedModel(
        path=path,
        config=config,
        group_size=group_size,
        weight_bits=bits,
        target=target,
        note=meta["note"],
        sizes=tuple(sizes),
        offsets=tuple(tensor.offset for tensor in tensors),
        crcs=tuple(int(crc, 16) for crc in crcs),
        tokenizer=tokenizer,
        chat_template=meta["chat_template"],
    )


def _integer(meta: dict[str, str], key: str, allowed: Sequence[int]) -> int:
    if not _DECIMAL.fullmatch(meta[key]) or (value := int(meta[key])) not in allowed:
        raise ValueError(f"{key} is {shown(meta[key])}")
    return value


def _config(text: str) -> ModelConfig:
    try:
        values = strict_json.parse(text)
    except ValueError as error:
        raise ValueError(f"config: {error}") from None
    names = [item.name for item in fields(ModelConfig)]
    if not isinstance(values, dict) or set(values) != set(names):
        raise ValueError(f"config is {shown(values, 400)}, expected {', '.join(names)}")
    for name in names[:7]:
        if type(values[name]) is not int or not 1 <= values[name] <= MAX_DIMENSION:
            raise ValueError(f"config: {name} is {shown(values[name])}")
    if type(values["tied"]) is not bool:
        raise ValueError(f"config: tied is {shown(values['tied'])}")
    theta = values["rope_theta"]
    if type(theta) not in (int, float):  # 10000 and 10000.0 are one number in JSON
        raise ValueError(f"config: rope_theta is {shown(theta)}")
    divisors = values["rope_divisors"]
    if divisors is not None:
        if not isinstance(divisors, list) or not all(type(d) in (int, float) for d in divisors):
            raise ValueError(f"config: rope_divisors is {shown(divisors)}")
        divisors = tuple(map(float, divisors))
    return ModelConfig(**{**values, "rope_theta": float(theta), "rope_divisors": divisors})


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
    clear_left_over(path.parent)
    if not rebuild and os.path.exists(path):  # unlike Path's, no error where it may not look
        try:
            return open_packed(path)
        except (CheckpointError, FileNotFoundError):
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
