"""A small model's shape, damage to files, and the check that a checkpoint is refused."""

import struct

import pytest

from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.checkpoint.load import load_checkpoint
from llama_pynq.errors import CheckpointError

CONFIG = ModelConfig(
    dim=24, hidden_dim=40, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=50, seq_len=16, tied=True
)


def refused(path, *parts, error=CheckpointError, **options):
    """Check that loading is refused with a message that names the file and contains every part."""
    with pytest.raises(error) as caught:
        load_checkpoint(path, **options)
    for part in (str(path), *parts):
        assert part in str(caught.value)


def patched(path, offset, fmt, *values):
    """Overwrite part of a file."""
    data = bytearray(path.read_bytes())
    struct.pack_into(fmt, data, offset, *values)
    path.write_bytes(data)
