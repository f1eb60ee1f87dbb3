"""The command line: its output and its error messages."""

import csv
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from support import tiny_lesson
from support.checkpoint_files import random_weights, write_checkpoint

from llama_pynq import LlamaOverlay, __version__
from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.cli.main import main
from llama_pynq.labs import files
from llama_pynq.models import BUNDLED

SHAPE = ModelConfig(
    dim=128,
    hidden_dim=256,
    n_layers=6,
    n_heads=4,
    n_kv_heads=1,
    vocab_size=1024,
    seq_len=8192,
    tied=False,
)
FIGURES = re.compile(
    r"\n(\d+) tokens, \d+\.\d tokens/s \(measured, host clock\), first after \d+ ms, seed (\d+)\n"
    r"emulated-host \(emulated device on this computer's CPU, \d+ threads?; no board in use\), "
    r"kernel host; model loaded in \d+\.\d\d s\n"
)
needs_signals = pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT to send")


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


# ---- generate -------------------------------------------------------------------------


def test_generate_prints_the_text_then_the_figures(cli):
    with LlamaOverlay() as overlay:
        overlay.load_model()
        expected = overlay.generate("The little fox", max_new_tokens=40, seed=7)
    status, out, err = cli("generate", "The little fox", "--max-new-tokens", 40, "--seed", 7)
    assert status == 0
    assert out == f"The little fox{expected.text}\n"
    figures = FIGURES.fullmatch(err)
    assert figures, err
    assert figures.groups() == (str(len(expected.tokens)), "7")


def test_generate_prints_the_seed_it_drew(cli):
    _, first, err = cli("generate", "--max-new-tokens", 12, "--temperature", 3)
    seed = FIGURES.fullmatch(err)[2]
    again = cli("generate", "--max-new-tokens", 12, "--temperature", 3, "--seed", seed)[1]
    other = cli("generate", "--max-new-tokens", 12, "--temperature", 3, "--seed", int(seed) + 1)[1]
    assert first.startswith("Once upon a time")
    assert again == first
    assert other != first


def test_every_sampling_option_reaches_the_model(cli):
    options = [
        {"temperature": 0.0},
        # So hot that all tokens left by truncation are about equally likely.
        {"temperature": 10.0, "top_k": 3},
        {"temperature": 10.0, "top_p": 0.3},
        {"temperature": 10.0, "min_p": 0.7},
        {"temperature": 10.0, "repetition_penalty": 2.5},
        {"stop": "."},
    ]
    with LlamaOverlay() as overlay:
        overlay.load_model()
        expected = [
            overlay.generate("Zyx", max_new_tokens=80, seed=2, **option).text
            for option in [{}, *options]
        ]
    assert len(set(expected)) == len(expected), "the options do not differ in effect"
    for option, text in zip(options, expected[1:]):
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in option.items()]
        out = cli("generate", "Zyx", "--max-new-tokens", 80, "--seed", 2, *flags)[1]
        assert out == f"Zyx{text}\n", option


def test_several_stop_texts_are_all_heeded(cli):
    flags = ["--seed", 1, "--max-new-tokens", 200, "--stop", "nowhere", "--stop", "."]
    out = cli("generate", "One day", *flags)[1]
    assert len(out) > 20
    assert "." not in out


def test_generate_of_one_token_prints_no_rate(cli):
    status, _, err = cli("generate", "One day", "--max-new-tokens", 1, "--seed", 1)
    assert status == 0
    assert re.match(r"\n1 token, first after \d+ ms, seed 1\n", err)


def test_generate_from_an_empty_prompt(cli):
    status, out, _ = cli("generate", "", "--max-new-tokens", 20, "--seed", 1)
    assert status == 0
    assert out[0].isupper() and out.endswith("\n")


def test_overlays_are_found_by_bare_name(cli):
    texts = {
        cli("generate", "--max-new-tokens", 8, "--seed", 1, "--overlay", name)[1]
        for name in ("llama.xclbin", "llama.bit")
    }
    assert len(texts) == 1
    assert texts.pop().startswith("Once upon a time")


