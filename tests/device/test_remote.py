"""A board on the network: PYNQ's own RemoteDevice with a fake PYNQ.remote server.

Not yet run on a board.
"""

import warnings
from importlib.metadata import version

import numpy as np
import pytest
from support.fake_card import (
    HP_WIDTHS,
    ZYNQ_PARAMETERS,
    Expected,
    self_tested,
    split_frees,
    story,
    walk,
    zynq_overlay,
)

from llama_pynq import EmulatedDevice, LlamaOverlay
from llama_pynq.cli.main import main
from llama_pynq.emulation.build import emulated_overlay
from llama_pynq.errors import (
    ConnectionLost,
    DeviceBusy,
    DeviceMemoryError,
    DeviceNotFound,
    KernelError,
)
from llama_pynq.kernel.abi import RequestFlag, RowFlag, make_rows
from llama_pynq.measure.sensors import rails
from llama_pynq.overlay_store.devices import find_device, lock_names
from llama_pynq.utils.lock import DeviceLock

if version("pynq").startswith("3.0."):
    pytest.skip("PYNQ.remote needs PYNQ 3.1 or newer", allow_module_level=True)

from pynq.pl_server import remote_device
from pynq.pl_server.device import Device
from pynq.pl_server.remote_device import RemoteDevice
from support.fake_remote_board import FIRMWARE, FakeRemoteBoard


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    # PYNQ caches the metadata of the last overlay in its own package folder.
    monkeypatch.setattr(RemoteDevice, "gen_cache", lambda *arguments: None)
    monkeypatch.setattr(remote_device, "clear_global_state", lambda: None)


@pytest.fixture
def bitfile(tmp_path):
    return zynq_overlay(tmp_path, ZYNQ_PARAMETERS)


@pytest.fixture
def board(bitfile):
    board = FakeRemoteBoard(bitfile.with_suffix(".hwh").read_bytes())
    yield board
    board.stop()


@pytest.fixture
def device(board):
    return RemoteDevice(ip_addr="127.0.0.1", port=board.port)


def sampled():
    rows = make_rows(1)
    rows["token"], rows["flags"] = 1, RowFlag.SAMPLE
    return rows


def test_open_load_token_reset_close_are_exact(board, device, bitfile):
    card = board.card
    with LlamaOverlay(bitfile, device=device) as overlay:
        expected = Expected(overlay.llama.limits, {}, chained=False, whole=True)
        assert card.log == [("download",), *expected.open(overlay.llama.handshake.sequence)]
        card.log.clear()
        walk(overlay, card, expected)
        assert card.log == [("download",), ("read", "CTRL")]
        card.log.clear()
    assert split_frees(card.log) == list(expected.drop())
    assert board.buffers == {}


def test_story_is_that_of_the_emulated_device(device, bitfile):
    with LlamaOverlay(emulated_overlay(), device=EmulatedDevice()) as overlay:
        overlay.load_model()
        tokens = story(overlay)
        logits = overlay.logits(tokens)
        overlay.generate("Once", max_new_tokens=4, seed=1)
        cache = overlay.llama.read_cache(0, 3)
    with LlamaOverlay(bitfile, device=device) as overlay:
        overlay.load_model()
        assert story(overlay) == tokens
        np.testing.assert_array_equal(overlay.logits(tokens), logits)
        overlay.generate("Once", max_new_tokens=4, seed=1)
        np.testing.assert_array_equal(overlay.llama.read_cache(0, 3), cache)
        assert overlay.describe().startswith("KV260 (board at 127.0.0.1, through PYNQ.remote), ")
        assert overlay.is_board


def test_self_test_passes(device, bitfile):
    with LlamaOverlay(bitfile, device=device) as overlay:
        assert "  4 MiB in the board's memory" in self_tested(overlay).text()


def test_layers_and_profile_are_read_whole(device, bitfile):
    with LlamaOverlay(bitfile, device=device) as overlay:
        overlay.load_model()
        driver, rows = overlay.llama, sampled()
        rows["flags"] |= RowFlag.FULL_LOGITS
        driver.run(rows)
        logits = driver.read_logits(0)
        driver.run(rows, layers=(0, 1), flags=RequestFlag.ACTIVATIONS_OUT)
        x = driver.read_activations(1)
        driver.run(rows, layers=(1, driver.config.n_layers), activations=x)
        np.testing.assert_array_equal(driver.read_logits(0), logits)
        (events,) = driver.run(rows, flags=RequestFlag.PROFILE).profile
        assert len(events) > driver.config.n_layers


