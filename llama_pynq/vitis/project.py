"""Generate the tools' input files for a board, so that every fact has one source.

``top.cpp`` holds the kernel's top function (`kernel/top.py`), ``settings.tcl`` the settings of
``hls_src/scripts/*.tcl``, and ``connectivity.cfg`` a card's memory banks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llama_pynq.boards import Board, find_board
from llama_pynq.errors import BuildError
from llama_pynq.kernel.config import (
    board_constants,
    board_headers,
    read_constants,
    require_constants,
)
from llama_pynq.kernel.registers import (
    IP_NAME,
    LIBRARY,
    VENDOR,
    VERSION,
    VLNV,
    Argument,
    board_arguments,
)
from llama_pynq.kernel.top import top_function
from llama_pynq.utils.files import user_path, write_atomically
from llama_pynq.vitis.platforms import CONTROL_RANGE, PLATFORMS, Card, ProcessorPort, Zynq
from llama_pynq.vitis.tools import seen_from_here

PROCESSOR_CELL = "{}_0"
_NARROW_BYTES = 4  # width of the ports that carry 32-bit words


def source_folder() -> Path:
    """Return ``hls_src`` of this checkout, else the installed one.

    Raises
    ------
    BuildError
        If there is neither.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package.parent / "hls_src", package / "hls_src"):
        if (folder / "config.h").exists():
            return folder
    raise BuildError(f"hls_src is missing: it is neither beside nor in {package}. Use a checkout")


def _header(source: Path, board: Board) -> Path:
    headers = board_headers(source)
    if board.header not in headers:
        raise BuildError(f"{source / 'boards'} has no header whose kBoardName is {board.header!r}")
    return headers[board.header]


def _check(header: Path, source: Path) -> None:
    """Raise BuildError if a header lacks a constant that the build's files need."""
    like = f"compare it with those in {source}/boards"
    names = ("kClockMhz", "kChannels", "kKvPorts", "kBeatBytes", "kKvBeatBytes", "kFaddLatency")
    try:
        constants = board_constants(header)
        require_constants(constants, names, header)
    except ValueError as error:  # the error names the header
        raise BuildError(f"{error}: {like}") from error
    for name in names:
        if constants[name] == 0:
            raise BuildError(f"{name} of {header} is 0: {like}")


@dataclass(frozen=True)
class Project:
    """One board's build: its inputs, and its output folder.

    Attributes
    ----------
    board : Board
    platform : Zynq or Card
    source, header : Path
        ``hls_src``, and the board's config header in it.
    folder : Path
        Output folder of everything generated.
    """

    board: Board
    platform: Zynq | Card
    source: Path
    header: Path
    folder: Path

    @classmethod
    def of(cls, name: str, folder: Path, header: Path | None = None) -> Project:
        """Return the project of a board.

        Parameters
        ----------
        name : str
            One of `PLATFORMS`.
        folder : Path
        header : Path or None
            A custom config header; None: the board's.

        Raises
        ------
        BuildError
            If no build is known for a board of that name, or the header is missing or lacks a
            constant.
        """
        board = find_board(name)
        if board.name not in PLATFORMS:
            raise BuildError(
                f"cannot build for {board.name}: {board.no_build}. Choose {', '.join(PLATFORMS)}"
            )
        source, folder = source_folder(), user_path(folder)
        header = None if header is None else user_path(header)
        if header is not None and not header.is_file():
            raise BuildError(
                f"{header} is missing{seen_from_here(header)}: name a config header like those in "
                f"{source}/boards"
            )
        header = header.resolve() if header else _header(source, board)
        _check(header, source)
        return cls(board, PLATFORMS[board.name], source, header, folder.resolve())

    @property
    def constants(self) -> dict[str, int]:
        return board_constants(self.header)

    @property
    def clock_mhz(self) -> int:
        """Clock requested from the tools: the header's, or the board's maximum if lower."""
        return min(self.constants["kClockMhz"], self.board.max_clock_mhz)

    @property
    def arguments(self) -> tuple[Argument, ...]:
        return board_arguments(self.constants)

    @property
    def abi(self) -> int:
        """kAbiVersion of the source."""
        return read_constants(self.source / "contract.h")["kAbiVersion"]

    def bundles(self) -> dict[str, int]:
        """Return the bytes a cycle of each of the kernel's AXI masters: weights, KV cache, rest."""
        constants = self.constants
        widths: dict[str, int] = {}
        for kind, width in (
            ("gmem_w", constants["kBeatBytes"]),
            ("gmem_kv", constants["kKvBeatBytes"]),
            ("gmem_", _NARROW_BYTES),
        ):
            for arg in self.arguments:
                if arg.bundle and arg.bundle.startswith(kind):
                    widths.setdefault(arg.bundle, width)
        return widths

    def write(self) -> None:
        """Write the generated files.

        Raises
        ------
        BuildError
            If the kernel has more AXI masters than the card's shell takes, or a path has a
            character that the tools do not accept.
        """
        for path in (self.folder, self.source, self.header):
            if re.search(r"[\s{}\\$\[\];\"#]", path.as_posix()):
                raise BuildError(
                    f"{path} has a space or one of {{}}$[];\"# in its name, which the tools' "
                    "command lines do not take: use another folder"
                )
        files = {"top.cpp": self.top(), "settings.tcl": self.settings()}
        if isinstance(self.platform, Card):
            files["connectivity.cfg"] = connectivity(self)
        for name, text in files.items():
            write_atomically(self.folder / name, text.encode())

    def top(self) -> str:
        """Return the source of the top function, which itself defines the board's header.

        A macro with quotes in it does not survive every tool's command line.
        """
        inside = self.header.is_relative_to(self.source)
        header = self.header.relative_to(self.source) if inside else self.header
        return f'#define LLAMA_BOARD_HEADER "{header.as_posix()}"\n{top_function(self.header)}'

    def settings(self) -> str:
        """Return the settings of the Tcl scripts, as Tcl."""
        card = isinstance(self.platform, Card)
        values: dict[str, object] = {
            "board": self.board.name,
            "source": self.source.as_posix(),
            "part": self.platform.part,
            "period_ns": f"{1000 / self.clock_mhz:.3f}",
            "fadd_latency": self.constants["kFaddLatency"],
            "flow_target": "vitis" if card else "vivado",
            "ip_name": IP_NAME,
            "vendor": VENDOR,
            "library": LIBRARY,
            "version": VERSION,
            "vlnv": VLNV,
        }
        if isinstance(self.platform, Zynq):
            values |= _block_design(self, self.platform)
        lines = [f"set {name} {_tcl(value)}\n" for name, value in values.items()]
        return "# Generated by llama_pynq.vitis: do not edit.\n" + "".join(lines)


