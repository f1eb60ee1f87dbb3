"""A Llama in a GGUF file: its shape, and its tensors one at a time.

Rows of wq and wk already are in llama2.c's order, pairs beside each other. A model that computes
otherwise than Llama 2 is refused by the name of what differs, never run wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt

from llama_pynq.checkpoint.base import Checkpoint
from llama_pynq.checkpoint.config import GLOBAL_TENSORS, LAYER_TENSORS, MAX_DIMENSION, ModelConfig
from llama_pynq.checkpoint.ggml_types import block_scales
from llama_pynq.checkpoint.gguf import GgufHeader, GgufTensor, read_header
from llama_pynq.checkpoint.steady import SteadyFile
from llama_pynq.errors import CheckpointError
from llama_pynq.utils.strict_json import shown

_T = TypeVar("_T")

_GROUP = 32  # weights of a block that are integers times one scale

_NAMES = {
    "token_embedding_table": "token_embd.weight",
    "rms_final_weight": "output_norm.weight",
    "wcls": "output.weight",
    "rms_att_weight": "blk.{}.attn_norm.weight",
    "wq": "blk.{}.attn_q.weight",
    "wk": "blk.{}.attn_k.weight",
    "wv": "blk.{}.attn_v.weight",
    "wo": "blk.{}.attn_output.weight",
    "rms_ffn_weight": "blk.{}.ffn_norm.weight",
    "w1": "blk.{}.ffn_gate.weight",
    "w2": "blk.{}.ffn_down.weight",
    "w3": "blk.{}.ffn_up.weight",
}
"""llama2.c's names, and those of GGUF."""

_ROPE_FREQUENCIES = "rope_freqs.weight"
_EPSILON = 1e-5  # in the kernel, as in Llama 2


class GgufCheckpoint(Checkpoint):
    """An open GGUF file that holds a Llama.

    Parameters
    ----------
    path : Path
    config : ModelConfig
    file : file
        Open, a ``SteadyFile``, which the checkpoint owns.
    n_bytes : int
    header : GgufHeader

    Attributes
    ----------
    metadata : dict
        From the file: see `GgufHeader`.
    """

    group_size = _GROUP

    def __init__(
        self, path: Path, config: ModelConfig, file: SteadyFile, n_bytes: int, header: GgufHeader
    ) -> None:
        super().__init__(path, config, file, n_bytes)
        self._file = file
        self.metadata = header.metadata
        template = header.metadata.get("tokenizer.chat_template")
        self.chat_template = template if isinstance(template, str) else ""
        self._tensors = header.tensors

    def tensor(self, name: str, layer: int | None = None) -> npt.NDArray[np.float32]:
        """Read one tensor as float32: see `Checkpoint.tensor`."""
        place, label = self._place(name, layer)
        values = self._float32(place, 0, self._rows(place, name), label)
        return values.reshape(-1) if len(place.shape) == 1 else values

    def row_slices(
        self, name: str, layer: int | None = None, step: int = 1024
    ) -> Iterator[npt.NDArray[np.float32]]:
        """Read one matrix in slices of rows: see `Checkpoint.row_slices`."""
        place, label = self._place(name, layer)
        rows = self._rows(place, name)
        for begin in range(0, rows, step):
            yield self._float32(place, begin, min(begin + step, rows), label)

    def holds_int8(self, name: str, layer: int | None = None) -> bool:
        """Whether `quantized` reads a matrix: its type is integers times a scale."""
        return self._place(name, layer)[0].type.integers is not None

    def kind_of(self, name: str, layer: int | None = None) -> str:
        """Type of a tensor, such as Q4_K."""
        return self._place(name, layer)[0].type.name

    def quantized(
        self, name: str, layer: int | None = None
    ) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
        """Read one matrix of integers as it is: see `Checkpoint.quantized`."""
        place, label = self._place(name, layer)
        integers = place.type.integers
        if integers is None or len(place.shape) == 1:
            raise CheckpointError(
                f"{self.path}: {label} is {place.type.name}, not integers of 8 bits in groups of "
                f"{_GROUP}: read it with tensor()"
            )
        rows = self._rows(place, name)
        blocks = self._blocks(place, 0, rows)
        scale = block_scales(blocks)
        self._refuse_nonfinite(scale, f"{label}, scales")
        return integers(blocks).reshape(rows, -1), scale.reshape(rows, -1)

    def _rows(self, place: GgufTensor, name: str) -> int:
        """Rows that are read; a vector is one row."""
        if len(place.shape) == 1:
            return 1
        return self.config.vocab_size if name in GLOBAL_TENSORS else place.shape[0]

    def _place(self, name: str, layer: int | None) -> tuple[GgufTensor, str]:
        """Where a tensor is, and its name for messages."""
        layer = self._check_name(name, layer)
        stored = "token_embedding_table" if name == "wcls" and self.config.tied else name
        label = _NAMES[stored].format(layer)
        return self._tensors[label], label

    def _blocks(self, place: GgufTensor, begin: int, end: int) -> npt.NDArray[np.uint8]:
        """Blocks of rows `begin` to `end`."""
        kind = place.type
        row_bytes = place.shape[-1] // kind.block * kind.n_bytes
        data = np.empty((end - begin) * row_bytes, np.uint8)
        self._file.read_into(data.data.cast("B"), place.offset + begin * row_bytes)
        return data.reshape(-1, kind.n_bytes)

    def _float32(
        self, place: GgufTensor, begin: int, end: int, label: str
    ) -> npt.NDArray[np.float32]:
        with np.errstate(over="ignore", invalid="ignore"):  # refused below
            values = place.type.to_float32(self._blocks(place, begin, end))
        self._refuse_nonfinite(values, label)
        return np.ascontiguousarray(values.reshape(end - begin, -1))


