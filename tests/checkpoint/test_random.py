"""Models with random weights: shape, reproducible bytes, statistics like a trained model's."""

import hashlib
import io
import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.checkpoint_files import write_checkpoint
from support.tokenizer_files import read_tokenizer_bin

from llama_pynq.checkpoint import random
from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.checkpoint.load import load_checkpoint
from llama_pynq.checkpoint.random import (
    random_model,
    tokenizer_bytes,
    write_random_checkpoint,
)
from llama_pynq.checkpoint.shapes import STORIES
from llama_pynq.cli.main import main
from llama_pynq.errors import LlamaPynqError
from llama_pynq.kernel.reference import FloatModel
from llama_pynq.tokenizer.load import tokenizer_from_bytes
from llama_pynq.utils.temporary import temporary_path

TINY = ModelConfig(64, 160, 2, 4, 2, 512, 32, tied=True)
NAME = "stories15M"


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Register a small shape under a real name, with its own cache folder."""
    monkeypatch.setenv("LLAMA_PYNQ_CACHE", str(tmp_path))
    monkeypatch.setitem(STORIES, NAME, TINY)
    return tmp_path


def content(config=TINY, seed=0):
    file = io.BytesIO()
    write_random_checkpoint(file, config, seed)
    return file.getvalue()


def test_shapes_are_those_of_the_stories_models():
    millions = {name: round(shape.n_params / 1e6) for name, shape in STORIES.items()}
    assert millions == {"stories15M": 15, "stories42M": 42, "stories110M": 110}
    assert all((c.vocab_size, c.tied) == (32000, True) for c in STORIES.values())


def test_checkpoint_loads_and_has_the_shape(tiny):
    path, _ = random_model(NAME)
    with load_checkpoint(path) as checkpoint:
        assert (checkpoint.version, checkpoint.config) == (0, TINY)


def test_what_a_killed_process_left_is_cleared_though_the_model_is_there(tiny):
    paths = random_model(NAME)
    with temporary_path(paths[0].parent, paths[0].name) as left:
        pass
    Path(left).write_bytes(b"of an earlier process of this number")
    assert random_model(NAME) == paths
    assert set(paths[0].parent.iterdir()) == set(paths)


def test_checkpoint_lies_as_llama2c_writes_it(tmp_path):
    (tmp_path / "a.bin").write_bytes(content())
    with load_checkpoint(tmp_path / "a.bin") as a:
        layered = {
            name: np.stack([a.tensor(name, layer) for layer in range(TINY.n_layers)])
            for name in "rms_att_weight wq wk wv wo rms_ffn_weight w1 w2 w3".split()
        }
        weights = {name: a.tensor(name) for name in ("token_embedding_table", "rms_final_weight")}
    write_checkpoint(tmp_path / "b.bin", TINY, 0, weights=layered | weights)
    expected = bytearray((tmp_path / "b.bin").read_bytes())
    expected[-2 * 4 * TINY.seq_len * TINY.head_size // 2 :] = bytes(
        2 * 4 * TINY.seq_len * TINY.head_size // 2
    )
    assert content() == bytes(expected)


def test_same_seed_gives_the_same_bytes_everywhere():
    digest = hashlib.sha256(content(seed=7)).hexdigest()
    assert digest == "ca81672e3ce8560c4f4216360eccf4da6edf116c9dc8d9b105d0870c472d32a8"
    assert content(seed=8) != content(seed=7)


def test_weights_are_scaled_by_their_columns(tmp_path):
    (tmp_path / "a.bin").write_bytes(content(replace(TINY, dim=128, hidden_dim=512)))
    with load_checkpoint(tmp_path / "a.bin") as checkpoint:
        for name, columns in (("wq", 128), ("w1", 128), ("w2", 512)):
            weight = checkpoint.tensor(name, 1)
            assert weight.std() == pytest.approx(columns**-0.5, rel=0.02)
            assert abs(weight.mean()) < 0.02 * weight.std()
            assert not np.array_equal(weight, checkpoint.tensor(name, 0))


def test_logits_are_as_sharp_as_a_trained_models(tmp_path):
    config = replace(TINY, vocab_size=4096)
    (tmp_path / "a.bin").write_bytes(content(config))
    with load_checkpoint(tmp_path / "a.bin") as checkpoint:
        logits = FloatModel(checkpoint).forward(list(range(3, 35)), range(32))
    assert 5 < logits.std() < 7
    weight = np.exp((logits - logits.max(1, keepdims=True)) / 0.8)
    mass = np.cumsum(-np.sort(-weight) / weight.sum(1, keepdims=True), axis=1)
    assert np.median((mass < 0.9).sum(1) + 1) <= 32, "top-p 0.9 keeps a few tokens"


def test_eos_is_never_likely(tmp_path):
    (tmp_path / "a.bin").write_bytes(content())
    with load_checkpoint(tmp_path / "a.bin") as checkpoint:
        logits = FloatModel(checkpoint).forward([1, 2, 3], range(3))
    assert (logits[:, 2] == 0).all() and (logits.max(1) > 8).all()


def test_writer_needs_no_more_memory_for_a_larger_model(tmp_path):
    def peak(layers):
        tracemalloc.start()
        with open(tmp_path / "model.bin", "wb") as file:
            write_random_checkpoint(file, replace(STORIES[NAME], n_layers=layers))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert peak(1) < 16 << 20
    assert peak(4) < peak(1) + (1 << 20)


def test_model_is_made_once(tiny, monkeypatch):
    paths = random_model(NAME)
    assert [path.parent for path in paths] == [tiny / "random"] * 2
    monkeypatch.setattr(random, "write_random_checkpoint", None)
    monkeypatch.setattr(random, "tokenizer_bytes", None)
    assert random_model(NAME) == paths


def test_models_of_other_seeds_are_other_files(tiny):
    assert random_model(NAME, seed=0)[0] != random_model(NAME, seed=1)[0]


def test_model_cut_short_leaves_no_file(tiny, monkeypatch):
    def fail(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(random, "_uniform", fail)
    with pytest.raises(KeyboardInterrupt):
        random_model(NAME)
    assert list((tiny / "random").iterdir()) == []


def test_unknown_shape_is_refused():
    with pytest.raises(LlamaPynqError) as error:
        random_model("stories7B")
    assert str(error.value) == (
        "there is no random model 'stories7B': choose one of stories15M, stories42M, stories110M"
    )


@pytest.mark.parametrize("vocab_size", [512, 513, 32000])
def test_tokenizer_has_the_size_and_distinct_pieces(vocab_size):
    data = tokenizer_bytes(vocab_size)
    tokenizer_from_bytes(data, "made.bin").check_vocab(vocab_size)
    assert len({piece for _, piece in read_tokenizer_bin(data)}) == vocab_size


def test_tokenizer_keeps_every_text():
    tokenizer = tokenizer_from_bytes(tokenizer_bytes(32000), "made.bin")
    for text in ("Once upon a time", "é, 1 and \U0001f600", "bada kozu\n"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("bada bada", bos=False)) < len("bada bada")


def test_bench_measures_a_random_model(tiny, capsys):
    assert (
        main(["bench", "--shape", NAME, "--max-new-tokens", "4", "--repeats", "1", "--json"]) == 0
    )
    report = json.loads(capsys.readouterr().out)
    assert report["model"].startswith(f"{NAME}'s shape, random weights; dim 64, 2 layers")
    assert report["config"]["seq_len"] == 32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shape", "7B"], "there is no random model '7B': choose one of stories15M, "),
        (["--shape", NAME, "--model", "a"], "of its own: leave out --model, or --shape"),
        (["--shape", NAME, "--tokenizer", "a"], "of its own: leave out --tokenizer, or --shape"),
    ],
)
def test_bench_of_a_random_model_refuses(options, message, capsys):
    assert main(["bench", *options]) == 1
    assert message in capsys.readouterr().err
