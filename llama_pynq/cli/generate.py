"""``llama-pynq generate``: continue a text."""

from __future__ import annotations

import argparse
import os
import select
import stat
import sys
from typing import TYPE_CHECKING, Any

from llama_pynq.cli.arguments import load_model, model_options, open_overlay
from llama_pynq.cli.sampling import sampling_options, sampling_params, text_argument
from llama_pynq.errors import LlamaPynqError

if TYPE_CHECKING:
    from llama_pynq.engine.results import Generation


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the commands of this module to the parser."""
    generate = commands.add_parser(
        "generate",
        parents=[model_options(), sampling_options()],
        help="continue a text",
        description="Continue a text on a board, or on the emulated device if there is none. "
        "The text goes to standard output; speed, seed and device go to standard error.",
    )
    generate.add_argument(
        "prompt",
        nargs="*",
        type=text_argument,
        help="(Once upon a time); several run as a batch; - reads standard input, as no prompt "
        "does in a pipe",
    )
    add = generate.add_argument
    add("--parse-special", action="store_true", help="take names of special tokens in a prompt, "
        "such as </s>, for these tokens")  # fmt: skip


_PATIENCE_S = 1.0  # to wait for standard input in silence


def _prompts(given: list[str]) -> list[str]:
    """The prompts; ``-``, or none while standard input is a pipe or a file, reads from there."""
    if not given:
        return [(piped() and read_input()) or "Once upon a time"]
    if given.count("-") > 1:
        raise LlamaPynqError("standard input can be read once: give - once")
    return [read_input() if prompt == "-" else prompt for prompt in given]


def piped() -> bool:
    """Whether standard input is a pipe or a file."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError):  # no standard input
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def read_input() -> str:
    """Return standard input as text, without the newline at its end."""
    if sys.stdin is None:
        raise LlamaPynqError("there is no standard input to read a prompt from: give a prompt")
    if os.name != "nt" and not select.select([sys.stdin], [], [], _PATIENCE_S)[0]:
        print("llama-pynq: reading the prompt from standard input", file=sys.stderr, flush=True)
    data = sys.stdin.buffer.read()
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise LlamaPynqError(
            f"byte {error.start} (0x{data[error.start]:02x}) of standard input is not UTF-8: "
            "convert it with iconv"
        ) from None


def _generate(args: argparse.Namespace) -> int:
    prompts, special = _prompts(args.prompt), args.parse_special
    params = sampling_params(args)
    finished: list[Generation] = []
    with open_overlay(args) as overlay:
        llama = load_model(overlay, args)
        if len(prompts) == 1:
            pieces = overlay.stream(
                prompts[0], parse_special=special, params=params, on_finish=finished.append
            )
            print(prompts[0], end="", flush=True)
            try:
                for piece in pieces:
                    print(piece, end="", flush=True)
            finally:
                print(flush=True)
        else:
            batch: Any = llama.generate(prompts, parse_special=special, params=params)
            finished += batch
            print("\n\n".join(p + out.text for p, out in zip(prompts, finished)), flush=True)
        print(file=sys.stderr)
        for out in finished:
            n = len(out.tokens)
            rate = out.tokens_per_second
            speed = "" if rate is None else f"{rate:.1f} tokens/s (measured, host clock), "
            print(
                f"{n} token{'s' * (n != 1)}, {speed}first after {out.prompt_seconds * 1e3:.0f} ms, "
                f"seed {out.seed}",
                file=sys.stderr,
            )
        print(f"{overlay.describe()}; model loaded in {llama.load_seconds:.2f} s", file=sys.stderr)
    return 0


COMMANDS = {"generate": _generate}
