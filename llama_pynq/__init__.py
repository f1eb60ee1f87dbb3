"""Llama 2 on an FPGA from a Jupyter notebook: a PYNQ overlay, its driver, and an emulator.

Names are imported on first use, so that ``import llama_pynq`` costs nothing. The first use of
`EmulatedDevice`, `LlamaDriver` or `LlamaOverlay` registers the driver with PYNQ.
"""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

from llama_pynq._version import __version__ as __version__
from llama_pynq.utils.pynq_warnings import ignore_pynqs_warnings

if TYPE_CHECKING:
    from llama_pynq.checkpoint.base import Checkpoint
    from llama_pynq.checkpoint.config import ModelConfig
    from llama_pynq.checkpoint.load import load_checkpoint
    from llama_pynq.driver import LlamaDriver
    from llama_pynq.emulation.device import EmulatedDevice
    from llama_pynq.engine.llama import Llama
    from llama_pynq.engine.results import Generation
    from llama_pynq.engine.sampling import SamplingParams
    from llama_pynq.llama_overlay import LlamaOverlay
    from llama_pynq.tokenizer.base import Tokenizer
    from llama_pynq.tokenizer.load import load_tokenizer

_HOME = {
    "Checkpoint": "checkpoint.base",
    "EmulatedDevice": "emulation.device",
    "Generation": "engine.results",
    "Llama": "engine.llama",
    "LlamaDriver": "driver",
    "LlamaOverlay": "llama_overlay",
    "ModelConfig": "checkpoint.config",
    "SamplingParams": "engine.sampling",
    "Tokenizer": "tokenizer.base",
    "load_checkpoint": "checkpoint.load",
    "load_tokenizer": "tokenizer.load",
}
__all__ = [
    "Checkpoint",
    "EmulatedDevice",
    "Generation",
    "Llama",
    "LlamaDriver",
    "LlamaOverlay",
    "ModelConfig",
    "SamplingParams",
    "Tokenizer",
    "load_checkpoint",
    "load_tokenizer",
]
_WITH_DRIVER = {"EmulatedDevice", "LlamaDriver", "LlamaOverlay"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with warnings.catch_warnings():
        ignore_pynqs_warnings()
        if name in _WITH_DRIVER:
            importlib.import_module(".driver", __name__)  # registers it with PYNQ
        value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
