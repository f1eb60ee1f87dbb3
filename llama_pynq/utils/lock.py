"""File locks, and the device lock: one process at a time on a device.

PYNQ has no lock: two notebooks that load an overlay on one board corrupt each other. A lock is
an operating system's lock on an open file. The system releases it when the holder ends or
crashes, so no stale lock is left.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import sys
import tempfile
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from llama_pynq.errors import DeviceBusy, LlamaPynqError
from llama_pynq.utils.files import user_path

# Windows forbids reading a locked byte: lock one far behind the pid.
_LOCKED_BYTE = 1 << 30

if sys.platform == "win32":
    import msvcrt

    def _try_lock(handle: int) -> bool:
        os.lseek(handle, _LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(handle: int) -> None:
        os.lseek(handle, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _try_lock(handle: int) -> bool:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _unlock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_UN)


def _try_lock_twice(handle: int) -> bool:
    """Try again after a moment, which `FileLock.holder` of another process may take."""
    if _try_lock(handle):
        return True
    time.sleep(0.05)
    return _try_lock(handle)


def _unlock_and_close(handle: int) -> None:
    # Closing alone is not enough: a child just forked still has the file open.
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            _unlock(handle)
    finally:
        os.close(handle)


def lock_folder() -> Path:
    """Folder of the lock files: LLAMA_PYNQ_LOCKS, else one that all users of the machine share.

    Users share a board as well as processes do (Jupyter often runs as root), so the user's
    cache folder does not work.
    """
    if folder := os.environ.get("LLAMA_PYNQ_LOCKS"):
        return user_path(folder)
    # Every user must get the same folder: ignore the permissions and the TMPDIR of this one. In a
    # folder without the sticky bit any user could replace the locks of others.
    for shared in (Path("/run/lock"), Path("/tmp")):
        if shared.is_dir() and shared.stat().st_mode & _SHARED == _SHARED:
            return shared
    return Path(tempfile.gettempdir())


_SHARED = stat.S_IWOTH | stat.S_ISVTX
# No link is followed, and no FIFO waited for: another user may have put one at the lock's path.
_SAFELY = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_MOST_RECORD_BYTES, _MOST_PROGRAM = 4096, 200
_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device file",
    stat.S_IFBLK: "a device file",
}


class _Unusable(Exception):
    """What lies at a lock's path is no lock file; the message completes "is unusable"."""


def _open(path: Path) -> int:
    flags = os.O_RDWR | _SAFELY
    # In a sticky folder Linux may forbid O_CREAT on another user's file
    # (fs.protected_regular), so an existing file is opened without it.
    for _ in range(2):
        try:
            return os.open(path, flags)
        except FileNotFoundError:
            pass
        except PermissionError:
            return os.open(path, os.O_RDONLY | _SAFELY)
        try:
            handle = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            continue
        if hasattr(os, "fchmod"):
            os.fchmod(handle, 0o666)  # despite the umask: other users lock it too
        return handle
    return os.open(path, flags)


def _open_checked(path: Path, opened: Callable[[Path], int]) -> int:
    """Open the file at `path` if it can be a lock file; it is unchanged.

    Raises
    ------
    _Unusable
        If it is no regular file, has a second name, is another user's outside a sticky folder, or
        cannot be opened.
    OSError
        If there is none.
    """
    try:
        handle = opened(path)
    except OSError as error:
        if not os.path.lexists(path):
            raise  # the fault is its folder's
        raise _Unusable(_oddity(path) or error.strerror or str(error)) from error
    try:
        _check_file(handle, path)
    except BaseException:
        os.close(handle)
        raise
    return handle


def _oddity(path: Path) -> str | None:
    """What lies at a path instead of a regular file; None for one, or if it cannot be seen."""
    try:
        kind = _KINDS.get(stat.S_IFMT(path.lstat().st_mode))
    except OSError:
        return None
    return kind and f"it is {kind}, not a file of its own"


def _check_file(handle: int, path: Path) -> None:
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode):
        raise _Unusable(_oddity(path) or "it is no regular file")
    if found.st_nlink > 1:
        raise _Unusable("it is a hard link: the file has another name, too")
    if hasattr(os, "geteuid") and found.st_uid != os.geteuid():
        # Where users share a board, the first of them made the file. A sticky folder keeps others
        # from moving a foreign file there.
        if not path.parent.stat().st_mode & stat.S_ISVTX:
            raise _Unusable(f"it belongs to another user (uid {found.st_uid})")


def _check_content(handle: int) -> None:
    """Refuse a file that is not empty and was not written by a lock: locking would erase it."""
    os.lseek(handle, 0, os.SEEK_SET)
    content = os.read(handle, _MOST_RECORD_BYTES + 1)
    if len(content) > _MOST_RECORD_BYTES or not re.match(rb"[0-9]*(\n|\Z)", content):
        raise _Unusable("it holds something else than a lock does")


_held: weakref.WeakSet[FileLock] = weakref.WeakSet()