def read_gguf(path: Path, file: BinaryIO, rope_theta: float | None) -> GgufCheckpoint:
    """Read the header of an open GGUF file, and check that it holds a Llama.

    Parameters
    ----------
    path : Path
        For messages.
    file : BinaryIO
        Open for reading, unbuffered; the returned checkpoint owns it.
    rope_theta : float or None
        Base of the rotary embedding instead of the file's.

    Returns
    -------
    GgufCheckpoint

    Raises
    ------
    CheckpointError
        If the file is damaged, or its model computes otherwise than Llama 2.
    """
    header = read_header(file, path)
    try:
        config = _config(header, file, rope_theta)
        _check_tensors(header, config)
    except (ValueError, CheckpointError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    n_bytes = file.seek(0, 2)
    return GgufCheckpoint(
        path, config, SteadyFile(path, file, header.raw, n_bytes), n_bytes, header
    )


def _config(header: GgufHeader, file: BinaryIO, rope_theta: float | None) -> ModelConfig:
    metadata = header.metadata
    architecture = _value(metadata, "general.architecture", str, "")
    if architecture != "llama":
        raise ValueError(f"its architecture is {architecture!r}, and llama is read")
    if _value(metadata, "split.count", int, 1) > 1:
        raise ValueError(
            "it is one part of several: join them with llama.cpp's llama-gguf-split --merge"
        )

    def whole(key: str, default: int | None = None) -> int:
        value = metadata.get(f"llama.{key}", default)
        if value is None:
            raise ValueError(f"llama.{key} is missing")
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            value = value[0].item()  # one for each layer, and all are equal
        if type(value) is not int or not 0 < value <= MAX_DIMENSION:
            raise ValueError(f"llama.{key} is {shown(value)}: it must be a whole number from 1")
        return value

    dim, n_heads = whole("embedding_length"), whole("attention.head_count")
    embedding = header.tensors.get(_NAMES["token_embedding_table"])
    if embedding is None:
        raise ValueError(f"there is no tensor {_NAMES['token_embedding_table']}")
    theta = rope_theta
    if theta is None:
        theta = _value(metadata, "llama.rope.freq_base", float, 10000.0)
    seq_len = whole("context_length")
    window = _value(metadata, "llama.attention.sliding_window", int, 0)
    if window > 0:
        seq_len = min(seq_len, window)  # up to there, every position sees all before it
    config = ModelConfig(
        dim=dim,
        hidden_dim=whole("feed_forward_length"),
        n_layers=whole("block_count"),
        n_heads=n_heads,
        n_kv_heads=whole("attention.head_count_kv", n_heads),
        vocab_size=embedding.shape[0],
        seq_len=seq_len,
        tied=_NAMES["wcls"] not in header.tensors,
        rope_theta=theta,
    )
    _refuse_others(metadata, config)
    return replace(config, rope_divisors=_rope_divisors(header, config, file))


def _rope_divisors(
    header: GgufHeader, config: ModelConfig, file: BinaryIO
) -> tuple[float, ...] | None:
    """Divisors of a scaled rotary embedding: of a tensor (Llama 3.1), or one factor."""
    metadata = header.metadata
    scaling = _value(metadata, "llama.rope.scaling.type", str, "none")
    if scaling not in ("none", "linear"):
        raise ValueError(f"its rotary embedding is scaled ({scaling}), which is not computed here")
    factor = _value(metadata, "llama.rope.scale_linear", float, 1.0)
    if scaling == "linear":
        factor = _value(metadata, "llama.rope.scaling.factor", float, factor)
    divisors = np.full(config.head_size // 2, factor)
    place = header.tensors.get(_ROPE_FREQUENCIES)
    if place is not None:
        if place.shape != divisors.shape or place.type.name != "F32":
            raise ValueError(f"{_ROPE_FREQUENCIES} is {place.type.name} {place.shape}")
        file.seek(place.offset)
        data = file.read(place.n_bytes)
        if len(data) != place.n_bytes:
            raise ValueError(f"it ends in {_ROPE_FREQUENCIES}")
        divisors *= np.frombuffer(data, "<f4")
    return None if (divisors == 1).all() else tuple(divisors.tolist())


def _refuse_others(metadata: Mapping[str, Any], config: ModelConfig) -> None:
    """Raise ValueError for what the kernel computes otherwise."""
    epsilon = _value(metadata, "llama.attention.layer_norm_rms_epsilon", float, _EPSILON)
    if np.float32(epsilon) != np.float32(_EPSILON):
        raise ValueError(f"its norms add {epsilon:g} to the mean square, the kernel {_EPSILON:g}")
    for key in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
        size = _value(metadata, f"llama.{key}", int, config.head_size)
        if size != config.head_size:
            raise ValueError(
                f"llama.{key} is {size}: the kernel's heads have dim / heads values, "
                f"{config.head_size} here"
            )
    if _value(metadata, "llama.expert_count", int, 0):
        raise ValueError("it is a mixture of experts, which the kernel does not compute")


def _value(metadata: Mapping[str, Any], key: str, kind: type[_T], default: _T) -> _T:
    """An entry of the metadata.

    Raises
    ------
    ValueError
        If it is of another type.
    """
    value = metadata.get(key, default)
    if type(value) is not kind:
        raise ValueError(f"{key} is {shown(value)}: it must be of type {kind.__name__}")
    return value


def _check_tensors(header: GgufHeader, config: ModelConfig) -> None:
    """Raise ValueError unless the file holds the tensors of the shape, and no others."""
    expected = set()
    for name in (*GLOBAL_TENSORS, *LAYER_TENSORS):
        for layer in range(config.tensor_copies(name)) if config.stores(name) else ():
            label, shape = _NAMES[name].format(layer), config.tensor_shape(name)
            if label not in header.tensors:
                raise ValueError(f"there is no tensor {label}")
            if header.tensors[label].shape != shape:
                found = header.tensors[label].shape
                raise ValueError(f"{label} has the shape {found}, and not {shape}")
            expected.add(label)
    for label in header.tensors:
        if label not in (*expected, _ROPE_FREQUENCIES):
            raise ValueError(
                f"it has a tensor {label}, which Llama 2 has not: the kernel does not compute with "
                "it"
            )
