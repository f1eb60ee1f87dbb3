"""Load a model from files onto the device, as a `Llama`."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_pynq.checkpoint.base import Checkpoint
from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.checkpoint.load import load_checkpoint
from llama_pynq.device.model_memory import check_fits
from llama_pynq.energy import EnergyMeter, check_meter
from llama_pynq.engine.llama import Llama
from llama_pynq.errors import DeviceMemoryError, LimitError, RequestError, TokenizerError
from llama_pynq.kernel.abi import KV_BITS
from llama_pynq.kernel.limits import KernelLimits, check_limits
from llama_pynq.models import BUNDLED
from llama_pynq.tokenizer.base import MAX_FILE_BYTES, Tokenizer
from llama_pynq.tokenizer.gguf import tokenizer_file
from llama_pynq.tokenizer.huggingface import with_ends
from llama_pynq.tokenizer.load import load_tokenizer, tokenizer_from_bytes
from llama_pynq.utils.bounded import read_file
from llama_pynq.utils.files import user_path
from llama_pynq.utils.validate import positive_number, whole_number
from llama_pynq.weights.packed import PackedModel, is_packed, open_packed, pack_cached

if TYPE_CHECKING:
    from llama_pynq.device.kernel_driver import KernelDriver

_DEFAULT_SLOTS = 4
_MAX_SLOTS = 1024


def load(
    driver: KernelDriver,
    path: str | Path | None = None,
    tokenizer: str | Path | None = None,
    *,
    group_size: int | None = None,
    weight_bits: int | None = None,
    kv_bits: int = 32,
    slots: int | None = None,
    rope_theta: float | None = None,
    reading: str | None = None,
    context: int | None = None,
    chat_template: str | None = None,
    power: EnergyMeter | None = None,
) -> Llama:
    """Load a model onto the driver's device; arguments as for `LlamaDriver.load_model`."""
    start = time.perf_counter()
    check_meter(power)
    limits = driver.limits
    if slots is not None and not 1 <= (slots := whole_number("slots", slots)) <= _MAX_SLOTS:
        raise RequestError(f"slots is {slots!r}: it must be 1 to {_MAX_SLOTS}")
    if kv_bits not in KV_BITS:
        raise RequestError(f"kv_bits is {kv_bits!r}: it must be 32 (float32) or 8 (int8)")
    if rope_theta is not None:
        rope_theta = positive_number("rope_theta", rope_theta)
    source = BUNDLED / "stories.bin" if path is None else user_path(path)
    repack: Callable[[], PackedModel] | None = None

    def fitted(config: ModelConfig) -> ModelConfig:
        return replace(config, seq_len=context_of(config, limits, context, source)[0])

    if os.path.isfile(source) and is_packed(source):
        packed = open_packed(source)
        _check_packed(
            packed, group_size=group_size, weight_bits=weight_bits, rope_theta=rope_theta,
            reading=reading,
        )  # fmt: skip
        text = _tokenizer_of(source, packed.tokenizer, tokenizer, bundled=False)
        _check_packed_vocab(packed, text)
        shorter = context_of(packed.config, limits, context, source)[1]
    else:
        with load_checkpoint(source, rope_theta, reading) as checkpoint:
            shorter = context_of(checkpoint.config, limits, context, source)[1]
            check_limits(fitted(checkpoint.config), limits)  # before a tokenizer is asked for
            inside = b"" if tokenizer is not None else tokenizer_inside(checkpoint)
        text = _tokenizer_of(source, inside, tokenizer, bundled=path is None)

        def pack(rebuild: bool = False) -> PackedModel:
            with load_checkpoint(source, rope_theta, reading) as checkpoint:
                check_limits(fitted(checkpoint.config), limits)
                note = cut_padding(checkpoint, text)
                if note and not rebuild:
                    warnings.warn(note, stacklevel=5)  # of the caller of overlay.load_model()
                return pack_cached(
                    checkpoint, limits.target, group_size, weight_bits or 8, rebuild=rebuild
                )

        packed = pack()

        def repack() -> PackedModel:
            again = pack(rebuild=True)
            return replace(again, config=fitted(again.config))

    if shorter:
        warnings.warn(shorter, stacklevel=4)  # of the caller of overlay.load_model()
    packed = replace(packed, config=fitted(packed.config))
    llama = Llama(driver, text, packed, repack, kv_bits, chat_template, source.name)
    try:
        llama.upload(slots or min(_DEFAULT_SLOTS, limits.max_rows))
    except DeviceMemoryError:
        if slots is not None:
            raise
        llama.upload(1)
    end = time.perf_counter()
    llama.load_seconds = end - start
    if power is not None:
        power.mark("load", start, end)
    return llama


def packed_problem(
    packed: PackedModel,
    limits: KernelLimits | None,
    tokenizer: Tokenizer | None,
    context: int | None,
    **asked: Any,
) -> str | None:
    """Why a packed file cannot be loaded; None if nothing is known against it.

    Parameters
    ----------
    packed : PackedModel
    limits : KernelLimits or None
        Of the kernel, if they are known.
    tokenizer : Tokenizer or None
        Instead of the file's own.
    context : int or None
        As for `load`.
    **asked
        The arguments group_size, weight_bits, rope_theta and reading.
    """
    try:
        _check_packed(packed, **asked)
        seq_len, _ = context_of(packed.config, limits, context, packed.path)
        packed = replace(packed, config=replace(packed.config, seq_len=seq_len))
        if tokenizer is None and packed.tokenizer:
            tokenizer = tokenizer_from_bytes(packed.tokenizer, packed.path)
        if tokenizer is not None:
            _check_packed_vocab(packed, tokenizer)
        if limits is not None:
            check_fits(packed, limits)
    except (RequestError, TokenizerError, LimitError) as error:
        return str(error)
    return None


