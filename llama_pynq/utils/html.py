"""HTML for notebooks: facts about an object, as a small table."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape


def facts_table(title: str, facts: Mapping[str, object]) -> str:
    """A two-column table with a title; values are escaped.

    Parameters
    ----------
    title : str
    facts : mapping of str to object
        Shown in order; None is left out.
    """
    rows = "".join(
        f'<tr><td style="text-align:left">{escape(name)}</td>'
        f'<td style="text-align:left">{escape(str(value))}</td></tr>'
        for name, value in facts.items()
        if value is not None
    )
    return f"<b>{escape(title)}</b><table>{rows}</table>"
