"""A fake machine with AMD's tools: programs on PATH that record their calls.

``vivado`` and ``vitis_hls`` run their script under tclsh with fakes of the tool's commands
(``tcl/``); ``v++`` writes the output files of a link.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import sys
from pathlib import Path

import pytest

from llama_pynq.vitis.platforms import PLATFORMS, Zynq

TCL = Path(__file__).parent / "tcl"
BOARD_PARTS = " ".join(
    [
        "xilinx.com:kv260_som:part0:1.3 xilinx.com:kv260_som:part0:1.4",
        "xilinx.com:kr260_som:part0:1.1",  # of no board here
        *(p.board_part.replace("*", "1.1") for p in PLATFORMS.values() if isinstance(p, Zynq)),
    ]
)

# Rows and columns as in Vivado 2022.1; the figures are made up.
UTILIZATION = """\
1. CLB Logic
------------

+----------------------------+--------+-------+------------+-----------+-------+
|          Site Type         |  Used  | Fixed | Prohibited | Available | Util% |
+----------------------------+--------+-------+------------+-----------+-------+
| CLB LUTs*                  |  88123 |     0 |          0 |    117120 | 75.24 |
|   LUT as Logic             |  80001 |     0 |          0 |    117120 | 68.31 |
| CLB Registers              | 120456 |     0 |          0 |    234240 | 51.42 |
+----------------------------+--------+-------+------------+-----------+-------+

3. BLOCKRAM
-----------

+-------------------+------+-------+------------+-----------+-------+
|     Site Type     | Used | Fixed | Prohibited | Available | Util% |
+-------------------+------+-------+------------+-----------+-------+
| Block RAM Tile    |   99.5 |     0 |          0 |       144 | 69.10 |
|   RAMB36/FIFO*    |   98 |     0 |          0 |       144 | 68.06 |
| URAM              |   48 |     0 |          0 |        64 | 75.00 |
+-------------------+------+-------+------------+-----------+-------+

4. ARITHMETIC
-------------

| DSPs           |  530 |     0 |          0 |      1248 | 42.47 |
|   DSP48E2 only |  530 |       |            |           |       |
"""
TIMING = """\
------------------------------------------------------------------------------------------------
| Design Timing Summary
| ---------------------
------------------------------------------------------------------------------------------------

    WNS(ns)      TNS(ns)  TNS Failing Endpoints  TNS Total Endpoints      WHS(ns)      THS(ns)  \
THS Failing Endpoints  THS Total Endpoints     WPWS(ns)     TPWS(ns)  TPWS Failing Endpoints  \
TPWS Total Endpoints  
    -------      -------  ---------------------  -------------------      -------      -------  \
---------------------  -------------------     --------     --------  ----------------------  \
--------------------  
      {wns}        0.000                      0               312456        0.010        0.000  \
                    0               312456        1.125        0.000                       0  \
              120456  


All user specified timing constraints are met.
"""  # noqa: W291
INFO = """\
Scalable Clocks
---------------
   Name:      DATA_CLK
   Index:     0
   Type:      DATA
   Frequency: {mhz} MHz

   Name:      KERNEL_CLK
   Index:     1
   Type:      KERNEL
   Frequency: 500 MHz

System Clocks
------
"""

_PROGRAM = """\
#!{python}
import os, shutil, subprocess, sys
from pathlib import Path

name, args = {name!r}, sys.argv[1:]
if args in (["-version"], ["--version"]):
    print({says!r})
    sys.exit({status})
with open({calls!r}, "a") as file:
    print(name, *args, file=file)
if name in ("vivado", "vitis_hls", "vitis-run"):
    fake = "vivado" if name == "vivado" else "vitis_hls"
    os.environ["FAKE_LOG"] = str(Path({logs!r}) / f"{{fake}}.log")
    script = {tcl!r} + f"/fake_{{fake}}.tcl"
    sys.exit(subprocess.run(["tclsh", script, args[-1]]).returncode)
