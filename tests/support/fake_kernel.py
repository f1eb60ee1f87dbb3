"""A tiny fake kernel in overlay files, and the fixtures that drive it."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynq
import pytest
from support.paths import TESTS

from llama_pynq.emulation import build
from llama_pynq.emulation.container import Payload
from llama_pynq.emulation.device import EmulatedDevice

SOURCE = TESTS / "hls" / "fake_kernel.cpp"
CHANNELS = 2
WORDS = 16  # words that a call copies; `sequence` follows
ABORT_WORD = 63


@functools.cache
def payloads() -> tuple[Payload, ...]:
    return tuple(build.build_payloads([SOURCE], []))


@functools.cache
def overlay_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="fake_kernel_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    constants = {"kChannels": CHANNELS, "kKvPorts": 1, "kSharedMasters": 0, "kClockMhz": 250}
    build.write_overlays(folder, payloads(), constants)
    return folder


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EmulatedDevice:
    monkeypatch.setenv("LLAMA_PYNQ_CACHE", str(tmp_path / "cache"))
    return EmulatedDevice(threads=3)


class Setup(SimpleNamespace):
    """An open overlay with a buffer for every pointer."""

    overlay: Any
    device: EmulatedDevice
    buffers: dict[str, pynq.buffer.PynqBuffer]

    def point(self, name: str, address: int) -> None:
        registers = self.overlay.llama.register_map
        if hasattr(registers, name):
            setattr(registers, name, address)
        else:
            setattr(registers, f"{name}_1", address & 0xFFFF_FFFF)
            setattr(registers, f"{name}_2", address >> 32)

    def start(self, command: int, sequence: int) -> None:
        registers = self.overlay.llama.register_map
        registers.command = command
        registers.sequence = sequence
        self.overlay.llama.write(0, 1)

    def finish(self) -> int:
        """Wait for the end of the call; returns the last value of CTRL."""
        while not (control := self.overlay.llama.read(0)) & 2:
            pass
        if self.device.protocol == "ap_ctrl_chain":
            self.overlay.llama.write(0, 0x10)
        return control

    def results(self) -> list[int]:
        self.buffers["results"].sync_from_device()
        return [int(word) for word in self.buffers["results"][: WORDS + 1]]


def connect(overlay: Any, device: EmulatedDevice) -> Setup:
    setup = Setup(overlay=overlay, device=device, buffers={})
    ip = overlay.ip_dict["llama"]["registers"]
    names = [
        "request",
        "results",
        "logits",
        "activations",
        "model",
        "profile",
        "kv_read_0",
        "kv_write_0",
    ]
    for name in [*names, *(f"weights_{c}" for c in range(CHANNELS))]:
        bank = ip.get(name, {}).get("memory")
        target = device.get_memory_by_name(bank) if bank else device
        buffer = setup.buffers[name] = pynq.allocate((64,), "u4", target=target)
        setup.point(name, buffer.device_address)
    return setup


@pytest.fixture(params=["llama.xclbin", "llama.bit"])
def setup(request: pytest.FixtureRequest, device: EmulatedDevice) -> Iterator[Setup]:
    overlay = pynq.Overlay(str(overlay_folder() / request.param), device=device)
    yield connect(overlay, device)
    overlay.free()