def test_abandoned_call_gets_the_abort_word(board, device, bitfile, monkeypatch):
    with LlamaOverlay(bitfile, device=device) as overlay:
        overlay.load_model()
        tokens, driver = story(overlay), overlay.llama
        with monkeypatch.context() as patch:
            patch.setattr(driver.handshake, "runs_on", lambda: True)
            call = driver.begin(sampled())
            board.card.log.clear()
            driver.abandon(call)
        size = 4 * driver.limits.request_words
        assert board.card.log[0] == ("to card", "request", 0, size)
        (request,) = (host for _, host in board.buffers.values() if len(host) == size)
        # The abort word arrives at its place, not at the start of the buffer.
        assert int.from_bytes(request[64:68], "little") == driver.handshake.sequence
        assert story(overlay) == tokens


def test_round_trips_of_a_call_are_eight_however_many_tokens_it_makes(board, device, bitfile):
    with LlamaOverlay(bitfile, device=device) as overlay:
        overlay.load_model()
        for n_steps in (1, 16):
            board.calls.clear()
            assert len(overlay.llama.run(sampled(), n_steps=n_steps).rows) == n_steps
            polls = [i for i, call in enumerate(board.calls) if call == "read"][:-1]
            assert board.calls[:5] == ["write", "flush", "write", "write", "write"]
            assert polls == list(range(5, 5 + len(polls))) and polls
            assert board.calls[polls[-1] + 1 :] == ["invalidate", "read"]


def test_call_like_the_last_one_sleeps_before_the_first_poll(board, device, bitfile, monkeypatch):
    naps = []
    with LlamaOverlay(bitfile, device=device) as overlay:
        overlay.load_model()
        driver = overlay.llama
        driver.run(sampled())
        shape, _ = driver.pace
        with monkeypatch.context() as patch:
            patch.setattr("llama_pynq.device.handshake.time.sleep", naps.append)
            for n_steps, layers, nap in [
                (1, None, 0.9 * 0.25),
                (3, None, 0.9 * 0.75),
                (1, (0, 1), 0),
            ]:
                driver.pace = shape, 0.25
                naps.clear()
                driver.run(sampled(), n_steps=n_steps, layers=layers)
                assert naps[0] == pytest.approx(nap)


def test_begun_call_that_was_slept_for_has_a_time(board, device, bitfile):
    """The first poll finds "done" because the driver slept for the expected time."""
    with LlamaOverlay(bitfile, device=device) as overlay:
        overlay.load_model()
        driver = overlay.llama
        driver.run(sampled())
        driver.pace = driver.pace[0], 0.05
        assert driver.finish(driver.begin(sampled())).elapsed_s > 0.04


def test_ports_and_clock_are_set_on_the_board(board, device, bitfile, monkeypatch):
    other = EmulatedDevice()
    monkeypatch.setattr(Device, "_active_device", other, raising=False)
    with LlamaOverlay(bitfile, device=device) as overlay:
        # PYNQ 4 sets the ports through the active device, which is a different one here.
        assert {at: board.processor.words.get(at) for at in HP_WIDTHS} == HP_WIDTHS
        assert Device.active_device is other
        # From a PLL of 1000 MHz, PYNQ itself would make 333 MHz for a 300 MHz design.
        assert board.processor.pl0_mhz == pytest.approx(250, rel=1e-3)
        mhz = round(board.processor.pl0_mhz, 6)
        assert f", kernel host, PL clock 0 {mhz:g} of 300 MHz, " in overlay.describe()


def test_second_board_has_its_own_clocks(board, device, bitfile):
    second = FakeRemoteBoard(board.metadata, name="ZCU104")
    try:
        with LlamaOverlay(bitfile, device=device):
            twin = RemoteDevice(ip_addr="127.0.0.1", port=second.port)
            assert lock_names(twin) != lock_names(device)
            with LlamaOverlay(bitfile, device=twin) as overlay:
                assert second.processor.pl0_mhz == pytest.approx(250, rel=1e-3)
                overlay.load_model()
                assert story(overlay)
    finally:
        second.stop()


def test_one_board_is_one_lock_whatever_it_is_called(board, device, bitfile):
    again = RemoteDevice(index=3, ip_addr="127.0.0.1", port=board.port)
    assert lock_names(again) == lock_names(device)
    assert lock_names(again) == {"KV260": f"KV260-127.0.0.1-{board.port}"}
    with DeviceLock(f"KV260-127.0.0.1-{board.port}"):
        with pytest.raises(DeviceBusy, match=f"device KV260-127.0.0.1-{board.port} is in use"):
            LlamaOverlay(bitfile, device=again)
    with LlamaOverlay(bitfile, device=device) as older, LlamaOverlay(bitfile, device=again):
        assert older.closed


def test_this_computers_sensors_are_not_the_boards(device):
    found = rails(device)
    assert not found and "PYNQ.remote: it gives no sensors" in found.why[0]


