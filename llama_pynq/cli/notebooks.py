"""The command line's part for courses: ``llama-pynq notebooks|lab|labs grade``."""

from __future__ import annotations

import argparse
import collections
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from llama_pynq.errors import LlamaPynqError

DEFAULT_FOLDER = "llama_pynq_notebooks"
"""Not ``notebooks``: in a checkout that is where the originals are."""


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add this module's commands to the command line's."""
    notebooks = commands.add_parser(
        "notebooks",
        help="copy the notebooks to a folder to work in",
        description="Copy the package's notebooks to a folder. A file that is there stays as it "
        "is, unless --reset is given; then it is replaced after a backup of it was made.",
    )
    folder = {"nargs": "?", "default": DEFAULT_FOLDER, "metavar": "DIR", "help": "(./%(default)s)"}
    notebooks.add_argument("folder", **folder)
    notebooks.add_argument(
        "--reset", action="store_true", help="start afresh: replace notebooks that were changed, "
        "each kept beside it as NAME.backup-YYYYMMDD-HHMMSS.ipynb",
    )  # fmt: skip

    lab = commands.add_parser(
        "lab",
        usage="llama-pynq lab [-h] [DIR] [-- ARGUMENT ...]",
        help="open JupyterLab on the notebooks",
        description="Copy the notebooks to a folder, those that are not there yet, and open "
        "JupyterLab on it. What follows -- is JupyterLab's: llama-pynq lab -- --no-browser",
    )
    lab.add_argument("folder", **folder)

    labs = commands.add_parser("labs", help="for lecturers: grade submissions")
    tools = labs.add_subparsers(dest="tool", required=True, metavar="COMMAND")
    grade = tools.add_parser(
        "grade",
        help="re-execute submissions, and write a table of what their checks say",
        description="Put the answers of every notebook in DIR and in the folders below it into "
        "the package's own notebooks, run these one after another on the emulated device, even "
        "if there is a board, and write what the checks say to a CSV file. DIR is only read.",
        epilog="Submissions are programs of others, and they run with your rights: they can "
        "read, change and send whatever you can. Grade in a throw-away account or container "
        "without network. docs/teaching.md says what a forged result takes.",
    )
    grade.add_argument("folder", metavar="DIR", help="a folder a student, or a file a student")
    grade.add_argument("--csv", default="grades.csv", metavar="FILE", help="(%(default)s)")
    grade.add_argument("--force", action="store_true", help="replace an existing CSV file")
    grade.add_argument(
        "--timeout", type=float, default=300.0, metavar="S", help="seconds that a notebook may "
        "take; it is then interrupted, and run again without the answer that took so long "
        "(%(default)g)",
    )  # fmt: skip


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Part what follows ``--`` after ``lab``: argparse would take it for the folder."""
    given = list(arguments)
    if given[:1] == ["lab"] and "--" in given:
        at = given.index("--")
        return given[:at], given[at + 1 :]
    return given, []


def _notebooks(args: argparse.Namespace) -> int:
    from llama_pynq.labs.files import copy_notebooks

    says = {
        "copied": "copied",
        "kept": "kept: it differs from the package's (--reset replaces it and keeps a backup)",
        "unchanged": "there already, unchanged",
    }
    folder = Path(args.folder)
    for copy in copy_notebooks(folder, reset=args.reset):
        if copy.backup is not None:
            print(f"{copy.path}: replaced; what was there is now {copy.backup.name}")
        elif copy.state == "kept" and args.reset:
            print(f"{copy.path}: kept, since it is no file")
        else:
            print(f"{copy.path}: {says[copy.state]}")
    return 0


def _lab(args: argparse.Namespace) -> int:
    from llama_pynq.labs.files import copy_notebooks

    if importlib.util.find_spec("jupyterlab") is None:
        raise LlamaPynqError(
            f"JupyterLab is not installed for {sys.executable}: pip install 'llama_pynq[lab]'"
        )
    folder = Path(args.folder).absolute()
    states = collections.Counter(copy.state for copy in copy_notebooks(folder))
    print(f"{folder}: {states['copied']} notebooks copied, {states.total() - states['copied']} "
          "there already", flush=True)  # fmt: skip
    command = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={folder}"]
    command += args.passed_on
    os.chdir(folder)
    if os.name == "nt":
        return subprocess.call(command)
    # JupyterLab takes this process's place: Ctrl-C is its own, and asks before it ends.
    os.execv(command[0], command)


def _labs(args: argparse.Namespace) -> int:
    from llama_pynq.labs.grade import Grade, grade, lessons, require_nbclient, submissions, table
    from llama_pynq.utils.files import write_atomically, write_new

    folder, output = Path(args.folder), Path(args.csv)
    if not 0 < args.timeout < float("inf"):
        raise LlamaPynqError(f"--timeout is {args.timeout:g}: it must be above 0 seconds")
    files = submissions(folder)
    if folder.resolve() in output.resolve().parents:
        raise LlamaPynqError(f"{output} lies in {folder}, which is only read: write it elsewhere")
    if output.is_dir():
        raise LlamaPynqError(f"{output} is a folder: give the name of the file to write")
    if os.path.lexists(output) and not args.force:
        raise LlamaPynqError(f"{output} exists: choose another name, or replace it with --force")
    if not output.parent.is_dir():
        raise LlamaPynqError(f"there is no folder {output.parent} for {output.name}")
    require_nbclient()
    known = lessons()
    rows: list[Grade] = []
    done = 0
    try:
        for path in files:
            print(f"{done + 1} of {len(files)}: {path.relative_to(folder)}", file=sys.stderr)
            found = grade(path, folder, known, args.timeout)
            states = collections.Counter(row.state for row in found)
            tally = ", ".join(f"{count} {state}" for state, count in states.items())
            print(f"    {tally}", file=sys.stderr)
            rows += found
            done += 1
    finally:
        # Also after Ctrl-C: an hour's grades are not to be lost.
        if rows:
            write = write_atomically if args.force else write_new
            write(output, table(rows))
            print(f"{output}: {done} of {len(files)} submissions", flush=True)
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "notebooks": _notebooks,
    "lab": _lab,
    "labs": _labs,
}
