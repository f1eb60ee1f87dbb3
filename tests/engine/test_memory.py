"""Resident memory of a process that loads and runs a model of stories110M's shape."""

import ast
import json
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

import llama_pynq
from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.kernel.config import Target
from llama_pynq.models import BUNDLED
from llama_pynq.weights.tiles import channel_bytes

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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
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


def test_no_source_reads_a_pickle():
    """torch.load must have weights_only=True, np.load no allow_pickle=True."""
    folder = Path(llama_pynq.__file__).parent
    sources = sorted(folder.rglob("*.py"))
    assert len(sources) > 20
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            where = f"{source.relative_to(folder)}:{getattr(node, 'lineno', 0)}"
            for name in _imported(node):
                assert name.split(".")[0] not in {"pickle", "dill", "joblib", "shelve"}, where
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                options = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert options.get("allow_pickle", "False") == "False", where
                if called == "torch.load":
                    assert options.get("weights_only") == "True", where


def _imported(node):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []
