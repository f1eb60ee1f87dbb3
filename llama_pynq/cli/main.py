"""Entry point of ``llama-pynq COMMAND``; each group of commands has a module in this folder."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence

from llama_pynq import __version__
from llama_pynq.cli import bench, boards, generate, info, notebooks, overlay, pack
from llama_pynq.errors import LlamaPynqError

_PARTS = (generate, info, bench, pack, boards, overlay, notebooks)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llama-pynq",
        description="Llama 2 on an FPGA, or on the emulated device if there is no board.",
    )
    parser.add_argument("--version", action="version", version=f"llama_pynq {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for part in _PARTS:
        part.add_commands(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 1 after an error, 130 after Ctrl-C.

    argparse exits with 2 after a wrong option.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # the terminal's encoding may lack a character
    given, passed_on = notebooks.split(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    args = parser.parse_args(given, argparse.Namespace(passed_on=passed_on))
    if args.command is None:
        parser.print_help()
        return 0
    commands = {name: run for part in _PARTS for name, run in part.COMMANDS.items()}
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
        _drop_output()  # the reader closed the pipe (| head): print no error
        return 1
    except OSError as error:
        _drop_output()
        print(f"llama-pynq: {error}", file=sys.stderr)
        return 1


def _drop_output() -> None:
    """Redirect unwritable output to the null device; else Python flushes it again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