def _tcl(value: object) -> str:
    """Format a value as a Tcl word; mappings and sequences become lists."""
    if isinstance(value, Mapping):
        value = [part for item in value.items() for part in item]
    if isinstance(value, (list, tuple)):
        return "{" + " ".join(map(_tcl, value)) + "}"
    text = str(value)
    return "{" + text + "}" if not text or re.search(r'[\s"$\[\];#]', text) else text


def share_ports(
    bundles: Mapping[str, int], ports: tuple[ProcessorPort, ...]
) -> dict[str, list[str]]:
    """Assign the kernel's masters to the processor's ports.

    Each master goes to the port with the least load so far, in bytes a cycle, the widest first. So
    each weight channel has its own port as long as there are any, the KV cache's masters are spread
    over the ports, and the narrow ones go where there is room. `estimate/streams.py` assumes this:
    the ports together are the limit, not one of them.

    Parameters
    ----------
    bundles : dict of str to int
        See `Project.bundles`.
    ports : tuple of ProcessorPort
        In the order of use.

    Returns
    -------
    dict of str to list of str
        Masters of each port that has any, by the port's name.
    """
    load = {port.name: 0 for port in ports}
    shared: dict[str, list[str]] = {port.name: [] for port in ports}
    for bundle, width in bundles.items():
        port = min(load, key=load.__getitem__)
        load[port] += width
        shared[port].append(bundle)
    return {port: masters for port, masters in shared.items() if masters}


def _block_design(project: Project, platform: Zynq) -> dict[str, object]:
    processor = platform.processor
    shared = share_ports(project.bundles(), processor.ports)
    used = [port for port in processor.ports if port.name in shared]
    properties = [
        *processor.properties,
        *(setting for port in used for setting in port.properties),
    ]
    return {
        "board_part": platform.board_part,
        "board_files": platform.board_files,
        "processor_ip": f"xilinx.com:ip:{processor.ip}",
        "processor_rule": f"xilinx.com:bd_rule:{processor.ip}",
        "processor": PROCESSOR_CELL.format(processor.ip),
        "preset": [part for item in processor.preset for part in item],
        "processor_properties": {f"CONFIG.{name}": value for name, value in properties},
        "clock_mhz": project.clock_mhz,
        "clock_property": processor.clock_property,
        "actual_clock_property": processor.actual_clock_property,
        "clock_pin": processor.clock,
        "reset_pin": processor.reset,
        "control_port": processor.control,
        "control_clock": processor.control_clock,
        "control_address": f"0x{processor.control_address:08X}",
        "control_range": f"0x{CONTROL_RANGE:08X}",
        "memory_ports": [
            [port.name, port.clock, port.address_block, port.segment, shared[port.name]]
            for port in used
        ],
    }


def bank_of(project: Project) -> dict[str, int]:
    """Return the memory bank of each AXI master of a card's kernel.

    Banks are assigned round-robin, weights first, then the KV cache, as `estimate/streams.py`
    assumes: each weight channel has its own bank as long as there are any. KV ports get the banks
    left over, or, with kSharedMasters, the banks of their channels.
    """
    banks = project.board.memory.banks
    return {bundle: i % banks for i, bundle in enumerate(project.bundles())}


def connectivity(project: Project) -> str:
    """Return the linker's configuration file for a card.

    It names no super logic region: the kernel is larger than one (docs/boards.md), so the placer
    must spread it.

    Raises
    ------
    BuildError
        If the kernel has more AXI masters than the shell takes.
    """
    platform = project.platform
    assert isinstance(platform, Card)
    masters = project.bundles()
    if len(masters) > platform.most_masters:
        kv_ports = sum(bundle.startswith("gmem_kv") for bundle in masters)
        raise BuildError(
            f"the kernel of {project.header.name} has {len(masters)} AXI masters "
            f"({project.constants['kChannels']} for weight channels, {kv_ports} for KV ports, 2 "
            f"for the rest), and the shell of {project.board.title} takes "
            f"{platform.most_masters}: lower kChannels or kKvPorts"
            + (", or set kSharedMasters" if kv_ports else "")
        )
    bank = bank_of(project)
    lines = [
        f"sp={IP_NAME}.{arg.name}:{platform.memory}[{bank[arg.bundle]}]"
        for arg in project.arguments
        if arg.bundle
    ]
    return "\n".join(
        [
            "# Generated by llama_pynq.vitis: do not edit.",
            f"kernel_frequency={project.clock_mhz}",
            "",
            "[connectivity]",
            f"nk={IP_NAME}:1:{IP_NAME}",
            *lines,
            "",
        ]
    )
