"""Loading a model: files, formats, the packed cache, and memory."""

import json
import struct
import sys
from dataclasses import replace

import numpy as np
import pytest
from support import checkpoint_files
from support.checkpoint_files import random_weights, write_checkpoint
from support.generating import PROMPT, needs_shared, opened, tokens_of
from support.paths import MODELS

from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.checkpoint.load import load_checkpoint
from llama_pynq.errors import CheckpointError, DeviceMemoryError, RequestError, TokenizerError
from llama_pynq.kernel.config import Target
from llama_pynq.kernel.reference import KernelModel
from llama_pynq.models import BUNDLED
from llama_pynq.weights.packed import write_packed
from llama_pynq.weights.quantize import QuantizedModel
from llama_pynq.weights.tiles import channel_bytes


@needs_shared
def test_load_model_with_a_foreign_tokenizer_names_both_sizes(overlay, bundled):
    with pytest.raises(TokenizerError, match="512.*32000"):
        overlay.load_model(MODELS / "stories260K.bin", tokenizer=MODELS / "tokenizer32k.bin")
    assert overlay.generate(PROMPT, max_new_tokens=3, temperature=0).tokens


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("padding", [1, 16, 256])
def test_rows_that_pad_the_vocabulary_are_never_sampled(overlay, tmp_path, version, tied, padding):
    """The padded model is the model without its padding, bit for bit."""
    tokens = 1024  # of the bundled tokenizer
    config = ModelConfig(64, 128, 2, 4, 2, tokens + padding, 64, tied=tied)
    weights = random_weights(config, seed=3)
    for name in {"token_embedding_table", "wcls"} & weights.keys():
        weights[name][tokens:] *= 50  # rows that would win
    group = 64 if version == 2 else None
    write_checkpoint(tmp_path / "padded.bin", config, version, group, weights=weights)
    cut = {n: w[:tokens] if w.shape[0] == tokens + padding else w for n, w in weights.items()}
    config = replace(config, vocab_size=tokens)
    write_checkpoint(tmp_path / "cut.bin", config, version, group, weights=cut)
    tokenizer = BUNDLED / "tokenizer.bin"
    overlay.load_model(tmp_path / "cut.bin", tokenizer)
    expected = overlay.generate("Once", max_new_tokens=40, seed=1, temperature=1.5).tokens
    logits = overlay.logits([1, 5, 9])
    with pytest.warns(UserWarning) as told:
        overlay.load_model(tmp_path / "padded.bin", tokenizer)
    assert [str(w.message) for w in told] == [
        f"{tmp_path / 'padded.bin'} has {tokens + padding} rows of vocabulary, its tokenizer "
        f"1024 tokens: the last {padding} rows have no token, and are left out"
    ]
    assert overlay.generate("Once", max_new_tokens=40, seed=1, temperature=1.5).tokens == (expected)
    assert np.array_equal(overlay.logits([1, 5, 9]), logits)


def test_file_with_negative_scales_gives_the_same_bits(overlay, tmp_path, monkeypatch):
    """q and scale of every group negated: the products are the same, on the device too."""
    config = ModelConfig(64, 128, 2, 4, 2, 1024, 64, tied=True)
    weights = random_weights(config, seed=6)
    original = checkpoint_files.quantize_q80
    logits = []
    for sign in (1, -1):
        monkeypatch.setattr(
            checkpoint_files, "quantize_q80",
            lambda w, size, sign=sign: tuple(sign * part for part in original(w, size)),
        )  # fmt: skip
        path = tmp_path / f"{sign}.bin"
        write_checkpoint(path, config, 2, 64, weights=weights)
        overlay.load_model(path, BUNDLED / "tokenizer.bin")
        logits.append(overlay.logits([1, 5, 9]))
    assert logits[0].any() and np.array_equal(*logits)


