"""llama-pynq boards: the table, the plot and the options."""

import json
from dataclasses import replace

from support.checkpoint_files import random_weights, write_checkpoint
from support.cli_cases import SHAPE
from support.gguf_files import write_gguf_model


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
    flags += ["--rope-theta", 500, "--reading", "export"]
    _, out, _ = cli("boards", *flags)
    assert out.startswith("tinyllama: int4 weights, 8-bit KV cache, context 1024\n")
    assert "dim 2048 (at most 1024)" in out


def test_boards_makes_room_for_the_context_asked_for(cli):
    def fits(*options):
        return {
            row["board"]: row["fits"]
            for row in json.loads(cli("boards", "--json", *options)[1])["boards"]
        }

    whole = fits("--shape", "stories110M")
    assert not whole["pynq-z2"] and whole["kv260"]
    assert not fits("--shape", "stories110M", "--context", 1024)["pynq-z2"]
    assert fits("--shape", "stories110M", "--context", 64)["pynq-z2"]


def test_boards_names_a_context_beyond_a_kernels_limit(cli, tmp_path):
    write_checkpoint(tmp_path / "m.bin", replace(SHAPE, seq_len=9000), 1)
    found = json.loads(cli("boards", "--model", "m.bin", "--context", 9000, "--json")[1])["boards"]
    reasons = {row["board"]: row["reason"] for row in found}
    assert reasons["kv260"] == "the kernel holds a context of 8192 tokens at most, not 9000"
    assert reasons["u50"] == ""


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


def test_boards_and_info_read_the_shape_of_a_gguf_file(cli, tmp_path):
    write_gguf_model(tmp_path / "m.gguf", SHAPE, random_weights(SHAPE), ["Q8_0", "Q4_1"])
    assert "m.gguf: int8 weights" in cli("boards", "--model", "m.gguf")[1]
    found = json.loads(cli("info", "--model", "m.gguf", "--json")[1])["model"]
    assert found["dim"] == SHAPE.dim
    assert found["tokenizer"] == "none: give --tokenizer FILE"
    assert found["weights"].startswith("Q8_0 used as they are; Q4_1 (relative error unknown)")
