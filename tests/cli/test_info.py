"""llama-pynq info: devices, overlay, limits and model; it only looks."""

import json
import re

import pytest
from support.checkpoint_files import write_checkpoint
from support.plain_device import Plain

from llama_pynq import LlamaOverlay, __version__
from llama_pynq.boards import boards
from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.emulation import build
from llama_pynq.emulation.device import EmulatedDevice
from llama_pynq.kernel.limits import KernelLimits
from llama_pynq.models import BUNDLED
from llama_pynq.overlay_store import devices


def info(cli, *arguments):
    status, out, err = cli("info", "--json", *arguments)
    assert (status, err) == (0, "")
    return json.loads(out)


def test_info_lists_device_overlay_limits_and_model(cli):
    status, out, err = cli("info", "--threads", 1)
    assert (status, err) == (0, "")
    sections = [part.splitlines() for part in out.rstrip("\n").split("\n\n")]
    assert sections[0] == [f"llama_pynq {__version__}"]
    tables = {part[0]: dict(line.split(maxsplit=1) for line in part[1:]) for part in sections[1:]}
    assert list(tables) == ["devices", "overlay", "kernel limits", "model"]
    assert tables["devices"] == {
        "0": "emulated-host (emulated device on this computer's CPU, 1 thread; no board in use): "
        "selected"
    }
    assert tables["overlay"]["file"].endswith("llama.xclbin")
    with LlamaOverlay() as overlay:
        level = overlay.device.level
    assert level and tables["overlay"]["compiled_for"] == f"-march={level}"
    assert tables["kernel limits"]["max_dim"] == "4096"
    assert tables["model"]["file"] == str(BUNDLED / "stories.bin")
    assert tables["model"]["tokenizer"] == str(BUNDLED / "tokenizer.bin")
    assert tables["model"]["seq_len"] == "512"
    assert not re.search(r" $", out, re.MULTILINE)


@pytest.mark.parametrize("board", ["host", "kv260", "pynq-z1"])
def test_limits_and_weights_are_those_that_the_overlay_has(cli, board):
    found = info(cli, "--board", board)
    with LlamaOverlay(device=EmulatedDevice(board)) as overlay:
        limits = overlay.llama.limits
        packed = overlay.load_model().packed
    source = found["limits"].pop("source")
    assert KernelLimits(**found["limits"]) == limits
    assert source == "the config header host.h; the kernel was not asked"
    assert found["model"]["weight_bytes"] == packed.weight_bytes
    assert found["model"]["weights"] == packed.note


def test_info_names_the_model_file_it_was_given(cli, shared_models):
    model = shared_models / "stories260K.bin"
    found = info(cli, "--model", model, "--tokenizer", shared_models / "tok512.bin")["model"]
    assert (found["file"], found["dim"]) == (str(model), 64)
    assert info(cli, "--model", model)["model"]["tokenizer"] == "none: give --tokenizer FILE"


def test_info_of_a_model_packed_for_a_real_board(cli):
    cli("pack", "m.safetensors", "--board", "kv260")
    found = info(cli, "--model", "m.safetensors", "--board", "kv260")["model"]
    assert found["tokenizer"] == "in the packed file" and found["weight_bytes"] > 1_000_000
    assert "is packed for 4 channels" in found["problem"], "the emulated board has 2"


def test_info_of_a_board_in_use_says_by_whom_and_still_works(cli, kv260_in_use):
    found = info(cli)
    (device,) = found["devices"]
    assert device["in_use_by"] == f"process {kv260_in_use.pid} (-c)"
    assert (device["board"], device["selected"]) == ("kv260", True)
    assert "there is no overlay of kv260 on this computer" in found["overlay"]["problem"]
    assert found["limits"]["channels"] == 4
    assert found["limits"]["source"].startswith("the config header kv260.h")
    out = cli("info")[1]
    assert f"  0  KV260 (board): selected, in use by process {kv260_in_use.pid} (-c)\n" in out


def test_info_without_an_emulator_says_so_and_still_works(cli, monkeypatch, tmp_path):
    monkeypatch.setattr(build, "package_folders", lambda name: [str(tmp_path / "nothing")])
    monkeypatch.setattr(build, "own_build_folder", lambda: tmp_path / "nothing")
    found = info(cli)
    assert "the emulated overlay is not installed" in found["overlay"]["problem"]
    assert "python -m llama_pynq.emulation.build" in found["overlay"]["problem"]
    assert found["model"]["weight_bytes"] > 1_000_000


