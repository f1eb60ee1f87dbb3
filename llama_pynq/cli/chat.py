"""``llama-pynq chat``: a conversation with a model."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from llama_pynq.cli.arguments import load_model, model_options, open_overlay
from llama_pynq.cli.generate import piped, read_input
from llama_pynq.cli.sampling import sampling_options, sampling_params, text_argument
from llama_pynq.errors import LlamaPynqError, RequestError

if TYPE_CHECKING:
    from llama_pynq.engine.llama import Llama
    from llama_pynq.engine.results import Generation
    from llama_pynq.engine.sampling import SamplingParams

_HELP = "Enter sends a message, Ctrl-C ends an answer, Ctrl-D the conversation."


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the commands of this module to the parser."""
    chat = commands.add_parser(
        "chat",
        parents=[model_options(), sampling_options()],
        help="talk to a model",
        description="Talk to a model that was trained for conversations, such as one in a GGUF "
        "file; its template, its stop tokens and its context come from the file. In a pipe, "
        "standard input is one message. Answers go to standard output, all else to standard "
        "error.",
    )
    chat.add_argument("file", nargs="?", metavar="MODEL", help="as --model")
    chat.add_argument("--system", metavar="TEXT", type=text_argument,
                      help="what the model is told first")  # fmt: skip


def _chat(args: argparse.Namespace) -> int:
    if args.file is not None and args.model is not None:
        raise LlamaPynqError("the model is named twice: leave out --model")
    args.model = args.model or args.file
    params = sampling_params(args)
    message = read_input() if piped() else None
    with open_overlay(args) as overlay:
        llama = load_model(overlay, args, slots=1)
        _ = llama.conversation.template  # before the first message is typed
        messages = [{"role": "system", "content": args.system}] if args.system else []
        print(f"{overlay.describe()}; {llama.summary}", file=sys.stderr)
        if message is not None:
            messages.append({"role": "user", "content": message})
            _answer(llama, messages, params)
            return 0
        print(_HELP, file=sys.stderr)
        return _converse(llama, messages, params)


def _converse(llama: Llama, messages: list[dict[str, str]], params: SamplingParams) -> int:
    """Take messages from the terminal until it ends."""
    while True:
        try:
            line = input("> ")
        except EOFError:
            print(file=sys.stderr)
            return 0
        if not line.strip():
            continue
        messages.append({"role": "user", "content": text_argument(line)})
        try:
            text = _answer(llama, messages, params)
        except RequestError as error:  # such as a conversation that outgrew the context
            messages.pop()
            print(f"llama-pynq: {error}", file=sys.stderr)
            continue
        messages.append({"role": "assistant", "content": text})


def _answer(llama: Llama, messages: list[dict[str, str]], params: SamplingParams) -> str:
    """Print the answer as it comes; Ctrl-C ends it."""
    finished: list[Generation] = []
    shown: list[str] = []
    pieces = llama.stream_chat(messages, params=params, on_finish=finished.append)
    try:
        for piece in pieces:
            shown.append(piece)
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        close = getattr(pieces, "close", None)
        if close is not None:
            close()
    print(flush=True)
    for out in finished:
        used = len(out.prompt_tokens) + len(out.tokens)
        rate = out.tokens_per_second
        speed = "" if rate is None else f", {rate:.1f} tokens/s (measured, host clock)"
        print(
            f"[{len(out.tokens)} tokens{speed}, first after {out.prompt_seconds * 1e3:.0f} ms; "
            f"context {used} of {llama.config.seq_len}; seed {out.seed}]",
            file=sys.stderr,
        )
    return "".join(shown)


COMMANDS = {"chat": _chat}
