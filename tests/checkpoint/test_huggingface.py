"""Hugging Face folders beside the model that transformers computes."""

import json

import numpy as np
import pytest
from support.huggingface_files import CONFIG, logits, random_tensors, write_folder

from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.checkpoint.load import load_checkpoint
from llama_pynq.errors import CheckpointError
from llama_pynq.kernel.reference import FloatModel, KernelModel
from llama_pynq.weights.quantize import QuantizedModel

IDS = [1, 7, 300, 12, 5, 99, 511, 3]


def stored(tensors, dtype):
    """Tensors as a file of that dtype holds them: what to write, and what is read back."""
    if dtype == "BF16":
        cut = {k: (v.view(np.uint32) >> 16).astype(np.uint16) for k, v in tensors.items()}
        back = {k: (v.astype(np.uint32) << 16).view(np.float32) for k, v in cut.items()}
        return cut, back
    kind = {"F32": np.float32, "F16": np.float16}[dtype]
    return (
        {k: v.astype(kind) for k, v in tensors.items()},
        {k: v.astype(kind).astype(np.float32) for k, v in tensors.items()},
    )


def rename_dtype(folder, old, new):
    """Say that 16 bits are bfloat16: NumPy has none."""
    for path in folder.glob("*.safetensors"):
        data = path.read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        header = data[8:end].replace(f'"{old}"'.encode(), f'"{new}"'.encode())
        path.write_bytes(len(header).to_bytes(8, "little") + header + data[end:])


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("tied", [False, True])
def test_a_folder_computes_what_transformers_does(tmp_path, dtype, shards, tied):
    config = {**CONFIG, "tie_word_embeddings": tied}
    written, read = stored(random_tensors(config, seed=2), dtype)
    folder = write_folder(tmp_path / "m", config, written, shards)
    if dtype == "BF16":
        rename_dtype(folder, "U16", "BF16")
    with load_checkpoint(folder) as checkpoint:
        assert checkpoint.config == ModelConfig(64, 160, 2, 4, 2, 512, 128, tied, 50000.0)
        assert checkpoint.kind_of("wq", 0) == dtype
        found = FloatModel(checkpoint).forward(IDS, range(len(IDS)))
        for name, layer in (("wq", 1), ("w2", 0), ("token_embedding_table", None)):
            slices = list(checkpoint.row_slices(name, layer, step=50))
            assert np.array_equal(np.concatenate(slices), checkpoint.tensor(name, layer))
        checkpoint.cut_vocab(500)
        assert checkpoint.tensor("wcls").shape == (500, 64)
        note = QuantizedModel(checkpoint).note
    assert np.abs(found - logits(config, read, IDS)).max() < 1e-4
    assert note == f"{dtype} (relative error unknown) quantised to int8 in groups of 32"


LLAMA_3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize("scaling", [LLAMA_3, {"rope_type": "linear", "factor": 4.0}])
def test_scaled_rotary_embedding_is_transformers(tmp_path, scaling):
    config = {**CONFIG, "rope_theta": 500.0, "rope_scaling": scaling}
    tensors = random_tensors(config, seed=3)
    ids = [int(i) for i in np.random.default_rng(0).integers(0, 512, 100)]
    with load_checkpoint(write_folder(tmp_path / "m", config, tensors)) as checkpoint:
        divisors = checkpoint.config.rope_divisors
        assert len(divisors) == 8 and max(divisors) == scaling["factor"]
        if scaling is LLAMA_3:
            assert divisors[0] == 1 and any(1 < d < 8 for d in divisors)
        found = FloatModel(checkpoint).forward(ids, range(100))
        integer = KernelModel(QuantizedModel(checkpoint)).forward(ids, range(100))
    expected = logits(config, tensors, ids)
    assert np.abs(found - expected).max() < 1e-3
    assert np.abs(integer - expected).max() < 0.05 * np.abs(expected).max()
    plain = logits({**config, "rope_scaling": None}, tensors, ids)
    assert np.abs(expected - plain).max() > 0.1, "the scaling matters"


def test_key_of_the_cache_is_of_all_files(tmp_path):
    tensors = random_tensors(CONFIG)
    keys = set()
    for shards in (1, 2):
        folder = write_folder(tmp_path / str(shards), CONFIG, tensors, shards)
        keys.add(load_checkpoint(folder).sha256)
    tensors["lm_head.weight"][0, 0] += 1
    keys.add(load_checkpoint(write_folder(tmp_path / "3", CONFIG, tensors, 2)).sha256)
    keys.add(load_checkpoint(write_folder(tmp_path / "3", {**CONFIG, "x": 1}, tensors, 2)).sha256)
    assert len(keys) == 4


