"""``python -m llama_pynq.vitis``: build one board's overlay, step by step."""

from __future__ import annotations

import argparse
import datetime
import getpass
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from llama_pynq import __version__
from llama_pynq.boards import board_key
from llama_pynq.errors import BuildError, LlamaPynqError
from llama_pynq.kernel.registers import IP_NAME
from llama_pynq.overlay_store.record import OverlayFile, OverlayRecord
from llama_pynq.utils.files import user_path
from llama_pynq.vitis import reports, tools
from llama_pynq.vitis.platforms import PLATFORMS, Card, Zynq
from llama_pynq.vitis.project import Project

_STEPS = {
    "files": "write the generated files, run nothing",
    "csim": "Vitis HLS: run the kernel's C++ against the reference (needs NumPy)",
    "csynth": "Vitis HLS: synthesise, and report latencies and resources",
    "overlay": "build the overlay: .bit with .hwh, or .xclbin",
    "record": "the last part of overlay: read the reports, write overlay.json",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llama_pynq.vitis",
        description="Build the kernel of one board with AMD's tools.",
        epilog="steps: " + "; ".join(f"{name}: {what}" for name, what in _STEPS.items()),
    )
    parser.add_argument("step", choices=_STEPS)
    parser.add_argument("--board", required=True, help=", ".join(PLATFORMS))
    parser.add_argument("--folder", type=user_path, help="output folder; default: build/<board>")
    parser.add_argument(
        "--header", type=user_path, help="a config header of your own for the board"
    )
    parser.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, 8), help="build jobs")
    parser.add_argument("--board-files", default="", help="a folder with Vivado board files")
    parser.add_argument("--platform", default="", help="a card's platform: name, or .xpfm file")
    parser.add_argument("--built-by", default="", help="name for the record; default: the user's")
    parser.add_argument(
        "--any-version", action="store_true", help="accept tool versions outside the known range"
    )
    parser.add_argument(
        "--accept-negative-slack",
        action="store_true",
        help="accept a design that misses timing: it may compute nonsense",
    )
    return parser


