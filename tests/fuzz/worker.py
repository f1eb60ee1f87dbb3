"""``python -m fuzz.worker BORDER SEED FIRST END FOLDER``: run cases, and tell each one's outcome.

On the original standard output, a line for each event; what the code under test prints is dropped.
"""

from __future__ import annotations

import faulthandler
import os
import resource
import sys
import tempfile
import warnings
from itertools import count
from pathlib import Path

from fuzz.border import Border, Skipped, case_rng, judge

MEMORY_BYTES = 24 << 30
"""Address space of a worker. An emulated device maps its memory on use; a file that asks for more
than this is believed too early."""


def own_folders(folder: Path) -> None:
    """Point cache, overlays, locks, home and temporary files into a folder, and go into it."""
    for name in ("cache", "overlays", "locks", "home", "tmp", "work"):
        (folder / name).mkdir()
    for name in ("cache", "overlays", "locks"):
        os.environ[f"LLAMA_PYNQ_{name.upper()}"] = str(folder / name)
    os.environ["HOME"] = str(folder / "home")
    os.environ["TMPDIR"] = str(folder / "tmp")
    os.environ["LLAMA_PYNQ_EMULATE"] = "1"
    tempfile.tempdir = None
    os.chdir(folder / "work")


def opened(name: str, folder: Path) -> Border:
    """Open a border; its files go into `folder`, which must be empty."""
    from fuzz.borders import BORDERS

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    own_folders(folder)
    return BORDERS[name].opener(Path.cwd())


def main() -> None:
    name, seed, first, end, folder = sys.argv[1:]
    faulthandler.enable()
    tell = os.fdopen(os.dup(1), "w", buffering=1)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    own = Path(folder)
    own.mkdir(exist_ok=True)
    (own / "own").mkdir()
    try:
        border = opened(name, own / "own")
    except Skipped as reason:
        tell.write(f"skipped {reason}\n")
        return
    numbers = range(int(first), int(end)) if end else count(int(first))
    for number in numbers:
        data = border.make(case_rng(name, int(seed), number))
        (own / "input").write_bytes(data)
        tell.write(f"case {number}\n")
        outcome, why = judge(border, data)
        if outcome == "raised":
            # The next case's input takes the place of this one's.
            (own / "input").rename(own / f"input-{number}")
            (own / f"raised-{number}").write_text(why, errors="backslashreplace")
            tell.write(f"raised {own / f'raised-{number}'}\n")
        else:
            tell.write(f"{outcome}\n")
    tell.write("end\n")
    tell.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
