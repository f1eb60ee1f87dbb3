"""Folders of the checkout, and of the real models beside it."""

from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
TESTS = REPOSITORY / "tests"
HLS_SRC = REPOSITORY / "hls_src"
MODELS = REPOSITORY.parent / "shared" / "models"
"""Real models and tokenizers; not part of the project."""
