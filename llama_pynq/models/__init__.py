"""The bundled model: ``stories.bin``, its tokenizer and its model card."""

from pathlib import Path

BUNDLED = Path(__file__).parent
"""Folder of the bundled model."""
