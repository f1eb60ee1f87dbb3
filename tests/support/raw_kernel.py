"""The emulated device's registers and buffers without the package's driver, as a student's code."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pynq
from support.kernel_library import board_header

from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.emulation.build import emulated_overlay
from llama_pynq.emulation.device import EmulatedDevice
from llama_pynq.kernel import abi
from llama_pynq.kernel.limits import KernelLimits
from llama_pynq.weights.tiles import channel_bytes

LIMITS = KernelLimits.from_header(board_header("host"))
RESULT_WORDS = LIMITS.result_dtype.itemsize // 4


def needed_bytes(
    config: ModelConfig, group_size: int, weight_bits: int, kv_bits: int, slots: int, n_rows: int,
    n_steps: int, *, flags: int = 0, full: bool = True,
) -> dict[str, int]:  # fmt: skip
    """Bytes that a call of rows that all sample needs of each buffer, by the package's layouts."""
    weights = channel_bytes(config, group_size, LIMITS.target, weight_bits)
    cache = LIMITS.kv_port_bytes(config, kv_bits, slots)
    activations = flags & (abi.RequestFlag.ACTIVATIONS_IN | abi.RequestFlag.ACTIVATIONS_OUT)
    profile = flags & abi.RequestFlag.PROFILE
    return {
        "request": 4 * (abi.REQUEST_ROW_BASE + n_rows * abi.ROW_WORDS),
        "results": 4 * (abi.STATUS_WORDS + n_steps * n_rows * RESULT_WORDS),
        "logits": 4 * n_rows * config.vocab_size if full else 0,
        "activations": 4 * n_rows * config.dim if activations else 0,
        "model": 4 * (abi.MODEL_ROPE_TABLE + config.head_size),
        "profile": 4 * LIMITS.profile_step_words * n_steps if profile else 0,
        **{f"weights_{c}": size for c, size in enumerate(weights)},
        **{f"kv_cache_{p}": cache for p in range(LIMITS.kv_ports)},
    }


class RawKernel:
    """An emulated device with the host's kernel, and a buffer of a given size for each pointer.

    Parameters
    ----------
    sizes : dict of str to int
        Bytes of each buffer; those left out, and those of 0, have 64.
    """

    def __init__(self, sizes: dict[str, int], device: EmulatedDevice | None = None) -> None:
        self.device = device or EmulatedDevice(threads=1)
        if self.device.protocol is None:
            pynq.Overlay(str(emulated_overlay()), device=self.device)
        self.sequence = 0
        self.buffers: dict[str, Any] = {}
        for arg in self.device.design.arguments:
            if arg.is_pointer:
                if arg.buffer not in self.buffers:
                    bank = self.device.get_memory_by_name(arg.bank)
                    n = sizes.get(arg.buffer) or 64
                    self.buffers[arg.buffer] = pynq.allocate((n,), np.uint8, target=bank)
                self.write(arg.name, self.buffers[arg.buffer].device_address)

    def write(self, name: str, value: int) -> None:
        """Write an argument's registers."""
        arg = next(a for a in self.device.design.arguments if a.name == name)
        address = self.device.design.base_address + arg.offset
        self.device.write_registers(address, value.to_bytes(arg.size_bits // 8, "little"))

    def fill(self, name: str, words: np.ndarray) -> None:
        """Put as many words into a buffer as fit, and copy it to the device."""
        data = words.view(np.uint8)[: self.buffers[name].size]
        self.buffers[name][: len(data)] = data
        self.buffers[name].sync_to_device()

    def start(self, command: int = abi.COMMAND_RUN) -> None:
        self.sequence += 1
        self.write("command", command)
        self.write("sequence", self.sequence)
        self.device.write_registers(self.device.design.base_address, b"\x01\0\0\0")

    def finish(self) -> np.ndarray:
        """Wait for the end of the call; its status words."""
        base = self.device.design.base_address
        begin = time.monotonic()
        while not self.device.read_registers(base, 4)[0] & 2:
            assert time.monotonic() - begin < 60, "the call does not end"
        self.device.write_registers(base, b"\x10\0\0\0")
        self.buffers["results"].sync_from_device()
        status = np.asarray(self.buffers["results"])[: 4 * abi.STATUS_WORDS].view(np.uint32)
        assert status[abi.STATUS_SEQUENCE] == self.sequence
        return status.copy()

    def free(self) -> None:
        for buffer in self.buffers.values():
            buffer.freebuffer()
