"""Download a file of known size and hash: resumable, verified once complete.

Uses the standard library's urllib, which honours the usual proxy variables (``https_proxy``).
"""

from __future__ import annotations

import errno
import http.client
import re
import shutil
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from llama_pynq.errors import InstallError
from llama_pynq.utils.files import sha256_of

TIMEOUT_S = 30.0
"""Socket timeout: how long a server may be silent."""

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
        If the transfer fails, the disk is full, or the file has another size or hash.
    """
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
        If the file cannot be read, is longer than `most_bytes`, or a redirect leads to a URL
        that is not fetchable.
    """
    with _open(url, 0) as response:
        final = response.url
        if not is_fetchable(final):
            raise InstallError(f"{url} redirects to {final}, which is not https: it is not trusted")
        try:
            data: bytes = response.read(most_bytes + 1)
        except (OSError, http.client.HTTPException) as error:
            raise InstallError(f"{url} could not be read ({error}): try again") from error
    if len(data) > most_bytes:
        raise InstallError(f"{url} has more than {most_bytes} bytes: is it the right link?")
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
    request = Request(url, headers={"User-Agent": "llama_pynq"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        return urlopen(request, timeout=TIMEOUT_S)
    except HTTPError as error:
        error.close()
        if error.code == _RANGE_NOT_SATISFIABLE and start:
            return _open(url, 0)
        raise InstallError(
            f"{url} cannot be fetched: the server answered {error.code} {error.reason}"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, URLError) else error
        hint = "is this computer connected? Behind a proxy, set https_proxy"
        if url.lower().startswith("file:"):
            hint = "is it there, and may you read it?"
        elif isinstance(reason, ssl.SSLCertVerificationError):
            hint = "is this computer's clock right? A board without a battery starts in the past"
        raise InstallError(f"{url} cannot be fetched ({reason}): {hint}") from error


def _first_byte(response: Any) -> int:
    """Offset of a response in its file, as servers may ignore a range request; -1 if unknown."""
    if getattr(response, "status", None) != _PARTIAL_CONTENT:
        return 0
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(found.group(1)) if found else -1


def _transfer(url: str, part: Path, have: int, n_bytes: int, progress: Progress) -> None:
    response = _open(url, have)
    if _first_byte(response) not in (0, have):
        response.close()
        have, response = 0, _open(url, 0)
    with response:
        done = _first_byte(response)
        announced = response.headers.get("Content-Length")
        if announced is not None and done + int(announced) != n_bytes:
            raise InstallError(
                f"{url} has {done + int(announced)} bytes, not the {n_bytes} of its record: the "
                "file behind the link was changed. Tell whoever gave you the link"
            )
        progress(done, n_bytes)
        with part.open("ab" if done else "wb") as file:
            while block := _read(response, url, done, n_bytes):
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


def _read(response: Any, url: str, done: int, n_bytes: int) -> bytes:
    try:
        block: bytes = response.read1(_BLOCK)
        return block
    except (OSError, http.client.HTTPException) as error:
        raise _broken_off(url, done, n_bytes, str(error)) from error


def _broken_off(url: str, done: int, n_bytes: int, why: str) -> InstallError:
    return InstallError(
        f"{url}: the transfer stopped after {done} of {n_bytes} bytes ({why}). The partial file "
        "is kept: run the same command again to resume"
    )
