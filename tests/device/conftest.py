"""Fixtures of the tests of devices."""

import pytest

from llama_pynq import EmulatedDevice, LlamaOverlay
from llama_pynq.emulation.build import emulated_overlay

FLAVOURS = [(".xclbin", "chain"), (".xclbin", "hs"), (".bit", "chain"), (".bit", "hs")]


@pytest.fixture
def own_locks(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA_PYNQ_LOCKS", str(tmp_path / "locks"))


@pytest.fixture(params=FLAVOURS, ids=lambda p: f"{p[0][1:]}-{p[1]}")
def overlay(request):
    flavour, protocol = request.param
    device = EmulatedDevice(protocol=protocol, threads=1)
    with LlamaOverlay(emulated_overlay(flavour), device=device) as overlay:
        overlay.load_model()
        yield overlay
