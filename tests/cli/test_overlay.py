"""``llama-pynq overlay``: output and error messages."""

import io
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
from pynq.pl_server.device import Device
from support.board_overlays import record_of_files, write_files, write_overlay
from support.fake_board import FakeBoard
from support.file_server import serving

from llama_pynq.boards import boards
from llama_pynq.cli.main import main
from llama_pynq.emulation import container, overlay_file, xclbin
from llama_pynq.emulation.build import emulated_overlay
from llama_pynq.overlay_store.record import OverlayRecord

BITS = bytes(range(256)) * 20_000


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch):
    """Run ``llama-pynq overlay`` in its own folder; returns exit status and output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLAMA_PYNQ_OVERLAYS", str(tmp_path / "user"))
    monkeypatch.setenv("LLAMA_PYNQ_LOCKS", str(tmp_path / "locks"))
    monkeypatch.setattr(
        "llama_pynq.overlay_store.search.package_folders", lambda name: [str(tmp_path / "package")]
    )

    def call(*arguments):
        status = main(["overlay", *map(str, arguments)])
        out, err = capsys.readouterr()
        return status, out, err

    return call


@pytest.fixture
def server(tmp_path):
    """A server with a build of the KV260's overlay, which the package links to."""
    write_overlay(tmp_path / "build", "kv260", BITS)
    with serving() as server:
        for path in (tmp_path / "build").iterdir():
            server.files[path.name] = path.read_bytes()
        link(tmp_path, server)
        yield server


def link(tmp_path, server):
    record = OverlayRecord.read(tmp_path / "build" / "overlay.json")
    files = tuple(replace(f, url=f"{server.url}/{f.name}") for f in record.files)
    (tmp_path / "package" / "kv260").mkdir(parents=True)
    replace(record, files=files).write(tmp_path / "package" / "kv260")


def table(out: str) -> dict[str, list[str]]:
    """Cells of each board's line, by board."""
    lines = out.split("\n\n")[0].splitlines()
    return {line.split()[0]: re.split(r"  +", line)[1:] for line in lines[1:]}


# ---- list -----------------------------------------------------------------------------


def test_list_without_any_overlay_says_so_and_what_to_do(cli, tmp_path):
    status, out, err = cli("list")
    assert (status, err) == (0, "")
    assert table(out) == {b: ["no build" if b == "aws-f1" else "none"] for b in boards()}
    assert out.split("\n\n")[1] == (
        "No overlay is released with this version of llama_pynq.\n"
        "To build one, with AMD's tools in a checkout: make -C hls_src overlay BOARD=NAME, then\n"
        "llama-pynq overlay add hls_src/build/NAME/overlay\n"
        f"The emulated device, which needs no board, uses {emulated_overlay()}\n"
        f"Your own and installed overlays are in {tmp_path / 'user'}\n"
    )


def test_list_shows_states_origins_and_what_is_known(cli, server, tmp_path):
    assert table(cli("list")[1])["kv260"] == [
        "link, not fetched", "250 MHz", "vivado 2022.1", "2026-10-30", "a student", "no",
        f"package: {tmp_path / 'package' / 'kv260'}",
    ]  # fmt: skip
    cli("add", write_files(tmp_path / "plain", "zcu104"))
    write_overlay(tmp_path / "user" / "added" / "u50", "u50", measured="U50, 2026-11-02: 900/s")
    write_overlay(tmp_path / "user" / "installed" / "u55c", "u55c", abi=2)
    write_overlay(tmp_path / "user" / "installed" / "pynq-z1", "pynq-z1")
    (tmp_path / "user" / "installed" / "pynq-z1" / "llama.bit").write_bytes(b"")
    (tmp_path / "user" / "added" / "pynq-z2").mkdir()
    _, out, _ = cli("list")
    rows = table(out)
    assert {board: rows[board][0] for board in rows} == {
        **dict.fromkeys(boards(), "none"), "aws-f1": "no build", "kv260": "link, not fetched",
        "zcu104": "ready", "u50": "ready", "u55c": "other version", "pynq-z1": "damaged",
        "pynq-z2": "damaged",
    }  # fmt: skip
    assert rows["zcu104"][4:6] == ["unknown", "no"]
    assert rows["u50"][5] == "U50, 2026-11-02: 900/s"
    assert "No overlay is released" not in out
    assert "To fetch one: llama-pynq overlay install BOARD\n" in out
    assert "pynq-z1, is damaged: llama.bit has 0 bytes, not " in out
    assert "pynq-z2, has no overlay.json\n" in out
    assert "u55c, speaks version 2 of the kernel's contract, this llama_pynq version 3\n" in out


# ---- install --------------------------------------------------------------------------


