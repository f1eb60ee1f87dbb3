"""Compile the kernel for emulation and write the overlay files.

``python -m llama_pynq.emulation.build`` compiles for this computer, into the user's cache folder.
Use it on a board, where installation compiles nothing, and where a wheel has no kernel for the CPU.

``setup.py`` calls `build_emulated_overlay` in an empty build environment, so this module needs only
the standard library and a C++ compiler, neither PYNQ nor NumPy.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from llama_pynq.device.bitfiles import read_overlay
from llama_pynq.emulation import container, cpu, hwh, trust, xclbin
from llama_pynq.emulation.container import Container, Payload
from llama_pynq.emulation.design import xclbin_design, zynq_design
from llama_pynq.emulation.targets import WheelTarget
from llama_pynq.errors import BuildError, LlamaPynqError, OverlayMismatch
from llama_pynq.kernel import config, registers, top
from llama_pynq.utils.files import (
    BOARD_MARKS,
    cache_folder,
    checkout_folder,
    package_folders,
    user_path,
    write_atomically,
)
from llama_pynq.utils.temporary import temporary_folder

# -ffp-contract=off: the kernel's arithmetic is specified, and a fused multiply-add rounds once
# instead of twice. The other -f flags change no result. -fno-sanitize=undefined: zig's compiler
# adds checks for undefined behaviour by default.
FLAGS = (
    "-std=c++14",
    "-O3",
    "-fPIC",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-sanitize=undefined",
    "-pthread",
    "-fvisibility=hidden",
)
# Width 256: a dot product ends in a sum across its vector, which takes longer the wider the vector.
# -mtune=generic: on Zen 3 and 4, generic code is faster than what g++ 12 tunes for these processors
# (zig's compiler has no such tuning, and needs none: it compiles for levels). With both, four
# sequences took 13% less time than with -march=native alone, one sequence 8% less (EPYC, Zen 4).
_X86_FLAGS = ("-mprefer-vector-width=256",)
_X86_NATIVE_FLAGS = (*_X86_FLAGS, "-mtune=generic")
# No -march: with it, zig would compile the C++ library that it links in once for each level.
_LINK_FLAGS = ("-O3", "-shared", "-pthread", "-s")
_STDERR_LINES = 20


def _run(command: Sequence[str], remedy: str) -> str:
    """Run a compiler and return its standard output."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(
            f"cannot build the emulated overlay: {command[0]} could not be run "
            f"({error.strerror}). Install a C++ compiler (Debian, Ubuntu: apt install g++; "
            f"macOS: xcode-select --install), or name one in the environment variable CXX."
        ) from error
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        shown = "\n  ".join(lines[:_STDERR_LINES])
        more = f"\n  ... {len(lines) - _STDERR_LINES} more lines" * (len(lines) > _STDERR_LINES)
        raise BuildError(
            f"cannot build the emulated overlay: the compiler failed.\n"
            f"Command: {shlex.join(command)}\n  {shown}{more}\n{remedy}"
        )
    return done.stdout


def default_compiler() -> str:
    """The C++ compiler: CXX from the environment, else g++."""
    return os.environ.get("CXX") or "g++"


def compiler_command(cxx: str | None = None) -> list[str]:
    """Words of the C++ compiler's command: `cxx`, else CXX from the environment, else g++.

    Raises
    ------
    BuildError
        If it is no command, such as one with an open quotation mark.
    """
    text = cxx or default_compiler()
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise BuildError(
            f"the C++ compiler is given as {text!r}, which is no command ({error}): correct the "
            "environment variable CXX, such as CXX=g++"
        ) from None
    if not words:
        raise BuildError(f"the C++ compiler is given as {text!r}: name one in CXX, such as CXX=g++")
    return words


def required_features(march: str, cxx: str | None = None) -> tuple[str, ...]:
    """CPU features that `cxx` may use when compiling for `march`.

    Raises
    ------
    BuildError
        If the compiler is missing or does not know `march`.
    """
    command = [*compiler_command(cxx), f"-march={march}"]
    command += ["-dM", "-E", "-x", "c++", os.devnull]
    return cpu.features_from_macros(
        _run(command, f"Choose an instruction-set level this compiler knows, not {march!r}.")
    )


