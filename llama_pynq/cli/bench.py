"""``llama-pynq bench`` and ``selftest``: measure a device, and check its results."""

from __future__ import annotations

import argparse
import functools
import sys
from dataclasses import asdict

from llama_pynq.cli.arguments import device_options, load_model, model_options, open_overlay
from llama_pynq.cli.output import file_to_write, force_option, json_option, print_json
from llama_pynq.errors import LlamaPynqError
from llama_pynq.utils.files import write_atomically, write_new


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the commands of this module to the parser."""
    bench = commands.add_parser(
        "bench",
        parents=[model_options()],
        help="measure speed and memory",
        description="Measure decode and prefill tokens/s, time to first token, load time and "
        "memory on the detected device. Figures of the emulated device are this computer's, not "
        "a board's.",
    )
    bench.add_argument("--max-new-tokens", type=int, default=128, metavar="N",
                       help="tokens of the text, and of the prompt (%(default)s)")  # fmt: skip
    bench.add_argument("--repeats", type=int, default=5, metavar="N",
                       help="runs per measurement; the median counts (%(default)s)")  # fmt: skip
    bench.add_argument("--shape", metavar="NAME", help="instead of a file, random weights in the "
                       "shape of stories15M, stories42M or stories110M")  # fmt: skip
    bench.add_argument("--power", action="store_true", help="also measure power and energy with "
                       "the sensors found; modelled for an emulated board")  # fmt: skip
    bench.add_argument("--meter", metavar="FILE", help="with --power: CSV file of an external "
                       "meter, with a column 'watts', or 'volts' and 'amperes', or with a unit: "
                       "Power [mW]")  # fmt: skip
    json_option(bench)

    selftest = commands.add_parser(
        "selftest",
        parents=[device_options()],
        help="check a device against golden answers; print a report to paste into an issue",
    )
    selftest.add_argument("--shape", default="stories15M", metavar="NAME", help="shape of the "
                          "random weights to measure speed with: stories15M, stories42M or "
                          "stories110M (%(default)s)")  # fmt: skip
    selftest.add_argument("--quick", action="store_true", help="measure speed with the bundled "
                          "model: nothing to generate, but too small for a fast board")  # fmt: skip
    selftest.add_argument("--output", metavar="FILE", help="also write the report to a file")
    force_option(selftest)
    json_option(selftest)


def _bench(args: argparse.Namespace) -> int:
    from dataclasses import replace

    from llama_pynq.checkpoint.random import random_model
    from llama_pynq.measure.bench import measure
    from llama_pynq.measure.power import rails

    # The decode rate excludes the first token, whose time is prefill: at least two are needed.
    for name, value, least in (
        ("--max-new-tokens", args.max_new_tokens, 2),
        ("--repeats", args.repeats, 1),
    ):
        if value < least:
            raise LlamaPynqError(f"{name} is {value}: it must be at least {least}")
    if args.shape is not None:
        for name, given in (("--model", args.model), ("--tokenizer", args.tokenizer)):
            if given is not None:
                raise LlamaPynqError(
                    f"--shape generates a model and a tokenizer of its own: leave out {name}, "
                    "or --shape"
                )
        args.model, args.tokenizer = random_model(args.shape)
    if args.meter is not None and not args.power:
        raise LlamaPynqError("--meter is only read with --power: add it")
    with open_overlay(args) as overlay:
        llama = load_model(overlay, args)
        power = rails(overlay, args.meter) if args.power else None
        report = measure(overlay, llama, args.max_new_tokens, args.repeats, power)
    if args.shape is not None:
        report = replace(report, model=f"{args.shape}'s shape, random weights; {report.model}")
    print(report.json() if args.json else report.table())
    return 0


def _selftest(args: argparse.Namespace) -> int:
    from llama_pynq.checkpoint.shapes import STORIES
    from llama_pynq.measure.selftest import run

    if args.shape not in STORIES:
        raise LlamaPynqError(
            f"there is no random model {args.shape!r}: choose one of {', '.join(STORIES)}"
        )
    output = None if args.output is None else file_to_write(args.output, args.force)
    show = functools.partial(print, flush=True, file=sys.stderr if args.json else sys.stdout)
    with open_overlay(args) as overlay:
        found = run(overlay, None if args.quick else args.shape, show)
        if output is not None:  # before the device is released, which may fail
            write = write_atomically if args.force else write_new
            write(output, found.text().encode() + b"\n")
            print(f"written to {output}", file=sys.stderr)
    if args.json:
        print_json({**asdict(found), "passed": found.passed, "verdict": found.verdict})
    if found.interrupted:
        raise KeyboardInterrupt
    return 0 if found.passed else 1


COMMANDS = {"bench": _bench, "selftest": _selftest}
