"""Download a file of known size and hash: resumable, verified once complete.

Uses the standard library's urllib, which honours the usual proxy variables (``https_proxy``).
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import re
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urljoin, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener, url2pathname

from llama_pynq.errors import InstallError
from llama_pynq.utils.files import sha256_of

TIMEOUT_S = 30.0
"""Socket timeout: how long a server may be silent."""
ANSWER_S = 120.0
"""How long a server may take until its answer's headers are complete, redirects included."""
GRACE_S = 60.0
LEAST_BYTES_PER_S = 4096
"""Slowest mean rate of a transfer; the first `GRACE_S` do not count."""

_BLOCK = 1 << 18
_MIB = 1 << 20
_RANGE_NOT_SATISFIABLE = 416
_PARTIAL_CONTENT = 206

Progress = Callable[[int, int], None]
"""Callback with bytes present and total bytes; first called before any byte arrives."""


def is_fetchable(url: str) -> bool:
    """Whether a URL is https, file, or http to localhost.

    A file is verified by its hash, whatever the transport. A record may itself be downloaded, and
    then only the transport authenticates it. Nobody can tamper with http to localhost, such as a
    tunnel or a local mirror.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        return False
    if parts.scheme == "http":
        return host in ("localhost", "127.0.0.1", "::1")
    return parts.scheme == "file" or (parts.scheme == "https" and bool(host))


def _safe_redirect(old: str, new: str) -> bool:
    """Whether a redirect keeps to places as trustworthy as the link: https, or this computer."""
    target = urlsplit(new).scheme
    if urlsplit(old).scheme == "https":
        return target == "https" and is_fetchable(new)
    return target in ("http", "https") and is_fetchable(new)


class _Unread:
    """A response whose body is not read: urllib reads all of a redirect's, of whatever length."""

    def __init__(self, response: Any) -> None:
        self._response = response

    def read(self, *_: Any) -> bytes:
        return b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._response, name)


