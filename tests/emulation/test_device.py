"""EmulatedDevice under unmodified PYNQ: overlays, registers, calls, and errors."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pynq
import pytest
from support.fake_kernel import (
    ABORT_WORD,
    CHANNELS,
    WORDS,
    connect,
    device,
    overlay_folder,
    payloads,
    setup,
)
from support.paths import REPOSITORY, TESTS

from llama_pynq.boards import boards
from llama_pynq.emulation import container, cpu, emulator, xclbin
from llama_pynq.emulation import device as device_module
from llama_pynq.emulation.container import Container, Payload
from llama_pynq.emulation.design import xclbin_design
from llama_pynq.emulation.device import EmulatedDevice, RegisterAccess, emulated_boards
from llama_pynq.errors import OverlayMismatch

__all__ = ["device", "setup"]  # fixtures

COPY, WEIGHTS, HANG, THREADS = range(4)


def run_python(code: str, *path: Path) -> str:
    search = os.pathsep.join(map(str, [*path, REPOSITORY]))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": search},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# ---- calls -----------------------------------------------------------------------------


def test_call_copies_request_to_results(setup):
    setup.buffers["request"][:] = range(64)
    setup.buffers["request"].sync_to_device()
    for sequence in (1, 2, 3):
        setup.start(COPY, sequence)
        setup.finish()
        assert setup.results() == [*range(1, WORDS + 1), sequence]


def test_forgotten_sync_to_device_is_seen(setup):
    setup.buffers["request"][:] = 5
    setup.start(COPY, 1)
    setup.finish()
    assert setup.results() == [1] * WORDS + [1]


def test_forgotten_sync_from_device_is_seen(setup):
    setup.start(COPY, 1)
    setup.finish()
    assert not setup.buffers["results"].any()


def test_pointers_reach_their_own_buffers(setup):
    for channel in range(CHANNELS):
        setup.buffers[f"weights_{channel}"][:] = 40 + channel
        setup.buffers[f"weights_{channel}"].sync_to_device()
    setup.start(WEIGHTS, 1)
    setup.finish()
    assert setup.results()[:CHANNELS] == [40 + channel for channel in range(CHANNELS)]


def test_pointer_may_point_into_a_buffer(setup):
    setup.buffers["request"][:] = range(64)
    setup.buffers["request"].sync_to_device()
    setup.point("request", setup.buffers["request"][8:].device_address)
    setup.start(COPY, 1)
    setup.finish()
    assert setup.results()[:WORDS] == list(range(9, 9 + WORDS))


def test_threads_reach_the_kernel(setup):
    setup.start(THREADS, 1)
    setup.finish()
    assert setup.results()[0] == setup.device.threads == 3


@pytest.mark.parametrize("protocol", ["hs", "chain"])
@pytest.mark.parametrize("file", ["llama.xclbin", "llama.bit"])
def test_protocol_can_be_chosen_for_either_flavour(protocol, file, tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA_PYNQ_CACHE", str(tmp_path))
    chosen = EmulatedDevice(protocol=protocol)
    setup = connect(pynq.Overlay(str(overlay_folder() / file), device=chosen), chosen)
    assert chosen.protocol == f"ap_ctrl_{protocol}"
    description = setup.overlay.ip_dict["llama"]
    assert description["hw_control_protocol"] == chosen.protocol
    assert ("AP_CONTINUE" in description["registers"]["CTRL"]["fields"]) == (protocol == "chain")
    llama = setup.overlay.llama
    setup.start(COPY, 1)
    while not llama.read(0) & 2:
        pass
    again = llama.read(0)
    assert again == (0x04 if protocol == "hs" else 0x06)
    setup.start(COPY, 2)  # ap_ctrl_chain waits for AP_CONTINUE
    if protocol == "chain":
        assert llama.read(0) == 0x03
        assert setup.results()[WORDS] == 1
        llama.write(0, 0x10)
    while not llama.read(0) & 2:
        pass
    assert setup.results()[WORDS] == 2


def test_flavours_have_their_own_protocols(setup):
    file = Path(setup.device.bitfile_name).name
    assert setup.device.protocol == {
        "llama.xclbin": "ap_ctrl_chain",
        "llama.bit": "ap_ctrl_hs",
    }[file]  # fmt: skip


def test_pynq_3_call_runs_through_registers(device):
    overlay = pynq.Overlay(str(overlay_folder() / "llama.xclbin"), device=device)
    setup = connect(overlay, device)
    if not hasattr(overlay.llama, "call"):
        pytest.skip("PYNQ 3.1 removed call()")
    buffers = [setup.buffers[name] for name in overlay.llama.signature.parameters
               if name in setup.buffers]  # fmt: skip
    overlay.llama.call(*buffers, COPY, 77)
    assert setup.results()[WORDS] == 77


# ---- registers -------------------------------------------------------------------------


def test_register_transactions_are_listed_by_name(device):
    overlay = pynq.Overlay(str(overlay_folder() / "llama.xclbin"), device=device)
    setup = connect(overlay, device)
    results = setup.buffers["results"].device_address
    with device.record_registers() as log:
        setup.point("results", results)
        setup.start(COPY, 9)
        setup.finish()
    overlay.llama.read(0)
    writes = [(access.name, access.value) for access in log if access.kind == "write"]
    assert writes == [
        ("results", results),
        ("command", COPY),
        ("sequence", 9),
        ("CTRL", 0x01),
        ("CTRL", 0x10),
    ]
    assert {(a.kind, a.name) for a in log if a.kind == "read"} == {("read", "CTRL")}
    assert log[-2].value & 0x02


def test_zynq_pointers_are_two_transactions(device):
    overlay = pynq.Overlay(str(overlay_folder() / "llama.bit"), device=device)
    with device.record_registers() as log:
        overlay.llama.register_map.results_1 = 0x1000
        overlay.llama.register_map.results_2 = 0x8
        overlay.llama.read(0x1C)
    assert log == [
        RegisterAccess("write", "results_1", 0x1000),
        RegisterAccess("write", "results_2", 0x8),
        RegisterAccess("read", "results_1", 0x1000),
    ]


def test_registers_keep_what_is_written_and_reserved_words_do_not(setup):
    llama = setup.overlay.llama
    llama.register_map.sequence = 0xFFFF_FFFF
    assert int(llama.register_map.sequence) == 0xFFFF_FFFF
    llama.write(0x18, 5)  # the reserved word after `request`
    assert llama.read(0x18) == 0


def test_registers_outside_the_ip_are_refused(setup):
    design = xclbin.read((overlay_folder() / "llama.xclbin").read_bytes(), "file").design
    for address in (0, design.base_address - 4, 1 << 40):
        with pytest.raises(RuntimeError, match="there is no register at address"):
            setup.device.read_registers(address, 4)
    base = setup.overlay.ip_dict["llama"]["phys_addr"]
    with pytest.raises(RuntimeError, match="registers are 32-bit words"):
        setup.device.read_registers(base + 2, 4)
    with pytest.raises(RuntimeError, match="registers are 32-bit words"):
        setup.device.write_registers(base, b"123")


def test_registers_before_a_download_are_refused(device):
    overlay = pynq.Overlay(str(overlay_folder() / "llama.bit"), device=device, download=False)
    with pytest.raises(RuntimeError, match="holds no overlay yet"):
        overlay.llama.read(0)


def test_download_resets_the_registers(setup):
    setup.overlay.llama.register_map.sequence = 5
    setup.overlay.download()
    assert int(setup.overlay.llama.register_map.sequence) == 0
    assert setup.overlay.llama.read(0) == 0x04


# ---- addresses -------------------------------------------------------------------------


@pytest.mark.parametrize("address", [0, 0x1234, 1 << 60])
def test_foreign_pointer_is_refused_by_name_at_start(setup, address):
    setup.point("logits", address)
    with pytest.raises(RuntimeError, match=f"argument 'logits' holds {address:#x}, which lies in"):
        setup.start(COPY, 1)
    setup.point("logits", setup.buffers["logits"].device_address)
    setup.start(COPY, 2)
    setup.finish()
    assert setup.results()[WORDS] == 2


def test_pointer_to_a_freed_buffer_is_refused(setup):
    setup.buffers["profile"].freebuffer()
    with pytest.raises(RuntimeError, match="argument 'profile'"):
        setup.start(COPY, 1)


def test_pointers_are_looked_up_again_after_each_change(setup):
    setup.start(COPY, 1)
    setup.finish()
    other = pynq.allocate((64,), "u4", target=setup.buffers["request"].memory)
    other[:] = range(100, 164)
    other.sync_to_device()
    setup.point("request", other.device_address)
    setup.start(COPY, 2)
    setup.finish()
    assert setup.results()[:WORDS] == list(range(101, 101 + WORDS))
    other.freebuffer()  # the register still points to the buffer
    with pytest.raises(RuntimeError, match="argument 'request'"):
        setup.start(COPY, 3)
    setup.point("request", setup.buffers["request"].device_address)
    setup.start(COPY, 4)
    setup.finish()
    assert setup.results() == [1] * WORDS + [4]


def test_upper_words_of_pointers_matter(device):
    overlay = pynq.Overlay(str(overlay_folder() / "llama.bit"), device=device)
    setup = connect(overlay, device)
    overlay.llama.register_map.request_2 = 0
    with pytest.raises(RuntimeError, match="argument 'request'"):
        setup.start(COPY, 1)


def test_buffer_in_the_wrong_bank_is_refused(device):
    overlay = pynq.Overlay(str(overlay_folder() / "llama.xclbin"), device=device)
    setup = connect(overlay, device)
    misplaced = pynq.allocate((64,), "u4", target=overlay.DDR1)
    setup.point("weights_1", misplaced.device_address)
    with pytest.raises(RuntimeError, match=r"'weights_1' is connected to memory bank DDR\[2\]"):
        setup.start(COPY, 1)


def test_default_memory_is_the_bank_of_the_io_ports(device):
    overlay = pynq.Overlay(str(overlay_folder() / "llama.xclbin"), device=device)
    assert device.default_memory == overlay.DDR0
    assert pynq.allocate((4,), "u4", target=device).memory.tag == "DDR[0]"
    assert device.get_memory_by_idx(2) == device.get_memory_by_name("DDR[2]") != overlay.DDR0
    with pytest.raises(RuntimeError, match=r"no memory bank 'HBM\[0\]', only DDR\[0\], DDR\[1\]"):
        device.get_memory_by_name("HBM[0]")


def test_buffers_keep_their_contents_over_a_download(setup):
    setup.buffers["model"][:] = 7
    setup.buffers["model"].sync_to_device()
    setup.overlay.download()
    setup.buffers["model"][:] = 0
    setup.buffers["model"].sync_from_device()
    assert (setup.buffers["model"] == 7).all()


# ---- hangs -----------------------------------------------------------------------------


def test_hung_kernel_is_abandoned_and_cannot_disturb_the_next(setup):
    setup.start(HANG, 111)
    assert not setup.overlay.llama.read(0) & 2
    setup.overlay.download()
    hung = emulator._abandoned[-1]
    for name, buffer in setup.buffers.items():
        setup.point(name, buffer.device_address)
    setup.start(COPY, 222)
    setup.finish()
    assert setup.results()[WORDS] == 222

    setup.buffers["request"][ABORT_WORD] = 1
    setup.buffers["request"].sync_to_device()
    while not hung.wait(1000):
        pass
    assert setup.results()[WORDS] == 222  # not 111: the old kernel writes to its own memory
    setup.overlay.download()
    assert hung not in emulator._abandoned  # it has finished, so it is deleted
    assert hung._handle is None


def test_polling_leaves_other_threads_running(setup):
    """The wait inside a read of CTRL releases the GIL: another thread can end the call."""
    setup.start(HANG, 5)

    def abort() -> None:
        setup.buffers["request"][ABORT_WORD] = 1
        setup.buffers["request"].sync_to_device()

    thread = threading.Timer(0.01, abort)
    thread.start()
    setup.finish()
    thread.join()
    assert setup.results()[WORDS] == 5


def test_buffers_freed_during_a_call_stay_with_the_kernel(setup):
    setup.start(HANG, 5)
    setup.buffers["request"][ABORT_WORD] = 1
    setup.buffers["request"].sync_to_device()
    for buffer in setup.buffers.values():
        buffer.freebuffer()
    setup.finish()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork() here")
def test_forked_child_is_told_to_download_again(setup):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns about fork() with threads
        child = os.fork()
    if child == 0:
        status = 1
        try:
            setup.overlay.llama.read(0)
        except RuntimeError as error:
            status = 0 if "did not survive fork()" in str(error) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# ---- files -----------------------------------------------------------------------------


@pytest.fixture
def copied(tmp_path):
    return Path(shutil.copytree(overlay_folder(), tmp_path / "overlay"))


def test_damaged_cache_is_repaired_at_load(device, tmp_path):
    path = str(overlay_folder() / "llama.xclbin")
    pynq.Overlay(path, device=device)
    (cached,) = (tmp_path / "cache" / "kernels").iterdir()
    good = cached.read_bytes()
    cached.unlink()  # do not write in place: the library is mapped
    cached.write_bytes(good[:100])
    setup = connect(pynq.Overlay(path, device=device), device)
    setup.start(COPY, 4)
    setup.finish()
    assert setup.results()[WORDS] == 4
    assert cached.read_bytes() == good


def test_damaged_overlay_is_refused(device, copied):
    path = copied / "llama.xclbin"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(OverlayMismatch, match=r"llama\.xclbin is damaged"):
        pynq.Overlay(str(path), device=device)


def test_overlay_for_hardware_is_refused(device):
    path = Path(pynq.__file__).parent / "pl_server" / "default.xclbin"
    with pytest.raises(OverlayMismatch, match=r"default\.xclbin was built for hardware"):
        pynq.Overlay(str(path), device=device)


def test_stale_hwh_is_refused(device, copied):
    metadata = copied / "llama.hwh"
    metadata.write_bytes(metadata.read_bytes().replace(b"sequence", b"sequenze"))
    with pytest.raises(OverlayMismatch, match=r"llama\.hwh does not belong to llama\.bit"):
        pynq.Overlay(str(copied / "llama.bit"), device=device)
    metadata.unlink()
    with pytest.raises(OverlayMismatch, match=r"llama\.hwh is missing"):
        pynq.Overlay(str(copied / "llama.bit"), device=device)


def test_missing_cpu_features_are_named(device, monkeypatch):
    monkeypatch.setattr(cpu, "host_features", lambda: frozenset({"fpu"}))
    needed = payloads()[0].features
    if not needed:
        pytest.skip("this compiler needs no features here")
    with pytest.raises(OverlayMismatch, match=f"this machine lacks: .*{needed[0]}"):
        pynq.Overlay(str(overlay_folder() / "llama.xclbin"), device=device)


def test_payload_that_is_no_kernel_is_refused(device, tmp_path):
    real = payloads()[0]
    fake = Payload(real.level, real.system, real.machine, (), b"not a library")
    design = xclbin_design(CHANNELS, 1, 100)
    path = tmp_path / "llama.xclbin"
    path.write_bytes(xclbin.write(container.pack(Container(design, (fake,))), design))
    with pytest.raises(OverlayMismatch, match="cannot be loaded"):
        pynq.Overlay(str(path), device=EmulatedDevice(threads=3, trust=True))


# ---- boards and the choice of the device -----------------------------------------------


def test_boards_bound_their_memory():
    for name, (n_bytes, _) in emulated_boards().items():
        assert EmulatedDevice(name).memory.size_bytes == n_bytes
    assert emulated_boards()["kv260"][0] == boards()["kv260"].memory.pool_bytes
    small = EmulatedDevice("pynq-z2")
    assert small.name == "emulated-pynq-z2"
    with pytest.raises(MemoryError, match="emulated-pynq-z2 has no room"):
        pynq.allocate((129 << 20,), "u1", target=small)
    assert pynq.allocate((4,), "u4", target=small).device_address < 1 << 32


def test_mem_dict_tells_the_boards_size(device):
    small = EmulatedDevice(memory_bytes=1 << 20)
    for file in ("llama.xclbin", "llama.bit"):
        overlay = pynq.Overlay(str(overlay_folder() / file), device=small)
        assert {bank["size"] for bank in overlay.mem_dict.values()} == {1 << 20}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"board": "pdp11"},
            "no emulated board 'pdp11': choose one of host, pynq-z1, ",
        ),
        ({"protocol": "none"}, "protocol is 'hs', 'chain' or None, not 'none'"),
        ({"memory_bytes": 0}, "memory_bytes is at least 4096"),
        ({"threads": 0}, "threads is 1 to 1024, not 0"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        EmulatedDevice(**arguments)


DEVICES = """
import warnings
warnings.simplefilter("ignore")
from pynq.pl_server.device import Device
{real}
from llama_pynq.emulation.device import EmulatedDevice
print(*[d.tag for d in Device.devices], Device.active_device.tag)
"""
REAL = """
class Real(Device):
    _probe_priority_ = 200
    _probe_ = classmethod(lambda cls: [cls("real")])
