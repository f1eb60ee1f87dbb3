"""PYNQ's own warnings, which ``PYTHONWARNINGS=error`` would turn into errors of its import."""

from __future__ import annotations

import warnings


def ignore_pynqs_warnings() -> None:
    """Ignore the warnings of PYNQ's packages and of its import of pkg_resources."""
    warnings.filterwarnings("ignore", module=r"(pynq|pynqutils|pynqmetadata|pkg_resources)\b")
    warnings.filterwarnings("ignore", message=".*pkg_resources")
