"""``llama-pynq pack``: write the packed file that a device loads directly."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from llama_pynq.cli.arguments import (
    device_options,
    model_options,
    open_overlay,
    rope_theta_of,
    selected_device,
)
from llama_pynq.cli.output import file_to_write, force_option
from llama_pynq.errors import DeviceBusy, LlamaPynqError, OverlayMismatch
from llama_pynq.utils.files import user_path

if TYPE_CHECKING:
    from llama_pynq.kernel.limits import KernelLimits


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the commands of this module to the parser."""
    pack = commands.add_parser(
        "pack",
        parents=[
            model_options(
                device_options(
                    board="pack for this board, such as kv260, not for the detected device"
                )
            )
        ],
        help="write the packed file that a device loads directly",
        description="Pack a model in the hardware's order, with its tokenizer, into one file: "
        "those of --model and --tokenizer, or the bundled ones. The file is for the detected "
        "device, or for the board of --board, which need not be present.",
    )
    pack.add_argument("output", metavar="FILE", help="file to write, such as model.safetensors")
    force_option(pack)


def _pack(args: argparse.Namespace) -> int:
    from llama_pynq.checkpoint.load import load_checkpoint
    from llama_pynq.engine.loading import context_of, cut_padding, tokenizer_inside
    from llama_pynq.kernel.limits import check_limits
    from llama_pynq.models import BUNDLED
    from llama_pynq.tokenizer.load import load_tokenizer, tokenizer_from_bytes
    from llama_pynq.weights.packed import is_packed, write_packed
    from llama_pynq.weights.quantize import QuantizedModel

    output = file_to_write(args.output, args.force, packed=True)
    model = user_path(args.model) if args.model is not None else BUNDLED / "stories.bin"
    tokenizer = user_path(args.tokenizer) if args.tokenizer is not None else None
    if tokenizer is None and args.model is None:
        tokenizer = BUNDLED / "tokenizer.bin"
    for option, given in (("--model", model), ("--tokenizer", tokenizer)):
        if given is not None and output.exists() and given.exists() and output.samefile(given):
            raise LlamaPynqError(
                f"{output} is also what {option} reads: give another name for the file to write"
            )
    if os.path.isdir(model) and output.exists() and any(map(output.samefile, model.iterdir())):
        raise LlamaPynqError(
            f"{output} is a file of the folder that --model reads: give another name for the file "
            "to write"
        )
    if args.output == "-":
        raise LlamaPynqError("pack writes no model to standard output: give the name of a file")
    if args.kv_bits == 8:
        raise LlamaPynqError(
            "--kv-bits is no part of a packed file: give it to the command that loads the file"
        )
    if os.path.isfile(model) and is_packed(model):
        raise LlamaPynqError(f"{model} is packed already: give the checkpoint it was made from")
    if args.board is not None:
        if args.overlay is not None:
            raise LlamaPynqError("--board packs without a device: leave out --overlay")
        device, limits = board_limits(args.board)
        if device != limits.board:
            device += f", whose kernel is {limits.board}'s"
    else:
        limits, device = _detected(args)
    target = limits.target
    with load_checkpoint(model, rope_theta=rope_theta_of(args), reading=args.reading) as checkpoint:
        context, note = context_of(checkpoint.config, limits, args.context, model)
        checkpoint.cut_context(context)
        check_limits(checkpoint.config, limits)
        if note:
            print(f"llama-pynq: {note}", file=sys.stderr)
        if tokenizer is not None:
            load_tokenizer(tokenizer)  # for its messages
            text = tokenizer.read_bytes()
        else:
            text = tokenizer_inside(checkpoint)
        if text:
            note = cut_padding(checkpoint, tokenizer_from_bytes(text, tokenizer or model))
            if note:
                print(f"llama-pynq: {note}", file=sys.stderr)
        if args.template is not None:
            checkpoint.chat_template = args.template
        quantized = QuantizedModel(checkpoint, args.group_size, args.weight_bits or 8)
        write_packed(quantized, target, output, text)
    print(f"{output}: {output.stat().st_size / 2**20:.1f} MiB, {quantized.note}, "
          f"{'with' if text else 'without'} a tokenizer, for {device}")  # fmt: skip
    return 0


def _detected(args: argparse.Namespace) -> tuple[KernelLimits, str]:
    """Limits and description of the selected device; by its header if it cannot be asked."""
    from llama_pynq.overlay_store.devices import describe_device, header_limits

    try:
        with open_overlay(args) as overlay:
            return overlay.llama.limits, overlay.describe()
    except (DeviceBusy, OverlayMismatch) as error:
        if args.overlay is not None:
            raise
        device = selected_device(args)
        header, limits = header_limits(device)
        if limits is None:
            raise
        print(f"llama-pynq: {error}. Packing by the config header {header}.h", file=sys.stderr)
        return limits, f"{describe_device(device)}, kernel {limits.board}"


def board_limits(name: str) -> tuple[str, KernelLimits]:
    """Return the key and the limits of a board, called by its name or its config header's."""
    from llama_pynq.boards import board_key, boards
    from llama_pynq.kernel.config import board_headers
    from llama_pynq.kernel.limits import KernelLimits

    headers = board_headers()
    key = board_key(name, dict.fromkeys([*boards(), *sorted(headers)]))
    header = boards()[key].header if key in boards() else key
    return key, KernelLimits.from_header(headers[header])


COMMANDS = {"pack": _pack}
