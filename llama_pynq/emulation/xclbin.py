"""Write and read ``.xclbin`` files (axlf) with the standard library alone.

The layout follows XRT's ``xclbin.h``, which PYNQ mirrors in ``pynq._3rdparty.xclbin``.
The file's UUID is a hash of its contents: equal designs and kernels give equal files, and
damage is detected.
"""

from __future__ import annotations

import hashlib
import struct
from xml.etree import ElementTree

from llama_pynq.device.bitfiles import (
    BITSTREAM,
    CLOCK_FREQ_TOPOLOGY,
    CONNECTIVITY,
    EMBEDDED_METADATA,
    HEADER,
    IP_LAYOUT,
    MEM_TOPOLOGY,
    SECTION,
    UUID,
    XCLBIN_MAGIC,
    check_xclbin,
)
from llama_pynq.emulation import container
from llama_pynq.emulation.design import BANK_STRIDE, Design
from llama_pynq.errors import OverlayMismatch
from llama_pynq.kernel import registers

_MODE_SW_EMU = 6
_MEM_DDR4, _IP_KERNEL, _CLOCK_KERNEL = 1, 1, 2
_KERNEL_ARGUMENT_TYPES = {"uint32_t": "unsigned int"}


def _kernel_xml(design: Design) -> bytes:
    """The EMBEDDED_METADATA that PYNQ turns into ``ip_dict``."""
    project = ElementTree.Element("project", name=registers.IP_NAME)
    platform = ElementTree.SubElement(project, "platform", vendor="llama_pynq", name="emulated")
    device = ElementTree.SubElement(platform, "device", name="fpga0")
    core = ElementTree.SubElement(
        device, "core", name="OCL_REGION_0", target="sw_emu", type="clc_region"
    )
    kernel = ElementTree.SubElement(
        core,
        "kernel",
        name=registers.IP_NAME,
        language="c",
        vlnv=registers.VLNV,
        hwControlProtocol=design.protocol,
    )
    ElementTree.SubElement(
        kernel, "port", name="S_AXI_CONTROL", mode="slave",
        range=hex(design.address_range), dataWidth="32", portType="addressable", base="0x0",
    )  # fmt: skip
    for bundle in sorted({arg.bundle for arg in design.arguments if arg.bundle}):
        ElementTree.SubElement(
            kernel, "port", name=f"M_AXI_{bundle.upper()}", mode="master",
            range="0xFFFFFFFFFFFFFFFF", dataWidth="512", portType="addressable", base="0x0",
        )  # fmt: skip
    for index, arg in enumerate(design.arguments):
        size = hex(arg.size_bits // 8)
        ElementTree.SubElement(
            kernel, "arg", name=arg.name, addressQualifier="1" if arg.is_pointer else "0",
            id=str(index), port=f"M_AXI_{arg.bundle.upper()}" if arg.bundle else "S_AXI_CONTROL",
            size=size, offset=hex(arg.offset), hostOffset="0x0", hostSize=size,
            # PYNQ 3.0.1 maps type names to struct codes and knows the plain C names only.
            type=_KERNEL_ARGUMENT_TYPES.get(arg.ctype, arg.ctype),
        )  # fmt: skip
    instance = ElementTree.SubElement(kernel, "instance", name=registers.IP_NAME)
    ElementTree.SubElement(
        instance, "addrRemap", base=hex(design.base_address), port="S_AXI_CONTROL"
    )
    xml: bytes = ElementTree.tostring(project, encoding="utf-8", xml_declaration=True)
    return xml


def _mem_topology(design: Design) -> bytes:
    banks = [
        struct.pack(
            "<BB6xqq16s", _MEM_DDR4, 1, BANK_STRIDE // 1024, bank.base_address, bank.tag.encode()
        )
        for bank in design.banks
    ]
    return struct.pack("<i4x", len(banks)) + b"".join(banks)


def _connectivity(design: Design) -> bytes:
    tags = [bank.tag for bank in design.banks]
    connections = [
        struct.pack("<iii", index, 0, tags.index(arg.bank))
        for index, arg in enumerate(design.arguments)
        if arg.bank is not None
    ]
    return struct.pack("<i", len(connections)) + b"".join(connections)


def _ip_layout(design: Design) -> bytes:
    name = f"{registers.IP_NAME}:{registers.IP_NAME}".encode()
    return struct.pack("<i4xIIQ64s", 1, _IP_KERNEL, 0, design.base_address, name)


def _clocks(design: Design) -> bytes:
    return struct.pack("<Hhb5x128s", 1, design.clock_mhz, _CLOCK_KERNEL, b"KERNEL_CLK")


def write(bitstream: bytes, design: Design) -> bytes:
    """An ``.xclbin`` whose BITSTREAM section is `bitstream`.

    Parameters
    ----------
    bitstream : bytes
        A packed `Container`.
    design : Design
        Must have memory banks.
    """
    sections = [
        (EMBEDDED_METADATA, b"xml", _kernel_xml(design)),
        (MEM_TOPOLOGY, b"mem_topology", _mem_topology(design)),
        (IP_LAYOUT, b"ip_layout", _ip_layout(design)),
        (CONNECTIVITY, b"connectivity", _connectivity(design)),
        (CLOCK_FREQ_TOPOLOGY, b"clock_freq", _clocks(design)),
        (BITSTREAM, b"bitstream", bitstream),
    ]
    headers, body = b"", b""
    start = HEADER.size + SECTION.size * len(sections)
    for kind, name, data in sections:
        body += bytes(-(start + len(body)) % 8)
        headers += SECTION.pack(kind, name, start + len(body), len(data))
        body += data
    signature_length, unused = -1, b"\xff"
    header = HEADER.pack(
        XCLBIN_MAGIC, signature_length, unused * 28, unused * 256, 0,
        start + len(body), 0, 0, 0, 2, 0, _MODE_SW_EMU, b"", b"llama_pynq_emulated", b"", b"",
        len(sections),
    )  # fmt: skip
    file = bytearray(header + headers + body)
    file[UUID] = hashlib.sha256(file).digest()[:16]
    return bytes(file)


def read(data: bytes, source: str) -> container.Container:
    """Check an ``.xclbin`` and unpack the emulated kernel in it.

    Raises
    ------
    OverlayMismatch
        If the file is not an xclbin, is damaged, or was not built for emulation.
    """
    header, sections = check_xclbin(data, source)
    if header.n_bytes != len(data):
        raise OverlayMismatch(
            f"{source} is incomplete: its header and its size ({len(data)} bytes) disagree. "
            f"Reinstall llama_pynq, or build the emulated overlay again."
        )
    if header.mode != _MODE_SW_EMU:
        raise OverlayMismatch(
            f"{source} was built for hardware (mode {header.mode}, not software emulation) and "
            f"cannot run on an emulated device. Load it on its card, or use the package's "
            f"own llama.xclbin here."
        )
    result = container.unpack(sections.get(BITSTREAM, b""), source)
    blanked = bytearray(data)
    blanked[UUID] = bytes(16)
    if hashlib.sha256(blanked).digest()[:16] != header.uuid:
        raise OverlayMismatch(
            f"{source} is damaged: its contents do not match its UUID. "
            f"Reinstall llama_pynq, or build the emulated overlay again."
        )
    return result
