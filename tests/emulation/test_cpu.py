"""Selection of the payload for this CPU."""

from __future__ import annotations

import platform
import re

import pytest
from support.paths import HLS_SRC

from llama_pynq.emulation import build, cpu, emulator
from llama_pynq.emulation.container import Payload
from llama_pynq.emulation.targets import TARGETS
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


def test_unknown_cpu_is_queried_with_the_baseline_payload(monkeypatch):
    monkeypatch.setattr(cpu, "host_features", lambda: None)
    asked = []

    def answer(path):
        asked.append(path.read_bytes())
        return frozenset({"avx2", "fma"})

    monkeypatch.setattr(cpu.emulator, "cpu_features", answer)
    levels = [payload("v4", "avx2", "avx512f", "fma"), payload("v3", "avx2", "fma"), payload("v1")]
    assert cpu.choose(levels, "file").level == "v3"
    assert asked == [b"v1"]


def test_baseline_payload_that_cannot_be_queried_is_chosen(monkeypatch):
    monkeypatch.setattr(cpu, "host_features", lambda: None)
    levels = [payload("v3", "avx2"), payload("v1")]  # neither is a library
    assert cpu.choose(levels, "file").level == "v1"


def test_unknown_cpu_takes_the_lowest_level_without_a_baseline_payload(monkeypatch):
    monkeypatch.setattr(cpu, "host_features", lambda: None)
    levels = [payload("v4", "avx2", "avx512f"), payload("v3", "avx2")]
    assert cpu.choose(levels, "file").level == "v3"


@pytest.mark.parametrize(
    "interpreter, machine", [("win-amd64", "AMD64"), ("linux-x86_64", "ARM64")]
)
def test_machine_is_the_interpreters(monkeypatch, interpreter, machine):
    """Windows on arm64 can run an x86-64 Python, but reports its own processor."""
    monkeypatch.setattr(cpu.sysconfig, "get_platform", lambda: interpreter)
    monkeypatch.setattr(cpu.platform, "machine", lambda: "ARM64")
    assert cpu.machine() == machine


def test_apple_silicon_takes_the_payload_for_the_m1(monkeypatch):
    monkeypatch.setattr(cpu.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(cpu.platform, "machine", lambda: "arm64")
    first = Payload("apple_m1", "Darwin", "arm64", ("asimddp", "atomics"), b"")
    later = Payload("apple_m4", "Darwin", "arm64", ("asimddp", "atomics", "i8mm"), b"")
    assert cpu.choose([later, first], "file") is first


@pytest.fixture(scope="module")
def asking(tmp_path_factory):
    """Library with the kernel's CPU feature query, compiled for the baseline CPU."""
    library = tmp_path_factory.mktemp("cpu") / "cpu.so"
    source = HLS_SRC / "host" / "cpu_features.cpp"
    build.compile_kernel([source], [HLS_SRC], library, "x86-64")
    return library


@pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"),
    reason="compares with what Linux lists on x86-64",
)
def test_cpu_features_are_those_that_linux_lists(asking):
    listed = cpu.host_features()
    found = emulator.cpu_features(asking)
    source = (HLS_SRC / "host" / "cpu_features.cpp").read_text()
    known = set(re.findall(r'k[NYZ]\w+, "(\w+)"', source))
    assert {"avx2", "avx_vnni", "avx512_vnni"} <= known
    assert found == listed & known
    # Every feature that a level of the wheels uses can be queried.
    for target in TARGETS.values():
        if target.machine != "AMD64":
            continue
        for level in target.levels:
            march = level.replace("_", "-").split("+")
            needed = set(build.required_features(march[0]))
            needed |= {{"avxvnni": "avx_vnni", "avx512vnni": "avx512_vnni"}[m] for m in march[1:]}
            assert needed <= known, level


def test_library_without_the_query_has_no_features(tmp_path):
    other = tmp_path / "other.so"
    other.write_bytes(b"no library")
    assert emulator.cpu_features(other) == frozenset()
