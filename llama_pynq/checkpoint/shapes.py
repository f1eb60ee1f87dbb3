"""Shapes of well-known models, by name."""

from __future__ import annotations

from llama_pynq.checkpoint.config import ModelConfig

STORIES = {
    "stories15M": ModelConfig(288, 768, 6, 6, 6, 32000, 256, tied=True),
    "stories42M": ModelConfig(512, 1376, 8, 8, 8, 32000, 1024, tied=True),
    "stories110M": ModelConfig(768, 2048, 12, 12, 12, 32000, 1024, tied=True),
}
"""karpathy/tinyllamas; `checkpoint.random` makes models of these shapes."""

SHAPES = {
    **STORIES,
    "tinyllama": ModelConfig(2048, 5632, 22, 32, 4, 32000, 2048, tied=False),
    "llama2-7b": ModelConfig(4096, 11008, 32, 32, 32, 32000, 4096, tied=False),
}
"""Shapes that the performance model knows by name; TinyLlama has 1.1 billion parameters."""
