"""A model's shape for the command line, and the mark of tests that send signals."""

import os

import pytest

from llama_pynq.checkpoint.config import ModelConfig

SHAPE = ModelConfig(
    dim=128,
    hidden_dim=256,
    n_layers=6,
    n_heads=4,
    n_kv_heads=1,
    vocab_size=1024,
    seq_len=8192,
    tied=False,
)
needs_signals = pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT to send")