def test_a_terminal_without_the_characters_gets_replacements(run):
    arguments = ["-m", "llama_pynq", "generate", "café ☕", "--max-new-tokens", "4", "--seed", "1"]
    done = run(*arguments, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("caf? ?")
    assert "Traceback" not in done.stderr


# ---- info, bench, help ----------------------------------------------------------------


def test_info_lists_device_overlay_limits_and_model(cli):
    status, out, err = cli("info", "--threads", 1)
    assert (status, err) == (0, "")
    sections = [part.splitlines() for part in out.rstrip("\n").split("\n\n")]
    assert sections[0] == [f"llama_pynq {__version__}"]
    tables = {part[0]: dict(line.split(maxsplit=1) for line in part[1:]) for part in sections[1:]}
    assert list(tables) == ["devices", "overlay", "kernel limits", "model"]
    assert tables["devices"] == {"emulated-host": "(in use)"}
    assert tables["overlay"]["file"].endswith("llama.xclbin")
    assert "emulated device on this computer's CPU, 1 thread;" in tables["overlay"]["device"]
    assert tables["kernel limits"]["board"] == "host"
    assert tables["kernel limits"]["max_dim"] == "4096"
    assert tables["model"]["file"] == str(BUNDLED / "stories.bin")
    assert tables["model"]["tokenizer"] == str(BUNDLED / "tokenizer.bin")
    assert tables["model"]["seq_len"] == "512"
    assert re.fullmatch(r"\d+\.\d MiB packed, int8 weights .*", tables["model"]["weights"])
    assert not re.search(r" $", out, re.MULTILINE)


def test_info_names_the_model_file_it_was_given(cli, shared_models):
    model = shared_models / "stories260K.bin"
    out = cli("info", "--model", model, "--tokenizer", shared_models / "tok512.bin")[1]
    assert re.search(rf"^  file +{re.escape(str(model))}$", out, re.MULTILINE)
    assert re.search(r"^  dim +64$", out, re.MULTILINE)


def test_bench_prints_a_table(cli):
    status, out, err = cli("bench", "--tokens", 8, "--repeats", 2)
    assert (status, err) == (0, "")
    device, model, gap, *rows = out.rstrip("\n").split("\n")
    assert device.startswith("device  emulated-host (emulated device on this computer's CPU")
    assert model.startswith("model   dim 128, 6 layers, vocabulary 1024; int8 weights")
    assert gap == ""
    row = re.compile(r"(\S.*?\S) +(\d+(?:\.\d+)?) (tokens/s|ms|MiB) +(measured|counted): \S.*\S")
    names = [row.fullmatch(line)[1] for line in rows]
    assert {"decode, greedy", "prefill", "time to first token", "load"} < set(names)
    assert len({row.fullmatch(line).start(3) for line in rows}) == 1, "columns are aligned"


def test_bench_power_without_a_sensor_says_where_it_looked(cli):
    if list(Path("/sys/class/powercap").glob("intel-rapl:*")):
        pytest.skip("this machine has RAPL: there may be a reading")
    status, out, err = cli("bench", "--tokens", 8, "--repeats", 1, "--power")
    assert (status, err) == (0, "")
    last = out.rstrip().split("\n")[-1]
    assert last.startswith("no power: no rail was found")
    assert "Looked at RAPL of the CPU that emulates: no zone" in last
    assert " W " not in out


def test_bench_power_with_a_meter_is_measured(cli, tmp_path):
    file = tmp_path / "usb.csv"
    file.write_text("watts\n2.5\n")
    status, out, _ = cli("bench", "--tokens", 8, "--repeats", 1, "--power", "--meter", file)
    assert status == 0
    text = r"measured: the first 8 tokens; external meter, usb\.csv"
    assert re.search(rf"^power, mean +2\.5 W +{text}$", out, re.MULTILINE)
    assert re.search(rf"^energy +\d.* J/token +{text}$", out, re.MULTILINE)


def test_bench_meter_alone_asks_for_power(cli):
    status, _, err = cli("bench", "--meter", "usb.csv")
    assert status == 1 and "--meter is only read with --power: add it" in err


def test_bench_prints_json(cli):
    status, out, err = cli("bench", "--tokens", 8, "--repeats", 1, "--json")
    assert (status, err) == (0, "")
    report = json.loads(out)
    assert report["tokens"] == 8
    assert report["config"]["dim"] == 128
    assert all(f["value"] > 0 and f["kind"] in ("measured", "counted") for f in report["figures"])


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


def test_no_command_shows_the_usage(cli, capsys):
    with pytest.raises(SystemExit) as end:
        cli()
    assert end.value.code == 2
    assert "usage: llama-pynq [-h] [--version] COMMAND ..." in capsys.readouterr().err


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


# ---- pack -----------------------------------------------------------------------------


def test_packed_file_holds_model_and_tokenizer(cli):
    status, out, err = cli("pack", "model.safetensors")
    assert (status, err) == (0, "")
    assert re.fullmatch(
        r"model\.safetensors: \d+\.\d MiB, int8 weights used as they are \(groups of 64\), "
        r"with a tokenizer, for emulated-host \(.*\), kernel host\n",
        out,
    )
    words = ["generate", "One day", "--max-new-tokens", 30, "--seed", 3]
    assert cli(*words, "--model", "model.safetensors")[1] == cli(*words)[1]


def test_pack_keeps_an_existing_file_unless_forced(cli, refused, tmp_path):
    output = tmp_path / "model.safetensors"
    output.write_text("precious")
    message = refused("pack", output)
    assert message == f"{output} exists: choose another name, or replace it with --force"
    assert output.read_text() == "precious"
    assert cli("pack", output, "--force")[0] == 0
    assert cli("generate", "--model", output, "--max-new-tokens", 2)[0] == 0
    assert list(tmp_path.iterdir()) == [output], "no temporary file stays"


def test_pack_without_a_tokenizer_says_so_and_so_does_generate(
    cli, refused, shared_models, tmp_path
):
    model = ["--model", shared_models / "stories260K.bin"]
    assert ", without a tokenizer, for " in cli("pack", "small.safetensors", *model)[1]
    assert refused("generate", "--model", "small.safetensors") == (
        "small.safetensors comes without a tokenizer: give its file, "
        'load_model("model.bin", tokenizer="tokenizer.bin") or --tokenizer tokenizer.bin'
    )
    tokenizer = ["--tokenizer", shared_models / "tok512.bin"]
    assert cli("pack", "small.safetensors", "--force", *model, *tokenizer)[0] == 0
    assert cli("generate", "--model", "small.safetensors", "--max-new-tokens", 2)[0] == 0


def test_pack_refuses_what_it_cannot_pack(cli, refused, tmp_path):
    message = refused("pack", tmp_path)
    assert message == f"{tmp_path} is a folder: give the name of the file to write"
    assert cli("pack", "model.safetensors")[0] == 0
    assert refused("pack", "again.safetensors", "--model", "model.safetensors") == (
        "model.safetensors is packed already: give the checkpoint it was made from"
    )
    deep = replace(SHAPE, dim=8, hidden_dim=8, vocab_size=8, n_layers=257, seq_len=8)
    write_checkpoint(tmp_path / "deep.bin", deep, 0)
    message = refused("pack", "deep.safetensors", "--model", "deep.bin")
    assert message.startswith(
        "the model does not fit the kernel on host: n_layers 257 (at most 256)."
    )
    assert not (tmp_path / "deep.safetensors").exists()


def test_pack_into_a_place_that_cannot_be_written(refused, tmp_path):
    (tmp_path / "file").write_text("")
    message = refused("pack", tmp_path / "file" / "model.safetensors")
    assert str(tmp_path / "file") in message


# ---- wrong input ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-new-tokens=0"], "max_new_tokens is 0: it must be at least 1"),
        (["--temperature=-1"], "temperature is -1.0: it must be 0 (greedy), or 0.001 to 100"),
        (["--temperature=nan"], "temperature is nan: it must be 0 (greedy), or 0.001 to 100"),
        (["--top-k=-1"], "top_k is -1: it must be 0 (off) or more"),
        (["--top-p=0"], "top_p is 0.0: it must be above 0, at most 1 (off)"),
        (["--min-p=1"], "min_p is 1.0: it must be 0 (off) to below 1"),
        (["--repetition-penalty=0.5"], "repetition_penalty is 0.5: it must be 1 (off) to 100"),
        (["--seed=-1"], "seed is -1: it must be 0 to 2^64 - 1"),
        (["--stop="], "stop is ['']: it must be a non-empty string, or several"),
        (["--threads=0"], "--threads is 0: it must be 1 to 1024"),
        (["--threads=100000"], "--threads is 100000: it must be 1 to 1024"),
        (["word " * 3000], "tokens long, the model's context holds 512: shorten it"),
        (["a\udcffb"], "lone surrogate"),
    ],
)
def test_an_argument_out_of_range_is_named(refused, options, message):
    assert message in refused("generate", *options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tokens=1"], "--tokens is 1: it must be at least 2"),
        (["--repeats=0"], "--repeats is 0: it must be at least 1"),
    ],
)
def test_a_bench_that_measures_nothing_is_refused(refused, options, message):
    assert refused("bench", *options) == message


