"""Choose a device's overlay, and explain a missing one."""

import shutil
from pathlib import Path

import pynq
import pytest
from pynq.pl_server.device import Device
from support.board_overlays import record_of_files, write_overlay
from support.fake_board import FakeBoard
from support.plain_device import Plain

from llama_pynq import EmulatedDevice, LlamaOverlay
from llama_pynq.emulation.build import emulated_overlay
from llama_pynq.errors import OverlayMismatch
from llama_pynq.kernel.abi import ABI_VERSION
from llama_pynq.measure import selftest
from llama_pynq.measure.timing import board_of
from llama_pynq.overlay_store.record import OverlayFile, OverlayRecord
from llama_pynq.overlay_store.search import EMULATE, FoundOverlay, overlay_for, overlays_of

pytestmark = pytest.mark.usefixtures("places")
BUILD = (
    "To build one, with AMD's tools in a checkout of llama_pynq: make -C hls_src overlay "
    "BOARD=kv260, then llama-pynq overlay add hls_src/build/kv260/overlay"
)
LINK = (OverlayFile("llama.bit", "0" * 64, 4, "https://example.org/llama.bit"),
        OverlayFile("llama.hwh", "1" * 64, 4, "https://example.org/llama.hwh"))  # fmt: skip


# ---- overlays that are found ---------------------------------------------------------


def test_overlays_are_found_in_the_order_of_precedence(places):
    for origin in reversed(places):
        write_overlay(places[origin] / "kv260", "kv260", origin.encode())
        write_overlay(places[origin] / "zcu104", "zcu104")
    assert [(o.origin, o.state) for o in overlays_of("kv260")] == [
        ("added", "ready"), ("installed", "ready"), ("package", "ready"),
    ]  # fmt: skip
    device = Plain("KV260")
    for folder in places.values():
        assert overlay_for(device) == folder / "kv260" / "llama.bit"
        shutil.rmtree(folder / "kv260")
    with pytest.raises(OverlayMismatch, match="there is no overlay of kv260 on this computer"):
        overlay_for(device)
    assert overlays_of("u50") == []


def link(places, **changes):
    record = record_of_files(places["package"], "kv260", **{"files": LINK, **changes})
    (places["package"] / "kv260").mkdir(parents=True, exist_ok=True)
    record.write(places["package"] / "kv260")


def found(places) -> FoundOverlay:
    (overlay,) = overlays_of("kv260")
    return overlay


def test_link_is_no_overlay_yet(places):
    link(places)
    assert (found(places).state, found(places).is_link) == ("link", True)
    found(places).check()
    with pytest.raises(OverlayMismatch, match="To fetch one: llama-pynq overlay install kv260"):
        overlay_for(Plain("KV260"))
    path = write_overlay(places["installed"] / "kv260", "kv260")
    assert overlay_for(Plain("KV260")) == path


def test_link_of_another_version_is_not_offered(places):
    link(places, abi=ABI_VERSION + 1)
    assert found(places).state == "other version"
    with pytest.raises(OverlayMismatch, match="speaks version 4 of the kernel's contract") as error:
        found(places).check()
    assert BUILD in str(error.value)
    with pytest.raises(OverlayMismatch, match="None comes with this version of llama_pynq"):
        overlay_for(Plain("KV260"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "llama.hwh").unlink(), "lacks llama.hwh"),
        (lambda f: (f / "llama.bit").write_bytes(b"x"), "llama.bit has 1 bytes, not "),
        (lambda f: (f / "overlay.json").write_text("{"), "cannot be used: .* is not JSON"),
        (lambda f: (f / "overlay.json").unlink(), "has no overlay.json"),
        (lambda f: write_overlay(f, "zcu104"), "is of another board by its record, zcu104"),
        (
            lambda f: record_of_files(f, "kv260", abi=2).write(f),
            f"speaks version 2 of the kernel's contract, this llama_pynq version {ABI_VERSION}",
        ),
    ],
)
def test_damaged_overlay_is_named_and_no_other_taken_instead(places, damage, message):
    write_overlay(places["package"] / "kv260", "kv260")
    folder = places["added"] / "kv260"
    write_overlay(folder, "kv260")
    damage(folder)
    assert overlays_of("kv260")[0].state in ("damaged", "other version")
    with pytest.raises(OverlayMismatch, match=message) as error:
        overlay_for(Plain("KV260"))
    assert f"the added overlay of kv260, {folder}, " in str(error.value)
    assert f"llama-pynq overlay remove kv260 takes it away. {BUILD}" in str(error.value)
    assert str(error.value).endswith(EMULATE)


def test_changed_byte_is_found_by_the_hash_before_use(places):
    path = write_overlay(places["installed"] / "kv260", "kv260", b"configuration")
    path.write_bytes(path.read_bytes().replace(b"conf", b"fnoc"))
    assert found(places).state == "ready", "names and sizes do not reveal the change"
    with pytest.raises(OverlayMismatch, match="llama.bit is not the file of its record") as error:
        overlay_for(Plain("KV260"))
    assert "llama-pynq overlay remove kv260 takes it away" in str(error.value)
    link(places)
    with pytest.raises(OverlayMismatch, match="llama-pynq overlay install kv260 fetches it anew"):
        overlay_for(Plain("KV260"))


