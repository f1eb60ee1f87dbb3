"""Models with random weights and a synthetic vocabulary, for speed measurements.

A kernel's speed depends on the shape of a model, not on the values of its weights. Random models
have the shapes of karpathy's stories15M, 42M and 110M, which are not in the package.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.checkpoint.llama2c import layout
from llama_pynq.checkpoint.shapes import STORIES
from llama_pynq.errors import RequestError
from llama_pynq.tokenizer.llama2c import BinTokenizer
from llama_pynq.utils.files import cache_folder, replacing, write_atomically
from llama_pynq.utils.temporary import clear_left_over

__all__ = ["random_model", "tokenizer_bytes", "write_random_checkpoint"]

_RECIPE = 1  # part of the file names: raise it when the bytes written change
_SLICE_VALUES = 1 << 18
_CONSONANTS, _VOWELS = "bdfghjklmnprstvwyz", "aeiou"
_LETTERS = " abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,!?'\"\n"

# Weight of the final norm, and so the standard deviation of the logits. At 1, half the vocabulary
# shares 0.9 of the probability; at 6 a few tokens do, as in a trained model, and sampling costs
# as much as there.
_SHARPNESS = 6.0


def random_model(name: str, seed: int = 0) -> tuple[Path, Path]:
    """Return a random checkpoint and tokenizer; create them in the cache folder if missing.

    Parameters
    ----------
    name : str
        One of STORIES.
    seed : int
        Seed of the weights, 0 or more. Same seed, same bytes, on every machine.

    Returns
    -------
    checkpoint : Path
        In llama2.c's format, version 0 (float32).
    tokenizer : Path
        In the format of llama2.c's tokenizer.bin.

    Raises
    ------
    RequestError
        If STORIES has no such name.
    """
    if name not in STORIES:
        raise RequestError(f"there is no random model {name!r}: choose one of {', '.join(STORIES)}")
    config = STORIES[name]
    shape = "-".join(str(size) for size in _sizes(config))
    folder = cache_folder() / "random"
    checkpoint = folder / f"{name}-{shape}-seed{seed}-v{_RECIPE}.bin"
    tokenizer = folder / f"tokenizer-{config.vocab_size}-v{_RECIPE}.bin"
    clear_left_over(folder)
    if not checkpoint.exists():
        with replacing(checkpoint) as file:
            write_random_checkpoint(file, config, seed)
    if not tokenizer.exists():
        write_atomically(tokenizer, tokenizer_bytes(config.vocab_size))
    return checkpoint, tokenizer


def write_random_checkpoint(file: BinaryIO, config: ModelConfig, seed: int = 0) -> None:
    """Write a random llama2.c checkpoint of version 0, in slices of a megabyte.

    Weights are uniform with variance 1 / columns. Norm weights are 1, the final norm's are 6. The
    embedding of EOS is zero, and through the tied classifier so is its logit: programs that read
    the file do not end their text early.

    Parameters
    ----------
    file : binary file
        Empty, open for writing, seekable.
    config : ModelConfig
        With a tied classifier.
    seed : int
        Seed of the weights.
    """
    assert config.tied, "an untied classifier needs a negative vocab_size in the header"
    # Raw bits and exact arithmetic: NumPy's distributions may differ between versions.
    bits = np.random.PCG64(seed)
    places, n_bytes = layout(config, 0, None)
    file.write(struct.pack("<7i", *_sizes(config)))
    for name, place in places.items():
        for layer in range(config.tensor_copies(name)):
            file.seek(place.offset + layer * place.stride)
            if len(place.shape) == 1:
                value = _SHARPNESS if name == "rms_final_weight" else 1.0
                file.write(np.full(place.shape, value, "<f4").tobytes())
            else:
                for part in _uniform(bits, math.prod(place.shape), place.shape[1]):
                    file.write(part.tobytes())
    embedding = places["token_embedding_table"]
    row_bytes = 4 * config.dim
    file.seek(embedding.offset + BinTokenizer.eos_id * row_bytes)
    file.write(bytes(row_bytes))
    file.seek(n_bytes - 1)  # zeros: readers ignore the rotary tables at the end
    file.write(b"\0")


def _sizes(config: ModelConfig) -> tuple[int, ...]:
    c = config
    return c.dim, c.hidden_dim, c.n_layers, c.n_heads, c.n_kv_heads, c.vocab_size, c.seq_len


def _uniform(bits: np.random.PCG64, n: int, columns: int) -> Iterator[np.ndarray]:
    """Yield `n` weights of a matrix, slice by slice."""
    largest = np.float32(math.sqrt(3 / columns) / 2**31)
    for first in range(0, n, _SLICE_VALUES):
        size = min(_SLICE_VALUES, n - first)
        raw = bits.random_raw((size + 1) // 2).astype("<u8").view("<i4")[:size]
        yield raw.astype("<f4") * largest


def tokenizer_bytes(vocab_size: int) -> bytes:
    """Generate a tokenizer.bin in llama2.c's format with pronounceable nonsense tokens.

    Parameters
    ----------
    vocab_size : int
        At least 512: ``<unk>``, BOS, EOS, 256 bytes, letters, and syllables for the rest.

    Returns
    -------
    bytes
    """
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % byte for byte in range(256))]
    pieces += [letter.encode() for letter in _LETTERS]
    words = (vocab_size - len(pieces) + 1) // 2
    for i in range(words):
        word = _word(i)
        pieces += [b" " + word, word]
    del pieces[vocab_size:]
    # As in Llama 2: special and byte tokens score 0, the scores of text tokens fall, so that lower
    # ids merge first.
    scores = [min(0.0, 259.0 - i) for i in range(vocab_size)]
    records = [struct.pack("<fI", s, len(p)) + p for s, p in zip(scores, pieces)]
    return struct.pack("<I", max(map(len, pieces))) + b"".join(records)


def _word(i: int) -> bytes:
    """The i-th word: i in a number system whose digits are syllables; no two words are equal."""
    syllables = len(_CONSONANTS) * len(_VOWELS)
    word = ""
    while i >= 0:
        digit, i = i % syllables, i // syllables - 1
        word += _CONSONANTS[digit % len(_CONSONANTS)] + _VOWELS[digit // len(_CONSONANTS)]
    return word.encode()
