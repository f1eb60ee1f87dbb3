"""The overlay: find a device, lock it, load the kernel, and hand over the driver."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import warnings
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pynq
from pynq.pl_server.device import Device

from llama_pynq.device.pyxrt import PyxrtDevice
from llama_pynq.driver import LlamaDriver
from llama_pynq.emulation.build import own_build_folder
from llama_pynq.emulation.device import EmulatedDevice
from llama_pynq.engine.llama import Generation, Llama, StreamToken
from llama_pynq.errors import (
    DeviceBusy,
    DeviceNotFound,
    OverlayMismatch,
    OverlayNotFound,
    RequestError,
)
from llama_pynq.kernel.registers import IP_NAME, VLNV
from llama_pynq.overlay_store.record import OverlayRecord
from llama_pynq.overlay_store.search import board_of_device, overlay_for, record_of
from llama_pynq.utils.files import package_folders
from llama_pynq.utils.lock import DeviceLock

# The parameters of a Zynq UltraScale+'s and a Zynq-7000's processor: PL clocks in MHz.
_CLOCKS = ("PSU__CRL_APB__PL{}_REF_CTRL__ACT_FREQMHZ", "PCW_ACT_FPGA{}_PERIPHERAL_FREQMHZ")
_TOO_FAST, _CLOCK_STEPS = 1.005, 32


_open: weakref.WeakSet[LlamaOverlay] = weakref.WeakSet()
_process = os.getpid()


@atexit.register
def _close_all() -> None:
    """End calls before the memory that they write goes back to the system."""
    if os.getpid() == _process:  # a forked child has copies, and the devices are its parent's
        for overlay in list(_open):
            with contextlib.suppress(Exception):
                overlay.close()


def emulated_overlay(suffix: str = ".xclbin") -> Path:
    """The emulated overlay: one compiled on this computer by command, else the installed one.

    Parameters
    ----------
    suffix : {".xclbin", ".bit"}
        The Alveo or the Zynq flavour.

    Raises
    ------
    OverlayMismatch
        If there is none: the package was installed on a board, or without a C++ compiler.
    """
    folders = [own_build_folder()]
    folders += [Path(folder) / IP_NAME for folder in package_folders("overlay")]
    for folder in folders:
        path = folder / f"{IP_NAME}{suffix}"
        if path.exists():
            return path
    raise OverlayMismatch(
        "the emulated overlay is not installed: boards do without, and so does a package built "
        "without a C++ compiler. To compile it for this computer: python -m "
        "llama_pynq.emulation.build (it takes g++; Debian, Ubuntu: apt install g++)"
    )


def find_device() -> Device:
    """The first board that PYNQ sees, else the emulated device.

    With ``LLAMA_PYNQ_EMULATE=1`` in the environment the emulated device, whatever PYNQ sees.
    """
    if os.environ.get("LLAMA_PYNQ_EMULATE", "0") not in ("", "0"):
        return EmulatedDevice()
    with warnings.catch_warnings():
        # Off-board, PYNQ complains of a descriptor it leaves open itself.
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            devices = Device.devices
        except RuntimeError as error:
            boards = os.environ.get("PYNQ_REMOTE_DEVICES")
            if not boards:
                raise
            del Device._devices  # else PYNQ remembers having found none
            raise DeviceNotFound(
                f"no answer from PYNQ_REMOTE_DEVICES ({boards}), of which PYNQ wants every one: "
                f"{error}. Are they on, in this network, and do they run PYNQ.remote's image? To "
                "use none, unset the variable, or set LLAMA_PYNQ_EMULATE=1"
            ) from error
    for device in devices:
        if not isinstance(device, EmulatedDevice):
            return device
    if not devices:
        raise DeviceNotFound(
            "PYNQ finds no device on this board: is its image PYNQ's, and are you root? To use "
            "no board: LlamaOverlay(device=llama_pynq.EmulatedDevice())"
        )
    return devices[0]


def lock_name(device: Device) -> str:
    """What a device's lock is called: one name for one device, and another for its twin."""
    if hasattr(device, "lock_name"):
        return str(device.lock_name)
    if device.has_capability("REMOTE"):
        # The tag counts this computer's boards; the address is the board's own.
        return f"{device.name}-{device.ip_addr}-{device.port}"
    # Two equal cards have one name; XRT's tag, its number, tells them apart.
    return f"{device.name}-{getattr(device, 'tag', '')}"


