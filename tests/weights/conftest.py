"""Fixtures of the tests of weights."""

import pytest
from support.checkpoint_files import write_checkpoint
from support.weight_shapes import CONFIG

from llama_pynq.checkpoint.load import load_checkpoint


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("LLAMA_PYNQ_CACHE", str(folder))
    return folder


@pytest.fixture
def new_checkpoint(tmp_path):
    """Write and open checkpoints; closed at the end."""
    opened = []

    def make(config=CONFIG, version=0, group_size=None, name="model.bin", rope_theta=10000.0,
             **options):  # fmt: skip
        write_checkpoint(tmp_path / name, config, version, group_size, **options)
        opened.append(load_checkpoint(tmp_path / name, rope_theta))
        return opened[-1]

    yield make
    for checkpoint in opened:
        checkpoint.close()
