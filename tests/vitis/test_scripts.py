"""hls_src/scripts/*.tcl under tclsh, with fakes of the tools' commands (tests/support/tcl)."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from support.board_overlays import hwh_text, write_files
from support.fake_vitis import TCL, FakeMachine, needs_tclsh
from support.paths import TESTS

from llama_pynq.boards import boards
from llama_pynq.kernel.registers import VLNV, VLNVS
from llama_pynq.overlay_store.metadata import read_metadata
from llama_pynq.vitis.platforms import PLATFORMS, ZYNQ_7000, Card, Zynq
from llama_pynq.vitis.project import Project
from llama_pynq.vitis.vectors import write_vectors

pytestmark = needs_tclsh

ZYNQS = [name for name, platform in PLATFORMS.items() if isinstance(platform, Zynq)]
CARDS = [name for name, platform in PLATFORMS.items() if isinstance(platform, Card)]


class Scripts:
    def __init__(self, machine: FakeMachine, folder: Path) -> None:
        self.machine, self.folder = machine, folder

    def project(self, board: str) -> Project:
        project = Project.of(board, self.folder / board)
        project.write()
        self.bundles = self.machine.masters((project.folder / "top.cpp").read_text())
        return project

    def run(self, tool: str, project: Project, script: Path | None = None, **settings: str):
        """Run a script; returns (exit status, standard error, log of the fake tool)."""
        name = "vivado" if tool == "vivado" else "hls"
        script = script or project.source / "scripts" / f"{name}.tcl"
        log = project.folder / f"{tool}.log"
        settings = {
            "LLAMA_BOARD_FILES": "",
            "LLAMA_JOBS": "2",
            **settings,
            "FAKE_LOG": str(log),
        }
        done = subprocess.run(
            ["tclsh", str(TCL / f"fake_{tool}.tcl"), str(script)],
            cwd=project.folder, env={**os.environ, **settings}, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        return done.returncode, done.stderr, log.read_text().splitlines()

    def changed(self, project: Project, name: str, old: str, new: str) -> Path:
        """Copy a script and put a fault in it."""
        text = (project.source / "scripts" / name).read_text()
        assert text.count(old) >= 1, old
        path = project.folder / name
        path.write_text(text.replace(old, new, 1))
        return path


@pytest.fixture
def scripts(tmp_path, monkeypatch) -> Scripts:
    return Scripts(FakeMachine(tmp_path, monkeypatch), tmp_path)


# ---- Vivado ---------------------------------------------------------------------------


@pytest.mark.parametrize("board", ZYNQS)
def test_block_design_is_whole_and_every_master_reaches_memory(scripts, board):
    project = scripts.project(board)
    status, errors, log = scripts.run("vivado", project)
    assert (status, errors) == (0, "")
    assert "create_bd_cell llama_pynq:hls:llama:1.0 llama" in log
    series_7 = project.platform.processor is ZYNQ_7000
    segment = "DDR_LOWOCM" if series_7 else "DDR_LOW"
    reached = dict(re.findall(r"^reaches (\w+) (\w+) HP\d_(?:\w+)$", "\n".join(log), re.MULTILINE))
    assert sorted(reached) == scripts.bundles
    assert all(line.endswith(segment) for line in log if line.startswith("reaches"))
    # Each weight channel has its own port if there are enough ports.
    weights = [reached[bundle] for bundle in scripts.bundles if bundle.startswith("gmem_w")]
    assert len(set(weights)) == len(weights)
    assert len(set(reached.values())) == boards()[board].memory.ports
    address = "0x40000000" if series_7 else "0xA0000000"
    assert any(f"s_axi_control/Reg {address} 0x00010000" in line for line in log)
    name = "llama"
    assert (project.folder / "built" / f"{name}.bit").read_text() == "bits of overlay"
    assert (project.folder / "built" / f"{name}.hwh").read_text() == "<EDKSYSTEM/>"


def test_block_design_takes_these_steps_in_order(scripts):
    _, _, log = scripts.run("vivado", scripts.project("kv260"))
    commands = [line.split()[0] for line in log]
    milestones = ["create_project", "update_ip_catalog", "create_bd_design", "create_bd_cell",
                  "apply_bd_automation", "connect_bd_intf_net", "connect_bd_net",
                  "assign_bd_address", "validate_bd_design", "save_bd_design", "make_wrapper",
                  "add_files", "launch_runs", "wait_on_run", "open_run", "report"]  # fmt: skip
    firsts = [commands.index(command) for command in milestones]
    assert firsts == sorted(firsts)


def test_clock_of_the_fabric_is_the_headers(scripts):
    for board, setting in (
        ("kv260", "CONFIG.PSU__CRL_APB__PL0_REF_CTRL__FREQMHZ 300"),
        ("pynq-z2", "CONFIG.PCW_FPGA0_PERIPHERAL_FREQMHZ 142"),
    ):
        project = scripts.project(board)
        _, _, log = scripts.run("vivado", project)
        assert any(line.startswith(f"set_property {setting} ") for line in log)
        nets = [
            line for line in log if line.startswith("connect_bd_net") and "aclk" in line.lower()
        ]
        assert len({line.split()[1] for line in nets}) == 1


@pytest.mark.parametrize(
    ("board", "pll", "clock"),
    [
        ("kv260", 1500, "300.000000"),
        ("kv260", 1000, "250.000000"),  # a request for 300 would give 333
        ("pynq-z2", 1000, "142.857143"),  # the header has whole MHz: 142
        ("pynq-z2", 300, "100.000000"),
    ],
)
def test_clock_is_never_faster_than_the_headers(scripts, monkeypatch, board, pll, clock):
    monkeypatch.setenv("FAKE_PLL_MHZ", str(pll))
    project = scripts.project(board)
    status, errors, _ = scripts.run("vivado", project)
    assert (status, errors) == (0, "")
    assert (project.folder / "built" / "clock_mhz").read_text() == f"{clock}\n"


def test_processor_without_a_slow_clock_is_an_error(scripts, monkeypatch):
    monkeypatch.setenv("FAKE_PLL_MHZ", "100000")
    status, errors, _ = scripts.run("vivado", scripts.project("kv260"))
    assert status == 1
    assert "has no clock of 300 MHz or less for the fabric: the least is 1587" in errors


def test_board_store_is_looked_through_where_vivado_has_no_files(scripts, monkeypatch):
    monkeypatch.setenv("FAKE_BOARD_PARTS", "xilinx.com:zcu102:part0:3.4")
    monkeypatch.setenv("FAKE_STORE_PARTS", "xilinx.com:kv260_som:part0:1.4")
    status, errors, log = scripts.run("vivado", scripts.project("kv260"))
    assert (status, errors) == (0, "")
    assert "set_param board.repoPaths /the/store" in log
    assert "set_property board_part xilinx.com:kv260_som:part0:1.4 project" in log
    _, _, log = scripts.run("vivado", scripts.project("kv260"), LLAMA_BOARD_FILES="/my/boards")
    assert "set_param board.repoPaths {/my/boards /the/store}" in log
    monkeypatch.setenv("FAKE_STORE_PARTS", "")
    status, errors, _ = scripts.run("vivado", scripts.project("kv260"))
    assert status == 1
    assert "(*:kv260_som:part0:*): AMD's Board Store has it: in Vivado, Tools > XHub" in errors


def test_newest_board_file_is_taken(scripts):
    _, _, log = scripts.run("vivado", scripts.project("kv260"))
    assert "set_property board_part xilinx.com:kv260_som:part0:1.4 project" in log


def test_missing_board_files_are_named(scripts, monkeypatch):
    monkeypatch.setenv("FAKE_BOARD_PARTS", "xilinx.com:zcu104:part0:1.1")
    status, errors, _ = scripts.run("vivado", scripts.project("pynq-z2"))
    assert status == 1
    assert "Vivado has no board files for pynq-z2 (*:pynq-z2:part0:*): TUL has it" in errors
    assert "add BOARD_FILES=<folder> to the make command" in errors


def test_folder_with_board_files_is_handed_on(scripts):
    _, _, log = scripts.run("vivado", scripts.project("pynq-z2"), LLAMA_BOARD_FILES="/my/boards")
    assert log[0] == "set_param board.repoPaths /my/boards"


def test_implementation_that_stops_is_an_error(scripts, monkeypatch):
    monkeypatch.setenv("FAKE_PROGRESS", "72%")
    project = scripts.project("kv260")
    status, errors, _ = scripts.run("vivado", project)
    assert status == 1
    assert "implementation stopped at 72% (route_design ERROR): see " in errors
    assert not (project.folder / "built").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("$ip_name/s_axi_control\n", "$ip_name/s_axi_ctrl\n", "has no pin 's_axi_ctrl'"),
        ("/m_axi_$bundle", "/m_axi_gmem", "has no pin 'm_axi_gmem'"),
        ("        incr n\n", "", "is connected already"),
        ("CONFIG.NUM_SI [llength $masters]", "CONFIG.NUM_SI 8", "is not connected"),
        ("CONFIG.NUM_SI [llength $masters]", "CONFIG.NUM_SLAVES 2", "takes no CONFIG.NUM_SLAVES"),
        ("lappend clocks $processor/$clock", "lappend clocks", "aclk is not connected"),
        ("list $ip_name/ap_rst_n control", "list control", "ap_rst_n is not connected"),
        ("exclude_bd_addr_seg", "list", "is neither in"),
        ("-offset $control_address", "-offset 0x90000000", "is outside"),
        ("    validate_bd_design\n", "", "needs to come after: validated"),
        ("    update_ip_catalog\n", "", "needs to come after: catalog"),
        ("open_run", "open_checkpoint", "invalid command name"),
        ("CONFIG.$actual_clock_property $cell", "CONFIG.CLOCK $cell", "does not say its clock"),
    ],
)
def test_fake_tools_find_a_fault_in_the_script(scripts, old, new, message):
    """Fakes that accept anything would miss each of these faults."""
    project = scripts.project("kv260")
    status, errors, _ = scripts.run(
        "vivado", project, scripts.changed(project, "vivado.tcl", old, new)
    )
    assert status == 1
    assert message in errors


# ---- Vitis HLS ------------------------------------------------------------------------


@pytest.mark.parametrize("board", PLATFORMS)
def test_kernel_is_synthesised_and_packaged(scripts, board):
    project = scripts.project(board)
    status, errors, log = scripts.run("vitis_hls", project, LLAMA_STEP="ip")
    assert (status, errors) == (0, "")
    card = board in CARDS
    assert "set_top llama" in log
    assert f"set_part {PLATFORMS[board].part}" in log
    clock = min(project.constants["kClockMhz"], project.board.max_clock_mhz)
    assert f"create_clock -period {1000 / clock:.3f} -name default" in log
    assert f"open_solution -reset solution -flow_target {'vitis' if card else 'vivado'}" in log
    assert f"exported {'xo' if card else 'ip_catalog'} {VLNV}" in log
    if card:
        assert (project.folder / "llama.xo").exists()
    else:
        assert (project.folder / "hls_ip" / "solution" / "impl" / "ip").is_dir()


def test_kernel_without_a_name_of_its_own_has_the_tools_and_is_taken(scripts, tmp_path):
    project = scripts.project("u250")
    script = scripts.changed(project, "hls.tcl", "    config_export", "    list")
    _, _, log = scripts.run("vitis_hls", project, script, LLAMA_STEP="ip")
    assert f"exported xo {VLNVS[1]}" in log
    path = write_files(tmp_path / "overlay", "kv260")
    path.with_suffix(".hwh").write_text(hwh_text().replace(VLNV, VLNVS[1]))
    assert read_metadata(path).clock_mhz == 250


def test_arithmetic_is_held_to_the_specification(scripts):
    """The arithmetic: no fused operations, no reordering, signed zeros kept."""
    _, _, log = scripts.run("vitis_hls", scripts.project("kv260"), LLAMA_STEP="csynth")
    assert "config_compile -unsafe_math_optimizations=0 -no_signed_zeros=0" in log
    ops = [line.removeprefix("op ") for line in log if line.startswith("op ")]
    settings = [line for line in log if line.startswith("config_op ")]
    assert dict(zip(ops, settings)) == {
        **dict.fromkeys(("facc", "fmacc", "fmadd"), "config_op -impl none"),
        **dict.fromkeys(("fadd", "fsub"), "config_op -impl fulldsp -latency 8"),
    }
    # The options must come after the solution and before synthesis to take effect.
    commands = [line.split()[0] for line in log]
    assert commands.index("open_solution") < commands.index("config_compile")
    assert commands.index("config_interface") < commands.index("csynth_design")


def test_adder_is_as_long_as_the_header_says(scripts):
    _, _, log = scripts.run("vitis_hls", scripts.project("pynq-z2"), LLAMA_STEP="csynth")
    assert "config_op -impl fulldsp -latency 5" in log


def test_csynth_exports_nothing(scripts):
    _, _, log = scripts.run("vitis_hls", scripts.project("kv260"), LLAMA_STEP="csynth")
    assert log[-1] == "csynth_design"


def test_a_wrong_option_stops_the_script(scripts):
    project = scripts.project("kv260")
    script = scripts.changed(project, "hls.tcl", "-m_axi_addr64=1", "-m_axi_addr48=1")
    status, errors, _ = scripts.run("vitis_hls", project, script, LLAMA_STEP="ip")
    assert (status, errors) == (
        1, "ERROR: fake tool: config_interface has no option -m_axi_addr48\n"
    )  # fmt: skip


# ---- C simulation ---------------------------------------------------------------------


def _csim_command(log: list[str], program: Path) -> list[str]:
    """The script's C simulation as a g++ command."""
    sources, flags = [], []
    for line in log:
        if line.startswith("add_files"):
            words = line.removeprefix("add_files").replace("{", "").replace("}", "").split()
            at = words.index("-cflags")
            sources += [word for word in words[:at] if word != "-tb"]
            flags += words[at + 1 :]
    command = ["g++", *dict.fromkeys(flags), f"-I{TESTS / 'hls'}", "-O1", "-ffp-contract=off"]
    return [*command, "-pthread", *sources, "-o", str(program)]


def test_csim_passes_with_the_files_and_flags_that_vitis_gets(scripts):
    """The only differences: g++ instead of Vitis, tests/hls/hls_stream.h instead of its header."""
    project = scripts.project("pynq-z2")
    write_vectors(project)
    status, errors, log = scripts.run("vitis_hls", project, LLAMA_STEP="csim")
    assert (status, errors) == (0, "")
    assert log[-1] == "csim_design -ldflags -pthread"
    program = project.folder / "test_bench"
    subprocess.run(_csim_command(log, program), cwd=project.folder, check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith("PASS\n")
