"""A Llama in a Hugging Face folder: config.json, and tensors in one safetensors file or several.

Hugging Face turns the first half of a head with the second, llama2.c each number with its
neighbour: rows of wq and wk are put into llama2.c's order here. Pickles are never read.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from llama_pynq.checkpoint.base import Checkpoint
from llama_pynq.checkpoint.config import (
    GLOBAL_TENSORS,
    LAYER_TENSORS,
    MAX_DIMENSION,
    NORMS,
    ModelConfig,
)
from llama_pynq.checkpoint.safetensors import Tensor, read_header
from llama_pynq.checkpoint.steady import SteadyFile
from llama_pynq.errors import CheckpointError
from llama_pynq.utils import strict_json
from llama_pynq.utils.bounded import read_file
from llama_pynq.utils.strict_json import shown

_MOST_JSON_BYTES = 16 << 20
_INDEX = "model.safetensors.index.json"
_ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM")
_EPSILON = 1e-5  # in the kernel, as in Llama 2

_NAMES = {
    "token_embedding_table": "model.embed_tokens.weight",
    "rms_final_weight": "model.norm.weight",
    "wcls": "lm_head.weight",
    "rms_att_weight": "model.layers.{}.input_layernorm.weight",
    "wq": "model.layers.{}.self_attn.q_proj.weight",
    "wk": "model.layers.{}.self_attn.k_proj.weight",
    "wv": "model.layers.{}.self_attn.v_proj.weight",
    "wo": "model.layers.{}.self_attn.o_proj.weight",
    "rms_ffn_weight": "model.layers.{}.post_attention_layernorm.weight",
    "w1": "model.layers.{}.mlp.gate_proj.weight",
    "w2": "model.layers.{}.mlp.down_proj.weight",
    "w3": "model.layers.{}.mlp.up_proj.weight",
}
"""llama2.c's names, and Hugging Face's."""

_TURNED = ("wq", "wk")


class _Shards:
    """The files of a folder that hold tensors, as one."""

    def __init__(self, files: Mapping[str, SteadyFile], config: bytes) -> None:
        self.files, self._config = dict(files), config

    def close(self) -> None:
        for file in self.files.values():
            file.close()

    @property
    def sha256(self) -> str:
        """SHA-256 of config.json and of the files' own, in the order of their names."""
        digest = hashlib.sha256(self._config)
        for name in sorted(self.files):
            digest.update(f"{name} {self.files[name].sha256}\n".encode())
        return digest.hexdigest()


