"""Fixtures of the tests of the command line."""

import pytest

from llama_pynq.cli.main import main


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch):
    """Run a command in this process, in an empty folder; returns exit status and output."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        status = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return call


@pytest.fixture
def refused(cli):
    """Run a command that must fail; returns its message."""

    def call(*arguments):
        status, out, err = cli(*arguments)
        assert (status, out) == (1, "")
        assert err.startswith("llama-pynq: ") and err.count("\n") == 1
        return err.removeprefix("llama-pynq: ").rstrip("\n")

    return call
