"""Overlays: install, add and remove, with interruptions, damage and several processes."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.board_overlays import record_of_files, write_files, write_overlay
from support.file_server import serving

from llama_pynq.errors import BoardNotFound, InstallError, OverlayMismatch
from llama_pynq.overlay_store.install import add, install, remove
from llama_pynq.overlay_store.record import OverlayFile, OverlayRecord
from llama_pynq.overlay_store.search import overlays_of

BITS = bytes(range(256)) * 2000


@pytest.fixture
def user(tmp_path, monkeypatch):
    """The user's overlay folder."""
    monkeypatch.setenv("LLAMA_PYNQ_OVERLAYS", str(tmp_path / "user"))
    monkeypatch.setattr(
        "llama_pynq.overlay_store.search.package_folders", lambda name: [str(tmp_path / "package")]
    )
    return tmp_path / "user"


@pytest.fixture
def server():
    with serving() as server:
        yield server


@pytest.fixture
def build(tmp_path):
    """A build of the KV260's overlay."""
    write_overlay(tmp_path / "build", "kv260", BITS)
    return tmp_path / "build"


@pytest.fixture
def link(tmp_path, user, server, build):
    """Put the build on the server and link the package to it; returns its record."""
    for path in build.glob("llama.*"):
        server.files[path.name] = path.read_bytes()
    record = OverlayRecord.read(build / "overlay.json")
    files = tuple(replace(f, url=f"{server.url}/{f.name}") for f in record.files)
    (tmp_path / "package" / "kv260").mkdir(parents=True)
    record = replace(record, files=files)
    record.write(tmp_path / "package" / "kv260")
    return record


def quiet(name):
    return lambda done, total: None


def fetch(source=None, board="kv260"):
    return install(board, source, quiet)


def refused(call, message, error=InstallError):
    with pytest.raises(error, match=message) as caught:
        call()
    return str(caught.value)


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def same_files(folder: Path, build: Path) -> bool:
    return all((folder / p.name).read_bytes() == p.read_bytes() for p in build.glob("llama.*"))


# ---- install --------------------------------------------------------------------------


def test_install_fetches_checks_and_places_the_files(user, link, build, server):
    done = fetch()
    folder = user / "installed" / "kv260"
    assert done.changed and done.overlay.path == folder / "llama.bit"
    assert same_files(folder, build)
    assert OverlayRecord.read(folder / "overlay.json") == link
    assert {str(p.relative_to(user)) for p in user.rglob("*")} == {
        "installed", "installed/kv260", "parts", "kv260.lock", *(f"installed/kv260/{n}" for n in
        ("llama.bit", "llama.hwh", "overlay.json")),
    }  # fmt: skip
    assert folder.stat().st_mode & 0o777 == 0o777 & ~_umask()
    # The second time nothing is fetched.
    server.log.clear()
    assert not fetch().changed and server.log == []


def test_interruption_while_a_build_is_replaced_loses_neither(user, build, tmp_path, monkeypatch):
    path = added(build).overlay.path
    write_overlay(tmp_path / "new", "kv260", b"new")
    rename = os.rename

    def interrupt(source, target):
        if Path(source).name == "new":
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr("llama_pynq.overlay_store.install.os.rename", interrupt)
    with pytest.raises(KeyboardInterrupt):
        added(tmp_path / "new", force=True)
    assert same_files(path.parent, build)
    assert [p.name for p in path.parent.parent.iterdir()] == ["kv260"]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_install_goes_on_after_the_connection_broke(user, link, build, server):
    server.cuts = [100_000]
    refused(fetch, "stopped after 100000 of")
    assert not (user / "installed").exists(), "an incomplete file must not be installed"
    fetch()
    assert same_files(user / "installed" / "kv260", build)
    assert server.log == [None, "bytes=100000-", None]


def test_install_wrong_file_is_never_in_place(user, link, build, server):
    whole = server.files["llama.bit"]
    server.files["llama.bit"] = whole[::-1]
    refused(fetch, "llama.bit has the wrong checksum: its sha256")
    assert overlays_of("kv260")[0].origin == "package"
    server.files["llama.bit"] = whole
    assert fetch().changed


