"""JupyterLab in a real browser: a private server, and a page that drives a notebook.

Works with JupyterLab 3.4 and ipywidgets 7, and with JupyterLab 4 and ipywidgets 8.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Locator, Page, expect
from support.lesson_notebooks import write

HANGS_AFTER_S = 120  # timeout against hangs; no test measures speed with it
expect.set_options(timeout=HANGS_AFTER_S * 1000)

# Console messages of JupyterLab itself on a healthy page.
NOISE = re.compile("$^")


# ---- the server -----------------------------------------------------------------------


@contextmanager
def serve(folder: Path) -> Iterator[Server]:
    """Run JupyterLab on `folder`/notebooks with its own settings and locks; ends its kernels."""
    for name in ("notebooks", "runtime", "locks"):
        (folder / name).mkdir(parents=True)
    notification = folder / "settings/@jupyterlab/apputils-extension"
    notification.mkdir(parents=True)
    (notification / "notification.jupyterlab-settings").write_text(
        '{"fetchNews": "false", "checkForUpdates": false}'
    )
    options = {
        "ip": "127.0.0.1",
        "port": _free_port(),  # if it is taken meanwhile, the server tries the next one
        "open_browser": False,
        "allow_root": True,
        "token": "",
        "password": "",
        "disable_check_xsrf": True,
        "root_dir": folder / "notebooks",
    }
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab"]
            + [f"--ServerApp.{name}={value}" for name, value in options.items()],
            cwd=folder,
            env={
                **os.environ,
                "LLAMA_PYNQ_LOCKS": str(folder / "locks"),
                "IPYTHONDIR": str(folder / "ipython"),
                "JUPYTER_CONFIG_DIR": str(folder / "config"),
                "JUPYTER_DATA_DIR": str(folder / "data"),
                "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
                "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
                "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
            },
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield Server(_url(process, folder), folder)
    finally:
        process.terminate()  # the server ends its kernels
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:  # JupyterLab 3.4, if a kernel is just starting
            process.kill()  # kernels notice that their parent is gone
            process.wait()


def _free_port() -> int:
    with socket.socket() as any_port:
        any_port.bind(("127.0.0.1", 0))
        return any_port.getsockname()[1]


def _url(process: subprocess.Popen, folder: Path) -> str:
    """URL of the server, from the file that it writes once it listens."""
    deadline = time.monotonic() + HANGS_AFTER_S
    while process.poll() is None and time.monotonic() < deadline:
        for path in (folder / "runtime").glob(f"jpserver-{process.pid}.json"):
            if text := path.read_text():
                return json.loads(text)["url"]
        time.sleep(0.1)
    raise RuntimeError("JupyterLab does not start:\n" + (folder / "server.log").read_text())


class Server:
    """A running JupyterLab; `url` ends in a slash."""

    def __init__(self, url: str, folder: Path):
        self.url = url
        self.notebooks = folder / "notebooks"

    def call(self, method: str, path: str) -> Any:
        request = urllib.request.Request(f"{self.url}api/{path}", method=method)
        with urllib.request.urlopen(request, timeout=HANGS_AFTER_S) as reply:
            return json.loads(reply.read() or "null")

    def end_kernels(self) -> None:
        for session in self.call("GET", "sessions"):
            self.call("DELETE", f"sessions/{session['id']}")


# ---- the page -------------------------------------------------------------------------


class Watch:
    """Every state of an element, recorded by the page itself so that none is missed."""

    def __init__(self, element: Locator, what: str):
        self._states = element.evaluate_handle(
            """(element, what) => {
                const states = [[performance.now(), element[what]]];
                const look = () => {
                    if (element[what] !== states[states.length - 1][1])
                        states.push([performance.now(), element[what]]);
                };
                const all = {subtree: true, childList: true, characterData: true, attributes: true};
                new MutationObserver(look).observe(element, all);
                return states;
            }""",
            what,
        )
        self._page = element.page

    def until(self, come: Callable[[list[str]], bool]) -> None:
        """Wait until `come` accepts the recorded states."""
        last = time.monotonic() + HANGS_AFTER_S
        while not come(self.states):
            assert time.monotonic() < last, f"not within {HANGS_AFTER_S} s: {self.states[-1]}"
            self._page.wait_for_timeout(100)

    @property
    def timed(self) -> list[tuple[float, str]]:
        """(time on the page's clock in ms, state that began then) pairs."""
        return [tuple(state) for state in self._states.json_value()]

    @property
    def states(self) -> list[str]:
        return [state for _, state in self.timed]


class Lab:
    """A page of JupyterLab, with at most one notebook open."""

    def __init__(self, page: Page, server: Server, screenshots: Path):
        self.page = page
        self.errors: list[str] = []
        self._server = server
        self._screenshots = screenshots
        self._cells: list[str] = []
        page.set_default_timeout(HANGS_AFTER_S * 1000)
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.errors.append(f"uncaught: {error}"))

    def _console(self, message: Any) -> None:
        where = message.location.get("url", "")
        if message.type == "error" and not NOISE.search(text := f"{message.text} ({where})"):
            self.errors.append(text)

    # ---- a notebook ----

    def open(self, notebook: dict[str, Any], name: str = "notebook.ipynb") -> None:
        """Open a copy of a notebook and wait until its kernel is idle."""
        write(notebook, self._server.notebooks / name)
        self._cells = [cell["id"] for cell in notebook["cells"]]
        self.page.goto(f"{self._server.url}doc/tree/{name}?reset")
        expect(self.page.locator(".jp-Notebook .jp-Cell")).to_have_count(len(self._cells))
        self.wait_until("Idle")

    def cell(self, name: str) -> Locator:
        """Cell by its id in the file."""
        return self.page.locator(".jp-Notebook .jp-Cell").nth(self._cells.index(name))

    def start(self, name: str) -> None:
        """Run a cell without waiting for it."""
        self.cell(name).locator(".jp-InputPrompt").click()
        self.page.keyboard.press("Control+Enter")

    def run(self, name: str) -> None:
        """Run a code cell to its end; fails with the traceback if the cell raises."""
        prompt = self.cell(name).locator(".jp-InputPrompt")
        before = prompt.inner_text()
        self.start(name)
        number = re.compile(rf"^(?!{re.escape(before)}$)\[\d+\]:$")
        expect(prompt).to_have_text(number)
        raised = self.output(name).filter(has_text="Traceback (most recent call last)")
        assert not raised.count(), raised.inner_text()

    def run_all(self, last: str | None = None) -> None:
        """Run the code cells in order: all, or up to and including `last`."""
        for name in self._cells[: self._cells.index(last) + 1 if last else None]:
            if self.cell(name).and_(self.page.locator(".jp-CodeCell")).count():
                self.run(name)

    def output(self, name: str) -> Locator:
        return self.cell(name).locator(".jp-OutputArea")

    def menu(self, menu: str, item: str, confirm: str | None = None) -> None:
        """Choose an item of a menu, and the button `confirm` of the dialog that it opens."""
        self.page.locator(".lm-MenuBar-item, .p-MenuBar-item").get_by_text(menu, exact=True).click()
        exactly = re.compile(rf"^{re.escape(item)}(…|\.\.\.)?$")
        label = self.page.locator(".lm-Menu-itemLabel, .p-Menu-itemLabel")
        label.filter(has_text=exactly).click()
        if confirm is not None:
            self.page.locator(".jp-Dialog button").filter(has_text=confirm).click()

    def wait_until(self, state: str) -> None:
        """Wait until the kernel is "Idle" or "Busy".

        Reads the status bar: the notebook's indicator says idle before there is a kernel.
        """
        self.page.locator("#jp-main-statusbar").get_by_text(f"| {state}").wait_for()

    # ---- widgets ----

    def button(self, text: str) -> Locator:
        """Find a button by its text: its accessible name includes the icon, a private character."""
        exactly = re.compile(rf"^\s*{re.escape(text)}\s*$")
        return self.page.locator(".jp-Notebook button").filter(has_text=exactly)

    def control(self, label: str) -> Locator:
        """Keyboard target (field or slider) of the widget with this description."""
        described = self.page.locator(".jp-Notebook .widget-inline-hbox").filter(
            has=self.page.locator(f".widget-label:text-is('{label}')")
        )
        return described.locator("input, textarea, select, [tabindex='0']").first

    def html(self, text: str) -> Locator:
        """HTML widget that holds this text; evaluated at each use."""
        return self.page.locator(".jp-Notebook .widget-html-content").filter(has_text=text)

    def watch(self, element: Locator, what: str = "textContent") -> Watch:
        """Record every state of an element from now on: of its text, or another property."""
        return Watch(element, what)

    # ---- evidence ----

    def screenshot(self, name: str, of: Locator | None = None) -> Path:
        """Take a screenshot of the page, or of a whole element, even if taller than the page."""
        path = self._screenshots / f"{name}.png"
        if of and (box := of.bounding_box()) and (page := self.page.viewport_size):
            height = max(page["height"], int(box["height"]) + 300)
            self.page.set_viewport_size({"width": page["width"], "height": height})
        (of or self.page).screenshot(path=path)
        return path
