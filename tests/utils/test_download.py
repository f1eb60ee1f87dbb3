"""Downloads: cut connections, wrong files, full disks."""

import hashlib
import os
import shutil
import socket
import ssl
import sys
from collections import namedtuple
from urllib.error import URLError

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.file_server import serving

from llama_pynq.errors import InstallError
from llama_pynq.utils import download

DATA = bytes(range(256)) * 4000  # longer than one block


@pytest.fixture
def server():
    with serving() as server:
        server.files["f"] = DATA
        yield server


@pytest.fixture
def fetch(server, tmp_path):
    """Fetch `DATA` from the server by hash and length; returns the progress messages."""

    def call(url=f"{server.url}/f", part=tmp_path / "part"):
        said = []
        sha256 = hashlib.sha256(DATA).hexdigest()
        download.fetch(url, part, sha256, len(DATA), lambda *told: said.append(told))
        return said

    return call


def refused(fetch, message, *args):
    with pytest.raises(InstallError, match=message) as caught:
        fetch(*args)
    return str(caught.value)


def test_fetch_gives_the_file_and_tells_how_far_it_is(fetch, server, tmp_path):
    said = fetch()
    assert (tmp_path / "part").read_bytes() == DATA
    assert said[0] == (0, len(DATA)) and said[-1] == (len(DATA), len(DATA))
    assert said == sorted(said) and len(said) > 2
    assert server.log == [None]


def test_fetch_cut_goes_on_where_it_broke_off(fetch, server, tmp_path):
    server.cuts = [300_000]
    message = refused(fetch, r"stopped after 300000 of 1024000 bytes \(the connection ended\)")
    assert message.endswith("The partial file is kept: run the same command again to resume")
    assert (tmp_path / "part").read_bytes() == DATA[:300_000]
    assert fetch()[0] == (300_000, len(DATA))
    assert (tmp_path / "part").read_bytes() == DATA
    assert server.log == [None, "bytes=300000-"]


def test_fetch_cut_goes_on_where_a_link_leads(fetch, server, tmp_path):
    server.moved["m"] = f"{server.url}/f"
    (tmp_path / "part").write_bytes(DATA[:1000])
    assert fetch(f"{server.url}/m")[0] == (1000, len(DATA))
    assert server.log == ["bytes=1000-"] * 2


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 5000), max_size=6), st.binary(max_size=5000), st.booleans())
def test_fetch_cut_anywhere_ends_with_the_file(tmp_path_factory, cuts, data, ranges):
    part = tmp_path_factory.mktemp("parts") / "part"
    sha256 = hashlib.sha256(data).hexdigest()
    with serving() as server:
        server.files["f"], server.cuts, server.ranges = data, list(cuts), ranges
        for _ in range(len(cuts) + 1):
            try:
                download.fetch(f"{server.url}/f", part, sha256, len(data), lambda *_: None)
            except InstallError as error:
                assert "the transfer stopped" in str(error)
    assert part.read_bytes() == data


def test_fetch_complete_part_makes_no_request(fetch, server, tmp_path):
    (tmp_path / "part").write_bytes(DATA)
    assert fetch() == [(len(DATA), len(DATA))]
    assert server.log == []


@pytest.mark.parametrize(("ranges", "shift"), [(False, 0), (True, 5)])
def test_fetch_server_that_does_not_resume_begins_anew(fetch, server, tmp_path, ranges, shift):
    (tmp_path / "part").write_bytes(DATA[:1000])
    server.ranges, server.shift = ranges, shift
    assert fetch()[0] == (0, len(DATA))
    assert (tmp_path / "part").read_bytes() == DATA


def test_fetch_wrong_file_is_deleted(fetch, server, tmp_path):
    server.files["f"] = DATA[::-1]
    message = refused(fetch, "/f has the wrong checksum: its sha256 is ")
    assert "It was deleted. Run the command again; if the error persists" in message
    assert not (tmp_path / "part").exists()


