"""Downloads: cut connections, wrong files, full disks."""

import contextlib
import hashlib
import itertools
import os
import shutil
import socket
import ssl
import sys
import time
from collections import namedtuple
from urllib.error import URLError

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.file_server import serving
from support.raw_server import sending

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


# ---- servers that are broken, or hostile --------------------------------------------------


def answer(body: bytes, *headers: str, status: str = "200 OK") -> list[bytes]:
    head = "".join(f"{line}\r\n" for line in (f"HTTP/1.1 {status}", *headers))
    return [head.encode("latin-1") + b"\r\n" + body]


def both(url, tmp_path, message):
    """Neither a file of known size nor a small one: each time an error of the package's own."""
    sha256 = hashlib.sha256(b"12345").hexdigest()
    said = []
    for call in (
        lambda: download.fetch(url, tmp_path / "part", sha256, 5, lambda *_: None),
        lambda: download.read_small(url, 100),
    ):
        with pytest.raises(InstallError, match=message) as caught:
            call()
        text = str(caught.value)
        assert url in text and text.isprintable(), "one line, which moves no cursor"
        said.append(text)
    return said


@pytest.mark.parametrize(
    "length", ["-1", "-5", "five", "", "5, 5", "0x5", "1e3", "+5", "5_0", "9" * 5000, "٥"]
)
def test_length_that_is_none_is_refused(tmp_path, length):
    header = f"Content-Length: {length}".encode().decode("latin-1")
    with sending(answer(b"12345", header)) as url:
        both(url, tmp_path, r"bytes \(Content-Length\), which is no length")


@pytest.mark.parametrize("length", [0, 4, 6, 10**17])
def test_length_that_is_wrong_is_refused(tmp_path, length):
    with sending(answer(b"12345", f"Content-Length: {length}")) as url:
        sha256 = hashlib.sha256(b"12345").hexdigest()
        with pytest.raises(InstallError, match=f"has {length} bytes, not the 5 of its record"):
            download.fetch(url, tmp_path / "part", sha256, 5, lambda *_: None)
        if length > 5:
            with pytest.raises(InstallError, match=f"ended after 5 of {length} bytes"):
                download.read_small(url, 100)


@pytest.mark.parametrize(
    "range_",
    ["", "bytes", "bytes -3-4/5", "bytes x-4/5", f"bytes {'9' * 5000}-/5", "bytes ٣-4/5",
     "bytes 1-4/5", "bytes 3-\x07"],
)  # fmt: skip
def test_part_of_another_place_is_not_taken(tmp_path, range_):
    """A server that ignores or invents ranges: begin anew, and give up if that fails, too."""
    (tmp_path / "part").write_bytes(b"123")
    header = f"Content-Range: {range_}".encode().decode("latin-1")
    partial = answer(b"45", header, status="206 Partial Content")
    sha256 = hashlib.sha256(b"12345").hexdigest()

    def fetch(url):
        download.fetch(url, tmp_path / "part", sha256, 5, lambda *_: None)

    with sending(partial, answer(b"12345", "Content-Length: 5")) as url:
        if "3-\x07" in range_:
            fetch(url)  # what follows the offset is not needed: the hash is checked
            return
        fetch(url)
    assert (tmp_path / "part").read_bytes() == b"12345"
    (tmp_path / "part").write_bytes(b"123")
    with sending(partial) as url:
        with pytest.raises(InstallError, match="a part of the file that was not asked for"):
            fetch(url)
    assert (tmp_path / "part").read_bytes() == b"123"


@pytest.mark.parametrize(
    "target",
    ["file:///etc/passwd", "ftp://127.0.0.1/f", "http://example.invalid/f", "gopher://x/",
     "data:,12345", "http://[::1/f", "//example.invalid/f", "javascript:1", "FILE:/etc/passwd"],
)  # fmt: skip
@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirect_to_another_kind_of_place_is_refused(tmp_path, target, code):
    with sending(answer(b"", f"Location: {target}", status=f"{code} Moved")) as url:
        both(url, tmp_path, r"redirects to .*, which is not https|cannot be fetched \(")


def test_redirect_from_https_goes_to_https_only():
    handler = download.RedirectsToSafePlaces()
    request = download.Request("https://example.org/f")
    for target in ("http://127.0.0.1/f", "http://localhost/f", "file:///f", "http://example.org/f"):
        with pytest.raises(InstallError, match=f"redirects to {target}, which is not https"):
            handler.redirect_request(request, None, 302, "Found", {}, target)
    moved = handler.redirect_request(request, None, 302, "Found", {}, "https://example.com/g")
    assert moved.full_url == "https://example.com/g"


@pytest.mark.parametrize("length", [f"{10**22}", "-5", "x", "1000000000"])
def test_body_of_a_redirect_is_not_read(tmp_path, length):
    """However long its server says that it is."""
    moved = answer(b"12", "Location: /g", f"Content-Length: {length}", status="302 Found")
    sha256 = hashlib.sha256(b"12345").hexdigest()
    with sending(moved, answer(b"12345", "Content-Length: 5")) as url:
        download.fetch(url, tmp_path / "part", sha256, 5, lambda *_: None)
        assert download.read_small(url, 100)[0] == b"12345"
    assert (tmp_path / "part").read_bytes() == b"12345"