def test_a_shard_that_changes_meanwhile_is_an_error(tmp_path):
    folder = write_folder(tmp_path / "m", CONFIG, random_tensors(CONFIG))
    with load_checkpoint(folder) as checkpoint:
        checkpoint.freeze()
        path = folder / "model.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match="was changed while it was read"):
            checkpoint.tensor("wcls")
            for layer in range(2):
                for name in ("wq", "wk", "wv", "wo", "w1", "w2", "w3"):
                    checkpoint.tensor(name, layer)
            checkpoint.tensor("rms_final_weight")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["Qwen2ForCausalLM"]}, "its architecture is 'Qwen2ForCausalLM', and"),
        ({"architectures": None}, "its architecture is None"),
        ({"rms_norm_eps": 1e-6}, "its norms add 1e-06 to the mean square (rms_norm_eps)"),
        ({"head_dim": 32}, "head_dim is 32"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attention_bias": True}, "it has attention_bias"),
        ({"quantization_config": {"bits": 4}}, "it has quantization_config"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "its rotary embedding is scaled ('yarn')"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling: factor is None: it must be positive"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "low_freq_factor is None"),
        ({"rope_scaling": [1]}, "rope_scaling is [1]"),
        ({"rope_theta": "x"}, "rope_theta is 'x'"),
        ({"hidden_size": "64"}, "hidden_size is '64'"),
        ({"hidden_size": 1 << 40}, "hidden_size is 1099511627776"),
        ({"num_hidden_layers": 1 << 20}, "there is no tensor model.layers.2.input_layernorm"),
        ({"num_hidden_layers": 1}, "it has a tensor model.layers.1."),
        ({"vocab_size": 511}, "model.embed_tokens.weight has the shape (512, 64), and not"),
        ({"num_attention_heads": 5}, "dim 64 is not a multiple of n_heads 5"),
    ],
)
def test_a_model_that_computes_otherwise_is_refused_by_name(tmp_path, change, message):
    folder = write_folder(tmp_path / "m", {**CONFIG, **change}, random_tensors(CONFIG))
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    assert str(folder) in str(caught.value) and message in str(caught.value)


def test_files_that_are_missing_or_damaged_are_named(tmp_path):
    tensors = random_tensors(CONFIG)
    folder = write_folder(tmp_path / "m", CONFIG, tensors, 2)
    index = folder / "model.safetensors.index.json"
    good = index.read_text()

    def message():
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(folder)
        return str(caught.value)

    second = folder / "model-00002-of-00002.safetensors"
    data = second.read_bytes()
    second.write_bytes(data[:1000])
    assert f"{second}" in message()
    second.unlink()
    assert "model-00002-of-00002.safetensors is missing, which" in message()
    second.write_bytes(data)
    for bad, said in (
        (good.replace("model-00002", "../m/model-00002"), "names the file"),
        ("{}", "has no weight_map"),
        ("[" * 100_000, "nests too deeply"),
        (json.dumps({"weight_map": {"a": "config.json"}}), "names the file 'config.json'"),
    ):
        index.write_text(bad)
        assert said in message()
    index.unlink()
    assert "there is no model.safetensors" in message()
    (folder / "pytorch_model.bin").write_bytes(b"PK")
    assert "it holds pytorch_model.bin, a pickle" in message()
    assert "save_pretrained('NEW')" in message()
    (folder / "config.json").write_text('{"a": NaN}')
    assert "config.json is damaged: NaN is no JSON number" in message()
    (folder / "config.json").unlink()
    assert "is a folder, not a checkpoint: it has no config.json" in message()


def test_configuration_of_tokens_and_template_come_with_it(tmp_path):
    folder = write_folder(tmp_path / "m", CONFIG, random_tensors(CONFIG))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 5]}))
    config = {"chat_template": [{"name": "tool", "template": "x"},
                                {"name": "default", "template": "{{ messages }}"}]}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with load_checkpoint(folder) as checkpoint:
        assert checkpoint.metadata == {"bos_token_id": 1, "eos_token_id": [2, 5]}
        assert checkpoint.chat_template == "{{ messages }}"
    (folder / "chat_template.jinja").write_text("alone")
    assert load_checkpoint(folder).chat_template == "alone"
    sliding = {**CONFIG, "architectures": ["MistralForCausalLM"], "sliding_window": 60}
    assert load_checkpoint(
        write_folder(folder, sliding, random_tensors(CONFIG))
    ).config.seq_len == (60)
