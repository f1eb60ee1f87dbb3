"""Every border that is fuzzed, and how many of its cases `make test` runs."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from fuzz import computer, model_files, overlay_files, requests
from fuzz.border import Opener


class Entry(NamedTuple):
    """How a border is opened, and its number of cases in `make test`."""

    opener: Opener
    cases: int


BORDERS = {
    "checkpoint-v0": Entry(partial(model_files.checkpoint, 0), 400),
    "checkpoint-v1": Entry(partial(model_files.checkpoint, 1), 400),
    "checkpoint-v2": Entry(partial(model_files.checkpoint, 2), 400),
    "gguf": Entry(model_files.gguf_file, 400),
    "hugging-face": Entry(model_files.hugging_face, 400),
    "packed": Entry(model_files.packed, 400),
    "tokenizer-bin": Entry(model_files.tokenizer_bin, 600),
    "tokenizer-model": Entry(model_files.sentencepiece, 400),
    "texts": Entry(model_files.texts, 400),
    "overlay-record": Entry(overlay_files.record, 800),
    "emulated-xclbin": Entry(overlay_files.emulated_xclbin, 400),
    "emulated-bit": Entry(overlay_files.emulated_bit, 300),
    "hardware-xclbin": Entry(overlay_files.hardware_xclbin, 400),
    "hardware-bit": Entry(overlay_files.hardware_bit, 200),
    "meter": Entry(computer.meter, 800),
    "sensors": Entry(computer.sensors, 400),
    "notebook": Entry(computer.notebook, 60),
    "http": Entry(computer.http, 400),
    "calls": Entry(requests.calls, 400),
    "descriptors": Entry(requests.descriptors, 400),
    "generate": Entry(requests.generations, 400),
    "commands": Entry(computer.commands, 200),
    "environment": Entry(computer.environment, 80),
    "board-names": Entry(computer.names, 1000),
}
