"""Build facts of each board beyond the kernel's config header, and their sources.

Part and shell names: finn, ``src/finn/util/basic.py``. Board files, and the masters' data address
spaces, which map only the low DDR: PYNQ, ``boards/*/base/base.tcl``, and Kria-PYNQ,
``kv260/base/base.tcl`` (its buffers are in the low 2 GiB). Pins and properties of the processors'
IP: the same files. Nothing here was tried: no AMD tool was available.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ProcessorPort:
    """A port of a Zynq's processor through which the fabric reaches DDR memory.

    Attributes
    ----------
    name, clock : str
        Interface pin and its clock pin.
    address_block, segment : str
        Address block of the port in the processor's IP, and its segment that is DDR memory.
    properties : tuple of (str, str)
        Properties of the processor's IP that enable the port at its full width.
    """

    name: str
    clock: str
    address_block: str
    segment: str
    properties: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Processor:
    """A Zynq's processor as Vivado's IP integrator has it.

    Attributes
    ----------
    ip : str
        Name in the library ``xilinx.com:ip``.
    preset : tuple of (str, str)
        Options with which Vivado's automation applies the board's preset.
    properties : tuple of (str, str)
        Properties besides those of the memory ports.
    clock_property, actual_clock_property : str
        The fabric's clock in MHz: as requested, and as the PLL's dividers produce it.
    clock, reset : str
        Pins of the fabric's clock and reset.
    control, control_clock : str
        The port through which the registers are accessed, and its clock pin.
    control_address : int
    ports : tuple of ProcessorPort
        In the order of use: neighbours in this list use different ports of the memory controller,
        as far as there are enough.
    """

    ip: str
    preset: tuple[tuple[str, str], ...]
    properties: tuple[tuple[str, str], ...]
    clock_property: str
    actual_clock_property: str
    clock: str
    reset: str
    control: str
    control_clock: str
    control_address: int
    ports: tuple[ProcessorPort, ...]


@dataclass(frozen=True)
class Zynq:
    """A board whose overlay is a ``.bit`` with its ``.hwh``.

    Attributes
    ----------
    part : str
    board_part : str
        Pattern of Vivado's name for the board; the newest match is used.
    board_files : str
        Where to get Vivado's board files.
    processor : Processor
    """

    part: str
    board_part: str
    board_files: str
    processor: Processor


@dataclass(frozen=True)
class Card:
    """A card whose overlay is an ``.xclbin``.

    Attributes
    ----------
    part : str
    shell : str
        Pattern of the platform's name; the newest installed match is used.
    memory : str
        ``HBM`` or ``DDR``, as the linker names the banks.
    most_masters : int
        Number of kernel AXI masters that the shell's memory takes.
    """

    part: str
    shell: str
    memory: str
    most_masters: int


def _zynq_7000_port(n: int) -> ProcessorPort:
    return ProcessorPort(
        f"S_AXI_HP{n}", f"S_AXI_HP{n}_ACLK", f"S_AXI_HP{n}", f"HP{n}_DDR_LOWOCM",
        ((f"PCW_USE_S_AXI_HP{n}", "1"), (f"PCW_S_AXI_HP{n}_DATA_WIDTH", "64")),
    )  # fmt: skip


def _mpsoc_port(n: int) -> ProcessorPort:
    gp = n + 2  # the HPC ports are S_AXI_GP0 and GP1
    return ProcessorPort(
        f"S_AXI_HP{n}_FPD", f"saxihp{n}_fpd_aclk", f"SAXIGP{gp}", f"HP{n}_DDR_LOW",
        ((f"PSU__USE__S_AXI_GP{gp}", "1"), (f"PSU__SAXIGP{gp}__DATA_WIDTH", "128")),
    )  # fmt: skip


# HP0 and HP1 share a port of the memory controller, as do HP2 and HP3 (UG585, recalled and not
# looked up).
ZYNQ_7000 = Processor(
    "processing_system7",
    (
        ("make_external", "FIXED_IO, DDR"),
        ("apply_board_preset", "1"),
        ("Master", "Disable"),
        ("Slave", "Disable"),
    ),
    (("PCW_USE_M_AXI_GP0", "1"), ("PCW_USE_M_AXI_GP1", "0")),
    "PCW_FPGA0_PERIPHERAL_FREQMHZ",
    "PCW_ACT_FPGA0_PERIPHERAL_FREQMHZ",
    "FCLK_CLK0",
    "FCLK_RESET0_N",
    "M_AXI_GP0",
    "M_AXI_GP0_ACLK",
    0x4000_0000,
    tuple(_zynq_7000_port(n) for n in (0, 2, 1, 3)),
)

# HP1 and HP2 share a port of the memory controller, HP0 one with the display port, HP3 one with a
# DMA controller (UG1085, PL-PS Interface Specifics). The HPC ports are not used: they go through
# the CCI, and PYNQ's buffers are not coherent.
MPSOC = Processor(
    "zynq_ultra_ps_e",
    (("apply_board_preset", "1"),),
    (
        ("PSU__USE__M_AXI_GP0", "1"),
        ("PSU__MAXIGP0__DATA_WIDTH", "32"),
        ("PSU__USE__M_AXI_GP1", "0"),
        ("PSU__USE__M_AXI_GP2", "0"),
        ("PSU__FPGA_PL0_ENABLE", "1"),
    ),
    "PSU__CRL_APB__PL0_REF_CTRL__FREQMHZ",
    "PSU__CRL_APB__PL0_REF_CTRL__ACT_FREQMHZ",
    "pl_clk0",
    "pl_resetn0",
    "M_AXI_HPM0_FPD",
    "maxihpm0_fpd_aclk",
    0xA000_0000,
    tuple(_mpsoc_port(n) for n in (0, 1, 3, 2)),
)

CONTROL_RANGE = 0x1_0000

_BOARD_STORE = "AMD's Board Store has it: in Vivado, Tools > XHub Stores, or xhub::install"

# v++ for a U50: 'Resource HBM[0] has 1 interface that can support 30 possible masters'
# (Vitis_Accel_Examples, issue 75). The U280 and U55C are assumed to take no more: not checked.
_HBM_MASTERS = 30
# 'Up to 15 kernel ports can be connected to a single global memory bank' (UG1393), of 4.
_DDR_MASTERS = 60

PLATFORMS: dict[str, Zynq | Card] = {
    "pynq-z1": Zynq(
        "xc7z020clg400-1",
        "*:pynq-z1:part0:*",
        "github.com/Digilent/vivado-boards has it",
        ZYNQ_7000,
    ),
    "pynq-z2": Zynq(
        "xc7z020clg400-1",
        "*:pynq-z2:part0:*",
        "TUL has it: https://www.tulembedded.com/FPGA/ProductsPYNQ-Z2.html",
        ZYNQ_7000,
    ),
    "kv260": Zynq("xck26-sfvc784-2LV-c", "*:kv260_som:part0:*", _BOARD_STORE, MPSOC),
    "zcu104": Zynq("xczu7ev-ffvc1156-2-e", "*:zcu104:part0:*", _BOARD_STORE, MPSOC),
    "u200": Card("xcu200-fsgd2104-2-e", "xilinx_u200_gen3x16_xdma_*", "DDR", _DDR_MASTERS),
    "u250": Card("xcu250-figd2104-2L-e", "xilinx_u250_gen3x16_xdma_*", "DDR", _DDR_MASTERS),
    "u50": Card("xcu50-fsvh2104-2L-e", "xilinx_u50_gen3x16_xdma_*", "HBM", _HBM_MASTERS),
    "u280": Card("xcu280-fsvh2892-2L-e", "xilinx_u280_gen3x16_xdma_*", "HBM", _HBM_MASTERS),
    "u55c": Card("xcu55c-fsvh2892-2L-e", "xilinx_u55c_gen3x16_xdma_*", "HBM", _HBM_MASTERS),
}
"""Boards with a known build, by their names in `llama_pynq.boards`. AWS's cards are not listed: AWS
links its shell and registers the result in its own way (aws-fpga)."""