def test_install_over_a_damaged_one_fetches_it_anew(user, link, build):
    path = fetch().overlay.path
    for data in (b"", path.read_bytes()[::-1]):
        path.write_bytes(data)
        assert fetch().changed and same_files(path.parent, build)


def test_install_of_another_file_replaces_and_a_failure_keeps_the_old(
    user, link, build, server, tmp_path, monkeypatch
):
    path = fetch().overlay.path
    old = path.read_bytes()
    write_overlay(tmp_path / "new", "kv260", b"new")
    rename = os.rename

    def fail(source, target):
        if Path(source).name == "new":
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr("llama_pynq.overlay_store.install.os.rename", fail)
    refused(lambda: fetch(str(tmp_path / "new")), r"cannot be written \(Input/output error\)")
    assert path.read_bytes() == old and overlays_of("kv260")[0].state == "ready"
    monkeypatch.undo()
    monkeypatch.setenv("LLAMA_PYNQ_OVERLAYS", str(user))
    assert fetch(str(tmp_path / "new")).changed
    assert same_files(path.parent, tmp_path / "new")
    assert sorted(p.name for p in path.parent.parent.iterdir()) == ["kv260"]


def test_install_from_a_record_on_a_server_takes_what_lies_beside_it(user, build, server):
    for path in build.iterdir():
        server.files[f"there/{path.name}"] = path.read_bytes()
    done = fetch(f"{server.url}/there/overlay.json")
    assert same_files(user / "installed" / "kv260", build)
    urls = [f.url for f in done.overlay.record.files]
    assert urls == [f"{server.url}/there/llama.bit", f"{server.url}/there/llama.hwh"]


def test_install_from_a_folder_or_its_record(user, build):
    for source in (build, build / "overlay.json"):
        done = fetch(str(source))
        assert same_files(user / "installed" / "kv260", build)
        remove("kv260")
    assert done.overlay.record.files[0].url == (build / "llama.bit").as_uri()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("http://example.org/overlay.json", "is not https: it is not trusted"),
        ("ftp://example.org/overlay.json", "is not https: it is not trusted"),
        ("{server}/none.json", "/none.json cannot be fetched: the server answered 404"),
        ("{server}/text", "/text is damaged: it is not JSON"),
        ("nowhere", "there is no nowhere: give an overlay.json, or the URL of one"),
        (
            "{build}/llama.bit",
            "is no overlay.json: name the record or its folder; a file without a record: "
            "llama-pynq overlay add$",
        ),
        ("{server}/folder/", "is a web page, no record: give the URL of overlay.json itself$"),
    ],
)
def test_install_source_that_is_no_record_is_named(user, build, server, source, message):
    server.files["text"] = b"hello"
    server.files["folder/"] = b"\n<!DOCTYPE html><title>Index of /folder</title>"
    source = source.format(server=server.url, build=build)
    with pytest.raises((InstallError, OverlayMismatch), match=message) as caught:
        fetch(source)
    assert source in str(caught.value)


def test_install_from_a_folder_that_lacks_a_file_says_what_to_copy(user, build, monkeypatch):
    (build / "llama.hwh").unlink()
    assert refused(lambda: fetch(str(build)), "no") == (
        f"there is no {build / 'llama.hwh'}: it is missing beside the record: copy the whole folder"
    )
    monkeypatch.chdir(build)
    (build / "overlay.json").unlink()
    refused(lambda: fetch("."), f"^there is no {build}/overlay.json: give an overlay.json")


def test_install_of_another_board_or_version_is_refused_before_it_comes(user, link, server):
    place = user.parent / "package" / "kv260"
    replace(link, abi=2).write(place)
    refused(fetch, "speaks version 2 of the kernel's contract", OverlayMismatch)
    link.write(place)
    refused(
        lambda: fetch(str(place), "zcu104"), "is of an overlay of kv260, not of zcu104",
        OverlayMismatch,
    )  # fmt: skip
    refused(
        lambda: fetch(None, "kv261"), "there is no board 'kv261': choose one of pynq-z1, ",
        BoardNotFound,
    )  # fmt: skip
    assert server.log == []


def test_install_of_what_is_no_overlay_of_ours_is_not_placed(user, build, server):
    text = (build / "llama.hwh").read_text().replace("llama_pynq:hls:llama", "x:hls:llama")
    (build / "llama.hwh").write_text(text)
    record_of_files(build, "kv260").write(build)
    refused(lambda: fetch(str(build)), "no IP named 'llama' of type", OverlayMismatch)
    assert overlays_of("kv260") == []
    assert list((user / "installed").iterdir()) == []


