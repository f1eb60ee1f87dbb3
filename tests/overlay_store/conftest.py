"""Fixtures of the tests of the overlay store."""

import pytest


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Overlay folders for the test; the last is the package's, without an overlay."""
    monkeypatch.setenv("LLAMA_PYNQ_OVERLAYS", str(tmp_path / "user"))
    monkeypatch.setenv("LLAMA_PYNQ_LOCKS", str(tmp_path / "locks"))
    monkeypatch.setattr(
        "llama_pynq.overlay_store.search.package_folders", lambda name: [str(tmp_path / "package")]
    )
    monkeypatch.delenv("BOARD", raising=False)
    user = tmp_path / "user"
    return {
        "added": user / "added",
        "installed": user / "installed",
        "package": tmp_path / "package",
    }
