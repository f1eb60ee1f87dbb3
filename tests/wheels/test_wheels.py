"""The wheels of ``make wheels`` in dist/: their contents, and whether the kernels run.

Kernels of other systems run under Wine (``apt install wine wine64``, then once ``wine wineboot``)
or QEMU (``qemu-user-static`` and ``libc6-arm64-cross``). Only the kernel is tested there, not
Python and PYNQ.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import lief
import numpy as np
import pytest
from hls import test_kernel
from support.foreign_kernel import ForeignKernel, build_runner
from support.paths import REPOSITORY

from llama_pynq.emulation import cpu, hwh, xclbin
from llama_pynq.emulation.targets import TARGETS

HERE = next(
    (t for t in TARGETS.values() if (t.system, t.machine) == (platform.system(), cpu.machine())),
    None,
)
EXPORTS = {"new", "start", "start_within", "abort_word", "wait", "delete", "cpu_features"}
# Libraries in every system that the tag names: glibc; Windows 10; macOS.
SYSTEM_LIBRARIES = {
    "Linux": ("libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "ld-linux-"),
    "Windows": ("KERNEL32.dll", "api-ms-win-crt-"),
    "Darwin": ("/usr/lib/libSystem.B.dylib",),
}


def wheel_of(tag: str) -> Path:
    found = sorted((REPOSITORY / "dist").glob(f"llama_pynq-*-{tag}.whl"), key=os.path.getmtime)
    if not found:
        if os.environ.get("CI") == "true" and HERE and tag == HERE.wheel_tag:
            pytest.fail("CI builds the wheel for its own computer: make wheels")
        pytest.skip(f"dist/ holds no wheel for {tag}: make wheels")
    return found[-1]


def payloads_of(target):
    with zipfile.ZipFile(wheel_of(target.wheel_tag)) as archive:
        alveo = xclbin.read(archive.read("llama_pynq/overlay/llama/llama.xclbin"), "xclbin")
        zynq = hwh.read_bit(archive.read("llama_pynq/overlay/llama/llama.bit"), "bit")
    assert alveo.payloads == zynq.payloads
    return alveo.payloads


every_target = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)


@every_target
def test_wheel_holds_a_kernel_for_every_level(target):
    payloads = payloads_of(target)
    assert tuple(payload.level for payload in payloads) == target.levels
    assert {(p.system, p.machine) for p in payloads} == {(target.system, target.machine)}
    # The first level runs on every CPU of the target.
    every = cpu.APPLE_M1 if target.name == "macos-arm64" else frozenset()
    assert every.issuperset(payloads[0].features)
    # Every level needs a different number of features, so the best is unique.
    assert len({len(payload.features) for payload in payloads}) == len(payloads)
    tag = f"py3-none-{target.wheel_tag}"
    with zipfile.ZipFile(wheel_of(target.wheel_tag)) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/WHEEL")]
        assert f"Tag: {tag}\n" in archive.read(name).decode()


@every_target
def test_libraries_need_nothing_but_the_system(target, tmp_path):
    for payload in payloads_of(target):
        file = tmp_path / "library"
        file.write_bytes(payload.data)
        library = lief.parse(str(file))
        needed = {getattr(entry, "name", entry) for entry in library.libraries}
        if target.system == "Linux":
            versions = [
                tuple(map(int, auxiliary.name.removeprefix("GLIBC_").split(".")))
                for requirement in library.symbols_version_requirement
                for auxiliary in requirement.get_auxiliary_symbols()
            ]
            assert max(versions) <= (2, 28)
        if target.system == "Darwin":
            needed = {name for name in needed if "tmp" not in name}  # the library's own name
            assert library.build_version.minos[:2] == [11, 0]
            if target.machine == "arm64":
                assert library.has_code_signature, "arm64 macOS refuses unsigned libraries"
        assert needed and all(name.startswith(SYSTEM_LIBRARIES[target.system]) for name in needed)
        exports = {getattr(f, "name", f).lstrip("_") for f in library.exported_functions}
        assert {f"emulator_{name}" for name in EXPORTS} <= exports


# Command prefix that runs a target's run_calls on this computer.
RUNNERS = {
    "linux-x86_64": (),
    "linux-aarch64": ("qemu-aarch64-static", "-cpu", "max", "-L", "/usr/aarch64-linux-gnu"),
    "windows-x86_64": ("/usr/lib/wine/wine64",),
}


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    """Command that runs a target's libraries here; skips if there is none."""
    zig = REPOSITORY / ".venv-wheels" / "bin" / "python"
    if not zig.exists():
        pytest.skip("no zig: make wheels installs it")
    made = {}

    def of(target):
        prefix = RUNNERS.get(target.name)
        if prefix is None:
            pytest.skip(f"{target.name} does not run here")
        if prefix and shutil.which(prefix[0]) is None:
            pytest.skip(f"{target.name} needs {prefix[0]}")
        if not prefix and target is not HERE:
            pytest.skip(f"{target.name} runs on a native computer only")
        if target.name not in made:
            out = tmp_path_factory.mktemp(target.name)
            made[target.name] = build_runner(zig, target, out)
        return *prefix, made[target.name]

    return of


