"""``llama-pynq overlay``: list, install, verify, add and remove overlays."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from llama_pynq.boards import board_key, boards
from llama_pynq.cli.output import json_option, print_json
from llama_pynq.errors import LlamaPynqError, OverlayMismatch
from llama_pynq.utils.files import user_path

if TYPE_CHECKING:
    from llama_pynq.overlay_store.record import OverlayRecord
    from llama_pynq.overlay_store.search import FoundOverlay
    from llama_pynq.utils.download import Progress

_MIB = 1 << 20
_BAR = 30
_REDRAW_S = 0.1


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the commands of this module to the parser."""
    overlay = commands.add_parser("overlay", help="list, fetch, check and add overlays of boards")
    tools = overlay.add_subparsers(dest="tool", required=True, metavar="COMMAND")
    board: dict[str, Any] = {
        "metavar": "BOARD",
        "help": "such as kv260; llama-pynq overlay list shows all",
    }  # fmt: skip

    listing = tools.add_parser(
        "list",
        help="list every board and its overlays",
        description="List every board and its overlays, present or to be fetched. The first of a "
        "board is used: your own before installed ones before the package's.",
    )
    json_option(listing)
    install = tools.add_parser(
        "install",
        help="fetch the overlay of a board, and check it",
        description="Fetch the overlay of a board. The same command resumes an interrupted "
        "download. No file is used before its sha256 matches the link's.",
    )
    install.add_argument("board", **board)
    install.add_argument(
        "--from", dest="source", metavar="RECORD", help="an overlay.json, its folder, or its https "
        "URL, instead of the link that comes with llama_pynq; files without a URL are taken from "
        "beside it",
    )  # fmt: skip
    verify = tools.add_parser(
        "verify",
        help="check the sha256 and metadata of the overlays present; status 1 if one differs",
        description="Compare the overlays present with the sha256 of their records, and check the "
        "kernel's name, type and arguments in their metadata with PYNQ's own parsers. Nothing is "
        "loaded: llama-pynq selftest tests the board. Status 1 if one differs.",
    )
    verify.add_argument("board", **{**board, "nargs": "?", "help": "default: all boards"})
    add = tools.add_parser(
        "add",
        help="register your own build",
        description="Copy a build to your overlay folder, where LlamaOverlay() finds it first.",
    )
    add.add_argument("file", metavar="FILE", help=".bit with its .hwh beside it, .xclbin, or the "
                     "folder of a build, hls_src/build/BOARD/overlay")  # fmt: skip
    add.add_argument("--board", **{**board, "help": "default: as overlay.json beside the file "
                     "says, or the file itself, or the detected board"})  # fmt: skip
    add.add_argument("--force", action="store_true",
                     help="replace the one added before; it is kept as a backup")  # fmt: skip
    add.add_argument("--trust", action="store_true",
                     help="FILE is an emulated overlay: let the emulated device load it from now "
                     "on. It contains native code, and loading it runs that code")  # fmt: skip
    remove = tools.add_parser("remove", help="delete the added overlay, or else the installed one")
    remove.add_argument("board", **board)


def _overlay(args: argparse.Namespace) -> int:
    return _TOOLS[args.tool](args)


# ---- list -----------------------------------------------------------------------------

_HEAD = ("board", "overlay", "clock", "tools", "built", "by", "measured", "where")


def _list(args: argparse.Namespace) -> int:
    from llama_pynq.emulation.build import emulated_overlay
    from llama_pynq.overlay_store.search import PACKAGE, overlays_of
    from llama_pynq.utils.files import data_folder

    found = {board: overlays_of(board) for board in boards()}
    if args.json:
        print_json({board: [_facts(o) for o in overlays] for board, overlays in found.items()})
        return 0
    rows = [_HEAD]
    for board, overlays in found.items():
        none = "no build" if boards()[board].no_build else "none"
        rows += [_row(board, o) for o in overlays] or [(board, none, "", "", "", "", "", "")]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    print()
    everything = [overlay for overlays in found.values() for overlay in overlays]
    for overlay in everything:
        if problem := overlay.damage or overlay.other_version:
            print(f"{overlay.where} {problem}")
    if not any(overlay.origin == PACKAGE for overlay in everything):
        print("No overlay is released with this version of llama_pynq.")
    if any(overlay.state == "link" for overlay in everything):
        print("To fetch one: llama-pynq overlay install BOARD")
    print(
        "To build one, with AMD's tools in a checkout: make -C hls_src overlay BOARD=NAME, then\n"
        "llama-pynq overlay add hls_src/build/NAME/overlay"
    )
    try:
        print(f"The emulated device, which needs no board, uses {emulated_overlay()}")
    except OverlayMismatch as error:
        print(f"For the emulated device {error}")
    print(f"Your own and installed overlays are in {data_folder()}")
    return 0


def _facts(overlay: FoundOverlay) -> dict[str, Any]:
    return {
        "state": overlay.state,
        "origin": overlay.origin,
        "path": overlay.path,
        "damage": overlay.damage,
        "record": None if overlay.record is None else asdict(overlay.record),
    }


def _row(board: str, overlay: FoundOverlay) -> tuple[str, str, str, str, str, str, str, str]:
    state = "link, not fetched" if overlay.state == "link" else overlay.state
    record = overlay.record
    if record is None:
        return board, state, "", "", "", "", "", str(overlay.folder)
    clock = "?" if record.clock_mhz is None else f"{record.clock_mhz:g} MHz"
    tools = ", ".join(f"{name} {version}" for name, version in record.tools.items()) or "?"
    measured = record.measured or "no"
    where = f"{overlay.origin}: {overlay.folder}"
    return board, state, clock, tools, record.built, record.built_by, measured, where