def test_bitstream_of_another_build_is_not_taken_for_this_one(board, device, bitfile):
    # PYNQ would reuse a file of this name on the board, whatever it holds.
    board.files[f"{FIRMWARE}llama.bin"] = b"an older build"
    with LlamaOverlay(bitfile, device=device) as overlay:
        name = overlay.binfile_name
        assert name.startswith("llama-") and name.endswith(".bin")
        board.calls.clear()
        overlay.reset()
        assert len(board.files[FIRMWARE + name]) == len(overlay.parser.bin_data)
        # The bitstream is on the board: only the manager's flags and the firmware name are sent.
        assert board.calls.count("writefile") == 2
    # A bitstream without the .whole marker (transfer cut short) is sent again.
    del board.files[f"{FIRMWARE}{name}.whole"]
    board.files[FIRMWARE + name] = board.files[FIRMWARE + name][:1000]
    with LlamaOverlay(bitfile, device=device) as overlay:
        overlay.load_model()
        assert story(overlay)


def test_board_without_memory_says_so_and_the_next_model_loads(board, device, bitfile):
    with LlamaOverlay(bitfile, device=device) as overlay:
        overlay.load_model()
        tokens = story(overlay)
        board.full = True
        with pytest.raises(DeviceMemoryError, match=r"KV260: no room for .* of contiguous memory"):
            overlay.llama.buffers.allocate("weights_0", 1 << 20, np.uint8)
        board.full = False
        overlay.load_model()
        assert story(overlay) == tokens


def test_board_that_answers_no_more_is_named_and_the_next_call_works(board, device, bitfile):
    with LlamaOverlay(bitfile, device=device) as overlay:
        overlay.load_model()
        tokens = story(overlay)
        write = board.card.write

        def last(address, value):
            write(address, value)
            board.away = address == board.card.base and value == 1  # AP_START

        board.card.write = last
        with pytest.raises(ConnectionLost, match=r"KV260 .*does not answer \(UNAVAILABLE\)"):
            overlay.llama.run(sampled())
        board.card.write = write
        with pytest.raises(ConnectionLost, match="repeat the call"):
            overlay.generate("Once", max_new_tokens=2)
        board.away = False
        assert story(overlay) == tokens  # the board still holds the model
        board.away = True
        with pytest.raises(ConnectionLost):
            overlay.load_model()
        board.away = False
        overlay.load_model()
        assert story(overlay) == tokens


def test_another_computer_on_the_board_is_noticed_in_the_results(board, device, bitfile):
    # Locks do not work across computers, but the results show a call of another computer.
    with LlamaOverlay(bitfile, device=device) as overlay:
        overlay.load_model()
        card = board.card
        write = card.write

        def overwritten(address, value):
            write(address, value + 1 if address == at else value)

        at = card.base + overlay.ip_dict["llama"]["registers"]["sequence"]["address_offset"]
        card.write = overwritten
        with pytest.raises(KernelError, match="or another computer, uses the device"):
            overlay.llama.run(sampled())


def test_boards_that_do_not_answer_are_named(monkeypatch, capsys):
    monkeypatch.setenv("PYNQ_REMOTE_DEVICES", "192.0.2.1")
    monkeypatch.setattr(Device, "_devices", [], raising=False)  # restored after the test
    monkeypatch.delattr(Device, "_devices")

    def unreachable(self, *arguments):
        raise RuntimeError("Failed to connect to remote device")

    monkeypatch.setattr(remote_device.GrpcChannel, "__init__", unreachable)
    for _ in range(2):  # PYNQ must not cache that it found none
        with pytest.raises(DeviceNotFound, match=r"PYNQ_REMOTE_DEVICES \(192\.0\.2\.1\)"):
            find_device()
    monkeypatch.setenv("LLAMA_PYNQ_EMULATE", "1")  # whatever PYNQ finds
    assert isinstance(find_device(), EmulatedDevice)
    monkeypatch.delenv("LLAMA_PYNQ_EMULATE")
    assert main(["info", "--emulate"]) == 0
    assert "Failed to connect to remote device" in capsys.readouterr().out


def test_board_that_is_named_is_found_first(board, monkeypatch):
    monkeypatch.setenv("PYNQ_REMOTE_DEVICES", "127.0.0.1")
    monkeypatch.setattr(remote_device, "PYNQ_PORT", board.port)
    monkeypatch.setattr(RemoteDevice.__init__, "__defaults__", (0, None, board.port, "remote{}"))
    monkeypatch.setattr(Device, "_devices", [], raising=False)
    monkeypatch.delattr(Device, "_devices")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = find_device()
    assert isinstance(found, RemoteDevice) and found.name == "KV260"
    monkeypatch.setattr(Device, "_devices", [], raising=False)