class HuggingFaceCheckpoint(Checkpoint):
    """An open folder that holds a Llama.

    Parameters
    ----------
    path : Path
    config : ModelConfig
    shards : files
        Open, which the checkpoint owns.
    places : dict
        File and place of each tensor, by Hugging Face's names.
    n_bytes : int
    metadata : mapping
        ``bos_token_id`` and ``eos_token_id`` of the model's configurations.
    chat_template : str
        Empty if the folder has none.
    """

    group_size = 32  # of what is quantised from these floats

    def __init__(
        self,
        path: Path,
        config: ModelConfig,
        shards: _Shards,
        places: Mapping[str, tuple[str, Tensor]],
        n_bytes: int,
        metadata: Mapping[str, Any],
        chat_template: str,
    ) -> None:
        super().__init__(path, config, shards, n_bytes)
        self._files, self._places = shards.files, dict(places)
        self.metadata, self.chat_template = metadata, chat_template

    def tensor(self, name: str, layer: int | None = None) -> npt.NDArray[np.float32]:
        """Read one tensor as float32: see `Checkpoint.tensor`."""
        place, file, label = self._place(name, layer)
        rows = place.shape[0]
        if name in GLOBAL_TENSORS and name not in NORMS:
            rows = self.config.vocab_size
        values = self._float32(place, file, 0, rows, label)
        if name in _TURNED:
            heads = self.config.n_heads if name == "wq" else self.config.n_kv_heads
            values = _pairs(values, heads)
        return values

    def row_slices(
        self, name: str, layer: int | None = None, step: int = 1024
    ) -> Iterator[npt.NDArray[np.float32]]:
        """Read one matrix in slices of rows: see `Checkpoint.row_slices`."""
        if name in _TURNED:
            yield from super().row_slices(name, layer, step)
            return
        place, file, label = self._place(name, layer)
        rows = self.config.vocab_size if name in GLOBAL_TENSORS else place.shape[0]
        for begin in range(0, rows, step):
            yield self._float32(place, file, begin, min(begin + step, rows), label)

    def holds_int8(self, name: str, layer: int | None = None) -> bool:
        """Whether `quantized` reads a matrix: never, these files hold floats."""
        return False

    def kind_of(self, name: str, layer: int | None = None) -> str:
        """Type of a tensor, such as BF16."""
        return self._place(name, layer)[0].dtype

    def quantized(
        self, name: str, layer: int | None = None
    ) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
        """Raise CheckpointError: these files hold floats."""
        _, _, label = self._place(name, layer)
        raise CheckpointError(f"{self.path}: {label} holds floats: read it with tensor()")

    def _place(self, name: str, layer: int | None) -> tuple[Tensor, SteadyFile, str]:
        layer = self._check_name(name, layer)
        stored = "token_embedding_table" if name == "wcls" and self.config.tied else name
        label = _NAMES[stored].format(layer)
        file, place = self._places[label]
        return place, self._files[file], label

    def _float32(
        self, place: Tensor, file: SteadyFile, begin: int, end: int, label: str
    ) -> npt.NDArray[np.float32]:
        """Rows `begin` to `end`, or elements of a vector."""
        row = place.n_bytes // place.shape[0]
        data = np.empty((end - begin) * row, np.uint8)
        file.read_into(data.data.cast("B"), place.offset + begin * row)
        values = _READ[place.dtype](data)
        self._refuse_nonfinite(values, label)
        return values.reshape(end - begin, *place.shape[1:])


_READ = {
    "F32": lambda data: data.view("<f4").astype(np.float32),
    "F16": lambda data: data.view("<f2").astype(np.float32),
    "BF16": lambda data: (data.view("<u2").astype(np.uint32) << 16).view(np.float32),
}


