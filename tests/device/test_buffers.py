"""Device buffers: pointer registers, and syncs of host and device memory."""

import pytest
from support.kernel_rows import sampled

from llama_pynq.errors import KernelError

pytestmark = pytest.mark.usefixtures("own_locks")


def test_load_writes_every_pointer_to_its_own_buffer(overlay):
    with overlay.device.record_registers() as log:
        overlay.load_model()
    names = {access.name for access in log}
    # An address is written in two accesses, one per half.
    names = {name[:-2] for name in names if name[-2:] == "_1" and name[:-2] + "_2" in names}
    assert {"kv_read_0", "kv_write_0", "kv_read_1", "kv_write_1", "logits"} <= names
    addresses = {
        b.device_address for b in (overlay.llama.buffers[name] for name in overlay.llama.buffers)
    }
    assert len(addresses) == len(overlay.llama.buffers)


def test_run_forgotten_sync_would_be_seen(overlay):
    # Host and device memory are separate: the kernel only sees synced data.
    driver = overlay.llama
    good = driver.run(sampled()).rows
    driver.buffers["model"][:] = 0
    assert driver.run(sampled()).rows == good
    driver.buffers["model"].sync_to_device()
    with pytest.raises(KernelError, match="no descriptor"):
        driver.run(sampled())
