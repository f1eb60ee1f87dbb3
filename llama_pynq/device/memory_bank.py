"""A memory bank of a device: base class of the emulated device's banks and of pyxrt's."""

from __future__ import annotations

from typing import Any


class MemoryBank:
    """A memory bank of a device, as PYNQ describes it in ``mem_dict``.

    Two instances for the same bank of the same device are equal.
    """

    def __init__(self, device: Any, desc: dict[str, Any]) -> None:
        self.device = device
        self.desc = desc
        self.idx = desc["idx"]
        self.size = desc["size"]
        self.base_address = desc["base_address"]
        self.tag = desc["tag"]

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, MemoryBank) and self.device is other.device and self.idx == other.idx
        )

    def __hash__(self) -> int:
        return hash((id(self.device), self.idx))
