"""llama-pynq chat: one message from a pipe, and a conversation at a terminal."""

import io
import os
import pty
import re
import subprocess
import sys

import pytest
from support.checkpoint_files import random_weights
from support.gguf_files import write_gguf_model

from llama_pynq.checkpoint.config import ModelConfig

SHAPE = ModelConfig(64, 192, 2, 4, 2, 512, 128, tied=False)


@pytest.fixture
def model(tmp_path):
    """A model of random weights, whose template is plain."""
    tokenizers = pytest.importorskip("tokenizers", reason="no tokenizers on this machine")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *alphabet]
    tokens += [f"<|{i}|>" for i in range(512 - len(tokens))]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * 3 + [1] * 509,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": "{% for m in messages %}{{ m.role }}:{{ m.content }};"
        "{% endfor %}assistant:",
    }
    path = tmp_path / "m.gguf"
    write_gguf_model(path, SHAPE, random_weights(SHAPE, seed=2), "Q8_0", metadata)
    return path


def test_a_message_from_a_pipe_is_answered(cli, model, monkeypatch):
    def ask(text, *options):
        read, write = os.pipe()
        os.write(write, text.encode())
        os.close(write)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(os.fdopen(read, "rb")))
        options = ["--temperature", 0, "--max-new-tokens", 8, *options]
        return cli("chat", model, "--emulate", *options)

    status, out, err = ask("Hi\n")
    assert status == 0
    assert "[8 tokens, " in err and "context 26 of 128" in err
    assert ask("Hi")[1] == out
    told = ask("Hi", "--system", "Be brief.")
    assert "context 43 of 128" in told[2]
    assert cli("chat", model, "--model", model)[2] == (
        "llama-pynq: the model is named twice: leave out --model\n"
    )


def test_a_conversation_at_a_terminal_goes_on_after_an_error_and_ends_with_ctrl_d(model, tmp_path):
    """A pseudo-terminal; every message holds all before it."""
    main, end = pty.openpty()
    command = [sys.executable, "-m", "llama_pynq", "chat", str(model), "--emulate",
               "--temperature", "0", "--max-new-tokens", "4"]  # fmt: skip
    process = subprocess.Popen(
        command, stdin=end, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "LLAMA_PYNQ_LOCKS": str(tmp_path / "locks")},
    )  # fmt: skip
    os.close(end)
    os.write(main, b"Hi\n\nAnd then?\n" + b"x" * 200 + b"\nEnd\n\x04")
    out, err = (text.decode() for text in process.communicate(timeout=600))
    os.close(main)
    assert process.returncode == 0, err
    assert err.count("[4 tokens") == 3
    assert "tokens long, the context holds 128: leave out its oldest messages" in err
    used = [int(n) for n in re.findall(r"context (\d+) of 128", err)]
    assert used[0] == len("user:Hi;assistant:") + 4
    assert used[1] > used[0] + len(";user:And then?;assistant:"), "the conversation is told again"
    assert used[2] < 128, "the message that was too long is left out"


def test_a_model_without_a_template_is_refused_before_a_message(refused):
    message = refused("chat", "--emulate")
    assert "has no chat template: name the one that the model was trained with" in message
