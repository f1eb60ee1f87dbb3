"""llama2.c checkpoints: reading, round trips, and refused headers, sizes and values."""

import gc
import hashlib
import struct
import threading
import tracemalloc
import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.checkpoint_cases import CONFIG, patched, refused
from support.checkpoint_files import quantize_q80, random_weights, write_checkpoint
from support.paths import MODELS

from llama_pynq.checkpoint.config import GLOBAL_TENSORS, LAYER_TENSORS, ModelConfig
from llama_pynq.checkpoint.load import load_checkpoint
from llama_pynq.errors import CheckpointError

needs_models = pytest.mark.skipif(
    not MODELS.is_dir(), reason=f"the real models are not in {MODELS}"
)


@st.composite
def configs(draw):
    n_kv_heads = draw(st.integers(1, 3))
    n_heads = n_kv_heads * draw(st.integers(1, 3))
    return ModelConfig(
        dim=n_heads * 2 * draw(st.integers(1, 4)),
        hidden_dim=draw(st.integers(1, 45)),
        n_layers=draw(st.integers(1, 3)),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        vocab_size=draw(st.integers(1, 40)),
        seq_len=draw(st.integers(1, 33)),
        tied=draw(st.booleans()),
    )


def every_tensor(checkpoint):
    """Yield name, layer and the key into the stacked weights of every stored tensor."""
    for name in GLOBAL_TENSORS:
        if name != "wcls" or not checkpoint.config.tied:
            yield name, None, ...
    for name in LAYER_TENSORS:
        for layer in range(checkpoint.config.n_layers):
            yield name, layer, layer


@pytest.fixture
def legacy(tmp_path):
    path = tmp_path / "model.bin"
    write_checkpoint(path, CONFIG, 0)
    return path


@pytest.fixture
def int8(tmp_path):
    path = tmp_path / "int8.bin"
    write_checkpoint(path, CONFIG, 2, group_size=8)
    return path


