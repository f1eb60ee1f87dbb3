"""The control register (CTRL) behaves as in UG1399's register map."""

from __future__ import annotations

import contextlib

import pytest
from fuzz.interrupts import at_line

from llama_pynq.kernel.control import ControlUnit
from llama_pynq.kernel.registers import (
    AP_CONTINUE,
    AP_DONE,
    AP_IDLE,
    AP_READY,
    AP_START,
)


class FakeKernel:
    def __init__(self, protocol: str) -> None:
        self.launches = 0
        self.idle = True
        self.refuse: BaseException | None = None
        self.interrupt_poll = False
        self.control = ControlUnit(protocol, self.launch, self.finished)

    def launch(self) -> None:
        if self.refuse:
            raise self.refuse
        self.launches += 1
        self.idle = False

    def finished(self) -> bool:
        if self.interrupt_poll:
            raise KeyboardInterrupt
        return self.idle


@pytest.fixture(params=["ap_ctrl_hs", "ap_ctrl_chain"])
def kernel(request: pytest.FixtureRequest) -> FakeKernel:
    return FakeKernel(request.param)


def test_control_after_reset_is_idle(kernel):
    assert kernel.control.read() == AP_IDLE


def test_start_bit_stays_set_until_the_kernel_is_ready(kernel):
    kernel.control.write(AP_START)
    assert kernel.control.read() == AP_START
    assert kernel.control.read() == AP_START
    kernel.idle = True
    assert kernel.control.read() == AP_DONE | AP_IDLE | AP_READY


def test_done_is_cleared_by_reading_in_hs():
    kernel = FakeKernel("ap_ctrl_hs")
    kernel.control.write(AP_START)
    kernel.idle = True
    assert kernel.control.read() & AP_DONE
    assert kernel.control.read() == AP_IDLE


def test_done_stays_until_continue_in_chain():
    kernel = FakeKernel("ap_ctrl_chain")
    kernel.control.write(AP_START)
    kernel.idle = True
    assert kernel.control.read() & AP_DONE
    assert kernel.control.read() == AP_DONE | AP_IDLE
    kernel.control.write(AP_CONTINUE)
    assert kernel.control.read() == AP_IDLE


def test_start_before_continue_waits_in_chain():
    kernel = FakeKernel("ap_ctrl_chain")
    kernel.control.write(AP_START)
    kernel.idle = True
    kernel.control.read()
    kernel.control.write(AP_START)
    assert kernel.launches == 1
    assert kernel.control.read() == AP_START | AP_DONE
    kernel.control.write(AP_CONTINUE)
    assert kernel.launches == 2
    assert kernel.control.read() == AP_START


def test_start_and_continue_in_one_write_start_the_next_call():
    kernel = FakeKernel("ap_ctrl_chain")
    kernel.control.write(AP_START)
    kernel.idle = True
    kernel.control.write(AP_START | AP_CONTINUE)
    assert kernel.launches == 2


def test_start_without_reading_done_runs_again_in_hs_and_done_is_stale():
    kernel = FakeKernel("ap_ctrl_hs")
    kernel.control.write(AP_START)
    kernel.idle = True
    kernel.control.write(AP_START)
    assert kernel.launches == 2
    assert kernel.control.read() == AP_START | AP_DONE | AP_READY


def test_start_while_running_is_ignored(kernel):
    kernel.control.write(AP_START)
    kernel.control.write(AP_START)
    assert kernel.launches == 1


def test_continue_does_nothing_in_hs_or_while_running(kernel):
    kernel.control.write(AP_START)
    kernel.control.write(AP_CONTINUE)
    assert kernel.control.read() == AP_START
    kernel.idle = True
    if kernel.control.protocol == "ap_ctrl_hs":
        kernel.control.write(AP_CONTINUE)
    assert kernel.control.read() & AP_DONE


def test_writing_back_what_was_read_starts_nothing_new(kernel):
    """PYNQ's register_map reads CTRL, sets a bit and writes the whole register."""
    kernel.control.write(kernel.control.read())
    assert kernel.launches == 0
    kernel.control.write(kernel.control.read() | AP_START)
    assert kernel.launches == 1


def test_refused_launch_leaves_the_kernel_idle(kernel):
    kernel.refuse = RuntimeError("no")
    with pytest.raises(RuntimeError, match="no"):
        kernel.control.write(AP_START)
    assert kernel.control.read() == AP_IDLE
    kernel.refuse = None
    kernel.control.write(AP_START)
    assert kernel.launches == 1


def test_interrupted_read_changes_nothing(kernel):
    kernel.control.write(AP_START)
    kernel.interrupt_poll = True
    with pytest.raises(KeyboardInterrupt):
        kernel.control.read()
    kernel.interrupt_poll = False
    assert kernel.control.read() == AP_START
    kernel.idle = True
    assert kernel.control.read() & AP_DONE


def test_interrupted_launch_is_still_polled(kernel):
    kernel.refuse = KeyboardInterrupt()
    kernel.idle = False
    with pytest.raises(KeyboardInterrupt):
        kernel.control.write(AP_START)
    assert kernel.control.read() == AP_START
    kernel.idle = True
    assert kernel.control.read() & AP_DONE


def test_auto_restart_is_refused(kernel):
    with pytest.raises(RuntimeError, match="AUTO_RESTART is not emulated"):
        kernel.control.write(AP_START | 0x80)
    assert kernel.launches == 0


def test_interrupted_write_is_made_whole_or_not_at_all(kernel):
    """Else AP_START could stay set with no kernel behind it."""
    for line in range(1, 40):
        kernel.control.read()
        with contextlib.suppress(KeyboardInterrupt), at_line(line):
            kernel.control.write(AP_START)
        kernel.idle = True
        assert kernel.control.read() & (AP_IDLE | AP_DONE)
        kernel.control.write(AP_CONTINUE)
