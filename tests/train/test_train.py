"""The bundled model: story generator, tokenizer, export, training, and the shipped files."""

from __future__ import annotations

import importlib
import random
import re
import signal
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.tokenizer_files import read_tokenizer_bin

import llama_pynq.models
from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.checkpoint.load import load_checkpoint
from llama_pynq.kernel.reference import FloatModel
from llama_pynq.train.export import export_model, matrix_keys, norm_keys
from llama_pynq.train.judge import PROMPTS, accepts, sample
from llama_pynq.train.plots import PLOTS
from llama_pynq.train.stories import MAX_WORDS, NAMES, Story, article, compose, story
from llama_pynq.train.tokenizer import train_tokenizer

MODELS = Path(llama_pynq.models.__file__).parent


@pytest.fixture(scope="module")
def stories() -> list[Story]:
    """Two thousand stories from one seed."""
    rng = random.Random(0)
    return [compose(rng) for _ in range(2000)]


def test_story_same_seed_same_text():
    assert [story(random.Random(7)) for _ in range(2)] == [story(random.Random(7))] * 2
    assert story(random.Random(7)) != story(random.Random(8))


def test_stories_are_distinct_and_tell_every_plot(stories):
    assert len({told.text for told in stories}) == len(stories)
    assert {told.plot for told in stories} == {plot.name for plot in PLOTS}
    assert len(PLOTS) >= 12


def test_stories_length_in_range(stories):
    words = [len(told.text.split()) for told in stories]
    assert min(words) >= 90
    assert max(words) <= MAX_WORDS == 220


def test_stories_templates_filled(stories):
    for told in stories:
        assert not re.search(r"[{}\[\]|<>]", told.text), told.text


def test_stories_typography(stories):
    for told in stories:
        text = told.text
        assert text == text.strip() and "  " not in text, text
        assert text.isascii() and text.isprintable(), text
        assert not re.search(r" [.,!?]|[.,!?]{2}", text), text
        # Quotes come in pairs: odd ones open after a space, even ones close before one.
        spans = re.split(r'"', text)
        assert len(spans) % 2 == 1, text
        for outside, inside in zip(spans[0:-1:2], spans[1::2], strict=True):
            assert outside == "" or outside.endswith(" "), text
            assert inside[0].isupper() or (inside[0].islower() and outside.endswith(", ")), text
            assert inside[-1] in ".,!?", text
        assert re.search(r'[.!?]"?$', text), text


def test_stories_sentences_begin_with_capitals(stories):
    for told in stories:
        assert told.text.lstrip('"')[0].isupper(), told.text
        # After a quoted question or exclamation, "asked Tom" continues in lower case.
        assert not re.search(r'[a-z][.] "?[a-z]|[a-z][!?] "?[a-z]', told.text), told.text


def test_stories_articles(stories):
    for told in stories:
        assert not re.search(r"\b[Aa] [aeiou]", told.text), told.text
        assert not re.search(r"\b[Aa]n [^aeiou]", told.text), told.text
    assert article("orange kite") == "an orange kite"
    assert article("red kite") == "a red kite"


def test_stories_pronouns_belong_to_characters(stories):
    for told in stories:
        # The mother bird of one plot is the only other "she".
        text = re.sub(r"she sang\.", "", told.text.lower())
        if told.genders == {"he"}:
            assert not re.search(r"\b(she|her)\b", text), told.text
        if told.genders == {"she"}:
            assert not re.search(r"\b(he|him|his)\b", text), told.text


def test_stories_name_only_their_characters(stories):
    names = {name for pool in NAMES.values() for name in pool}
    for told in stories:
        present = names & set(re.findall(r"[A-Z][a-z]+", told.text))
        assert present <= {told.slots["N"], told.slots["fn"]}, told.text
        assert told.slots["N"] in told.text, told.text


def test_stories_keep_the_colour_of_the_object(stories):
    for told in stories:
        if told.plot in ("brave climb", "new friend"):
            thing = told.slots["thing"]
            found = set(re.findall(rf"\b(red|blue|green|yellow|orange) {thing}", told.text))
            assert found == {told.slots["colour"]}, told.text


def test_judge_accepts_what_the_generator_tells(stories):
    for told in stories[:300]:
        assert accepts(told.text) == told.plot, told.text


