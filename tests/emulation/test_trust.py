"""Trust of emulated overlays: which files' code runs, and what is recorded."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
import random
import shutil
import stat

import pynq
import pytest
from support.fake_kernel import CHANNELS, overlay_folder, payloads
from support.paths import REPOSITORY

from llama_pynq import EmulatedDevice, LlamaOverlay
from llama_pynq.emulation import build, container, emulator, hwh, trust, xclbin
from llama_pynq.emulation.build import emulated_overlay
from llama_pynq.emulation.container import Payload
from llama_pynq.errors import InstallError, OverlayMismatch, RequestError

REFUSED = r"contains native code: loading it runs that code .*EmulatedDevice\(trust=True\), or --t"
needs_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="makes files of another user"
)


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    """The user's data folder, empty."""
    overlay_folder()  # built, and recorded, before: other tests load it, too
    folder = tmp_path / "data"
    monkeypatch.setenv("LLAMA_PYNQ_OVERLAYS", str(folder))
    return folder


@pytest.fixture(params=[".xclbin", ".bit"])
def stranger(request, tmp_path):
    """An emulated overlay that came from elsewhere: well-formed, its checksums right."""
    suffix = request.param
    source = overlay_folder() / f"llama{suffix}"
    contents = (xclbin.read if suffix == ".xclbin" else hwh.read_bit)(source.read_bytes(), "")
    contents = dataclasses.replace(
        contents, payloads=(dataclasses.replace(contents.payloads[0], level="a stranger's"),)
    )
    path = tmp_path / "elsewhere" / f"llama{suffix}"
    path.parent.mkdir()
    packed = container.pack(contents)
    if suffix == ".bit":
        shutil.copy(source.with_suffix(".hwh"), path.parent)
        path.write_bytes(hwh.write_bit(packed))
    else:
        path.write_bytes(xclbin.write(packed, contents.design))
    return path


def digest(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def load(path, **options) -> None:
    pynq.Overlay(str(path), device=EmulatedDevice(threads=1, **options)).free()


def refused(path, device=None) -> None:
    with pytest.raises(OverlayMismatch, match=REFUSED) as caught:
        pynq.Overlay(str(path), device=device or EmulatedDevice(threads=1))
    assert f"{path} is an emulated overlay" in str(caught.value)
    assert f"llama-pynq overlay add {path} --trust" in str(caught.value)


def test_foreign_overlay_is_refused_before_any_of_its_code_is_loaded(stranger, monkeypatch):
    loaded = []
    monkeypatch.setattr(emulator, "_load", loaded.append)
    monkeypatch.setattr(emulator, "cpu_features", loaded.append)
    monkeypatch.setattr("llama_pynq.emulation.cpu.host_features", lambda: None)
    device = EmulatedDevice(threads=1)
    refused(stranger, device)
    bitstream = pynq.Bitstream(str(stranger), device=device)
    for call in (
        lambda: device.download(bitstream),
        lambda: device.level_of(stranger),
        lambda: device.get_bitfile_metadata(str(stranger)),
        lambda: LlamaOverlay(stranger, device=device),
    ):
        with pytest.raises(OverlayMismatch, match=REFUSED):
            call()
    assert not loaded


def test_refused_overlay_leaves_the_older_one_open(stranger):
    device = EmulatedDevice(threads=1, name="older")
    with LlamaOverlay(emulated_overlay(), device=device) as older:
        with pytest.raises(OverlayMismatch, match=REFUSED):
            LlamaOverlay(stranger, device=device)
        assert not older.closed


def test_device_that_trusts_loads_it_and_records_nothing(stranger, data):
    load(stranger, trust=True)
    assert not (data / "trusted").exists()
    refused(stranger)
    with pytest.raises(RequestError, match="trust is 1: it must be True or False"):
        EmulatedDevice(trust=1)


def test_recorded_overlay_is_loaded_from_anywhere_until_it_changes(stranger, data, tmp_path):
    record = trust.record(digest(stranger), "llama", "a test")
    assert record == data / "trusted" / digest(stranger)
    assert set(json.loads(record.read_text())) == {"name", "when", "why"}
    assert stat.S_IMODE((data / "trusted").stat().st_mode) == 0o700
    load(stranger)
    moved = stranger.parent.rename(tmp_path / "moved") / stranger.name
    load(moved)
    record.unlink()
    refused(moved)


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o707])
def test_records_in_a_folder_that_others_may_open_are_ignored(stranger, data, mode):
    trust.record(digest(stranger), "llama", "a test")
    (data / "trusted").chmod(mode)
    refused(stranger)
    with pytest.raises(InstallError, match=f"{data}/trusted: its mode is {mode:o}"):
        trust.record(digest(stranger), "llama", "a test")


@needs_root
@pytest.mark.parametrize("what", ["folder", "record"])
def test_records_of_another_user_are_ignored(stranger, data, what):
    record = trust.record(digest(stranger), "llama", "a test")
    os.chown(record if what == "record" else data / "trusted", 65534, 65534)
    refused(stranger)
    if what == "folder":
        with pytest.raises(InstallError, match="it belongs to another user"):
            trust.record(digest(stranger), "llama", "a test")


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"[" * 100_000, b"\xff"])
def test_record_that_is_none_is_ignored(stranger, content):
    trust.record(digest(stranger), "llama", "a test").write_bytes(content)
    refused(stranger)