def _pairs(weight: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Put the rows of each head into llama2.c's order: i and i + half become neighbours."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows, columns)


# ---- opening --------------------------------------------------------------------------


def read_folder(path: Path, rope_theta: float | None) -> HuggingFaceCheckpoint:
    """Open a folder, and check that it holds a Llama.

    Parameters
    ----------
    path : Path
    rope_theta : float or None
        Base of the rotary embedding instead of the folder's.

    Returns
    -------
    HuggingFaceCheckpoint

    Raises
    ------
    CheckpointError
        If a file is missing or damaged, or the model computes otherwise than Llama 2.
    """
    data = _read(path, "config.json")
    if data is None:
        raise CheckpointError(
            f"{path} is a folder, not a checkpoint: it has no config.json. Give a model's file, or "
            "a Hugging Face folder with config.json, its safetensors files and its tokenizer"
        )
    fields = _object(path, "config.json", data)
    open_files: dict[str, BinaryIO] = {}
    try:
        try:
            config = _config(fields, rope_theta)
        except CheckpointError as error:  # of ModelConfig, which knows no path
            raise ValueError(str(error)) from None
        files, places = {}, {}
        for name in _file_names(path):
            open_files[name] = open(path / name, "rb", buffering=0)
            header = read_header(open_files[name], path / name)
            n_bytes = open_files[name].seek(0, 2)
            files[name] = SteadyFile(path / name, open_files[name], b"", n_bytes)
            for tensor, place in header.tensors.items():
                if tensor in places:
                    raise ValueError(f"the tensor {tensor} stands in two files")
                places[tensor] = name, place
        _check_tensors(places, config)
        generation = _read(path, "generation_config.json")
        chosen = {**fields, **(_object(path, "generation_config.json", generation)
                               if generation else {})}  # fmt: skip
        metadata = {key: chosen.get(key) for key in ("bos_token_id", "eos_token_id")}
        total = sum(place.n_bytes for _, place in places.values())
        return HuggingFaceCheckpoint(
            path, config, _Shards(files, data), places, total, metadata, _chat_template(path)
        )
    except BaseException as error:
        for file in open_files.values():
            file.close()
        if isinstance(error, OSError):
            raise CheckpointError(f"{path}: {error}") from error
        if isinstance(error, ValueError) and not isinstance(error, CheckpointError):
            raise CheckpointError(f"{path}: {error}") from None
        raise


def _chat_template(path: Path) -> str:
    """The folder's template: of a file of its own, or of the tokenizer's configuration."""
    alone = _read(path, "chat_template.jinja")
    if alone is not None:
        return alone.decode("utf-8", "replace")
    data = _read(path, "tokenizer_config.json")
    template = _object(path, "tokenizer_config.json", data).get("chat_template") if data else None
    if isinstance(template, list):  # several, by name
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else ""


def _read(path: Path, name: str) -> bytes | None:
    """Content of a small file of the folder; None if there is none."""
    try:
        return read_file(path / name, _MOST_JSON_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{path / name} cannot be read: {error.strerror or error}") from error


def _object(path: Path, name: str, data: bytes) -> dict[str, Any]:
    try:
        fields = strict_json.parse(data)
    except ValueError as error:
        raise CheckpointError(f"{path / name} is damaged: {error}") from None
    if not isinstance(fields, dict):
        raise CheckpointError(f"{path / name} is damaged: it is {shown(fields)}, not an object")
    return fields


def _file_names(path: Path) -> list[str]:
    """Names of the folder's safetensors files.

    Raises
    ------
    ValueError
        If there are none, or the index names others than plain files.
    """
    index = _read(path, _INDEX)
    if index is not None:
        listed = _object(path, _INDEX, index).get("weight_map")
        if not isinstance(listed, dict) or not listed:
            raise ValueError(f"{_INDEX} has no weight_map")
        names = sorted({str(name) for name in listed.values()})
        for name in names:
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise ValueError(f"{_INDEX} names the file {shown(name)}")
            if not (path / name).is_file():
                raise ValueError(f"{name} is missing, which {_INDEX} names: download it, too")
        return names
    if (path / "model.safetensors").is_file():
        return ["model.safetensors"]
    pickles = [file.name for pattern in ("*.bin", "*.pth", "*.pt") for file in path.glob(pattern)]
    if pickles:
        raise ValueError(
            f"it holds {sorted(pickles)[0]}, a pickle, which can run any code and is never read. "
            'Where you trust it, convert the folder: python -c "from transformers import '
            "AutoModelForCausalLM as M; M.from_pretrained('FOLDER').save_pretrained('NEW')\""
        )
    raise ValueError("there is no model.safetensors")


def _config(fields: Mapping[str, Any], rope_theta: float | None) -> ModelConfig:
    architectures = fields.get("architectures")
    named = architectures[0] if isinstance(architectures, list) and architectures else None
    if named not in _ARCHITECTURES:
        raise ValueError(
            f"its architecture is {shown(named)}, and {' and '.join(_ARCHITECTURES)} are read"
        )

    def whole(key: str, default: int | None = None) -> int:
        value = fields.get(key)
        value = default if value is None else value
        if type(value) is not int or not 0 < value <= MAX_DIMENSION:
            raise ValueError(f"{key} is {shown(value)}: it must be a whole number from 1")
        return value

    dim, n_heads = whole("hidden_size"), whole("num_attention_heads")
    rope = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise ValueError(f"rope_scaling is {shown(rope)}: it must be an object")
    theta = rope_theta
    if theta is None:
        theta = rope.get("rope_theta", fields.get("rope_theta", 10000.0))
    if type(theta) not in (int, float):
        raise ValueError(f"rope_theta is {shown(theta)}: it must be a number")
    seq_len = whole("max_position_embeddings", 2048)
    window = fields.get("sliding_window")
    if type(window) is int and window > 0:
        seq_len = min(seq_len, window)  # up to there, every position sees all before it
    config = ModelConfig(
        dim=dim,
        hidden_dim=whole("intermediate_size"),
        n_layers=whole("num_hidden_layers"),
        n_heads=n_heads,
        n_kv_heads=whole("num_key_value_heads", n_heads),
        vocab_size=whole("vocab_size"),
        seq_len=seq_len,
        tied=fields.get("tie_word_embeddings", False) is True,
        rope_theta=float(theta),
    )
    _refuse_others(fields, config)
    return replace(config, rope_divisors=_rope_divisors(rope, config))


def _rope_divisors(rope: Mapping[str, Any], config: ModelConfig) -> tuple[float, ...] | None:
    """Divisors of a scaled rotary embedding: "linear", or "llama3".

    References
    ----------
    transformers, modeling_rope_utils.py, _compute_llama3_parameters()
    """
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None

    def number(key: str) -> float:
        value: Any = rope.get(key)
        if type(value) not in (int, float) or value <= 0:
            raise ValueError(f"rope_scaling: {key} is {shown(value)}: it must be positive")
        return float(value)

    if kind == "linear":
        return (number("factor"),) * (config.head_size // 2)
    if kind != "llama3":
        raise ValueError(
            f"its rotary embedding is scaled ({shown(kind)}), which is not computed here"
        )
    factor, low, high, length = map(number, (
        "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
    ))  # fmt: skip
    if low == high:
        raise ValueError("rope_scaling: low_freq_factor and high_freq_factor are equal")
    divisors = []
    for i in range(config.head_size // 2):
        wavelength = 2 * math.pi * config.rope_theta ** (2 * i / config.head_size)
        smooth = (length / wavelength - low) / (high - low)
        smooth = min(max(smooth, 0.0), 1.0)
        divisors.append(1 / ((1 - smooth) / factor + smooth))
    return tuple(divisors)


def _refuse_others(fields: Mapping[str, Any], config: ModelConfig) -> None:
    """Raise ValueError for what the kernel computes otherwise."""
    epsilon = fields.get("rms_norm_eps", 1e-6)
    if type(epsilon) is not float or epsilon != _EPSILON:
        raise ValueError(
            f"its norms add {shown(epsilon)} to the mean square (rms_norm_eps), the kernel "
            f"{_EPSILON:g}"
        )
    if fields.get("head_dim") not in (None, config.head_size):
        raise ValueError(
            f"head_dim is {shown(fields['head_dim'])}: the kernel's heads have dim / heads values, "
            f"{config.head_size} here"
        )
    if fields.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act is {shown(fields['hidden_act'])}, and the kernel computes "
                         "silu")  # fmt: skip
    for key in ("attention_bias", "mlp_bias", "quantization_config"):
        if fields.get(key):
            raise ValueError(f"it has {key}, which the kernel does not compute with")


def _check_tensors(places: Mapping[str, tuple[str, Tensor]], config: ModelConfig) -> None:
    """Raise ValueError unless the files hold the tensors of the shape, and no others."""
    expected = set()
    for name in (*GLOBAL_TENSORS, *LAYER_TENSORS):
        for layer in range(config.tensor_copies(name)) if config.stores(name) else ():
            label, shape = _NAMES[name].format(layer), config.tensor_shape(name)
            if label not in places:
                raise ValueError(f"there is no tensor {label}")
            place = places[label][1]
            if place.shape != shape:
                raise ValueError(f"{label} has the shape {place.shape}, and not {shape}")
            if place.dtype not in _READ:
                raise ValueError(f"{label} is of dtype {place.dtype}, and {', '.join(_READ)} are "
                                 "read")  # fmt: skip
            expected.add(label)
    for label in places:
        unused = label.endswith("rotary_emb.inv_freq") or (label == _NAMES["wcls"] and config.tied)
        if label not in expected and not unused:
            raise ValueError(
                f"it has a tensor {label}, which Llama 2 has not: the kernel does not compute with "
                "it"
            )