# ---- install --------------------------------------------------------------------------


def _install(args: argparse.Namespace) -> int:
    from llama_pynq.overlay_store.install import install
    from llama_pynq.overlay_store.search import overlays_of

    try:
        done = install(args.board, args.source, _progress)
    except KeyboardInterrupt:
        _end_line()
        print("the partial download is kept: the same command resumes it", file=sys.stderr)
        raise
    except LlamaPynqError:
        _end_line()
        raise
    how = "installed, its sha256 checked" if done.changed else "there already, its sha256 checked"
    print(f"{done.overlay.path}: {how}; {_known(done.overlay.record)}")
    first = overlays_of(done.overlay.board)[0]
    if first.folder != done.overlay.folder:
        print(
            f"{first.where} takes precedence, so LlamaOverlay() uses it: llama-pynq overlay "
            f"remove {done.overlay.board} deletes it",
            file=sys.stderr,
        )
    return 0


_open_line = False  # whether the cursor stands after an unfinished progress bar


def _end_line() -> None:
    global _open_line
    if _open_line:
        print(file=sys.stderr)
    _open_line = False


def _progress(name: str) -> Progress:
    """Return a progress callback: a bar on a terminal, else a line per tenth of the file."""
    terminal = sys.stderr.isatty()
    last_time, last_tenth = 0.0, -1

    def tell(done: int, total: int) -> None:
        nonlocal last_time, last_tenth
        global _open_line
        share = done / total if total else 1.0
        size = f"{done / _MIB:.1f} of {total / _MIB:.1f} MiB"
        if terminal:
            now = time.monotonic()
            if now - last_time < _REDRAW_S and done < total:
                return
            last_time = now
            filled = int(share * _BAR)
            bar = "#" * filled + "." * (_BAR - filled)
            print(f"\r{name}  [{bar}] {share:4.0%}  {size}", end="", file=sys.stderr, flush=True)
            _open_line = True
            if done == total:
                _end_line()
        elif (tenth := int(share * 10)) > last_tenth:
            begun = last_tenth < 0 and 0 < done < total
            last_tenth = tenth
            print(f"{name}: {size}{', resumed' * begun}", file=sys.stderr, flush=True)

    return tell


def _known(record: OverlayRecord | None) -> str:
    """Describe the shell that an overlay needs, and whether it was measured."""
    if record is None:
        return "without a record"
    shell = "" if record.platform is None else f"for the shell {record.platform}; "
    measured = f"measured: {record.measured}" if record.measured else "not known to be measured"
    return shell + measured


# ---- verify, add, remove --------------------------------------------------------------


def _verify(args: argparse.Namespace) -> int:
    from llama_pynq.overlay_store.search import overlays_of

    asked = None if args.board is None else board_key(args.board)
    wrong = n = 0
    for board in boards() if asked is None else [asked]:
        for overlay in overlays_of(board):
            n += 1
            try:
                overlay.check()
            except OverlayMismatch as error:
                wrong += 1
                print(f"{board}: WRONG: {error}")
                continue
            says = "sha256, kernel and version are right"
            if overlay.is_link:
                says = "link, not fetched"
            elif overlay.record is not None and overlay.record.abi is None:
                says = "sha256 and kernel are right, its version is not recorded"
            print(f"{board}: {overlay.path}: {says}")
    if not n:
        print(f"there is no overlay{f' of {asked}' if asked else ''} to verify")
    return 1 if wrong else 0


def _add(args: argparse.Namespace) -> int:
    from llama_pynq.overlay_store.install import add, is_emulated_build, trust_emulated

    path = user_path(args.file)
    if is_emulated_build(path):
        if args.board is not None:
            raise LlamaPynqError(f"{path} is for the emulated device: leave out --board")
        record = trust_emulated(path, args.trust)
        print(f"{path}: trusted, the emulated device loads it from now on: --overlay {path}")
        print(f"To withdraw the trust, delete {record}")
        return 0
    done = add(path, args.board, args.force, _board_found)
    print(f"{done.overlay.path}: {'added' if done.changed else 'there already, unchanged'}, for "
          f"{done.overlay.board}; {_known(done.overlay.record)}")  # fmt: skip
    if done.backup is not None:
        print(f"the previous overlay is now {done.backup}")
    return 0


def _board_found() -> str | None:
    from llama_pynq.overlay_store.devices import board_of_device, find_device

    return board_of_device(find_device())


def _remove(args: argparse.Namespace) -> int:
    from llama_pynq.overlay_store.install import backups_of, remove
    from llama_pynq.overlay_store.search import overlays_of

    board = board_key(args.board)
    removed = remove(board)
    left = [o for o in overlays_of(board) if not o.is_link]
    uses = f"now used: {left[0].path}" if left else f"there is no other overlay of {board}"
    print(f"{removed.folder}: removed; {uses}")
    if backups := backups_of(board):
        count = "1 backup" if len(backups) == 1 else f"{len(backups)} backups, the newest"
        print(f"left: {count} {backups[-1]}; to return to it: llama-pynq overlay add {backups[-1]}")
    return 0


_TOOLS: dict[str, Callable[[argparse.Namespace], int]] = {
    "list": _list,
    "install": _install,
    "verify": _verify,
    "add": _add,
    "remove": _remove,
}
COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {"overlay": _overlay}