def test_check_reads_the_kernels_metadata(places):
    folder = places["package"] / "kv260"
    write_overlay(folder, "kv260")
    text = (folder / "llama.hwh").read_text().replace("llama_pynq:hls:llama", "x:hls:llama")
    (folder / "llama.hwh").write_text(text)
    record_of_files(folder, "kv260").write(folder)
    found(places).check(metadata=False)
    with pytest.raises(OverlayMismatch, match="no IP named 'llama' of type"):
        found(places).check()


# ---- LlamaOverlay() ------------------------------------------------------------------


def board_overlay(folder: Path, **changes) -> Path:
    """Write an overlay that the fake board can run, where a board's overlay would be."""
    folder.mkdir(parents=True)
    for suffix in (".bit", ".hwh"):
        shutil.copy(emulated_overlay(".bit").with_suffix(suffix), folder)
    record_of_files(folder, "kv260", **changes).write(folder)
    return folder / "llama.bit"


def test_overlay_for_a_board_is_chosen_checked_and_described(places, monkeypatch):
    path = board_overlay(places["added"] / "kv260", measured="KV260, 2026-11-01: 61 tokens/s")
    monkeypatch.setattr(Device, "_devices", [FakeBoard("KV260")], raising=False)
    with LlamaOverlay() as overlay:
        overlay.load_model()
        assert overlay.generate("Once", max_new_tokens=3, seed=1).tokens
        assert overlay.is_board
        assert overlay.record == OverlayRecord.read(path.parent / "overlay.json")
        assert overlay.describe() == (
            "KV260 (board), kernel host, overlay llama.bit "
            "(measured: KV260, 2026-11-01: 61 tokens/s)"
        )
        # The overlay in the self-test's report.
        assert "built    2026-10-30 by a student, from v0.1-3-gabcdef, with vivado 2022.1" in (
            selftest.run(overlay, None).about
        )
        assert board_of(overlay).name == "kv260"


def test_overlay_by_path_needs_neither_record_nor_known_board(places, tmp_path):
    path = board_overlay(tmp_path / "mine")
    record = path.parent / "overlay.json"
    for known in (True, False):
        with LlamaOverlay(path, device=FakeBoard("breadboard")) as overlay:
            assert (overlay.record is not None) == known
            assert overlay.describe().endswith("llama.bit (not known to be measured)")
            assert board_of(overlay) is None
        if known:  # then turn it into the record of another file
            record.write_text(record.read_text().replace(overlay.record.main.sha256, "0" * 64))


def test_board_without_an_overlay_says_what_builds_one_and_what_runs_meanwhile(places):
    with pytest.raises(OverlayMismatch) as error:
        LlamaOverlay(device=FakeBoard("KV260"))
    assert str(error.value) == (
        f"there is no overlay of kv260 on this computer, neither in {places['added'].parent} nor "
        f"in the package. None comes with this version of llama_pynq. {BUILD}. Meanwhile the "
        "emulated device runs everything, with no board: "
        "LlamaOverlay(device=llama_pynq.EmulatedDevice()), or --emulate. Where it was not "
        "installed, as on a board, compile it once before: python -m llama_pynq.emulation.build "
        "(g++; minutes on a board)"
    )
    with LlamaOverlay(device=EmulatedDevice(threads=1)) as overlay:
        assert overlay.record is None and "overlay" not in overlay.describe()


def test_board_that_no_command_builds_for_is_not_sent_to_one(places):
    with pytest.raises(OverlayMismatch) as error:
        overlay_for(Plain("xilinx_aws-vu9p-f1_shell-v04261818_201920_3"))
    assert "No build is known here: AWS links and registers its images itself (" in str(error.value)
    assert "make -C" not in str(error.value)
    write_overlay(places["added"] / "u50", "u50", abi=2)
    (places["added"] / "u50").rename(places["added"] / "aws-f1")
    with pytest.raises(OverlayMismatch, match="takes it away. No build is known here"):
        overlays_of("aws-f1")[0].check()


def test_device_that_is_no_board_of_ours_is_named(places):
    with pytest.raises(OverlayMismatch) as error:
        LlamaOverlay(device=FakeBoard("edge"))
    assert str(error.value).startswith(
        "no overlay can be chosen for the device 'edge': by its name it is none of pynq-z1, "
    )
    assert "Give the overlay's file: LlamaOverlay('llama.bit'), or --overlay." in str(error.value)


def test_plain_pynq_overlay_still_takes_a_path(places, tmp_path):
    overlay = pynq.Overlay(str(board_overlay(tmp_path / "mine")), device=FakeBoard("KV260"))
    assert overlay.llama.limits.board == "host"
    overlay.llama.close()


def test_listing_overlays_does_not_load_pynq(run):
    code = """
import sys, llama_pynq.overlay_store.install, llama_pynq.overlay_store.search
print("pynq" in sys.modules)
"""
    assert run("-c", code).stdout == "False\n"
