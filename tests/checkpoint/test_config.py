"""ModelConfig: derived sizes, and impossible shapes."""

from dataclasses import replace

import pytest
from support.checkpoint_cases import CONFIG
from support.checkpoint_files import random_weights

from llama_pynq.errors import CheckpointError


def test_model_config_properties():
    assert (CONFIG.head_size, CONFIG.kv_dim, CONFIG.rope_theta) == (6, 12, 10000.0)
    for tied in (True, False):
        config = replace(CONFIG, tied=tied)
        assert config.n_params == sum(w.size for w in random_weights(config).values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 0}, "dim is 0: it must be positive"),
        ({"seq_len": -1}, "seq_len is -1: it must be positive"),
        ({"n_heads": 5}, "dim 24 is not a multiple of n_heads 5"),
        ({"n_heads": 8, "n_kv_heads": 2}, "head size 3 (dim 24 / n_heads 8) is odd"),
        ({"n_kv_heads": 3}, "n_heads 4 is not a multiple of n_kv_heads 3"),
        ({"rope_theta": float("nan")}, "rope_theta is nan"),
    ],
)
def test_model_config_impossible_shape_is_refused(change, message):
    with pytest.raises(CheckpointError) as caught:
        replace(CONFIG, **change)
    assert message in str(caught.value)
