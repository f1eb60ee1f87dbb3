"""Reads of a file that is open for a while: a cut, or a change after it was hashed, is an error."""

from __future__ import annotations

import hashlib
import threading
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from llama_pynq.errors import CheckpointError

if TYPE_CHECKING:
    from hashlib import _Hash

# A read hashes the blocks that it touches, and each block keeps a state of some 200 bytes.
_LEAST_BLOCK_BYTES, _MOST_BLOCKS = 1 << 17, 1 << 14
_READ_BYTES = 1 << 20  # short enough for any system's read


class SteadyFile:
    """A file that is read in parts, by plain reads: a mapped file that is cut short ends a process.

    What was hashed is what is read: `sha256` keeps its state at every block, and every later read
    goes on from there and must reach the next state.

    Parameters
    ----------
    path : Path
        For messages.
    file : BinaryIO
        Open for reading, unbuffered; this object owns it.
    head : bytes
        The start of the file as it was read already.
    n_bytes : int
        Size of the file.
    """

    def __init__(self, path: Path, file: BinaryIO, head: bytes, n_bytes: int) -> None:
        self._path, self._file, self._head, self._n_bytes = path, file, head, n_bytes
        self._lock = threading.Lock()
        self._states: list[_Hash] = []  # before each block, and after the last
        self._block_bytes = max(_LEAST_BLOCK_BYTES, -(-n_bytes // _MOST_BLOCKS))

    @property
    def closed(self) -> bool:
        return self._file.closed

    def close(self) -> None:
        """Close the file; closing again does nothing."""
        self._file.close()

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the file's content, as hex.

        Raises
        ------
        CheckpointError
            If the file has shrunk, or starts otherwise than when it was opened.
        """
        digest = hashlib.sha256()
        states = [digest.copy()]
        block = self._new_block()
        for at in range(0, self._n_bytes, self._block_bytes):
            part = block[: self._n_bytes - at]
            with self._lock:
                self._fill(part, at)
            head = self._head[at : at + len(part)]
            if part[: len(head)] != head:
                raise self._changed(at)
            digest.update(part)
            states.append(digest.copy())
        self._states = states
        return digest.hexdigest()

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill a writable view of bytes from the file.

        Raises
        ------
        CheckpointError
            If the file has shrunk, was changed since it was hashed, or is closed.
        """
        if self.closed:
            raise CheckpointError(f"{self._path} is closed: open it again with load_checkpoint()")
        with self._lock:
            if not self._states:
                self._fill(view, offset)
                return
            end, scratch = offset + len(view), None
            first = offset // self._block_bytes * self._block_bytes
            for at in range(first, end, self._block_bytes):
                size = min(self._block_bytes, self._n_bytes - at)
                if offset <= at and at + size <= end:
                    block = view[at - offset : at - offset + size]
                    self._fill(block, at)
                else:  # the read has a part of this block
                    scratch = scratch or self._new_block()
                    block = scratch[:size]
                    self._fill(block, at)
                    begin, stop = max(at, offset), min(at + size, end)
                    view[begin - offset : stop - offset] = block[begin - at : stop - at]
                self._compare(block, at)

    def _new_block(self) -> memoryview:
        return memoryview(bytearray(min(self._block_bytes, self._n_bytes)))

    def _compare(self, block: memoryview, at: int) -> None:
        """Raise unless the block at byte `at` is the one that was hashed."""
        index = at // self._block_bytes
        state = self._states[index].copy()
        state.update(block)
        if state.digest() != self._states[index + 1].digest():
            raise self._changed(at)

    def _fill(self, view: memoryview, offset: int) -> None:
        self._file.seek(offset)
        done = 0
        while done < len(view):
            part = view[done : done + _READ_BYTES]
            n = self._file.readinto(part)  # type: ignore[attr-defined]
            if not n:
                raise CheckpointError(
                    f"{self._path} now ends at or before byte {offset + done} of "
                    f"{self._n_bytes}: it changed since it was opened; load it again"
                )
            done += n

    def _changed(self, at: int) -> CheckpointError:
        end = min(at + self._block_bytes, self._n_bytes)
        return CheckpointError(
            f"{self._path} was changed while it was read, between bytes {at} and {end}: load it "
            "again once it is written"
        )
