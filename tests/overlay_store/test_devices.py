"""Devices: which classes PYNQ can find, and which board a device is."""

import json

import pytest
from support.plain_device import Plain

from llama_pynq import EmulatedDevice
from llama_pynq.overlay_store.devices import board_of_device

pytestmark = pytest.mark.usefixtures("places")


@pytest.mark.parametrize(
    ("name", "tree", "environment", "board"),
    [
        ("KV260", None, None, "kv260"),  # Kria-PYNQ: XRT reads /etc/xocl.txt
        ("edge", "Pynq-Z2\0", None, "pynq-z2"),
        ("edge", None, "KV260", "kv260"),
        ("edge", "Unknown\0", "ZCU104", "zcu104"),
        ("edge", "Pynq-Z1\0", "KV260", "pynq-z1"),  # anyone may set BOARD
        ("edge", "Ultra96\0", None, None),
        ("edge", None, None, None),
    ],
)
def test_zynq_board_is_known_by_xrt_the_device_tree_or_the_environment(
    tmp_path, monkeypatch, name, tree, environment, board
):
    monkeypatch.setattr("llama_pynq.overlay_store.devices.BOARD_FILE", tmp_path / "pynq_board")
    if tree is not None:
        (tmp_path / "pynq_board").write_text(tree)
    if environment is not None:
        monkeypatch.setenv("BOARD", environment)
    assert board_of_device(Plain(name, "MEMORY_MAPPED", "CALLABLE")) == board


@pytest.mark.parametrize(
    ("name", "capability", "board"),
    [
        ("xilinx_u250_gen3x16_xdma_shell_4_1", "REGISTER_RW", "u250"),
        ("xilinx_vck5000_gen4x8_qdma_base_2", "REGISTER_RW", None),
        ("Pynq-Z2", "REMOTE", "pynq-z2"),
        ("Unknown", "REMOTE", None),
    ],
)
def test_this_computers_board_is_neither_a_cards_nor_a_remote_one(
    tmp_path, monkeypatch, name, capability, board
):
    monkeypatch.setattr("llama_pynq.overlay_store.devices.BOARD_FILE", tmp_path / "pynq_board")
    (tmp_path / "pynq_board").write_text("KV260\0")
    monkeypatch.setenv("BOARD", "kv260")
    assert board_of_device(Plain(name, capability)) == board


def test_emulated_devices_board_is_the_one_it_emulates(monkeypatch):
    monkeypatch.setenv("BOARD", "zcu104")
    assert board_of_device(EmulatedDevice()) is None
    assert board_of_device(EmulatedDevice(board="kv260")) == "kv260"
    assert board_of_device(EmulatedDevice(board="pynq-z2", name="kv260")) == "pynq-z2"


def test_importing_the_overlay_registers_every_device_class(run):
    """PYNQ finds a `Device` subclass only if its module was imported."""
    code = """
import json, warnings
warnings.simplefilter("ignore")
import llama_pynq.llama_overlay
from pynq.pl_server.device import DeviceMeta
found = DeviceMeta._subclasses.values()
print(json.dumps(sorted(c.__name__ for c in found if c.__module__.startswith("llama_pynq"))))
"""
    assert json.loads(run("-c", code).stdout) == ["EmulatedDevice", "PyxrtDevice"]
