"""A fake board: not an EmulatedDevice, but runs emulated overlays."""

from __future__ import annotations

from typing import Any

from pynq.pl_server.device import Device

from llama_pynq import EmulatedDevice


class FakeBoard(Device):
    """Device with a board's name; an inner EmulatedDevice does the work."""

    def __init__(self, name: str) -> None:
        inner = EmulatedDevice(threads=1, name=name, trust=True)
        inner.capabilities["EMULATED"] = False
        object.__setattr__(self, "inner", inner)

    def __getattribute__(self, name: str) -> Any:
        if name == "inner" or name.startswith("__"):
            return object.__getattribute__(self, name)
        if name == "board":
            raise AttributeError("a board does not say so")
        return getattr(object.__getattribute__(self, "inner"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.inner, name, value)