@contextlib.contextmanager
def _active(device: Device) -> Iterator[None]:
    """Make `device` the one that PYNQ's parts take that are not told which.

    Of a remote board PYNQ 4 sets the width of the ports on the active device, which may be none,
    or another, and its clocks on the first device that a process ever used.
    """
    if not device.has_capability("REMOTE"):
        yield
        return
    before = vars(Device).get("_active_device")
    Device.active_device = device
    if vars(pynq.Clocks).get("_real_instance") is not None:
        del pynq.Clocks._real_instance
    try:
        yield
    finally:
        if before is not None:
            Device.active_device = before
        else:
            del Device._active_device


def _lock(device: Device) -> DeviceLock:
    """The device's lock, acquired."""
    lock = DeviceLock(lock_name(device))
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
        Default: the first board found, else the emulated device; `describe` says which. A board
        on the network that runs PYNQ.remote's image:
        ``pynq.pl_server.remote_device.RemoteDevice(ip_addr="192.168.2.99")``. Processes of one
        computer take turns on a device; those of two computers cannot see each other.

    Attributes
    ----------
    llama : LlamaDriver

    Raises
    ------
    DeviceBusy
        If another process, or another overlay of this one, uses the device.
    OverlayNotFound
        If there is no file of that name.
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
        self._opened, self._clock_note = False, ""
        self._clock_mhz: float | None = None
        try:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ResourceWarning)
                    super().__init__(str(bitfile_name), device=device, **kwargs)
            except OSError as error:
                # PYNQ's way to say that neither the path nor an installed package has the file.
                if error.errno is None and "does not exist" in str(error):
                    raise OverlayNotFound(
                        f"there is no overlay {bitfile_name}: give the path of an .xclbin or .bit "
                        "file, or the name of an installed one, such as llama.xclbin"
                    ) from None
                raise
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
            try:
                with contextlib.suppress(Exception):  # it may not be there, or not be ours
                    self.llama.close()  # its buffers are kept if the kernel hangs
            finally:
                self._give_back()
            raise
        _open.add(self)

    @property
    def is_board(self) -> bool:
        """Whether this is hardware, and not the emulated device."""
        return not isinstance(self.device, EmulatedDevice)

    @property
    def clock_mhz(self) -> float:
        """The kernel's clock: a Zynq's as it is set, else the build's, else what it was asked for.

        On the emulated device that of its time stamps.
        """
        if self._clock_mhz is not None:
            return self._clock_mhz
        built = self._record.clock_mhz if self._record is not None and self.is_board else None
        return built or self._limits.clock_mhz

    @property
    def record(self) -> OverlayRecord | None:
        """Who built the file, with what, and whether it was measured; None if it has no record."""
        return self._record

    def describe(self) -> str:
        """One line: the device, whether it is emulated, and the kernel's board.

        Of a board also the overlay's file, and whether that was ever measured.
        """
        device = self.device
        name, what = device.name, "board"
        if isinstance(device, EmulatedDevice):
            threads = f"{device.threads} thread{'s' if device.threads > 1 else ''}"
            what = f"emulated device on this computer's CPU, {threads}; no board in use"
            return f"{name} ({what}), kernel {self._limits.board}"
        if device.has_capability("REMOTE"):
            what = f"board at {device.ip_addr}, through PYNQ.remote"
        elif isinstance(device, PyxrtDevice):
            what = f"card at {device.bdf}, through pyxrt"
        elif device.has_capability("MEMORY_MAPPED"):
            # XRT calls every Zynq "edge".
            name = board_of_device(device) or name
        measured = self._record.measured if self._record is not None else None
        return (
            f"{name} ({what}), kernel {self._limits.board}{self._clock_note}, overlay "
            f"{Path(self.bitfile_name).name} "
            f"({f'measured: {measured}' if measured else 'not known to be measured'})"
        )

    # ---- the driver's methods --------------------------------------------------------

    def load_model(
        self, path: str | Path | None = None, tokenizer: str | Path | None = None, **kwargs: Any
    ) -> Llama:
        """See `llama_pynq.engine.llama.load`."""
        return self.llama.load_model(path, tokenizer, **kwargs)

    def generate(
        self, prompt: str | Sequence[str] = "", **kwargs: Any
    ) -> Generation | list[Generation]:
        """See `llama_pynq.engine.llama.Llama.generate`."""
        return self.llama.generate(prompt, **kwargs)

    def stream(self, prompt: str = "", **kwargs: Any) -> Iterator[str]:
        """See `llama_pynq.engine.llama.Llama.stream`."""
        return self.llama.stream(prompt, **kwargs)

    def stream_tokens(self, prompt: str = "", **kwargs: Any) -> Iterator[StreamToken]:
        """See `llama_pynq.engine.llama.Llama.stream_tokens`."""
        return self.llama.stream_tokens(prompt, **kwargs)

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """See `llama_pynq.engine.llama.Llama.logits`."""
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
        with _active(self.device):
            if self.device.has_capability("REMOTE"):
                self._send_bitstream()
            with warnings.catch_warnings():
                # What the clock is in the end, `describe` says.
                warnings.filterwarnings("ignore", "Setting frequency to the closest", UserWarning)
                super().download(*args, **kwargs)
                self._set_clocks()
        description = self.ip_dict.get(IP_NAME, {})
        if self._opened and "index" in description:
            # XRT's download closes the context that keeps others from programming the card.
            self.device.open_context(description)
        self._opened = True

    def _send_bitstream(self) -> None:
        """Bring the bitstream to a remote board under a name of its own.

        PYNQ takes a file of the same name that lies on the board for the same file, be it an older
        build's or cut short.
        """
        data = self.parser.bin_data
        name = f"{IP_NAME}-{hashlib.sha256(data).hexdigest()[:16]}.bin"
        path, whole = f"/lib/firmware/{name}", f"/lib/firmware/{name}.whole"
        if not self.device.exists_file(whole).exists:
            self.device.write_file(path, data)
            self.device.write_file(whole, b"1")
        self.binfile_name = name

    def _set_clocks(self) -> None:
        """Hold a Zynq's PL clocks to what the design was made for.

        PYNQ 3.0.1 writes the design's divisors, whatever the boot image's PLL runs at, and PYNQ 4
        takes the nearest that the PLL gives, be it faster.
        """
        device, self._clock_note, self._clock_mhz = self.device, "", None
        if not (device.has_capability("MEMORY_MAPPED") or device.has_capability("REMOTE")):
            return
        processor = self.ip_dict.get(getattr(self.parser, "ps_name", None), {})
        parameters = processor.get("parameters", {})
        for index, clock in self.clock_dict.items():
            design = next(
                (
                    float(parameters[n.format(index)])
                    for n in _CLOCKS
                    if n.format(index) in parameters
                ),
                None,
            )
            if not clock.get("enable") or not design:
                continue
            for step in range(_CLOCK_STEPS):
                mhz = getattr(pynq.Clocks, f"fclk{index}_mhz")
                # A slower one may be the divisors of another PLL: asked for once, it may be nearer.
                if mhz <= _TOO_FAST * design and (step or design <= _TOO_FAST * mhz):
                    break
                pynq.Clocks.set_pl_clk(index, clk_mhz=design * 0.97**step)
            self._clock_mhz = mhz
            if not design <= _TOO_FAST * mhz <= _TOO_FAST**2 * design:
                self._clock_note += f", PL clock {index} {mhz:g} of {design:g} MHz"

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
            try:
                self.llama.close()
            finally:
                _open.discard(self)
                self._give_back()

    def _give_back(self) -> None:
        """Let other processes have the device: XRT keeps a card for whoever has a context open."""
        try:
            getattr(self.device, "free_bitstream", lambda: None)()
        finally:
            self._device_lock.release()

    def __enter__(self) -> LlamaOverlay:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
