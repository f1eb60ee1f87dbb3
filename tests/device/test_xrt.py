"""Alveo cards through PYNQ 3.0.1: its own XrtDevice on a fake of XRT's C library.

Not yet run on a card.
"""

import asyncio
from importlib.metadata import version

import pytest
from support.fake_card import (
    Expected,
    FakeCard,
    banked_overlay,
    self_tested,
    split_frees,
    story,
    walk,
)

from llama_pynq import EmulatedDevice, LlamaOverlay
from llama_pynq.emulation.build import emulated_overlay
from llama_pynq.errors import DeviceMemoryError, KernelTimeout
from llama_pynq.overlay_store.devices import lock_names

if not version("pynq").startswith("3.0."):
    pytest.skip("PYNQ 3.1 and newer do not support Alveo cards", allow_module_level=True)

from pynq._3rdparty import xrt
from pynq.pl_server import xrt_device
from support.fake_xrt import FakeXrtLibrary

DDR = {
    "request": "DDR[0]", "results": "DDR[0]", "logits": "DDR[0]", "activations": "DDR[0]",
    "model": "DDR[0]", "profile": "DDR[0]", "kv_cache_0": "DDR[1]", "kv_cache_1": "DDR[2]",
    "weights_0": "DDR[1]", "weights_1": "DDR[2]",
}  # fmt: skip
HBM_TAGS = ("PLRAM[0]", "HBM[0]", "HBM[3]", "HBM[17]", "DDR[0]", "HBM[30]")
HBM = {**dict.fromkeys(DDR, "HBM[0]"), "kv_cache_0": "HBM[17]", "kv_cache_1": "HBM[30]",
       "weights_0": "HBM[3]", "weights_1": "HBM[17]"}  # fmt: skip


@pytest.fixture
def library(monkeypatch):
    card = FakeCard(programmed=False)  # XRT does not reload the same xclbin
    library = FakeXrtLibrary(card)
    monkeypatch.setattr(xrt, "libc", library)
    monkeypatch.setattr(xrt, "XRT_SUPPORTED", True)
    monkeypatch.setattr(xrt_device, "_xrt_version", (2, 13, 0))
    loop = asyncio.new_event_loop()
    monkeypatch.setattr(asyncio, "get_event_loop", lambda: loop)  # PYNQ's call is deprecated
    yield library
    loop.close()


@pytest.fixture
def card(library):
    return library.card


def device():
    (found,) = xrt_device.XrtDevice._probe_()
    return found


def expected_of(overlay, banks):
    return Expected(overlay.llama.limits, banks, chained=True, whole=False)


@pytest.mark.parametrize("banks", [DDR, HBM], ids=["ddr", "hbm"])
def test_open_load_token_reset_close_are_exact(card, library, tmp_path, banks):
    path = emulated_overlay()
    if banks is HBM:
        path = banked_overlay(tmp_path / "llama.xclbin", HBM_TAGS, banks)
    with LlamaOverlay(path, device=device()) as overlay:
        expected = expected_of(overlay, banks)
        download = [("download",), ("open context", 0, True)]
        assert card.log == [*download, *expected.open(overlay.llama.handshake.sequence)]
        card.log.clear()
        walk(overlay, card, expected)
        # Without a context, another process could reprogram the card.
        assert card.log == [("close context", 0), *download, ("read", "CTRL")]
        assert library.contexts == [(0, True)]
        card.log.clear()
    assert split_frees(card.log[:-1]) == list(expected.drop())
    assert card.log[-1] == ("close context", 0)  # otherwise no other process could load its overlay
    assert library.bos == {} and library.contexts == []


def test_story_is_that_of_the_emulated_device(card):
    with LlamaOverlay(emulated_overlay(), device=EmulatedDevice()) as overlay:
        overlay.load_model()
        tokens = story(overlay)
    with LlamaOverlay(emulated_overlay(), device=device()) as overlay:
        overlay.load_model()
        assert story(overlay) == tokens
        assert overlay.logits(tokens[:5]).shape[0] == 5
        assert overlay.describe().startswith(
            "xilinx_u50_gen3x16_xdma_base_5 (board), kernel host, "
        )
        assert overlay.is_board


