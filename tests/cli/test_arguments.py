"""Options shared by several commands: overlays, model and tokenizer files that are refused."""

import pickle
import re

import pytest
from support.plain_device import Plain

from llama_pynq.models import BUNDLED


def test_overlays_are_found_by_bare_name(cli):
    texts = {
        cli("generate", "--max-new-tokens", 8, "--seed", 1, "--overlay", name)[1]
        for name in ("llama.xclbin", "llama.bit")
    }
    assert len(texts) == 1
    assert texts.pop().startswith("Once upon a time")


@pytest.mark.parametrize("name", ["kv260", "KV260"])
def test_board_chooses_an_emulated_board(cli, name):
    out = cli("info", "--board", name, "--threads", 1)[1]
    assert "  -  emulated-kv260 (emulated device on this computer's CPU, 1 thread;" in out
    assert re.search(r"^  board +kv260$", out, re.MULTILINE)


def test_board_that_cannot_be_emulated_is_refused_with_a_list(refused):
    message = refused("generate", "--board", "pdp11")
    assert "there is no emulated board 'pdp11': choose one of host, " in message


def test_threads_do_not_imply_the_emulated_device(refused, cli, monkeypatch):
    board = Plain("edge", "MEMORY_MAPPED")
    monkeypatch.setattr("llama_pynq.overlay_store.devices.find_device", lambda name: board)
    assert "--threads is for the emulated device, and edge is a board: add --emulate" in refused(
        "info", "--threads", 1
    )
    assert "1 thread; no board in use" in cli("info", "--threads", 1, "--emulate")[1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file model.bin: check the path (it is relative to "),
        (b"", "model.bin is not a llama2.c checkpoint but an empty file: "),
        (b"hello\n", "is not a llama2.c checkpoint but a text file that starts with 'hello\\n'"),
        (b"PK\x03\x04" + bytes(60), "model.bin is not a llama2.c checkpoint but a zip"),
        (pickle.dumps({"weights": [1.0] * 9}), "but a pickle, as old torch.save wrote"),
        (b"GGUF" + bytes(60), "model.bin is a GGUF file that cannot be read: its version is 0"),
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
    assert "text.xclbin is not an .xclbin file" in refused("generate", "--overlay", "text.xclbin")


def test_folder_for_locks_that_cannot_be_made(refused, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLAMA_PYNQ_LOCKS", str(tmp_path / "file" / "locks"))
    assert str(tmp_path / "file") in refused("info")
