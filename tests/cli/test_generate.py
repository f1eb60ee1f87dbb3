"""llama-pynq generate: its text, its figures and its options."""

import os
import re
import subprocess
import sys

import pytest

from llama_pynq import LlamaOverlay
from llama_pynq.cli.main import command_parser

FIGURES = re.compile(
    r"\n(\d+) tokens, \d+\.\d tokens/s \(measured, host clock\), first after \d+ ms, seed (\d+)\n"
    r"emulated-host \(emulated device on this computer's CPU, \d+ threads?; no board in use\), "
    r"kernel host; model loaded in \d+\.\d\d s\n"
)


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


def test_a_terminal_without_the_characters_gets_replacements(run):
    arguments = ["-m", "llama_pynq", "generate", "café ☕", "--max-new-tokens", "4", "--seed", "1"]
    done = run(*arguments, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("caf? ?")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-new-tokens=-1"], "max_new_tokens is -1: it must be 0 or more"),
        (["--temperature=-1"], "temperature is -1.0: it must be 0 (greedy), or 0.001 to 100"),
        (["--temperature=nan"], "temperature is nan: it must be 0 (greedy), or 0.001 to 100"),
        (["--top-k=-1"], "top_k is -1: it must be 0 (off) or more"),
        (["--top-p=0"], "top_p is 0.0: it must be above 0, at most 1 (off)"),
        (["--min-p=1"], "min_p is 1.0: it must be 0 (off) to below 1"),
        (
            ["--repetition-penalty=0"],
            "repetition_penalty is 0.0: it must be above 0, 1 (off), to 100",
        ),
        (["--seed=-1"], "seed is -1: it must be 0 to 2^64 - 1"),
        (["--stop="], "stop is ['']: it must be a non-empty string, or several"),
        (["--threads=0"], "--threads is 0: it must be 1 to 1024"),
        (["--threads=100000"], "--threads is 100000: it must be 1 to 1024"),
        (["word " * 3000], "tokens long, the model's context holds 512: shorten it"),
    ],
)
def test_an_argument_out_of_range_is_named(refused, options, message):
    assert message in refused("generate", *options)


@pytest.mark.parametrize("option", ["--group-size=48", "--seed=x", "--top-k=1.5"])
def test_a_malformed_option_shows_the_usage(cli, capsys, option):
    with pytest.raises(SystemExit) as end:
        cli("generate", option)
    assert end.value.code == 2
    assert f"error: argument {option.split('=')[0]}: invalid" in capsys.readouterr().err


def test_generate_several_prompts_is_a_batch_with_the_texts_they_have_alone(cli):
    flags = ["--seed", 3, "--max-new-tokens", 20]
    _, both, err = cli("generate", "One day", "The fox", *flags)
    alone = [cli("generate", prompt, *flags)[1].rstrip("\n") for prompt in ("One day", "The fox")]
    assert both == "\n\n".join(alone) + "\n"
    assert err.count("seed 3") == 2


# ---- standard input, stop strings, rope ------------------------------------------------


def piped(data, *arguments):
    command = [sys.executable, "-m", "llama_pynq", "generate", "--seed", "1", *arguments]
    return subprocess.run([*command, "--max-new-tokens", "8"], input=data, capture_output=True)


def test_prompt_comes_from_standard_input(cli):
    expected = cli("generate", "The cat", "--seed", 1, "--max-new-tokens", 8)[1]
    for arguments in (["-"], []):
        done = piped(b"The cat\n", *arguments)
        assert (done.returncode, done.stdout.decode()) == (0, expected), done.stderr
    batch = piped(b"The cat", "One day", "-").stdout.decode()
    assert batch.startswith("One day") and batch.endswith(expected)


def test_no_prompt_and_empty_standard_input_tell_the_usual_story(cli):
    expected = cli("generate", "--seed", 1, "--max-new-tokens", 8)[1]
    assert expected.startswith("Once upon a time")
    assert piped(b"").stdout.decode() == expected


def test_standard_input_that_is_not_utf8_is_refused_by_its_byte():
    done = piped(b"caf\xe9 noir", "-")
    assert done.returncode == 1
    assert b"byte 3 (0xe9) of standard input is not UTF-8" in done.stderr
    assert b"standard input can be read once" in piped(b"a", "-", "-").stderr


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (r"\n", "\n"),
        (r"\r\n", "\r\n"),
        (r"a\tb\n\n", "a\tb\n\n"),
        (r"\\n", r"\n"),
        (r"\d", r"\d"),
        ("end", "end"),
    ],
)
def test_stop_strings_have_escapes(written, meant):
    args = command_parser()[0].parse_args(["generate", "--stop", written, "--stop", "x"])
    assert args.stop == [meant, "x"]


def test_rope_theta_reaches_the_model(cli):
    options = ["generate", "Once", "--seed", 1, "--max-new-tokens", 30]
    assert cli(*options, "--rope-theta", 10000)[1] == cli(*options)[1]
    assert cli(*options, "--rope-theta", 500)[1] != cli(*options)[1]
    cli("pack", "m.safetensors", "--rope-theta", 500)
    packed = cli(*options, "--model", "m.safetensors")[1]
    assert packed == cli(*options, "--rope-theta", 500)[1]


def test_context_ends_the_text(cli):
    options = ["generate", "Once", "--seed", 1, "--max-new-tokens", 60]
    whole, short = cli(*options)[1], cli(*options, "--context", 20)[1]
    assert whole.startswith(short.rstrip("\n")) and len(short) < len(whole)


def test_special_tokens_are_parsed_when_asked_for(cli):
    options = ["generate", "The end.</s>Once", "--seed", 1, "--max-new-tokens", 9]
    assert cli(*options)[1] != cli(*options, "--parse-special")[1]
    many = [*options[:2], "</s>Once", *options[2:], "--parse-special"]
    assert cli(*many)[1].split("\n\n")[0].strip() == cli(*options, "--parse-special")[1].strip()


def test_standard_input_of_windows_gives_the_same_text(cli):
    expected = cli("generate", "a\nb", "--seed", 1, "--max-new-tokens", 8)[1]
    for data in (b"a\r\nb\r\n", b"\xef\xbb\xbfa\nb\n"):
        assert piped(data, "-").stdout.decode() == expected


@pytest.mark.skipif(os.name == "nt", reason="needs a shell that closes standard input")
def test_closed_standard_input_is_named():
    command = f"{sys.executable} -m llama_pynq generate - <&-"
    done = subprocess.run(command, shell=True, capture_output=True, check=False)
    assert done.returncode == 1
    assert b"there is no standard input to read a prompt from" in done.stderr
