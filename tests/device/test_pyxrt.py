"""Alveo cards through pyxrt: exact transactions on a fake pyxrt.

Not yet run on a card.
"""

import gc
import sys

import numpy as np
import pynq
import pytest
from pynq.pl_server.device import Device
from support import fake_pyxrt
from support.fake_card import Expected, FakeCard, banked_overlay, self_tested, story

from llama_pynq import EmulatedDevice, LlamaOverlay
from llama_pynq.device import pyxrt as subject
from llama_pynq.device.pyxrt import PyxrtDevice
from llama_pynq.emulation.build import emulated_overlay
from llama_pynq.errors import DeviceBusy, DeviceMemoryError, KernelTimeout
from llama_pynq.kernel import abi
from llama_pynq.kernel.registers import arguments
from llama_pynq.measure.sensors import rails
from llama_pynq.overlay_store.devices import find_device, lock_names

NAME = "xilinx_u50_gen3x16_xdma_base_5"
TAGS = ("PLRAM[0]", "HBM[0]", "HBM[3]", "HBM[17]", "DDR[0]", "HBM[30]")
BANKS = {
    "request": "HBM[0]", "results": "HBM[0]", "logits": "HBM[0]", "activations": "HBM[0]",
    "model": "HBM[0]", "profile": "HBM[0]", "kv_cache_0": "HBM[17]", "kv_cache_1": "HBM[30]",
    "weights_0": "HBM[3]", "weights_1": "HBM[17]",
}  # fmt: skip


@pytest.fixture(params=[(2, 12), (2, 16), (2, 18), (2, 23)], ids=lambda v: f"xrt-{v[0]}.{v[1]}")
def pyxrt(request, monkeypatch):
    card = FakeCard(programmed=False)
    module = fake_pyxrt.make(card, request.param)
    module.card = card
    monkeypatch.setitem(sys.modules, "pyxrt", module)
    return module


@pytest.fixture
def card(pyxrt):
    return pyxrt.card


@pytest.fixture
def hbm(tmp_path):
    return banked_overlay(tmp_path / "llama.xclbin", TAGS, BANKS)


def settled(log):
    """The log without the register accesses that XRT makes at a start."""
    return [e for e in log if e[0] in ("download", "allocate", "free", "to card", "from card")]


def without_registers(events):
    return [e for e in events if e[0] not in ("point", "write", "read")]


def test_open_load_token_reset_close_are_exact(pyxrt, card, hbm):
    with LlamaOverlay(hbm, device=PyxrtDevice()) as overlay:
        driver = overlay.llama
        expected = Expected(driver.limits, BANKS, chained=True, whole=False)
        names = [(a.name, 4096) for a in arguments(2, 2) if a.is_pointer]
        described = [("command", abi.COMMAND_DESCRIBE), ("sequence", driver.handshake.sequence)]
        assert pyxrt.calls == [
            ("open", "llama:{llama}", "exclusive"),
            *(("set_arg", *argument) for argument in [*names, *described]),
            ("wait",),
        ]
        # The card knows no buffer names before the first start: they are logged as "unnamed".
        assert anonymous(settled(card.log)) == [
            ("download",),
            *anonymous(without_registers(expected.open(driver.handshake.sequence))),
        ]
        card.log.clear()
        model = overlay.load_model()
        assert anonymous(settled(card.log)) == anonymous(
            without_registers(expected.load(model, driver.slots))
        )
        overlay.generate("", max_new_tokens=1, temperature=0)
        card.log.clear()
        pyxrt.calls.clear()
        overlay.generate("", max_new_tokens=1, temperature=0)
        # Unchanged arguments are not set again.
        assert pyxrt.calls == [("set_arg", "sequence", driver.handshake.sequence), ("wait",)]
        events = [e for e in card.log if e[0] != "point"]
        assert events[0] == ("to card", "request", 0, 4 * driver.limits.request_words)
        assert events[1:-1] == [
            ("write", "command", 1), ("write", "sequence", driver.handshake.sequence),
            ("write", "CTRL", 1), ("read", "CTRL"), ("write", "CTRL", 0x10),
        ]  # fmt: skip
        assert events[-1] == list(expected.token(0))[-1]
        points = [e for e in card.log if e[0] == "point"]
        assert [(p[1], p[2]) for p in points] == [
            (a.name, BANKS[a.buffer]) for a in arguments(2, 2) if a.is_pointer
        ]
        card.log.clear()
        overlay.reset()
        downloads = [i for i, e in enumerate(card.log) if e == ("download",)]
        assert downloads == [0]
        assert len([e for e in card.log if e[0] == "free"]) >= len(expected.buffers)
        assert story(overlay)
        card.log.clear()
    assert sorted(e[1] for e in card.log) == sorted(expected.buffers)
    assert {e[0] for e in card.log} == {"free"}