def test_judge_refuses_one_wrong_word(stories):
    told = next(told for told in stories if told.plot == "lost thing")
    text, hero, friend = told.text, told.slots["n"], told.slots["fn"]
    thing = told.slots["thing"]
    other_thing = "drum" if thing == "ball" else "ball"
    he, she = (" he ", " she ") if told.slots["he"] == "he" else (" she ", " he ")
    wrong = [
        text.replace(f"said {friend}", f"said {hero}", 1),
        text.replace(f"At last, {friend}", f"At last, {hero}"),
        text.replace(f"lost my {thing}", f"lost my {other_thing}"),
        text.replace(he, she, 1),
        text.replace("looked", "look", 1),
        text.replace(' "I have looked everywhere."', ""),
        text[: len(text) // 2],
        text + " " + text,
    ]
    assert text not in wrong
    assert [accepts(story) for story in wrong] == [None] * len(wrong)
    assert accepts(text) == "lost thing"


def test_bundled_model_tells_coherent_stories():
    texts = sample(MODELS, PROMPTS, temperature=0, top_p=1, seed=0)
    for prompt, text in zip(PROMPTS, texts, strict=True):
        assert text.startswith(prompt)
    assert sum(accepts(text) is not None for text in texts) >= len(PROMPTS) - 3, texts
    # Sampling with a seed is reproducible.
    assert sample(MODELS, PROMPTS[:2], 0.8, 0.9, seed=1) == sample(
        MODELS, PROMPTS[:2], 0.8, 0.9, seed=1
    )


def test_bundled_model_header_and_size():
    data = (MODELS / "stories.bin").read_bytes()
    magic, version, dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, max_seq_len = (
        struct.unpack_from("<Ii7i", data)
    )
    shared_classifier, group_size = struct.unpack_from("<Bi", data, 36)
    assert (magic, version, shared_classifier, group_size) == (0x616B3432, 2, 1, 64)
    assert dim % group_size == hidden_dim % group_size == 0
    assert dim % n_heads == n_heads % n_kv_heads == 0
    assert max_seq_len == 512
    # File size from the layout alone: padded header, norms, then an int8 and 1/64 of a float32
    # per weight.
    kv_dim = dim // n_heads * n_kv_heads
    layer = 2 * dim * dim + 2 * dim * kv_dim + 3 * dim * hidden_dim
    weights = vocab_size * dim + n_layers * layer
    assert len(data) == 256 + 4 * dim * (2 * n_layers + 1) + weights + 4 * weights // group_size
    assert len(data) <= 4 << 20


def test_bundled_model_reads_as_a_checkpoint():
    with load_checkpoint(MODELS / "stories.bin") as checkpoint:
        assert checkpoint.version == 2
        for key in norm_keys(checkpoint.config.n_layers):
            assert checkpoint.tensor(*key).std() > 0, key
        for key in matrix_keys(checkpoint.config.n_layers):
            q, scale = checkpoint.quantized(*key)
            # The largest weight of each group is 127 steps of its scale.
            largest = np.abs(q.reshape(-1, 64).astype(int)).max(axis=1)
            assert set(largest[scale.ravel() > 0]) == {127}, key


def test_bundled_tokenizer_has_control_and_byte_tokens():
    tokens = read_tokenizer_bin((MODELS / "tokenizer.bin").read_bytes())
    with load_checkpoint(MODELS / "stories.bin") as checkpoint:
        assert len(tokens) == checkpoint.config.vocab_size
    assert [piece for _, piece in tokens[:3]] == [b"<unk>", b"\n<s>\n", b"\n</s>\n"]
    assert [piece for _, piece in tokens[3:259]] == [b"<0x%02X>" % byte for byte in range(256)]


def encode_as_llama2c(text: str, tokens: list[tuple[float, bytes]]) -> list[int]:
    """Encode with tokenizer.bin alone; merges the best-scoring neighbours first, like run.c."""
    ids = {piece: token for token, (_, piece) in reversed(list(enumerate(tokens)))}
    out: list[int] = []
    for char in " " + text:
        raw = char.encode()
        out += [ids[raw]] if raw in ids else [byte + 3 for byte in raw]
    while True:
        pairs = [
            (tokens[ids[both]][0], -at)
            for at in range(len(out) - 1)
            if (both := tokens[out[at]][1] + tokens[out[at + 1]][1]) in ids
        ]
        if not pairs:
            return out
        at = -max(pairs)[1]
        out[at : at + 2] = [ids[tokens[out[at]][1] + tokens[out[at + 1]][1]]]


def test_bundled_tokenizer_bin_agrees_with_the_model():
    sentencepiece = pytest.importorskip("sentencepiece", reason="reads tokenizer.model")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(MODELS / "tokenizer.model"))
    tokens = read_tokenizer_bin((MODELS / "tokenizer.bin").read_bytes())
    assert processor.vocab_size() == len(tokens)
    assert (processor.unk_id(), processor.bos_id(), processor.eos_id()) == (0, 1, 2)
    for token in range(259, len(tokens)):
        assert tokens[token][1].decode() == processor.id_to_piece(token).replace("▁", " ")
        assert tokens[token][0] == processor.get_score(token)
    rng = random.Random(1)
    texts = [story(rng) for _ in range(5)]
    texts += ["Zoë ate 123 crêpes,  twice;\nthen: 日本 🙂", "The little fox", " x"]
    for text in texts:
        assert processor.encode(text) == encode_as_llama2c(text, tokens)
        assert processor.decode(processor.encode(text)) == text


