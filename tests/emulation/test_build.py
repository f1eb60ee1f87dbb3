"""Build of the emulated overlay: flags, errors, overlay files."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from support.fake_kernel import CHANNELS, SOURCE
from support.paths import REPOSITORY

from llama_pynq.emulation import build, hwh, xclbin
from llama_pynq.emulation.targets import WheelTarget
from llama_pynq.errors import BuildError

HEADER = (
    "constexpr int kChannels = {};\nconstexpr int kKvPorts = 1;\n"
    "constexpr int kSharedMasters = 0;\nconstexpr int kUltraRam = 0;\n"
)


@pytest.fixture
def hls_src(tmp_path: Path) -> Path:
    folder = tmp_path / "hls_src"
    (folder / "boards").mkdir(parents=True)
    (folder / "host").mkdir()
    (folder / "boards" / "host.h").write_text(HEADER.format(2) + "constexpr int kClockMhz = 321;\n")
    (folder / "host" / "emulator.cpp").write_text('#include "part.h"\nint Host() { return kPart; }')
    (folder / "part.h").write_text("constexpr int kPart = 1;\n")
    return folder


def top_function(header: Path) -> str:
    return f'#include LLAMA_BOARD_HEADER\nstatic_assert(kChannels == {CHANNELS}, "");'


def fake_top(header: Path) -> str:
    return SOURCE.read_text()


def test_build_writes_both_flavours(hls_src, tmp_path):
    out = tmp_path / "out" / "emulated"
    build.build_emulated_overlay(hls_src, out, ("native",), top_function=fake_top)
    assert sorted(p.name for p in out.iterdir()) == ["llama.bit", "llama.hwh", "llama.xclbin"]
    alveo = xclbin.read((out / "llama.xclbin").read_bytes(), "xclbin")
    zynq = hwh.read_bit((out / "llama.bit").read_bytes(), "bit")
    assert alveo.payloads == zynq.payloads
    assert alveo.design.clock_mhz == zynq.design.clock_mhz == 321
    assert zynq.payloads[0].level == "native"
    assert zynq.payloads[0].data.startswith(b"\x7fELF")


def test_build_of_the_same_source_gives_the_same_bytes(hls_src, tmp_path):
    for name in ("one", "two"):
        build.build_emulated_overlay(hls_src, tmp_path / name, top_function=fake_top)
    for file in ("llama.xclbin", "llama.bit", "llama.hwh"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_board_header_reaches_the_compiler(hls_src, tmp_path):
    build.build_emulated_overlay(hls_src, tmp_path / "out", top_function=top_function)
    (hls_src / "boards" / "big.h").write_text(HEADER.format(4))
    with pytest.raises(BuildError, match="static assertion failed"):
        build.build_emulated_overlay(
            hls_src, tmp_path / "out", board="big", top_function=top_function
        )


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="names x86 levels")
def test_each_level_is_a_payload_with_its_features(hls_src, tmp_path):
    levels = ("x86-64", "x86-64-v3")
    build.build_emulated_overlay(hls_src, tmp_path, levels, top_function=top_function)
    one, three = xclbin.read((tmp_path / "llama.xclbin").read_bytes(), "file").payloads
    assert (one.level, three.level) == levels
    assert one.features == ()
    assert {"avx2", "fma", "bmi2"} <= set(three.features)


def test_missing_compiler_is_named(hls_src, tmp_path):
    with pytest.raises(BuildError, match=r"no-such-g\+\+ could not be run .*apt install g\+\+"):
        build.build_emulated_overlay(hls_src, tmp_path / "out", cxx="no-such-g++")


def test_compiler_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-clang++ -v")
    with pytest.raises(BuildError, match=r"no-such-clang\+\+ could not be run"):
        build.required_features("native")


def test_failed_compilation_shows_command_and_message(tmp_path):
    source = tmp_path / "bad.cpp"
    source.write_text("int main( {\n" + "x;\n" * 50)
    output = tmp_path / "bad.so"
    output.write_bytes(b"old")
    with pytest.raises(BuildError) as error:
        build.compile_kernel([source], [tmp_path], output, "native")
    message = str(error.value)
    assert "-ffp-contract=off" in message and str(source) in message
    assert "error:" in message
    assert len(message.splitlines()) < 30
    assert output.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.cpp", "bad.so"]


def test_compiled_library_replaces_the_old_one_at_once(tmp_path):
    output = tmp_path / "kernel.so"
    output.write_bytes(b"old")
    with output.open("rb") as reader:  # like a process that has the library loaded
        build.compile_kernel([SOURCE], [], output, "native")
        assert reader.read() == b"old"
    assert output.read_bytes().startswith(b"\x7fELF")


def test_unknown_level_is_named():
    with pytest.raises(BuildError, match="not 'pdp11'"):
        build.required_features("pdp11")


def test_nothing_to_compile_is_an_error(hls_src, tmp_path):
    shutil.rmtree(hls_src / "host")
    with pytest.raises(BuildError, match=r"holds no \.cpp files"):
        build.build_emulated_overlay(hls_src, tmp_path / "out")


def test_help_of_the_command_compiles_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LLAMA_PYNQ_CACHE", str(tmp_path))
    for option, status, said in (("--help", 0, "into the cache folder"), ("--fast", 2, "--fast")):
        with pytest.raises(SystemExit) as end:
            build.main([option])
        assert end.value.code == status
        assert said in "".join(capsys.readouterr())
    assert list(tmp_path.iterdir()) == []


def test_build_needs_the_standard_library_only():
    code = (
        "import sys; import llama_pynq.emulation.build\n"
        "print([m for m in ('numpy', 'pynq', 'pkg_resources') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("level", ["native", "nocona"])
@pytest.mark.parametrize(
    ("machine", "there"), [("x86_64", True), ("AMD64", True), ("aarch64", False)]
)
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="names an x86 level")
def test_vectors_are_as_wide_as_is_fastest_on_x86_alone(hls_src, tmp_path, machine, there, level):
    """Compilers for other machines do not have the option."""
    log, compiler = tmp_path / "log", tmp_path / "c++"
    compiler.write_text(f'#!/bin/sh\necho "$@" >> {log}\nexec g++ "$@"\n')
    compiler.chmod(0o755)
    target = WheelTarget("some", "", "", "Linux", machine, (level,))
    sources = [hls_src / "host" / "emulator.cpp"]
    build.build_payloads(sources, [hls_src], target.levels, cxx=str(compiler), target=target)
    compiled = [line for line in log.read_text().splitlines() if " -c " in line]
    assert compiled
    for line in compiled:
        assert ("-mprefer-vector-width=256" in line) == there
        assert ("-mtune=generic" in line) == (there and level == "native")


COMPILES_FOREVER = """
import sys, time
if "-c" in sys.argv:
    print("compiling", file=open(sys.argv[1], "w"), flush=True)
    time.sleep(600)
