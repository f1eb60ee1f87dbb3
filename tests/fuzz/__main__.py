"""``python -m fuzz``: fuzz every border for some time, or run one saved input again."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from fuzz.border import judge
from fuzz.borders import BORDERS
from fuzz.runner import BUILD, Failure, Report, run_border
from fuzz.worker import opened

ROUND_S = 20.0
"""Seconds that a border is tried before the next one's turn."""


def again(name: str, path: Path) -> int:
    """Run one saved input in this process: a crash then shows where."""
    data = path.read_bytes()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as own:
        outcome, why = judge(opened(name, Path(own)), data)
    print(f"{name}: {outcome}\n{why}")
    return int(outcome == "raised")


def campaign(names: list[str], minutes: float, seed: int) -> int:
    """Fuzz borders in turns; returns 1 if an input failed."""
    end = time.monotonic() + 60 * minutes
    totals = {name: Report(name) for name in names}
    known: dict[str, Failure] = {}
    turn = 0
    while time.monotonic() < end:
        for index, name in enumerate(names):
            left = end - time.monotonic()
            total = totals[name]
            if left <= 0 or total.skipped or len(total.failures) > 50:
                continue
            share = min(ROUND_S, left / (len(names) - index))
            # A turn has numbers of its own, so that no case comes twice.
            report = run_border(name, seed, first=turn << 24, seconds=share)
            for field in ("cases", "refused", "read", "seconds"):
                setattr(total, field, getattr(total, field) + getattr(report, field))
            total.skipped = report.skipped
            total.failures += report.failures
            for failure in report.failures:
                if f"{name} {failure.key}" not in known:
                    known[f"{name} {failure.key}"] = failure
                    print(f"\n{failure}\n", flush=True)
        turn += 1
    for total in totals.values():
        print(total)
    for failure in known.values():
        print(f"{failure.border}: {failure.kind}: {failure.repro}")
    print(f"{sum(t.cases for t in totals.values()):,} cases, {len(known)} kinds of failure; "
          f"seed {seed}, failing inputs in {BUILD}")  # fmt: skip
    return int(bool(known))


def main() -> int:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("border", nargs="*", help=f"default: all of {', '.join(BORDERS)}")
    parser.add_argument("--minutes", type=float, default=60.0, help="(%(default)g)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="default: the time")
    parser.add_argument("--input", type=Path, help="run this saved input of the one border given")
    args = parser.parse_args()
    unknown = [name for name in args.border if name not in BORDERS]
    if unknown:
        parser.error(f"there is no border {unknown[0]!r}")
    if args.input is not None:
        if len(args.border) != 1:
            parser.error("--input needs its border")
        return again(args.border[0], args.input.absolute())
    return campaign(args.border or list(BORDERS), args.minutes, args.seed)


if __name__ == "__main__":
    sys.exit(main())
