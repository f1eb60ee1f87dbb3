"""Identify foreign files by their first bytes, for error messages."""

from __future__ import annotations

import re

LLAMA2C_EXPORT = "with llama2.c: python export.py model.bin"

_PICKLE_REMEDY = (
    "it holds a pickle, which can run any code, so it is never read; export it "
    f"{LLAMA2C_EXPORT} --checkpoint model.pt"
)
_TEXT_REMEDY = "download the file itself (the 'raw' or 'resolve' link)"
_SIGNATURES: tuple[tuple[bytes, str, str | None], ...] = (
    (b"PK\x03\x04", "a zip archive, as torch.save writes (.pt, .pth)", _PICKLE_REMEDY),
    (
        b"GGUF",
        "a GGUF file of llama.cpp",
        "give it as the model; its vocabulary comes with it",
    ),
    *(
        (
            magic,
            "a GGML file of llama.cpp",
            f"export the original model {LLAMA2C_EXPORT} --hf folder",
        )
        for magic in (b"tjgg", b"lmgg", b"fmgg", b"algg", b"ggjt", b"ggml", b"ggmf", b"ggla")
    ),
    (
        b"version https://git-lfs",
        "a git-lfs pointer, a placeholder for the file",
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
    """Identify a file that is neither checkpoint nor tokenizer by its first bytes.

    Parameters
    ----------
    head : bytes
        The first few kilobytes, or the whole file if it is shorter.

    Returns
    -------
    (what, remedy) or None
        ``what`` completes "is not ... but"; ``remedy`` is None if it depends on what the
        caller needs. None if nothing is recognised.
    """
    if not head:
        return "an empty file", "download or export it again"
    for signature, what, remedy in _SIGNATURES:
        if head.startswith(signature):
            return what, remedy
    # Pickle protocol 2 and later. The next byte is an opcode, printable or above 0x80; in a small
    # integer it is zero.
    if head[0] == 0x80 and len(head) > 2 and 2 <= head[1] <= 5 and head[2] >= 0x28:
        return "a pickle, as old torch.save wrote (.pt, .pth)", _PICKLE_REMEDY
    if head[8:10] == b'{"' and int.from_bytes(head[:8], "little") < 1 << 32:
        return "a safetensors file", f"export the model's folder {LLAMA2C_EXPORT} --hf folder"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text[:9].lower() == b"<!doctype" or text[:5].lower() == b"<html":
        return "an HTML page, often an error page that a download saved", _TEXT_REMEDY
    if text[:1] in (b"{", b"["):
        return "a JSON text, such as config.json or tokenizer.json", None
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head[:256]):
        start = head[:40].decode("ascii")
        return f"a text file that starts with {start!r}", _TEXT_REMEDY
    return None


_MODEL_SUFFIXES = (".bin", ".model", ".gguf", ".safetensors", ".pt", ".pth", ".npz", ".onnx")
_OVERLAY_SUFFIXES = (".bit", ".hwh", ".xclbin")


_TEXTS = frozenset((
    "config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja",
    "chat_template.json", "preprocessor_config.json", "params.json",
))  # fmt: skip
_TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+=* \d+\r?\n")


def text_of_model(head: bytes, name: str) -> str | None:
    """What part of somebody's model a text file is; None for other texts.

    Parameters
    ----------
    head : bytes
        The first few kilobytes.
    name : str
        Name of the file.
    """
    name = name.lower()
    if name.endswith(("tokenizer.json", ".model")) or _TIKTOKEN.match(head):
        return "a tokenizer"
    if name in _TEXTS or name.endswith(".safetensors.index.json"):
        return "a part of a model's folder"
    return None


def is_text(head: bytes) -> bool:
    """Whether a file starts as UTF-8 text without control characters; so does an empty file."""
    text = head.decode("utf-8", "ignore")  # the head may end within a character
    if len(head) - len(text.encode()) > 3:
        return False
    return all(character.isprintable() or character in "\t\r\n\ufeff" for character in text)


def foreign_model(head: bytes, name: str) -> str | None:
    """What a file is that looks like somebody's model, tokenizer or overlay; None for others.

    Parameters
    ----------
    head : bytes
        The first few kilobytes.
    name : str
        Name of the file: one that is called like a model counts as one.
    """
    found = identify_foreign_file(head)
    what = found[0] if found else None
    if name.lower().endswith(_MODEL_SUFFIXES + _OVERLAY_SUFFIXES):
        return what or "a binary file that is called like a model"
    models = ("a GGUF", "a GGML", "a safetensors", "a zip archive, as torch", "a pickle, as old",
              "an HDF5", "a NumPy")  # fmt: skip
    return what if what and what.startswith((*models, "an overlay")) else None
