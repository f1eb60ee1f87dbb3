"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.paths import MODELS

Run = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(scope="session", autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Isolate the tests from the user's cache, overlays and device locks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLAMA_PYNQ_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("LLAMA_PYNQ_OVERLAYS", str(tmp_path_factory.mktemp("overlays")))
        patch.setenv("LLAMA_PYNQ_LOCKS", str(tmp_path_factory.mktemp("locks")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Restore SIGINT: a shell starts background jobs, and their children, with it ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_models() -> Path:
    """Folder of the real models and tokenizers; they are not part of the repository."""
    if not MODELS.is_dir():
        pytest.skip(f"the real models are not in {MODELS}")
    return MODELS


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run Python in a subprocess, in an empty folder; returns the CompletedProcess, as text."""

    def call(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONIOENCODING": "utf-8", **environment},
            capture_output=True,
            encoding="utf-8",
            check=False,
        )

    return call
