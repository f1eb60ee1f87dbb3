"""Base class of the checkpoints: what packing, the references and the engine read of a model."""

from __future__ import annotations

import operator
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from llama_pynq.checkpoint.config import GLOBAL_TENSORS, LAYER_TENSORS, ModelConfig
from llama_pynq.errors import CheckpointError


class Source(Protocol):
    """What holds a checkpoint's tensors: an open file, or several."""

    @property
    def sha256(self) -> str:
        """SHA-256 of the content, as hex."""

    def close(self) -> None:
        """Close the files."""


class Checkpoint(ABC):
    """An open checkpoint, as :func:`llama_pynq.load_checkpoint` returns it.

    Holds a file handle and the offsets, never a weight. Reads from several threads
    are serialised. Use it as a context manager, or call :meth:`close`.

    Parameters
    ----------
    path : Path
    config : ModelConfig
    source : file
        Open, one or several, which the checkpoint owns.
    n_bytes : int
        Size of the file.

    Attributes
    ----------
    path : Path
    config : ModelConfig
    n_bytes : int
    group_size : int or None
        Weights of a matrix that share a scale; None for files of floats.
    metadata : mapping
        What the file says beside its shape; empty for llama2.c's.
    chat_template : str
        Jinja template of a conversation; empty if the file has none.
    """

    group_size: int | None = None
    metadata: Mapping[str, Any] = {}
    chat_template: str = ""

    def __init__(self, path: Path, config: ModelConfig, source: Source, n_bytes: int) -> None:
        self.path, self.config, self.n_bytes = path, config, n_bytes
        self._source = source
        # Notebooks rarely close anything: the finalizer closes the file with the object, so
        # that Python does not warn about a leaked handle.
        self._finalizer = weakref.finalize(self, source.close)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}, {self.config})"

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

    @property
    def sha256(self) -> str:
        """SHA-256 of the file's content, as hex; computed on first use, in slices.

        From then on, a read is of the content that was hashed, or an error.
        """
        return self._source.sha256

    def freeze(self) -> None:
        """Hash the file: from now on, a read is of the content it has now, or an error."""
        _ = self.sha256

    def cut_vocab(self, vocab_size: int) -> None:
        """Leave out rows of the vocabulary that pad it beyond its tokenizer.

        `config`, the token embedding and the classifier then have `vocab_size` rows.

        Parameters
        ----------
        vocab_size : int
            At most that of `config`.

        Raises
        ------
        CheckpointError
            If the vocabulary has no such rows.
        """
        if not 0 < vocab_size <= self.config.vocab_size:
            raise CheckpointError(
                f"{self.path} has {self.config.vocab_size} rows of vocabulary: it cannot be cut to "
                f"{vocab_size}"
            )
        self.config = replace(self.config, vocab_size=vocab_size)

    def cut_context(self, seq_len: int) -> None:
        """Shorten the context; the weights do not depend on its length.

        Parameters
        ----------
        seq_len : int
            At most that of `config`.

        Raises
        ------
        CheckpointError
            If the context is not that long.
        """
        if not 0 < seq_len <= self.config.seq_len:
            raise CheckpointError(
                f"{self.path} has a context of {self.config.seq_len} tokens: it cannot be cut to "
                f"{seq_len}"
            )
        self.config = replace(self.config, seq_len=seq_len)

    @abstractmethod
    def tensor(self, name: str, layer: int | None = None) -> npt.NDArray[np.float32]:
        """Read one tensor as float32; integers are dequantised.

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
            the checkpoint is closed, or the file has shrunk or was changed after `sha256`.
        """

    def row_slices(
        self, name: str, layer: int | None = None, step: int = 1024
    ) -> Iterator[npt.NDArray[np.float32]]:
        """Read one matrix in slices of rows, where the file allows without holding all of it.

        Parameters
        ----------
        name, layer
            As for :meth:`tensor`, without the norms.
        step : int
            Rows of a slice; the last may have fewer.

        Yields
        ------
        (step, in) float32
        """
        whole = self.tensor(name, layer)
        for begin in range(0, len(whole), step):
            yield whole[begin : begin + step]

    @abstractmethod
    def holds_int8(self, name: str, layer: int | None = None) -> bool:
        """Whether `quantized` reads a matrix.

        Parameters
        ----------
        name, layer
            As for :meth:`tensor`, without the norms.
        """

    def kind_of(self, name: str, layer: int | None = None) -> str | None:
        """Type of a tensor by the name that its format gives it; None where all are of one type.

        Parameters
        ----------
        name, layer
            As for :meth:`tensor`.
        """
        return None

    @abstractmethod
    def quantized(
        self, name: str, layer: int | None = None
    ) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
        """Read one matrix as the file has it, without dequantising.

        Parameters
        ----------
        name, layer
            As for :meth:`tensor`, without the norms.

        Returns
        -------
        q : (out, in) int8
        scale : (out, in // group_size) float32
            weight = q * scale.

        Raises
        ------
        CheckpointError
            As for :meth:`tensor`; and if this tensor is not held as int8 in groups.
        """

    def _check_name(self, name: str, layer: int | None) -> int | None:
        """Return the layer as an int.

        Raises
        ------
        CheckpointError
            If there is no such tensor or layer.
        """
        if name in GLOBAL_TENSORS:
            if layer is not None:
                raise CheckpointError(f"{name} exists once: read it without layer={layer}")
            return None
        if name not in LAYER_TENSORS:
            known = ", ".join((*GLOBAL_TENSORS, *LAYER_TENSORS))
            raise CheckpointError(f"no tensor is named {name!r}: the names are {known}")
        n_layers = self.config.n_layers
        if layer is None or not 0 <= (layer := operator.index(layer)) < n_layers:
            raise CheckpointError(
                f"{name} exists once per layer: layer={layer} must be from 0 to {n_layers - 1}"
            )
        return layer

    def _refuse_nonfinite(self, values: npt.NDArray[np.float32], label: str) -> None:
        # min and max propagate NaN, so two reductions replace a mask as large as the tensor.
        # The mask is computed only to locate the first bad value.
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
