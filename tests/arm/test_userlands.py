"""The package in Debian's userlands for ARM, run by QEMU: it installs, and gives the same bits.

QEMU runs the programs of Linux on ARM, not a board: there is no fabric, and `pynq` finds no device.
``make test-arm`` runs these tests. The userlands stay in build/arm, beside a log each.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from support.paths import REPOSITORY
from support.project_files import copy_project
from support.userland import Userland

FOLDER = REPOSITORY / "build" / "arm"
COMMON = ("ca-certificates", "python3-venv", "g++")
# PyPI has no wheels of these for armhf. The image of a board has them, and PYNQ.
OF_AN_IMAGE = ("python3-cffi", "python3-matplotlib", "python3-numpy")
# PYNQ 3.1 and psutil are compiled.
TO_COMPILE = ("make", "python3-dev")
USERLANDS = {
    "arm64": Userland("arm64", "aarch64", "qemu-aarch64", COMMON, FOLDER / "arm64"),
    "armhf": Userland(
        "armhf", "armv7l", "qemu-arm", COMMON + OF_AN_IMAGE + TO_COMPILE, FOLDER / "armhf"
    ),
}
STORY = ("generate", "Once upon a time", "--seed", "1", "--emulate")


def _now() -> np.ndarray:
    """Seconds of the clock, and of CPU that ended programs took."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return np.array([time.monotonic(), used.ru_utime + used.ru_stime])


class Steps:
    """Run the steps in a userland, with a line and a time each; the first failure ends the test."""

    def __init__(self, userland: Userland):
        self.userland = userland
        self.log = FOLDER / f"{userland.arch}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.write_text("")
        # PYNQ 4 would compile a driver of boards: docs/install.md.
        self.environment = {"PYNQ_REMOTE": "1"} if userland.machine == "aarch64" else {}

    def make(self) -> None:
        started = _now()
        done = self.userland.make()
        if done is not None:
            self._check("make the userland", done, started)
        shutil.rmtree(self.userland.root / "work", ignore_errors=True)
        (self.userland.root / "work").mkdir()

    def __call__(self, name: str, *command: str) -> str:
        """Run a command in /work; returns its standard output."""
        started = _now()
        done = self.userland.run(command, "/work", self.environment)
        self._check(name, done, started)
        return done.stdout

    def _check(self, name: str, done: subprocess.CompletedProcess, started: np.ndarray) -> None:
        took, of_cpu = _now() - started
        print(f"{self.userland.arch}: {name}: {took:.0f} s, {of_cpu:.0f} s of CPU", flush=True)
        text = f"$ {' '.join(map(str, done.args))}\n{done.stdout}{done.stderr}\n"
        with self.log.open("a", encoding="utf-8") as log:
            log.write(text)
        if done.returncode:
            lines = "\n".join(text.splitlines()[-40:])
            pytest.fail(
                f"{self.userland.arch}: {name}: failed with status {done.returncode}; the whole "
                f"log is {self.log}\n{lines}",
                pytrace=False,
            )


@pytest.fixture(scope="module", params=USERLANDS)
def userland(request):
    userland = USERLANDS[request.param]
    if reason := userland.missing():
        if os.environ.get("CI") == "true":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    return userland


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return copy_project(tmp_path_factory.mktemp("source") / "llama_pynq")


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory):
    """The wheel for boards, made on this computer: make wheels WHEELS=any."""
    out = tmp_path_factory.mktemp("wheel")
    built = shutil.copytree(checkout, out / "llama_pynq")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", out, built],
        env={**os.environ, "LLAMA_PYNQ_EMULATOR": "0"},
        check=True,
        capture_output=True,
    )
    (wheel,) = out.glob("*-any.whl")
    return wheel


@pytest.fixture(scope="module")
def text_here(tmp_path_factory):
    """The story as this computer's emulated device tells it."""
    done = subprocess.run(
        [sys.executable, "-m", "llama_pynq", *STORY],
        cwd=tmp_path_factory.mktemp("here"),
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    assert len(done.stdout.split()) > 20
    return done.stdout


def test_package_works_in_the_userland(userland, checkout, wheel, text_here):
    step = Steps(userland)
    step.make()
    shutil.copy(wheel, userland.root / "work")
    shutil.copytree(checkout, userland.root / "work" / "llama_pynq")

    # As docs/install.md says. An image's environment sees the packages of the image.
    of_the_image = ["--system-site-packages"] if userland.machine == "armv7l" else []
    step("make an environment", "python3", "-m", "venv", *of_the_image, "env")
    step("install", "env/bin/pip", "install", wheel.name)
    if userland.machine == "armv7l":  # on a board
        step("compile the emulator", "env/bin/python", "-m", "llama_pynq.emulation.build")
    else:  # from source
        step("compile the emulator", "env/bin/pip", "install", "./llama_pynq")

    text = step("tell a story", "env/bin/llama-pynq", *STORY)
    assert text == text_here, f"{userland.arch}: tell a story: not the text of this computer"

    report = step("self-test", "env/bin/llama-pynq", "selftest", "--quick", "--emulate")
    assert f"Linux {userland.machine}, Python" in report
    assert re.search(r"^all \d+ checks passed$", report, re.MULTILINE), (
        f"{userland.arch}: self-test:\n{report}"
    )
    print(report)
