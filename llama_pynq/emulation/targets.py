"""The platforms that release wheels are built for; zig's C++ compiler builds all on one computer.

``setup.py`` builds for the platform that ``LLAMA_PYNQ_TARGET`` names, ``make wheels`` for all of
them. This module needs only the standard library, as `build` does.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from llama_pynq.errors import BuildError

# x86_64_v2, _v3 and _v4 are the psABI's levels. The kernel spends its time on dot products, for
# which processors of 2021 or newer have an instruction (VNNI): with 512 bits (Ice Lake, Zen 4) or
# with 256 bits only (Alder Lake). 512 bits without VNNI were no faster than _v3.
_X86_LEVELS = (
    "x86_64",
    "x86_64_v2",
    "x86_64_v3",
    "x86_64_v3+avxvnni",
    "x86_64_v4+avx512vnni",
)


@dataclass(frozen=True)
class WheelTarget:
    """A platform that a wheel is built for.

    Parameters
    ----------
    name : str
        Value of ``LLAMA_PYNQ_TARGET``.
    triple : str
        zig's ``-target``.
    wheel_tag : str
        Platform tag in the wheel's file name.
    system, machine : str
        As Python's `platform` names them there.
    levels : tuple of str
        Values of ``-march``, one payload each; the first runs on every such machine.
    """

    name: str
    triple: str
    wheel_tag: str
    system: str
    machine: str
    levels: tuple[str, ...]

    @property
    def compiler(self) -> tuple[str, ...]:
        """Compiler command for this platform."""
        return (sys.executable, "-m", "ziglang", "c++", "-target", self.triple)


TARGETS = {
    target.name: target
    for target in (
        WheelTarget(
            "linux-x86_64",
            "x86_64-linux-gnu.2.28",
            "manylinux_2_28_x86_64",
            "Linux",
            "x86_64",
            _X86_LEVELS,
        ),
        WheelTarget(
            "linux-aarch64",
            "aarch64-linux-gnu.2.28",
            "manylinux_2_28_aarch64",
            "Linux",
            "aarch64",
            ("generic", "generic+dotprod"),
        ),
        WheelTarget(
            "windows-x86_64",
            "x86_64-windows-gnu",
            "win_amd64",
            "Windows",
            "AMD64",
            _X86_LEVELS,
        ),
        # Even the M1, Apple's first arm64 Mac processor, has the dot-product instruction.
        WheelTarget(
            "macos-arm64",
            "aarch64-macos.11.0",
            "macosx_11_0_arm64",
            "Darwin",
            "arm64",
            ("apple_m1",),
        ),
        # macOS enables 512-bit registers for a thread on their first use and does not report them
        # before, so a 512-bit payload would never be chosen.
        WheelTarget(
            "macos-x86_64",
            "x86_64-macos.11.0",
            "macosx_11_0_x86_64",
            "Darwin",
            "x86_64",
            ("x86_64", "x86_64_v2", "x86_64_v3"),
        ),
    )
}


def target_named(name: str) -> WheelTarget:
    """The target named `name`.

    Raises
    ------
    BuildError
        If there is none.
    """
    if name not in TARGETS:
        raise BuildError(
            f"LLAMA_PYNQ_TARGET is {name!r}: it must be one of {', '.join(TARGETS)}, or unset to "
            "build for this computer."
        )
    return TARGETS[name]