TINY = ModelConfig(
    dim=64,
    hidden_dim=64,
    n_layers=1,
    n_heads=2,
    n_kv_heads=1,
    vocab_size=400,
    seq_len=64,
    tied=True,
)


def random_weights(config: ModelConfig) -> dict:
    """Return normally distributed weights of a model's shape."""
    rng = np.random.default_rng(0)
    sizes = {"token_embedding_table": (config.vocab_size, config.dim), "wo": (config.dim,) * 2}
    sizes |= {"wq": sizes["wo"], "wk": (config.kv_dim, config.dim)}
    sizes |= {"wv": sizes["wk"], "w1": (config.hidden_dim, config.dim)}
    sizes |= {"w2": (config.dim, config.hidden_dim), "w3": sizes["w1"]}
    keys = [*norm_keys(config.n_layers), *matrix_keys(config.n_layers)]
    return {
        key: rng.normal(size=sizes.get(key[0], (config.dim,))).astype(np.float32) for key in keys
    }


def test_export_model_round_trip_keeps_the_order(tmp_path):
    config = replace(TINY, hidden_dim=128, n_layers=2)
    weights = random_weights(config)
    export_model(tmp_path / "model.bin", config, weights)
    with load_checkpoint(tmp_path / "model.bin") as checkpoint:
        assert checkpoint.config == config
        assert (checkpoint.version, checkpoint.group_size) == (2, 64)
        for key, weight in weights.items():
            read = checkpoint.tensor(*key)
            assert read.shape == weight.shape
            # Half a step of the largest group's scale.
            np.testing.assert_allclose(read, weight, atol=np.abs(weight).max() / 127 / 1.99)


def test_export_model_refuses(tmp_path):
    path, weights = tmp_path / "model.bin", random_weights(TINY)
    with pytest.raises(ValueError, match="tied classifier"):
        export_model(path, replace(TINY, tied=False), weights)
    with pytest.raises(ValueError, match="group size 64 must divide dim 64 and hidden_dim 96"):
        export_model(path, replace(TINY, hidden_dim=96), weights)
    weights["wq", 0][0, 0] = np.nan
    with pytest.raises(ValueError, match="wq of layer 0 is not finite"):
        export_model(path, TINY, weights)
    assert not path.exists()


def import_train():
    """Return the training module, or skip the test."""
    torch = pytest.importorskip("torch", reason="training needs PyTorch, an extra")
    pytest.importorskip("sentencepiece", reason="training needs sentencepiece, an extra")
    torch.set_num_threads(1)
    return importlib.import_module("llama_pynq.train.train")


@pytest.mark.parametrize("name", ["stories.bin", "tokenizer.bin"])
def test_training_never_writes_over_files_that_it_did_not_make(tmp_path, capsys, name):
    module = import_train()
    (tmp_path / name).write_bytes(b"somebody's")
    with pytest.raises(SystemExit) as end:
        module.main(["--out", str(tmp_path), "--steps", "1"])
    assert end.value.code == 1
    assert f"holds {name}, but no training of this command" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == b"somebody's"