# ---- reading -------------------------------------------------------------------------


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(config=configs(), version=st.sampled_from([0, 1]), seed=st.integers(0, 99))
def test_tensor_float_files_round_trip(tmp_path, config, version, seed):
    path = tmp_path / "model.bin"
    weights = write_checkpoint(path, config, version, seed=seed)
    with load_checkpoint(path) as checkpoint:
        assert checkpoint.config == config
        assert (checkpoint.version, checkpoint.group_size) == (version, None)
        for name, layer, key in every_tensor(checkpoint):
            got = checkpoint.tensor(name, layer)
            assert got.dtype == np.float32
            assert got.flags.c_contiguous and got.flags.owndata and got.flags.writeable
            np.testing.assert_array_equal(got, weights[name][key])


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data(), config=configs(), seed=st.integers(0, 99))
def test_tensor_int8_files_round_trip(tmp_path, data, config, seed):
    common = np.gcd(config.dim, config.hidden_dim)
    group_size = data.draw(st.sampled_from([n for n in range(1, common + 1) if common % n == 0]))
    path = tmp_path / "model.bin"
    weights = write_checkpoint(path, config, 2, group_size=group_size, seed=seed)
    with load_checkpoint(path) as checkpoint:
        assert checkpoint.config == config
        assert (checkpoint.version, checkpoint.group_size) == (2, group_size)
        for name, layer, key in every_tensor(checkpoint):
            got = checkpoint.tensor(name, layer)
            assert got.dtype == np.float32 and got.flags.c_contiguous
            want = weights[name][key]
            if not name.startswith("rms"):
                want_q, want_scale = quantize_q80(want, group_size)
                q, scale = checkpoint.quantized(name, layer)
                assert (q.dtype, scale.dtype) == (np.int8, np.float32)
                assert scale.shape == (want.shape[0], want.shape[1] // group_size)
                np.testing.assert_array_equal(q, want_q)
                np.testing.assert_array_equal(scale.ravel(), want_scale)
                want = (q.reshape(-1, group_size) * want_scale[:, None]).reshape(want.shape)
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("version", [0, 1, 2])
def test_wcls_tied_is_the_embedding(tmp_path, version):
    path = tmp_path / "model.bin"
    write_checkpoint(path, CONFIG, version, group_size=8 if version == 2 else None)
    checkpoint = load_checkpoint(path)
    embedding = checkpoint.tensor("token_embedding_table")
    np.testing.assert_array_equal(checkpoint.tensor("wcls"), embedding)
    if version == 2:
        for wcls, table in zip(
            checkpoint.quantized("wcls"), checkpoint.quantized("token_embedding_table"), strict=True
        ):
            np.testing.assert_array_equal(wcls, table)


def test_tensor_all_zero_group_is_zero(tmp_path):
    weights = random_weights(CONFIG)
    weights["w2"][1, 3] = 0
    write_checkpoint(tmp_path / "model.bin", CONFIG, 2, group_size=8, weights=weights)
    w2 = load_checkpoint(tmp_path / "model.bin").tensor("w2", 1)
    assert not w2[3].any() and w2[2].any()


@needs_models
def test_load_checkpoint_stories260k():
    with load_checkpoint(MODELS / "stories260K.bin") as checkpoint:
        assert checkpoint.config == ModelConfig(64, 172, 5, 8, 4, 512, 512, tied=True)
        assert checkpoint.version == 0
        assert checkpoint.sha256.startswith("b0a507e7")
        # A trained norm is near 1 and a trained matrix near 0: a wrong offset would mix
        # them up.
        for name, layer, _ in every_tensor(checkpoint):
            mean = checkpoint.tensor(name, layer).mean()
            assert mean > 0.3 if name.startswith("rms") else abs(mean) < 0.05


def test_sha256_is_of_the_whole_file(tmp_path):
    path = tmp_path / "model.bin"
    write_checkpoint(path, replace(CONFIG, vocab_size=12_000), 1)
    assert path.stat().st_size > 1 << 20  # more than one slice
    assert load_checkpoint(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_rope_theta_is_kept(legacy):
    assert load_checkpoint(legacy).config.rope_theta == 10000.0
    assert load_checkpoint(str(legacy), rope_theta=5e5).config.rope_theta == 5e5
    refused(legacy, "rope_theta is 0", "use 10000", rope_theta=0.0)


def test_tensor_holds_one_tensor_in_memory(tmp_path):
    config = replace(CONFIG, dim=128, hidden_dim=256, n_layers=8)
    path = tmp_path / "model.bin"
    write_checkpoint(path, config, 1)
    largest = 256 * 128 * 4
    tracemalloc.start()
    checkpoint = load_checkpoint(path)
    for name, layer, _ in every_tensor(checkpoint):
        checkpoint.tensor(name, layer)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < largest + 100_000 < path.stat().st_size / 10


def test_tensor_read_by_threads(legacy):
    checkpoint = load_checkpoint(legacy)
    want = [checkpoint.tensor("w1", layer) for layer in range(2)]
    wrong = []

    def read(layer):
        for _ in range(200):
            if not np.array_equal(checkpoint.tensor("w1", layer), want[layer]):
                wrong.append(layer)

    threads = [threading.Thread(target=read, args=(i % 2,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_close_then_read_is_refused(legacy):
    with load_checkpoint(legacy) as checkpoint:
        pass
    checkpoint.close()
    with pytest.raises(CheckpointError, match=r"model.bin is closed: open it again"):
        checkpoint.tensor("wq", 0)


def test_checkpoint_dropped_without_close_does_not_warn(legacy):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_checkpoint(legacy)
        gc.collect()
    assert [str(warning.message) for warning in caught] == []


def test_tensor_file_shrunk_meanwhile_is_refused(legacy):
    checkpoint = load_checkpoint(legacy)
    legacy.write_bytes(legacy.read_bytes()[:4000])
    message = rf"now ends at or before byte 4000 of {checkpoint.n_bytes}: it changed since"
    with pytest.raises(CheckpointError, match=message):
        checkpoint.tensor("token_embedding_table")


# ---- wrong requests ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layer", "message"),
    [
        ("wz", 0, "no tensor is named 'wz': the names are token_embedding_table, "),
        ("wq", None, "wq exists once per layer: layer=None must be from 0 to 1"),
        ("wq", 2, "wq exists once per layer: layer=2 must be from 0 to 1"),
        ("wq", -1, "wq exists once per layer: layer=-1 must be from 0 to 1"),
        ("wcls", 0, "wcls exists once: read it without layer=0"),
    ],
)
def test_tensor_wrong_name_or_layer_is_refused(legacy, name, layer, message):
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(legacy).tensor(name, layer)
    assert message in str(caught.value)


def test_quantized_of_float_is_refused(legacy, int8):
    with pytest.raises(CheckpointError, match=r"float32 checkpoint \(version 0\).*with tensor\(\)"):
        load_checkpoint(legacy).quantized("wq", 0)
    with pytest.raises(CheckpointError, match=r"rms_att_weight is float32 in every .*tensor\(\)"):
        load_checkpoint(int8).quantized("rms_att_weight", 0)


# ---- wrong files ---------------------------------------------------------------------


def test_load_checkpoint_impossible_shape_names_the_file(legacy):
    patched(legacy, 12, "<i", 5)
    refused(legacy, "dim 24 is not a multiple of n_heads 5")


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("tied", [True, False])
def test_load_checkpoint_wrong_size_is_refused(tmp_path, version, tied):
    path = tmp_path / "model.bin"
    config = replace(CONFIG, tied=tied)
    write_checkpoint(path, config, version, group_size=8 if version == 2 else None)
    data = path.read_bytes()
    for cut in (1, 4, len(data) // 2):
        path.write_bytes(data[:-cut])
        refused(
            path,
            f"is truncated: its header (version {version}: dim 24, hidden_dim 40, ",
            f"asks for {len(data)} bytes, the file has {len(data) - cut} ({cut} missing)",
            "download or export it again",
        )
    path.write_bytes(data + b"\0" * 4)
    asked, found = f"asks for {len(data)} bytes", f"the file has {len(data) + 4} (4 too many)"
    refused(path, "is over-long", asked, found)


def test_load_checkpoint_short_header_is_refused(tmp_path, int8):
    path = tmp_path / "short.bin"
    path.write_bytes(int8.read_bytes()[:200])
    refused(path, "is truncated: a llama2.c header has 256 bytes, the file only 200")
    path.write_bytes(struct.pack("<3i", 64, 172, 5))
    refused(path, "is truncated: even the oldest llama2.c header has 28 bytes, the file only 12")


def test_load_checkpoint_unknown_version_is_refused(int8):
    patched(int8, 4, "<i", 3)
    refused(int8, "of version 3; versions 0, 1 and 2 are known", "--version 2")


@pytest.mark.parametrize(("field", "value"), [(0, 0), (2, -4), (5, -50), (6, 1 << 21)])
def test_load_checkpoint_impossible_versioned_header_is_refused(int8, field, value):
    patched(int8, 8 + 4 * field, "<i", value)
    refused(int8, "llama2.c's magic number but impossible sizes", str(value), "corrupt")


def test_load_checkpoint_corrupt_flag_is_refused(int8):
    patched(int8, 36, "<B", 7)
    refused(int8, "shared-classifier flag is 7, not 0 or 1", "corrupt")


@pytest.mark.parametrize("group_size", [0, -64])
def test_load_checkpoint_corrupt_group_size_is_refused(int8, group_size):
    patched(int8, 37, "<i", group_size)
    refused(int8, f"group size is {group_size}: it must be positive", "corrupt")


@pytest.mark.parametrize(
    ("dim", "hidden_dim", "group_size", "culprit", "best"),
    [
        (64, 172, 64, "hidden_dim 172", 4),  # stories260K by export.py's default
        (512, 1376, 64, "hidden_dim 1376", 32),  # stories42M
        (48, 64, 32, "dim 48", 16),
        (48, 72, 48, "hidden_dim 72", 8),
    ],
)
def test_load_checkpoint_ambiguous_groups_are_refused(
    tmp_path, dim, hidden_dim, group_size, culprit, best
):
    path = tmp_path / "model.bin"
    config = replace(CONFIG, dim=dim, hidden_dim=hidden_dim, n_layers=1)
    write_checkpoint(path, config, 2, group_size=group_size)
    refused(
        path,
        f"is ambiguous: its group size {group_size} does not divide {culprit}",
        "export.py and runq.c disagree",
        f"divides both dim {dim} and hidden_dim {hidden_dim}",
        f"version2_export(model, path, group_size={best})",
    )
    write_checkpoint(path, config, 2, group_size=best)
    load_checkpoint(path).close()


@pytest.mark.parametrize(("dim", "hidden_dim", "group_size"), [(64, 172, 64), (48, 72, 48)])
def test_ambiguous_file_is_read_in_export_pys_order_where_asked(
    tmp_path, dim, hidden_dim, group_size
):
    path = tmp_path / "model.bin"
    config = replace(CONFIG, dim=dim, hidden_dim=hidden_dim, n_layers=2)
    weights = write_checkpoint(path, config, 2, group_size=group_size, seed=4)
    refused(path, 'load_model(..., reading="export") or --reading export')
    with load_checkpoint(path, reading="export") as checkpoint:
        for name in ("wq", "w1", "w2", "w3", "wo"):
            w = weights[name][1]
            q, scale = quantize_q80(w, group_size)
            flat = q.reshape(-1, group_size) * scale.reshape(-1, 1)
            np.testing.assert_array_equal(checkpoint.tensor(name, 1), flat.reshape(w.shape))
        with pytest.raises(CheckpointError, match="straddle the rows of w2, which have"):
            checkpoint.quantized("w2", 0)
        assert checkpoint.quantized("w1", 0)[1].shape == (hidden_dim, dim // group_size)


def test_other_readings_are_refused(int8):
    with pytest.raises(CheckpointError, match="reading is 'runq': it must be 'export'"):
        load_checkpoint(int8, reading="runq")


def test_load_checkpoint_noise_is_refused(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(np.random.default_rng(1).bytes(4000))
    refused(path, "is not a llama2.c checkpoint: its first numbers (", "no model has such sizes")


# ---- NaN and infinity ----------------------------------------------------------------


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize(("value", "what"), [(np.nan, "NaN"), (np.inf, "inf"), (-np.inf, "inf")])
def test_tensor_nonfinite_weight_is_refused(tmp_path, version, value, what):
    path = tmp_path / "model.bin"
    weights = random_weights(CONFIG)
    weights["w2"][1, 3, 7] = weights["w2"][1, 20, 0] = value
    weights["rms_final_weight"][5] = value
    write_checkpoint(path, CONFIG, version, weights=weights)
    checkpoint = load_checkpoint(path)
    checkpoint.tensor("w2", 0)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.tensor("w2", 1)
    assert str(caught.value).startswith(
        f"{path}: w2, layer 1 holds 2 NaN or infinite value(s), the first ({what}"
    )
    assert "at index (3, 7): the training diverged or the file is corrupt" in str(caught.value)
    with pytest.raises(CheckpointError, match=r"rms_final_weight holds 1 NaN .* at index \(5,\)"):
        checkpoint.tensor("rms_final_weight")


def test_tensor_nonfinite_scale_is_refused(int8):
    first_scale = 256 + 4 * (2 * 24 + 2 * 24 + 24) + 50 * 24
    for read in ("tensor", "quantized"):
        patched(int8, first_scale, "<f", float("nan"))
        with pytest.raises(CheckpointError, match=r"token_embedding_table, scales holds 1 NaN"):
            getattr(load_checkpoint(int8), read)("token_embedding_table")
        patched(int8, first_scale, "<f", 3e38)
        with pytest.raises(CheckpointError, match=r"token_embedding_table has a scale so large"):
            getattr(load_checkpoint(int8), read)("token_embedding_table")
    load_checkpoint(int8).tensor("wq", 0)
