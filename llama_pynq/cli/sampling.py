"""Options of sampling, shared by the commands that generate text."""

from __future__ import annotations

import argparse
import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llama_pynq.engine.sampling import SamplingParams


def sampling_options() -> argparse.ArgumentParser:
    """Return a parent parser with the options of sampling."""
    sampling = argparse.ArgumentParser(add_help=False)
    add = sampling.add_argument_group("sampling").add_argument
    add("--max-new-tokens", type=int, default=512, metavar="N", help="(%(default)s)")
    add("--temperature", type=float, default=0.8, metavar="T", help="0 is greedy (%(default)s)")
    add("--top-k", type=int, default=0, metavar="K", help="0 is off (%(default)s)")
    add("--top-p", type=float, default=0.9, metavar="P", help="1 is off (%(default)s)")
    add("--min-p", type=float, default=0.0, metavar="P", help="0 is off (%(default)s)")
    add("--repetition-penalty", type=float, default=1.0, metavar="X", help="1 is off (%(default)s)")
    add("--stop", action="append", default=[], metavar="TEXT", type=_stop_text,
        help=r"stop before this text; may be given several times; \n is a newline, \r a return, "
        r"\t a tab, \\ a backslash")  # fmt: skip
    add("--seed", type=int, metavar="N", help="same seed, same text; default: random, and printed")
    return sampling


def sampling_params(args: argparse.Namespace) -> SamplingParams:
    """The parameters that the options give."""
    from llama_pynq.engine.sampling import SamplingParams

    return SamplingParams(
        args.max_new_tokens, args.temperature, args.top_k, args.top_p, args.min_p,
        args.repetition_penalty, args.stop, args.seed,
    )  # fmt: skip


def text_argument(argument: str) -> str:
    """An argument as text: UTF-8 where the locale's encoding cannot hold it.

    Python decodes a command line by the locale, and makes lone surrogates of other bytes.
    """
    if not re.search("[\udc80-\udcff]", argument):
        return argument
    try:
        return os.fsencode(argument).decode()
    except UnicodeDecodeError as error:
        byte = os.fsencode(argument)[error.start]
        raise argparse.ArgumentTypeError(
            f"byte {error.start} (0x{byte:02x}) of {argument!r} is not UTF-8: type the text anew, "
            "or convert it with iconv"
        ) from None


def _stop_text(argument: str) -> str:
    r"""A stop string, in which ``\n``, ``\r``, ``\t`` and ``\\`` are two characters each."""
    known = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}
    return re.sub(r"\\([nrt\\])", lambda found: known[found[1]], text_argument(argument))