class Builder:
    """Run the build steps of one project.

    Parameters
    ----------
    project : Project
    options : argparse.Namespace
        Parsed by ``_parser``.
    """

    def __init__(self, project: Project, options: argparse.Namespace) -> None:
        self.project, self.options = project, options
        # The tools run in the build's folder: resolve a relative path before.
        self.board_files = user_path(options.board_files).resolve() if options.board_files else None
        if self.board_files and not self.board_files.is_dir():
            raise BuildError(
                f"there is no folder {options.board_files} with board files"
                f"{tools.seen_from_here(Path(options.board_files))}"
            )
        self._found: dict[str, tools.FoundTool] = {}

    def _tool(self, tool: tools.Tool) -> tools.FoundTool:
        if tool.name not in self._found:
            self._found[tool.name] = tools.find(tool, self.options.any_version)
        return self._found[tool.name]

    def _hls(self, step: str) -> None:
        script = self.project.source / "scripts" / "hls.tcl"
        hls = self._tool(tools.VITIS_HLS)
        tools.run(hls, [str(script)], self.project.folder, {"LLAMA_STEP": step})

    def files(self) -> None:
        self.project.write()
        print(f"wrote {self.project.folder}")

    def csim(self) -> None:
        self._tool(tools.VITIS_HLS)
        try:
            from llama_pynq.vitis.vectors import write_vectors
        except ImportError as error:
            raise BuildError(
                f"the test bench's data need NumPy, which {sys.executable} lacks ({error}): "
                "pip install 'numpy<2'"
            ) from error
        self.project.write()
        write_vectors(self.project)
        self._hls("csim")

    def csynth(self) -> None:
        self._tool(tools.VITIS_HLS)
        self.project.write()
        self._hls("csynth")
        report = self.project.folder / "hls_csynth" / "solution" / "syn" / "report"
        print(f"reports: {report}")

    def overlay(self) -> None:
        """Build the overlay; find all tools first, before hours are spent."""
        self._tool(tools.VITIS_HLS)
        platform = self.project.platform
        shell = None
        if isinstance(platform, Card):
            self._tool(tools.VPP)
            shell = tools.find_shell(platform, self.options.platform or None)
        else:
            self._tool(tools.VIVADO)
        self.project.write()
        self._hls("ip")
        if shell is None:
            self._vivado()
        else:
            self._link(shell)
        self.record()

    def _vivado(self) -> None:
        script = self.project.source / "scripts" / "vivado.tcl"
        settings = {
            "LLAMA_JOBS": str(self.options.jobs),
            "LLAMA_BOARD_FILES": str(self.board_files or ""),
        }
        vivado = self._tool(tools.VIVADO)
        tools.run(vivado, [str(script)], self.project.folder, settings)

    def _link(self, shell: str) -> None:
        folder = self.project.folder
        (folder / "built").mkdir(exist_ok=True)
        (folder / "platform").write_text(shell)
        args = ["--link", "--target", "hw", "--platform", shell]
        args += ["--config", "connectivity.cfg", "--jobs", str(self.options.jobs)]
        args += ["--save-temps", "--temp_dir", "link", "--report_dir", "reports"]
        args += ["-o", f"built/{IP_NAME}.xclbin", f"{IP_NAME}.xo"]
        tools.run(self._tool(tools.VPP), args, folder, {})

    def record(self) -> None:
        """Read the reports; if timing is met or accepted, fill ``overlay/`` with its record."""
        project, folder = self.project, self.project.folder
        zynq = isinstance(project.platform, Zynq)
        tool = tools.VIVADO if zynq else tools.VPP
        names = [f"{IP_NAME}.bit", f"{IP_NAME}.hwh"] if zynq else [f"{IP_NAME}.xclbin"]
        for name in names:
            if not (folder / "built" / name).exists():
                raise BuildError(f"{folder / 'built' / name} is missing: run the step overlay")
        report, clock_mhz = self._zynq_report() if zynq else self._card_report()
        platform = folder / "platform"
        target = folder / "overlay"
        target.mkdir(exist_ok=True)
        for name in names:
            shutil.copyfile(folder / "built" / name, target / name)
        record = OverlayRecord(
            board=project.board.name,
            abi=project.abi,
            clock_mhz=clock_mhz,
            files=tuple(OverlayFile.of(target / name) for name in names),
            tools={t.name: self._tool(t).version for t in (tools.VITIS_HLS, tool)},
            built=datetime.date.today().isoformat(),
            built_by=self.options.built_by or _user(),
            source=_source_version(project.source),
            platform=None if zynq else Path(platform.read_text()).stem,
            report=report,
        )
        path = record.write(target)
        print(f"wrote {path}\nfor your board: llama-pynq overlay add {target / record.main.name}")

    def _read(self, pattern: str, *folders: str) -> str:
        """Return the newest report that matches, from the first folder that has one."""
        for folder in folders:
            if found := list((self.project.folder / folder).glob(pattern)):
                newest = max(found, key=lambda path: path.stat().st_mtime)
                return newest.read_text(errors="replace")
        where = " or ".join(str(self.project.folder / folder) for folder in folders)
        raise BuildError(f"there is no report {pattern} in {where}")

    def _zynq_report(self) -> tuple[dict[str, float], float]:
        """Return resources, slack, and the clock timed, which may be lower than requested."""
        clock, asked = float(self._read("clock_mhz", "built")), self.project.clock_mhz
        if round(clock) < asked:
            print(f"the clock is {clock:g} MHz: the processor does not divide its PLL to {asked}")
        report = reports.utilization(self._read("utilization.rpt", "reports"))
        slack = report["wns_ns"] = reports.worst_slack_ns(self._read("timing.rpt", "reports"))
        if slack < 0 and not self.options.accept_negative_slack:
            reached = 1000 / (1000 / clock - slack)
            raise BuildError(
                f"timing is not met: the worst slack is {slack:g} ns at {clock:g} MHz, so the "
                f"design may compute nonsense, and is rejected. Lower kClockMhz in "
                f"{self.project.header} (to about {reached:.0f}) and build again; to accept it "
                f"anyway: {self._command('record')} ACCEPT_NEGATIVE_SLACK=1"
            )
        return report, clock

    def _card_report(self) -> tuple[dict[str, float] | None, float | None]:
        """Return resources and slack, the card's shell included, and the kernel's clock.

        v++ itself rejects a design that misses timing even at a lowered clock. A report that
        cannot be read is left out: that does not spoil the .xclbin.
        """
        report: dict[str, float] = {}
        clock = None
        try:
            clock = self._card_clock()
        except BuildError as error:
            print(f"the record names no clock: {error}")
        try:
            report |= reports.utilization(self._read("**/*full_util_routed.rpt", "reports", "link"))
        except BuildError as error:
            print(f"the record names no resources: {error}")
        try:
            report["wns_ns"] = reports.worst_slack_ns(
                self._read("**/*timing_summary*rout*.rpt", "reports", "link")
            )
        except BuildError as error:
            print(f"the record names no slack: {error}")
        return report or None, clock

    def _card_clock(self) -> float:
        clock = reports.kernel_clock_mhz(self._read(f"{IP_NAME}.xclbin.info", "built"))
        asked = self.project.clock_mhz
        if clock < asked:
            print(f"timing was not met at {asked} MHz: v++ lowered the clock to {clock:g} MHz")
        return clock

    def _command(self, step: str) -> str:
        """Return the command that runs another step of this build, from any folder."""
        project, source = self.project, self.project.source
        words = ["make", "-C", str(source), step, f"BOARD={project.board.name}"]
        if project.folder != source / "build" / project.board.name:
            words.append(f"FOLDER={project.folder}")
        if self.options.header:
            words.append(f"HEADER={project.header}")
        return shlex.join(words)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "unknown"


def _source_version(source: Path) -> str:
    """``git describe`` of the kernel's source, or the package's version."""
    try:
        done = subprocess.run(
            ["git", "-C", str(source), "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return f"llama_pynq {__version__}"
    return done.stdout.strip()


def main(args: list[str] | None = None) -> int:
    """Run one step and return the exit status."""
    try:
        options = _parser().parse_args(args)
        folder = options.folder or Path("build", board_key(options.board))
        project = Project.of(options.board, folder, options.header)
        asked, most = project.constants["kClockMhz"], project.board.max_clock_mhz
        if asked > most:
            print(
                f"kClockMhz = {asked} of {project.header.name} is lowered to {most}, the most of "
                f"the {project.board.title}"
            )
        builder = Builder(project, options)
        getattr(builder, options.step)()
    except LlamaPynqError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
