"""Write and read ``.bit`` and ``.hwh`` files with the standard library alone.

The ``.hwh`` describes a Zynq UltraScale+ design with one IP, as Vivado would: pointers
appear as two 32-bit registers. The ``.bit`` has the tagged header that PYNQ parses, and
a `Container` as its configuration data.
"""

from __future__ import annotations

import struct
from xml.etree import ElementTree

from llama_pynq.device.bitfiles import BIT_PREFIX, check_bit
from llama_pynq.emulation import container
from llama_pynq.emulation.design import Design
from llama_pynq.kernel import registers

# name, offset, access, fields (name, bit offset, bit width, access)
_CONTROL_REGISTERS: tuple[tuple[str, int, str, tuple[tuple[str, int, int, str], ...]], ...] = (
    (
        "CTRL", 0x00, "read-write",
        (
            ("AP_START", 0, 1, "read-write"),
            ("AP_DONE", 1, 1, "read-only"),
            ("AP_IDLE", 2, 1, "read-only"),
            ("AP_READY", 3, 1, "read-only"),
            ("AUTO_RESTART", 7, 1, "read-write"),
        ),
    ),
    ("GIER", 0x04, "read-write", (("Enable", 0, 1, "read-write"),)),
    (
        "IP_IER", 0x08, "read-write",
        (("CHAN0_INT_EN", 0, 1, "read-write"), ("CHAN1_INT_EN", 1, 1, "read-write")),
    ),
    (
        "IP_ISR", 0x0C, "read-write",
        (("CHAN0_INT_ST", 0, 1, "read-write"), ("CHAN1_INT_ST", 1, 1, "read-write")),
    ),
)  # fmt: skip
_AP_CONTINUE = ("AP_CONTINUE", 4, 1, "read-write")


def _element(parent: ElementTree.Element, tag: str, **attributes: str) -> ElementTree.Element:
    return ElementTree.SubElement(parent, tag, attributes)


def _property(parent: ElementTree.Element, name: str, value: object) -> None:
    _element(parent, "PROPERTY", NAME=name, VALUE=str(value))


def _register(
    parent: ElementTree.Element, name: str, offset: int, access: str
) -> ElementTree.Element:
    register = _element(parent, "REGISTER", NAME=name)
    _property(register, "DESCRIPTION", f"{name} of the {registers.IP_NAME} kernel")
    _property(register, "ADDRESS_OFFSET", offset)
    _property(register, "SIZE", 32)
    _property(register, "ACCESS", access)
    _property(register, "IS_ENABLED", "true")
    return _element(register, "FIELDS")


def _field(parent: ElementTree.Element, name: str, bit: int, width: int, access: str) -> None:
    field = _element(parent, "FIELD", NAME=name)
    _property(field, "DESCRIPTION", name)
    _property(field, "BIT_OFFSET", bit)
    _property(field, "BIT_WIDTH", width)
    _property(field, "ACCESS", access)


def data_registers(design: Design) -> list[registers.Register]:
    """One 32-bit register per word, named as by `registers.zynq_registers`."""
    result = []
    for arg in design.arguments:
        if arg.size_bits == 64:
            result.append(registers.Register(f"{arg.name}_1", arg.offset, 32))
            result.append(registers.Register(f"{arg.name}_2", arg.offset + 4, 32))
        else:
            result.append(registers.Register(arg.name, arg.offset, 32))
    return result


def _kernel_module(modules: ElementTree.Element, design: Design) -> None:
    name = registers.IP_NAME
    module = _element(
        modules, "MODULE", FULLNAME=f"/{name}", INSTANCE=name, MODTYPE=name, IS_PL="TRUE",
        MODCLASS="PERIPHERAL", VLNV=registers.VLNV, HWVERSION=registers.VERSION,
    )  # fmt: skip
    blocks = _element(module, "ADDRESSBLOCKS")
    block = _element(
        blocks, "ADDRESSBLOCK", ACCESS="", INTERFACE="s_axi_control", NAME="Reg",
        RANGE=str(design.address_range), USAGE="register",
    )  # fmt: skip
    listed = _element(block, "REGISTERS")
    for register_name, offset, access, fields in _CONTROL_REGISTERS:
        if register_name == "CTRL" and design.protocol == "ap_ctrl_chain":
            fields = (*fields, _AP_CONTINUE)
        parent = _register(listed, register_name, offset, access)
        for field in fields:
            _field(parent, *field)
    for register in data_registers(design):
        parent = _register(listed, register.name, register.offset, "read-write")
        _field(parent, register.name, 0, 32, "read-write")
    parameters = _element(module, "PARAMETERS")
    for key, value in (
        ("C_S_AXI_CONTROL_BASEADDR", f"0x{design.base_address:08X}"),
        ("C_S_AXI_CONTROL_HIGHADDR", f"0x{design.base_address + design.address_range - 1:08X}"),
    ):
        _element(parameters, "PARAMETER", NAME=key, VALUE=value)
    interfaces = _element(module, "BUSINTERFACES")
    _element(
        interfaces, "BUSINTERFACE", NAME="s_axi_control", TYPE="SLAVE",
        VLNV="xilinx.com:interface:aximm:1.0",
    )  # fmt: skip


