"""CPU features: those that a compiled kernel may use, and those that this CPU has.

A compiler's predefined macros name the instructions it may use. The operating system lists
those of the CPU; on Windows and on Macs with an Intel processor, the payload that needs no
features queries the CPU instead. Comparing the two turns a crash by an illegal instruction
into an error message.
"""

from __future__ import annotations

import platform
import re
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from llama_pynq.emulation import emulator
from llama_pynq.emulation.container import Payload, describe_levels, extract
from llama_pynq.errors import OverlayMismatch

# Only features that a compiler uses for plain C++. -march also announces CLWB or SGX, for
# example, but a compiler emits those only for code that asks for them.
# Macro -> name in /proc/cpuinfo on Linux.
_FEATURES = {
    "__SSE3__": "pni",
    "__SSSE3__": "ssse3",
    "__SSE4_1__": "sse4_1",
    "__SSE4_2__": "sse4_2",
    "__POPCNT__": "popcnt",
    "__LZCNT__": "abm",
    "__MOVBE__": "movbe",
    "__BMI__": "bmi1",
    "__BMI2__": "bmi2",
    "__ADX__": "adx",
    "__AVX__": "avx",
    "__F16C__": "f16c",
    "__FMA__": "fma",
    "__FMA4__": "fma4",
    "__XOP__": "xop",
    "__TBM__": "tbm",
    "__AVX2__": "avx2",
    "__AVXVNNI__": "avx_vnni",
    "__AVXIFMA__": "avx_ifma",
    "__AVXVNNIINT8__": "avx_vnni_int8",
    "__AVXVNNIINT16__": "avx_vnni_int16",
    "__AVXNECONVERT__": "avx_ne_convert",
    "__AVX512F__": "avx512f",
    "__AVX512CD__": "avx512cd",
    "__AVX512BW__": "avx512bw",
    "__AVX512DQ__": "avx512dq",
    "__AVX512VL__": "avx512vl",
    "__AVX512IFMA__": "avx512ifma",
    "__AVX512VBMI__": "avx512vbmi",
    "__AVX512VBMI2__": "avx512_vbmi2",
    "__AVX512VNNI__": "avx512_vnni",
    "__AVX512BITALG__": "avx512_bitalg",
    "__AVX512VPOPCNTDQ__": "avx512_vpopcntdq",
    "__AVX512BF16__": "avx512_bf16",
    "__AVX512FP16__": "avx512_fp16",
    "__GFNI__": "gfni",
    "__VAES__": "vaes",
    "__VPCLMULQDQ__": "vpclmulqdq",
    "__ARM_FEATURE_ATOMICS": "atomics",
    "__ARM_FEATURE_QRDMX": "asimdrdm",
    "__ARM_FEATURE_DOTPROD": "asimddp",
    "__ARM_FEATURE_FP16_VECTOR_ARITHMETIC": "asimdhp",
    "__ARM_FEATURE_FP16_FML": "asimdfhm",
    "__ARM_FEATURE_MATMUL_INT8": "i8mm",
    "__ARM_FEATURE_BF16": "bf16",
    "__ARM_FEATURE_SVE": "sve",
    "__ARM_FEATURE_SVE2": "sve2",
}


def features_from_macros(predefined: str) -> tuple[str, ...]:
    """CPU features that code compiled under these macros may use.

    Parameters
    ----------
    predefined : str
        Output of ``g++ -march=... -dM -E``.
    """
    defined = set(re.findall(r"^#define (\w+)", predefined, flags=re.MULTILINE))
    return tuple(sorted(name for macro, name in _FEATURES.items() if macro in defined))


# Features of Apple's M1 that a compiler may use. The M1 was the first arm64 processor of a Mac,
# and none of the later ones lacks any of these features.
APPLE_M1 = frozenset({"atomics", "asimdrdm", "asimddp", "asimdhp", "asimdfhm"})


def machine() -> str:
    """Architecture that this interpreter is compiled for, as `platform.machine` names it.

    On Windows `platform.machine` may name the computer's architecture instead: an arm64 computer
    also runs x86-64 interpreters, and these cannot load arm64 libraries.
    """
    of_interpreter = {"win-amd64": "AMD64", "win-arm64": "ARM64"}
    return of_interpreter.get(sysconfig.get_platform(), platform.machine())


def host_features() -> frozenset[str] | None:
    """CPU features of this machine, or None where the system does not list them."""
    if (platform.system(), machine()) == ("Darwin", "arm64"):
        return APPLE_M1
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    lines = re.findall(r"^(?:flags|Features)\s*:(.*)$", text, flags=re.MULTILINE)
    if not lines:
        return None
    # Cores may differ (big.LITTLE): only what all of them have is safe.
    return frozenset.intersection(*(frozenset(line.split()) for line in lines))


def features_by_asking(payloads: Sequence[Payload]) -> frozenset[str] | None:
    """CPU features as detected by a payload that needs none; None without such a payload."""
    for payload in payloads:
        if not payload.features:
            return emulator.cpu_features(extract(payload))
    return None


def choose(payloads: Sequence[Payload], source: str) -> Payload:
    """Choose the payload for the best level that this machine can run.

    Raises
    ------
    OverlayMismatch
        If this machine can run none; the message names what is missing.
    """
    here = (platform.system(), machine())
    native = [p for p in payloads if (p.system, p.machine) == here]
    remedy = "Build it here, which takes a C++ compiler: python -m llama_pynq.emulation.build"
    if not native:
        raise OverlayMismatch(
            f"{source} holds no kernel for {' '.join(here)}, "
            f"only {describe_levels(payloads)}. {remedy}"
        )
    available = host_features()
    if available is None:
        available = features_by_asking(native)
    if available is None:
        return min(native, key=lambda p: len(p.features))
    usable = [p for p in native if available.issuperset(p.features)]
    if not usable:
        nearest = min(native, key=lambda p: len(set(p.features) - available))
        missing = ", ".join(sorted(set(nearest.features) - available))
        raise OverlayMismatch(
            f"{source} needs CPU features that this machine lacks: {missing} "
            f"(kernel compiled for -march={nearest.level}). {remedy}"
        )
    return max(usable, key=lambda p: len(p.features))
