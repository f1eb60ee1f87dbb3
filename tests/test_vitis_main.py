"""The builds from end to end, with stand-ins for the tools: up to their door and back."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from vitis_stand_ins import Machine, needs_tclsh

from llama_pynq.interface import top_function
from llama_pynq.overlay_record import OverlayRecord
from llama_pynq.vitis.__main__ import main
from llama_pynq.vitis.project import Project

pytestmark = needs_tclsh
HLS_SRC = Path(__file__).parents[1] / "hls_src"
CARD = "u250"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    machine = Machine(tmp_path, monkeypatch)
    shell = tmp_path / "platforms" / "xilinx_u250_gen3x16_xdma_4_1_202210_1"
    shell.mkdir(parents=True)
    (shell / f"{shell.name}.xpfm").touch()
    monkeypatch.setenv("PLATFORM_REPO_PATHS", str(tmp_path / "platforms"))
    return machine


@pytest.fixture
def build(machine, tmp_path):
    def run(step, board="kv260", *options):
        machine.masters(top_function(Project.of(board, tmp_path).header))
        return main([step, "--board", board, "--folder", str(tmp_path / board), *options])

    return run


def read(folder: Path) -> OverlayRecord:
    return OverlayRecord.read(folder / "overlay" / "overlay.json")


def test_zynq_build_ends_with_an_overlay_and_its_record(machine, build, tmp_path, capfd):
    machine.install("vitis_hls", version="2022.1")
    machine.install("vivado", version="2022.2")
    assert build("overlay", "kv260", "--built-by", "a student") == 0
    record = read(tmp_path / "kv260")
    assert (record.board, record.clock_mhz, record.built_by) == ("kv260", 300.0, "a student")
    assert [file.name for file in record.files] == ["llama.bit", "llama.hwh"]
    assert record.tools == {"vitis_hls": "2022.1", "vivado": "2022.2"}
    assert record.report == {
        "lut": 88123, "dsp": 530, "bram36": 99.5, "uram": 48, "wns_ns": 0.01
    }  # fmt: skip
    assert record.measured is None
    assert record.platform is None
    assert record.source
    assert sorted(p.name for p in (tmp_path / "kv260" / "overlay").iterdir()) == [
        "llama.bit", "llama.hwh", "overlay.json"
    ]  # fmt: skip
    scripts = HLS_SRC / "scripts"
    assert machine.calls == [
        f"vitis_hls -f {scripts / 'hls.tcl'}",
        f"vivado -mode batch -nojournal -log vivado.log -source {scripts / 'vivado.tcl'}",
    ]
    assert "llama-pynq overlay add" in capfd.readouterr().out


def test_card_build_links_what_was_synthesised(machine, build, tmp_path):
    machine.install("vitis-run", "v++", version="2023.2")
    assert build("overlay", CARD, "--jobs", "3") == 0
    record = read(tmp_path / CARD)
    assert [file.name for file in record.files] == ["llama.xclbin"]
    assert record.platform == "xilinx_u250_gen3x16_xdma_4_1_202210_1"
    assert record.tools == {"vitis_hls": "2023.2", "v++": "2023.2"}
    shell = next((tmp_path / "platforms").glob("*/*.xpfm"))
    assert machine.calls == [
        f"vitis-run --mode hls --tcl {HLS_SRC / 'scripts' / 'hls.tcl'}",
        f"v++ --link --target hw --platform {shell} --config connectivity.cfg --jobs 3 "
        "--save-temps --temp_dir link --report_dir reports -o built/llama.xclbin llama.xo",
    ]


def test_clock_that_the_linker_lowered_is_the_records(machine, build, tmp_path, capsys):
    machine.install("vitis_hls")
    machine.install("v++", clock_mhz=261)
    machine.report(wns="-0.499")
    assert build("overlay", CARD) == 0
    assert read(tmp_path / CARD).clock_mhz == 261
    assert "timing was not met at 300 MHz: v++ lowered the clock to 261" in capsys.readouterr().out


def test_design_that_misses_timing_is_not_called_done(machine, build, tmp_path, capsys):
    machine.install("vitis_hls", "vivado")
    machine.report(wns="-0.333")
    assert build("overlay") == 1
    message = capsys.readouterr().err
    assert "timing is not met: the worst slack is -0.333 ns at 300 MHz" in message
    assert "Lower kClockMhz in" in message
    assert "(to about 273)" in message
    assert not (tmp_path / "kv260" / "overlay").exists()
    # Asked for, the same build is recorded without another run of the tools.
    calls = machine.calls
    assert build("record", "kv260", "--accept-negative-slack") == 0
    assert read(tmp_path / "kv260").report["wns_ns"] == -0.333
    assert machine.calls == calls


def test_everything_is_asked_for_before_anything_is_run(machine, build, capsys):
    machine.install("vitis_hls")
    assert build("overlay") == 1
    assert "vivado is not on PATH" in capsys.readouterr().err
    machine.install("v++")
    assert build("overlay", "u200") == 1
    assert "no platform xilinx_u200_gen3x16_xdma_* is installed" in capsys.readouterr().err
    assert machine.calls == []


@pytest.mark.parametrize("step", ["csim", "csynth", "overlay"])
def test_missing_vitis_is_named_by_every_step(machine, build, step, capsys):
    assert build(step) == 1
    assert "vitis-run or vitis_hls is not on PATH" in capsys.readouterr().err


def test_csim_and_csynth_run_their_step_alone(machine, build, tmp_path):
    machine.install("vitis_hls")
    assert build("csim") == 0
    assert machine.log("vitis_hls")[-1].startswith("csim_design")
    assert build("csynth") == 0
    assert machine.log("vitis_hls")[-1] == "csynth_design"
    assert not (tmp_path / "kv260" / "overlay").exists()


def test_tool_that_fails_ends_the_build(machine, build, monkeypatch, tmp_path, capfd):
    machine.install("vitis_hls", "vivado")
    monkeypatch.setenv("STAND_IN_PROGRESS", "31%")
    assert build("overlay") == 1
    assert "vivado failed with exit status 1" in capfd.readouterr().err
    assert not (tmp_path / "kv260" / "overlay").exists()


def test_record_before_a_build_says_what_is_missing(machine, build, capsys):
    assert build("record") == 1
    assert "llama.bit is missing: run the step overlay" in capsys.readouterr().err


# ---- make, and a machine that has Vitis and Python alone -------------------------------


def _make(*args: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["make", "--no-print-directory", "-C", str(HLS_SRC), *args, f"PYTHON={sys.executable}"],
        capture_output=True, text=True, check=False, env=os.environ,
    )  # fmt: skip


def test_make_builds_into_a_folder_that_git_ignores(machine, tmp_path):
    machine.install("vitis_hls", "vivado")
    machine.masters(top_function(Project.of("pynq-z2", tmp_path).header))
    folder = tmp_path / "out"
    done = _make("overlay", "BOARD=pynq-z2", f"FOLDER={folder}", "BUILT_BY=me and you")
    assert done.returncode == 0, done.stderr
    assert read(folder).built_by == "me and you"
    ignored = subprocess.run(
        ["git", "check-ignore", "-q", "hls_src/build/pynq-z2/top.cpp"], cwd=HLS_SRC.parent,
        check=False,
    )  # fmt: skip
    assert ignored.returncode in (0, 128)  # 128: no checkout


def test_make_without_a_board_says_so(machine):
    done = _make("overlay")
    assert done.returncode == 2
    assert "name the board: make overlay BOARD=kv260" in done.stderr


def test_make_hands_every_option_on(machine, tmp_path):
    options = ("HEADER=h", "JOBS=4", "BOARD_FILES=b", "PLATFORM=p", "BUILT_BY=me", "ANY_VERSION=1")
    done = _make("-n", "overlay", "BOARD=u50", *options, "ACCEPT_NEGATIVE_SLACK=1")
    for option in (
        '--board "u50"', '--folder "build/u50"', '--header "h"', "--jobs 4", '--board-files "b"',
        '--platform "p"', '--built-by "me"', "--any-version", "--accept-negative-slack",
    ):  # fmt: skip
        assert option in done.stdout


def test_build_needs_neither_numpy_nor_pynq(machine, tmp_path):
    """-S: no installed package can be found."""
    code = "import sys; from llama_pynq.vitis.__main__ import main; sys.exit(main(sys.argv[1:]))"
    folder = tmp_path / "plain"
    command = [sys.executable, "-S", "-c", code, "files", "--board", "kv260"]
    env = {**os.environ, "PYTHONPATH": str(HLS_SRC.parent)}
    done = subprocess.run(
        [*command, "--folder", str(folder)], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "settings.tcl").exists()


def test_csim_without_numpy_says_so(machine, tmp_path):
    machine.install("vitis_hls")
    code = "import sys; from llama_pynq.vitis.__main__ import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-S", "-c", code, "csim", "--board", "kv260"]
    env = {**os.environ, "PYTHONPATH": str(HLS_SRC.parent)}
    done = subprocess.run(
        [*command, "--folder", str(tmp_path / "plain")], env=env, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "the test bench's data need NumPy" in done.stderr