def test_ambiguous_file_loads_where_a_reading_is_given(overlay, tmp_path):
    """Only w2, whose groups straddle rows, is requantised."""
    config = ModelConfig(64, 172, 2, 4, 2, 1024, 64, tied=True)
    path, tokenizer = tmp_path / "m.bin", BUNDLED / "tokenizer.bin"
    write_checkpoint(path, config, 2, 64, seed=5)
    with pytest.raises(CheckpointError, match="is ambiguous"):
        overlay.load_model(path, tokenizer)
    llama = overlay.load_model(path, tokenizer, reading="export")
    assert llama.packed.note == (
        "int8 weights used as they are (groups of 64), but w2 requantised, whose groups straddle "
        "rows"
    )
    with load_checkpoint(path, reading="export") as checkpoint:
        model = KernelModel(QuantizedModel(checkpoint))
        expected = model.forward([1, 5, 9], [0, 1, 2])
    assert np.array_equal(overlay.logits([1, 5, 9]), expected)


@pytest.mark.parametrize(("rows", "fits"), [(1023, False), (1280, True), (1281, False)])
def test_tokenizer_that_is_larger_or_much_smaller_is_refused(overlay, tmp_path, rows, fits):
    config = ModelConfig(64, 128, 1, 4, 2, rows, 64, tied=True)
    write_checkpoint(tmp_path / "m.bin", config, 1, weights=random_weights(config))
    if fits:
        with pytest.warns(UserWarning, match="256 rows have no token"):
            overlay.load_model(tmp_path / "m.bin", BUNDLED / "tokenizer.bin")
    else:
        with pytest.raises(TokenizerError, match=f"{rows} tokens, .* has 1024: they do not"):
            overlay.load_model(tmp_path / "m.bin", BUNDLED / "tokenizer.bin")


def test_packed_model_without_its_tokenizer_cannot_be_cut(overlay, tmp_path):
    config = ModelConfig(64, 128, 1, 4, 2, 1040, 64, tied=True)
    write_checkpoint(tmp_path / "m.bin", config, 1, weights=random_weights(config))
    with load_checkpoint(tmp_path / "m.bin") as checkpoint:
        target = overlay.llama.limits.target
        write_packed(QuantizedModel(checkpoint), target, tmp_path / "m.safetensors")
    with pytest.raises(TokenizerError, match="with 1040 rows .* has 1024: pack the checkpoint"):
        overlay.load_model(tmp_path / "m.safetensors", BUNDLED / "tokenizer.bin")


@needs_shared
def test_load_model_without_a_tokenizer_asks_for_one(overlay, bundled):
    with pytest.raises(TokenizerError, match="give its file"):
        overlay.load_model(MODELS / "stories260K.bin")


