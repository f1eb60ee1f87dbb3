"""Sizes of a model's weight and KV buffers on a board, and whether they fit."""

from __future__ import annotations

from dataclasses import replace

from llama_pynq.boards import MIB, Board
from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.errors import LimitError
from llama_pynq.kernel.abi import MAX_GROUP
from llama_pynq.kernel.config import board_headers, kernel_of
from llama_pynq.kernel.limits import KernelLimits, check_limits
from llama_pynq.weights.tiles import channel_bytes


def buffers(
    config: ModelConfig,
    board: Board,
    *,
    weight_bits: int = 8,
    group_size: int | None = None,
    kv_bits: int = 32,
    slots: int = 1,
) -> tuple[list[int], int]:
    """Return the bytes of every weight channel's buffer and of one KV port's.

    Parameters
    ----------
    config, board, weight_bits, group_size, kv_bits, slots
        As for `fits`.

    Returns
    -------
    channels : list of int
    port : int
    """
    limits = KernelLimits.from_header(board_headers()[board.header])
    group_size = group_size or MAX_GROUP
    sizes = channel_bytes(config, group_size, limits.target, weight_bits)
    return sizes, limits.kv_port_bytes(config, kv_bits, slots)


def fits(
    config: ModelConfig,
    board: Board,
    *,
    weight_bits: int = 8,
    group_size: int | None = None,
    kv_bits: int = 32,
    slots: int = 1,
) -> tuple[bool, str]:
    """Whether a model's shape and buffers fit a board, and why not.

    Parameters
    ----------
    config : ModelConfig
    board : Board
    weight_bits, group_size, kv_bits : int
        See `predict.predict`.
    slots : int
        Sequences in the KV cache, each of the model's seq_len, or of the kernel's limit if that is
        shorter, as the model is loaded.

    Returns
    -------
    fits : bool
    reason : str
        Empty if the model fits.
    """
    limits = KernelLimits.from_header(board_headers()[board.header])
    config = replace(config, seq_len=min(config.seq_len, limits.max_seq_len))
    try:
        check_limits(config, limits)
    except LimitError as error:
        return False, str(error)
    sizes, port = buffers(
        config,
        board,
        weight_bits=weight_bits,
        group_size=group_size,
        kv_bits=kv_bits,
        slots=slots,
    )
    ports, memory = kernel_of(board).kv_ports, board.memory
    total = sum(sizes) + ports * port
    if total > memory.pool_bytes:
        return False, (
            f"weights and KV cache take {total / MIB:.0f} MiB of contiguous memory (slots {slots}, "
            f"kv_bits {kv_bits}, context {config.seq_len}), {board.title} has "
            f"{memory.pool_bytes / MIB:.0f} MiB"
        )
    # Buffers go to the banks round-robin, weights first. A master reaches one bank only.
    banks = [0] * memory.banks
    first = 0 if kernel_of(board).shared_masters else len(sizes)
    for i, size in [*enumerate(sizes), *enumerate([port] * ports, first)]:
        banks[i % memory.banks] += size
    if max(banks) > memory.bank_bytes:
        return False, (
            f"one of {memory.banks} banks would hold {max(banks) / MIB:.0f} MiB of weights and "
            f"KV cache (slots {slots}, kv_bits {kv_bits}, context {config.seq_len}), and has "
            f"{memory.bank_bytes / MIB:.0f} MiB"
        )
    return True, ""