built = Path(args[args.index("-o") + 1])
built.write_bytes(b"xclbin")
Path(f"{{built}}.info").write_text({info!r})
reports = Path(args[args.index("--report_dir") + 1]) / "link" / "imp"
reports.mkdir(parents=True, exist_ok=True)
shutil.copy(Path(os.environ["FAKE_REPORTS"]) / "utilization.rpt",
            reports / "impl_1_full_util_routed.rpt")
shutil.copy(Path(os.environ["FAKE_REPORTS"]) / "timing.rpt",
            reports / "impl_1_hw_bb_locked_timing_summary_routed.rpt")
assert Path(args[-1]).suffix == ".xo" and Path(args[-1]).exists()
"""

SAYS = {
    "vivado": "Vivado v{} (64-bit)\nSW Build 3526262 on Mon Apr 18 15:47:01 MDT 2022",
    "vitis_hls": "Vitis HLS - High-Level Synthesis from C, C++ and OpenCL v{} (64-bit)",
    "vitis-run": "\n****** vitis-run v{} (64-bit)\n  **** SW Build 5074859 on 2024-05-20-23:21:20",
    "v++": "\n****** v++ v{} (64-bit)\n  **** SW Build 3524075 on 2022-04-13-17:42:45",
}


class FakeMachine:
    """Fake tools in a folder, and their logs.

    Parameters
    ----------
    folder : Path
    monkeypatch : pytest.MonkeyPatch
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self._patch = folder, monkeypatch
        self.programs = folder / "bin"
        self.programs.mkdir()
        self.calls_file = folder / "calls"
        self.calls_file.touch()
        (folder / "reports").mkdir()
        self.report()
        monkeypatch.setenv("PATH", f"{self.programs}{os.pathsep}{_plain_path()}")
        for name, value in (
            ("FAKE_BOARD_PARTS", BOARD_PARTS),
            ("FAKE_REPORTS", str(folder / "reports")),
            ("FAKE_PROGRESS", "100%"),
            ("FAKE_BUNDLES", ""),
            ("FAKE_STORE_PARTS", ""),
            ("FAKE_PLL_MHZ", "1500"),
        ):
            monkeypatch.setenv(name, value)
        for name in ("PLATFORM_REPO_PATHS", "XILINX_PLATFORMS", "XILINX_VITIS"):
            monkeypatch.delenv(name, raising=False)

    def install(self, *names: str, version: str = "2022.1", says: str | None = None,
                status: int = 0, clock_mhz: int = 300) -> None:  # fmt: skip
        for name in names:
            path = self.programs / name
            path.write_text(
                _PROGRAM.format(
                    python=sys.executable,
                    name=name,
                    says=SAYS[name].format(version) if says is None else says,
                    status=status,
                    calls=str(self.calls_file),
                    logs=str(self.folder),
                    tcl=str(TCL),
                    info=INFO.format(mhz=clock_mhz),
                )
            )
            path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def report(self, wns: str = "0.031", utilization: str = UTILIZATION) -> None:
        """Set the reports of the next implementation."""
        (self.folder / "reports" / "timing.rpt").write_text(TIMING.replace("{wns}", wns))
        (self.folder / "reports" / "utilization.rpt").write_text(utilization)

    def masters(self, top: str) -> list[str]:
        """Set the kernel's AXI masters to the bundles of the top function's pragmas."""
        bundles = sorted(set(re.findall(r"m_axi port = \w+ offset = slave bundle = (\w+)", top)))
        self._patch.setenv("FAKE_BUNDLES", " ".join(bundles))
        return bundles

    @property
    def calls(self) -> list[str]:
        """Command lines of the programs, without version queries."""
        return self.calls_file.read_text().splitlines()

    def log(self, tool: str) -> list[str]:
        """Lines that a tool's commands logged."""
        return (self.folder / f"{tool}.log").read_text().splitlines()


def _plain_path() -> str:
    """This computer's PATH without folders that hold AMD's tools."""
    vendors = ("vivado", "vitis_hls", "vitis-run", "v++")
    return os.pathsep.join(
        folder
        for folder in os.environ["PATH"].split(os.pathsep)
        if not any((Path(folder) / name).exists() for name in vendors)
    )


needs_tclsh = pytest.mark.skipif(shutil.which("tclsh") is None, reason="no tclsh: apt install tcl")