def test_record_that_is_odd_is_ignored(stranger, data, tmp_path):
    record = trust.record(digest(stranger), "llama", "a test")
    record.rename(tmp_path / "record")
    record.symlink_to(tmp_path / "record")
    refused(stranger)
    record.unlink()
    os.mkfifo(record)
    refused(stranger)
    shutil.rmtree(data / "trusted")
    (tmp_path / "mine").mkdir(mode=0o700)
    (tmp_path / "record").rename(tmp_path / "mine" / digest(stranger))
    (data / "trusted").symlink_to(tmp_path / "mine")
    refused(stranger)


def test_folder_of_records_that_cannot_be_made_is_named(stranger, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LLAMA_PYNQ_OVERLAYS", str(tmp_path / "file"))
    with pytest.raises(InstallError, match=f"{tmp_path}/file/trusted .*set LLAMA_PYNQ_OVERLAYS"):
        trust.record(digest(stranger), "llama", "a test")
    refused(stranger)


# ---- builds -----------------------------------------------------------------------------

CONSTANTS = {"kChannels": CHANNELS, "kKvPorts": 1, "kSharedMasters": 0, "kClockMhz": 77}
LOAD = """
import sys, pynq
from llama_pynq import EmulatedDevice
pynq.Overlay(sys.argv[1], device=EmulatedDevice(threads=1))
"""


def loads_elsewhere(run, path, **environment) -> bool:
    """Whether another process of this user loads the file."""
    done = run("-c", LOAD, path, PYTHONPATH=str(REPOSITORY), **environment)
    assert done.returncode == 0 or "contains native code" in done.stderr, done.stderr
    return done.returncode == 0


@pytest.mark.parametrize("suffix", [".xclbin", ".bit"])
def test_build_is_trusted_by_this_users_processes(run, data, tmp_path, suffix):
    build.write_overlays(tmp_path / "out", payloads(), CONSTANTS)
    path = tmp_path / "out" / f"llama{suffix}"
    load(path)
    assert json.loads((data / "trusted" / digest(path)).read_text())["name"] == str(path)
    assert loads_elsewhere(run, path)
    assert not loads_elsewhere(run, path, LLAMA_PYNQ_OVERLAYS=str(tmp_path / "another"))


def test_build_that_cannot_be_recorded_serves_its_own_process(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LLAMA_PYNQ_OVERLAYS", str(tmp_path / "file"))
    build.write_overlays(tmp_path / "out", payloads(), {**CONSTANTS, "kClockMhz": 78})
    said = capsys.readouterr().err
    assert f"{tmp_path / 'out'} can be loaded by this process only: no record of trust" in said
    path = tmp_path / "out" / "llama.xclbin"
    load(path)
    assert not loads_elsewhere(run, path)


def test_build_for_a_package_records_nothing(data, tmp_path):
    build.write_overlays(tmp_path / "out", payloads(), {**CONSTANTS, "kClockMhz": 79}, record=False)
    assert not data.exists()
    refused(tmp_path / "out" / "llama.xclbin")


def test_own_build_without_a_record_is_not_used(monkeypatch, stranger, tmp_path):
    """As of a version that recorded none, or of another data folder."""
    own = tmp_path / "own"
    monkeypatch.setattr(build, "own_build_folder", lambda: own)
    own.mkdir()
    shutil.copy(stranger, own)
    assert build.built_overlay(stranger.suffix) != own / stranger.name
    monkeypatch.setattr(build, "package_folders", lambda name: [str(tmp_path / "none")])
    refused(build.built_overlay(stranger.suffix)) if stranger.suffix == ".xclbin" else None
    trust.record(digest(stranger), "llama", "a test")
    assert build.built_overlay(stranger.suffix) == own / stranger.name


# ---- the package's own --------------------------------------------------------------------


def test_packages_own_overlay_is_trusted_wherever_it_lies(run, tmp_path):
    path = shutil.copy(emulated_overlay(), tmp_path / "copy.xclbin")
    assert loads_elsewhere(run, path)


def listed(path) -> str:
    coded = base64.urlsafe_b64encode(hashlib.sha256(path.read_bytes()).digest()).decode()
    return f"sha256={coded.rstrip('=')},{path.stat().st_size}"


@pytest.mark.parametrize("name", ["llama_pynq/overlay/llama/llama.xclbin", "another/llama.xclbin"])
def test_overlay_of_a_wheels_record_is_trusted(run, stranger, tmp_path, name):
    """An installation as pip makes it: the package, and its RECORD beside it."""
    site = tmp_path / "site"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "llama_pynq", site / "llama_pynq", ignore=ignored)
    for folder in ("hls_src", "overlay"):
        target = site / "llama_pynq" / folder
        shutil.copytree(
            REPOSITORY / folder, target, ignore=shutil.ignore_patterns("__pycache__", "llama")
        )
    info = site / "llama_pynq-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llama_pynq\nVersion: 0.1\n")
    (info / "RECORD").write_text(f"{name},{listed(stranger)}\nllama_pynq/errors.py,,\n")
    script = f"import sys; sys.path.insert(0, {str(site)!r})\n" + LOAD
    done = run("-c", script, stranger, PYTHONPATH="")
    if name.startswith("llama_pynq"):
        assert done.returncode == 0, done.stderr
    else:
        assert "contains native code" in done.stderr


