"""Model of an HLS kernel's control register, for both block-level protocols.

As Vitis HLS generates the register (UG1399, "S_AXILITE Control Register Map" and
"Block-Level Control Protocols"):

===========  ==========================  ============================================
bit          ap_ctrl_hs                  ap_ctrl_chain
===========  ==========================  ============================================
AP_START     cleared when the kernel is ready for the next start
AP_DONE      cleared by reading it       stays until AP_CONTINUE is written
AP_IDLE      set while no call is running or pending
AP_READY     cleared by reading it
AP_CONTINUE  absent                      self-clearing
===========  ==========================  ============================================

In ap_ctrl_chain a start stays pending until AP_CONTINUE clears AP_DONE.
"""

from __future__ import annotations

from collections.abc import Callable

from llama_pynq.kernel.registers import (
    AP_CONTINUE,
    AP_DONE,
    AP_IDLE,
    AP_READY,
    AP_START,
)

AUTO_RESTART = 0x80

_RUNNING = 0x100  # internal state bit above the register's own bits; reads do not show it
_VISIBLE = AP_START | AP_DONE | AP_READY


class ControlUnit:
    """State machine of the control register.

    The state is one integer. Each change replaces it in one assignment, so a KeyboardInterrupt
    leaves either the old state or the new one.

    Parameters
    ----------
    protocol : str
        ``"ap_ctrl_hs"`` or ``"ap_ctrl_chain"``.
    launch : callable
        Starts the kernel and returns at once. If it raises, nothing has started.
    finished : callable
        Returns whether the kernel has finished; may block briefly.
    """

    def __init__(
        self, protocol: str, launch: Callable[[], None], finished: Callable[[], bool]
    ) -> None:
        self.protocol = protocol
        self._chained = protocol == "ap_ctrl_chain"
        self._launch = launch
        self._finished = finished
        self._state = 0
        # ap_ready is cleared by reading in both protocols, ap_done in ap_ctrl_hs only.
        self._cleared = AP_READY if self._chained else AP_READY | AP_DONE

    @property
    def running(self) -> bool:
        """Whether a call was started whose end no access has seen yet."""
        return bool(self._state & _RUNNING)

    def read(self) -> int:
        """Read the register, with the side effects of a read."""
        self._update()
        state = self._state
        self._state = state & ~self._cleared
        idle = 0 if state & (AP_START | _RUNNING) else AP_IDLE
        return state & _VISIBLE | idle

    def write(self, value: int) -> None:
        """Write the register: AP_START and, in ap_ctrl_chain, AP_CONTINUE."""
        if value & AUTO_RESTART:
            raise RuntimeError(
                "AUTO_RESTART is not emulated: write AP_START for each call of the kernel."
            )
        self._update()
        state = self._state
        if value & AP_CONTINUE and self._chained:
            state &= ~AP_DONE
        if value & AP_START:
            state |= AP_START
        self._start_if_possible(state)

    def _update(self) -> None:
        if self._state & _RUNNING and self._finished():
            self._state = AP_DONE | AP_READY

    def _start_if_possible(self, state: int) -> None:
        if state & (AP_START | _RUNNING) != AP_START or (self._chained and state & AP_DONE):
            self._state = state
            return
        # Set _RUNNING before the launch: if an interrupt hits once the kernel has started, the
        # next read still polls the kernel.
        self._state = state | _RUNNING
        try:
            self._launch()
        except Exception:
            self._state = state & ~AP_START
            raise