def anonymous(events):
    return [e[:1] + e[2:] if e[0] in ("to card", "from card") else e[:1] if e[0] == "free" else e
            for e in events]  # fmt: skip


def test_story_is_that_of_the_emulated_device(pyxrt, hbm):
    with LlamaOverlay(emulated_overlay(), device=EmulatedDevice()) as overlay:
        overlay.load_model()
        tokens = story(overlay)
    with LlamaOverlay(hbm, device=PyxrtDevice()) as overlay:
        overlay.load_model()
        assert story(overlay) == tokens
        overlay.load_model(weight_bits=4)
        overlay.load_model()
        assert story(overlay) == tokens
        assert overlay.describe().startswith(
            f"{NAME} (card at 0000:03:00.1, through pyxrt), kernel "
        )


def test_self_test_passes_on_every_bank(pyxrt, hbm):
    with LlamaOverlay(hbm, device=PyxrtDevice()) as overlay:
        banks = {bank for bank in overlay.llama.banks().values()}
        assert f"4 MiB in each of {len(banks)} banks" in self_tested(overlay).text()


def test_sequence_over_two_to_the_31_is_a_c_int(pyxrt, hbm):
    with LlamaOverlay(hbm, device=PyxrtDevice()) as overlay:
        overlay.load_model()
        overlay.llama.handshake.sequence = 0xFFFF_FFF0
        assert story(overlay)
        overlay.llama.handshake.sequence = 0x7FFF_FFFF
        assert story(overlay)


def test_old_model_leaves_the_card_before_a_new_one_comes(pyxrt, card, hbm, monkeypatch):
    live = []
    allocate, free = card.allocate, card.free

    def watch(n_bytes, bank=0):
        live.append(allocation := allocate(n_bytes, bank))
        return allocation

    monkeypatch.setattr(card, "allocate", watch)
    monkeypatch.setattr(card, "free", lambda a: (live.remove(a), free(a)))
    with LlamaOverlay(hbm, device=PyxrtDevice()) as overlay:
        overlay.load_model()
        story(overlay)  # now an XRT run refers to every buffer
        total = sum(a.n_bytes for a in live)
        most = 0

        def measure(n_bytes, bank=0):
            nonlocal most
            allocation = watch(n_bytes, bank)
            most = max(most, sum(a.n_bytes for a in live))
            return allocation

        monkeypatch.setattr(card, "allocate", measure)
        overlay.load_model()
        assert most <= total + 4096


def test_full_bank_is_named(pyxrt, card, hbm, monkeypatch):
    with LlamaOverlay(hbm, device=PyxrtDevice()) as overlay:
        overlay.load_model()
        with monkeypatch.context() as patch:
            patch.setattr(pyxrt.bo, "__init__", refuse)
            with pytest.raises(DeviceMemoryError, match=r"no room for .* MiB in bank HBM\[\d+\]"):
                overlay.device.get_memory_by_name("HBM[17]").allocate((1 << 20,), "u1")
        assert story(overlay)


def refuse(*arguments):
    raise RuntimeError("failed to allocate bo: Cannot allocate memory")


def test_card_in_use_by_another_process_says_so(pyxrt, hbm, monkeypatch):
    monkeypatch.setattr(pyxrt.kernel, "__init__", refuse)
    with pytest.raises(DeviceBusy, match="XRT does not load .* Does another program use the card"):
        LlamaOverlay(hbm, device=PyxrtDevice())
    monkeypatch.undo()


def test_hung_kernel_is_left_alone_and_a_reset_says_so(pyxrt, card, hbm, monkeypatch):
    monkeypatch.setattr(subject, "_abandoned", kept := [])
    overlay = LlamaOverlay(hbm, device=PyxrtDevice())
    overlay.load_model()
    overlay.llama.timeout_s = 0.01
    with monkeypatch.context() as patch:
        patch.setattr(card, "read", lambda address: 1)
        with pytest.raises(KernelTimeout, match="did not finish"):
            overlay.generate("a", max_new_tokens=1)
        card.log.clear()
        overlay.close()
        overlay.device.close()
        gc.collect()
    assert len(kept) == 1  # the run, which keeps its buffers alive
    assert card.log == []


