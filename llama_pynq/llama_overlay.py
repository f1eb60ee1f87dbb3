"""The overlay: find a device, lock it, load the kernel, and hand over the driver."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import warnings
import weakref
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pynq
from pynq.pl_server.device import Device

from llama_pynq.driver import LlamaDriver
from llama_pynq.emulation.build import emulated_overlay
from llama_pynq.engine.llama import Llama
from llama_pynq.engine.results import Generation, StreamToken
from llama_pynq.errors import (
    DeviceBusy,
    OverlayMismatch,
    RequestError,
)
from llama_pynq.kernel.registers import IP_NAME, VLNV, VLNVS
from llama_pynq.overlay_store.clocks import set_clocks
from llama_pynq.overlay_store.devices import (
    active,
    describe_device,
    find_device,
    is_emulated,
    lock_device,
    lock_paths,
)
from llama_pynq.overlay_store.record import OverlayRecord
from llama_pynq.overlay_store.search import overlay_file, overlay_for, record_of
from llama_pynq.utils.html import facts_table
from llama_pynq.utils.signature import delegates_to

_open: weakref.WeakSet[LlamaOverlay] = weakref.WeakSet()
_process = os.getpid()


@atexit.register
def _close_all() -> None:
    """End calls before the memory that they write is returned to the system."""
    if os.getpid() == _process:  # a forked child has copies, and the devices are its parent's
        for overlay in list(_open):
            with contextlib.suppress(Exception):
                overlay.close()


def _not_ours(path: Path, ip_dict: dict[str, Any]) -> OverlayMismatch:
    found = ", ".join(f"{name} ({ip['type']})" for name, ip in ip_dict.items())
    return OverlayMismatch(
        f"{path} is not an overlay of llama_pynq: it has no IP of type {VLNV}, only "
        f"{found or 'none'}"
    )


def _close_older(device: Device, path: Path) -> None:
    """Close this process's overlay on the same device, as when a notebook's cell is run again.

    Raises
    ------
    DeviceBusy
        If a text of the older overlay is unfinished.
    OverlayMismatch
        If the new overlay's file is none of this package: the older overlay stays.
    """
    paths = lock_paths(device)
    for older in list(_open):
        if older.lock_path not in paths:
            continue
        if older.closed:
            older.close()  # whose close() an interrupt ended
            continue
        model = older.llama.loaded_model
        if older.llama.running or (model is not None and model.slots.in_use):
            raise DeviceBusy(
                f"device {device.name} is in use by another overlay of this process, and a "
                "generate() or stream() of it is unfinished. Finish or close() that text, or close "
                "the overlay: overlay.close()"
            )
        ips = device.get_bitfile_metadata(str(path)).ip_dict
        if ips.get(IP_NAME, {}).get("type") not in VLNVS:
            raise _not_ours(path, ips)
        if model is not None:
            warnings.warn(
                f"closed the older LlamaOverlay on {device.name}, which held a model, for this one",
                stacklevel=3,
            )
        older.close()


class LlamaOverlay(pynq.Overlay):
    """The accelerator on a device, ready for a model.

    Parameters
    ----------
    bitfile_name : str or Path, optional
        Default: the overlay for the device; for a board, the first that `overlay_store.search`
        finds. PYNQ looks up a bare name.
    device : pynq.Device, optional
        Default: the first board found, else the emulated device; `describe` says which. A board
        on the network that runs PYNQ.remote's image:
        ``pynq.pl_server.remote_device.RemoteDevice(ip_addr="192.168.2.99")``. The device's lock
        excludes other processes of this computer, but not those of other computers.
    **kwargs
        For `pynq.Overlay`.

    Attributes
    ----------
    llama : LlamaDriver

    Raises
    ------
    DeviceBusy
        If another process uses the device, or a text of this process's older overlay on it is
        unfinished. Otherwise the older overlay is closed. An emulated device without a name gives
        way: it takes a name of its own.
    OverlayNotFound
        If there is no file of that name.
    OverlayMismatch
        If the overlay is not llama_pynq's or of another version, or if there is none for this
        board; the message then has the command that fetches or builds one.

    Examples
    --------
    >>> with LlamaOverlay() as overlay:
    ...     overlay.load_model()
    ...     print(overlay.generate("Once upon a time", seed=1).text)
    """

    def __init__(
        self,
        bitfile_name: str | Path | None = None,
        device: Device | None = None,
        **kwargs: Any,
    ) -> None:
        if device is None:
            device = find_device()
        if bitfile_name is None:
            bitfile_name = emulated_overlay() if is_emulated(device) else overlay_for(device)
        path = overlay_file(bitfile_name, device)
        _close_older(device, path)
        self._device_lock = lock_device(device)
        self._opened, self._has_driver, self._closing, self._clock_note = False, False, False, ""
        self._clock_mhz: float | None = None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                super().__init__(str(path), device=device, **kwargs)
            description = self.ip_dict.get(IP_NAME)
            if description is None or not isinstance(self.llama, LlamaDriver):
                raise _not_ours(path, self.ip_dict)
            self._has_driver = True
            self._limits = self.llama.limits
            self._record = record_of(Path(self.bitfile_name))
        except BaseException:
            try:
                with contextlib.suppress(Exception):  # the IP may be missing or a foreign one
                    self.llama.close()  # its buffers are kept if the kernel hangs
            finally:
                self._give_back()
            raise
        _open.add(self)

    @property
    def lock_path(self) -> Path:
        """The lock file that keeps other processes off the device."""
        return self._device_lock.path

    @property
    def is_board(self) -> bool:
        """Whether this is hardware, and not the emulated device."""
        return not is_emulated(self.device)

    @property
    def clock_mhz(self) -> float:
        """The kernel's clock: on a Zynq as set, else as built, else as configured.

        On the emulated device, the clock of its time stamps.
        """
        if self._clock_mhz is not None:
            return self._clock_mhz
        built = self._record.clock_mhz if self._record is not None and self.is_board else None
        return built or self._limits.clock_mhz

    @property
    def record(self) -> OverlayRecord | None:
        """The file's record: origin, tools, measurements; None if it has no record."""
        return self._record

    def describe(self) -> str:
        """One line: the device, whether it is emulated, and the kernel's board.

        On a board also the overlay's file, and whether that file was ever measured.
        """
        text = f"{describe_device(self.device)}, kernel {self._limits.board}"
        if not self.is_board:
            return text
        measured = self._record.measured if self._record is not None else None
        return (
            f"{text}{self._clock_note}, overlay {Path(self.bitfile_name).name} "
            f"({f'measured: {measured}' if measured else 'not known to be measured'})"
        )

    def __repr__(self) -> str:
        model = self.llama.loaded_model if not self.closed else None
        state = "closed" if self.closed else repr(model) if model is not None else "no model"
        return f"LlamaOverlay({describe_device(self.device)}; {state})"

    def _repr_html_(self) -> str:
        if self.closed:
            return facts_table("LlamaOverlay", {"state": "closed"})
        model = self.llama.loaded_model
        loaded = model.facts if model is not None else {"model": "none: call load_model()"}
        return facts_table("LlamaOverlay", {"runs on": self.describe(), **loaded})

    # ---- the driver's methods --------------------------------------------------------

    @delegates_to(LlamaDriver.load_model)
    def load_model(self, *args: Any, **kwargs: Any) -> Llama:
        return self.llama.load_model(*args, **kwargs)

    @delegates_to(Llama.generate)
    def generate(
        self, *args: Any, **kwargs: Any
    ) -> Generation | list[Generation] | list[list[Generation]]:
        return self.llama.generate(*args, **kwargs)

    @delegates_to(Llama.stream)
    def stream(self, *args: Any, **kwargs: Any) -> Iterator[str]:
        return self.llama.stream(*args, **kwargs)

    @delegates_to(Llama.stream_tokens)
    def stream_tokens(self, *args: Any, **kwargs: Any) -> Generator[StreamToken, None, None]:
        return self.llama.stream_tokens(*args, **kwargs)

    @delegates_to(Llama.chat)
    def chat(self, *args: Any, **kwargs: Any) -> Generation:
        return self.llama.chat(*args, **kwargs)

    @delegates_to(Llama.stream_chat)
    def stream_chat(self, *args: Any, **kwargs: Any) -> Iterator[str]:
        return self.llama.stream_chat(*args, **kwargs)

    @delegates_to(Llama.logits)
    def logits(self, *args: Any, **kwargs: Any) -> np.ndarray:
        return self.llama.logits(*args, **kwargs)

    # ---- life ------------------------------------------------------------------------

    def reset(self) -> None:
        """Download the overlay again, as after a hung kernel, and reload the model.

        Texts that are unfinished end with an error. After Ctrl-C inside of it, call it again.
        """
        self._check_open()
        self.llama.reset(self._program)
        self._limits = self.llama.limits

    def download(self, *args: Any, **kwargs: Any) -> None:
        """As in PYNQ, but only with the device locked. A loaded model is lost: see `reset`.

        Parameters
        ----------
        *args, **kwargs
            For `pynq.Overlay.download`.
        """
        self._check_open()
        if self._has_driver:
            self.llama.forget(lambda: self._program(*args, **kwargs))
        else:  # PYNQ's constructor: there is no driver yet
            self._program(*args, **kwargs)

    def _program(self, *args: Any, **kwargs: Any) -> None:
        """Download the overlay; the driver holds the device meanwhile."""
        self._clock_mhz, self._clock_note = None, ""
        with active(self.device):
            if self.device.has_capability("REMOTE"):
                self._send_bitstream()
            with warnings.catch_warnings():
                # `describe` reports the clock that was set.
                warnings.filterwarnings("ignore", "Setting frequency to the closest", UserWarning)
                super().download(*args, **kwargs)
                self._clock_mhz, self._clock_note = set_clocks(self)
        description = self.ip_dict.get(IP_NAME, {})
        if self._opened and "index" in description:
            # XRT's download closes the context that keeps others from programming the card.
            self.device.open_context(description)
        self._opened = True

    def _send_bitstream(self) -> None:
        """Copy the bitstream to a remote board under a name that contains its hash.

        PYNQ takes a file of the same name on the board for the same file, even if it is of an older
        build or truncated.
        """
        data = self.parser.bin_data
        name = f"{IP_NAME}-{hashlib.sha256(data).hexdigest()[:16]}.bin"
        path, whole = f"/lib/firmware/{name}", f"/lib/firmware/{name}.whole"
        if not self.device.exists_file(whole).exists:
            self.device.write_file(path, data)
            self.device.write_file(whole, b"1")
        self.binfile_name = name

    @property
    def closed(self) -> bool:
        """Whether `close` was called, or opening failed."""
        return self._closing or not self._device_lock.held

    def _check_open(self) -> None:
        if self.closed:
            raise RequestError("the overlay is closed: open it again, LlamaOverlay()")

    def free(self) -> None:
        """Close the overlay, and free it as PYNQ does."""
        self.close()
        super().free()

    def close(self) -> None:
        """Free the buffers and release the device; may be called twice, as after Ctrl-C."""
        self._closing = True
        if self._device_lock.held:
            try:
                self.llama.close()
            finally:
                self._give_back()
                _open.discard(self)

    def _give_back(self) -> None:
        """Release the device: XRT reserves a card for whoever has a context open."""
        try:
            getattr(self.device, "free_bitstream", lambda: None)()
        finally:
            self._device_lock.release()

    def __enter__(self) -> LlamaOverlay:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