def test_install_without_a_link_says_what_builds_one(user):
    message = refused(
        fetch, "there is no link to an overlay of kv260. None comes with this version"
    )
    assert "make -C hls_src overlay BOARD=kv260" in message


def test_install_of_what_the_package_holds_fetches_nothing(user, tmp_path):
    write_overlay(tmp_path / "package" / "kv260", "kv260")
    refused(fetch, "comes with llama_pynq: there is nothing to fetch")


def test_install_clears_parts_of_files_that_no_link_names(user, link):
    (user / "parts").mkdir(parents=True)
    (user / "parts" / f"kv260-{'0' * 64}").write_bytes(b"old")
    (user / "parts" / f"zcu104-{'0' * 64}").write_bytes(b"another board's")
    fetch()
    assert [p.name for p in (user / "parts").iterdir()] == [f"zcu104-{'0' * 64}"]


# ---- several processes, and folders that cannot be written ----------------------------

INSTALL = """
import sys
from llama_pynq.overlay_store import search
search.package_folders = lambda name: [sys.argv[1]]
from llama_pynq.errors import LlamaPynqError
from llama_pynq.overlay_store.install import install
try:
    print("changed" if install("kv260", None, lambda n: lambda *_: None).changed else "same")
except LlamaPynqError as error:
    print(error)
"""


def start(package: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", INSTALL, str(package)], stdout=subprocess.PIPE, text=True
    )


def test_second_process_is_told_of_the_first_and_then_has_nothing_to_do(user, link, build, server):
    server.gate.clear()
    first = start(user.parent / "package")
    server.halfway.wait()
    second = start(user.parent / "package")
    said, _ = second.communicate()
    assert said == (
        f"another process ({first.pid}) is at work on the overlays of kv260: wait until it has "
        "ended, then give the command again\n"
    )
    refused(lambda: remove("kv260"), rf"another process \({first.pid}\) is at work")
    server.gate.set()
    assert first.communicate() == ("changed\n", None)
    assert start(user.parent / "package").communicate()[0] == "same\n"
    assert same_files(user / "installed" / "kv260", build)


