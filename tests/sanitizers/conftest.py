"""Counts what ran under each sanitizer, and shows it without -s."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

_COUNTS = pytest.StashKey[Counter]()


@pytest.fixture
def count(request: pytest.FixtureRequest) -> Callable[[str, int], None]:
    """Add to a line of the summary."""
    counts = request.config.stash.setdefault(_COUNTS, Counter())
    return lambda what, n: counts.update({what: n})


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if counts := config.stash.get(_COUNTS, None):
        terminalreporter.section("sanitizers")
        for what, n in counts.items():
            terminalreporter.line(f"{what}: {n:,}")
