"""Reader of llama2.c checkpoints, versions 0, 1 and 2, one tensor at a time.

A board with 512 MB cannot hold a model twice, so this module never maps or loads a whole
file: a tensor is read sequentially from an offset computed from the header (:func:`layout`).
The header also determines the file's exact size, so truncated, over-long and foreign files
are refused before any weight is read.

Pickles are never read: PyTorch files are recognised by their first bytes and refused.

References
----------
karpathy/llama2.c at 350e04f: export.py (the writer), run.c and runq.c (the readers).
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from llama_pynq.checkpoint.base import Checkpoint
from llama_pynq.checkpoint.config import GLOBAL_TENSORS, MAX_DIMENSION, NORMS, ModelConfig
from llama_pynq.checkpoint.steady import SteadyFile
from llama_pynq.errors import CheckpointError
from llama_pynq.utils.foreign import LLAMA2C_EXPORT, identify_foreign_file

_MAGIC = 0x616B3432  # "ak42"
_HEADER_BYTES = 256  # of versions 1 and 2
_HEADER = "<7i"  # dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len
_LEGACY_HEADER_BYTES = struct.calcsize(_HEADER)  # version 0 has nothing else

_Sizes = tuple[int, int, int, int, int, int, int]


@dataclass(frozen=True)
class Place:
    """Location of a tensor in the file: layer i starts at byte offset + i * stride."""

    offset: int
    stride: int
    shape: tuple[int, ...]


def layout(
    config: ModelConfig, version: int, group_size: int | None
) -> tuple[dict[str, Place], int]:
    """Compute the location of every tensor, and the size of the whole file.

    Layers follow each other within a tensor. Version 2 stores the norms as float32
    and every other tensor, layer by layer, as int8 values followed by their float32
    scales.

    ======= ======== ==============================================================
    version header   body
    ======= ======== ==============================================================
    0       28 bytes token_embedding_table, rms_att_weight, wq, wk, wv, wo,
                     rms_ffn_weight, w1, w2, w3, rms_final_weight, two rotary tables
                     of seq_len * head_size / 2 floats (unused), [wcls]
    1, 2    256      rms_att_weight, rms_ffn_weight, rms_final_weight,
                     token_embedding_table, wq, wk, wv, wo, w1, w2, w3, [wcls]
    ======= ======== ==============================================================

    Returns
    -------
    places : dict of str to Place
    n_bytes : int
    """
    matrices = ("wq", "wk", "wv", "wo")
    order: tuple[str, ...]
    if version == 0:
        order = (
            *("token_embedding_table", "rms_att_weight", *matrices),
            *("rms_ffn_weight", "w1", "w2", "w3", "rms_final_weight", "rotary tables", "wcls"),
        )
        offset = _LEGACY_HEADER_BYTES
    else:
        order = (*NORMS, "token_embedding_table", *matrices, "w1", "w2", "w3", "wcls")
        offset = _HEADER_BYTES
    places = {}
    for name in order:
        if name == "rotary tables":
            offset += 2 * 4 * (config.seq_len * config.head_size // 2)
            continue
        if not config.stores(name):
            continue
        shape = config.tensor_shape(name)
        n = math.prod(shape)
        if group_size is None or name in NORMS:
            stride = 4 * n
        else:
            stride = n + 4 * (n // group_size)
        places[name] = Place(offset, stride, shape)
        offset += stride * config.tensor_copies(name)
    return places, offset


class Llama2cCheckpoint(Checkpoint):
    """An open llama2.c file.

    Parameters
    ----------
    path : Path
    config : ModelConfig
    file : file
        Open, a ``SteadyFile``, which the checkpoint owns.
    n_bytes : int
    version : int
    group_size : int or None
    places : dict of str to Place

    Attributes
    ----------
    version : int
        0 and 1 hold float32, 2 holds int8 groups.
    group_size : int or None
        Weights that share a scale; None for float32 files.
    """

    def __init__(
        self,
        path: Path,
        config: ModelConfig,
        file: SteadyFile,
        n_bytes: int,
        version: int,
        group_size: int | None,
        places: dict[str, Place],
    ) -> None:
        super().__init__(path, config, file, n_bytes)
        self._file = file
        self.version = version
        self.group_size = group_size
        self._places = places

    def tensor(self, name: str, layer: int | None = None) -> npt.NDArray[np.float32]:
        """Read one tensor as float32: see `Checkpoint.tensor`."""
        place, offset, label = self._locate(name, layer)
        if self.group_size is not None and name not in NORMS:
            q, scale = self._stored(name, layer)
            weights = q.astype(np.float32)
            groups = weights.reshape(-1, self.group_size)
            groups *= scale.reshape(-1, 1)  # runq.c, dequantize()
            return weights
        shape = place.shape
        if len(shape) == 2 and name in GLOBAL_TENSORS:
            shape = (self.config.vocab_size, shape[1])
        floats = np.empty(shape, np.float32)
        self._read_into(floats, offset)
        self._refuse_nonfinite(floats, label)
        return floats

    def holds_int8(self, name: str, layer: int | None = None) -> bool:
        """Whether `quantized` reads a matrix: in version 2, if its groups straddle no rows."""
        size = self.group_size
        return size is not None and not self.config.tensor_shape(name)[-1] % size

    def quantized(
        self, name: str, layer: int | None = None
    ) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
        """Read one matrix of a version 2 file as it is: see `Checkpoint.quantized`.

        export.py writes a group's largest magnitude / 127 for its scale.
        """
        columns = self._locate(name, layer)[0].shape[-1]
        if self.group_size is not None and columns % self.group_size and name not in NORMS:
            raise CheckpointError(
                f"{self.path}: groups of {self.group_size} straddle the rows of {name}, which have "
                f"{columns} weights: read it with tensor()"
            )
        q, scale = self._stored(name, layer)
        return q, scale.reshape(len(q), -1)

    def _stored(
        self, name: str, layer: int | None
    ) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
        """Read q, (out, in) int8, and the scale of each group in the order of the file."""
        place, offset, label = self._locate(name, layer)
        if self.group_size is None:
            raise CheckpointError(
                f"{self.path} is a float32 checkpoint (version {self.version}): "
                f"it holds no int8 weights; read {name} with tensor()"
            )
        if name in NORMS:
            raise CheckpointError(
                f"{name} is float32 in every checkpoint version: read it with tensor()"
            )
        stored, columns = place.shape
        rows = self.config.vocab_size if name in GLOBAL_TENSORS else stored
        q = np.empty((rows, columns), np.int8)
        scale = np.empty(rows * columns // self.group_size, np.float32)
        self._read_into(q, offset)
        self._read_into(scale, offset + stored * columns)
        self._refuse_nonfinite(scale, f"{label}, scales")
        if float(np.abs(scale).max()) * 128 > float(np.finfo(np.float32).max):
            raise CheckpointError(
                f"{self.path}: {label} has a scale so large that weights become infinite: "
                f"the file is corrupt; export the model again"
            )
        return q, scale

    def _locate(self, name: str, layer: int | None) -> tuple[Place, int, str]:
        """The place of a tensor, the file offset of its layer, and its name for messages."""
        layer = self._check_name(name, layer)
        stored = "token_embedding_table" if name == "wcls" and self.config.tied else name
        place = self._places[stored]
        if layer is None:
            return place, place.offset, name
        return place, place.offset + layer * place.stride, f"{name}, layer {layer}"

    def _read_into(self, array: npt.NDArray[Any], offset: int) -> None:
        """Fill a C-contiguous array from the file."""
        self._file.read_into(array.data.cast("B"), offset)


def read_llama2c(
    path: Path, file: BinaryIO, rope_theta: float, reading: str | None = None
) -> Llama2cCheckpoint:
    """Read the header of an open llama2.c file, and check the file's size.

    Parameters
    ----------
    path : Path
        For messages.
    file : BinaryIO
        Open for reading, unbuffered; the returned checkpoint owns it.
    rope_theta : float
        Base of the rotary embedding, which the file does not hold.
    reading : {"export"}, optional
        How to read groups that straddle rows: see `load_checkpoint`.

    Returns
    -------
    Llama2cCheckpoint

    Raises
    ------
    CheckpointError
        If the file is foreign, truncated, over-long, or ambiguous.
    """
    if reading not in (None, "export"):
        raise CheckpointError(f"reading is {reading!r}: it must be 'export', or left out")
    head = file.read(4096)
    n_bytes = file.seek(0, 2)
    version, config, group_size = _parse_header(path, head, n_bytes, rope_theta)
    if group_size is not None:
        _refuse_ambiguous(path, config, group_size, reading)
    places, expected = layout(config, version, group_size)
    steady = SteadyFile(path, file, head, n_bytes)
    checkpoint = Llama2cCheckpoint(path, config, steady, n_bytes, version, group_size, places)
    if n_bytes != expected:
        raise CheckpointError(_wrong_size(checkpoint, expected))
    return checkpoint


def has_llama2c_header(head: bytes) -> bool:
    """Whether a file starts with the magic number, or with sizes that a version 0 model may have.

    Parameters
    ----------
    head : bytes
        The first few hundred bytes.
    """
    if head.startswith(struct.pack("<I", _MAGIC)):
        return True
    sizes = _plausible_sizes(head, allow_negative_vocab=True)
    return sizes is not None and sizes[0] % sizes[3] == 0 and sizes[3] % sizes[4] == 0


def _parse_header(
    path: Path, head: bytes, n_bytes: int, rope_theta: float
) -> tuple[int, ModelConfig, int | None]:
    """Parse version, config and group size; refuse implausible sizes."""
    if head[:4] == struct.pack("<I", _MAGIC):
        return _parse_versioned_header(path, head, n_bytes, rope_theta)
    sizes = _plausible_sizes(head, allow_negative_vocab=True)
    if sizes is None:
        raise CheckpointError(_foreign(path, head, n_bytes))
    vocab_size = sizes[5]  # negative: the classifier is not tied (run.c)
    sizes = (*sizes[:5], abs(vocab_size), sizes[6])
    return 0, _config(path, sizes, vocab_size > 0, rope_theta), None


def _parse_versioned_header(
    path: Path, head: bytes, n_bytes: int, rope_theta: float
) -> tuple[int, ModelConfig, int | None]:
    if n_bytes < _HEADER_BYTES:
        raise CheckpointError(
            f"{path} is truncated: a llama2.c header has {_HEADER_BYTES} bytes, the file "
            f"only {n_bytes}; download or export it again"
        )
    (version,) = struct.unpack_from("<i", head, 4)
    if version not in (1, 2):
        raise CheckpointError(
            f"{path} is a llama2.c checkpoint of version {version}; versions 0, 1 and 2 are "
            f"known: export the model again {LLAMA2C_EXPORT} --version 2"
        )
    sizes = _plausible_sizes(head[8:], allow_negative_vocab=False)
    if sizes is None:
        raise CheckpointError(
            f"{path} has llama2.c's magic number but impossible sizes (dim, hidden_dim, "
            f"n_layers, n_heads, n_kv_heads, vocab_size, seq_len = "
            f"{', '.join(map(str, struct.unpack_from(_HEADER, head, 8)))}): the file is "
            f"corrupt; download or export it again"
        )
    tied, group_size = struct.unpack_from("<Bi", head, 8 + _LEGACY_HEADER_BYTES)
    if tied > 1:
        raise CheckpointError(
            f"{path}: the header's shared-classifier flag is {tied}, not 0 or 1: the file is "
            f"corrupt; download or export it again"
        )
    config = _config(path, sizes, tied == 1, rope_theta)
    return version, config, group_size if version == 2 else None


def _plausible_sizes(header: bytes, allow_negative_vocab: bool) -> _Sizes | None:
    """Return the seven integers, or None if no model has such sizes.

    The first integer of a text, zip, GGUF or safetensors file is larger, or the second is zero.
    """
    if len(header) < _LEGACY_HEADER_BYTES:
        return None
    sizes: _Sizes = struct.unpack_from(_HEADER, header)
    for i, size in enumerate(sizes):
        magnitude = abs(size) if i == 5 and allow_negative_vocab else size
        if not 0 < magnitude <= MAX_DIMENSION:
            return None
    return sizes


def _config(path: Path, sizes: _Sizes, tied: bool, rope_theta: float) -> ModelConfig:
    try:
        return ModelConfig(*sizes, tied, rope_theta)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _refuse_ambiguous(
    path: Path, config: ModelConfig, group_size: int, reading: str | None
) -> None:
    """Refuse groups that straddle rows.

    export.py reduces its group size until it divides dim, but ignores hidden_dim, so that
    groups of w2 may straddle its rows. runq.c takes each row's first
    hidden_dim // group_size groups, indexes the scales accordingly and drops the rest. The
    file does not say which of the two is meant, so neither is assumed.
    """
    if group_size < 1:
        raise CheckpointError(
            f"{path}: the header's group size is {group_size}: it must be positive; the file "
            f"is corrupt; download or export it again"
        )
    remedy = ""
    if config.dim % group_size:
        culprit = f"dim {config.dim}"
    elif config.hidden_dim % group_size and reading is None:
        culprit = f"hidden_dim {config.hidden_dim}"
        remedy = (
            '; or read this file in export.py\'s order, load_model(..., reading="export") or '
            "--reading export"
        )
    else:
        return
    common = math.gcd(config.dim, config.hidden_dim)
    best = common & -common
    raise CheckpointError(
        f"{path} is ambiguous: its group size {group_size} does not divide {culprit}, so "
        f"groups straddle rows, and llama2.c's export.py and runq.c disagree on which scale "
        f"belongs to which weight (export.py checks dim only). Export it again with a group "
        f"size that divides both dim {config.dim} and hidden_dim {config.hidden_dim}: "
        f"version2_export(model, path, group_size={best}) (the largest power of two that "
        f"does), or as float {LLAMA2C_EXPORT} --version 1{remedy}"
    )


def _wrong_size(checkpoint: Llama2cCheckpoint, expected: int) -> str:
    path, version, config = checkpoint.path, checkpoint.version, checkpoint.config
    n_bytes = checkpoint.n_bytes
    shape = ", ".join(f"{item.name} {getattr(config, item.name)}" for item in fields(config)[:7])
    if checkpoint.group_size is not None:
        shape += f", group size {checkpoint.group_size}"
    header = f"its header (version {version}: {shape}) asks for {expected} bytes"
    if n_bytes < expected:
        return (
            f"{path} is truncated: {header}, the file has {n_bytes} "
            f"({expected - n_bytes} missing); download or export it again"
        )
    return (
        f"{path} is over-long: {header}, the file has {n_bytes} "
        f"({n_bytes - expected} too many): it is corrupt, or not a llama2.c checkpoint; "
        f"download or export it again"
    )


def _foreign(path: Path, head: bytes, n_bytes: int) -> str:
    if head[2:9] == b"\n\x05<unk>" or head[4:17] == struct.pack("<fI", 0, 5) + b"<unk>":
        return (
            f"{path} is not a llama2.c checkpoint but a tokenizer: give the model's .bin file "
            f"as the checkpoint, and this one as the tokenizer"
        )
    if found := identify_foreign_file(head):
        what, remedy = found
        remedy = remedy or "give the path of a llama2.c checkpoint, such as stories15M.bin"
        return f"{path} is not a llama2.c checkpoint but {what}: {remedy}"
    if n_bytes < _LEGACY_HEADER_BYTES:
        return (
            f"{path} is truncated: even the oldest llama2.c header has "
            f"{_LEGACY_HEADER_BYTES} bytes, the file only {n_bytes}; download or export it again"
        )
    sizes = ", ".join(map(str, struct.unpack_from(_HEADER, head)))
    return (
        f"{path} is not a llama2.c checkpoint: its first numbers ({sizes}) would be dim, "
        f"hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size and seq_len, and no model has "
        f"such sizes; export a model {LLAMA2C_EXPORT} --checkpoint model.pt"
    )
