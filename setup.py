"""Build the emulated overlay, and map overlay/, hls_src/ and notebooks/ into the package.

``LLAMA_PYNQ_TARGET`` names another platform to build for (llama_pynq/emulation/targets.py).
``LLAMA_PYNQ_EMULATOR=0`` leaves the emulator out; ``=1`` compiles it on a board, too, and fails
without a compiler. By default a board compiles nothing: it has its own device, and g++ would take
its memory for minutes.
"""

from __future__ import annotations

import sys

if not (3, 10) <= sys.version_info < (3, 13):
    # An old pip would build NumPy from source before it looks at requires-python.
    sys.exit(
        "llama_pynq needs Python 3.10, 3.11 or 3.12, and this is "
        f"{sys.version_info[0]}.{sys.version_info[1]}: PYNQ needs NumPy 1, which has no wheels for "
        "newer ones. Make the virtual environment with one of them: python3.12 -m venv .venv, or "
        "uv venv --python 3.12"
    )

import contextlib
import importlib.util
import os
import platform
import shlex
import shutil
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent.resolve()
sys.path.insert(0, str(ROOT))

from llama_pynq.emulation.build import build_emulated_overlay, compiler_command  # noqa: E402
from llama_pynq.emulation.targets import WheelTarget, target_named  # noqa: E402
from llama_pynq.emulation.trust import write_manifest  # noqa: E402
from llama_pynq.errors import BuildError  # noqa: E402
from llama_pynq.utils.files import BOARD_MARKS  # noqa: E402

# The package includes the kernel's sources, to build board overlays or another emulator from.
HLS_FOLDERS = [
    "llama_pynq.hls_src",
    *(f"llama_pynq.hls_src.{name}" for name in ("boards", "host", "scripts", "shims", "stages")),
]
MAPPED = ["llama_pynq.notebooks", "llama_pynq.overlay"]


def build_target() -> WheelTarget | None:
    """The platform to build for; None for this computer."""
    name = os.environ.get("LLAMA_PYNQ_TARGET")
    if not name:
        return None
    target = target_named(name)
    if importlib.util.find_spec("ziglang") is None:
        raise BuildError(
            f"LLAMA_PYNQ_TARGET is {name!r}, but zig's compiler is not installed: make wheels "
            "installs it, or pip install --group wheels and build without isolation"
        )
    return target


def reason_for_none() -> str | None:
    """Why the emulator is left out, or None if it is compiled."""
    wanted = os.environ.get("LLAMA_PYNQ_EMULATOR", "")
    if wanted not in ("", "0", "1"):
        raise BuildError(f"LLAMA_PYNQ_EMULATOR is {wanted!r}: it must be 0, 1 or unset")
    if wanted == "0":
        return "LLAMA_PYNQ_EMULATOR is 0"
    if wanted == "1" or TARGET is not None:
        return None
    if platform.machine() == "armv7l" or any(mark.exists() for mark in BOARD_MARKS):
        return "this is a board"
    compiler = compiler_command()[0]
    return f"no C++ compiler ({compiler})" if shutil.which(compiler) is None else None


def tell_on_terminal(message: str) -> None:
    """Write to the user's terminal: pip shows the output of a build only with -v."""
    with contextlib.suppress(OSError), open("/dev/tty", "w", encoding="utf-8") as terminal:
        terminal.write(f"\n{message}\n")


TARGET = build_target()
WITHOUT_EMULATOR = reason_for_none()


class BuildPackage(build_py):
    """Copies the package; warns if the emulator is left out."""

    def run(self) -> None:
        super().run()
        if WITHOUT_EMULATOR:
            message = (
                f"{WITHOUT_EMULATOR}: installing without the emulator. To compile it later: "
                "python -m llama_pynq.emulation.build"
            )
            self.warn(message)
            tell_on_terminal(f"llama_pynq: {message}")
            if self.editable_mode:  # from an older build, of other sources
                shutil.rmtree(ROOT / "overlay" / "llama", ignore_errors=True)


class BuildOverlay(build_ext):
    """Compiles the kernel and writes it into the emulated overlay files."""

    def run(self) -> None:
        folder = ROOT if self.editable_mode or self.inplace else Path(self.build_lib) / "llama_pynq"
        levels = os.environ.get("LLAMA_PYNQ_MARCH", "native").split(",")
        cxx = None
        if TARGET is not None:
            levels, cxx = TARGET.levels, shlex.join(TARGET.compiler)
        self.announce(f"compiling hls_src for -march={','.join(levels)}", level=2)
        out = folder / "overlay" / "llama"
        build_emulated_overlay(ROOT / "hls_src", out, levels, cxx=cxx, target=TARGET, record=False)
        if folder == ROOT:  # a wheel has a RECORD of its own
            write_manifest(out)

    def get_outputs(self) -> list[str]:
        out = Path(self.build_lib) / "llama_pynq" / "overlay" / "llama"
        return [str(path) for path in sorted(out.glob("llama.*"))]

    def get_source_files(self) -> list[str]:
        return []


class PlatformWheel(bdist_wheel):
    """The overlay holds shared libraries, but no Python ABI."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", TARGET.wheel_tag if TARGET else super().get_tag()[2]


setup(
    # Without an extension, the wheel is for every platform.
    ext_modules=[] if WITHOUT_EMULATOR else [Extension("llama_pynq.overlay.llama", sources=[])],
    cmdclass={"build_ext": BuildOverlay, "build_py": BuildPackage, "bdist_wheel": PlatformWheel},
    package_dir={
        "llama_pynq.hls_src": "hls_src",
        "llama_pynq.notebooks": "notebooks",
        "llama_pynq.overlay": "overlay",
    },
    packages=[*find_packages(include=["llama_pynq*"]), *MAPPED, *HLS_FOLDERS],
    package_data={
        "llama_pynq.models": ["*.bin", "*.model", "*.md"],
        "llama_pynq.notebooks": ["*.ipynb"],
        **{name: ["*.h", "*.cpp", "*.tcl", "Makefile"] for name in HLS_FOLDERS},
    },
)
