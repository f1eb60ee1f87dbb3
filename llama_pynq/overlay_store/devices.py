"""Devices: find one, describe it, identify its board, lock it.

A device lists what it can do in its ``capabilities``, as PYNQ's devices do. The emulated device
lists ``EMULATED``, a card that is driven through XRT's Python module ``PYXRT``.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pynq
from pynq.pl_server.device import Device

from llama_pynq.boards import boards
from llama_pynq.device.pyxrt import PyxrtDevice  # noqa: F401  (registers the class with PYNQ)
from llama_pynq.emulation.device import HOST, EmulatedDevice
from llama_pynq.errors import DeviceBusy, DeviceNotFound
from llama_pynq.kernel.config import board_headers
from llama_pynq.kernel.limits import KernelLimits
from llama_pynq.overlay_store.metadata import board_named
from llama_pynq.utils.lock import DeviceLock

# PYNQ's images name their board here; Kria-PYNQ has no such file, and sets the variable BOARD.
BOARD_FILE = Path("/proc/device-tree/chosen/pynq_board")


def is_emulated(device: Device) -> bool:
    """Whether a device is emulated on this computer."""
    return bool(device.has_capability("EMULATED"))


def pynq_devices() -> list[Device]:
    """Every device that PYNQ sees, boards first; the last is the emulated one, if any.

    Raises
    ------
    DeviceNotFound
        If a board of ``PYNQ_REMOTE_DEVICES`` does not answer.
    """
    with warnings.catch_warnings():
        # Off-board, PYNQ warns about a file descriptor that it leaves open itself.
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            return list(Device.devices)
        except RuntimeError as error:
            addresses = os.environ.get("PYNQ_REMOTE_DEVICES")
            if not addresses:
                raise
            del Device._devices  # else PYNQ remembers having found none
            raise DeviceNotFound(
                f"no answer from PYNQ_REMOTE_DEVICES ({addresses}); PYNQ needs one from every "
                f"board: {error}. Are they on, in this network, and do they run PYNQ.remote's "
                "image? To use none, unset the variable, or set LLAMA_PYNQ_EMULATE=1"
            ) from error


def find_device(name: str | None = None) -> Device:
    """The first board that PYNQ sees, else the emulated device.

    ``LLAMA_PYNQ_EMULATE=1`` in the environment selects the emulated device, whatever PYNQ sees.

    Parameters
    ----------
    name : str, optional
        One of several devices instead: its number in `pynq_devices`, its name, a card's PCI
        address, or a remote board's IP address.

    Raises
    ------
    DeviceNotFound
        If there is no device, or none or several of that name.
    """
    if name is not None:
        return _device_called(name)
    if os.environ.get("LLAMA_PYNQ_EMULATE", "0") not in ("", "0"):
        return EmulatedDevice()
    devices = pynq_devices()
    for device in devices:
        if not is_emulated(device):
            return device
    if not devices:
        raise DeviceNotFound(
            "PYNQ finds no device on this board: is its image PYNQ's, and are you root? To use "
            "no board: LlamaOverlay(device=llama_pynq.EmulatedDevice())"
        )
    return devices[0]


def _device_called(name: str) -> Device:
    devices = pynq_devices()
    called = [
        device for number, device in enumerate(devices)
        if name.lower() in {str(number), *map(str.lower, _names_of(device))}
    ]  # fmt: skip
    if len(called) == 1:
        return called[0]
    listed = "; ".join(f"{n}: {', '.join(_names_of(device))}" for n, device in enumerate(devices))
    if called:
        raise DeviceNotFound(f"{len(called)} devices are called {name!r}: give a number, {listed}")
    raise DeviceNotFound(f"there is no device {name!r}: PYNQ sees {listed or 'none'}")


def _names_of(device: Device) -> list[str]:
    names = [device.name]
    if device.has_capability("PYXRT"):
        names.append(device.bdf)
    if device.has_capability("REMOTE"):
        names.append(str(device.ip_addr))
    return names


def header_limits(device: Device) -> tuple[str, KernelLimits | None]:
    """Limits of a device's kernel by its config header, without asking the kernel.

    Returns
    -------
    str
        File name of the header, without ``.h``; empty for an unknown board.
    KernelLimits or None
        None for an unknown board.
    """
    headers = board_headers()
    if is_emulated(device):
        limits = KernelLimits.from_header(headers[HOST])
        return HOST, limits if device.limits is None else limits.within(device.limits)
    board = board_of_device(device)
    if board is None:
        return "", None
    header = boards()[board].header
    return headers[header].stem, KernelLimits.from_header(headers[header])


def board_of_device(device: Device) -> str | None:
    """The board that a PYNQ device is, or emulates.

    Parameters
    ----------
    device : pynq.Device

    Returns
    -------
    str or None
        A key of `boards.boards`; None for the plain emulated device and for an unknown board.
    """
    if is_emulated(device):
        return device.board if device.board in boards() else None
    # A card's name is its shell, a remote board's its own pynq_board. On Kria-PYNQ, XRT takes the
    # name from /etc/xocl.txt; on any other Zynq it is "edge" or empty.
    names = [device.name]
    if device.has_capability("MEMORY_MAPPED"):  # this runs on the Zynq's own processor
        names += _local_names()
    return next((board for name in names if (board := board_named(name))), None)


def _local_names() -> Iterator[str]:
    try:
        yield BOARD_FILE.read_text(encoding="utf-8", errors="replace")
    except OSError:
        pass
    yield os.environ.get("BOARD", "")


def describe_device(device: Device) -> str:
    """A device's name, and how it is reached, in one phrase."""
    name = device.name
    if is_emulated(device):
        threads = f"{device.threads} thread{'s' if device.threads > 1 else ''}"
        return f"{name} (emulated device on this computer's CPU, {threads}; no board in use)"
    if device.has_capability("REMOTE"):
        return f"{name} (board at {device.ip_addr}, through PYNQ.remote)"
    if device.has_capability("PYXRT"):
        return f"{name} (card at {device.bdf}, through pyxrt)"
    if device.has_capability("MEMORY_MAPPED"):
        name = board_of_device(device) or name  # XRT calls every Zynq "edge"
    return f"{name} (board)"


