"""A device that is only named."""

from pynq.pl_server.device import Device


class Plain(Device):
    """Fake device with a name and capabilities."""

    def __init__(self, name, *capabilities):
        super().__init__("plain")
        self.name, self.capabilities = name, dict.fromkeys(capabilities, True)
