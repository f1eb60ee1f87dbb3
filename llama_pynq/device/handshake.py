"""The handshake with the kernel: AP_START, AP_DONE, and the wait between them.

The registers are written directly on every device, on Alveo too. XRT's scheduler sleeps while it
has no command (xrt_cu.c); its own start would copy every argument at each call and, in PYNQ, wait
without a timeout. `start_ert` must not be mixed with this handshake. Not yet run on a card or a
board.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from pynq import DefaultIP

from llama_pynq.kernel.registers import AP_CONTINUE, AP_DONE, AP_IDLE, AP_START, CONTROL_OFFSET

_SPIN_S = 0.002
_SLEEP_S = 0.0005
_EXPECTED_PART = 0.9  # share of the expected time that a remote wait sleeps before its first read
_REMOTE_PAUSE = 0.1  # pause between two reads over a network, as a share of the time waited so far


class DeadlinePassed(Exception):
    """The kernel did not set AP_DONE in time."""


class Handshake:
    """Control, sequence and command registers of the kernel's IP.

    Parameters
    ----------
    ip : pynq.DefaultIP
    registers : mapping
        The IP's registers by name, as the overlay's metadata describes them.
    chained : bool
        The IP speaks ap_ctrl_chain: AP_DONE stays until AP_CONTINUE is written.

    Attributes
    ----------
    sequence : int
        Number of the last call; the kernel repeats it in its status.
    blocking_reads : bool
        Reads of CTRL wait for a running kernel themselves, as the emulated device's do.
    """

    def __init__(self, ip: DefaultIP, registers: Mapping[str, Any], chained: bool) -> None:
        device = ip.device
        self.sequence = int.from_bytes(os.urandom(3), "little")
        self.blocking_reads = hasattr(device, "read_waited")
        # Weak: the driver is freed, and its buffers with it, as soon as nobody refers to it.
        self._ip = weakref.proxy(ip)
        self._device, self._registers = device, registers
        self._chained = chained
        self._remote = device.has_capability("REMOTE")
        # For registers that are not memory-mapped, PYNQ goes through an array class written in
        # Python, which takes several times as long as the access itself.
        self._direct = device.has_capability("REGISTER_RW") and not (
            device.has_capability("MEMORY_MAPPED")
        )
        self._base = ip.mmio.base_addr if self._direct else 0

    def read(self, offset: int) -> int:
        """Read a register of the IP."""
        if self._direct:
            return int.from_bytes(self._device.read_registers(self._base + offset, 4), "little")
        return int(self._ip.read(offset))

    def write(self, offset: int, value: int) -> None:
        """Write a register of the IP."""
        if self._direct:
            self._device.write_registers(self._base + offset, value.to_bytes(4, "little"))
        else:
            self._ip.write(offset, value)

    def start(self, command: int) -> None:
        """Write the next sequence number and the command, then AP_START."""
        self.sequence = (self.sequence + 1) & 0xFFFFFFFF or 1
        write, registers = self.write, self._registers
        write(registers["sequence"]["address_offset"], self.sequence)
        write(registers["command"]["address_offset"], command)
        write(CONTROL_OFFSET, AP_START)

    def finished(self) -> bool:
        """Whether the call has ended; under ap_ctrl_chain, acknowledge its end."""
        if not self.read(CONTROL_OFFSET) & AP_DONE:
            return False
        if self._chained:
            self.write(CONTROL_OFFSET, AP_CONTINUE)
        return True

    def runs_on(self) -> bool:
        """Whether the kernel is still running; if it is not, acknowledge the end of the call."""
        control = self.read(CONTROL_OFFSET)
        if not control & (AP_IDLE | AP_DONE):
            return True
        if self._chained and control & AP_DONE:
            self.write(CONTROL_OFFSET, AP_CONTINUE)
        return False

    def wait(self, seconds: float, check: Callable[[], None], expected: float = 0.0) -> bool:
        """Wait for AP_DONE: first polling, then sleeping between the reads of CTRL.

        Parameters
        ----------
        seconds : float
            Deadline, from now.
        check : callable
            Called before every read of CTRL; ends the wait by raising.
        expected : float
            Expected duration of the call, in seconds. Over a network, most of it is slept before
            the first read.

        Returns
        -------
        bool
            True if the first read, made at once, found the call ended.

        Raises
        ------
        DeadlinePassed
        """
        start = time.monotonic()
        first = not (self._remote and expected > 0)
        if self._remote:
            time.sleep(_EXPECTED_PART * max(0.0, min(expected, seconds)))
        while True:
            check()
            if self.finished():
                return first
            first = False
            waited = time.monotonic() - start
            if waited > seconds:
                raise DeadlinePassed
            if self._remote:
                time.sleep(max(_SLEEP_S, _REMOTE_PAUSE * waited))
            elif not self.blocking_reads and waited > _SPIN_S:
                time.sleep(_SLEEP_S)

    @property
    def read_waited(self) -> bool:
        """Whether the last read of CTRL waited for the kernel."""
        return self.blocking_reads and self._device.read_waited
