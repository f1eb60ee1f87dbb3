"""``llama-pynq notebooks``, ``lab`` and ``labs grade``: the commands for courses."""

from __future__ import annotations

import argparse
import collections
import difflib
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

from llama_pynq.cli.output import file_to_write, force_option
from llama_pynq.errors import LlamaPynqError
from llama_pynq.utils.files import user_path

DEFAULT_FOLDER = "llama_pynq_notebooks"
"""Not ``notebooks``: a checkout keeps the originals there."""

_WITHOUT_A_VALUE = frozenset(
    "--allow-root --autoreload --collaborative --core-mode --custom-css --debug --dev-mode "
    "--expose-app-in-browser --extensions-in-dev-mode --generate-config --help-all --no-browser "
    "--no-script --script --show-config --show-config-json --skip-dev-build --splice-source "
    "--version --watch -y".split()
)
"""JupyterLab's options after which a word is no value: it is the folder."""


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the commands of this module to the parser."""
    notebooks = commands.add_parser(
        "notebooks",
        help="copy the notebooks to a folder to work in",
        description="Copy the package's notebooks to a folder. Existing files are kept, unless "
        "--reset is given: then changed ones are backed up and replaced.",
    )
    folder = {"nargs": "?", "default": DEFAULT_FOLDER, "metavar": "DIR", "help": "(./%(default)s)"}
    notebooks.add_argument("folder", **folder)
    notebooks.add_argument(
        "--reset", action="store_true", help="start afresh: replace changed notebooks; each is "
        "kept beside the new one as NAME.backup-YYYYMMDD-HHMMSS.ipynb",
    )  # fmt: skip

    lab = commands.add_parser(
        "lab",
        usage="llama-pynq lab [-h] [DIR] [OPTION OF JUPYTERLAB ...]",
        help="open JupyterLab on the notebooks",
        description="Copy the notebooks that are missing to a folder, and open JupyterLab on it. "
        "Options that are not its own go to JupyterLab: llama-pynq lab --port 9000 --no-browser. "
        "So does all after --. JupyterLab starts for root, too, as on a board, and asks for its "
        "token; jupyter lab --help lists its options.",
    )
    lab.add_argument("folder", **folder)

    labs = commands.add_parser("labs", help="for lecturers: grade submissions")
    tools = labs.add_subparsers(dest="tool", required=True, metavar="COMMAND")
    grade = tools.add_parser(
        "grade",
        help="re-run submissions, and write a table of their check results",
        description="Insert the answers of every notebook in DIR and its subfolders into the "
        "package's own notebooks, run these one after another on the emulated device, even if "
        "there is a board, and write the check results to a CSV file. DIR is only read.",
        epilog="Submissions are other people's programs and run with your permissions: they can "
        "read, change and send whatever you can. Grade in a throw-away account or container "
        "without network. docs/teaching.md says what it takes to forge a result.",
    )
    grade.add_argument("folder", metavar="DIR", help="one folder or one file per student")
    grade.add_argument("--csv", default="grades.csv", metavar="FILE", help="(%(default)s)")
    force_option(grade)
    grade.add_argument(
        "--timeout", type=float, default=300.0, metavar="S", help="time limit of a notebook in "
        "seconds; past it, the notebook is interrupted and run again without the answer that took "
        "too long (%(default)g)",
    )  # fmt: skip


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split off JupyterLab's options from those of ``lab``, and all after ``--``.

    argparse would take their values for the folder.
    """
    if list(arguments[:1]) != ["lab"]:
        return list(arguments), []
    end = arguments.index("--") if "--" in arguments else len(arguments)
    given, passed_on = ["lab"], list[str]()
    takes_a_value = False
    for word in arguments[1:end]:
        option = word.startswith("-") and word != "-"
        if word in ("-h", "--help"):
            given.append(word)
        elif option or takes_a_value:
            passed_on.append(word)
        else:
            given.append(word)
        takes_a_value = option and "=" not in word and word not in _WITHOUT_A_VALUE
    return given, passed_on + list(arguments[end + 1 :])


