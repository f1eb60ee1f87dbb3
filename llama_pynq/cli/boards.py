"""``llama-pynq boards``: compare boards for a model (modelled)."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from typing import TYPE_CHECKING

from llama_pynq.cli.output import file_to_write, force_option, json_option, print_json
from llama_pynq.errors import LlamaPynqError
from llama_pynq.utils.files import user_path

if TYPE_CHECKING:
    from llama_pynq.checkpoint.config import ModelConfig


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the commands of this module to the parser."""
    compare = commands.add_parser(
        "boards", help="compare boards for a model: whether it fits, and its speed (modelled)"
    )
    which = compare.add_mutually_exclusive_group()
    which.add_argument("--model", metavar="FILE", help="llama2.c checkpoint or packed model; "
                       "default: the bundled one")  # fmt: skip
    which.add_argument("--shape", metavar="NAME", help="instead of a file, a shape: stories15M, "
                       "stories42M, stories110M, tinyllama or llama2-7b")  # fmt: skip
    compare.add_argument("--context", type=int, metavar="N", help="positions in use, and room for "
                         "them in the KV cache; default: 256 in use, and room for the model's "
                         "whole context")  # fmt: skip
    compare.add_argument("--rope-theta", type=float, metavar="X", help="as for the commands that "
                         "load a model; no figure depends on it")  # fmt: skip
    compare.add_argument("--reading", choices=("export",), help="as for the commands that load a "
                         "model; no figure depends on it")  # fmt: skip
    compare.add_argument("--group-size", type=int, choices=(32, 64), help="quantised values per "
                         "scale; default: the model's, or 64")  # fmt: skip
    compare.add_argument("--weight-bits", type=int, choices=(8, 4), help="default: 8, or as "
                         "packed")  # fmt: skip
    compare.add_argument("--kv-bits", type=int, choices=(32, 8), default=32, help="(%(default)s)")
    compare.add_argument("--plot", metavar="FILE", help="draw the roofline: .png, .svg or .pdf")
    force_option(compare)
    json_option(compare)


def _boards(args: argparse.Namespace) -> int:
    from llama_pynq.report.boards import boards_facts, boards_table, compare
    from llama_pynq.report.roofline import plot_roofline

    plot = None if args.plot is None else file_to_write(args.plot, args.force)
    name, config, group_size, weight_bits = _shape(args)
    context = min(256, config.seq_len) if args.context is None else args.context
    if not 1 <= context <= config.seq_len:
        raise LlamaPynqError(
            f"--context is {context}: it must be 1 to {config.seq_len}, the model's context"
        )
    if args.context is not None:
        config = replace(config, seq_len=context)
    if weight_bits == 4 and group_size == 32:
        raise LlamaPynqError("--group-size is 32: int4 weights come in groups of 64 only")
    rows = compare(
        config,
        context=context,
        weight_bits=weight_bits,
        group_size=group_size,
        kv_bits=args.kv_bits,
    )
    title = f"{name}: int{weight_bits} weights, {args.kv_bits}-bit KV cache, context {context}"
    if plot is not None:
        plot_roofline(rows, title, plot)
    if args.json:
        print_json({"model": title, "boards": boards_facts(rows)})
    else:
        print(f"{title}\n\n{boards_table(rows)}")
    return 0


def _shape(args: argparse.Namespace) -> tuple[str, ModelConfig, int | None, int]:
    """Return a model's name and shape, and the group size and weight bits of its packed form."""
    from llama_pynq.checkpoint.gguf import is_gguf
    from llama_pynq.checkpoint.load import load_checkpoint
    from llama_pynq.checkpoint.shapes import SHAPES
    from llama_pynq.models import BUNDLED
    from llama_pynq.weights.packed import is_packed, open_packed

    bits = args.weight_bits or 8
    if args.shape is not None:
        if args.shape not in SHAPES:
            raise LlamaPynqError(
                f"there is no shape {args.shape!r}: choose one of {', '.join(SHAPES)}"
            )
        return args.shape, SHAPES[args.shape], args.group_size, bits
    path = user_path(args.model) if args.model is not None else BUNDLED / "stories.bin"
    if os.path.isfile(path) and is_packed(path):
        packed = open_packed(path)
        for option, asked, has in (
            ("--group-size", args.group_size, packed.group_size),
            ("--weight-bits", args.weight_bits, packed.weight_bits),
        ):
            if asked not in (None, has):
                raise LlamaPynqError(
                    f"{option} is {asked}, but {path} is packed with {has}: leave it out, or "
                    "give the checkpoint"
                )
        return path.name, packed.config, packed.group_size, packed.weight_bits
    # Only the shape counts.
    reading = "export" if path.is_file() and not is_gguf(path) else None
    with load_checkpoint(path, reading=reading) as checkpoint:
        return path.name, checkpoint.config, args.group_size, bits


COMMANDS = {"boards": _boards}
