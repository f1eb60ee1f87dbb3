"""Ways of generating a text, which all give the same tokens."""

from contextlib import contextmanager

import pytest
from support.paths import MODELS

from llama_pynq import EmulatedDevice, LlamaOverlay
from llama_pynq.emulation.build import emulated_overlay

needs_shared = pytest.mark.skipif(
    not MODELS.exists(), reason=f"the real checkpoint is not here: {MODELS}"
)
PROMPT = "Once upon a time"


@contextmanager
def opened(flavour=".xclbin", **device):
    with LlamaOverlay(emulated_overlay(flavour), device=EmulatedDevice(**device)) as overlay:
        yield overlay


WAYS = {
    "greedy": dict(temperature=0),
    "temperature": dict(temperature=1.0, top_p=1.0),
    "top_p": dict(temperature=0.8, top_p=0.9),
    "top_k": dict(temperature=1.2, top_p=1.0, top_k=200),
    "min_p": dict(temperature=1.0, top_p=1.0, min_p=0.02),
    "hot": dict(temperature=2.0, top_p=0.95),  # top-p often keeps more tokens than the device sorts
    "repetition_penalty": dict(temperature=0.8, top_p=1.0, repetition_penalty=1.3),
    "repetition favoured": dict(temperature=0.8, top_p=1.0, repetition_penalty=0.8),
}
LENGTH = 48


def tokens_of(overlay, way, prompt=PROMPT):
    return overlay.generate(prompt, max_new_tokens=LENGTH, seed=11, **WAYS[way]).tokens