"""


def test_device_is_the_default_where_there_is_no_hardware():
    assert run_python(DEVICES.format(real="")) == "emulated_host emulated_host"


def test_hardware_outranks_the_emulated_device():
    assert run_python(DEVICES.format(real=REAL)) == "real emulated_host real"


@pytest.mark.parametrize(
    ("value", "found"), [("1", "emulated_host"), ("0", "real"), ("", "real"), (None, "real")]
)
def test_overlays_take_the_emulated_device_beside_a_board_where_asked(monkeypatch, value, found):
    if value is not None:
        monkeypatch.setenv("LLAMA_PYNQ_EMULATE", value)
    code = "from llama_pynq.overlay_store.devices import find_device; print(find_device().tag)"
    assert run_python(f"{DEVICES.format(real=REAL)}\n{code}").splitlines()[-1] == found


def test_overlays_take_the_emulated_device_on_a_board_where_asked(monkeypatch):
    monkeypatch.setenv("LLAMA_PYNQ_EMULATE", "1")
    monkeypatch.setattr(device_module.Device, "_devices", [], raising=False)
    from llama_pynq.overlay_store.devices import find_device

    assert isinstance(find_device(), EmulatedDevice)


def test_device_does_not_offer_itself_on_a_board(monkeypatch, tmp_path):
    assert len(EmulatedDevice._probe_()) == 1
    monkeypatch.setattr(device_module, "BOARD_MARKS", (tmp_path,))
    assert EmulatedDevice._probe_() == []


def test_overlay_is_found_by_bare_name(tmp_path):
    """setup.py declares the overlay as an entry point in the group pynq.overlays."""
    package = tmp_path / "some_package" / "overlay"
    package.mkdir(parents=True)
    (tmp_path / "some_package" / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "fake_kernel").mkdir()
    for file in overlay_folder().iterdir():
        shutil.copy(file, package / "fake_kernel" / f"fake_kernel{file.suffix}")
    distribution = tmp_path / "some_package-1.0.dist-info"
    distribution.mkdir()
    (distribution / "METADATA").write_text("Metadata-Version: 2.1\nName: some_package\n")
    (distribution / "entry_points.txt").write_text(
        "[pynq.overlays]\nsome_package = some_package.overlay\n"
    )
    code = """