"""

BUILDS = """
import sys
from pathlib import Path
from llama_pynq.emulation import build
build.build_emulated_overlay(
    Path(sys.argv[1]), Path(sys.argv[2]), top_function=lambda _: "", cxx=sys.argv[3]
)
"""


def test_build_that_is_killed_is_cleared_by_the_next_one(hls_src, tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr(tempfile, "tempdir", None)
    compiler, mark = tmp_path / "cxx.py", tmp_path / "mark"
    compiler.write_text(COMPILES_FOREVER)
    cxx = shlex.join([sys.executable, str(compiler), str(mark)])
    killed = subprocess.Popen(
        [sys.executable, "-c", BUILDS, hls_src, tmp_path / "out", cxx], start_new_session=True
    )
    while not mark.exists():
        assert killed.poll() is None
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert len(list(scratch.iterdir())) == 2, "a folder for the top function, and one to compile in"
    build.build_emulated_overlay(hls_src, tmp_path / "out", top_function=fake_top)
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("cxx", ["g++ '", '"', "   ", "\\"])
def test_compiler_that_is_no_command_is_refused_by_name(monkeypatch, cxx):
    monkeypatch.setenv("CXX", cxx)
    with pytest.raises(BuildError, match="CXX=g[+][+]") as caught:
        build.required_features("native")
    assert repr(cxx) in str(caught.value)
