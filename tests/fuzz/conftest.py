"""Shows the count of every border at the end of a run, without -s."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fuzz.runner import Report

_REPORTS = pytest.StashKey[list]()


@pytest.fixture
def count(request: pytest.FixtureRequest) -> Callable[[Report], None]:
    """Keep a border's report for the summary."""
    return request.config.stash.setdefault(_REPORTS, []).append


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    reports = config.stash.get(_REPORTS, [])
    if reports:
        terminalreporter.section("fuzz: cases of each border")
        for report in reports:
            terminalreporter.line(str(report))
        terminalreporter.line(f"{sum(report.cases for report in reports):,} cases in all")
