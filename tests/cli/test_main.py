"""llama-pynq: help, imports, interruptions, and output that nobody takes."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest
from support.checkpoint_files import random_weights, write_checkpoint
from support.cli_cases import SHAPE, needs_signals

from llama_pynq import __version__
from llama_pynq.models import BUNDLED


def test_help_and_version_do_not_wait_for_pynq(run):
    code = """
import sys
from llama_pynq.cli.main import main
for arguments in (["--help"], ["generate", "--help"], ["--version"]):
    try:
        main(arguments)
    except SystemExit as end:
        assert end.code == 0
print(sorted({"pynq", "numpy", "llama_pynq.driver"} & set(sys.modules)))
"""
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
    assert "continue a text" in done.stdout
    assert done.stdout.splitlines()[-2:] == [f"llama_pynq {__version__}", "[]"]


def test_no_command_prints_the_help(cli, capsys):
    with pytest.raises(SystemExit) as end:
        cli()
    assert not end.value.code
    out, err = capsys.readouterr()
    assert err == ""
    assert "usage: llama-pynq [-h] [--version] COMMAND ..." in out and "continue a text" in out


@pytest.mark.parametrize(
    ("arguments", "usage", "message"),
    [
        (["genrate", "x"], "[-h]", "there is no command 'genrate'; did you mean generate?"),
        (["xyzzy"], "[-h]", "there is no command 'xyzzy': llama-pynq --help lists them"),
        (["generate", "--sed=1"], "generate", "arguments: --sed=1; did you mean --seed?"),
        (["bench", "--jsn"], "bench", "unrecognized arguments: --jsn; did you mean --json?"),
        (["overlay", "list", "--xyzzy"], "overlay", "unrecognized arguments: --xyzzy"),
        (["info", "extra"], "info", "unrecognized arguments: extra"),
    ],
)
def test_wrong_command_line_shows_the_commands_usage_and_a_suggestion(
    cli, capsys, arguments, usage, message
):
    with pytest.raises(SystemExit) as end:
        cli(*arguments)
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith(f"usage: llama-pynq {usage}")
    assert err.endswith(f"{message}\n")


def test_nothing_is_loaded_before_it_is_needed(run):
    code = """
import sys
import llama_pynq
heavy = {"numpy", "pynq", "matplotlib", "ipywidgets", "IPython", "torch", "pandas"}
print(sorted(heavy & set(sys.modules)))
import pynq
theirs = heavy & set(sys.modules)
with llama_pynq.LlamaOverlay() as overlay:
    overlay.load_model()
    overlay.generate("x", max_new_tokens=2)
print(sorted((heavy & set(sys.modules)) - theirs - {"numpy"}))
"""
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[]", "[]"]


# ---- interruptions -------------------------------------------------------------------


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    """Arguments for a greedy text of 8000 tokens that cannot end: BOS and EOS never win."""
    path = tmp_path_factory.mktemp("endless") / "endless.bin"
    weights = random_weights(SHAPE, seed=1)
    weights["wcls"][1:3] = 0
    write_checkpoint(path, SHAPE, 0, weights=weights)
    model = ["--model", str(path), "--tokenizer", str(BUNDLED / "tokenizer.bin")]
    return [*model, "--temperature", "0", "--max-new-tokens", "8000"]


def buffered():
    """Environment with buffered output, the default: a failing write may fail only at exit."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


@contextmanager
def generating(arguments):
    """A process that is generating its text."""
    command = [sys.executable, "-m", "llama_pynq", "generate", "Once", *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=buffered()
    )
    try:
        with process:
            assert process.stdout.read(len("Once") + 1)[:4] == b"Once"
            yield process
    finally:
        process.kill()


@needs_signals
def test_ctrl_c_ends_the_text_and_frees_the_device(cli, endless):
    with generating(endless) as process:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert process.returncode == 130
    assert out.endswith(b"\n")
    assert err == b"llama-pynq: interrupted\n"
    assert cli("generate", "--max-new-tokens", 2)[0] == 0


def test_a_second_process_gets_an_emulated_device_of_its_own(cli, endless):
    with generating(endless) as process:
        status, out, err = cli("generate", "x", "--max-new-tokens", 2)
        assert process.poll() is None, "the first process ended before the second one started"
        process.kill()
    assert status == 0 and out.startswith("x")
    own = f"emulated-host-{os.getpid()}"
    assert f"another process uses emulated-host: using {own}\n" in err and f"{own} (" in err
    status, _, err = cli("generate", "--max-new-tokens", 2)
    assert status == 0 and "another process" not in err, "a killed process leaves no lock"


def test_a_reader_that_goes_away_is_no_error(endless):
    with generating(endless) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 1


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such pipes")
def test_pipe_without_a_reader_prints_no_traceback():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "llama_pynq", "info"]
    done = subprocess.run(
        command, stdout=writer, stderr=subprocess.PIPE, check=False, env=buffered()
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_full_disk_is_named():
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "llama_pynq", "info"]
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, check=False, env=buffered()
        )
    assert (done.returncode, done.stderr) == (
        1,
        b"llama-pynq: [Errno 28] No space left on device\n",
    )


# ---- surroundings --------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="Windows passes text, not bytes")
def test_locale_without_utf8_takes_a_prompt_and_a_path(tmp_path):
    folder = tmp_path / "modèle"
    folder.mkdir()
    for name in ("stories.bin", "tokenizer.bin"):
        (folder / name).write_bytes((BUNDLED / name).read_bytes())
    words = ["generate", "Zoé", "--max-new-tokens", "5", "--seed", "1"]
    words += ["--model", f"{folder}/stories.bin", "--tokenizer", f"{folder}/tokenizer.bin"]
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    outputs = []
    for env in ({"LC_ALL": "C.UTF-8"}, plain):
        done = subprocess.run(
            [sys.executable, "-m", "llama_pynq", *words], env={**os.environ, **env},
            capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
    assert outputs[0].startswith("Zoé".encode())
    assert outputs[1] == outputs[0].decode().encode("ascii", "replace")


@pytest.mark.skipif(os.name == "nt", reason="Windows passes text, not bytes")
def test_prompt_that_is_not_utf8_is_refused_by_its_byte():
    done = subprocess.run(
        [sys.executable, "-m", "llama_pynq", "generate", b"caf\xe9"],
        env={**os.environ, "LC_ALL": "C.UTF-8"}, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert b"byte 3 (0xe9) of 'caf\\udce9' is not UTF-8: type" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["-m", "llama_pynq", "generate", "--max-new-tokens", "3"],
        ["-c", "from llama_pynq import LlamaOverlay; LlamaOverlay().load_model()"],
    ],
)
def test_warnings_that_are_errors_do_not_stop_pynq(arguments):
    env = {**os.environ, "PYTHONWARNINGS": "error"}
    done = subprocess.run([sys.executable, *arguments], env=env, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
