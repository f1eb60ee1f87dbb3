"""The .bit and .hwh files, read by PYNQ's parsers and by ours."""

from __future__ import annotations

import pytest
from pynq.metadata.runtime_metadata_parser import RuntimeMetadataParser
from pynqmetadata.frontends import Metadata

from llama_pynq.emulation import container, hwh
from llama_pynq.emulation.container import Container, Payload
from llama_pynq.emulation.design import zynq_design
from llama_pynq.errors import OverlayMismatch
from llama_pynq.kernel import registers

CONTAINER = Container(
    zynq_design(2, 2, 142), (Payload("native", "Linux", "x86_64", (), b"library"),), "00"
)


@pytest.fixture
def parse(tmp_path):
    def parse_design(channels: int, clock_mhz: int = 142):
        path = tmp_path / "llama.hwh"
        path.write_bytes(hwh.write_hwh(zynq_design(channels, 2, clock_mhz)))
        return RuntimeMetadataParser(Metadata(input=str(path)))

    return parse_design


@pytest.mark.parametrize("channels", [1, 2, 4, 32])
def test_pynq_reads_the_registers_of_the_interface(parse, channels):
    ip = parse(channels).ip_dict[registers.IP_NAME]
    control = ("CTRL", "GIER", "IP_IER", "IP_ISR")
    found = {k: v for k, v in ip["registers"].items() if k not in control}
    assert {(name, r["address_offset"], r["size"]) for name, r in found.items()} == {
        (r.name, r.offset, r.size_bits)
        for r in registers.zynq_registers(registers.arguments(channels, 2))
    }
    assert ip["type"] == registers.VLNV
    assert ip["phys_addr"] == zynq_design(channels, 2, 142).base_address
    assert ip["addr_range"] == zynq_design(channels, 2, 142).address_range
    assert "AP_CONTINUE" not in ip["registers"]["CTRL"]["fields"]


def test_pynq_reads_the_clock(parse):
    parser = parse(2, 187)
    assert parser.clock_dict[0]["enable"] == 1
    assert parser.clock_dict[1]["enable"] == 0
    parameters = parser.ip_dict["zynq_ultra_ps_e_0"]["parameters"]
    assert float(parameters["PSU__CRL_APB__PL0_REF_CTRL__ACT_FREQMHZ"]) == 187


def test_equal_designs_give_equal_files():
    assert hwh.write_hwh(zynq_design(2, 2, 142)) == hwh.write_hwh(zynq_design(2, 2, 142))
    assert hwh.write_bit(b"abc") == hwh.write_bit(b"abc")


def test_pynq_reads_the_bit_file():
    embedded = pytest.importorskip("pynq.pl_server.embedded_device")
    data = container.pack(CONTAINER)
    fields = embedded.parse_bit_header(hwh.write_bit(data))
    assert fields["design"] == "llama"
    assert fields["data"] == data
    assert len(embedded.bit2bin(hwh.write_bit(b"12345"))) == 8  # padded to whole words


def test_read_returns_what_was_packed():
    assert hwh.read_bit(hwh.write_bit(container.pack(CONTAINER)), "file") == CONTAINER


@pytest.mark.parametrize("size", [15, 30, 80, -1])
def test_bit_file_cut_short_is_refused(size):
    data = hwh.write_bit(container.pack(CONTAINER))
    with pytest.raises(OverlayMismatch, match=r"llama\.bit is incomplete"):
        hwh.read_bit(data[:size], "llama.bit")


def test_other_files_are_refused():
    with pytest.raises(OverlayMismatch, match=r"llama\.bit is not a Xilinx \.bit file"):
        hwh.read_bit(b"\x7fELF", "llama.bit")
    with pytest.raises(OverlayMismatch, match="holds no emulated kernel: it was built for"):
        hwh.read_bit(hwh.write_bit(b"\xff" * 64), "llama.bit")