def misplaced(arguments: Sequence[str], options: Mapping[str, Collection[str]]) -> str | None:
    """What is wrong with an option of ``lab`` that is meant for this program, not for JupyterLab.

    Parameters
    ----------
    arguments : sequence of str
        Of the whole command line.
    options : mapping of str to collection of str
        The options of each command.
    """
    end = arguments.index("--") if "--" in arguments else len(arguments)
    for word in split(arguments[:end])[1]:
        option = word.partition("=")[0]
        if not option.startswith("--") or option in _WITHOUT_A_VALUE:
            continue
        of = [command for command, known in options.items() if option in known]
        if of:
            return f"{option} is no option of lab, but of llama-pynq {of[0]}"
        own = ["--help", *options["notebooks"]]
        if close := difflib.get_close_matches(option, own, n=1, cutoff=0.8):
            return f"unrecognized argument {option}; did you mean {close[0]}?"
    return None


def _notebooks(args: argparse.Namespace) -> int:
    from llama_pynq.labs.files import copy_notebooks

    says = {
        "copied": "copied",
        "kept": "kept: it differs from the package's (--reset replaces it and keeps a backup)",
        "unchanged": "there already, unchanged",
    }
    folder = user_path(args.folder)
    for copy in copy_notebooks(folder, reset=args.reset):
        if copy.backup is not None:
            print(f"{copy.path}: replaced; the previous file is now {copy.backup.name}")
        elif copy.state == "kept" and args.reset:
            print(f"{copy.path}: kept: it is not a regular file")
        else:
            print(f"{copy.path}: {says[copy.state]}")
    return 0


def _lab(args: argparse.Namespace) -> int:
    from llama_pynq.labs.files import copy_notebooks

    if importlib.util.find_spec("jupyterlab") is None:
        raise LlamaPynqError(
            f"JupyterLab is not installed for {sys.executable}: pip install 'llama_pynq[lab]'"
        )
    folder = user_path(args.folder).absolute()
    states = collections.Counter(copy.state for copy in copy_notebooks(folder))
    print(f"{folder}: {states['copied']} notebooks copied, {states.total() - states['copied']} "
          "there already", flush=True)  # fmt: skip
    command = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={folder}"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")  # the users of a board are root
    command += args.passed_on
    os.chdir(folder)
    if os.name == "nt":
        return subprocess.call(command)
    # Replace this process: Ctrl-C then reaches JupyterLab, which asks before it exits.
    os.execv(command[0], command)


def _labs(args: argparse.Namespace) -> int:
    from llama_pynq.labs.grade import Grade, grade, lessons, require_nbclient, submissions, table

    folder, output = user_path(args.folder), user_path(args.csv)
    if not 0 < args.timeout < float("inf"):
        raise LlamaPynqError(f"--timeout is {args.timeout:g}: it must be above 0 seconds")
    files = submissions(folder)
    if folder.resolve() in output.resolve().parents:
        raise LlamaPynqError(f"{output} lies in {folder}, which is only read: write it elsewhere")
    file_to_write(args.csv, args.force)
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
        # Write after Ctrl-C too: the grades so far may be an hour's work.
        if rows:
            written = _write_table(output, table(rows), args.force)
            print(f"{written}: {done} of {len(files)} submissions", flush=True)
    return 0


def _write_table(path: Path, data: bytes, force: bool) -> Path:
    """Write the table, elsewhere if its file has come to exist, or cannot be written any more."""
    from llama_pynq.utils.files import write_atomically, write_new

    def places() -> Iterator[Path]:
        yield path
        yield from (path.with_name(f"{path.stem}-{n}{path.suffix}") for n in range(2, 10))
        yield Path(tempfile.mkdtemp(prefix="llama_pynq-grades-")) / path.name

    for at in places():
        try:
            (write_atomically if force and at == path else write_new)(at, data)
            return at
        except OSError as error:
            print(f"{at} cannot be written ({error.strerror or error})", file=sys.stderr)
    raise LlamaPynqError(f"the table could not be written to {path}, nor to any other folder")


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "notebooks": _notebooks,
    "lab": _lab,
    "labs": _labs,
}
