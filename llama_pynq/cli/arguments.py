"""Options that several commands share, and the overlay and model that they name."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from llama_pynq.errors import LlamaPynqError

if TYPE_CHECKING:
    from llama_pynq.engine.llama import Llama
    from llama_pynq.llama_overlay import LlamaOverlay


def device_options() -> argparse.ArgumentParser:
    """Options that choose a device: a parent for the parser of a command."""
    where = argparse.ArgumentParser(add_help=False)
    group = where.add_argument_group("device")
    group.add_argument("--overlay", metavar="FILE", help="default: the one for the device found")
    group.add_argument("--emulate", action="store_true", help="use no board, even if one is there")
    group.add_argument("--threads", type=int, metavar="N",
                       help="of the emulated device; default: all CPUs")  # fmt: skip
    return where


def model_options() -> argparse.ArgumentParser:
    """`device_options`, and options that choose a model."""
    device = argparse.ArgumentParser(add_help=False, parents=[device_options()])
    group = device.add_argument_group("model")
    group.add_argument("--model", metavar="FILE", help="llama2.c checkpoint or packed model; "
                       "default: the bundled one")  # fmt: skip
    group.add_argument("--tokenizer", metavar="FILE", help="llama2.c's tokenizer.bin or a "
                       "sentencepiece model; default: the bundled or packed one")  # fmt: skip
    group.add_argument("--group-size", type=int, choices=(32, 64), help="int8 values that share a "
                       "scale; default: the checkpoint's, or 64")  # fmt: skip
    group.add_argument("--weight-bits", type=int, choices=(8, 4), help="4: half the bytes that a "
                       "token reads, less accurate; default 8, or what is packed")  # fmt: skip
    group.add_argument("--kv-bits", type=int, choices=(32, 8), default=32, help="what the KV "
                       "cache holds: float32, or int8 with scales (%(default)s)")  # fmt: skip
    return device


def open_overlay(args: argparse.Namespace) -> LlamaOverlay:
    """Open the overlay on the device that the options name."""
    from llama_pynq.emulation.device import MAX_THREADS, EmulatedDevice
    from llama_pynq.llama_overlay import LlamaOverlay
    from llama_pynq.overlay_store.devices import find_device

    if args.threads is not None and not 1 <= args.threads <= MAX_THREADS:
        raise LlamaPynqError(f"--threads is {args.threads}: it must be 1 to {MAX_THREADS}")
    emulate = args.emulate or args.threads is not None
    device = EmulatedDevice(threads=args.threads) if emulate else find_device()
    return LlamaOverlay(args.overlay, device=device)


def load_model(overlay: LlamaOverlay, args: argparse.Namespace) -> Llama:
    """Load the model that the options name."""
    return overlay.load_model(
        args.model, args.tokenizer, group_size=args.group_size, weight_bits=args.weight_bits,
        kv_bits=args.kv_bits,
    )  # fmt: skip