def test_manifest_lists_what_was_built(stranger, tmp_path, monkeypatch):
    package = tmp_path / "package"
    shutil.copytree(stranger.parent, package / "llama")
    monkeypatch.setattr(trust, "package_folders", lambda name: [str(package)])
    refused(stranger)
    trust.write_manifest(package / "llama")
    rows = (package / "llama" / "RECORD").read_text().splitlines()
    assert f"{stranger.name},{listed(stranger)}" in rows
    assert len(rows) == len(list(stranger.parent.iterdir()))
    load(stranger)
    (package / "llama" / "RECORD").write_text('"\n,,,\nx,sha256=!,1\n\0\n')
    refused(stranger)


# ---- the library in the cache ---------------------------------------------------------------

PAYLOAD = Payload("native", "Linux", "x86_64", (), b"a library")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA_PYNQ_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_library_lies_in_a_folder_of_the_user_alone(cache):
    (cache / "kernels").mkdir(parents=True)
    (cache / "kernels").chmod(0o777)
    path = container.extract(PAYLOAD)
    assert path.parent == cache / "kernels"
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_library_is_not_put_where_others_could_replace_it(cache):
    cache.mkdir()
    cache.chmod(0o777)
    path = container.extract(PAYLOAD)
    assert not path.is_relative_to(cache) and path.read_bytes() == PAYLOAD.data
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    cache.chmod(0o1777)  # nobody can rename another's folder here
    assert container.extract(PAYLOAD).is_relative_to(cache)


@needs_root
def test_cache_of_another_user_is_refused_by_name(cache):
    (cache / "kernels").mkdir(parents=True)
    os.chown(cache / "kernels", 65534, 65534)
    with pytest.raises(OverlayMismatch, match=f"{cache}/kernels/.*of another user.*LLAMA_PYNQ_CAC"):
        container.extract(PAYLOAD)
    os.chown(cache / "kernels", 0, 0)
    os.chown(cache, 65534, 65534)
    assert not container.extract(PAYLOAD).is_relative_to(cache)


@pytest.mark.parametrize("kind", ["FIFO", "folder", "link to nothing"])
def test_odd_file_at_the_librarys_path_is_replaced_or_named(cache, kind):
    (cache / "kernels").mkdir(parents=True)
    path = cache / "kernels" / f"{PAYLOAD.sha256}.so"
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
        with pytest.raises(OverlayMismatch, match=f"cannot unpack .* to {path}"):
            container.extract(PAYLOAD)
        return
    else:
        path.symlink_to(cache / "nowhere")
    assert container.extract(PAYLOAD).read_bytes() == PAYLOAD.data
    assert stat.S_ISREG(path.lstat().st_mode)


def test_trusted_file_whose_metadata_pynq_cannot_read_is_refused_by_name(stranger):
    """Trust is in the code; nothing else of the file may raise what PYNQ's parsers raise."""
    if stranger.suffix == ".xclbin":
        path = stranger
        data = path.read_bytes().replace(b'vlnv="', b'vLnv="')
        blank = bytearray(data)
        blank[416:432] = bytes(16)
        blank[416:432] = hashlib.sha256(blank).digest()[:16]
        path.write_bytes(blank)
    else:
        contents = hwh.read_bit(stranger.read_bytes(), "")
        path = stranger.with_suffix(".hwh")
        text = path.read_bytes().replace(b'VALUE="16"', b'VALUE="here"')
        path.write_bytes(text)
        contents = dataclasses.replace(contents, metadata_sha256=hashlib.sha256(text).hexdigest())
        stranger.write_bytes(hwh.write_bit(container.pack(contents)))
    with pytest.raises(OverlayMismatch, match=f"PYNQ cannot read {path} .*damaged or no overlay"):
        load(stranger, trust=True, protocol="hs")


@pytest.mark.parametrize("suffix", [".xclbin", ".bit"])
def test_built_overlay_with_a_flipped_bit_is_refused_by_name(tmp_path, suffix):
    """The one that every test loads: no flip passes the checksums, and none passes the trust."""
    source = emulated_overlay(suffix)
    if suffix == ".bit":
        shutil.copy(source.with_suffix(".hwh"), tmp_path / "llama.hwh")
    path, good, rng = tmp_path / source.name, source.read_bytes(), random.Random(suffix)
    for number in range(150):
        bad = bytearray(good)
        # Every second one in the headers.
        bad[rng.randrange(4096 if number % 2 else len(bad))] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        with pytest.raises(OverlayMismatch, match=str(path)):
            EmulatedDevice(threads=1).level_of(path)
