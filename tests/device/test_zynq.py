"""A Zynq board: PYNQ's own EmbeddedDevice on fakes of XRT and of Linux's files.

Not yet run on a board.
"""

import numpy as np
import pynq
import pytest
from support.fake_card import (
    HP_WIDTHS,
    ZYNQ_7000_PARAMETERS,
    ZYNQ_PARAMETERS,
    Expected,
    ProcessorRegisters,
    Zynq7000Registers,
    self_tested,
    split_frees,
    story,
    walk,
    zynq_overlay,
)
from support.fake_zynq import PYNQ_3_0, FakeZynqBoard

from llama_pynq import EmulatedDevice, LlamaOverlay
from llama_pynq.emulation.build import emulated_overlay
from llama_pynq.errors import DeviceMemoryError
from llama_pynq.overlay_store.devices import lock_names


@pytest.fixture
def board(monkeypatch, tmp_path):
    return FakeZynqBoard(monkeypatch, tmp_path)


@pytest.fixture
def bitfile(tmp_path):
    return zynq_overlay(tmp_path, ZYNQ_PARAMETERS)


def expected_of(overlay):
    # PYNQ 4 syncs the whole buffer for any slice, and allocates at least 8 KiB.
    sizes = {} if PYNQ_3_0 else {"least": 8192}
    return Expected(overlay.llama.limits, {}, chained=False, whole=not PYNQ_3_0, **sizes)


def test_open_load_token_reset_close_are_exact(board, bitfile):
    card = board.card
    with LlamaOverlay(bitfile, device=board.device) as overlay:
        expected = expected_of(overlay)
        download = [("download",), ("memories",)]
        assert card.log == [*download, *expected.open(overlay.llama.handshake.sequence)]
        card.log.clear()
        walk(overlay, card, expected)
        assert card.log == [*download, ("read", "CTRL")]
        card.log.clear()
    assert split_frees(card.log) == list(expected.drop())


def test_story_is_that_of_the_emulated_device(board, bitfile, monkeypatch):
    with LlamaOverlay(emulated_overlay(), device=EmulatedDevice()) as overlay:
        overlay.load_model()
        tokens = story(overlay)
    monkeypatch.setenv("BOARD", "KV260")
    with LlamaOverlay(bitfile, device=board.device) as overlay:
        overlay.load_model()
        assert story(overlay) == tokens
        assert overlay.logits(tokens).shape == (len(tokens), overlay.llama.config.vocab_size)
        # XRT calls every Zynq "edge"; the image names the board.
        assert overlay.describe().startswith("kv260 (board), kernel host")
        assert lock_names(overlay.device) == {"edge": "edge-embedded_xrt0"}


def test_self_test_passes_and_sets_speed_beside_the_model(board, bitfile, monkeypatch):
    monkeypatch.setenv("BOARD", "KV260")
    with LlamaOverlay(bitfile, device=board.device) as overlay:
        text = self_tested(overlay).text()
    assert "host to memory and back               processor and fabric share one memory" in text
    assert "a KV260 should decode" in text and "measured over modelled: " in text


def test_pointer_registers_are_written_by_halves(board, bitfile):
    with LlamaOverlay(bitfile, device=board.device) as overlay:
        driver, registers = overlay.llama, overlay.ip_dict["llama"]["registers"]
        for register, buffer in [("weights_1", "weights_1"), ("kv_read_0", "kv_cache_0")]:
            address = driver.buffers[buffer].device_address
            assert address >> 32  # the upper DDR of a Zynq UltraScale+
            low = driver.read(registers[f"{register}_1"]["address_offset"])
            high = driver.read(registers[f"{register}_2"]["address_offset"])
            assert high << 32 | low == address


def test_port_widths_are_those_of_the_metadata(board, bitfile):
    with LlamaOverlay(bitfile, device=board.device):
        assert {at: board.processor.words.get(at) for at in HP_WIDTHS} == HP_WIDTHS


@pytest.mark.parametrize(
    ("multiplier", "divisor", "mhz"),
    [
        (90, 5, 300),  # the design's own PLL: 1500 / 5
        (60, 5, 250),  # a slower PLL: the next lower frequency
        (120, 5, 2000 / 7),  # a faster PLL: never above the design's clock
    ],
)
def test_clock_is_never_faster_than_the_designs(
    monkeypatch, tmp_path, bitfile, multiplier, divisor, mhz
):
    board = FakeZynqBoard(monkeypatch, tmp_path, ProcessorRegisters(multiplier))
    with LlamaOverlay(bitfile, device=board.device) as overlay:
        found = board.processor.pl0_mhz
        assert found == pytest.approx(mhz, rel=1e-3)
        slow = f", PL clock 0 {round(found, 6):g} of 300 MHz"
        said = "kernel host" + (slow if found < 298 else "")
        assert f"{said}, overlay llama.bit" in overlay.describe()
        assert board.processor.words[board.processor.PL0_REF_CTRL] >> 24 & 1  # the clock is enabled


@pytest.mark.skipif(not PYNQ_3_0, reason="PYNQ 4 has no images for Zynq-7000")
@pytest.mark.parametrize(("multiplier", "mhz"), [(20, 1000 / 7), (30, 1500 / 11)])
def test_pynq_z2_is_exact_and_not_overclocked(monkeypatch, tmp_path, multiplier, mhz):
    board = FakeZynqBoard(monkeypatch, tmp_path, Zynq7000Registers(multiplier))
    bitfile = zynq_overlay(tmp_path, ZYNQ_7000_PARAMETERS, zynq_7000=True)
    monkeypatch.setenv("BOARD", "Pynq-Z2")
    with LlamaOverlay(bitfile, device=board.device) as overlay:
        expected = expected_of(overlay)
        assert board.card.log[2:] == list(expected.open(overlay.llama.handshake.sequence))
        assert overlay.describe().startswith("pynq-z2 (board), kernel host, ")
        assert board.processor.pl0_mhz == pytest.approx(mhz)
        board.card.log.clear()
        walk(overlay, board.card, expected)
        assert story(overlay)


def test_full_contiguous_memory_says_which_setting(board, bitfile, monkeypatch):
    with LlamaOverlay(bitfile, device=board.device) as overlay:
        overlay.load_model()
        tokens = story(overlay)

        def full(n_bytes, bank=0):
            raise MemoryError

        with monkeypatch.context() as patch:
            patch.setattr(board.card, "allocate", full)
            with pytest.raises(DeviceMemoryError, match=r"of contiguous memory .* \(cma= on Zynq"):
                overlay.llama.buffers.allocate("weights_0", 1 << 20, np.uint8)
        overlay.load_model()
        assert story(overlay) == tokens


def test_cacheable_buffers_serve_too(board, bitfile, monkeypatch):
    # Every transfer is synced, so the driver works with either kind of buffer.
    allocate = pynq.allocate

    def cacheable(shape, dtype, target=None):
        return allocate(shape, dtype, target=target, cacheable=1)

    with LlamaOverlay(bitfile, device=board.device) as overlay:
        overlay.load_model()
        tokens = story(overlay)
    monkeypatch.setattr(pynq, "allocate", cacheable)
    with LlamaOverlay(bitfile, device=board.device) as overlay:
        overlay.load_model()
        assert story(overlay) == tokens
