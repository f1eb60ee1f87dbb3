"""Every stage of the kernel under the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys

from support.paths import REPOSITORY
from support.sanitized import OPTIONS, SANITIZERS, compiler


def test_stages_leave_nothing_to_report(count):
    """tests/hls/test_stages.py: Python loads the sanitizer first, so arrays have its guards."""
    command = compiler("address")
    libraries = [
        subprocess.run(
            [command[0], f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    environment = {
        **os.environ,
        **OPTIONS,
        # Python keeps memory to its end.
        "ASAN_OPTIONS": "detect_leaks=0",
        "LD_PRELOAD": ":".join(libraries),
        "CXX": shlex.join(command),
        # -fsanitize again: the package's own flags turn off a part of it.
        "LLAMA_TEST_FLAGS": shlex.join([*SANITIZERS["address"], "-O0", "-g1"]),
    }
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    tests += ["-k", "u280 or not host", "tests/hls/test_stages.py"]
    done = subprocess.run(
        tests, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (done.stdout[-6000:], done.stderr[-6000:])
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed, done.stdout
    count("address, tests of single stages", int(passed[1]))
