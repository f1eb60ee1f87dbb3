"""The .xclbin file, read by PYNQ's parser and by ours."""

from __future__ import annotations

import random
from pathlib import Path

import pynq
import pytest
from pynq.pl_server.xclbin_parser import XclBin
from support.fake_kernel import overlay_folder

from llama_pynq.emulation import container, xclbin
from llama_pynq.emulation.container import Container, Payload
from llama_pynq.emulation.design import xclbin_design
from llama_pynq.errors import OverlayMismatch
from llama_pynq.kernel import registers

PAYLOAD = Payload("native", "Linux", "x86_64", (), b"library" * 100)


def written(channels: int = 2, clock_mhz: int = 300) -> bytes:
    design = xclbin_design(channels, 2, clock_mhz)
    return xclbin.write(container.pack(Container(design, (PAYLOAD,))), design)


@pytest.mark.parametrize("channels", [1, 2, 4, 32])
def test_pynq_reads_the_registers_of_the_interface(channels):
    ip = XclBin(xclbin_data=bytearray(written(channels))).ip_dict[registers.IP_NAME]
    found = dict(ip["registers"])
    control = found.pop("CTRL")
    assert "AP_CONTINUE" in control["fields"]
    assert {(name, r["address_offset"], r["size"]) for name, r in found.items()} == {
        (r.name, r.offset, r.size_bits)
        for r in registers.registers(registers.arguments(channels, 2))
    }
    assert ip["type"] == registers.VLNV
    assert ip["hw_control_protocol"] == "ap_ctrl_chain"
    assert ip["cu_name"] == "llama:llama"
    assert ip["phys_addr"] == xclbin_design(channels, 2, 300).base_address


def test_pynq_sees_a_bank_for_each_weight_channel():
    parser = XclBin(xclbin_data=bytearray(written(4)))
    found = parser.ip_dict[registers.IP_NAME]["registers"]
    banks = {name: r.get("memory") for name, r in found.items()}
    assert banks["request"] == banks["profile"] == "DDR[0]"
    assert banks["kv_read_0"] == banks["kv_write_0"] == banks["weights_0"]
    assert [banks[f"weights_{c}"] for c in range(4)] == [f"DDR[{c + 1}]" for c in range(4)]
    assert banks["command"] is None
    design = xclbin_design(4, 2, 300)
    assert [(b["tag"], b["base_address"]) for b in parser.mem_dict.values()] == [
        (bank.tag, bank.base_address) for bank in design.banks
    ]
    assert all(bank["used"] for bank in parser.mem_dict.values())


def test_pynq_reads_the_clock():
    clock = XclBin(xclbin_data=bytearray(written(clock_mhz=271))).clock_dict["clock0"]
    assert clock == {"name": "KERNEL_CLK", "frequency": 271, "type": "KERNEL"}


def test_types_are_those_pynq_knows():
    ip = XclBin(xclbin_data=bytearray(written())).ip_dict[registers.IP_NAME]
    assert {r["type"] for r in ip["registers"].values() if "*" not in r["type"]} == {"unsigned int"}


def test_equal_contents_give_equal_files_and_others_another_uuid():
    assert written() == written()
    uuids = {XclBin(xclbin_data=bytearray(written(c))).ip_dict["llama"]["xclbin_uuid"]
             for c in (1, 2)}  # fmt: skip
    assert len(uuids) == 2


def test_read_returns_what_was_packed():
    assert xclbin.read(written(), "file") == Container(xclbin_design(2, 2, 300), (PAYLOAD,))


def test_damage_is_found_wherever_it_is():
    good = written()
    rng = random.Random(2)
    for position in rng.sample(range(len(good)), 300):
        bad = bytearray(good)
        bad[position] ^= 1 << rng.randrange(8)
        with pytest.raises(OverlayMismatch, match="file"):
            xclbin.read(bytes(bad), "file")


@pytest.mark.parametrize("size", [0, 7, 100, 456, -1])
def test_file_cut_short_is_refused(size):
    with pytest.raises(OverlayMismatch, match=r"file is incomplete|file is not an \.xclbin"):
        xclbin.read(written()[:size], "file")


def test_file_for_hardware_is_refused():
    real = Path(pynq.__file__).parent / "pl_server" / "default.xclbin"
    with pytest.raises(OverlayMismatch, match=r"hardware \(mode \d, not software"):
        xclbin.read(real.read_bytes(), "default.xclbin")


def test_fake_kernel_file_passes_both_readers():
    data = (overlay_folder() / "llama.xclbin").read_bytes()
    assert xclbin.read(data, "file").payloads[0].level == "native"
    assert list(XclBin(xclbin_data=bytearray(data)).ip_dict) == ["llama"]