def test_reset_after_a_hang_says_what_to_do_and_frees_nothing(pyxrt, card, hbm, monkeypatch):
    monkeypatch.setattr(subject, "_abandoned", [])
    overlay = LlamaOverlay(hbm, device=PyxrtDevice())
    overlay.load_model()
    overlay.llama.timeout_s = 0.01
    with monkeypatch.context() as patch:
        patch.setattr(card, "read", lambda address: 1)
        with pytest.raises(KernelTimeout, match="did not finish"):
            overlay.generate("a", max_new_tokens=1)
        card.log.clear()
        for _ in range(2):
            with pytest.raises(KernelTimeout, match="a call never ended.*xbutil reset --device 00"):
                overlay.reset()
        assert not [event for event in card.log if "free" in str(event)]
        overlay.close()


def test_run_that_xrt_ends_badly_is_an_error(pyxrt, hbm, monkeypatch):
    with LlamaOverlay(hbm, device=PyxrtDevice()) as overlay:
        overlay.load_model()
        tokens = story(overlay)
        with monkeypatch.context() as patch:
            bad, state = pyxrt.ert_cmd_state.ERT_CMD_STATE_TIMEOUT, pyxrt.run.state
            done = pyxrt.ert_cmd_state.ERT_CMD_STATE_COMPLETED
            patch.setattr(pyxrt.run, "state", lambda run: bad if (s := state(run)) == done else s)
            with pytest.raises(RuntimeError, match="ended a call of llama:llama .* state TIMEOUT"):
                overlay.generate("a", max_new_tokens=1)
        overlay.reset()
        assert story(overlay) == tokens


def test_start_without_buffers_is_refused(pyxrt, hbm):
    overlay = pynq.Overlay(str(hbm), device=PyxrtDevice())
    with pytest.raises(RuntimeError, match="argument 0 of llama:llama holds 0x0, where no live"):
        overlay.llama.write(0, 1)
    assert overlay.llama.read(0) == 4
    with pytest.raises(RuntimeError, match="uses 6 memory banks: say which"):
        pynq.allocate((4,), "u1", target=overlay.device)
    with pytest.raises(RuntimeError, match=r"no memory bank 'HBM\[9\]', only PLRAM\[0\], HBM"):
        overlay.device.get_memory_by_name("HBM[9]")
    buffer = pynq.allocate((4, 3), np.float32, target=overlay.device.get_memory_by_idx(2))
    buffer[:] = np.arange(12).reshape(4, 3)
    buffer.sync_to_device()
    buffer[:] = 0
    buffer[2:].sync_from_device()
    assert buffer.tolist() == [[0, 0, 0], [0, 0, 0], [6, 7, 8], [9, 10, 11]]
    buffer.freebuffer()
    with pytest.raises(RuntimeError, match="this buffer was freed"):
        buffer.sync_to_device()
    overlay.device.close()
    with pytest.raises(RuntimeError, match="no register at address 0x1800000"):
        overlay.llama.read(0)


def test_probe_lists_cards_and_no_npu(monkeypatch):
    for version in ((2, 16), (2, 23)):
        module = fake_pyxrt.make(FakeCard(), version, names=("RyzenAI-npu1", NAME))
        monkeypatch.setitem(sys.modules, "pyxrt", module)
        assert [repr(d) for d in PyxrtDevice._probe_()] == [
            f"PyxrtDevice(0, '{NAME}' at 0000:03:00.1)",
            f"PyxrtDevice(2, '{NAME}' at 0000:03:00.1)",
        ]


def test_this_computers_sensors_are_not_the_cards(pyxrt):
    found = rails(PyxrtDevice())
    assert not found and "pyxrt: it gives no sensors" in found.why[0]


def test_probe_finds_nothing_without_pyxrt(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyxrt", None)
    assert PyxrtDevice._probe_() == []
    with pytest.raises(RuntimeError, match=r"source XRT's setup\.sh"):
        PyxrtDevice()


def test_overlays_take_a_card_before_the_emulated_device(pyxrt, monkeypatch):
    found = [*PyxrtDevice._probe_(), EmulatedDevice()]
    monkeypatch.setattr(Device, "_devices", found, raising=False)
    assert isinstance(find_device(), PyxrtDevice)
    # The same name as in PYNQ 3.0.1, so that both drivers use one lock.
    assert lock_names(find_device()) == {NAME: f"{NAME}-xrt0"}