@every_target
def test_every_level_that_runs_here_gives_the_golden_hash(target, runner, tmp_path, monkeypatch):
    command = runner(target)
    monkeypatch.setenv("WINEDEBUG", "-all")
    ran = []
    for payload in payloads_of(target):
        if target.machine in ("x86_64", "AMD64"):
            available = cpu.host_features()
            if not available.issuperset(payload.features):
                continue
        library = tmp_path / f"{payload.level}.so"
        library.write_bytes(payload.data)
        foreign = ForeignKernel([*command, library])
        monkeypatch.setattr(test_kernel, "kernel_library", lambda *a, kernel=foreign: kernel)
        tokens, digest = test_kernel.fixed_calls(("host", False))
        tokens = hashlib.sha256(np.array(tokens, "<i4").tobytes()).hexdigest()
        assert (tokens, digest) == (test_kernel.GOLDEN_TOKENS, test_kernel.GOLDEN_LOGITS)
        if target.machine in ("x86_64", "AMD64"):
            assert set(payload.features) <= foreign.cpu_features <= available
        foreign.close()
        ran.append(payload.level)
    print(f"{target.name}: {', '.join(ran)}")
    assert target.levels[0] in ran


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Run a program of a clean environment that has the wheel and no compiler.

    Dependencies come from PyPI or from pip's cache.
    """
    if HERE is None:
        pytest.skip(f"no wheel is made for {platform.system()} {cpu.machine()}")
    wheel = wheel_of(HERE.wheel_tag)
    folder = tmp_path_factory.mktemp("student")
    venv.create(folder / "env", symlinks=True, with_pip=True)
    programs = folder / "env" / "bin"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "cache", "dir"]
    cache = subprocess.run(pip, capture_output=True, text=True, check=True)
    # Nothing else is on the path, and the programs inherit none of our variables.
    environment = {
        "PATH": str(programs),
        "HOME": str(folder),
        **{name: os.environ[name] for name in os.environ if name.startswith("PIP_")},
        "PIP_CACHE_DIR": cache.stdout.strip(),
        "LLAMA_PYNQ_LOCKS": str(folder / "locks"),
    }

    def run(program, *arguments):
        done = subprocess.run(
            [programs / program, *map(str, arguments)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{program} {arguments}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    pip_install = ["install", "--quiet", "--no-compile", "--disable-pip-version-check"]
    run("pip", *pip_install, wheel, "pytest<10", "hypothesis<7")
    return run


STORY = (
    "Once upon a time, there was a little girl named Anna. She lived in a small house near the "
    "forest. One fine day, Anna saw a beautiful yellow butterfly. She ran after it."
)


def test_student_without_a_compiler_generates_the_known_text(installed):
    arguments = ["Once upon a time", "--temperature", "0", "--max-new-tokens", "36"]
    assert installed("llama-pynq", "generate", *arguments).rstrip().startswith(STORY)


def test_students_device_and_driver_pass_their_tests(installed):
    """Run the tests that compile no kernel, against the installed package."""
    engine = ("llama", "loading", "scheduler", "sequence", "slots")
    names = [f"engine/test_{name}" for name in engine]
    names += ["utils/test_lock", "emulation/test_memory"]
    tests = [REPOSITORY / "tests" / f"{name}.py" for name in names]
    installed(
        "pytest", "-q", "-x", "-p", "no:cacheprovider", "-c", REPOSITORY / "pyproject.toml", *tests
    )
