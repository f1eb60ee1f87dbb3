"""Completion in a shell, as bash asks for it."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("llama-pynq ov", ["overlay "]),
        ("llama-pynq bench --sh", ["--shape "]),
        ("llama-pynq generate --board kv", ["kv260 "]),
        ("llama-pynq overlay install u2", ["u200", "u250", "u280"]),
        ("llama-pynq boards --shape stories1", ["stories15M", "stories110M"]),
    ],
)
def test_shell_is_answered(tmp_path, line, words):
    answer = tmp_path / "answer"
    env = {
        **os.environ, "_ARGCOMPLETE": "1", "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "_ARGCOMPLETE_IFS": "\n", "COMP_LINE": line, "COMP_POINT": str(len(line)),
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-m", "llama_pynq"], env=env, capture_output=True)
    assert (done.returncode, done.stdout) == (0, b""), done.stderr
    assert answer.read_text().split("\n") == words