def test_self_test_passes_on_every_bank(card):
    with LlamaOverlay(emulated_overlay(), device=device()) as overlay:
        banks = {bank for bank in overlay.llama.banks().values()}
        assert f"4 MiB in each of {len(banks)} banks" in self_tested(overlay).text()


def test_no_call_goes_through_ert(card, monkeypatch):
    # ERT may own a compute unit that is started through it: do not mix both ways to start.
    monkeypatch.setattr(xrt_device.XrtDevice, "get_exec_bo", None)
    with LlamaOverlay(emulated_overlay(), device=device()) as overlay:
        overlay.load_model()
        assert story(overlay)


def test_full_bank_is_named_and_the_next_model_loads(card, library, monkeypatch):
    with LlamaOverlay(emulated_overlay(), device=device()) as overlay:
        overlay.load_model()
        original = card.allocate

        def full(n_bytes, bank=0):
            if n_bytes > 1 << 20 and card.banks[bank] == "DDR[2]":
                raise MemoryError
            return original(n_bytes, bank)

        with monkeypatch.context() as patch:
            patch.setattr(card, "allocate", full)
            with pytest.raises(DeviceMemoryError, match=r"of bank DDR\[2\] for 'kv_cache_1'") as e:
                overlay.load_model(slots=30)
            assert "cma=" not in str(e.value)
        overlay.load_model()
        assert story(overlay)


def test_reset_acknowledges_an_end_of_call_that_went_unseen(card, monkeypatch):
    with LlamaOverlay(emulated_overlay(), device=device()) as overlay:
        overlay.load_model()
        tokens, driver = story(overlay), overlay.llama

        def fail(*arguments):
            raise KernelTimeout("cut short")

        with monkeypatch.context() as patch:
            patch.setattr(driver, "_wait", fail)
            with pytest.raises(KernelTimeout):
                overlay.generate("a", max_new_tokens=1)
        while not driver.handshake.read(0) & 2:
            pass
        overlay.reset()
        assert story(overlay) == tokens


def test_reset_of_a_card_that_xrt_does_not_program_anew_says_what_to_do(card, monkeypatch):
    overlay = LlamaOverlay(emulated_overlay(), device=device())
    overlay.load_model()
    monkeypatch.setattr(card, "read", lambda address: 1)  # AP_START: the call never ends
    overlay.llama.timeout_s = 0.01
    with pytest.raises(KernelTimeout, match="did not finish"):
        overlay.generate("a", max_new_tokens=1)
    with pytest.raises(KernelTimeout, match="still runs though its overlay was downloaded again"):
        overlay.reset()
    with pytest.raises(KernelTimeout, match="an earlier call never finished"):
        overlay.generate("a", max_new_tokens=1)
    card.log.clear()
    overlay.close()
    assert card.log == [("close context", 0)]  # the kernel may still write its buffers


def test_lock_tells_two_cards_apart(library):
    first, second = xrt_device.XrtDevice(0), xrt_device.XrtDevice(1)
    assert list(lock_names(first).values()) == ["xilinx_u50_gen3x16_xdma_base_5-xrt0"]
    assert lock_names(first) != lock_names(second)


def test_pyxrt_finds_nothing_where_pynq_drives_cards(library, monkeypatch):
    import sys

    from support import fake_pyxrt

    from llama_pynq.device.pyxrt import PyxrtDevice

    monkeypatch.setitem(sys.modules, "pyxrt", fake_pyxrt.make(library.card))
    assert PyxrtDevice._probe_() == []
    with pytest.raises(RuntimeError, match="PYNQ drives cards itself"):
        PyxrtDevice()