def test_killed_process_leaves_what_the_next_goes_on_from(user, link, build, server):
    server.gate.clear()
    first = start(user.parent / "package")
    server.halfway.wait()
    while not any(part.stat().st_size for part in (user / "parts").glob("*")):
        assert first.poll() is None
    first.kill()
    first.communicate()
    (user / "installed").mkdir(exist_ok=True)
    (user / "installed" / ".kv260.abc").mkdir()  # left by a process killed while it installs
    server.gate.set()
    server.log.clear()
    assert fetch().changed
    assert server.log[0].startswith("bytes=")
    assert sorted(p.name for p in (user / "installed").iterdir()) == ["kv260"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
@pytest.mark.parametrize("kind", ["symbolic link", "FIFO", "folder"])
def test_lock_of_a_board_that_is_no_file_is_named(build, places, tmp_path, kind):
    lock, target = tmp_path / "user" / "kv260.lock", tmp_path / "theirs"
    lock.parent.mkdir()
    target.write_bytes(b"12\n")
    if kind == "FIFO":
        os.mkfifo(lock)
    elif kind == "folder":
        lock.mkdir()
    else:
        lock.symlink_to(target)
    message = refused(lambda: added(build), f"{lock} is unusable, it is a {kind}")
    assert "Remove it, or set LLAMA_PYNQ_OVERLAYS" in message
    assert target.read_bytes() == b"12\n"


def test_folder_that_cannot_be_made_is_named(build, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLAMA_PYNQ_OVERLAYS", str(tmp_path / "file" / "mine"))
    message = refused(lambda: added(build), r"cannot be written \(Not a directory\)")
    assert "set LLAMA_PYNQ_OVERLAYS to a folder that you may write to" in message


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can act as another user"
)
def test_folder_of_another_user_is_named(user, build, monkeypatch):
    added(build)  # import everything first: some modules may be readable by root only
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        shutil.copytree(build, Path(folder) / "build")
        (Path(folder) / "mine").mkdir(mode=0o755)
        for place in ("mine", "mine/new"):
            monkeypatch.setenv("LLAMA_PYNQ_OVERLAYS", f"{folder}/{place}")
            os.seteuid(65534)  # no longer root, who may write anywhere
            try:
                message = refused(lambda: added(f"{folder}/build"), "cannot be written")
            finally:
                os.seteuid(0)
            assert message == (
                f"{folder}/{place} cannot be written (Permission denied): set "
                "LLAMA_PYNQ_OVERLAYS to a folder that you may write to, or make room there"
            )
        # An unreadable folder of another user is reported, not silently skipped.
        (Path(folder) / "mine" / "added" / "kv260").mkdir(parents=True)
        os.chmod(Path(folder) / "mine", 0o700)
        monkeypatch.setenv("LLAMA_PYNQ_OVERLAYS", f"{folder}/mine")
        os.seteuid(65534)
        try:
            states = [(o.origin, o.damage) for o in overlays_of("kv260")]
        finally:
            os.seteuid(0)
        record = f"{folder}/mine/added/kv260/overlay.json"
        said = f"cannot be used: {record} cannot be read (Permission denied)"
        assert states[0] == ("added", said)


# ---- add ------------------------------------------------------------------------------


def added(path, board=None, force=False, found=None):
    return add(Path(path), board, force, lambda: found)


def test_add_copies_a_build_with_its_record(user, build):
    record = OverlayRecord.read(build / "overlay.json")
    for path in (build, build / "llama.bit", build / "llama.hwh", build / "overlay.json"):
        done = added(path)
        assert done.overlay.path == user / "added" / "kv260" / "llama.bit"
        assert done.overlay.record == record and done.overlay.state == "ready"
        assert same_files(user / "added" / "kv260", build)
        done.overlay.check()
        remove("kv260")
    added(build, "kv260")
    assert not added(build).changed, "an identical overlay must not be replaced"


def test_add_forgets_where_a_file_came_from(user, build, link):
    link.write(build)
    assert [f.url for f in added(build).overlay.record.files] == [None, None]


def test_add_replaces_only_when_forced_and_keeps_a_backup(user, build, tmp_path):
    path = added(build).overlay.path
    old = files_in(path.parent)
    write_overlay(tmp_path / "new", "kv260", b"new")
    message = refused(lambda: added(tmp_path / "new"), "there is an overlay of yours for kv260")
    assert message.endswith("replace it with --force, which keeps it as a backup")
    assert files_in(path.parent) == old
    done = added(tmp_path / "new", force=True)
    assert files_in(done.backup) == old and done.backup.name.startswith("kv260.backup-")
    assert same_files(path.parent, tmp_path / "new")
    write_overlay(tmp_path / "new", "kv260", b"newer")
    again = added(tmp_path / "new", force=True)
    assert again.backup != done.backup and files_in(done.backup) == old


def test_add_bit_without_a_record_says_what_the_file_says(user, tmp_path):
    path = write_files(tmp_path / "plain", "kv260")
    record = added(path).overlay.record
    assert record == OverlayRecord(
        "kv260", None, 250.0, tuple(OverlayFile.of(p) for p in (path, path.with_suffix(".hwh"))),
        {"vivado": "2022.1"}, "2026-10-30", "unknown", "unknown",
    )  # fmt: skip
    overlays_of("kv260")[0].check()


def test_add_xclbin_without_a_record_is_known_by_its_platform(user, tmp_path):
    path = write_files(tmp_path / "plain", "u55c")
    record = added(path).overlay.record
    assert (record.board, record.platform) == ("u55c", "xilinx_u55c_gen3x16_xdma_3_202210_1")
    assert (record.clock_mhz, record.abi, record.tools) == (300.0, None, {})


def test_add_file_beside_a_record_of_another_is_taken_for_itself(user, build):
    shutil.copy(build / "llama.bit", build / "mine.bit")
    shutil.copy(build / "llama.hwh", build / "mine.hwh")
    assert added(build / "mine.bit").overlay.record.built_by == "unknown"


def test_add_asks_for_the_board_where_nothing_tells(user, tmp_path):
    path = write_files(tmp_path / "plain", "pynq-z2")
    message = refused(lambda: added(path), "does not say for which board it is, and no board is")
    assert message.endswith("add --board, one of pynq-z1, pynq-z2")
    assert added(path, found="pynq-z1").overlay.board == "pynq-z1"
    assert added(path, "pynq-z2", found="pynq-z1").overlay.board == "pynq-z2"


@pytest.mark.parametrize(
    ("board", "message"),
    [
        ("zcu104", "says that llama.bit was built for kv260, not for zcu104"),
        ("kv261", "there is no board 'kv261'"),
    ],
)
def test_add_for_another_board_than_the_records_is_refused(user, build, board, message):
    with pytest.raises((BoardNotFound, OverlayMismatch), match=message):
        added(build, board)
    assert not (user / "added").exists()


def test_add_for_a_board_with_another_part_is_refused(user, tmp_path):
    path = write_files(tmp_path / "plain", "pynq-z2")
    refused(
        lambda: added(path, "kv260"),
        "was built for 7z020clg400, which is pynq-z1 or pynq-z2, not kv260", OverlayMismatch,
    )  # fmt: skip
    card = write_files(tmp_path / "card", "u50")
    refused(lambda: added(card, "u55c"), "xilinx_u50_.*, which is u50, not u55c", OverlayMismatch)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: (b / "llama.bit").write_bytes(b"x"), "is not the file that .* was written for"),
        (lambda b: (b / "llama.hwh").unlink(), "llama.hwh is missing"),
        (lambda b: (b / "overlay.json").write_text("[]"), "no record of an overlay"),
        (lambda b: record_of_files(b, "kv260", abi=2).write(b), "speaks version 2"),
    ],
)
def test_add_of_a_build_that_does_not_fit_its_record_is_refused(user, build, change, message):
    change(build)
    refused(lambda: added(build), message, OverlayMismatch)
    assert not (user / "added").exists()


