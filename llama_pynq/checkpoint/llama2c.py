"""llama2.c checkpoints, versions 0, 1 and 2, read one tensor at a time.

A board with 512 MB cannot hold a model twice, so nothing here maps or loads a whole
file: every tensor is one seek and one read at an offset computed from the header. The
header also fixes the file's size to the byte, which is how truncated, over-long and
foreign files are told apart before any weight is believed.

No pickle is ever read: PyTorch files are recognised by their first bytes and refused.

References
----------
karpathy/llama2.c at 350e04f: export.py (the writer), run.c and runq.c (the readers),
and the table of byte offsets in :func:`_layout`.
"""

from __future__ import annotations

import hashlib
import math
import operator
import struct
import threading
import weakref
from dataclasses import dataclass, field, fields
from functools import cached_property
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from llama_pynq.errors import CheckpointError

__all__ = [
    "GLOBAL_TENSORS",
    "LAYER_TENSORS",
    "Checkpoint",
    "ModelConfig",
    "identify_foreign_file",
    "load_checkpoint",
]

LAYER_TENSORS = (
    "rms_att_weight",
    "rms_ffn_weight",
    "wq",
    "wk",
    "wv",
    "wo",
    "w1",
    "w2",
    "w3",
)
"""Tensors that exist once per layer; reading one needs ``layer``."""

GLOBAL_TENSORS = ("token_embedding_table", "rms_final_weight", "wcls")
"""Tensors that exist once."""

_NORMS = ("rms_att_weight", "rms_ffn_weight", "rms_final_weight")  # float in every version

_MAGIC = 0x616B3432  # "ak42"
_HEADER_BYTES = 256  # of versions 1 and 2
_HEADER = "<7i"  # dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len
_LEGACY_HEADER_BYTES = struct.calcsize(_HEADER)  # version 0 has nothing else

# No Llama comes near this, and the first four bytes of every text, zip, GGUF or
# safetensors file read as a larger number or put a zero behind it.
_MAX_DIMENSION = 1 << 20

_Sizes = tuple[int, int, int, int, int, int, int]
_SLICE_BYTES = 1 << 20
_EXPORT = "with llama2.c: python export.py model.bin"


