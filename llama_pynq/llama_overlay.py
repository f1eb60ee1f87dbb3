"""The overlay: find a device, lock it, load the kernel, and hand over the driver."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pynq
from pynq.pl_server.device import Device

from .driver import LlamaDriver
from .emulation.device import EmulatedDevice
from .errors import DeviceBusy, DeviceNotFound, OverlayMismatch, RequestError
from .files import package_folders
from .interface import IP_NAME, VLNV
from .llama import Generation, Llama, StreamToken
from .lock import DeviceLock
from .overlay_record import OverlayRecord
from .overlays import overlay_for, record_of


def emulated_overlay(suffix: str = ".xclbin") -> Path:
    """The emulated overlay that was compiled when the package was installed.

    Parameters
    ----------
    suffix : {".xclbin", ".bit"}
        The Alveo or the Zynq flavour.

    Raises
    ------
    OverlayMismatch
        If it was not compiled: the package was installed without a C++ compiler.
    """
    for folder in package_folders("overlay"):
        path = Path(folder) / IP_NAME / f"{IP_NAME}{suffix}"
        if path.exists():
            return path
    raise OverlayMismatch(
        "the emulated overlay is not installed: the package was built without a C++ compiler. "
        "Install one (Debian, Ubuntu: apt install g++) and reinstall llama_pynq"
    )


def find_device() -> Device:
    """The first board that PYNQ sees, else the emulated device.

    With ``LLAMA_PYNQ_EMULATE=1`` in the environment the emulated device, whatever PYNQ sees.
    """
    with warnings.catch_warnings():
        # Off-board, PYNQ complains of a descriptor it leaves open itself.
        warnings.simplefilter("ignore", ResourceWarning)
        devices = Device.devices
    emulate = os.environ.get("LLAMA_PYNQ_EMULATE", "0") not in ("", "0")
    for device in devices:
        if isinstance(device, EmulatedDevice) == emulate:
            return device
    if emulate:
        return EmulatedDevice()
    if not devices:
        raise DeviceNotFound(
            "PYNQ finds no device on this board: is its image PYNQ's, and are you root? To use "
            "no board: LlamaOverlay(device=llama_pynq.EmulatedDevice())"
        )
    return devices[0]


def _lock(device: Device) -> DeviceLock:
    """The device's lock, acquired."""
    # Two equal cards have one name; XRT's tag, the PCIe address, tells them apart.
    name = getattr(device, "lock_name", f"{device.name}-{getattr(device, 'tag', '')}")
    lock = DeviceLock(name)
    try:
        lock.acquire()
    except DeviceBusy as error:
        if not isinstance(device, EmulatedDevice):
            raise
        raise DeviceBusy(
            f"{error} Or use an emulated device of another name beside it: "
            "from llama_pynq import EmulatedDevice; "
            "LlamaOverlay(device=EmulatedDevice(name='second'))"
        ) from None
    return lock


class LlamaOverlay(pynq.Overlay):
    """The accelerator on a device, ready for a model.

    Parameters
    ----------
    bitfile_name : str or Path, optional
        Default: the overlay for the device: for a board the first that `overlays` finds. A bare
        name is looked up as PYNQ does.
    device : pynq.Device, optional
        Default: the first board found, else the emulated device; `describe` says which.

    Attributes
    ----------
    llama : LlamaDriver

    Raises
    ------
    DeviceBusy
        If another process, or another overlay of this one, uses the device.
    OverlayMismatch
        If the overlay is not ours, or of another version; or if there is none for this board,
        with the command that fetches or builds one.

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
            bitfile_name = (
                emulated_overlay() if isinstance(device, EmulatedDevice) else overlay_for(device)
            )
        self._device_lock = _lock(device)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                super().__init__(str(bitfile_name), device=device, **kwargs)
            description = self.ip_dict.get(IP_NAME)
            if description is None or not isinstance(self.llama, LlamaDriver):
                found = ", ".join(f"{k} ({v['type']})" for k, v in self.ip_dict.items())
                raise OverlayMismatch(
                    f"{bitfile_name} is not an overlay of llama_pynq: it has no IP of type "
                    f"{VLNV}, only {found or 'none'}"
                )
            self._limits = self.llama.limits
            self._record = record_of(Path(self.bitfile_name))
        except BaseException:
            self._device_lock.release()
            raise

    @property
    def is_board(self) -> bool:
        """Whether this is hardware, and not the emulated device."""
        return not isinstance(self.device, EmulatedDevice)

    @property
    def record(self) -> OverlayRecord | None:
        """Who built the file, with what, and whether it was measured; None if it has no record."""
        return self._record

    def describe(self) -> str:
        """One line: the device, whether it is emulated, and the kernel's board.

        Of a board also the overlay's file, and whether that was ever measured.
        """
        device = self.device
        if isinstance(device, EmulatedDevice):
            threads = f"{device.threads} thread{'s' if device.threads > 1 else ''}"
            what = f"emulated device on this computer's CPU, {threads}; no board in use"
            return f"{device.name} ({what}), kernel {self._limits.board}"
        measured = self._record.measured if self._record is not None else None
        return (
            f"{device.name} (board), kernel {self._limits.board}, overlay "
            f"{Path(self.bitfile_name).name} "
            f"({f'measured: {measured}' if measured else 'not known to be measured'})"
        )

    # ---- the driver's methods --------------------------------------------------------

    def load_model(
        self, path: str | Path | None = None, tokenizer: str | Path | None = None, **kwargs: Any
    ) -> Llama:
        """See `llama_pynq.llama.load`."""
        return self.llama.load_model(path, tokenizer, **kwargs)

    def generate(
        self, prompt: str | Sequence[str] = "", **kwargs: Any
    ) -> Generation | list[Generation]:
        """See `llama_pynq.llama.Llama.generate`."""
        return self.llama.generate(prompt, **kwargs)

    def stream(self, prompt: str = "", **kwargs: Any) -> Iterator[str]:
        """See `llama_pynq.llama.Llama.stream`."""
        return self.llama.stream(prompt, **kwargs)

    def stream_tokens(self, prompt: str = "", **kwargs: Any) -> Iterator[StreamToken]:
        """See `llama_pynq.llama.Llama.stream_tokens`."""
        return self.llama.stream_tokens(prompt, **kwargs)

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """See `llama_pynq.llama.Llama.logits`."""
        return self.llama.logits(tokens)

    # ---- life ------------------------------------------------------------------------

    def reset(self) -> None:
        """Download the overlay again, as after a hung kernel, and reload the model."""
        self._check_open()
        loaded = self.llama._llama
        self.llama.forget(self.download)
        self._limits = self.llama.limits
        if loaded is not None:
            self.llama.adopt(loaded)

    def download(self, *args: Any, **kwargs: Any) -> None:
        """PYNQ's, which needs the device to be ours. What was loaded is lost: see `reset`."""
        self._check_open()
        super().download(*args, **kwargs)

    @property
    def closed(self) -> bool:
        """Whether `close` was called, or the device never became ours."""
        return not self._device_lock.held

    def _check_open(self) -> None:
        if self.closed:
            raise RequestError("the overlay is closed: open it again, LlamaOverlay()")

    def free(self) -> None:
        """As `close`, and PYNQ's own freeing."""
        self.close()
        super().free()

    def close(self) -> None:
        """Free the buffers and give the device to others; may be called twice."""
        if self._device_lock.held:
            self.llama.close()
            self._device_lock.release()

    def __enter__(self) -> LlamaOverlay:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