def test_calls_before_load_model_say_so(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA_PYNQ_LOCKS", str(tmp_path))
    with opened() as overlay:
        with pytest.raises(RequestError, match=r"no model is loaded: call load_model\(\) first"):
            overlay.generate("a")
        overlay.load_model()
        assert overlay.generate("a", max_new_tokens=1).tokens


def test_load_model_device_memory_full_is_named_and_a_smaller_one_loads(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA_PYNQ_LOCKS", str(tmp_path))
    with opened(memory_bytes=12 << 20) as overlay:
        with pytest.raises(DeviceMemoryError):
            overlay.load_model(slots=64)
        with pytest.raises(RequestError, match="no model is loaded"):
            overlay.generate("a")
        overlay.load_model()
        assert overlay.generate("a", max_new_tokens=2).tokens


def test_a_shorter_context_takes_less_memory_and_gives_the_same_text(overlay, bundled):
    whole = overlay.generate(PROMPT, max_new_tokens=200, seed=2, ignore_eos=True)
    size = overlay.llama.buffers["kv_cache_0"].nbytes
    short = overlay.load_model(context=64)
    assert short.config.seq_len == 64
    assert short.packed.path == bundled.packed.path, "the packed file serves every context"
    assert overlay.llama.buffers["kv_cache_0"].nbytes == size * 64 // bundled.config.seq_len
    out = overlay.generate(PROMPT, max_new_tokens=200, seed=2, ignore_eos=True)
    assert len(out.prompt_tokens) + len(out.tokens) == 65
    assert out.tokens == whole.tokens[: len(out.tokens)]
    overlay.reset()
    assert overlay.llama.config.seq_len == 64
    again = overlay.generate(PROMPT, max_new_tokens=200, seed=2, ignore_eos=True)
    assert again.tokens == out.tokens
    with pytest.raises(RequestError, match="the model's context holds 64"):
        overlay.generate([1] * 65)


@pytest.mark.parametrize("context", [0, -1, 513, True, 1.5, "64"])
def test_a_context_that_the_model_lacks_is_refused(overlay, bundled, context):
    with pytest.raises(RequestError, match=f"context is {context!r}"):
        overlay.load_model(context=context)
    assert overlay.generate(PROMPT, max_new_tokens=2).tokens


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("packed", [False, True])
def test_a_model_longer_than_the_kernels_limit_loads_with_that(
    overlay, tmp_path, monkeypatch, version, packed
):
    """Also from a packed file, and again after its cache was damaged."""
    limits = overlay.llama.limits
    longest = limits.max_seq_len
    config = ModelConfig(64, 128, 1, 4, 2, 1024, longest, tied=False)
    weights = random_weights(config, seed=8)
    tokenizer, paths = BUNDLED / "tokenizer.bin", []
    for name, seq_len in (("fits", longest), ("long", longest + 1)):
        path = tmp_path / f"{name}.bin"
        shape = replace(config, seq_len=seq_len)
        write_checkpoint(path, shape, version, 64 if version == 2 else None, weights=weights)
        if packed:
            with load_checkpoint(path) as checkpoint:
                path = tmp_path / f"{name}.safetensors"
                write_packed(QuantizedModel(checkpoint), limits.target, path)
        paths.append(path)
    overlay.load_model(paths[0], tokenizer, slots=1)
    expected = overlay.generate("Once", max_new_tokens=9, seed=1).tokens
    note = f"has a context of {longest + 1} tokens, the kernel on host takes {longest} at most"
    with pytest.warns(UserWarning, match=note) as told:
        model = overlay.load_model(paths[1], tokenizer, slots=1)
    assert told[0].filename == __file__
    assert model.config.seq_len == longest
    assert overlay.generate("Once", max_new_tokens=9, seed=1).tokens == expected
    if not packed:
        model.packed.path.write_bytes(b"")
        overlay.reset()
        assert overlay.llama.config.seq_len == longest
    shorter = overlay.load_model(paths[1], tokenizer, context=100)  # no warning
    assert shorter.config.seq_len == 100
    assert overlay.generate("Once", max_new_tokens=9, seed=1).tokens == expected
    with pytest.raises(RequestError, match=f"1 to {longest}, the limit of the kernel on host"):
        overlay.load_model(paths[1], tokenizer, context=longest + 1)


def test_memory_that_is_short_names_what_the_cache_depends_on(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA_PYNQ_LOCKS", str(tmp_path))
    with opened(memory_bytes=12 << 20) as overlay:
        with pytest.raises(DeviceMemoryError) as caught:
            overlay.load_model(slots=64)
        for part in ("slots=64", "kv_bits=32", "context=512", "MiB for its KV cache"):
            assert part in str(caught.value)
        overlay.load_model(slots=64, context=16)
        assert overlay.generate("a", max_new_tokens=2).tokens


@pytest.mark.parametrize("damage", [b"", b"garbage" * 100, None])
def test_load_model_damaged_cache_is_rebuilt(overlay, bundled, expected, damage):
    path = bundled.packed.path
    data = path.read_bytes()
    if damage is None:  # one weight's bit
        damage = data[:-100] + bytes([data[-100] ^ 4]) + data[-99:]
    path.write_bytes(damage)
    overlay.load_model()
    assert path.read_bytes() == data
    assert tokens_of(overlay, "greedy") == expected["greedy"]


def test_load_model_again_where_memory_holds_but_one(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA_PYNQ_LOCKS", str(tmp_path))
    with opened(memory_bytes=8 << 20) as overlay:
        for _ in range(3):
            overlay.load_model(slots=2)
            assert overlay.generate("a", max_new_tokens=2).tokens


@pytest.mark.parametrize("given", [{"slots": True}, {"rope_theta": True}])
def test_load_model_bools_are_no_numbers(overlay, bundled, given):
    (name,) = given
    with pytest.raises(RequestError, match=f"{name} is True: it must be a"):
        overlay.load_model(**given)
    assert overlay.generate(PROMPT, max_new_tokens=2).tokens


# ---- resident memory of a process with a model of stories110M's shape ----------------

MB = 10**6
STORIES_110M = ModelConfig(
    dim=768,
    hidden_dim=2048,
    n_layers=12,
    n_heads=12,
    n_kv_heads=12,
    vocab_size=32000,
    seq_len=256,
    tied=True,
)
MEASURE = """
import json, sys
import pynq
import llama_pynq

def resident(key):
    for line in open("/proc/self/status"):
        if line.startswith(key):
            return int(line.split()[1]) * 1024

overlay = llama_pynq.LlamaOverlay(device=llama_pynq.EmulatedDevice(threads=1))
found = {"baseline": resident("VmRSS:")}
llama = overlay.load_model(sys.argv[1], sys.argv[2])
found["load_peak"] = resident("VmHWM:") - found["baseline"]
open("/proc/self/clear_refs", "w").write("5")  # VmHWM starts anew, proc(5)
overlay.generate("", max_new_tokens=6, temperature=0)
overlay.generate(["", ""], max_new_tokens=4, seed=1)
found["generating"] = resident("VmHWM:") - found["baseline"]
found["packed"] = llama.packed.weight_bytes
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Checkpoint of random float weights, written in slices: 440 MB."""
    c = STORIES_110M
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("stories110M") / "model.bin"
    per_layer = c.dim * c.dim, c.dim * c.hidden_dim
    norms, square, wide = c.n_layers * c.dim, c.n_layers * per_layer[0], c.n_layers * per_layer[1]
    embedding = c.vocab_size * c.dim
    with open(path, "wb") as file:
        sizes = (c.dim, c.hidden_dim, c.n_layers, c.n_heads, c.n_kv_heads, c.vocab_size, c.seq_len)
        file.write(struct.pack("<7i", *sizes))
        for n in (embedding, norms, *[square] * 4, norms, *[wide] * 3, c.dim):
            for first in range(0, n, 1 << 20):
                part = rng.standard_normal(min(1 << 20, n - first), dtype=np.float32)
                file.write((part * np.float32(0.03)).data)
        file.write(bytes(4 * c.seq_len * c.head_size))  # RoPE tables, which are never read
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """The bundled tokenizer, padded to 32000 tokens."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.bin"
    pieces = [b"<%d>" % i for i in range(1024, 32000)]
    records = [struct.pack("<fI", -1e6, len(piece)) + piece for piece in pieces]
    path.write_bytes((BUNDLED / "tokenizer.bin").read_bytes() + b"".join(records))
    return path


@pytest.fixture
def own_locks(tmp_path, monkeypatch):
    """The module's overlay holds the emulated device of the session's lock folder."""
    monkeypatch.setenv("LLAMA_PYNQ_LOCKS", str(tmp_path / "locks"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
@pytest.mark.usefixtures("own_locks")
def test_resident_memory_stays_within_the_packed_size(run, checkpoint, tokenizer, tmp_path):
    cache = {"LLAMA_PYNQ_CACHE": str(tmp_path / "cache")}
    for state in ("cold cache", "warm cache"):
        done = run("-c", MEASURE, checkpoint, tokenizer, **cache)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        n = found["packed"]
        assert n == sum(channel_bytes(STORIES_110M, 64, Target(2, 32)))
        in_mb = {name: round(value / MB) for name, value in found.items()}
        assert found["load_peak"] <= 2 * n + 150 * MB, (state, in_mb)
        assert found["generating"] <= 1.25 * n + 150 * MB, (state, in_mb)
        # The emulated device's memory belongs to this process; it holds the weights only once.
        assert n <= found["generating"] < 2 * n, (state, in_mb)
    assert len(list((tmp_path / "cache" / "models").iterdir())) == 1, "no temporary file may remain"
