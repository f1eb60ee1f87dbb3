"""Builds the emulated overlay, and maps overlay/, hls_src/ and notebooks/ into the package."""

import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
sys.path.insert(0, str(ROOT))

from llama_pynq.emulation.build import build_emulated_overlay, default_compiler  # noqa: E402

# The kernel's source travels along: a board's overlay, or another emulator, is built from it.
HLS_FOLDERS = [
    "llama_pynq.hls_src",
    *(f"llama_pynq.hls_src.{name}" for name in ("boards", "host", "scripts", "shims", "stages")),
]


class BuildOverlay(build_ext):
    """Compiles the kernel with g++ and writes it into the emulated overlay files."""

    def run(self) -> None:
        import os
        import shutil

        folder = ROOT if self.editable_mode or self.inplace else Path(self.build_lib) / "llama_pynq"
        out = folder / "overlay" / "llama"
        if shutil.which(default_compiler().split()[0]) is None:
            # A board needs no emulator. Where one is needed, LlamaOverlay() says what is missing.
            self.warn(f"no C++ compiler ({default_compiler()}): installing without the emulator")
            shutil.rmtree(out, ignore_errors=True)  # an older build's: of another source
            return
        levels = os.environ.get("LLAMA_PYNQ_MARCH", "native").split(",")
        self.announce(f"compiling hls_src for -march={','.join(levels)}", level=2)
        build_emulated_overlay(ROOT / "hls_src", out, levels)

    def get_outputs(self) -> list[str]:
        out = Path(self.build_lib) / "llama_pynq" / "overlay" / "llama"
        return [str(path) for path in sorted(out.glob("llama.*"))]

    def get_source_files(self) -> list[str]:
        return []


class PlatformWheel(bdist_wheel):
    """The overlay holds a shared library, but no Python ABI."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension("llama_pynq.overlay.llama", sources=[])],
    cmdclass={"build_ext": BuildOverlay, "bdist_wheel": PlatformWheel},
    package_dir={
        "llama_pynq.hls_src": "hls_src",
        "llama_pynq.notebooks": "notebooks",
        "llama_pynq.overlay": "overlay",
    },
    packages=[
        "llama_pynq",
        "llama_pynq.emulation",
        *HLS_FOLDERS,
        "llama_pynq.labs",
        "llama_pynq.models",
        "llama_pynq.notebooks",
        "llama_pynq.overlay",
        "llama_pynq.train",
        "llama_pynq.vitis",
        "llama_pynq.widgets",
    ],
    package_data={
        "llama_pynq.models": ["*.bin", "*.model", "*.md"],
        "llama_pynq.notebooks": ["*.ipynb"],
        **{name: ["*.h", "*.cpp", "*.tcl", "Makefile"] for name in HLS_FOLDERS},
    },
)