def compile_kernel(
    sources: Sequence[Path],
    include: Sequence[Path],
    output: Path,
    march: str,
    cxx: str | None = None,
    extra_flags: Sequence[str] = (),
) -> None:
    """Compile and link `sources` into the shared library `output`, written atomically.

    Raises
    ------
    BuildError
        If the compiler is missing or fails; the message has the command and its error output.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    remedy = "The kernel compiles with g++ 9 or newer (apt install g++)."
    compiler = compiler_command(cxx)
    with temporary_folder(output.parent, output.name) as folder:
        objects = []
        for index, source in enumerate(sources):
            objects.append(str(folder / f"{index}.o"))
            command = [*compiler, *FLAGS, f"-march={march}", *extra_flags]
            command += [*(f"-I{path}" for path in include), "-c", str(source), "-o", objects[-1]]
            _run(command, remedy)
        temporary = folder / output.name
        _run([*compiler, *_LINK_FLAGS, *objects, "-o", str(temporary)], remedy)
        os.replace(temporary, output)


def write_overlays(
    folder: Path,
    payloads: Sequence[Payload],
    constants: Mapping[str, int],
    record: bool = True,
) -> None:
    """Write ``llama.xclbin``, ``llama.bit`` and ``llama.hwh`` into `folder`.

    This user's emulated devices trust them from then on: their hashes are recorded.

    Parameters
    ----------
    folder : Path
        Created if it is missing.
    payloads : sequence of Payload
        One for each instruction-set level.
    constants : mapping of str to int
        Constants of the compiled kernel's header (`config.board_constants`).
    record : bool
        False: record no trust.
    """
    name = registers.IP_NAME
    shape = (
        constants["kChannels"],
        constants["kKvPorts"],
        constants.get("kClockMhz", 0),
        bool(constants["kSharedMasters"]),
    )
    alveo = xclbin_design(*shape)
    bitstream = container.pack(Container(alveo, tuple(payloads)))
    files = {folder / f"{name}.xclbin": xclbin.write(bitstream, alveo)}

    zynq = zynq_design(*shape)
    metadata = hwh.write_hwh(zynq)
    digest = hashlib.sha256(metadata).hexdigest()
    bitstream = container.pack(Container(zynq, tuple(payloads), digest))
    write_atomically(folder / f"{name}.hwh", metadata)
    files[folder / f"{name}.bit"] = hwh.write_bit(bitstream)
    unrecorded = None
    for path, data in files.items():
        write_atomically(path, data)
        if record:
            unrecorded = trust.record_build(trust.digest_of(data), path) or unrecorded
    if unrecorded is not None:
        print(
            f"llama_pynq: {folder} can be loaded by this process only: {unrecorded}",
            file=sys.stderr,
        )


def build_payloads(
    sources: Sequence[Path],
    include: Sequence[Path],
    levels: Sequence[str] = ("native",),
    cxx: str | None = None,
    extra_flags: Sequence[str] = (),
    target: WheelTarget | None = None,
) -> list[Payload]:
    """Compile the kernel once for each instruction-set level, in parallel.

    The payloads are for `target`, which `cxx` must compile for, or for this computer.

    Raises
    ------
    BuildError
        If the compiler is missing or fails.
    """
    system, machine = platform.system(), cpu.machine()
    if target is not None:
        system, machine = target.system, target.machine
    is_x86 = machine in ("x86_64", "AMD64")

    def build(level: str) -> Payload:
        features = required_features(level, cxx)
        with temporary_folder(Path(tempfile.gettempdir()), registers.IP_NAME) as folder:
            library = folder / f"{registers.IP_NAME}.so"
            tuning = _X86_NATIVE_FLAGS if level == "native" else _X86_FLAGS
            flags = [*(tuning if is_x86 else ()), *extra_flags]
            compile_kernel(sources, include, library, level, cxx, flags)
            data = library.read_bytes()
        return Payload(level, system, machine, features, data)

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return list(pool.map(build, levels))


def build_emulated_overlay(
    hls_src: Path,
    out: Path,
    levels: Sequence[str] = ("native",),
    *,
    board: str = "host",
    sources: Sequence[Path] | None = None,
    top_function: Callable[[Path], str] = top.top_function,
    cxx: str | None = None,
    extra_flags: Sequence[str] = (),
    target: WheelTarget | None = None,
    record: bool = True,
) -> None:
    """Compile the kernel in `hls_src` and write the emulated overlay into `out`.

    Parameters
    ----------
    hls_src : Path
        Folder of the kernel; on the include path.
    out : Path
        Receives llama.xclbin, llama.bit and llama.hwh.
    levels : sequence of str
        Values of -march, one payload each. ``native`` runs on machines like this one only.
    board : str
        Configuration ``boards/<board>.h``: gives channels and clock.
    sources : sequence of Path, optional
        C++ files to compile with the top function; default: those in `hls_src` and in
        ``hls_src/host``.
    top_function : callable
        C++ source of the top function for a board's header.
    cxx : str, optional
        The compiler; default CXX from the environment, else g++.
    extra_flags : sequence of str
        More compiler flags.
    target : WheelTarget, optional
        Platform that `cxx` compiles for; default this computer.
    record : bool
        Whether this user's emulated devices are to trust the overlay: `write_overlays`.

    Raises
    ------
    BuildError
        If there is nothing to compile, or the compiler is missing or fails.
    """
    hls_src, out = user_path(hls_src), user_path(out)
    header = hls_src / "boards" / f"{board}.h"
    if not os.path.isfile(header):
        raise BuildError(
            f"there is no config header {header}: give the folder of the kernel, hls_src"
        )
    constants = config.board_constants(header)
    if sources is None:
        sources = [*sorted(hls_src.glob("*.cpp")), *sorted((hls_src / "host").glob("*.cpp"))]
    if not sources:
        raise BuildError(
            f"cannot build the emulated overlay: {hls_src} holds no .cpp files. "
            f"The sdist or checkout is incomplete; fetch it again."
        )
    with temporary_folder(Path(tempfile.gettempdir()), registers.IP_NAME) as folder:
        top = folder / "top.cpp"
        top.write_text(top_function(header), encoding="utf-8")
        flags = [f'-DLLAMA_BOARD_HEADER="boards/{board}.h"', *extra_flags]
        payloads = build_payloads([top, *sources], [hls_src], levels, cxx, flags, target)
    write_overlays(out, payloads, constants, record)


def own_build_folder() -> Path:
    """Output folder of this command, in the cache folder; named by a hash of the kernel's sources.

    The hash keeps a build of another version's sources from being used.
    """
    hls_src = Path(package_folders("hls_src")[0])
    digest = hashlib.sha256(top.top_function(hls_src / "boards" / "host.h").encode())
    for path in sorted(path for path in hls_src.rglob("*.*") if path.suffix in (".h", ".cpp")):
        digest.update(path.relative_to(hls_src).as_posix().encode() + b"\0" + path.read_bytes())
    return cache_folder() / "emulator" / digest.hexdigest()[:16]


def emulated_overlay(suffix: str = ".xclbin") -> Path:
    """Path of the emulated overlay: the one compiled on this computer, else the installed one.

    Parameters
    ----------
    suffix : {".xclbin", ".bit"}
        The Alveo or the Zynq flavour.

    In a checkout that has none it is compiled, once, into the cache folder.

    Raises
    ------
    OverlayMismatch
        If there is none: the package was installed on a board, or without a C++ compiler.
    BuildError
        If the compiler fails.
    """
    try:
        path = built_overlay(suffix)
        # An older build of this checkout may have left no record of trust.
        if _is_trusted(path) or not _compiles_by_itself():
            return path
    except OverlayMismatch:
        if not _compiles_by_itself():
            raise
    folder = own_build_folder()
    print(
        f"llama_pynq: compiling the emulated device from this checkout's hls_src/ into {folder}: "
        "a minute or so, once",
        file=sys.stderr,
        flush=True,
    )
    _build_own(folder)
    return folder / f"{registers.IP_NAME}{suffix}"


def built_overlay(suffix: str = ".xclbin") -> Path:
    """Path of the emulated overlay as `emulated_overlay` finds it, but compile nothing.

    Raises
    ------
    OverlayMismatch
        If there is none.
    """
    folders = [own_build_folder()]
    folders += [Path(folder) / registers.IP_NAME for folder in package_folders("overlay")]
    paths = [folder / f"{registers.IP_NAME}{suffix}" for folder in folders]
    found = [path for path in paths if os.path.isfile(path)]
    if found:
        # The device says why it does not load one that is not trusted.
        return next((path for path in found if _is_trusted(path)), found[0])
    raise OverlayMismatch(
        "the emulated overlay is not installed: it is left out on boards, and where the package "
        "was built without a C++ compiler. To compile it for this computer: python -m "
        "llama_pynq.emulation.build (it needs g++; Debian, Ubuntu: apt install g++)"
    )


def _is_trusted(path: Path) -> bool:
    try:
        return trust.is_trusted(trust.digest_of(read_overlay(path)))
    except OverlayMismatch:
        return False


def _build_own(folder: Path) -> None:
    try:
        build_emulated_overlay(Path(package_folders("hls_src")[0]), folder)
    except OSError as error:
        raise BuildError(
            f"the emulated overlay cannot be written to {folder} ({error.strerror or error}): set "
            "LLAMA_PYNQ_CACHE to a folder that you may write to, or make room there"
        ) from error


def _compiles_by_itself() -> bool:
    """Whether Python runs in a checkout, on a computer with a compiler that is not a board.

    On a board the compiler takes minutes, and its memory.
    """
    if checkout_folder() is None or any(mark.exists() for mark in BOARD_MARKS):
        return False
    return shutil.which(compiler_command()[0]) is not None


def main(argv: Sequence[str] | None = None) -> int:
    """Compile the emulator for this computer."""
    argparse.ArgumentParser(
        prog="python -m llama_pynq.emulation.build",
        description="Compile the emulated device for this computer's processor, with g++ or the "
        "compiler in CXX, into the cache folder (LLAMA_PYNQ_CACHE), where the package finds it. "
        "Takes seconds to a minute on a computer, minutes on a board.",
    ).parse_args(argv)
    try:
        folder = own_build_folder()
        print(f"Compiling the emulated overlay into {folder}", flush=True)
        _build_own(folder)
    except LlamaPynqError as error:
        print(f"llama_pynq.emulation.build: {error}", file=sys.stderr)
        return 1
    print("Done. The emulated device finds it there: llama-pynq generate --emulate")
    return 0


if __name__ == "__main__":
    sys.exit(main())
