"""Foreign files, which are named when they are given as a checkpoint."""

import gzip
import pickle
import struct
from dataclasses import replace

import pytest
from support.checkpoint_cases import CONFIG, patched, refused
from support.checkpoint_files import write_checkpoint

from llama_pynq.checkpoint.load import load_checkpoint


class Bomb:
    """Pickle payload that creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize(
    ("content", "what", "remedy"),
    [
        (b"PK\x03\x04" + bytes(90), "a zip archive, as torch.save writes", "export.py model.bin"),
        (
            b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + bytes(90),
            "a pickle, as old torch.save wrote",
            "never read; export it with llama2.c: python export.py model.bin --checkpoint",
        ),
        (b"tjgg\x01\0\0\0" + bytes(90), "a GGML file of llama.cpp", "export the original model"),
        (struct.pack("<Q", 300) + b'{"a":{"dtype":"F32"' + bytes(90), "a safetensors", "--hf"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
            "a git-lfs pointer",
            "git lfs pull",
        ),
        (b"\n<!DOCTYPE html><html><body>404</body>", "an HTML page", "download the file itself"),
        (b"<html>", "an HTML page", "download the file itself"),
        (b'{"dim": 288, "n_layers": 6, "n_heads": 6}', "a JSON text", "such as stories15M.bin"),
        (
            b"Entry not found",
            "a text file that starts with 'Entry not found'",
            "download the file itself",
        ),
        (gzip.compress(b"x" * 99), "gzip-compressed", "gunzip"),
        (b"", "an empty file", "download or export it again"),
        (
            struct.pack("<IfI", 7, 0, 5) + b"<unk>" + struct.pack("<fI", 0, 5) + b"\n<s>\n",
            "a tokenizer",
            "this one as the tokenizer",
        ),
        (b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02" + bytes(90), "a tokenizer", "the model's .bin"),
    ],
)
def test_load_checkpoint_foreign_file_is_named(tmp_path, content, what, remedy):
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    refused(path, f"is not a llama2.c checkpoint but {what}", remedy)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_load_checkpoint_pickle_is_refused_unread(tmp_path, protocol):
    path, trace = tmp_path / "model.pt", tmp_path / "trace"
    path.write_bytes(pickle.dumps(Bomb(trace), protocol))
    refused(path, "but a pickle", "never read")
    assert not trace.exists()


def test_load_checkpoint_dim_that_starts_like_a_pickle_is_read(tmp_path):
    config = replace(CONFIG, dim=640, n_layers=1)  # 0x0280, little-endian 80 02 00 00
    write_checkpoint(tmp_path / "model.bin", config, 0)
    assert load_checkpoint(tmp_path / "model.bin").config.dim == 640
    patched(tmp_path / "model.bin", 4, "<i", -1)
    refused(tmp_path / "model.bin", "its first numbers (640, -1, ")
