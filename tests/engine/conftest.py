"""Fixtures of the tests of text generation."""

import pytest
from support.generating import WAYS, opened, tokens_of


@pytest.fixture(scope="module")
def overlay(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("LLAMA_PYNQ_CACHE", str(tmp_path_factory.mktemp("cache")))
    with opened() as overlay:
        yield overlay
    patch.undo()


@pytest.fixture
def bundled(overlay):
    return overlay.load_model()


@pytest.fixture(scope="module")
def expected(overlay):
    """Expected token ids per way, from the reference arithmetic and from one-step calls."""
    model = overlay.load_model()
    model.call_seconds = 0.0
    return {way: tokens_of(overlay, way) for way in WAYS}
