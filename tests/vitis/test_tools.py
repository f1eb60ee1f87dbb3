"""Search for AMD's tools and platforms, and running a tool."""

import re

import pytest
from support.fake_vitis import FakeMachine

from llama_pynq.errors import BuildError
from llama_pynq.vitis import tools
from llama_pynq.vitis.platforms import PLATFORMS

VERSIONS = [(tools.VITIS_HLS, "vitis_hls"), (tools.VIVADO, "vivado"), (tools.VPP, "v++")]


@pytest.fixture
def machine(tmp_path, monkeypatch):
    return FakeMachine(tmp_path, monkeypatch)


@pytest.mark.parametrize(("tool", "program"), VERSIONS)
@pytest.mark.parametrize("version", ["2022.1", "2023.2", "2024.2"])
def test_version_is_read_as_each_tool_says_it(machine, tool, program, version):
    machine.install(program, version=version)
    found = tools.find(tool)
    assert (found.version, found.command[0]) == (version, program)


@pytest.mark.parametrize(("tool", "program"), VERSIONS)
def test_missing_tool_is_named_with_what_to_install(machine, tool, program):
    with pytest.raises(BuildError) as refused:
        tools.find(tool)
    message = str(refused.value)
    assert re.search(rf"{re.escape(program)} is not on PATH. Install Vi(tis|vado) ", message)
    assert "2022.1 to 2024.2" in message
    assert "settings64.sh" in message


@pytest.mark.parametrize("version", ["2021.2", "2025.1"])
def test_version_that_nobody_looked_at_is_refused_unless_asked_for(machine, version):
    machine.install("vivado", version=version)
    with pytest.raises(
        BuildError, match=f"vivado is of version {version}: .* add ANY_VERSION=1 to the make"
    ):
        tools.find(tools.VIVADO)
    assert tools.find(tools.VIVADO, any_version=True).version == version


def test_tool_that_says_nothing_is_named(machine):
    machine.install("v++", says="cannot open shared object file", status=127)
    with pytest.raises(BuildError, match="does not say its version .*status 127.* cannot open"):
        tools.find(tools.VPP)


def test_version_is_that_of_the_folder_where_the_tool_does_not_say(machine, monkeypatch):
    folder = machine.folder / "Vitis" / "2024.1" / "bin"
    folder.mkdir(parents=True)
    machine.install("vitis-run", says="usage: vitis-run [options]", status=1)
    (machine.programs / "vitis-run").rename(folder / "vitis-run")
    (machine.programs / "vitis-run").symlink_to(folder / "vitis-run")
    assert tools.find(tools.VITIS_HLS).version == "2024.1"


def test_newer_command_of_vitis_hls_is_preferred(machine):
    machine.install("vitis_hls", version="2023.2")
    assert tools.find(tools.VITIS_HLS).command == ("vitis_hls", "-f")
    machine.install("vitis-run", version="2023.2")
    assert tools.find(tools.VITIS_HLS).command == ("vitis-run", "--mode", "hls", "--tcl")


# ---- platforms of cards ---------------------------------------------------------------


def _install_shells(folder, *names):
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / f"{name}.xpfm").touch()


def test_newest_shell_of_the_card_is_taken(tmp_path, machine, monkeypatch):
    shells = tmp_path / "platforms"
    _install_shells(
        shells, "xilinx_u250_gen3x16_xdma_3_1_202020_1", "xilinx_u250_gen3x16_xdma_4_1_202210_1",
        "xilinx_u50_gen3x16_xdma_5_202210_1",
    )  # fmt: skip
    monkeypatch.setenv("PLATFORM_REPO_PATHS", f"/nowhere:{shells}")
    found = tools.find_shell(PLATFORMS["u250"])
    assert found.endswith("xilinx_u250_gen3x16_xdma_4_1_202210_1.xpfm")
    # The variable may also name the platform's folder itself.
    monkeypatch.setenv("PLATFORM_REPO_PATHS", str(shells / "xilinx_u50_gen3x16_xdma_5_202210_1"))
    assert tools.find_shell(PLATFORMS["u50"]).endswith("xdma_5_202210_1.xpfm")


def test_missing_shell_says_where_it_was_looked_for(tmp_path, machine, monkeypatch):
    monkeypatch.setenv("PLATFORM_REPO_PATHS", str(tmp_path))
    with pytest.raises(BuildError) as refused:
        tools.find_shell(PLATFORMS["u55c"])
    message = str(refused.value)
    assert message.startswith("no platform xilinx_u55c_gen3x16_xdma_* is installed in /opt/xilinx")
    assert str(tmp_path) in message
    assert "add PLATFORM=<name, or path of the .xpfm> to the make" in message


def test_named_shell_is_taken_as_it_is(machine):
    assert tools.find_shell(PLATFORMS["u50"], "mine") == "mine"


def test_file_of_a_shell_is_named_from_anywhere(machine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.xpfm").touch()
    assert tools.find_shell(PLATFORMS["u50"], "mine.xpfm") == str(tmp_path / "mine.xpfm")
    with pytest.raises(
        BuildError, match=f"no platform file no.xpfm .relative to {tmp_path}: make -C"
    ):
        tools.find_shell(PLATFORMS["u50"], "no.xpfm")


# ---- running --------------------------------------------------------------------------


def test_failing_tool_is_named_with_its_status(machine, tmp_path):
    machine.install("vivado")
    found = tools.find(tools.VIVADO)
    (machine.programs / "vivado").write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(BuildError, match=f"vivado failed with exit status 3; .* log in {tmp_path}"):
        tools.run(found, ["x.tcl"], tmp_path, {})
