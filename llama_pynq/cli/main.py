# PYTHON_ARGCOMPLETE_OK
"""Entry point of ``llama-pynq COMMAND``; each group of commands has a module in this folder."""

from __future__ import annotations

import argparse
import difflib
import io
import os
import re
import sys
import warnings
from collections.abc import Iterable, Sequence
from typing import TextIO

from llama_pynq import __version__
from llama_pynq.cli import bench, boards, chat, generate, info, notebooks, overlay, pack
from llama_pynq.cli.arguments import excluded
from llama_pynq.cli.completion import complete
from llama_pynq.errors import LlamaPynqError
from llama_pynq.utils.pynq_warnings import ignore_pynqs_warnings

_PARTS = (generate, chat, info, bench, pack, boards, overlay, notebooks)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; exit with status 2, and the command's own usage, if it is wrong."""
    parser, commands = command_parser()
    complete(parser)
    given, passed_on = notebooks.split(arguments)
    if given and not given[0].startswith("-") and given[0] not in commands.choices:
        meant = _meant(given[0], commands.choices) or ": llama-pynq --help lists them"
        parser.error(f"there is no command {given[0]!r}{meant}")
    if given[:1] == ["lab"]:
        options = {name: _options(command) for name, command in commands.choices.items()}
        if problem := notebooks.misplaced(arguments, options):
            commands.choices["lab"].error(problem)
    args, unknown = parser.parse_known_args(given, argparse.Namespace(passed_on=passed_on))
    if unknown:
        parser = commands.choices.get(args.command, parser)
        meant = _meant(unknown[0].partition("=")[0], _options(parser))
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{meant}")
    if problem := excluded(args):
        commands.choices[args.command].error(problem)
    if args.command is None:
        parser.print_help()
        parser.exit()
    return args


def _options(parser: argparse.ArgumentParser) -> list[str]:
    return re.findall(r"--[a-z][a-z0-9-]+", parser.format_usage())


def _meant(given: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(given, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def command_parser() -> tuple[argparse.ArgumentParser, argparse._SubParsersAction]:
    """Return the parser of the whole command line, and its commands."""
    parser = argparse.ArgumentParser(
        prog="llama-pynq",
        description="Llama 2 on an FPGA, or on the emulated device if there is no board.",
    )
    parser.add_argument("--version", action="version", version=f"llama_pynq {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for part in _PARTS:
        part.add_commands(commands)
    return parser, commands


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 1 after an error, 130 after Ctrl-C.

    A wrong command line exits with 2.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # the terminal's encoding may lack a character
    args = _parse(sys.argv[1:] if argv is None else argv)
    with warnings.catch_warnings():
        ignore_pynqs_warnings()
        warnings.showwarning = _show_warning
        return _run(args)


def _run(args: argparse.Namespace) -> int:
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


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int,
    file: TextIO | None = None, line: str | None = None,
) -> None:  # fmt: skip
    """Print a warning without the line of source that Python adds."""
    print(f"llama-pynq: {message}", file=sys.stderr)


def _drop_output() -> None:
    """Redirect unwritable output to the null device; else Python flushes it again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