def test_fetch_damaged_part_is_deleted_and_the_next_is_right(fetch, tmp_path):
    (tmp_path / "part").write_bytes(b"x" * 1000)
    refused(fetch, "its sha256 is")
    fetch()
    assert (tmp_path / "part").read_bytes() == DATA


def test_fetch_longer_part_begins_anew(fetch, tmp_path):
    (tmp_path / "part").write_bytes(DATA + b"x")
    fetch()
    assert (tmp_path / "part").read_bytes() == DATA


@pytest.mark.parametrize("length", [5, 2_000_000])
def test_fetch_file_of_another_length_is_named_before_it_comes(fetch, server, tmp_path, length):
    (tmp_path / "part").write_bytes(DATA[:1000])
    server.files["f"] = bytes(length)
    refused(fetch, f"/f has {length} bytes, not the 1024000 of its record")
    assert (tmp_path / "part").read_bytes() == DATA[:1000], "another server may complete it"


def test_fetch_file_without_a_length_that_is_longer_is_not_kept(fetch, server, tmp_path):
    server.lengths, server.files["f"] = False, DATA + DATA
    refused(fetch, "/f has more than the 1024000 bytes of its record")
    assert not (tmp_path / "part").exists()


def test_fetch_missing_file_says_what_the_server_said(fetch, server):
    refused(fetch, "/g cannot be fetched: the server answered 404 Not Found", f"{server.url}/g")


def test_fetch_without_network_asks_for_it(fetch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/f"
    refused(fetch, r"cannot be fetched \(.*refused\): is this computer connected\?", url)


def test_fetch_certificate_of_the_future_hints_at_the_clock(fetch, monkeypatch):
    def fail(*args, **kwargs):
        raise URLError(ssl.SSLCertVerificationError(1, "certificate is not yet valid"))

    monkeypatch.setattr(download, "urlopen", fail)
    refused(fetch, "not yet valid.*is this computer's clock right", "https://example.org/f")


def test_fetch_takes_a_file_of_this_computer(fetch, tmp_path):
    (tmp_path / "original").write_bytes(DATA)
    fetch((tmp_path / "original").as_uri())
    assert (tmp_path / "part").read_bytes() == DATA
    refused(fetch, "cannot be fetched", (tmp_path / "none").as_uri(), tmp_path / "other")


def test_fetch_without_room_is_refused_before_it_begins(fetch, server, monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")(0, 0, 1 << 19)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    message = refused(fetch, r"no room left in .* \(1.0 MiB more are needed, 0.5 free\)")
    assert "set LLAMA_PYNQ_OVERLAYS to a folder on another disk" in message
    assert server.log == []
    (tmp_path / "part").write_bytes(DATA[:600_000])  # only the rest needs space
    fetch()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_fetch_disk_that_fills_up_is_named(fetch, tmp_path):
    (tmp_path / "part").symlink_to("/dev/full")
    refused(fetch, r"no room left in .* \(No space left on device\): make room")


def test_small_file_is_read_and_its_size_limited(server):
    server.files["s"] = b"12345"
    server.moved["m"] = f"{server.url}/s"
    assert download.read_small(f"{server.url}/m", 5) == (b"12345", f"{server.url}/s")
    with pytest.raises(InstallError, match="/s has more than 4 bytes: is it the right link"):
        download.read_small(f"{server.url}/s", 4)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere 127.0.0.2 is not this computer")
def test_small_file_of_an_untrusted_place_is_refused():
    with serving("0.0.0.0") as server:
        server.files["s"] = b"1"
        elsewhere = f"http://127.0.0.2:{server.server_address[1]}/s"
        server.moved["m"] = elsewhere
        with pytest.raises(InstallError, match=f"/m redirects to {elsewhere}, which is not https"):
            download.read_small(f"{server.url}/m", 5)


def test_file_that_is_not_there_is_no_matter_of_proxies(tmp_path):
    with pytest.raises(InstallError, match="is it there, and may you read it") as error:
        download.fetch(
            (tmp_path / "none").as_uri(), tmp_path / "part", "0" * 64, 4, lambda *_: None
        )
    assert "proxy" not in str(error.value)
