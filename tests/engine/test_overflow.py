"""Weights that overflow float32: the same error wherever logits or activations come from."""

import numpy as np
import pytest
from support.checkpoint_files import random_weights, write_checkpoint

from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.errors import KernelError
from llama_pynq.measure import lens
from llama_pynq.models import BUNDLED

CONFIG = ModelConfig(64, 128, 2, 4, 2, 1024, 32, tied=False)
TOKENS = [1, 300, 301]


def one_row(sign):
    """Change the classifier so that one token has an infinite logit."""

    def change(weights):
        weights["wcls"][7] = sign * 3e38

    return change


def times(name, by):
    def change(weights):
        weights[name] *= np.float32(by)

    return change


CASES = {
    "one logit": one_row(1),
    "one logit, other sign": one_row(-1),
    "classifier": times("wcls", 1e38),
    "embedding": times("token_embedding_table", 1e38),
    "w2": times("w2", 3e38),
    "wq": times("wq", 1e38),
    "norm": times("rms_att_weight", 1e38),
}
USES = {
    "generate": lambda m: m.generate(TOKENS, max_new_tokens=3, temperature=0),
    "sampled": lambda m: m.generate(TOKENS, max_new_tokens=3, top_p=1.0, seed=1),
    "truncated": lambda m: m.generate(TOKENS, max_new_tokens=3, top_p=0.9, seed=1),
    "penalty": lambda m: m.generate(TOKENS, max_new_tokens=3, repetition_penalty=1.2, seed=1),
    "logprobs": lambda m: m.generate(TOKENS, max_new_tokens=3, logprobs=1024, seed=1),
    "stream": lambda m: list(m.stream(TOKENS, max_new_tokens=3, seed=1)),
    "logits": lambda m: m.logits(TOKENS),
    "lens": lambda m: lens.logit_lens(m, lens.look(m, "a b")),
}


@pytest.fixture(scope="module", params=CASES)
def overflowing(request, overlay, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "model.bin"
    weights = random_weights(CONFIG)
    CASES[request.param](weights)
    write_checkpoint(path, CONFIG, 0, weights=weights)
    return overlay.load_model(path, BUNDLED / "tokenizer.bin")


@pytest.mark.parametrize("use", USES)
def test_logits_that_are_not_finite_are_an_error(overflowing, use):
    with pytest.raises(KernelError, match="not finite; the weights overflow float32"):
        USES[use](overflowing)


def test_finite_logits_however_large_are_none(overlay, tmp_path):
    path, weights = tmp_path / "model.bin", random_weights(CONFIG)
    weights["wcls"] *= np.float32(1e30)
    write_checkpoint(path, CONFIG, 0, weights=weights)
    model = overlay.load_model(path, BUNDLED / "tokenizer.bin")
    assert np.isfinite(model.logits(TOKENS)).all()
    for use in ("generate", "sampled", "truncated", "penalty", "stream"):
        assert USES[use](model)
