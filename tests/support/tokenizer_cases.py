"""Texts to encode, a writer of tokenizer.bin, and the check that a file is refused."""

import struct

import pytest
from hypothesis import settings
from support.paths import MODELS

from llama_pynq.errors import TokenizerError
from llama_pynq.tokenizer.load import load_tokenizer

needs_models = pytest.mark.skipif(
    not MODELS.is_dir(), reason=f"the real tokenizers are not in {MODELS}"
)
quick = settings(max_examples=150, deadline=None, derandomize=True)
CONTROL = [b"<unk>", b"\n<s>\n", b"\n</s>\n"]
BYTES = [b"<0x%02X>" % i for i in range(256)]
TEXTS = [
    "",
    " ",
    "  two, then three   spaces  ",
    "Once upon a time, there was a little girl named Lily.",
    "naïve façade, Ünïcödé, Ελληνικά, Привет, שלום, नमस्ते",
    "你好，世界。こんにちは 안녕하세요",
    "😀👩‍👩‍👧🇨🇭 \U0010ffff",
    "a\nb\r\n\n\tc\v\f\x1b[0m\x7f",
    "int main(void) {\n    return x[i] <= 0x0A ? -1 : +1;  // <0x0A>\n}\n",
    "<s> </s> <unk> \n<s>\n [INST] <0x41>",
    "\0 nul \0\0",
    "!!!!!!!! aaaaaaaaaaaaaaaaaaaaaaaa                                  x",
    "e\u0301 \u00a0\u2003\u3000\ufeff\u200b\ufffd",
]


def bin_file(path, pieces, longest=None):
    """Write a tokenizer.bin of (bytes, score) pairs."""
    if longest is None:
        longest = max(len(piece) for piece, _ in pieces)
    records = [struct.pack("<fI", score, len(piece)) + piece for piece, score in pieces]
    path.write_bytes(struct.pack("<I", longest) + b"".join(records))
    return path


def small_bin(path, *extra):
    """Write a tokenizer.bin of control and byte tokens, then (bytes, score) pairs."""
    return bin_file(path, [(piece, 0.0) for piece in CONTROL + BYTES] + list(extra))


def refused(path, *parts, error=TokenizerError):
    """Check that loading is refused with a message that names the file and contains every part."""
    with pytest.raises(error) as caught:
        load_tokenizer(path)
    for part in (str(path), *parts):
        assert part in str(caught.value)
