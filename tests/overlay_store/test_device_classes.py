"""overlay_store/devices.py: the devices that PYNQ can find once the overlay is imported."""

import json


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


def test_listing_overlays_does_not_load_pynq(run):
    code = """
import sys, llama_pynq.overlay_store.install, llama_pynq.overlay_store.search
print("pynq" in sys.modules)
"""
    assert run("-c", code).stdout == "False\n"