def test_install_prints_lines_where_there_is_no_terminal(cli, server, tmp_path):
    status, out, err = cli("install", "kv260")
    path = tmp_path / "user" / "installed" / "kv260" / "llama.bit"
    assert (status, out) == (
        0, f"{path}: installed, its sha256 checked; not known to be measured\n"
    )  # fmt: skip
    lines = err.splitlines()
    assert lines[0] == "llama.bit: 0.0 of 4.9 MiB" and lines[-1].startswith("llama.hwh: ")
    assert "llama.bit: 4.9 of 4.9 MiB" in lines and len(lines) < 26
    status, out, err = cli("install", "kv260")
    assert (status, err) == (0, "") and "llama.bit: there already, its sha256 checked; " in out


def test_install_that_broke_off_goes_on_with_the_same_command(cli, server):
    server.cuts = [2_600_000]
    status, out, err = cli("install", "kv260")
    assert (status, out) == (1, "")
    assert re.search(r"\nllama-pynq: \S+/llama.bit: the .* stopped after 2600000 of \d+ bytes", err)
    status, _, err = cli("install", "kv260")
    assert status == 0
    assert err.startswith("llama.bit: 2.5 of 4.9 MiB, resumed\n")


def test_install_says_when_ones_own_build_comes_first(cli, server, tmp_path):
    write_overlay(tmp_path / "user" / "added" / "kv260", "kv260", measured="here, today")
    status, _, err = cli("install", "kv260")
    assert status == 0
    assert err.endswith(
        f"the added overlay of kv260, {tmp_path / 'user' / 'added' / 'kv260'}, takes precedence, "
        "so LlamaOverlay() uses it: llama-pynq overlay remove kv260 deletes it\n"
    )


