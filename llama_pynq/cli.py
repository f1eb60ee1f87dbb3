"""The command line: ``llama-pynq generate|info|bench|pack``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import __version__
from .errors import LlamaPynqError

if TYPE_CHECKING:
    from .llama import Generation, Llama
    from .llama_overlay import LlamaOverlay


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llama-pynq",
        description="Llama 2 on an FPGA, or on the emulated device where there is no board.",
    )
    parser.add_argument("--version", action="version", version=f"llama_pynq {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    device = argparse.ArgumentParser(add_help=False)
    group = device.add_argument_group("device and model")
    group.add_argument("--overlay", metavar="FILE", help="default: the one for the device found")
    group.add_argument("--emulate", action="store_true", help="use no board, even if one is there")
    group.add_argument("--threads", type=int, help="of the emulated device; default: all CPUs")
    group.add_argument("--model", metavar="FILE", help="llama2.c checkpoint or packed model; "
                       "default: the bundled one")  # fmt: skip
    group.add_argument("--tokenizer", metavar="FILE", help="tokenizer.bin or a sentencepiece model")
    group.add_argument("--group-size", type=int, choices=(32, 64), help="int8 values that share a "
                       "scale; default: the checkpoint's, or what packs tightest")  # fmt: skip

    generate = commands.add_parser("generate", parents=[device], help="continue a text")
    generate.add_argument("prompt", nargs="?", default="Once upon a time")
    generate.add_argument("--max-new-tokens", type=int, default=256, metavar="N")
    generate.add_argument(
        "--temperature", type=float, default=0.8, help="0 is greedy (%(default)s)"
    )
    generate.add_argument("--top-k", type=int, default=0, help="0 is off (%(default)s)")
    generate.add_argument("--top-p", type=float, default=0.9, help="1 is off (%(default)s)")
    generate.add_argument("--min-p", type=float, default=0.0, help="0 is off (%(default)s)")
    generate.add_argument("--repetition-penalty", type=float, default=1.0, help="1 is off")
    generate.add_argument("--stop", action="append", default=[], metavar="TEXT")
    generate.add_argument("--seed", type=int, help="default: drawn, and printed")

    commands.add_parser("info", parents=[device], help="devices, overlay, kernel limits, model")

    bench = commands.add_parser("bench", parents=[device], help="measure speed and memory")
    bench.add_argument("--tokens", type=int, default=128, metavar="N", help="(%(default)s)")
    bench.add_argument("--repeats", type=int, default=5, metavar="N", help="(%(default)s)")
    bench.add_argument("--json", action="store_true")

    pack = commands.add_parser(
        "pack", parents=[device], help="write the packed file that a device loads directly"
    )
    pack.add_argument("output", help="file to write, such as model.safetensors")
    pack.add_argument("--force", action="store_true", help="replace an existing file")
    return parser


def _open(args: argparse.Namespace) -> LlamaOverlay:
    from .emulation.device import EmulatedDevice
    from .llama_overlay import LlamaOverlay, find_device

    if args.threads is not None and args.threads < 1:
        raise LlamaPynqError(f"--threads is {args.threads}: it must be at least 1")
    emulate = args.emulate or args.threads is not None
    device = EmulatedDevice(threads=args.threads) if emulate else find_device()
    return LlamaOverlay(args.overlay, device=device)


def _load(overlay: LlamaOverlay, args: argparse.Namespace) -> Llama:
    return overlay.load_model(args.model, args.tokenizer, group_size=args.group_size)


def _generate(args: argparse.Namespace) -> int:
    finished: list[Generation] = []
    with _open(args) as overlay:
        llama = _load(overlay, args)
        pieces = overlay.stream(
            args.prompt,
            max_new_tokens=args.max_new_tokens,
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            min_p=args.min_p,
            repetition_penalty=args.repetition_penalty,
            stop=args.stop,
            seed=args.seed,
            on_finish=finished.append,
        )
        print(args.prompt, end="", flush=True)
        try:
            for piece in pieces:
                print(piece, end="", flush=True)
        finally:
            print(flush=True)
        out = finished[0]
        print(
            f"\n{len(out.tokens)} tokens, {out.tokens_per_second:.1f} tokens/s (measured, host "
            f"clock), first after {out.prompt_seconds * 1e3:.0f} ms, seed {out.seed}\n"
            f"{overlay.describe()}; model loaded in {llama.load_seconds:.2f} s",
            file=sys.stderr,
        )
    return 0


def _info(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from pynq.pl_server.device import Device

    with _open(args) as overlay:
        llama = _load(overlay, args)
        print(f"llama_pynq {__version__}")
        print("\ndevices")
        for device in Device.devices:
            print(f"  {device.name}{'  (in use)' if device is overlay.device else ''}")
        if overlay.device not in Device.devices:
            print(f"  {overlay.device.name}  (in use)")
        print(f"\noverlay\n  {overlay.bitfile_name}\n  {overlay.describe()}")
        print("\nkernel limits")
        for name, value in asdict(overlay.llama.limits).items():
            print(f"  {name:<17} {value}")
        print("\nmodel")
        for name, value in asdict(llama.config).items():
            print(f"  {name:<17} {value}")
        print(f"  {'weights':<17} {llama.packed.weight_bytes / 2**20:.1f} MiB packed, "
              f"{llama.packed.note}")  # fmt: skip
        print(f"  {'tokenizer':<17} {llama.tokenizer.path}")
    return 0


def _bench(args: argparse.Namespace) -> int:
    from . import bench

    for name, value in (("--tokens", args.tokens), ("--repeats", args.repeats)):
        if value < 1:
            raise LlamaPynqError(f"{name} is {value}: it must be at least 1")
    with _open(args) as overlay:
        bench.main(overlay, _load(overlay, args), args.tokens, args.repeats, args.json)
    return 0


def _pack(args: argparse.Namespace) -> int:
    from .checkpoint import load_checkpoint
    from .llama import BUNDLED
    from .packing import QuantizedModel, Target, write_packed
    from .tokenizer import Tokenizer

    output = Path(args.output)
    if output.exists() and not args.force:
        raise LlamaPynqError(f"{output} exists: choose another name, or replace it with --force")
    model = Path(args.model) if args.model else BUNDLED / "stories.bin"
    tokenizer = Path(args.tokenizer) if args.tokenizer else None
    if tokenizer is None and not args.model:
        tokenizer = BUNDLED / "tokenizer.bin"
    with _open(args) as overlay:
        target = Target.of(overlay.llama.limits)
        device = overlay.describe()
    with load_checkpoint(model) as checkpoint:
        text = b""
        if tokenizer is not None:
            Tokenizer.load(tokenizer).check_vocab(checkpoint.config.vocab_size)
            text = tokenizer.read_bytes()
        quantized = QuantizedModel(checkpoint, args.group_size)
        write_packed(quantized, target, output, text)
    print(f"{output}: {output.stat().st_size / 2**20:.1f} MiB, {quantized.note}, "
          f"{'with' if text else 'without'} a tokenizer, for {device}")  # fmt: skip
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; its exit status: 0, 1 after an error, 130 after Ctrl-C."""
    args = _parser().parse_args(argv)
    commands = {"generate": _generate, "info": _info, "bench": _bench, "pack": _pack}
    try:
        return commands[args.command](args)
    except LlamaPynqError as error:
        print(f"llama-pynq: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("llama-pynq: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader went away (| head): nothing is wrong, but Python must not flush again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