def _check_packed_vocab(packed: PackedModel, text: Tokenizer) -> None:
    """Raise if a packed file has other rows of vocabulary than the tokenizer has tokens."""
    text.check_vocab(packed.config.vocab_size)
    if packed.config.vocab_size > text.vocab_size:
        raise TokenizerError(
            f"{packed.path} was packed with {packed.config.vocab_size} rows of vocabulary, and the "
            f"tokenizer {text.path} has {text.vocab_size}: pack the checkpoint again with it, "
            "llama-pynq pack FILE --model ... --tokenizer ..., which leaves out the others"
        )


def _check_packed(packed: PackedModel, reading: str | None, **asked: float | None) -> None:
    """Raise if an argument contradicts the packed file."""
    if reading is not None:
        raise RequestError(
            f"reading is {reading!r}, but {packed.path} is packed: it says how to read a "
            "checkpoint. Leave it out"
        )
    for name, has, how in (
        ("group_size", packed.group_size, "in groups of "),
        ("weight_bits", packed.weight_bits, "with "),
        ("rope_theta", packed.config.rope_theta, "for "),
    ):
        if asked[name] not in (None, has):
            raise RequestError(
                f"{name} is {asked[name]}, but {packed.path} is packed {how}{has}: leave {name} "
                "out, or pack the checkpoint again"
            )


def context_of(
    config: ModelConfig, limits: KernelLimits | None, asked: int | None, path: Path
) -> tuple[int, str]:
    """The context that a model is loaded with.

    Parameters
    ----------
    config : ModelConfig
        The model's own shape.
    limits : KernelLimits or None
        Of the kernel, if they are known.
    asked : int or None
        What the user asked for.
    path : Path
        The model's file, for messages.

    Returns
    -------
    seq_len : int
        As asked; by default the model's own, or the kernel's limit if that is shorter.
    note : str
        For the user, if the kernel's limit counts; else empty.

    Raises
    ------
    RequestError
        If the context asked for is longer than the model's, or than the kernel's limit.
    """
    longest = config.seq_len if limits is None else min(config.seq_len, limits.max_seq_len)
    if asked is not None:
        asked = whole_number("context", asked)
        if not 1 <= asked <= longest:
            whose = f"the context of {path}"
            if limits is not None and longest < config.seq_len:
                whose = f"the limit of the kernel on {limits.board}"
            raise RequestError(f"context is {asked}: it must be 1 to {longest}, {whose}")
        return asked, ""
    if limits is None or longest == config.seq_len:
        return longest, ""
    return longest, (
        f"{path} has a context of {config.seq_len} tokens, the kernel on {limits.board} takes "
        f"{longest} at most: it is loaded with that. Give context={longest}, or less, to load it "
        "without this warning"
    )


def tokenizer_inside(checkpoint: Checkpoint) -> bytes:
    """Content of a tokenizer file with the vocabulary that a checkpoint holds; empty for none.

    Raises
    ------
    TokenizerError
        If the vocabulary cannot be read.
    """
    if "tokenizer.ggml.model" in checkpoint.metadata:
        return tokenizer_file(checkpoint.metadata, checkpoint.path)
    if not checkpoint.path.is_dir():
        return b""
    path, model = checkpoint.path / "tokenizer.json", checkpoint.path / "tokenizer.model"
    try:
        if path.is_file():
            data = read_file(path, MAX_FILE_BYTES)
            metadata = checkpoint.metadata
            return with_ends(data, metadata.get("bos_token_id"), metadata.get("eos_token_id"))
        return read_file(model, MAX_FILE_BYTES) if model.is_file() else b""
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{path} cannot be read: {error}") from None


def cut_padding(checkpoint: Checkpoint, tokenizer: Tokenizer) -> str:
    """Cut a model's vocabulary to its tokenizer's: no token without a piece is then sampled.

    Returns
    -------
    str
        What was left out, for the user; empty if nothing was.

    Raises
    ------
    TokenizerError
        If model and tokenizer do not belong together.
    """
    rows, tokens = checkpoint.config.vocab_size, tokenizer.vocab_size
    tokenizer.check_vocab(rows)
    if rows == tokens:
        return ""
    checkpoint.cut_vocab(tokens)
    return (
        f"{checkpoint.path} has {rows} rows of vocabulary, its tokenizer {tokens} tokens: the last "
        f"{rows - tokens} rows have no token, and are left out"
    )


def _tokenizer_of(source: Path, inside: bytes, path: str | Path | None, bundled: bool) -> Tokenizer:
    if path is None and bundled:
        path = BUNDLED / "tokenizer.bin"
    if path is not None:
        return load_tokenizer(path)
    if inside:
        return tokenizer_from_bytes(inside, source)
    raise TokenizerError(
        f"{source} comes without a tokenizer: give its file, "
        'load_model("model.bin", tokenizer="tokenizer.bin") or --tokenizer tokenizer.bin'
    )