@pytest.mark.parametrize("option", ["--group-size=48", "--seed=x", "--top-k=1.5"])
def test_a_malformed_option_shows_the_usage(cli, capsys, option):
    with pytest.raises(SystemExit) as end:
        cli("generate", option)
    assert end.value.code == 2
    assert f"error: argument {option.split('=')[0]}: invalid" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file model.bin: check the path (it is relative to "),
        (b"", "model.bin is not a llama2.c checkpoint but an empty file: "),
        (b"hello\n", "is not a llama2.c checkpoint but a text file that starts with 'hello\\n'"),
        (b"PK\x03\x04" + bytes(60), "model.bin is not a llama2.c checkpoint but a zip"),
        (pickle.dumps({"weights": [1.0] * 9}), "but a pickle, as old torch.save wrote"),
        (b"GGUF" + bytes(60), "model.bin is not a llama2.c checkpoint but a GGUF file"),
        (b"\x40\0\0\0\0\0\0\0" + b'{"a":{}}' + bytes(60), "but a safetensors file: "),
    ],
)
def test_a_foreign_model_file_is_recognised(refused, tmp_path, content, message):
    if content is not None:
        (tmp_path / "model.bin").write_bytes(content)
    assert message in refused("generate", "--model", "model.bin")


def test_truncated_or_damaged_model_files_are_refused(cli, refused, tmp_path):
    whole = (BUNDLED / "stories.bin").read_bytes()
    (tmp_path / "half.bin").write_bytes(whole[: len(whole) // 2])
    message = refused("generate", "--model", "half.bin")
    assert message.startswith("half.bin is truncated: its header (version 2: dim 128, ")
    assert "asks for 1399552 bytes, the file has 699776 (699776 missing)" in message

    assert cli("pack", "whole.safetensors")[0] == 0
    packed = (tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(packed[: len(packed) // 2])
    message = refused("generate", "--model", "half.safetensors")
    assert "half.safetensors: a damaged packed model (" in message
    assert "Pack it again" in message

    bad = bytearray(packed)
    bad[len(bad) // 2] ^= 1
    (tmp_path / "bad.safetensors").write_bytes(bad)
    message = refused("generate", "--model", "bad.safetensors")
    assert re.match(
        r"bad\.safetensors: weight channel \d is damaged \(checksum [0-9a-f]{8}, "
        r"expected [0-9a-f]{8}\)\. Pack the model again: llama-pynq pack",
        message,
    )

    message = refused("generate", "--model", "whole.safetensors", "--group-size", 32)
    assert message == (
        "group_size is 32, but whole.safetensors is packed in groups of 64: leave group_size "
        "out, or pack the checkpoint again"
    )


def test_a_folder_is_no_model(refused, tmp_path):
    assert refused("info", "--model", tmp_path).startswith(f"{tmp_path} is a folder, not a check")


def test_wrong_tokenizer_is_refused(refused, tmp_path):
    (tmp_path / "text.bin").write_text("hello\n")
    # 259 tokens: the bundled tokenizer's control and byte tokens.
    head = (BUNDLED / "tokenizer.bin").read_bytes()
    (tmp_path / "short.bin").write_bytes(_first_pieces(head, 259))
    cases = {
        "nowhere.bin": "there is no file nowhere.bin: check the path",
        "text.bin": "text.bin is not a tokenizer but a text file that starts with 'hello\\n'",
        "short.bin": "a vocabulary of 1024 tokens, but the tokenizer short.bin has 259: ",
        str(BUNDLED / "stories.bin"): "is not a tokenizer but a llama2.c checkpoint",
        str(tmp_path): "is a folder, not a tokenizer",
    }
    for name, message in cases.items():
        assert message in refused("generate", "--tokenizer", name)
        assert message in refused("pack", "out.safetensors", "--tokenizer", name)
    assert not (tmp_path / "out.safetensors").exists()


def _first_pieces(tokenizer, n):
    """First `n` records of a tokenizer.bin: score, length, bytes."""
    end = 4
    for _ in range(n):
        end += 8 + int.from_bytes(tokenizer[end + 4 : end + 8], "little")
    return tokenizer[:end]


def test_unknown_overlay_is_refused(refused, tmp_path):
    for name in ("nowhere.xclbin", "nowhere.bit", str(tmp_path)):
        assert refused("info", "--overlay", name) == (
            f"there is no overlay {name}: give the path of an .xclbin or .bit file, or the name "
            "of an installed one, such as llama.xclbin"
        )
    (tmp_path / "text.xclbin").write_text("hello\n")
    assert "text.xclbin is not an .xclbin file" in refused("info", "--overlay", "text.xclbin")


def test_folder_for_locks_that_cannot_be_made(refused, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLAMA_PYNQ_LOCKS", str(tmp_path / "file" / "locks"))
    assert str(tmp_path / "file") in refused("info")


# ---- interruptions --------------------------------------------------------------------


@needs_signals
def test_ctrl_c_ends_the_text_and_frees_the_device(cli, endless):
    with generating(endless) as process:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert process.returncode == 130
    assert out.endswith(b"\n")
    assert err == b"llama-pynq: interrupted\n"
    assert cli("generate", "--max-new-tokens", 2)[0] == 0


def test_a_second_process_is_told_who_holds_the_device(refused, cli, endless):
    with generating(endless) as process:
        message = refused("generate", "x")
        assert process.poll() is None, "the first process ended before the second one started"
        process.kill()
    assert re.match(rf"device emulated-host\S* is in use by process {process.pid}\. ", message)
    assert cli("generate", "--max-new-tokens", 2)[0] == 0, "a killed process leaves no lock"


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


def test_generate_several_prompts_is_a_batch_with_the_texts_they_have_alone(cli):
    flags = ["--seed", 3, "--max-new-tokens", 20]
    _, both, err = cli("generate", "One day", "The fox", *flags)
    alone = [cli("generate", prompt, *flags)[1].rstrip("\n") for prompt in ("One day", "The fox")]
    assert both == "\n\n".join(alone) + "\n"
    assert err.count("seed 3") == 2


def test_pack_for_a_board_needs_no_device_and_fits_its_layout(cli, tmp_path):
    from llama_pynq.kernel.config import board_headers
    from llama_pynq.kernel.limits import KernelLimits
    from llama_pynq.weights.packed import open_packed

    targets = set()
    for name in ("kv260", "pynq_z2", "u50"):
        status, out, err = cli("pack", "--board", name, tmp_path / name)
        assert status == 0, err
        target = open_packed(tmp_path / name).target
        header = board_headers()[name.replace("_", "-")]
        assert target == KernelLimits.from_header(header).target
        targets.add(target)
        assert f"for {name.replace('_', '-')}" in out
    assert len(targets) == 3
    _, out, _ = cli("pack", "--board", "pynq_z1", tmp_path / "z1")
    assert out.endswith("for pynq-z1, whose kernel is pynq-z2's\n")
    status, _, err = cli("pack", "--board", "pdp11", tmp_path / "x")
    assert status == 1
    assert err == (
        "llama-pynq: there is no board 'pdp11': choose one of pynq-z1, pynq-z2, kv260, zcu104, "
        "aws-f1, u200, u250, u50, u280, u55c, host\n"
    )


def test_board_to_pack_for_is_any_that_boards_lists_in_any_case(tmp_path):
    from llama_pynq.boards import boards
    from llama_pynq.cli.pack import board_limits

    for name, board in boards().items():
        for written in (name, name.upper(), name.replace("-", "_")):
            assert board_limits(written).board == board.header
    assert board_limits("host").board == "host"


def test_packed_for_another_board_is_refused_with_the_remedy(cli, tmp_path):
    cli("pack", "--board", "kv260", tmp_path / "model")
    status, _, err = cli("generate", "--model", tmp_path / "model")
    assert status == 1
    assert "is packed for 4 channels of 32-row tiles; this kernel (host) has 2 of 32" in err


# ---- boards ---------------------------------------------------------------------------


def test_boards_has_a_line_for_every_board_and_says_that_it_is_modelled(cli):
    from llama_pynq.boards import boards

    status, out, err = cli("boards")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "stories.bin: int8 weights, 32-bit KV cache, context 256"
    assert [line.split()[0] for line in lines[3 : 3 + len(boards())]] == list(boards())
    assert "Modelled, not measured" in out


def test_boards_takes_a_shape_a_context_and_bits(cli):
    flags = ["--shape", "tinyllama", "--context", 1024, "--weight-bits", 4, "--kv-bits", 8]
    _, out, _ = cli("boards", *flags)
    assert out.startswith("tinyllama: int4 weights, 8-bit KV cache, context 1024\n")
    assert "dim 2048 (at most 1024)" in out


def test_boards_reads_a_packed_model_and_how_it_is_packed(cli, tmp_path):
    cli("pack", "--board", "kv260", "--weight-bits", 4, tmp_path / "model")
    _, out, _ = cli("boards", "--model", tmp_path / "model")
    assert out.startswith("model: int4 weights")


def test_boards_draws_the_roofline(cli, tmp_path):
    status, out, _ = cli("boards", "--shape", "stories110M", "--plot", tmp_path / "roof.png")
    assert status == 0
    assert "kv260" in out
    assert (tmp_path / "roof.png").read_bytes().startswith(b"\x89PNG")


def test_boards_names_what_is_wrong_with_an_option(refused, cli, tmp_path):
    cli("pack", "--board", "kv260", tmp_path / "model")
    assert refused("boards", "--shape", "gpt5") == (
        "there is no shape 'gpt5': choose one of stories15M, stories42M, stories110M, "
        "tinyllama, llama2-7b"
    )
    assert refused("boards", "--shape", "stories15M", "--context", 257) == (
        "--context is 257: it must be 1 to 256, the model's context"
    )
    assert "int4 weights come in groups of 64 only" in refused(
        "boards", "--shape", "stories15M", "--weight-bits", 4, "--group-size", 32
    )
    assert "--weight-bits is 4, but" in refused(
        "boards", "--model", tmp_path / "model", "--weight-bits", 4
    )
    assert "end the name in .png, .svg or .pdf" in refused("boards", "--plot", "roof.docx")
    assert "no/such.bin" in refused("boards", "--model", "no/such.bin")


# ---- notebooks, lab, labs grade -------------------------------------------------------


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Replace the package's notebooks by one of two exercises."""
    source = tiny_lesson.register(tmp_path / "package", monkeypatch)
    monkeypatch.setattr(files, "notebook_sources", lambda: [source])
    monkeypatch.setattr("llama_pynq.labs.grade.notebook_sources", lambda: [source])
    return source


def test_notebooks_are_copied_kept_and_reset(cli, tiny, tmp_path):
    copy = Path("llama_pynq_notebooks", "99_tiny.ipynb")
    assert cli("notebooks") == (0, f"{copy}: copied\n", "")
    assert cli("notebooks")[1] == f"{copy}: there already, unchanged\n"
    (tmp_path / copy).write_text("my work")
    assert cli("notebooks")[1] == (
        f"{copy}: kept: it differs from the package's (--reset replaces it and keeps a backup)\n"
    )
    status, out, _ = cli("notebooks", "--reset")
    assert status == 0
    backup = re.fullmatch(
        rf"{re.escape(str(copy))}: replaced; the previous file is now "
        r"(99_tiny\.backup-\d{8}-\d{6}\.ipynb)\n",
        out,
    )[1]
    assert (tmp_path / copy).with_name(backup).read_text() == "my work"
    (tmp_path / "übung" / "99_tiny.ipynb").mkdir(parents=True)
    assert cli("notebooks", "übung", "--reset")[1].endswith(": kept: it is not a regular file\n")


def test_notebooks_in_a_files_place_are_refused(refused, tiny, tmp_path):
    (tmp_path / "file").touch()
    assert refused("notebooks", "file") == "file is a file: give a folder for the notebooks"
    assert "cannot be copied to file/inside" in refused("notebooks", "file/inside")


LAB = """
import json, os, pathlib, signal, sys, time
try:
    print(json.dumps({"arguments": sys.argv[1:], "folder": os.getcwd()}), flush=True)
    time.sleep(60 if "--wait" in sys.argv else 0)
except KeyboardInterrupt:
    sys.exit("Shutdown confirmed")
"""


def lab(tmp_path, *arguments):
    """Start a process of `llama-pynq lab` with a fake JupyterLab."""
    (tmp_path / "path" / "jupyterlab").mkdir(parents=True)
    (tmp_path / "path" / "jupyterlab" / "__init__.py").touch()
    (tmp_path / "path" / "jupyterlab" / "__main__.py").write_text(LAB)
    return subprocess.Popen(
        [sys.executable, "-m", "llama_pynq", "lab", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "path")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


@pytest.mark.parametrize("name", ["llama_pynq_notebooks", "übung ☕"])
def test_lab_opens_jupyterlab_on_the_folder_with_further_arguments(tmp_path, name):
    given = [] if name == "llama_pynq_notebooks" else [name]
    with lab(tmp_path, *given, "--", "--no-browser", "--port", "9") as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    said, found = out.splitlines()
    folder = str(tmp_path / name)
    assert re.fullmatch(rf"{re.escape(folder)}: \d+ notebooks copied, 0 there already", said)
    expected = [f"--ServerApp.root_dir={folder}", "--no-browser", "--port", "9"]
    assert json.loads(found) == {"arguments": expected, "folder": folder}


@needs_signals
def test_ctrl_c_is_jupyterlabs_own(tmp_path):
    with lab(tmp_path, "--", "--wait") as process:
        process.stdout.readline(), process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (1, "Shutdown confirmed\n")


def contents(url):
    """Names in the folder of a Jupyter server; retries, as it prints its URL before it listens."""
    for _ in range(100):
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return {entry["name"] for entry in json.load(answer)["content"]}
        except urllib.error.URLError:
            time.sleep(0.1)
    raise TimeoutError(url)


@needs_signals
def test_lab_serves_the_notebooks_in_the_jupyterlab_that_is_here(tmp_path):
    pytest.importorskip("jupyterlab")
    options = ["--no-browser", "--allow-root", "--port=0", "--ServerApp.token=x"]
    command = [sys.executable, "-m", "llama_pynq", "lab", "übung", "--", *options]
    environment = {**os.environ, "HOME": str(tmp_path)}
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    ) as process:
        try:
            for line in process.stdout:
                if found := re.search(r"http://127\.0\.0\.1:\d+/", line):
                    break
            listed = contents(f"{found[0]}api/contents?token=x")
            process.send_signal(signal.SIGINT)  # the server asks for confirmation
            with suppress(subprocess.TimeoutExpired):  # two signals at once count as one
                process.communicate(timeout=1)
            process.send_signal(signal.SIGINT)
            process.communicate()
            assert process.returncode == 0
        finally:
            process.kill()
    assert listed == {path.name for path in (tmp_path / "übung").glob("*.ipynb")}


def test_lab_without_jupyterlab_names_the_extra(refused, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert refused("lab") == (
        f"JupyterLab is not installed for {sys.executable}: pip install 'llama_pynq[lab]'"
    )
    assert not (tmp_path / "llama_pynq_notebooks").exists()


def test_grade_without_nbclient_names_the_extra(refused, tiny, tmp_path, monkeypatch):
    tiny_lesson.write(tmp_path / "in" / "ada.ipynb", tiny_lesson.notebook())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = refused("labs", "grade", "in")
    assert message.startswith("ipykernel is not installed for ")
    assert message.endswith("grading runs notebooks: pip install 'llama_pynq[lab]'")


def test_grade_writes_a_table_and_leaves_the_submissions_alone(cli, refused, tiny, tmp_path):
    work = tiny_lesson.notebook(tiny_lesson.RIGHT_1, "number = 41")
    tiny_lesson.write(tmp_path / "in" / "Ünal Øst" / "99_tiny.ipynb", work)
    tiny_lesson.write(tmp_path / "in" / "bob.ipynb", "{")
    before = {path: path.stat() for path in (tmp_path / "in").rglob("*")}
    status, out, err = cli("labs", "grade", "in", "--csv", "out.csv")
    assert (status, out) == (0, "out.csv: 2 of 2 submissions\n")
    assert err == (
        "1 of 2: bob.ipynb\n    1 unreadable\n"
        "2 of 2: Ünal Øst/99_tiny.ipynb\n    1 passed, 1 wrong\n"
    )
    rows = list(csv.DictReader((tmp_path / "out.csv").open(encoding="utf-8-sig")))
    assert [(row["student"], row["exercise"], row["state"]) for row in rows] == [
        ("bob", "", "unreadable"),
        ("Ünal Øst", "99.1", "passed"),
        ("Ünal Øst", "99.2", "wrong"),
    ]
    after = {path: path.stat() for path in (tmp_path / "in").rglob("*")}
    assert list(after) == list(before)
    assert [s.st_mtime_ns for s in after.values()] == [s.st_mtime_ns for s in before.values()]

    (tmp_path / "out.csv").write_text("precious")
    message = refused("labs", "grade", "in", "--csv", "out.csv")
    assert message == "out.csv exists: choose another name, or replace it with --force"
    assert (tmp_path / "out.csv").read_text() == "precious"
    assert cli("labs", "grade", "in", "--csv", "out.csv", "--force")[0] == 0
    assert (tmp_path / "out.csv").stat().st_size > 100


def test_grade_refuses_what_it_cannot_do_before_it_starts(refused, tiny, tmp_path):
    assert refused("labs", "grade", "in") == (
        "there is no folder in: give the one with the submissions"
    )
    (tmp_path / "in").mkdir()
    assert "in holds no notebook (.ipynb)" in refused("labs", "grade", "in")
    tiny_lesson.write(tmp_path / "in" / "ada.ipynb", tiny_lesson.notebook())
    assert refused("labs", "grade", "in", "--csv", "in/ada.csv") == (
        "in/ada.csv lies in in, which is only read: write it elsewhere"
    )
    assert refused("labs", "grade", "in", "--csv", "package") == (
        "package is a folder: give the name of the file to write"
    )
    assert refused("labs", "grade", "in", "--csv", "no/a.csv") == "there is no folder no for a.csv"
    assert refused("labs", "grade", "in", "--timeout", "0") == (
        "--timeout is 0: it must be above 0 seconds"
    )


def test_grade_says_that_it_runs_programs_of_others(cli, capsys):
    with pytest.raises(SystemExit):
        cli("labs", "grade", "--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "Submissions are other people's programs and run with your permissions" in text
    assert "throw-away account or container" in text


@needs_signals
def test_ctrl_c_while_grading_keeps_the_grades_so_far(tiny, tmp_path):
    good = tiny_lesson.notebook(tiny_lesson.RIGHT_1, tiny_lesson.RIGHT_2)
    tiny_lesson.write(tmp_path / "in" / "ada.ipynb", good)
    tiny_lesson.write(tmp_path / "in" / "bob.ipynb", tiny_lesson.notebook("while True: pass"))
    code = """
import signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
from llama_pynq.labs import grade
notebook = Path(sys.argv.pop(1))
grade.notebook_sources = lambda: [notebook]
from llama_pynq.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tiny), "labs", "grade", "in"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    ) as process:
        for line in process.stderr:
            if "bob" in line:
                break
        time.sleep(3)  # until the answer's endless loop runs
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, out) == (130, "grades.csv: 1 of 2 submissions\n")
    assert err == "llama-pynq: interrupted\n"
    rows = list(csv.DictReader((tmp_path / "grades.csv").open(encoding="utf-8-sig")))
    assert [row["state"] for row in rows] == ["passed", "passed"]