def lock_names(device: Device) -> dict[str, str]:
    """Names that a device may take, the first preferred, each with the name of its lock.

    A board has one name. The lock's name is unique, even among cards of one model.
    """
    if is_emulated(device):
        return dict(device.lock_names)
    if device.has_capability("REMOTE"):
        # The tag only numbers this computer's boards; the address identifies the board.
        return {device.name: f"{device.name}-{device.ip_addr}-{device.port}"}
    # Two equal cards have the same name; the tag, XRT's number of the card, differs.
    return {device.name: f"{device.name}-{getattr(device, 'tag', '')}"}


@contextlib.contextmanager
def active(device: Device) -> Iterator[None]:
    """Make `device` PYNQ's active device, for the parts of PYNQ that take no device argument.

    For a remote board, PYNQ 4 sets the width of the ports on the active device, which may be
    another one or none, and the clocks on the first device that the process ever used.
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


def lock_device(device: Device) -> DeviceLock:
    """Take a device's lock.

    An emulated device that the user did not name gives way to another process: it takes a name of
    its own, and the user is told.

    Raises
    ------
    DeviceBusy
        If another process, or another overlay of this one, holds it.
    """
    (usual, usual_lock), *others = lock_names(device).items()
    try:
        lock = _acquired(usual_lock)
    except DeviceBusy as error:
        if not is_emulated(device):
            raise
        if error.holder_pid == os.getpid() or not others:
            raise DeviceBusy(
                f"{error} Or use an emulated device of another name beside it: "
                "from llama_pynq import EmulatedDevice; "
                "LlamaOverlay(device=EmulatedDevice(name='second'))"
            ).held_by(error.holder_pid) from None
    else:
        if is_emulated(device):
            device.name = usual
        return lock
    ((name, lock_name),) = others
    lock = _acquired(lock_name)
    device.name = name
    print(f"llama_pynq: another process uses {usual}: using {name}", file=sys.stderr)
    return lock


def _acquired(lock_name: str) -> DeviceLock:
    lock = DeviceLock(lock_name)
    lock.acquire()
    return lock


def lock_paths(device: Device) -> set[Path]:
    """Lock files of every name that a device may take."""
    return {DeviceLock(name).path for name in lock_names(device).values()}


def holder_of(device: Device) -> str | None:
    """Who uses a device, as in "process 7858 (lesson.ipynb)"; None if nobody does.

    An emulated device that may take another name is never in use.
    """
    holders = [DeviceLock(name).holder() for name in lock_names(device).values()]
    return None if None in holders else holders[0]
