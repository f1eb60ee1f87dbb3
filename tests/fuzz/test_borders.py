"""A fixed number of mutants of every border: read, or refused by the package's own errors."""

from __future__ import annotations

import pytest
from fuzz.borders import BORDERS
from fuzz.runner import run_border

SEED = 0


@pytest.mark.parametrize("name", BORDERS)
def test_border_refuses_or_reads(name, count):
    report = run_border(name, SEED, BORDERS[name].cases, silent_s=45)
    count(report)
    if report.skipped:
        pytest.skip(report.skipped)
    assert not report.failures, "\n\n".join(map(str, report.failures[:3]))
    assert report.cases == BORDERS[name].cases
    # A border whose mutants never get in, or never fail, tries nothing.
    assert report.read and (report.refused or name == "environment")