class FileLock:
    """A lock on a file, exclusive among the processes of this machine.

    Parameters
    ----------
    path : Path
        The lock file; created if missing, never removed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._close: weakref.finalize[[int], FileLock] | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._close is not None

    def acquire(self) -> None:
        """Take the lock, or fail at once.

        Raises
        ------
        LlamaPynqError
            If another process, or another lock in this process, holds it (a `DeviceLock` raises
            DeviceBusy), or if what lies at its path is no lock file: a link, a folder, another
            user's file outside a sticky folder, or a file of other content, which is unchanged.
        """
        if self.held:
            raise self._busy(os.getpid(), "")
        handle = self._opened(_open)
        # Before the file is locked: whenever Ctrl-C comes, a lock that nobody has is released.
        close = weakref.finalize(self, _unlock_and_close, handle)
        try:
            if not _try_lock_twice(handle):
                raise self._busy(*self._holder(handle))
            _check_content(handle)
            self._record(handle)
            _held.add(self)
            self._close = close
        except (_Unusable, OSError) as error:  # OSError: a file system without locks
            close()
            raise self._unusable(str(error), self.path) from error
        except BaseException:
            close()
            raise

    def release(self) -> None:
        """Release the lock; does nothing if it is not held."""
        # Keep the file: after its removal, two processes could lock two files of one name.
        close = self._close
        if close is not None:
            found = close.peek()
            if found is not None:
                # First: wherever Ctrl-C comes, the next call unlocks, or it is unlocked.
                with contextlib.suppress(OSError):
                    _unlock(found[2][0])
            close()
        self._close = None
        _held.discard(self)

    def _abandon(self) -> None:
        """Close the file in a forked child without unlocking: the lock is the parent's."""
        close, self._close = self._close, None
        if close is not None and (detached := close.detach()):
            os.close(detached[2][0])

    def holder(self) -> str | None:
        """Who holds the lock, as in "process 7858 (lesson.ipynb)"; None if nobody does.

        Raises
        ------
        LlamaPynqError
            If what lies at its path is no lock file, as for `acquire`.
        """
        if self.held:
            return _described(os.getpid(), _program())
        try:
            handle = self._opened(lambda path: os.open(path, os.O_RDONLY | _SAFELY), make=False)
        except FileNotFoundError:
            return None
        try:
            if not _try_lock(handle):
                return _described(*self._holder(handle))
            _unlock(handle)
            return None
        except OSError as error:
            raise self._unusable(str(error), self.path) from error
        finally:
            os.close(handle)

    def _opened(self, opened: Callable[[Path], int], make: bool = True) -> int:
        try:
            if make:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            return _open_checked(self.path, opened)
        except _Unusable as error:
            raise self._unusable(str(error), self.path) from error
        except FileNotFoundError:
            if make:
                raise self._unusable("its folder is gone", self.path.parent) from None
            raise
        except OSError as error:
            why = error.strerror or str(error)
            if isinstance(error, FileExistsError):  # mkdir's, for anything but a folder
                why = os.strerror(errno.ENOTDIR)
            raise self._unusable(why, self.path.parent) from error

    def __enter__(self) -> FileLock:
        self.acquire()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    @staticmethod
    def _holder(handle: int) -> tuple[int | None, str]:
        """Process id and program of the holder, as the file has them."""
        os.lseek(handle, 0, os.SEEK_SET)
        pid, _, program = os.read(handle, 4096).decode("utf-8", errors="replace").partition("\n")
        # Another account may have written it: nothing of it may move the terminal's cursor.
        number = int(pid) if re.fullmatch(r"[0-9]{1,10}", pid) else None
        return number, "".join(filter(str.isprintable, program))[:_MOST_PROGRAM]

    @staticmethod
    def _record(handle: int) -> None:
        try:
            os.ftruncate(handle, 0)
            os.lseek(handle, 0, os.SEEK_SET)
            record = f"{os.getpid()}\n{_program()}\n".encode(errors="replace")
            os.write(handle, record[:_MOST_RECORD_BYTES])
        except OSError:
            pass  # another user's file, opened read-only: the lock works without the pid

    def _busy(self, pid: int | None, program: str) -> LlamaPynqError:
        """Error for a lock that process `pid` holds; None if the holder is unknown."""
        raise NotImplementedError

    def _unusable(self, why: str, path: Path) -> LlamaPynqError:
        """Error for a lock file, or its folder, that cannot be used: `path`, and why."""
        raise NotImplementedError


def _program() -> str:
    """What the user knows this process by: its notebook if Jupyter names it, else the script."""
    return os.environ.get("JPY_SESSION_NAME") or (sys.argv[0] if sys.argv else "")


def _described(pid: int | None, program: str) -> str:
    holder = "a process whose id is unknown" if pid is None else f"process {pid}"
    return f"{holder} ({program})" if program else holder


class DeviceLock(FileLock):
    """A lock on a device, exclusive among the processes of this machine.

    Parameters
    ----------
    name : str
        The device's name (``device.name``).
    folder : Path, optional
        Folder of the lock file; default `lock_folder()`.

    Examples
    --------
    >>> with DeviceLock("pynq-z2"):
    ...     overlay = Overlay("llama.bit")
    """

    def __init__(self, name: str, folder: Path | None = None) -> None:
        self.name = name
        safe = re.sub(r"[^A-Za-z0-9_.-]", "_", name)
        super().__init__((folder or lock_folder()) / f"llama_pynq-{safe}.lock")

    def _busy(self, pid: int | None, program: str) -> DeviceBusy:
        if pid == os.getpid():
            return DeviceBusy(
                f"device {self.name} is in use by another overlay of this process "
                f"(pid {pid}). Close that overlay first: overlay.close()."
            ).held_by(pid)
        return DeviceBusy(
            f"device {self.name} is in use by {_described(pid, program)}. Shut that notebook or "
            "program down (in Jupyter: Running > Shut Down), then try again."
        ).held_by(pid)

    def _unusable(self, why: str, path: Path) -> LlamaPynqError:
        return LlamaPynqError(
            f"the lock of device {self.name} cannot be taken: {path} is unusable, {why}. Nothing "
            "was changed. Remove it (its owner, or root, can), or set LLAMA_PYNQ_LOCKS to a folder "
            "that all users of the device may write, with the sticky bit: chmod 1777"
        )


def _forget_in_child() -> None:
    """Close inherited lock files in a forked child, which would keep the parent's locks alive."""
    for lock in list(_held):
        lock._abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