def test_trailers_without_end_are_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT_S", 0.5)
    monkeypatch.setattr(download, "GRACE_S", 0.5)
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n0\r\n"

    def pieces():
        yield head
        while True:
            yield b"A: b\r\n"
            time.sleep(0.01)

    class Endless:
        def __iter__(self):
            return pieces()

    with sending(Endless()) as url:
        assert download.read_small(url, 100)[0] == b"12345"
        sha256 = hashlib.sha256(b"12345").hexdigest()
        with pytest.raises(InstallError, match="the server is too slow: 5 bytes"):
            download.fetch(url, tmp_path / "part", sha256, 5, lambda *_: None)
        download.fetch(url, tmp_path / "part", sha256, 5, lambda *_: None)  # it has all of it


def test_redirects_in_a_circle_end(tmp_path):
    for location in ("/f", "f?again", ""):
        with sending(answer(b"", f"Location: {location}", status="302 Found")) as url:
            both(url, tmp_path, "cannot be fetched: the server answered 302")


@pytest.mark.parametrize(
    "pieces",
    [
        [b""],
        [b"HTTP/1.1 "],
        [b"\x00\xff" * 50 + b"\r\n\r\n"],
        [b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 500 + b"\r\n12345"],
        [b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n12345"],
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n12345"],
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n12345"],
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 20 + b"\r\n12345"],
        [b"HTTP/1.1 404 \x1b[2Jgone\r\n\r\n"],
        [b"HTTP/1.1 99999 odd\r\n\r\n"],
        [b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: odd\r\n\r\n"],
    ],
)
def test_answer_that_is_no_http_is_refused(tmp_path, pieces):
    with sending(pieces) as url:
        both(url, tmp_path, "cannot be fetched|could not be read|the transfer stopped")


def endless(piece=b"x" * 65536):
    yield b"HTTP/1.1 200 OK\r\n\r\n"
    while True:
        yield piece


def test_body_without_an_end_is_cut(tmp_path):
    with sending(endless()) as url:
        with pytest.raises(InstallError, match="has more than the 5 bytes of its record"):
            download.fetch(url, tmp_path / "part", "0" * 64, 5, lambda *_: None)
    with sending(endless()) as url:
        with pytest.raises(InstallError, match="has more than 100 bytes"):
            download.read_small(url, 100)


def slowly(data, pause=0.05):
    for byte in data:
        time.sleep(pause)
        yield bytes([byte])


def test_server_of_a_byte_a_second_is_given_up(tmp_path, monkeypatch):
    """It is never silent for `TIMEOUT_S`: the mean rate ends it."""
    monkeypatch.setattr(download, "GRACE_S", 0.3)
    head = answer(b"", "Content-Length: 100")
    sha256 = hashlib.sha256(bytes(100)).hexdigest()
    with sending(itertools.chain(head, slowly(bytes(100)))) as url:
        with pytest.raises(InstallError, match="stopped after .* is too slow: .* resume"):
            download.fetch(url, tmp_path / "part", sha256, 100, lambda *_: None)
    assert 0 < (tmp_path / "part").stat().st_size < 100
    with sending(itertools.chain(head, slowly(bytes(100)))) as url:
        with pytest.raises(InstallError, match="could not be read .*is too slow"):
            download.read_small(url, 100)


def test_headers_of_a_byte_a_second_are_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "ANSWER_S", 0.3)
    head = b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100
    for call in (
        lambda url: download.fetch(url, tmp_path / "part", "0" * 64, 5, lambda *_: None),
        lambda url: download.read_small(url, 100),
    ):
        with sending(slowly(head)) as url:
            with pytest.raises(InstallError, match=r"no complete answer within 0\.3 s"):
                call(url)


@pytest.mark.parametrize(
    "url",
    ["http://localhost:99999/f", "http://localhost:x/f", "http://127.0.0.1/\x01", "file:///\0",
     "http://127.0.0.1:1/ä b", "http://127.0.0.1:1/ä", "file:///etc", "file://elsewhere/f",
     "https://\ud800.org/"],
)  # fmt: skip
def test_url_that_is_none_is_refused(tmp_path, url):
    for call in (
        lambda: download.fetch(url, tmp_path / "part", "0" * 64, 5, lambda *_: None),
        lambda: download.read_small(url, 100),
    ):
        with pytest.raises(InstallError, match="cannot be fetched"):
            call()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_fifo_is_neither_read_nor_written(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InstallError, match="is it there, and may you read it"):
        download.read_small((tmp_path / "fifo").as_uri(), 5)
    with pytest.raises(InstallError, match=f"{tmp_path}/fifo is no regular file: remove it"):
        download.fetch("http://127.0.0.1:1/", tmp_path / "fifo", "0" * 64, 5, lambda *_: None)


@settings(max_examples=60, deadline=None)
@given(
    st.binary(max_size=80)
    | st.lists(
        st.sampled_from(
            [b"HTTP/1.1 ", b"200", b"206", b"302", b" OK", b"\r\n", b"\r\n\r\n", b"12345",
             b"Content-Length: ", b"Content-Range: bytes ", b"Location: ", b"/f", b"-", b"5",
             b"Transfer-Encoding: chunked", b"\0", b"\xff"]
        ),
        max_size=20,
    ).map(b"".join)
)  # fmt: skip
def test_any_answer_gives_the_file_or_the_packages_error(tmp_path_factory, data):
    part = tmp_path_factory.mktemp("parts") / "part"
    sha256 = hashlib.sha256(b"12345").hexdigest()
    with sending([data]) as url:
        try:
            download.fetch(url, part, sha256, 5, lambda *_: None)
        except InstallError as error:
            assert url in str(error)
        else:
            assert part.read_bytes() == b"12345"
        with contextlib.suppress(InstallError):
            assert len(download.read_small(url, 100)[0]) <= 100
