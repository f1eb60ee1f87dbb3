"""Fixtures: a browser, a JupyterLab server, and a fresh page for each test."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from support.jupyter_lab import Lab, Server

# No GPU, no sandbox (unavailable to root in a container), no connections to Google's hosts.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def _unable(reason: str) -> None:
    """Skip the test; in CI fail, where skipped tests go unnoticed."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if chromium is None:
        _unable("no browser: apt install chromium, or set CHROMIUM to the one you have")
    for needed in ("jupyterlab", "playwright"):
        if find_spec(needed) is None:
            _unable(f"no {needed}: pip install 'llama_pynq[browser]'")
    from playwright.sync_api import sync_playwright

    # Take screenshots without waiting for fonts: JupyterLab uses the system's, and on a busy
    # machine the wait can hang.
    os.environ.setdefault("PW_TEST_SCREENSHOT_NO_FONTS_READY", "1")
    with sync_playwright() as playwright:
        # Playwright adds an empty profile and --headless.
        started = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="session")
def server(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    from support.jupyter_lab import serve

    with serve(tmp_path_factory.mktemp("jupyter")) as server:
        yield server


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder LLAMA_PYNQ_SCREENSHOTS, else a temporary one."""
    wanted = os.environ.get("LLAMA_PYNQ_SCREENSHOTS")
    folder = Path(wanted) if wanted else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def lab(browser: Any, server: Server, screenshots: Path) -> Iterator[Lab]:
    """A page; an error on its console fails the test. The kernels end with the test."""
    from support.jupyter_lab import Lab

    context = browser.new_context(viewport={"width": 1280, "height": 900})
    lab = Lab(context.new_page(), server, screenshots)
    yield lab
    context.close()
    server.end_kernels()
    assert lab.errors == []