def _processor_module(modules: ElementTree.Element, design: Design) -> None:
    module = _element(
        modules, "MODULE", FULLNAME="/zynq_ultra_ps_e_0", INSTANCE="zynq_ultra_ps_e_0",
        MODTYPE="zynq_ultra_ps_e", IS_PL="FALSE", MODCLASS="PROCESSOR",
        VLNV="xilinx.com:ip:zynq_ultra_ps_e:3.4", HWVERSION="3.4",
    )  # fmt: skip
    parameters = _element(module, "PARAMETERS")
    for clock in range(4):  # PYNQ asks for all four PL clocks
        prefix = f"PSU__CRL_APB__PL{clock}_REF_CTRL__"
        mhz = design.clock_mhz if clock == 0 else 100
        for key, value in (
            (f"PSU__FPGA_PL{clock}_ENABLE", "1" if clock == 0 else "0"),
            (f"{prefix}DIVISOR0", "1"),
            (f"{prefix}DIVISOR1", "1"),
            (f"{prefix}SRCSEL", "IOPLL"),
            (f"{prefix}ACT_FREQMHZ", f"{mhz}.000000"),
        ):
            _element(parameters, "PARAMETER", NAME=key, VALUE=value)
    interfaces = _element(module, "BUSINTERFACES")
    _element(
        interfaces, "BUSINTERFACE", NAME="M_AXI_HPM0_FPD", TYPE="MASTER",
        VLNV="xilinx.com:interface:aximm:1.0",
    )  # fmt: skip
    memory = _element(module, "MEMORYMAP")
    _element(
        memory, "MEMRANGE", ADDRESSBLOCK="Reg", BASENAME="C_S_AXI_CONTROL_BASEADDR",
        BASEVALUE=f"0x{design.base_address:08X}",
        HIGHNAME="C_S_AXI_CONTROL_HIGHADDR",
        HIGHVALUE=f"0x{design.base_address + design.address_range - 1:08X}",
        INSTANCE=registers.IP_NAME, IS_DATA="TRUE", MEMTYPE="REGISTER",
        MASTERBUSINTERFACE="M_AXI_HPM0_FPD", SLAVEBUSINTERFACE="s_axi_control",
    )  # fmt: skip


def write_hwh(design: Design) -> bytes:
    """The hardware handoff file of `design`, in the form that `pynqmetadata` reads."""
    root = ElementTree.Element("EDKSYSTEM", EDWVERSION="1.2", VIVADOVERSION="emulated")
    _element(
        root, "SYSTEMINFO", ARCH="zynquplus", BOARD="emulated", DEVICE="emulated", NAME="design_1"
    )
    _element(root, "EXTERNALPORTS")
    _element(root, "EXTERNALINTERFACES")
    modules = _element(root, "MODULES")
    _kernel_module(modules, design)
    _processor_module(modules, design)
    ElementTree.indent(root)
    xml: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return xml


def write_bit(data: bytes) -> bytes:
    """A ``.bit`` file around `data`, padded to whole 32-bit words."""
    data += bytes(-len(data) % 4)
    fields = b""
    for key, text in (
        (b"a", f"{registers.IP_NAME};emulated"),
        (b"b", "emulated"),
        (b"c", "1970/01/01"),  # fixed: equal builds give equal files
        (b"d", "00:00:00"),
    ):
        value = text.encode() + b"\0"
        fields += key + struct.pack(">H", len(value)) + value
    return BIT_PREFIX + fields + b"e" + struct.pack(">I", len(data)) + data


def read_bit(data: bytes, source: str) -> container.Container:
    """Unpack the emulated kernel in a ``.bit`` file.

    Raises
    ------
    OverlayMismatch
        If the file is not a .bit, is damaged, or was not built for emulation.
    """
    return container.unpack(check_bit(data, source), source)