def test_install_draws_a_bar_on_a_terminal(cli, server, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    cli("install", "kv260")
    drawn = terminal.getvalue()
    assert f"\rllama.bit  [{'.' * 30}]   0%  0.0 of 4.9 MiB" in drawn
    assert f"\rllama.bit  [{'#' * 30}] 100%  4.9 of 4.9 MiB\n" in drawn
    assert drawn.count("\n") == 2
    cli("remove", "kv260")
    terminal.truncate(0)
    server.cuts = [1000]
    cli("install", "kv260")
    assert "MiB\nllama-pynq: " in terminal.getvalue(), "the message must start on a new line"


RUN = """
import sys
from llama_pynq.overlay_store import search
search.package_folders = lambda name: [sys.argv[1]]
from llama_pynq.cli.main import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT to send")
def test_ctrl_c_keeps_what_came_and_says_so(cli, server, tmp_path):
    server.gate.clear()
    command = [sys.executable, "-c", RUN, tmp_path / "package", "overlay", "install", "kv260"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for share in ("0.0 of", ""):  # the second line follows after a tenth of the file
        assert f"llama.bit: {share}" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, out) == (130, "")
    assert err.endswith(
        "the partial download is kept: the same command resumes it\nllama-pynq: interrupted\n"
    )
    assert not (tmp_path / "user" / "installed").exists()
    server.gate.set()
    status, _, err = cli("install", "kv260")
    assert status == 0 and "MiB, resumed" in err


def test_install_from_a_record_needs_no_link(cli, server, tmp_path):
    shutil.rmtree(tmp_path / "package")
    assert cli("install", "kv260", "--from", f"{server.url}/overlay.json")[0] == 0
    cli("remove", "kv260")
    assert cli("install", "kv260", "--from", "build")[0] == 0
    cli("remove", "kv260")
    status, out, err = cli("install", "kv260")
    assert (status, out) == (1, "")
    assert err == (
        "llama-pynq: there is no link to an overlay of kv260. None comes with this version of "
        "llama_pynq. To build one, with AMD's tools in a checkout of llama_pynq: make -C hls_src "
        "overlay BOARD=kv260, then llama-pynq overlay add hls_src/build/kv260/overlay\n"
    )


# ---- verify ---------------------------------------------------------------------------


def test_verify_without_overlays_has_nothing_to_say(cli):
    assert cli("verify") == (0, "there is no overlay to verify\n", "")
    assert cli("verify", "kv260") == (0, "there is no overlay of kv260 to verify\n", "")
    status, _, err = cli("verify", "kv261")
    assert status == 1 and "there is no board 'kv261': choose one of pynq-z1, " in err


def test_verify_finds_what_differs_and_says_so_in_its_status(cli, server, tmp_path):
    cli("install", "kv260")
    write_overlay(tmp_path / "user" / "added" / "u50", "u50")
    status, out, _ = cli("verify")
    path = tmp_path / "user" / "installed" / "kv260" / "llama.bit"
    assert status == 0
    assert f"kv260: {path}: sha256, kernel and version are right\n" in out
    assert f"kv260: {tmp_path}/package/kv260/llama.bit: link, not fetched\n" in out
    assert out.count("\n") == 3
    path.write_bytes(path.read_bytes()[::-1])
    status, out, _ = cli("verify")
    assert status == 1 and out.count("WRONG") == 1
    assert "kv260: WRONG: the installed overlay of kv260, " in out
    assert "by its sha256. llama-pynq overlay install kv260 fetches it anew\n" in out
    assert cli("verify", "u50")[0] == 0
    write_overlay(tmp_path / "user" / "added" / "u50", "u50", abi=1)
    cli("add", write_files(tmp_path / "plain", "zcu104"))
    assert "are right, its version is not recorded\n" in cli("verify", "zcu104")[1]
    status, out, _ = cli("verify", "u50")
    assert status == 1 and "speaks version 1 of the kernel's contract" in out


# ---- add, remove, and commands that use the overlays ----------------------------------


def test_add_says_where_and_keeps_a_backup(cli, tmp_path):
    write_overlay(tmp_path / "build", "kv260", measured="KV260, 2026-11-01")
    place = tmp_path / "user" / "added" / "kv260" / "llama.bit"
    assert cli("add", "build") == (
        0,
        f"{place}: added, for kv260; measured: KV260, 2026-11-01\n",
        "",
    )
    assert "there already, unchanged, for kv260" in cli("add", "build/llama.bit")[1]
    write_overlay(tmp_path / "build", "kv260", b"other")
    assert "replace it with --force" in cli("add", "build")[2]
    card = cli("add", write_files(tmp_path / "card", "u50"))[1]
    assert card.endswith(
        "added, for u50; for the shell xilinx_u50_gen3x16_xdma_5_202210_1; not known to be "
        "measured\n"
    )
    status, out, _ = cli("add", "build", "--force")
    assert status == 0
    assert re.search(rf"the previous overlay is now {place.parent}.backup-\d{{8}}-\d{{6}}\n", out)


def test_add_takes_the_board_that_is_found(cli, tmp_path, monkeypatch):
    write_files(tmp_path / "plain", "pynq-z2")
    monkeypatch.setattr(Device, "_devices", [], raising=False)
    monkeypatch.setenv("LLAMA_PYNQ_EMULATE", "1")
    status, _, err = cli("add", "plain/llama.bit")
    assert status == 1 and "add --board, one of pynq-z1, pynq-z2" in err
    monkeypatch.delenv("LLAMA_PYNQ_EMULATE")
    monkeypatch.setattr(Device, "_devices", [FakeBoard("Pynq-Z1")], raising=False)
    assert "added, for pynq-z1; not known" in cli("add", "plain/llama.bit")[1]


def test_remove_says_what_is_used_then(cli, server, tmp_path):
    cli("install", "kv260")
    cli("add", "build")
    added, installed = (tmp_path / "user" / o / "kv260" for o in ("added", "installed"))
    out = cli("remove", "kv260")[1]
    assert out == f"{added}: removed; now used: {installed / 'llama.bit'}\n"
    out = cli("remove", "kv260")[1]
    assert out == f"{installed}: removed; there is no other overlay of kv260\n"
    assert "there is no overlay of kv260 to remove" in cli("remove", "kv260")[2]


def test_remove_says_how_to_return_to_a_backup(cli, tmp_path):
    for configuration in (b"first", b"second"):
        write_overlay(tmp_path / "build", "kv260", configuration)
        cli("add", "build", "--force")
    out = cli("remove", "kv260")[1]
    backup = re.fullmatch(
        r"\S+: removed; there is no other overlay of kv260\n"
        r"left: 1 backup (\S+); to return to it: llama-pynq overlay add \1\n",
        out,
    ).group(1)
    assert cli("add", backup)[0] == 0
    added = tmp_path / "user" / "added" / "kv260" / "llama.bit"
    assert b"first" in added.read_bytes()
    for configuration in (b"third", b"fourth"):
        write_overlay(tmp_path / "build", "kv260", configuration)
        cli("add", "build", "--force")
    assert "left: 3 backups, the newest " in cli("remove", "kv260")[1]


def test_boards_are_named_in_any_case(cli, server, tmp_path):
    assert cli("install", "KV260")[0] == 0
    assert "there is no overlay of pynq-z2 to verify" in cli("verify", "PYNQ_Z2")[1]
    assert "installed/kv260/llama.bit: sha256" in cli("verify", "Kv260")[1]
    assert "added, for pynq-z2" in cli(
        "add", write_files(tmp_path / "plain", "pynq-z2"), "--board", "Pynq-Z2"
    )[1]  # fmt: skip
    assert "installed/kv260: removed" in cli("remove", "KV260")[1]


def test_commands_use_what_was_added(cli, capsys, tmp_path, monkeypatch):
    folder = tmp_path / "user" / "added" / "kv260"
    folder.mkdir(parents=True)
    for suffix in (".bit", ".hwh"):
        shutil.copy(emulated_overlay(".bit").with_suffix(suffix), folder)
    record_of_files(folder, "kv260").write(folder)
    monkeypatch.setattr(Device, "_devices", [FakeBoard("KV260")], raising=False)
    assert main(["info"]) == 0
    out, _ = capsys.readouterr()
    overlay = out.split("\n\n")[2]
    assert overlay.splitlines() == [
        "overlay",
        f"  file       {folder / 'llama.bit'}",
        "  built      2026-10-30 by a student, from v0.1-3-gabcdef, with vivado 2022.1",
        "  clock_mhz  250.0",
        "  measured   no",
    ]
    assert main(["info", "--overlay", str(emulated_overlay())]) == 0
    out = capsys.readouterr()[0]
    assert "record  none beside the file: builder and measurements unknown" in out
    cli("remove", "kv260")
    assert main(["generate"]) == 1
    assert "there is no overlay of kv260 on this computer" in capsys.readouterr()[1]


# ---- emulated overlays, which are native code -------------------------------------------


@pytest.fixture
def stranger(tmp_path):
    """The package's emulated overlay with another level, as somebody else might build it."""
    contents, _ = overlay_file.read(emulated_overlay())
    payloads = tuple(replace(p, level="a stranger's") for p in contents.payloads)
    data = container.pack(replace(contents, payloads=payloads))
    path = tmp_path / "theirs" / "llama.xclbin"
    path.parent.mkdir()
    path.write_bytes(xclbin.write(data, contents.design))
    return path


def test_emulated_overlay_is_added_only_if_its_code_is_trusted(cli, capsys, tmp_path, stranger):
    generate = [
        "generate",
        "--emulate",
        "--overlay",
        str(stranger),
        "--max-new-tokens",
        "2",
        "Once",
    ]
    for call in (lambda: cli("add", stranger), lambda: (main(generate), *capsys.readouterr())):
        status, out, err = call()
        assert (status, out) == (1, "") and err.count("\n") == 1
        assert f"{stranger} is an emulated overlay, which contains native code" in err
        assert f"llama-pynq overlay add {stranger} --trust" in err
    assert not (tmp_path / "user" / "trusted").exists()
    assert main([*generate, "--trust"]) == 0
    capsys.readouterr()
    assert not (tmp_path / "user" / "trusted").exists(), "--trust is for this once"
    status, out, err = cli("add", stranger, "--trust")
    assert (status, err) == (0, "")
    assert f"{stranger}: trusted, the emulated device loads it from now on" in out
    (record,) = (tmp_path / "user" / "trusted").iterdir()
    assert f"To withdraw the trust, delete {record}" in out
    assert main(generate) == 0
    record.unlink()
    assert main(generate) == 1


def test_info_runs_no_code_of_an_overlay_that_is_not_trusted(cli, capsys, stranger, monkeypatch):
    loaded = []
    monkeypatch.setattr("llama_pynq.emulation.cpu.host_features", lambda: None)
    monkeypatch.setattr("llama_pynq.emulation.emulator.cpu_features", loaded.append)
    monkeypatch.setattr("llama_pynq.emulation.emulator._load", loaded.append)
    assert main(["info", "--emulate", "--overlay", str(stranger)]) == 0
    assert "contains native code" in capsys.readouterr().out and not loaded


def test_emulated_overlay_that_is_damaged_is_not_trusted(cli, tmp_path, stranger):
    data = bytearray(stranger.read_bytes())
    data[-1] ^= 1
    stranger.write_bytes(data)
    status, _, err = cli("add", stranger, "--trust")
    assert status == 1 and f"{stranger} is damaged" in err
    assert not (tmp_path / "user" / "trusted").exists()


def test_emulated_overlay_is_for_no_board(cli, stranger):
    status, _, err = cli("add", stranger, "--trust", "--board", "kv260")
    assert status == 1 and "is for the emulated device: leave out --board" in err


def test_hardware_overlay_needs_no_trust(cli, tmp_path):
    path = write_files(tmp_path / "plain", "kv260")
    assert cli("add", path)[0] == 0
    assert cli("add", path, "--trust")[0] == 0
    assert not (tmp_path / "user" / "trusted").exists()


def test_help_names_every_command(cli, capsys):
    with pytest.raises(SystemExit):
        cli("--help")
    text = capsys.readouterr().out
    assert all(f"    {name} " in text for name in ("list", "install", "verify", "add", "remove"))