def test_train_few_steps_loss_falls_and_export_reads_back(tmp_path):
    module = import_train()
    args = module.TrainArgs(steps=20, batch_size=2, short_steps=10, short_batch_size=4, warmup=2)
    report = module.train(tmp_path, TINY, args, save_every=10)
    assert report["steps"] == 20
    assert report["val_loss_float"] < 5 < np.log(TINY.vocab_size)
    assert report["val_loss_int8"] == pytest.approx(report["val_loss_float"], abs=0.02)

    model = module.Transformer.load(tmp_path / "stories.bin")
    assert model.config == TINY
    data = module.Stories(tmp_path / "tokenizer.model", seed=args.seed)
    assert module.validation_loss(model, data) == pytest.approx(report["val_loss_int8"], abs=1e-4)

    # Repeating the command on a finished run trains no further and exports the same file.
    before = (tmp_path / "stories.bin").read_bytes()
    again = module.train(tmp_path, TINY, args)
    assert (tmp_path / "stories.bin").read_bytes() == before
    assert again["train_loss_last_100"] == report["train_loss_last_100"]
    with pytest.raises(ValueError, match="choose another --out"):
        module.train(tmp_path, replace(TINY, n_layers=2), args)


def test_stories_rows_begin_and_end_with_bos(tmp_path):
    module = import_train()
    train_tokenizer(tmp_path / "tokenizer.model", n_stories=200, vocab_size=400)
    data = module.Stories(tmp_path / "tokenizer.model", seed=3)
    rows = data.rows("a key", 4, seq_len=1000).tolist()
    assert rows == data.rows("a key", 4, seq_len=1000).tolist()
    assert rows != data.rows("another key", 4, seq_len=1000).tolist()
    for row in rows:
        while row[-1] == module.PAD:
            row.pop()
        assert row[0] == row[-1] == 1
        assert 1 not in row[1:-1] and module.PAD not in row
        assert data.processor.decode(row[1:-1]).count(" ") > 90
    assert data.rows("a key", 4, seq_len=20).shape == (4, 21)


def test_train_model_computes_what_the_reference_computes(tmp_path):
    module = import_train()
    config = replace(TINY, n_layers=2, n_heads=4, n_kv_heads=2)
    export_model(tmp_path / "model.bin", config, random_weights(config))
    tokens = np.random.default_rng(1).integers(config.vocab_size, size=20)
    with load_checkpoint(tmp_path / "model.bin") as checkpoint:
        expected = FloatModel(checkpoint).forward(tokens.tolist(), range(20))
    model = module.Transformer.load(tmp_path / "model.bin")
    logits = model(module.torch.tensor(tokens)[None])[0].detach().numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-3 * np.abs(expected).max())


def test_train_resumed_run_is_the_same_run(tmp_path):
    module = import_train()
    tokenizer = tmp_path / "tokenizer.model"
    train_tokenizer(tokenizer, n_stories=200, vocab_size=TINY.vocab_size)
    args = module.TrainArgs(steps=6, batch_size=2, short_steps=2, short_batch_size=4, warmup=2)
    straight = module.Trainer(TINY, args, tokenizer)
    losses = [straight.train_step() for _ in range(6)]

    broken = module.Trainer(TINY, args, tokenizer)
    for _ in range(3):
        broken.train_step()
    broken.save(tmp_path / "last.pt")
    resumed = module.Trainer(TINY, args, tokenizer)
    resumed.load(tmp_path / "last.pt")
    assert [resumed.train_step() for _ in range(3)] == losses[3:]


def test_train_ctrl_c_stops_between_steps_and_continues(tmp_path, monkeypatch):
    module = import_train()
    args = module.TrainArgs(steps=4, batch_size=1, short_steps=0, warmup=2)
    step = module.Trainer.train_step

    def interrupted_step(trainer):
        signal.raise_signal(signal.SIGINT)
        return step(trainer)

    monkeypatch.setattr(module.Trainer, "train_step", interrupted_step)
    assert module.train(tmp_path, TINY, args)["steps"] == 1
    monkeypatch.undo()
    assert module.train(tmp_path, TINY, args)["steps"] == 4
