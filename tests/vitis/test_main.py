"""The builds from end to end, with fake tools."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.fake_vitis import FakeMachine, needs_tclsh
from support.paths import HLS_SRC

from llama_pynq.boards import boards
from llama_pynq.kernel.top import top_function
from llama_pynq.overlay_store.record import OverlayRecord
from llama_pynq.vitis.__main__ import main
from llama_pynq.vitis.project import Project

pytestmark = needs_tclsh
CARD = "u250"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    machine = FakeMachine(tmp_path, monkeypatch)
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
    # On request, the same build is recorded without another run of the tools.
    calls = machine.calls
    assert build("record", "kv260", "--accept-negative-slack") == 0
    assert read(tmp_path / "kv260").report["wns_ns"] == -0.333
    assert machine.calls == calls


def test_slack_and_record_are_of_the_clock_that_was_timed(
    machine, build, tmp_path, capsys, monkeypatch
):
    machine.install("vitis_hls", "vivado")
    monkeypatch.setenv("FAKE_PLL_MHZ", "1000")
    machine.report(wns="-0.333")
    assert build("overlay") == 1
    message = capsys.readouterr().err
    assert "the worst slack is -0.333 ns at 250 MHz" in message
    assert "(to about 231)" in message
    machine.report(wns="0.1")
    assert build("overlay") == 0
    assert read(tmp_path / "kv260").clock_mhz == 250
    assert (
        "the clock is 250 MHz: the processor does not divide its PLL to 300"
        in capsys.readouterr().out
    )


def test_command_that_an_error_names_runs_as_it_is(machine, tmp_path, capsys):
    machine.install("vitis_hls", "vivado")
    header = Project.of("kv260", tmp_path).header
    machine.masters(top_function(header))
    machine.report(wns="-0.333")
    mine = tmp_path / "mine.h"
    mine.write_text(header.read_text())
    arguments = ["--board", "kv260", "--folder", str(tmp_path / "out"), "--header", str(mine)]
    assert main(["overlay", *arguments]) == 1
    command = capsys.readouterr().err.strip().rpartition("to accept it anyway: ")[2]
    assert command == (
        f"make -C {HLS_SRC} record BOARD=kv260 FOLDER={tmp_path / 'out'} HEADER={mine} "
        "ACCEPT_NEGATIVE_SLACK=1"
    )
    done = subprocess.run(
        [*command.split(), f"PYTHON={sys.executable}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert read(tmp_path / "out").report["wns_ns"] == -0.333


@pytest.mark.parametrize(
    ("pattern", "left", "said"),
    [
        ("reports/**/*util*.rpt", {"wns_ns"}, "names no resources: there is no report **/*full_u"),
        ("reports/**/*timing*.rpt", {"lut", "dsp", "bram36", "uram"}, "names no slack: there is"),
        ("reports/**/*.rpt", set(), "names no slack: there is no report"),
        ("built/*.info", {"lut", "dsp", "bram36", "uram", "wns_ns"}, "names no clock: there is no"),
    ],
)
def test_cards_record_leaves_out_what_the_linker_did_not_report(
    machine, build, tmp_path, capsys, pattern, left, said
):
    machine.install("vitis_hls", "v++")
    assert build("overlay", CARD) == 0
    for path in (tmp_path / CARD).glob(pattern):
        path.unlink()
    capsys.readouterr()
    assert build("record", CARD) == 0
    record = read(tmp_path / CARD)
    assert set(record.report or {}) == left
    assert record.clock_mhz == (None if "info" in pattern else 300)
    assert said in capsys.readouterr().out


def test_cards_reports_are_found_among_the_linkers_own_files(machine, build, tmp_path):
    machine.install("vitis_hls", "v++")
    assert build("overlay", CARD) == 0
    (tmp_path / CARD / "reports").rename(tmp_path / CARD / "link")
    assert build("record", CARD) == 0
    assert set(read(tmp_path / CARD).report) == {"lut", "dsp", "bram36", "uram", "wns_ns"}


def test_clock_above_the_boards_most_is_lowered_aloud(tmp_path, capsys):
    text = Project.of("kv260", tmp_path).header.read_text()
    (tmp_path / "mine.h").write_text(text.replace("kClockMhz = 300", "kClockMhz = 900"))
    folder, header = str(tmp_path / "out"), str(tmp_path / "mine.h")
    assert main(["files", "--board", "kv260", "--folder", folder, "--header", header]) == 0
    most = boards()["kv260"].max_clock_mhz
    said = f"kClockMhz = 900 of mine.h is lowered to {most}, the most of the KV260\n"
    assert said in capsys.readouterr().out


def test_relative_paths_are_this_folders_or_named_with_it(tmp_path, capsys, monkeypatch, build):
    monkeypatch.chdir(tmp_path)
    for option in ("--header", "--board-files"):
        assert build("files", "pynq-z2", option, "mine") == 1
        assert f"relative to {tmp_path}: make -C goes to hls_src first" in capsys.readouterr().err


def test_board_files_are_named_from_anywhere(tmp_path, monkeypatch, build, machine):
    machine.install("vitis_hls", "vivado")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    assert build("overlay", "pynq-z2", "--board-files", "mine") == 0
    assert f"set_param board.repoPaths {tmp_path / 'mine'}" in machine.log("vivado")


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
    monkeypatch.setenv("FAKE_PROGRESS", "31%")
    assert build("overlay") == 1
    assert "vivado failed with exit status 1" in capfd.readouterr().err
    assert not (tmp_path / "kv260" / "overlay").exists()


def test_record_before_a_build_says_what_is_missing(machine, build, capsys):
    assert build("record") == 1
    assert "llama.bit is missing: run the step overlay" in capsys.readouterr().err


# ---- make, and a machine with only Vitis and Python ------------------------------------


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
    assert "\\\n" not in done.stdout
    assert read(folder).built_by == "me and you"
    ignored = subprocess.run(
        ["git", "check-ignore", "-q", "hls_src/build/pynq-z2/top.cpp"], cwd=HLS_SRC.parent,
        check=False,
    )  # fmt: skip
    assert ignored.returncode in (0, 128)  # 128: not a git checkout


def test_make_without_a_board_says_so(machine):
    done = _make("overlay")
    assert done.returncode == 2
    assert "name the board: make overlay BOARD=kv260" in done.stderr


def test_make_hands_every_option_on(machine, tmp_path):
    options = (
        "FOLDER=f",
        "HEADER=h",
        "JOBS=4",
        "BOARD_FILES=b",
        "PLATFORM=p",
        "BUILT_BY=me",
        "ANY_VERSION=1",
    )
    done = _make("-n", "overlay", "BOARD=u50", *options, "ACCEPT_NEGATIVE_SLACK=1")
    for option in (
        '--board "u50"', '--folder "f"', '--header "h"', "--jobs 4", '--board-files "b"',
        '--platform "p"', '--built-by "me"', "--any-version", "--accept-negative-slack",
    ):  # fmt: skip
        assert option in done.stdout
    off = _make("-n", "overlay", "BOARD=u50", "ANY_VERSION=0", "ACCEPT_NEGATIVE_SLACK=0")
    assert "--any-version" not in off.stdout
    assert "--accept-negative-slack" not in off.stdout
    assert "--folder" not in off.stdout


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
