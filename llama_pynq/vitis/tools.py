"""Find AMD's tools, check their versions, and run them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llama_pynq.errors import BuildError
from llama_pynq.vitis.platforms import Card

OLDEST, NEWEST = (2022, 1), (2024, 2)
"""Tool versions that the scripts were written for. PYNQ 3.0.1 and Kria-PYNQ were built with 2022.1;
vitis_hls is to be removed after 2024.2 (Vitis Libraries 2024.2). XRT 2.13 to 2.16 came with 2022.1
to 2023.2 (recalled, not looked up). None of the versions was tried."""

_SHELLS = Path("/opt/xilinx/platforms")


@dataclass(frozen=True)
class Tool:
    """An AMD tool: its command lines, and the option that prints its version.

    Attributes
    ----------
    name : str
        Name in an overlay's record.
    commands : tuple of (str, ...)
        Command lines to which a script's name is appended; the first whose program is on PATH is
        used.
    version_option : str
    product : str
        Product to install.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    version_option: str
    product: str


# vitis-run came with 2023.2, and vitis_hls is to be removed after 2024.2 (Vitis Libraries 2024.2).
VITIS_HLS = Tool(
    "vitis_hls",
    (("vitis-run", "--mode", "hls", "--tcl"), ("vitis_hls", "-f")),
    "-version",
    "Vitis (AMD's unified installer)",
)
VIVADO = Tool(
    "vivado",
    (("vivado", "-mode", "batch", "-nojournal", "-log", "vivado.log", "-source"),),
    "-version",
    "Vivado (AMD's unified installer; the Standard edition needs no licence for these boards)",
)
VPP = Tool("v++", (("v++",),), "--version", "Vitis (AMD's unified installer)")


@dataclass(frozen=True)
class FoundTool:
    """An installed tool: its command line, and the version it reports."""

    tool: Tool
    command: tuple[str, ...]
    version: str


def find(tool: Tool, any_version: bool = False) -> FoundTool:
    """Find a tool on PATH, and check its version.

    Parameters
    ----------
    tool : Tool
    any_version : bool
        Also accept versions outside `OLDEST` to `NEWEST`.

    Raises
    ------
    BuildError
        If the tool is missing, does not report its version, or has another version.
    """
    names = " or ".join(command[0] for command in tool.commands)
    command = next((c for c in tool.commands if shutil.which(c[0])), None)
    if command is None:
        raise BuildError(
            f"{names} is not on PATH. Install {tool.product}, {_text(OLDEST)} to {_text(NEWEST)}, "
            "and in this shell: source <where it is installed>/settings64.sh"
        )
    option = "--version" if command[0] == "vitis-run" else tool.version_option
    done = subprocess.run(
        [command[0], option], capture_output=True, text=True, check=False, errors="replace"
    )
    # If the output has no version, the path has one: .../Vitis/2024.1/bin/vitis-run.
    places = (done.stdout + done.stderr, str(Path(shutil.which(command[0]) or "").resolve()))
    found = next(filter(None, (re.search(r"(?<!\d)(20\d\d)\.(\d)\b", at) for at in places)), None)
    if found is None:
        shown = (done.stdout + done.stderr).strip()[-300:] or "nothing"
        raise BuildError(
            f"{command[0]} {option} does not say its version (exit status {done.returncode}). It "
            f"printed: {shown}"
        )
    version = (int(found.group(1)), int(found.group(2)))
    if not OLDEST <= version <= NEWEST and not any_version:
        raise BuildError(
            f"{command[0]} is of version {_text(version)}: the scripts were written for "
            f"{_text(OLDEST)} to {_text(NEWEST)}. Install one of those, or, to try yours, add "
            "ANY_VERSION=1 to the make command (python -m llama_pynq.vitis: --any-version)"
        )
    return FoundTool(tool, command, _text(version))


def seen_from_here(path: Path) -> str:
    """Return a hint for errors: the folder that a relative path starts from, which -C changes."""
    if path.is_absolute():
        return ""
    return f" (relative to {Path.cwd()}: make -C goes to hls_src first, so give the whole path)"


def _text(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def find_shell(card: Card, named: str | None = None) -> str:
    """Find the platform of a card that v++ links for: the newest one installed.

    Parameters
    ----------
    card : Card
    named : str or None
        A platform's name, used as it is, or the path of its .xpfm.

    Raises
    ------
    BuildError
        If none is installed, or there is no such file.
    """
    if named and named.endswith(".xpfm"):
        if not Path(named).is_file():
            raise BuildError(f"there is no platform file {named}{seen_from_here(Path(named))}")
        return str(Path(named).resolve())
    if named:
        return named
    folders = [_SHELLS]
    for variable in ("PLATFORM_REPO_PATHS", "XILINX_PLATFORMS"):
        folders += [Path(p) for p in os.environ.get(variable, "").split(os.pathsep) if p]
    if vitis := os.environ.get("XILINX_VITIS"):
        folders.append(Path(vitis) / "platforms")
    found = {
        path.stem: path
        for folder in folders
        for pattern in (f"{card.shell}/*.xpfm", "*.xpfm")
        for path in folder.glob(pattern)
        if path.match(f"{card.shell}.xpfm")
    }
    if not found:
        raise BuildError(
            f"no platform {card.shell} is installed in {', '.join(map(str, folders))}. Install the "
            "card's deployment and development platform (AMD's page of the card, 'Getting "
            "Started'), or name one: add PLATFORM=<name, or path of the .xpfm> to the make command "
            "(python -m llama_pynq.vitis: --platform)"
        )

    def age(name: str) -> list[int]:
        return [int(part) for part in re.findall(r"\d+", name)]

    return str(found[max(found, key=age)])


def run(found: FoundTool, args: list[str], folder: Path, settings: Mapping[str, str]) -> None:
    """Run a tool in `folder`; its output goes to the same place as ours.

    Raises
    ------
    BuildError
        If it fails.
    """
    command = [*found.command, *args]
    print(f"[{folder}] {shlex.join(command)}", flush=True)
    done = subprocess.run(command, cwd=folder, env={**os.environ, **settings}, check=False)
    if done.returncode:
        raise BuildError(
            f"{found.tool.name} failed with exit status {done.returncode}; its output is above, "
            f"and its log in {folder}"
        )