def test_add_of_nothing_is_named(user, tmp_path):
    refused(lambda: added(tmp_path / "no.bit"), "there is no file .*no.bit")
    refused(lambda: added(tmp_path), "there is no .*overlay.json: give the .bit or .xclbin file")
    (tmp_path / "only.hwh").write_text("")
    refused(lambda: added(tmp_path / "only.hwh"), "there is no file .*only.bit")


# ---- remove ---------------------------------------------------------------------------


def test_remove_takes_the_first_and_never_the_packages(user, build, link):
    fetch()
    added(build)
    for origin in ("added", "installed"):
        assert remove("kv260").origin == origin
        assert not (user / origin / "kv260").exists()
    refused(lambda: remove("kv260"), "there is no overlay of kv260 to remove")
    assert [o.state for o in overlays_of("kv260")] == ["link"]


def test_remove_takes_what_cannot_even_be_read(user):
    (user / "added" / "kv260").mkdir(parents=True)
    assert overlays_of("kv260")[0].damage == "has no overlay.json"
    remove("kv260")
    assert overlays_of("kv260") == []


# ---- random histories -----------------------------------------------------------------

STEPS = st.sampled_from(["install", "cut", "wrong", "add", "force", "remove", "damage"])


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(STEPS, max_size=6))
def test_after_any_history_what_is_ready_is_whole(user, build, link, server, steps):
    shutil.rmtree(user, ignore_errors=True)
    server.files["llama.bit"] = whole = (build / "llama.bit").read_bytes()
    for step in steps:
        server.cuts = [1000] if step == "cut" else []
        server.files["llama.bit"] = whole[::-1] if step == "wrong" else whole
        try:
            if step in ("install", "cut", "wrong"):
                fetch()
            elif step in ("add", "force"):
                added(build, force=step == "force")
            elif step == "remove":
                remove("kv260")
            elif (overlay := overlays_of("kv260")[0]).origin != "package":
                overlay.path.write_bytes(b"")
        except InstallError:
            pass
        for overlay in overlays_of("kv260"):
            if overlay.state == "ready":
                overlay.check(metadata=False)
                assert same_files(overlay.folder, build)
    server.cuts, server.files["llama.bit"] = [], whole
    fetch()
    assert same_files(user / "installed" / "kv260", build)


def test_record_in_place_is_the_format(user, build):
    added(build)
    fields = json.loads((user / "added" / "kv260" / "overlay.json").read_text())
    assert fields["format"] == 1 and fields["board"] == "kv260"
