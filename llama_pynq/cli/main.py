"""The command line, ``llama-pynq COMMAND``; parts of it are `cli_overlay` and `cli_notebooks`."""

from __future__ import annotations

import argparse
import functools
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llama_pynq import __version__
from llama_pynq.cli import notebooks, overlay
from llama_pynq.errors import LlamaPynqError
from llama_pynq.utils.files import write_new

if TYPE_CHECKING:
    from llama_pynq.checkpoint.config import ModelConfig
    from llama_pynq.engine.llama import Generation, Llama
    from llama_pynq.kernel.limits import KernelLimits
    from llama_pynq.llama_overlay import LlamaOverlay
    from llama_pynq.overlay_store.record import OverlayRecord


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llama-pynq",
        description="Llama 2 on an FPGA, or on the emulated device where there is no board.",
    )
    parser.add_argument("--version", action="version", version=f"llama_pynq {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    where = argparse.ArgumentParser(add_help=False)
    group = where.add_argument_group("device")
    group.add_argument("--overlay", metavar="FILE", help="default: the one for the device found")
    group.add_argument("--emulate", action="store_true", help="use no board, even if one is there")
    group.add_argument("--threads", type=int, metavar="N",
                       help="of the emulated device; default: all CPUs")  # fmt: skip
    device = argparse.ArgumentParser(add_help=False, parents=[where])
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

    generate = commands.add_parser(
        "generate",
        parents=[device],
        help="continue a text",
        description="Continue a text on a board, or on the emulated device where there is none. "
        "The text goes to standard output; speed, seed and device go to standard error.",
    )
    generate.add_argument("prompt", nargs="*", help="(Once upon a time); several are a batch")
    add = generate.add_argument
    add("--max-new-tokens", type=int, default=512, metavar="N", help="(%(default)s)")
    add("--temperature", type=float, default=0.8, metavar="T", help="0 is greedy (%(default)s)")
    add("--top-k", type=int, default=0, metavar="K", help="0 is off (%(default)s)")
    add("--top-p", type=float, default=0.9, metavar="P", help="1 is off (%(default)s)")
    add("--min-p", type=float, default=0.0, metavar="P", help="0 is off (%(default)s)")
    add("--repetition-penalty", type=float, default=1.0, metavar="X", help="1 is off (%(default)s)")
    add("--stop", action="append", default=[], metavar="TEXT",
        help="end before this text; may be given several times")  # fmt: skip
    add("--seed", type=int, metavar="N", help="same seed, same text; default: drawn, and printed")

    commands.add_parser(
        "info",
        parents=[device],
        help="devices, overlay, kernel limits, model",
        description="Show the devices, and which is used; the overlay and who built it; what its "
        "kernel can take; and the model as it is loaded.",
    )

    bench = commands.add_parser(
        "bench",
        parents=[device],
        help="measure speed and memory",
        description="Measure tokens/s of decode and prefill, the time to the first token, loading "
        "and memory on the device found. Figures of the emulated device are this computer's, not "
        "a board's.",
    )
    bench.add_argument("--tokens", type=int, default=128, metavar="N",
                       help="length of the text and of the prompt (%(default)s)")  # fmt: skip
    bench.add_argument("--repeats", type=int, default=5, metavar="N",
                       help="of each measurement; the median counts (%(default)s)")  # fmt: skip
    bench.add_argument("--random", metavar="NAME", help="a model with random weights instead: "
                       "stories15M, stories42M or stories110M")  # fmt: skip
    bench.add_argument("--power", action="store_true", help="measure power and energy too, from "
                       "whatever sensor there is; an emulated board's is modelled")  # fmt: skip
    bench.add_argument("--meter", metavar="FILE", help="with --power: an external meter's CSV "
                       "file, with a column 'watts', or 'volts' and 'amperes'")  # fmt: skip
    bench.add_argument("--json", action="store_true", help="print JSON, not a table")

    selftest = commands.add_parser(
        "selftest",
        parents=[where],
        help="check that a device computes what it should; a report to paste into an issue",
    )
    selftest.add_argument("--shape", default="stories15M", metavar="NAME", help="of the random "
                          "weights to measure speed with: stories15M, stories42M or stories110M "
                          "(%(default)s)")  # fmt: skip
    selftest.add_argument("--quick", action="store_true", help="measure speed with the bundled "
                          "model: nothing is made, but it says little of a fast board")  # fmt: skip
    selftest.add_argument("--output", metavar="FILE", help="write the report to a file, too")

    pack = commands.add_parser(
        "pack",
        parents=[device],
        help="write the packed file that a device loads directly",
        description="Write a model in the hardware's order, its tokenizer with it, as one file: "
        "what --model and --tokenizer name, or the bundled model. It is for the device found, or "
        "with --board for another, which need not be there.",
    )
    pack.add_argument("--board", metavar="NAME", help="pack for this board, such as kv260, not for "
                      "the device found")  # fmt: skip
    pack.add_argument("output", help="file to write, such as model.safetensors")
    pack.add_argument("--force", action="store_true", help="replace an existing file")

    compare = commands.add_parser(
        "boards", help="which board for a model: what fits, and how fast it would be (modelled)"
    )
    which = compare.add_mutually_exclusive_group()
    which.add_argument("--model", metavar="FILE", help="llama2.c checkpoint or packed model; "
                       "default: the bundled one")  # fmt: skip
    which.add_argument("--shape", metavar="NAME", help="the shape of stories15M, stories42M, "
                       "stories110M, tinyllama or llama2-7b instead of a file")  # fmt: skip
    compare.add_argument("--context", type=int, metavar="N", help="positions in use; default: 256, "
                         "or all that the model has")  # fmt: skip
    compare.add_argument("--group-size", type=int, choices=(32, 64), help="int8 values that share "
                         "a scale; default: the model's, or 64")  # fmt: skip
    compare.add_argument("--weight-bits", type=int, choices=(8, 4), help="default 8, or what is "
                         "packed")  # fmt: skip
    compare.add_argument("--kv-bits", type=int, choices=(32, 8), default=32, help="(%(default)s)")
    compare.add_argument("--plot", metavar="FILE", help="draw the roofline: .png, .svg or .pdf")

    overlay.add_commands(commands)
    notebooks.add_commands(commands)
    return parser


def _open(args: argparse.Namespace) -> LlamaOverlay:
    from llama_pynq.emulation.device import MAX_THREADS, EmulatedDevice
    from llama_pynq.llama_overlay import LlamaOverlay, find_device

    if args.threads is not None and not 1 <= args.threads <= MAX_THREADS:
        raise LlamaPynqError(f"--threads is {args.threads}: it must be 1 to {MAX_THREADS}")
    emulate = args.emulate or args.threads is not None
    device = EmulatedDevice(threads=args.threads) if emulate else find_device()
    return LlamaOverlay(args.overlay, device=device)


def _load(overlay: LlamaOverlay, args: argparse.Namespace) -> Llama:
    return overlay.load_model(
        args.model, args.tokenizer, group_size=args.group_size, weight_bits=args.weight_bits,
        kv_bits=args.kv_bits,
    )  # fmt: skip


def _generate(args: argparse.Namespace) -> int:
    prompts = args.prompt or ["Once upon a time"]
    options = {
        "max_new_tokens": args.max_new_tokens,
        "temperature": args.temperature,
        "top_k": args.top_k,
        "top_p": args.top_p,
        "min_p": args.min_p,
        "repetition_penalty": args.repetition_penalty,
        "stop": args.stop,
        "seed": args.seed,
    }
    finished: list[Generation] = []
    with _open(args) as overlay:
        llama = _load(overlay, args)
        if len(prompts) == 1:
            pieces = overlay.stream(prompts[0], on_finish=finished.append, **options)
            print(prompts[0], end="", flush=True)
            try:
                for piece in pieces:
                    print(piece, end="", flush=True)
            finally:
                print(flush=True)
        else:
            batch = llama.generate(prompts, **options)
            finished += batch if isinstance(batch, list) else [batch]
            print("\n\n".join(p + out.text for p, out in zip(prompts, finished)), flush=True)
        print(file=sys.stderr)
        for out in finished:
            n = len(out.tokens)
            rate = f"{out.tokens_per_second:.1f} tokens/s (measured, host clock), " if n > 1 else ""
            print(
                f"{n} token{'s' * (n != 1)}, {rate}first after {out.prompt_seconds * 1e3:.0f} ms, "
                f"seed {out.seed}",
                file=sys.stderr,
            )
        print(f"{overlay.describe()}; model loaded in {llama.load_seconds:.2f} s", file=sys.stderr)
    return 0


def _info(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from pynq.pl_server.device import Device

    from llama_pynq.engine.llama import BUNDLED

    def section(title: str, values: dict[str, object]) -> None:
        print(f"\n{title}")
        for name, value in values.items():
            print(f"  {name:<16} {value}".rstrip())

    with _open(args) as overlay:
        llama = _load(overlay, args)
        print(f"llama_pynq {__version__}")
        try:
            others = dict.fromkeys((device.name for device in Device.devices), "")
        except RuntimeError as error:  # PYNQ's, of remote boards that do not answer
            others = {"others": f"not known: {error}"}
        section("devices", {**others, overlay.device.name: "(in use)"})
        built = _built(overlay.record) if overlay.is_board else {}
        section("overlay", {"file": overlay.bitfile_name, "device": overlay.describe(), **built})
        section("kernel limits", asdict(overlay.llama.limits))
        weights = f"{llama.packed.weight_bytes / 2**20:.1f} MiB packed, {llama.packed.note}"
        section(
            "model",
            {
                "file": args.model or BUNDLED / "stories.bin",
                "tokenizer": llama.tokenizer.path,
                "weights": weights,
                "KV cache": f"{overlay.llama.kv_format}, {overlay.llama.slots} sequences",
                **asdict(llama.config),
            },
        )
    return 0


def _built(record: OverlayRecord | None) -> dict[str, object]:
    """Who built an overlay, with what, and what was seen of it."""
    if record is None:
        return {
            "record": "none beside the file: not known who built it, or whether it was measured"
        }
    return {
        "built": record.origin,
        "clock": "not recorded" if record.clock_mhz is None else f"{record.clock_mhz:g} MHz",
        "measured": record.measured or "no",
    }


def _bench(args: argparse.Namespace) -> int:
    from dataclasses import replace

    from llama_pynq.checkpoint.random import random_model
    from llama_pynq.measure.bench import measure
    from llama_pynq.measure.power import rails

    # A rate takes two tokens: it leaves out the first, which waits for the prompt.
    for name, value, least in (("--tokens", args.tokens, 2), ("--repeats", args.repeats, 1)):
        if value < least:
            raise LlamaPynqError(f"{name} is {value}: it must be at least {least}")
    if args.random is not None:
        for name, given in (("--model", args.model), ("--tokenizer", args.tokenizer)):
            if given is not None:
                raise LlamaPynqError(
                    f"--random makes a model and a tokenizer of its own: leave out {name}, "
                    "or --random"
                )
        args.model, args.tokenizer = random_model(args.random)
    if args.meter is not None and not args.power:
        raise LlamaPynqError("--meter is only read with --power: add it")
    with _open(args) as overlay:
        llama = _load(overlay, args)
        power = rails(overlay, args.meter) if args.power else None
        report = measure(overlay, llama, args.tokens, args.repeats, power)
    if args.random is not None:
        report = replace(report, model=f"{args.random}'s shape, random weights; {report.model}")
    print(report.json() if args.json else report.table())
    return 0


def _selftest(args: argparse.Namespace) -> int:
    from llama_pynq.checkpoint.shapes import STORIES
    from llama_pynq.measure.selftest import run

    if args.shape not in STORIES:
        raise LlamaPynqError(
            f"there is no random model {args.shape!r}: choose one of {', '.join(STORIES)}"
        )
    if args.output is not None and Path(args.output).exists():
        raise LlamaPynqError(f"{args.output} exists: give the name of a new file")
    with _open(args) as overlay:
        found = run(
            overlay, None if args.quick else args.shape, functools.partial(print, flush=True)
        )
        if args.output is not None:  # before the device is given back: that may fail, too
            write_new(Path(args.output), found.text().encode() + b"\n")
            print(f"written to {args.output}", file=sys.stderr)
    if found.interrupted:
        raise KeyboardInterrupt
    return 0 if found.passed else 1


def _board_limits(name: str) -> KernelLimits:
    """Limits of a board by its name or its header's, from the kernel's source."""
    from llama_pynq.boards import boards
    from llama_pynq.kernel.config import board_headers
    from llama_pynq.kernel.limits import KernelLimits

    headers = board_headers()
    board = name.lower().replace("_", "-")
    if board in boards():
        board = boards()[board].header
    if board not in headers:
        names = dict.fromkeys([*boards(), *sorted(headers)])
        raise LlamaPynqError(f"there is no board {name!r}: choose one of {', '.join(names)}")
    return KernelLimits.from_header(headers[board])


def _pack(args: argparse.Namespace) -> int:
    from llama_pynq.checkpoint.load import load_checkpoint
    from llama_pynq.engine.llama import BUNDLED
    from llama_pynq.kernel.config import Target
    from llama_pynq.kernel.limits import check_limits
    from llama_pynq.tokenizer.load import load_tokenizer
    from llama_pynq.weights.packed import is_packed, write_packed
    from llama_pynq.weights.quantize import QuantizedModel

    output = Path(args.output)
    if output.is_dir():
        raise LlamaPynqError(f"{output} is a folder: give the name of the file to write")
    if output.exists() and not args.force:
        raise LlamaPynqError(f"{output} exists: choose another name, or replace it with --force")
    model = Path(args.model) if args.model else BUNDLED / "stories.bin"
    tokenizer = Path(args.tokenizer) if args.tokenizer else None
    if tokenizer is None and not args.model:
        tokenizer = BUNDLED / "tokenizer.bin"
    if model.is_file() and is_packed(model):
        raise LlamaPynqError(f"{model} is packed already: give the checkpoint that it was made of")
    if args.board is not None:
        limits = _board_limits(args.board)
        device = args.board.lower().replace("_", "-")
        if device != limits.board:
            device += f", whose kernel is {limits.board}'s"
    else:
        with _open(args) as overlay:
            limits, device = overlay.llama.limits, overlay.describe()
    target = Target.of(limits)
    with load_checkpoint(model) as checkpoint:
        check_limits(checkpoint.config, limits)
        text = b""
        if tokenizer is not None:
            load_tokenizer(tokenizer).check_vocab(checkpoint.config.vocab_size)
            text = tokenizer.read_bytes()
        quantized = QuantizedModel(checkpoint, args.group_size, args.weight_bits or 8)
        write_packed(quantized, target, output, text)
    print(f"{output}: {output.stat().st_size / 2**20:.1f} MiB, {quantized.note}, "
          f"{'with' if text else 'without'} a tokenizer, for {device}")  # fmt: skip
    return 0


def _boards(args: argparse.Namespace) -> int:
    from llama_pynq.report.boards import boards_table, compare
    from llama_pynq.report.roofline import plot_roofline

    name, config, group_size, weight_bits = _shape(args)
    context = min(256, config.seq_len) if args.context is None else args.context
    if not 1 <= context <= config.seq_len:
        raise LlamaPynqError(
            f"--context is {context}: the model has positions for 1 to {config.seq_len}"
        )
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
    if args.plot is not None:
        plot_roofline(rows, title, Path(args.plot))
    print(f"{title}\n\n{boards_table(rows)}")
    return 0


def _shape(args: argparse.Namespace) -> tuple[str, ModelConfig, int | None, int]:
    """A model's name, its shape, and how it is or would be packed."""
    from llama_pynq.checkpoint.load import load_checkpoint
    from llama_pynq.checkpoint.shapes import SHAPES
    from llama_pynq.engine.llama import BUNDLED
    from llama_pynq.weights.packed import is_packed, open_packed

    bits = args.weight_bits or 8
    if args.shape is not None:
        if args.shape not in SHAPES:
            raise LlamaPynqError(
                f"there is no shape {args.shape!r}: choose one of {', '.join(SHAPES)}"
            )
        return args.shape, SHAPES[args.shape], args.group_size, bits
    path = Path(args.model) if args.model else BUNDLED / "stories.bin"
    if path.is_file() and is_packed(path):
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
    with load_checkpoint(path) as checkpoint:
        return path.name, checkpoint.config, args.group_size, bits


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; its exit status: 0, 1 after an error, 130 after Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal may lack the text's characters
    given, passed_on = notebooks.split(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(given, argparse.Namespace(passed_on=passed_on))
    commands = {
        "generate": _generate,
        "info": _info,
        "bench": _bench,
        "pack": _pack,
        "boards": _boards,
        "selftest": _selftest,
        **overlay.COMMANDS,
        **notebooks.COMMANDS,
    }
    try:
        status = commands[args.command](args)
        sys.stdout.flush()
        return status
    except LlamaPynqError as error:
        print(f"llama-pynq: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("llama-pynq: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _drop_output()  # the reader went away (| head): nothing is wrong
        return 1
    except OSError as error:
        _drop_output()
        print(f"llama-pynq: {error}", file=sys.stderr)
        return 1


def _drop_output() -> None:
    """Forget what cannot be written, or Python tries once more when it exits."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
