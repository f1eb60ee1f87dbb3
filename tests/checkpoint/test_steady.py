"""Reads of a file that may be cut or changed meanwhile."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama_pynq.checkpoint.steady import SteadyFile
from llama_pynq.errors import CheckpointError
from llama_pynq.models import BUNDLED

N_BYTES = 300_000  # some blocks, and a part of one
CONTENT = np.random.default_rng(0).integers(0, 256, N_BYTES, np.uint8).tobytes()
HERE = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def opened(path) -> SteadyFile:
    file = open(path, "rb", buffering=0)
    return SteadyFile(path, file, file.read(4096), path.stat().st_size)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(CONTENT)
    return path


def read(file: SteadyFile, offset: int, n: int) -> bytes:
    data = bytearray(n)
    file.read_into(memoryview(data), offset)
    return bytes(data)


def test_sha256_is_the_files(path):
    assert opened(path).sha256 == hashlib.sha256(CONTENT).hexdigest()


@HERE
@given(offset=st.integers(0, N_BYTES - 1), n=st.integers(1, N_BYTES), hashed=st.booleans())
def test_read_gives_the_files_bytes(path, offset, n, hashed):
    file = opened(path)
    if hashed:
        _ = file.sha256
    n = min(n, N_BYTES - offset)
    assert read(file, offset, n) == CONTENT[offset : offset + n]
    file.close()


@HERE
@given(
    at=st.integers(0, N_BYTES - 1), bit=st.integers(0, 7), before=st.integers(0, 1000),
    n=st.integers(1001, N_BYTES),
)  # fmt: skip
def test_read_of_a_byte_that_changed_since_the_hash_is_an_error(path, at, bit, before, n):
    path.write_bytes(CONTENT)
    file = opened(path)
    _ = file.sha256
    old = path.stat()
    with path.open("r+b") as writer:
        writer.seek(at)
        writer.write(bytes([CONTENT[at] ^ 1 << bit]))
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
    offset = max(at - before, 0)
    with pytest.raises(CheckpointError, match="model.bin was changed while it was read, between"):
        read(file, offset, min(n, N_BYTES - offset))
    file.close()


def test_file_written_again_with_the_same_bytes_is_read(path):
    file = opened(path)
    _ = file.sha256
    path.write_bytes(CONTENT)
    assert read(file, 0, N_BYTES) == CONTENT


def test_start_that_changed_between_opening_and_hashing_is_an_error(path):
    file = opened(path)
    path.write_bytes(b"x" + CONTENT[1:])
    with pytest.raises(CheckpointError, match="was changed while it was read, between bytes 0"):
        _ = file.sha256


@pytest.mark.parametrize("hashed", [False, True])
def test_file_cut_short_is_an_error(path, hashed):
    file = opened(path)
    if hashed:
        _ = file.sha256
    with path.open("r+b") as writer:
        writer.truncate(1000)
    with pytest.raises(CheckpointError, match="model.bin now ends at or before byte 1000 of"):
        read(file, 0, N_BYTES)


def test_file_cut_before_it_is_hashed_is_an_error(path):
    file = opened(path)
    with path.open("r+b") as writer:
        writer.truncate(1000)
    with pytest.raises(CheckpointError, match="model.bin now ends at or before byte 1000 of"):
        _ = file.sha256


CUT = """
import sys
from llama_pynq import load_checkpoint
from llama_pynq.errors import CheckpointError
path = sys.argv[1]
with load_checkpoint(path) as checkpoint:
    open(path, "r+b").truncate(4096)
    for read in (lambda: checkpoint.tensor("wcls"), lambda: checkpoint.sha256):
        try:
            read()
        except CheckpointError as error:
            print(error)
"""


def test_checkpoint_truncated_after_it_was_opened_is_an_error(tmp_path):
    """In a process of its own: with a mapped file this is SIGBUS."""
    copy = tmp_path / "model.bin"
    copy.write_bytes((BUNDLED / "stories.bin").read_bytes())
    done = subprocess.run([sys.executable, "-c", CUT, copy], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("model.bin now ends at or before byte") == 2
