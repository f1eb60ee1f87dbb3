"""What commands write: JSON of the commands that have it, and files that are kept."""

import json
import os
import shutil
import struct

import pytest
from support.huggingface_files import CONFIG, random_tensors, write_folder

from llama_pynq.boards import boards
from llama_pynq.models import BUNDLED


def strict(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_boards_as_json_has_the_figures_of_the_table(cli):
    status, out, _ = cli("boards", "--shape", "llama2-7b", "--json")
    rows = strict(out)["boards"]
    assert status == 0 and [row["board"] for row in rows] == list(boards())
    table = cli("boards", "--shape", "llama2-7b")[1]
    for row in rows:
        assert row["kind"] == "modelled"
        (line,) = (one for one in table.splitlines() if one.startswith(f"{row['board']} "))
        assert f"{row['roof_tokens_per_second']:,.1f}" in line
        if row["fits"]:
            assert f"{row['tokens_per_second']:,.1f}" in line
        else:
            assert row["reason"] and row["tokens_per_second"] is None


def test_overlay_list_as_json_has_every_board(cli):
    status, out, _ = cli("overlay", "list", "--json")
    assert status == 0 and list(strict(out)) == list(boards())


def test_selftest_as_json_has_every_check(cli):
    status, out, err = cli("selftest", "--quick", "--json")
    found = strict(out)
    assert status == 0 and found["passed"] and found["verdict"] in err
    assert len(found["checks"]) > 20
    for check in found["checks"]:
        assert check["name"] in err, "progress goes to standard error"


@pytest.mark.parametrize(
    "command", [["pack"], ["boards", "--plot"], ["selftest", "--quick", "--output"]]
)
def test_commands_keep_an_existing_file_unless_forced(cli, refused, tmp_path, command):
    path = tmp_path / "file.svg"
    path.write_text("precious")
    assert refused(*command, path) == (
        f"{path} exists: choose another name, or replace it with --force"
    )
    assert path.read_text() == "precious"
    assert (
        refused(*command, tmp_path) == f"{tmp_path} is a folder: give the name of the file to write"
    )
    assert "there is no folder" in refused(*command, tmp_path / "no" / "file.svg")
    assert cli(*command, path, "--force")[0] == 0
    assert path.read_bytes()[:8] != b"precious"
    assert list(tmp_path.iterdir()) == [path], "no temporary file stays"


# ---- models and tokenizers are never written over --------------------------------------


def file_of_others(name, tmp_path):
    """Write a file of others, and return its path and content."""
    path = tmp_path / name
    kinds = {
        "stories.bin": (BUNDLED / "stories.bin").read_bytes(),
        "legacy.bin": struct.pack("<7i", 288, 768, 6, 6, 6, 32000, 256) + bytes(500),
        "tokenizer.bin": (BUNDLED / "tokenizer.bin").read_bytes(),
        "model.gguf": b"GGUF\3\0\0\0" + bytes(500),
        "weights": b"\x40\0\0\0\0\0\0\0" + b'{"a":{}}' + bytes(500),
        "model.pt": b"PK\3\4" + bytes(500),
        "tokenizer.model": b"\x0a\x0e\x0a\x05<unk>" + bytes(500),
        "tokenizer.json": b'{"version": "1.0"}',
        "unknown.bin": bytes(range(256)),
        "tiktoken.model": b"IQ== 0\nIg== 1\n",
        "ranks": b"IQ== 0\r\nIg== 1\r\n",
        "x.model": b"{}",
        "llama-tokenizer.json": b"{}",
        "Tokenizer.JSON": b"{}",
        "config.json": b"{}",
        "generation_config.json": b"{}",
        "model.safetensors.index.json": b"{}",
        "merges.txt": b"a b\n",
        "chat_template.jinja": b"{{ x }}",
        "old-ggml": b"lmgg" + bytes(range(256)),
        "older-ggml": b"ggmf" + bytes(range(256)),
        "weights.h5": b"\x89HDF\r\n\x1a\n" + bytes(500),
        "array": b"\x93NUMPY" + bytes(500),
        "llama.xclbin": b"xclbin2\0" + bytes(500),
    }
    path.write_bytes(kinds[name])
    return path, kinds[name]


FOREIGN = [
    "stories.bin", "legacy.bin", "tokenizer.bin", "model.gguf", "weights", "model.pt",
    "tokenizer.model", "tokenizer.json", "unknown.bin", "llama.xclbin", "tiktoken.model", "ranks",
    "x.model", "llama-tokenizer.json", "Tokenizer.JSON", "config.json", "generation_config.json",
    "model.safetensors.index.json", "merges.txt", "chat_template.jinja", "old-ggml",
    "older-ggml", "weights.h5", "array",
]  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize(
    "command", [["pack"], ["boards", "--plot"], ["selftest", "--quick", "--output"]]
)
def test_a_model_is_never_written_over_by_any_command(refused, tmp_path, command, name):
    path, content = file_of_others(name, tmp_path)
    for force in ([], ["--force"]):
        message = refused(*command, path, *force)
        assert f"{path} is a" in message and "no command writes over one" in message
        assert "A model to read is --model" in message
    assert path.read_bytes() == content


def test_pack_never_writes_over_what_it_reads(cli, refused, tmp_path):
    for name in ("stories.bin", "tokenizer.bin"):
        shutil.copy(BUNDLED / name, tmp_path)
    model, tokenizer = tmp_path / "stories.bin", tmp_path / "tokenizer.bin"
    before = {path: path.read_bytes() for path in (model, tokenizer)}
    (tmp_path / "link.safetensors").symlink_to(model)
    for output in (model, tokenizer, tmp_path / "link.safetensors"):
        refused("pack", output, "--model", model, "--tokenizer", tokenizer, "--force")
    assert {path: path.read_bytes() for path in before} == before
    assert cli("pack", "own.safetensors")[0] == 0
    assert cli("pack", "own.safetensors", "--force")[0] == 0, "a packed model may be replaced"
    assert "is a packed model" in refused("boards", "--plot", "own.safetensors", "--force")


def test_pack_never_writes_over_a_file_of_the_folder_it_reads(refused, tmp_path):
    config = {**CONFIG, "vocab_size": 1024}
    folder = write_folder(tmp_path / "folder", config, random_tensors(config))
    (folder / "README.md").write_text("about it")
    os.link(folder / "README.md", tmp_path / "linked")
    args = ["--model", folder, "--tokenizer", BUNDLED / "tokenizer.bin", "--force"]
    for output in (folder / "README.md", tmp_path / "linked"):
        assert "is a file of the folder that --model reads" in refused("pack", output, *args)
    assert (folder / "README.md").read_text() == "about it"
    assert "is a part of a model's folder" in refused("pack", folder / "config.json", *args)
    assert "standard output" in refused("pack", "-", *args)
    assert not (tmp_path / "-").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
def test_pipes_devices_and_dangling_links_are_never_replaced(refused, tmp_path):
    fifo, link = tmp_path / "pipe.svg", tmp_path / "link.svg"
    os.mkfifo(fifo)
    link.symlink_to(tmp_path / "nowhere")
    for path in (fifo, link, "/dev/null"):
        message = refused("selftest", "--quick", "--output", path, "--force")
        assert message == f"{path} is no regular file: give the name of the file to write"
    assert fifo.is_fifo() and link.is_symlink()


@pytest.mark.parametrize("text", ["", "\n\n\n# report\n", "café\n", '{"a": 1}\n', "ü" * 4096])
def test_a_text_is_no_model_and_may_be_replaced(cli, tmp_path, text):
    (tmp_path / "report.svg").write_text(text, encoding="utf-8")
    assert cli("boards", "--plot", "report.svg", "--force")[0] == 0
