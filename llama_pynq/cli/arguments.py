"""Options shared by several commands, and opening the overlay and model that they select."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from llama_pynq.errors import LlamaPynqError

if TYPE_CHECKING:
    from pynq.pl_server.device import Device

    from llama_pynq.engine.llama import Llama
    from llama_pynq.llama_overlay import LlamaOverlay


def device_options(
    board: str = "emulate this board: its limits, its memory, its modelled power",
) -> argparse.ArgumentParser:
    """Return a parent parser with the options that select a device; `board` is --board's help."""
    where = argparse.ArgumentParser(add_help=False)
    group = where.add_argument_group("device")
    group.add_argument("--overlay", metavar="FILE", help="default: the one for the detected device")
    group.add_argument("--trust", action="store_true", help="load an emulated FILE that is not "
                       "known: it contains native code, and loading it runs that code")  # fmt: skip
    group.add_argument("--device", metavar="NAME", help="one of several boards or cards: its "
                        "number, name or address, as llama-pynq info lists them")  # fmt: skip
    group.add_argument("--emulate", action="store_true", help="use no board, even if there is one")
    group.add_argument("--board", metavar="NAME", help=board)
    group.add_argument("--threads", type=int, metavar="N",
                       help="threads of the emulated device; default: all CPUs")  # fmt: skip
    return where


def excluded(args: argparse.Namespace) -> str | None:
    """What is wrong with the device's options; None if nothing is.

    argparse's own groups of exclusive options lose their place in the help of a parent parser.
    """
    given = [f"--{name}" for name in ("device", "emulate", "board") if getattr(args, name, None)]
    if len(given) < 2:
        return None
    return f"argument {given[1]}: not allowed with argument {given[0]}"


def model_options(devices: argparse.ArgumentParser | None = None) -> argparse.ArgumentParser:
    """Return a parent parser with `device_options` and the options that select a model."""
    device = argparse.ArgumentParser(add_help=False, parents=[devices or device_options()])
    group = device.add_argument_group("model")
    group.add_argument("--model", metavar="FILE", help="llama2.c checkpoint or packed model; "
                       "default: the bundled one")  # fmt: skip
    group.add_argument("--tokenizer", metavar="FILE", help="llama2.c's tokenizer.bin or a "
                       "sentencepiece model; default: the bundled or packed one")  # fmt: skip
    group.add_argument("--rope-theta", type=float, metavar="X", help="base of the rotary "
                       "embedding; a llama2.c file lacks it (10000)")  # fmt: skip
    group.add_argument("--reading", choices=("export",), help="read a llama2.c file of version 2 "
                       "whose groups straddle rows in export.py's order")  # fmt: skip
    group.add_argument("--context", type=int, metavar="N", help="tokens that a text may have, "
                       "prompt included; fewer make the KV cache smaller; default: the model's "
                       "context, or the kernel's limit")  # fmt: skip
    group.add_argument(
        "--template",
        metavar="NAME",
        help="chat template instead of the file's: "
        "chatml, llama2, llama3, zephyr, or a template's text in Jinja",
    )
    group.add_argument("--group-size", type=int, choices=(32, 64), help="quantised values per "
                       "scale; default: the checkpoint's, or 64")  # fmt: skip
    group.add_argument("--weight-bits", type=int, choices=(8, 4), help="4: half the weight bytes "
                       "per token, less accurate; default: 8, or as packed")  # fmt: skip
    group.add_argument("--kv-bits", type=int, choices=(32, 8), default=32, help="format of "
                       "the KV cache: float32, or int8 with scales (%(default)s)")  # fmt: skip
    return device


def open_overlay(args: argparse.Namespace) -> LlamaOverlay:
    """Open the overlay on the device that the options select."""
    from llama_pynq.llama_overlay import LlamaOverlay

    return LlamaOverlay(args.overlay, device=selected_device(args))


def selected_device(args: argparse.Namespace) -> Device:
    """Return the device that the options select; it is neither opened nor locked."""
    from llama_pynq.emulation.device import MAX_THREADS, EmulatedDevice
    from llama_pynq.overlay_store.devices import find_device, is_emulated

    if args.threads is not None and not 1 <= args.threads <= MAX_THREADS:
        raise LlamaPynqError(f"--threads is {args.threads}: it must be 1 to {MAX_THREADS}")
    if args.board is not None:
        return EmulatedDevice(args.board, threads=args.threads, trust=args.trust)
    device = EmulatedDevice() if args.emulate else find_device(args.device)
    if not is_emulated(device):
        if args.threads is None:
            return device
        raise LlamaPynqError(
            f"--threads is for the emulated device, and {device.name} is a board: add --emulate, "
            "or leave out --threads"
        )
    if args.threads is None and not args.trust:
        return device
    return EmulatedDevice(threads=args.threads, trust=args.trust)


def rope_theta_of(args: argparse.Namespace) -> float | None:
    """The base of the rotary embedding that the user gives instead of the checkpoint's."""
    from llama_pynq.utils.validate import positive_number

    return None if args.rope_theta is None else positive_number("--rope-theta", args.rope_theta)


def load_model(overlay: LlamaOverlay, args: argparse.Namespace, slots: int | None = None) -> Llama:
    """Load the model that the options select; `slots` as for `LlamaDriver.load_model`."""
    return overlay.load_model(
        args.model, args.tokenizer, group_size=args.group_size, weight_bits=args.weight_bits,
        kv_bits=args.kv_bits, reading=args.reading, rope_theta=args.rope_theta,
        context=args.context, chat_template=args.template, slots=slots,
    )  # fmt: skip
