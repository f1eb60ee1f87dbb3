"""The choice of a payload for this CPU."""

from __future__ import annotations

import platform

import pytest

from llama_pynq.emulation import cpu
from llama_pynq.emulation.container import Payload
from llama_pynq.errors import OverlayMismatch


def payload(level: str, *features: str, machine: str | None = None) -> Payload:
    return Payload(
        level, platform.system(), machine or platform.machine(), features, level.encode()
    )


@pytest.fixture
def has(monkeypatch):
    def set_features(*features: str) -> None:
        monkeypatch.setattr(cpu, "host_features", lambda: frozenset(features))

    return set_features


def test_macros_become_the_names_linux_uses():
    text = "#define __AVX512VNNI__ 1\n#define __SSE3__ 1\n#define __SGX__ 1\n#define FOO 2\n"
    assert cpu.features_from_macros(text) == ("avx512_vnni", "pni")


def test_best_usable_level_is_chosen_whatever_the_order(has):
    levels = [payload("v4", "avx2", "avx512f", "fma"), payload("v1"), payload("v3", "avx2", "fma")]
    for order in (levels, levels[::-1]):
        has("avx2", "fma", "sse3")
        assert cpu.choose(order, "file").level == "v3"
        has("avx2", "fma", "avx512f")
        assert cpu.choose(order, "file").level == "v4"
        has()
        assert cpu.choose(order, "file").level == "v1"


def test_missing_features_are_named(has):
    has("avx2")
    with pytest.raises(OverlayMismatch) as error:
        cpu.choose([payload("native", "avx2", "avx512f", "avx512_vnni")], "llama.xclbin")
    message = str(error.value)
    assert "lacks: avx512_vnni, avx512f (kernel compiled for -march=native)" in message
    assert "llama.xclbin" in message


def test_other_machines_are_named(has):
    has()
    with pytest.raises(OverlayMismatch, match=r"only v3 \(\w+ pdp11\)"):
        cpu.choose([payload("v3", machine="pdp11")], "llama.xclbin")


def test_unknown_cpu_takes_the_best_level(monkeypatch):
    monkeypatch.setattr(cpu, "host_features", lambda: None)
    assert cpu.choose([payload("v1"), payload("v3", "avx2")], "file").level == "v3"