class RedirectsToSafePlaces(HTTPRedirectHandler):
    """Follows redirects, but none to another kind of place."""

    def redirect_request(
        self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Request | None:
        if not _safe_redirect(req.full_url, newurl):
            raise InstallError(
                f"{req.full_url} redirects to {_shown(newurl)}, which is not https: it is not "
                "trusted"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)

    def http_error_302(self, req: Request, fp: Any, code: int, msg: str, headers: Any) -> Any:
        # urllib refuses a redirect to file: and the like itself, in words of its own.
        target = headers.get("Location") or headers.get("URI")
        if target is not None:
            full = urljoin(req.full_url, target)
            if not _safe_redirect(req.full_url, full):
                self.redirect_request(req, fp, code, msg, headers, full)
        return super().http_error_302(req, _Unread(fp), code, msg, headers)  # type: ignore[arg-type]

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def urlopen(request: Request, timeout: float) -> Any:
    """Open a URL as `urllib.request.urlopen` does, within `ANSWER_S`, with safe redirects.

    Parameters
    ----------
    request : Request
    timeout : float
        How long the server may be silent, seconds.

    Raises
    ------
    TimeoutError
        If the headers take longer: a server that sends a byte now and then never is silent.
    """
    answer: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()

    def ask() -> None:
        try:
            answer.put((build_opener(RedirectsToSafePlaces).open(request, timeout=timeout), None))
        except BaseException as error:
            answer.put((None, error))

    threading.Thread(target=ask, name="llama_pynq-download", daemon=True).start()
    try:
        response, error = answer.get(timeout=ANSWER_S)
    except Empty:
        raise TimeoutError(f"no complete answer within {ANSWER_S:g} s") from None
    if error is not None:
        raise error
    return response


class _Pace:
    """Watches that a transfer keeps its least mean rate, so that it ends in bounded time."""

    def __init__(self) -> None:
        self._start, self._got = time.monotonic(), 0

    def read(self, response: Any) -> bytes:
        """Read a part; end the connection if the time is over, whatever the server sends.

        A response's trailers may go on for ever inside of one read.
        """
        seconds = time.monotonic() - self._start
        left = GRACE_S + self._got / LEAST_BYTES_PER_S - seconds + TIMEOUT_S
        watch = threading.Timer(max(left, 0.1), _shut, [response])
        watch.daemon = True
        watch.start()
        try:
            return bytes(response.read1(_BLOCK))
        finally:
            watch.cancel()

    def add(self, n_bytes: int) -> None:
        """Count bytes received.

        Raises
        ------
        TimeoutError
            If the rate is too low.
        """
        self._got += n_bytes
        seconds = time.monotonic() - self._start
        if seconds > GRACE_S + self._got / LEAST_BYTES_PER_S:
            raise TimeoutError(f"the server is too slow: {self._got} bytes in {seconds:.0f} s")


def _shut(response: Any) -> None:
    """End the connection under a response that another thread reads."""
    with contextlib.suppress(OSError, AttributeError, ValueError):  # a file: has no connection
        with socket.socket(fileno=os.dup(response.fileno())) as connection:
            connection.shutdown(socket.SHUT_RDWR)


def _shown(text: object) -> str:
    """What a server said, in one line of printable characters."""
    line = " ".join(str(text).split())
    return "".join(filter(str.isprintable, line))[:200]


def fetch(url: str, part: Path, sha256: str, n_bytes: int, progress: Progress) -> None:
    """Download a file, resuming from the partial file at `part`.

    An interrupted transfer keeps the partial file for the next call. A complete file of another
    hash is deleted: resuming could not repair it.

    Parameters
    ----------
    url : str
        See `is_fetchable`.
    part : Path
        Destination; its folder must exist.
    sha256 : str
        SHA-256 of the whole file, in lower-case hexadecimal.
    n_bytes : int
        Size of the whole file.
    progress : callable

    Raises
    ------
    InstallError
        If the transfer fails or is too slow, the disk is full, or the file has another size or
        hash.
    """
    if part.is_dir() or part.is_fifo() or part.is_socket():
        raise InstallError(f"{part} is no regular file: remove it, and run the command again")
    have = part.stat().st_size if part.exists() else 0
    if have > n_bytes:
        have = 0
    if have < n_bytes or n_bytes == 0:
        _check_room(part.parent, n_bytes - have)
        _transfer(url, part, have, n_bytes, progress)
    else:
        progress(n_bytes, n_bytes)
    if (found := sha256_of(part)) != sha256:
        part.unlink()
        raise InstallError(
            f"the file from {url} has the wrong checksum: its sha256 is {found}, expected "
            f"{sha256}. It was deleted. Run the command again; if the error persists, the file "
            "behind the link was changed: tell whoever gave you the link"
        )


def read_small(url: str, most_bytes: int) -> tuple[bytes, str]:
    """Read a small file; return its content and the final URL after redirects.

    Raises
    ------
    InstallError
        If the file cannot be read, is longer than `most_bytes`, comes too slowly, or a redirect
        leads to a place that is not trusted.
    """
    with _open(url, 0) as response:
        final = response.url
        announced = _announced(url, response)
        data, pace = b"", _Pace()
        try:
            while len(data) <= most_bytes and (block := pace.read(response)):
                data += block
                pace.add(len(block))
        except _FAILURES as error:
            raise InstallError(f"{url} could not be read ({_shown(error)}): try again") from error
    if len(data) > most_bytes:
        raise InstallError(f"{url} has more than {most_bytes} bytes: is it the right link?")
    if announced not in (None, len(data)):
        raise InstallError(
            f"{url} could not be read (it ended after {len(data)} of {announced} bytes): try again"
        )
    return data, final


def _check_room(folder: Path, n_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        raise _no_room(folder, f"{n_bytes / _MIB:.1f} MiB more are needed, {free / _MIB:.1f} free")


def _no_room(folder: Path, why: str) -> InstallError:
    return InstallError(
        f"no room left in {folder} ({why}): make room, or set LLAMA_PYNQ_OVERLAYS to a folder on "
        "another disk, and run the command again"
    )


def _open(url: str, start: int) -> Any:
    """Request a URL from byte `start` on; return the response."""
    try:
        request = Request(url, headers={"User-Agent": "llama_pynq"})
        if start:
            request.add_header("Range", f"bytes={start}-")
        if request.type == "file" and not os.path.isfile(url2pathname(urlsplit(url).path)):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return urlopen(request, timeout=TIMEOUT_S)
    except HTTPError as error:
        error.close()
        if error.code == _RANGE_NOT_SATISFIABLE and start:
            return _open(url, 0)
        raise InstallError(
            f"{url} cannot be fetched: the server answered {error.code} {_shown(error.reason)}"
        ) from error
    except _FAILURES as error:
        reason = error.reason if isinstance(error, URLError) else error
        hint = "is this computer connected? Behind a proxy, set https_proxy"
        if url.lower().startswith("file:"):
            hint = "is it there, and may you read it?"
        elif isinstance(reason, ssl.SSLCertVerificationError):
            hint = "is this computer's clock right? A board without a battery starts in the past"
        raise InstallError(f"{url} cannot be fetched ({_shown(reason)}): {hint}") from error


_FAILURES = (OSError, http.client.HTTPException, ValueError)
_NUMBER = r"[0-9]{1,18}"


def _announced(url: str, response: Any) -> int | None:
    """Bytes that the response announces; None if it does not say.

    Raises
    ------
    InstallError
        If it announces something else than a number.
    """
    text = response.headers.get("Content-Length")
    if text is None:
        return None
    if not re.fullmatch(_NUMBER, text.strip()):
        raise InstallError(
            f"{url} cannot be fetched: the server announces {_shown(text)!r} bytes "
            "(Content-Length), which is no length. Is it the right link?"
        )
    return int(text)


def _first_byte(response: Any) -> int:
    """Offset of a response in its file, as servers may ignore a range request; -1 if unknown."""
    if getattr(response, "status", None) != _PARTIAL_CONTENT:
        return 0
    found = re.match(rf"bytes ({_NUMBER})-", response.headers.get("Content-Range", ""))
    return int(found.group(1)) if found else -1


def _transfer(url: str, part: Path, have: int, n_bytes: int, progress: Progress) -> None:
    response = _open(url, have)
    if _first_byte(response) not in (0, have):
        response.close()
        have, response = 0, _open(url, 0)
    with response:
        done = _first_byte(response)
        if done not in (0, have):
            raise InstallError(
                f"{url} cannot be fetched: the server sends a part of the file that was not asked "
                f"for (Content-Range: {_shown(response.headers.get('Content-Range'))})"
            )
        announced = _announced(url, response)
        if announced is not None and done + announced != n_bytes:
            raise InstallError(
                f"{url} has {done + announced} bytes, not the {n_bytes} of its record: the "
                "file behind the link was changed. Tell whoever gave you the link"
            )
        progress(done, n_bytes)
        pace = _Pace()
        with part.open("ab" if done else "wb") as file:
            while block := _read(response, pace, url, done, n_bytes):
                done += len(block)
                if done > n_bytes:
                    break
                try:
                    file.write(block)
                    file.flush()
                except OSError as error:
                    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                        raise
                    raise _no_room(part.parent, str(error.strerror)) from error
                progress(done, n_bytes)
    if done > n_bytes:
        part.unlink()
        raise InstallError(
            f"{url} has more than the {n_bytes} bytes of its record: the file behind the link was "
            "changed. Tell whoever gave you the link"
        )
    if done < n_bytes:
        raise _broken_off(url, done, n_bytes, "the connection ended")


def _read(response: Any, pace: _Pace, url: str, done: int, n_bytes: int) -> bytes:
    try:
        block: bytes = pace.read(response)
        pace.add(len(block))
        return block
    except _FAILURES as error:
        raise _broken_off(url, done, n_bytes, _shown(error)) from error


def _broken_off(url: str, done: int, n_bytes: int, why: str) -> InstallError:
    return InstallError(
        f"{url}: the transfer stopped after {done} of {n_bytes} bytes ({why}). The partial file "
        "is kept: run the same command again to resume"
    )