# ---- one of several devices -----------------------------------------------------------


@pytest.fixture
def several(monkeypatch):
    cards = [Plain("xilinx_u50_base"), Plain("xilinx_u50_base"), Plain("xilinx_u250_shell")]
    monkeypatch.setattr(devices, "pynq_devices", lambda: cards)
    return cards


@pytest.mark.parametrize("name", ["2", "xilinx_u250_shell", "XILINX_U250_SHELL"])
def test_device_is_chosen_by_number_or_name(cli, several, name):
    found = info(cli, "--device", name)
    assert [d["number"] for d in found["devices"]] == [0, 1, 2]
    assert [d["selected"] for d in found["devices"]] == [False, False, True]
    assert found["limits"]["board"] == "u250" == boards()["u250"].header


def test_device_of_two_alike_is_chosen_by_its_number(cli, several):
    found = info(cli, "--device", 1)
    assert [d["selected"] for d in found["devices"]] == [False, True, False]


def test_device_of_two_of_that_name_is_refused_with_the_numbers(refused, several):
    message = refused("info", "--device", "xilinx_u50_base")
    assert message.startswith("2 devices are called 'xilinx_u50_base': give a number, 0: xilinx_u")
    assert refused("generate", "--device", "u9") == (
        "there is no device 'u9': PYNQ sees 0: xilinx_u50_base; 1: xilinx_u50_base; 2: "
        "xilinx_u250_shell"
    )


def test_device_emulate_and_board_exclude_each_other(cli, capsys):
    for options in (["--emulate"], ["--board", "kv260"]):
        with pytest.raises(SystemExit) as end:
            cli("info", "--device", "0", *options)
        assert end.value.code == 2
        assert "not allowed with argument --device" in capsys.readouterr().err


# ---- what generate would refuse --------------------------------------------------------


def test_info_tells_what_generate_would_refuse_of_a_packed_model(cli):
    cli("pack", "m.safetensors", "--board", "u250")
    found = info(cli, "--model", "m.safetensors")["model"]
    assert "is packed for 8 channels of 32-row tiles; this kernel (host) has 2" in found["problem"]
    cli("pack", "own.safetensors")
    assert "problem" not in info(cli, "--model", "own.safetensors")["model"]
    for option in (["--weight-bits", "4"], ["--rope-theta", "5"], ["--reading", "export"]):
        problem = info(cli, "--model", "own.safetensors", *option)["model"]["problem"]
        assert option[0][2:].replace("-", "_") in problem


def test_info_of_a_padded_model_counts_what_is_loaded(cli, tmp_path):
    config = ModelConfig(64, 128, 1, 4, 2, 1040, 64, tied=True)
    write_checkpoint(tmp_path / "m.bin", config, 1)
    found = info(cli, "--model", "m.bin", "--tokenizer", BUNDLED / "tokenizer.bin")["model"]
    assert found["vocab_size"] == 1024 and "16 rows have no token" in found["padding"]


def test_info_of_a_damaged_overlay_says_so_and_still_works(cli, tmp_path):
    (tmp_path / "bad.xclbin").write_bytes(build.emulated_overlay().read_bytes()[:3000])
    found = info(cli, "--overlay", "bad.xclbin")
    assert "bad.xclbin is incomplete" in found["overlay"]["problem"]
    assert found["model"]["weight_bytes"] > 1_000_000


@pytest.mark.parametrize("command", ["info", "pack", "boards"])
def test_empty_model_name_is_not_the_bundled_model(refused, command):
    more = ["x.safetensors", "--board", "kv260"] if command == "pack" else []
    assert "is a folder, not a checkpoint" in refused(command, *more, "--model", "")


def test_rope_theta_out_of_range_is_refused_by_every_command(refused):
    for command in (["info"], ["pack", "x.safetensors", "--board", "kv260"], ["generate"]):
        assert "it must be" in refused(*command, "--rope-theta", 0)
    message = refused("pack", "x.safetensors", "--board", "kv260", "--overlay", "a.bit")
    assert message == "--board packs without a device: leave out --overlay"
