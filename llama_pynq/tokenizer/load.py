"""Open a tokenizer file; its content tells the format."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from llama_pynq.errors import TokenizerError
from llama_pynq.tokenizer.base import MAX_FILE_BYTES, REMEDY, Tokenizer
from llama_pynq.tokenizer.huggingface import HuggingFaceTokenizer, starts_like_tokenizer_json
from llama_pynq.tokenizer.llama2c import BinTokenizer
from llama_pynq.tokenizer.sentencepiece import SentencePieceTokenizer, starts_like_sentencepiece
from llama_pynq.utils.files import user_path


class _TokenizerNotFoundError(TokenizerError, FileNotFoundError):
    """A missing file: caught as TokenizerError and as FileNotFoundError."""


def load_tokenizer(path: str | PathLike[str]) -> Tokenizer:
    """Open a tokenizer file; its content tells the format, not its name.

    Parameters
    ----------
    path : path-like
        llama2.c's ``.bin`` format, or a sentencepiece ``.model``.

    Returns
    -------
    BinTokenizer or SentencePieceTokenizer

    Raises
    ------
    TokenizerError
        If the file is missing (then also a FileNotFoundError), truncated, corrupt or
        foreign, or is a sentencepiece model and sentencepiece is not installed.
    """
    path = user_path(path)
    return tokenizer_from_bytes(_read(path), path)


def tokenizer_from_bytes(data: bytes, path: str | PathLike[str]) -> Tokenizer:
    """Create a tokenizer from bytes in memory, such as those stored in a packed model.

    Parameters
    ----------
    data : bytes
        Content of a tokenizer file.
    path : path-like
        Origin of the bytes, for messages; not read.

    Returns
    -------
    BinTokenizer or SentencePieceTokenizer

    Raises
    ------
    TokenizerError
        As for `load_tokenizer`.
    """
    path = Path(path)
    if starts_like_sentencepiece(data):
        return SentencePieceTokenizer(path, data)
    if starts_like_tokenizer_json(data):
        return HuggingFaceTokenizer(path, data)
    return BinTokenizer(path, data)


def _read(path: Path) -> bytes:
    if path.is_dir():
        raise TokenizerError(f"{path} is a folder, not a tokenizer: {REMEDY}")
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError as error:
        raise _TokenizerNotFoundError(
            f"there is no file {path}: check the path (it is relative to {Path.cwd()}) "
            f"or download the tokenizer first"
        ) from error
    except OSError as error:
        raise TokenizerError(f"{path} cannot be opened: {error.strerror}") from error
    return data