class _CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """So that both ``except CheckpointError`` and ``except FileNotFoundError`` work."""


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a model, in llama2.c's vocabulary.

    Parameters
    ----------
    dim : int
        Width of the residual stream.
    hidden_dim : int
        Width of the feed-forward layer.
    n_layers, n_heads, n_kv_heads : int
    vocab_size : int
    seq_len : int
        Longest sequence the model was trained for.
    tied : bool
        The classifier shares the token embedding's weights.
    rope_theta : float
        Base of the rotary embedding. No checkpoint version stores it; llama2.c
        trains and runs with 10000.

    Raises
    ------
    CheckpointError
        If a size is not positive, dim is not n_heads even heads, or the heads do not
        divide evenly among the key-value heads.
    """

    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    seq_len: int
    tied: bool
    rope_theta: float = 10000.0

    def __post_init__(self) -> None:
        for item in fields(self)[:7]:
            value = getattr(self, item.name)
            if value <= 0:
                raise CheckpointError(f"{item.name} is {value}: it must be positive")
        if self.dim % self.n_heads:
            raise CheckpointError(
                f"dim {self.dim} is not a multiple of n_heads {self.n_heads}: "
                f"every head needs the same size"
            )
        if self.head_size % 2:
            raise CheckpointError(
                f"head size {self.head_size} (dim {self.dim} / n_heads {self.n_heads}) is odd: "
                f"the rotary embedding turns pairs of numbers, so it must be even"
            )
        if self.n_heads % self.n_kv_heads:
            raise CheckpointError(
                f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}: "
                f"every key-value head must serve the same number of heads"
            )
        if not (math.isfinite(self.rope_theta) and self.rope_theta > 0):
            raise CheckpointError(
                f"rope_theta is {self.rope_theta}: it must be positive and finite "
                f"(Llama 2 and llama2.c use 10000)"
            )

    @property
    def head_size(self) -> int:
        """Numbers per attention head: dim / n_heads."""
        return self.dim // self.n_heads

    @property
    def kv_dim(self) -> int:
        """Rows of wk and wv: n_kv_heads * head_size."""
        return self.n_kv_heads * self.head_size

    @property
    def n_params(self) -> int:
        """Trained parameters; a tied classifier counts once."""
        names = [name for name in (*GLOBAL_TENSORS, *LAYER_TENSORS) if self._stores(name)]
        return sum(self._copies(name) * math.prod(self._shape(name)) for name in names)

    def _shape(self, name: str) -> tuple[int, ...]:
        """Shape of one (layer's) tensor: (out, in), or (dim,) for a norm."""
        return {
            "token_embedding_table": (self.vocab_size, self.dim),
            "rms_att_weight": (self.dim,),
            "rms_ffn_weight": (self.dim,),
            "rms_final_weight": (self.dim,),
            "wq": (self.dim, self.dim),
            "wk": (self.kv_dim, self.dim),
            "wv": (self.kv_dim, self.dim),
            "wo": (self.dim, self.dim),
            "w1": (self.hidden_dim, self.dim),
            "w2": (self.dim, self.hidden_dim),
            "w3": (self.hidden_dim, self.dim),
            "wcls": (self.vocab_size, self.dim),
        }[name]

    def _copies(self, name: str) -> int:
        return self.n_layers if name in LAYER_TENSORS else 1

    def _stores(self, name: str) -> bool:
        return name != "wcls" or not self.tied


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies: layer i starts at offset + i * stride, in bytes."""

    offset: int
    stride: int
    shape: tuple[int, ...]


def _layout(
    config: ModelConfig, version: int, group_size: int | None
) -> tuple[dict[str, _Place], int]:
    """Byte offsets of every tensor, and the size of the whole file.

    Layers follow each other within a tensor. Version 2 stores the norms as float32
    and every other tensor, layer by layer, as int8 values with its float32 scales
    right behind them.

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
    places : dict of str to _Place
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
        order = (*_NORMS, "token_embedding_table", *matrices, "w1", "w2", "w3", "wcls")
        offset = _HEADER_BYTES
    places = {}
    for name in order:
        if name == "rotary tables":
            offset += 2 * 4 * (config.seq_len * config.head_size // 2)
            continue
        if not config._stores(name):
            continue
        shape = config._shape(name)
        n = math.prod(shape)
        if group_size is None or name in _NORMS:
            stride = 4 * n
        else:
            stride = n + 4 * (n // group_size)
        places[name] = _Place(offset, stride, shape)
        offset += stride * config._copies(name)
    return places, offset


@dataclass(eq=False)
class Checkpoint:
    """An open checkpoint; :func:`load_checkpoint` makes one.

    Holds a file handle and the offsets, never a weight. Reads from several threads
    are serialised. Use it as a context manager, or call :meth:`close`.

    Attributes
    ----------
    path : Path
    config : ModelConfig
    version : int
        0 and 1 hold float32, 2 holds int8 groups.
    group_size : int or None
        Weights that share a scale; None for float files.
    n_bytes : int
        Size of the file.
    """

    path: Path
    config: ModelConfig
    version: int
    group_size: int | None
    n_bytes: int
    _file: BinaryIO = field(repr=False)
    _places: dict[str, _Place] = field(repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        # A notebook rarely closes anything: closing with the object keeps Python
        # from warning about a leaked handle.
        self._finalizer = weakref.finalize(self, self._file.close)

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Reading a tensor afterwards is an error; closing again is not."""
        self._finalizer()

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the file's content, as hex; computed on first use, in slices."""
        digest = hashlib.sha256()
        buffer = np.empty(min(_SLICE_BYTES, self.n_bytes), np.uint8)
        for offset in range(0, self.n_bytes, _SLICE_BYTES):
            part = buffer[: min(_SLICE_BYTES, self.n_bytes - offset)]
            self._read_into(part, offset)
            digest.update(part.data)
        return digest.hexdigest()

    def tensor(self, name: str, layer: int | None = None) -> npt.NDArray[np.float32]:
        """Read one tensor as float32; int8 files are dequantised.

        Parameters
        ----------
        name : str
            One of LAYER_TENSORS or GLOBAL_TENSORS. ``wcls`` is the token embedding
            when the model is tied.
        layer : int, optional
            Needed for LAYER_TENSORS, refused for GLOBAL_TENSORS.

        Returns
        -------
        (out, in) float32, or (dim,) for a norm
            A fresh C-contiguous array that belongs to the caller.

        Raises
        ------
        CheckpointError
            If there is no such tensor or layer, it holds NaN or infinite values, or
            the checkpoint is closed or the file has shrunk.
        """
        place, offset, label = self._locate(name, layer)
        if self.group_size is not None and name not in _NORMS:
            q, scale = self.quantized(name, layer)
            weights = q.astype(np.float32)
            groups = weights.reshape(-1, self.group_size)
            groups *= scale.reshape(-1, 1)  # runq.c, dequantize()
            return weights
        floats = np.empty(place.shape, np.float32)
        self._read_into(floats, offset)
        self._refuse_nonfinite(floats, label)
        return floats

    def quantized(
        self, name: str, layer: int | None = None
    ) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
        """Read one tensor of a version 2 file as it is stored.

        Parameters
        ----------
        name, layer
            As for :meth:`tensor`, without the norms.

        Returns
        -------
        q : (out, in) int8
        scale : (out, in // group_size) float32
            weight = q * scale; export.py writes the group's largest magnitude / 127.

        Raises
        ------
        CheckpointError
            As for :meth:`tensor`; and if the file, or this tensor, is not quantised.
        """
        place, offset, label = self._locate(name, layer)
        if self.group_size is None:
            raise CheckpointError(
                f"{self.path} is a float32 checkpoint (version {self.version}): "
                f"it holds no int8 weights; read {name} with tensor()"
            )
        if name in _NORMS:
            raise CheckpointError(
                f"{name} is float32 in every checkpoint version: read it with tensor()"
            )
        rows, columns = place.shape
        q = np.empty((rows, columns), np.int8)
        scale = np.empty((rows, columns // self.group_size), np.float32)
        self._read_into(q, offset)
        self._read_into(scale, offset + q.nbytes)
        self._refuse_nonfinite(scale, f"{label}, scales")
        if float(np.abs(scale).max()) * 128 > float(np.finfo(np.float32).max):
            raise CheckpointError(
                f"{self.path}: {label} has a scale so large that weights become infinite: "
                f"the file is corrupt; export the model again"
            )
        return q, scale

    def _locate(self, name: str, layer: int | None) -> tuple[_Place, int, str]:
        """The place of a tensor, the file offset of its layer, and its name for messages."""
        if name in GLOBAL_TENSORS:
            if layer is not None:
                raise CheckpointError(f"{name} exists once: read it without layer={layer}")
            stored = "token_embedding_table" if name == "wcls" and self.config.tied else name
            place = self._places[stored]
            return place, place.offset, name
        if name not in LAYER_TENSORS:
            known = ", ".join((*GLOBAL_TENSORS, *LAYER_TENSORS))
            raise CheckpointError(f"no tensor is named {name!r}: the names are {known}")
        n_layers = self.config.n_layers
        if layer is None or not 0 <= (layer := operator.index(layer)) < n_layers:
            raise CheckpointError(
                f"{name} exists once per layer: layer={layer} must be from 0 to {n_layers - 1}"
            )
        place = self._places[name]
        return place, place.offset + layer * place.stride, f"{name}, layer {layer}"

    def _read_into(self, array: npt.NDArray[Any], offset: int) -> None:
        """Fill a C-contiguous array from the file, in slices that any system reads whole."""
        if self._file.closed:
            raise CheckpointError(f"{self.path} is closed: open it again with load_checkpoint()")
        view = array.data.cast("B")
        with self._lock:
            self._file.seek(offset)
            done = 0
            while done < len(view):
                n = self._file.readinto(view[done : done + _SLICE_BYTES])  # type: ignore[attr-defined]
                if not n:
                    raise CheckpointError(
                        f"{self.path} now ends at or before byte {offset + done} of "
                        f"{self.n_bytes}: it changed since it was opened; load it again"
                    )
                done += n

    def _refuse_nonfinite(self, values: npt.NDArray[np.float32], label: str) -> None:
        # NaN passes through min and max, so two reductions do without a mask as
        # large as the tensor; the mask is made only to point at the culprit.
        with np.errstate(invalid="ignore"):
            if np.isfinite(values.min()) and np.isfinite(values.max()):
                return
        bad = np.argwhere(~np.isfinite(values))
        first = tuple(int(i) for i in bad[0])
        what = "NaN" if np.isnan(values[first]) else "infinite"
        raise CheckpointError(
            f"{self.path}: {label} holds {len(bad)} NaN or infinite value(s), the first "
            f"({what}) at index {first}: the training diverged or the file is corrupt; "
            f"export an earlier, healthy checkpoint"
        )


def load_checkpoint(path: str | PathLike[str], rope_theta: float = 10000.0) -> Checkpoint:
    """Open a llama2.c checkpoint and check its header and size.

    Parameters
    ----------
    path : path-like
        A ``.bin`` file that llama2.c's export.py wrote, of version 0, 1 or 2.
    rope_theta : float
        Base of the rotary embedding, which the file does not hold.

    Returns
    -------
    Checkpoint
        Weights are read, and checked for NaN, when :meth:`Checkpoint.tensor` asks.

    Raises
    ------
    CheckpointError
        If the file is missing (then also a FileNotFoundError), foreign, truncated,
        over-long, or ambiguous.
    """
    path = Path(path)
    file = _open(path)
    try:
        head = file.read(4096)
        n_bytes = file.seek(0, 2)
        version, config, group_size = _parse_header(path, head, n_bytes, rope_theta)
        if group_size is not None:
            _refuse_ambiguous(path, config, group_size)
        places, expected = _layout(config, version, group_size)
        checkpoint = Checkpoint(path, config, version, group_size, n_bytes, file, places)
        if n_bytes != expected:
            raise CheckpointError(_wrong_size(checkpoint, expected))
        return checkpoint
    except BaseException:
        file.close()
        raise


def _open(path: Path) -> BinaryIO:
    if path.is_dir():
        raise CheckpointError(
            f"{path} is a folder, not a checkpoint: give the path of the .bin file in it, "
            f"or export a Hugging Face folder {_EXPORT} --hf {path}"
        )
    try:
        return open(path, "rb", buffering=0)
    except FileNotFoundError as error:
        raise _CheckpointNotFoundError(
            f"there is no file {path}: check the path (it is relative to {Path.cwd()}) "
            f"or download the checkpoint first"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be opened: {error.strerror}") from error


def _parse_header(
    path: Path, head: bytes, n_bytes: int, rope_theta: float
) -> tuple[int, ModelConfig, int | None]:
    """Version, config and group size, of a header whose numbers are plausible."""
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
            f"known: export the model again {_EXPORT} --version 2"
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
    """The seven integers, or None if no model has such sizes."""
    if len(header) < _LEGACY_HEADER_BYTES:
        return None
    sizes: _Sizes = struct.unpack_from(_HEADER, header)
    for i, size in enumerate(sizes):
        magnitude = abs(size) if i == 5 and allow_negative_vocab else size
        if not 0 < magnitude <= _MAX_DIMENSION:
            return None
    return sizes


def _config(path: Path, sizes: _Sizes, tied: bool, rope_theta: float) -> ModelConfig:
    try:
        return ModelConfig(*sizes, tied, rope_theta)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _refuse_ambiguous(path: Path, config: ModelConfig, group_size: int) -> None:
    """Refuse groups that straddle rows.

    export.py backs its group size off until it divides dim, but never looks at
    hidden_dim; it then groups w2 across the ends of its rows. runq.c takes each row's
    first hidden_dim // group_size groups, indexes the scales accordingly and drops the
    rest. The file does not say which of the two was meant, so neither is guessed.
    """
    if group_size < 1:
        raise CheckpointError(
            f"{path}: the header's group size is {group_size}: it must be positive; the file "
            f"is corrupt; download or export it again"
        )
    if config.dim % group_size:
        culprit = f"dim {config.dim}"
    elif config.hidden_dim % group_size:
        culprit = f"hidden_dim {config.hidden_dim}"
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
        f"does), or as float {_EXPORT} --version 1"
    )


def _wrong_size(checkpoint: Checkpoint, expected: int) -> str:
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
        f"such sizes; export a model {_EXPORT} --checkpoint model.pt"
    )


_PICKLE_REMEDY = (
    "it holds a pickle, which can run any code, so it is never read; export it "
    f"{_EXPORT} --checkpoint model.pt"
)
_TEXT_REMEDY = "download the file itself (the 'raw' or 'resolve' link)"
_SIGNATURES: tuple[tuple[bytes, str, str | None], ...] = (
    (b"PK\x03\x04", "a zip archive, as torch.save writes (.pt, .pth)", _PICKLE_REMEDY),
    (b"GGUF", "a GGUF file of llama.cpp", f"export the original model {_EXPORT} --hf folder"),
    (b"tjgg", "a GGML file of llama.cpp", f"export the original model {_EXPORT} --hf folder"),
    (
        b"version https://git-lfs",
        "a git-lfs pointer, a text that stands for the file",
        "fetch the file itself with: git lfs pull",
    ),
    (b"\x1f\x8b", "gzip-compressed", "unpack it first with: gunzip"),
    (b"BZh", "bzip2-compressed", "unpack it first with: bunzip2"),
    (b"\xfd7zXZ", "xz-compressed", "unpack it first with: unxz"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed", "unpack it first with: unzstd"),
    (b"\x89HDF\r\n", "an HDF5 file", None),
    (b"\x93NUMPY", "a NumPy array", None),
    (b"\x7fELF", "a compiled program or library", None),
    (b"xclbin2\x00", "an overlay (.xclbin)", None),
)


def identify_foreign_file(head: bytes) -> tuple[str, str | None] | None:
    """Name a file that is neither checkpoint nor tokenizer by its first bytes.

    Parameters
    ----------
    head : bytes
        The first few kilobytes; fewer only if the file has fewer.

    Returns
    -------
    (what, remedy) or None
        ``what`` completes "is not ... but"; remedy is None where it depends on what the
        caller wanted. None if nothing is recognised.
    """
    if not head:
        return "an empty file", "download or export it again"
    for signature, what, remedy in _SIGNATURES:
        if head.startswith(signature):
            return what, remedy
    # Protocol 2 and later; the byte behind it is an opcode, and those are printable or
    # above 0x80 where a small integer has zeros.
    if head[0] == 0x80 and len(head) > 2 and 2 <= head[1] <= 5 and head[2] >= 0x28:
        return "a pickle, as old torch.save wrote (.pt, .pth)", _PICKLE_REMEDY
    if head[8:10] == b'{"' and int.from_bytes(head[:8], "little") < 1 << 32:
        return "a safetensors file", f"export the model's folder {_EXPORT} --hf folder"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text[:9].lower() == b"<!doctype" or text[:5].lower() == b"<html":
        return "an HTML page, often an error page that a download saved", _TEXT_REMEDY
    if text[:1] in (b"{", b"["):
        return "a JSON text, such as config.json or tokenizer.json", None
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head[:256]):
        start = head[:40].decode("ascii")
        return f"a text that starts {start!r}", _TEXT_REMEDY
    return None