import warnings
warnings.simplefilter("ignore")
import pynq
from llama_pynq.emulation.device import EmulatedDevice
print(pynq.Overlay("fake_kernel.xclbin").bitfile_name)
print(pynq.Overlay("fake_kernel.bit").bitfile_name)
"""
    found = run_python(code, tmp_path).splitlines()
    assert found == [
        str(package / "fake_kernel" / f"fake_kernel.{kind}") for kind in ("xclbin", "bit")
    ]


def test_interpreter_exits_while_a_kernel_hangs(tmp_path):
    code = f"""
import sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, {str(TESTS)!r})
import pynq
from support import fake_kernel
from llama_pynq.emulation.device import EmulatedDevice
device = EmulatedDevice()
overlay = pynq.Overlay(str(fake_kernel.overlay_folder() / "llama.bit"), device=device)
setup = fake_kernel.connect(overlay, device)
setup.start({HANG}, 1)
print("leaving")
"""
    assert run_python(code) == "leaving"


def test_sizes_may_be_numpy_integers_but_no_bools():
    device = EmulatedDevice(memory_bytes=np.int64(1 << 20), threads=np.int32(1))
    assert (device.memory.size_bytes, device.threads) == (1 << 20, 1)
    for name in ("memory_bytes", "threads"):
        with pytest.raises(ValueError, match=f"{name} is True: it must be a whole number"):
            EmulatedDevice(**{name: True})
