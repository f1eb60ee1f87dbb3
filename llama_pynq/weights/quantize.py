"""Quantise weights to int8 or int4 groups with one float32 scale each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from llama_pynq.checkpoint.base import Checkpoint
from llama_pynq.checkpoint.config import GLOBAL_TENSORS, LAYER_TENSORS, NORMS
from llama_pynq.errors import LimitError
from llama_pynq.kernel.abi import MAX_GROUP, MIN_GROUP, WEIGHT_BITS
from llama_pynq.kernel.stages import QuantizedMatrix

_SLICE_BYTES = 8 << 20
_TINY_SCALE = np.float32(2.0**-100)

_INT4_RANGES = tuple(np.float32(r) for r in (-8.0, -7.5, -7.0, -6.5, 6.5, 7.0, 7.5, 8.0))
"""Candidates for the quantised value of an int4 group's largest weight; least error wins."""


def _round_groups(grouped: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Quantise (..., group) float32 to integers (as float32) and (...) scales."""
    if bits == 8:
        s = np.abs(grouped).max(axis=-1) / np.float32(127)
        s[s < _TINY_SCALE] = 0
        return np.rint(_divide_by(grouped, s)), s
    at = np.abs(grouped).argmax(axis=-1)[..., None]
    largest = np.take_along_axis(grouped, at, axis=-1)[..., 0]
    shares = _divide_by(grouped, largest)  # -1 to 1: squares cannot overflow
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
    """Quantise to symmetric int8 or int4, one scale per group along the input.

    Parameters
    ----------
    w : (out, in) float32
        Finite.
    group_size : int
    bits : {8, 4}
        An int8 group's scale is its largest magnitude / 127. An int4 group's scale is its
        largest weight / the value from -8 to 8, at least 6.5 in magnitude, with the least squared
        error of those tried; it may be negative.

    Returns
    -------
    QuantizedMatrix
        Zero-padded to whole groups. Groups whose scale is below 2^-100 become zero, so that
        they cause no subnormal products in the kernel.

    References
    ----------
    llama2.c, export.py, quantize_q80()
    """
    step = _rows_of_a_slice(w.shape[1])
    slices = (w[first : first + step] for first in range(0, len(w), step))
    return _quantize_slices(w.shape, slices, group_size, bits)


def _rows_of_a_slice(columns: int) -> int:
    return max(1, _SLICE_BYTES // (4 * columns))


def _quantize_slices(
    shape: tuple[int, ...],
    slices: Iterable[np.ndarray],
    group_size: int,
    bits: int,
    errors: np.ndarray | None = None,
) -> QuantizedMatrix:
    """Quantise a matrix that comes in slices of rows; sum its squared errors and weights.

    The temporaries of a whole embedding table would take several times the memory of the packed
    model.
    """
    out, n = shape
    groups = -(-n // group_size)
    q = np.empty((out, groups, group_size), np.int8)
    scale = np.empty((out, groups), np.float32)
    first = 0
    for w in slices:
        rows = slice(first, first + len(w))
        part = np.zeros((len(w), groups * group_size), np.float32)
        part[:, :n] = w
        grouped = part.reshape(-1, groups, group_size)
        q[rows], scale[rows] = _round_groups(grouped, bits)
        if errors is not None:
            left = (grouped - q[rows] * scale[rows][..., None]).ravel()
            errors += float(left @ left), float(part.ravel() @ part.ravel())
        first += len(w)
    return QuantizedMatrix(q.reshape(out, -1), scale, bits)


def _relative(error: float, weight: float) -> str:
    """Root of a squared error over squared weights, always 7 characters.

    A packed file's header has to have its length before the weights are read.
    """
    return f"{np.sqrt(error / weight):.1e}" if weight else "unknown"


class QuantizedModel:
    """Checkpoint in groups that the kernel can read, quantised one tensor at a time.

    Parameters
    ----------
    checkpoint : Checkpoint
    group_size : {32, 64}, optional
        Default: 64 or 32, the largest that divides the checkpoint's own group size; else 64,
        as in llama2.c.
    bits : {8, 4}
        4 halves the bytes read per token; in groups of 64 only.

    Attributes
    ----------
    config : ModelConfig
    group_size : int
    weight_bits : int
    chat_template : str
        The checkpoint's; empty if it has none.
    exact : bool
        Whether a version 2 file's int8 values and scales are used as they are.
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
        self.chat_template = checkpoint.chat_template
        stored = checkpoint.group_size
        self.weight_bits = bits
        if bits == 4:
            group_size = MAX_GROUP
        elif group_size is None and stored is not None:
            # A larger group is split into several groups with the same scale.
            for size in (MAX_GROUP, MIN_GROUP):
                if stored % size == 0:
                    group_size = size
                    break
        self.group_size = group_size or MAX_GROUP
        self.exact = bits == 8 and stored is not None and stored % self.group_size == 0
        # Squared error and squared weight of each type that is requantised.
        self._errors = {kind: np.zeros(2) for kind in self._kinds(exact=False)}

    def _matrices(self) -> Iterator[tuple[str, int | None]]:
        """Name and layer of every matrix."""
        for name in (*GLOBAL_TENSORS, *LAYER_TENSORS):
            if name in NORMS or not self.config.stores(name):
                continue
            layers = range(self.config.n_layers) if name in LAYER_TENSORS else (None,)
            yield from ((name, layer) for layer in layers)

    def _kinds(self, exact: bool) -> list[str]:
        """Types of the file's matrices that are used as they are, or that are requantised."""
        kinds = {
            self._checkpoint.kind_of(name, layer)
            for name, layer in self._matrices()
            if self._as_it_is(name, layer) == exact
        }
        return sorted(kind for kind in kinds if kind is not None)

    def _as_it_is(self, name: str, layer: int | None) -> bool:
        """Whether a matrix's integers are used as they are."""
        return self.exact and self._checkpoint.holds_int8(name, layer)

    @property
    def note(self) -> str:
        """Origin of the weights, as text for the user.

        The errors of a GGUF file's types are known once every matrix was read.
        """
        stored, exact = self._checkpoint.group_size, self._kinds(exact=True)
        if exact or self._errors:
            errors = ", ".join(
                f"{kind} (relative error {_relative(*sums)})" for kind, sums in self._errors.items()
            )
            return "; ".join(
                part
                for part in (
                    f"{', '.join(exact)} used as they are" if exact else "",
                    f"{errors} quantised to int{self.weight_bits} in groups of {self.group_size}"
                    if errors
                    else "",
                )
                if part
            )
        if stored is None or self.weight_bits == 4:
            kind = "float32" if stored is None else f"int8 (groups of {stored})"
            return (
                f"{kind} weights quantised to int{self.weight_bits} in groups of {self.group_size}"
            )
        if self.exact:
            straddles = not self._checkpoint.holds_int8("w2", 0)
            return f"int8 weights used as they are (groups of {stored})" + (
                ", but w2 requantised, whose groups straddle rows" if straddles else ""
            )
        return (
            f"int8 weights requantised from groups of {stored} to groups of {self.group_size}: the "
            "kernel reads 32 or 64"
        )

    def freeze(self) -> None:
        """See `Checkpoint.freeze`."""
        self._checkpoint.freeze()

    def matrix(self, name: str, layer: int | None = None) -> QuantizedMatrix:
        """One weight matrix, (out, groups * group_size) int8 with its scales.

        Parameters
        ----------
        name : str
            One of LAYER_TENSORS or GLOBAL_TENSORS, without the norms.
        layer : int, optional
            Needed for LAYER_TENSORS.
        """
        if not self._as_it_is(name, layer):
            shape = self.config.tensor_shape(name)
            slices = self._checkpoint.row_slices(name, layer, _rows_of_a_slice(shape[1]))
            errors = self._errors.get(self._checkpoint.kind_of(name, layer) or "")
            return _quantize_slices(shape, slices, self.group_size, self.weight_bits, errors)
        q, scale = self._checkpoint.quantized(name, layer)
        repeat = self._checkpoint.group_size // self.group_size  # type: ignore[operator]
        scale = np.repeat(scale, repeat, axis=1)
        dead = np.abs(scale) < _TINY_SCALE
        if dead.any():
            scale = np.where(dead, np.float32(0), scale)
        return QuantizedMatrix(q, scale)

    def vector(self, name: str, layer: int | None = None) -> np.ndarray:
        """One norm weight, (dim,) float32.

        Parameters
        ----------
        name : str
            One of NORMS.
        layer : int, optional
            Needed for the norms of a layer.
        """
        return self._checkpoint.tensor(name, layer)
