"""Data for ``test_bench.cpp``: a small model, a call, and the reference's results.

The model has random weights and an odd shape: half groups, padded heads, grouped queries. The call
has one row, and three steps that feed their own samples back: every board takes it.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.checkpoint.load import load_checkpoint
from llama_pynq.checkpoint.random import write_random_checkpoint
from llama_pynq.kernel import abi
from llama_pynq.kernel.abi import RowFlag
from llama_pynq.kernel.limits import KernelLimits
from llama_pynq.kernel.reference import KernelModel
from llama_pynq.kernel.stages import rope_turns, sample
from llama_pynq.utils.files import write_atomically
from llama_pynq.vitis.project import Project
from llama_pynq.weights.quantize import QuantizedModel
from llama_pynq.weights.tiles import pack_channels

CONFIG = ModelConfig(
    dim=72, hidden_dim=101, n_layers=2, n_heads=6, n_kv_heads=2, vocab_size=203, seq_len=40,
    tied=True,
)  # fmt: skip
GROUP_SIZE, STEPS, TOKEN, SEED, TEMPERATURE = 32, 3, 30, 2**40 + 3, 0.8
SEQUENCE = 7
UNTOUCHED = 0xDEADBEEF
_PER_LINE = 16


@dataclass(frozen=True)
class Vectors:
    """Buffers of a call, as 32-bit words, by name (`llama_pynq.kernel.registers.Argument.buffer`).

    Attributes
    ----------
    before, after : dict of str to (n,) uint32
        Contents before the call; and after it, for the buffers that it writes for the host.
    """

    before: dict[str, np.ndarray]
    after: dict[str, np.ndarray]


def make_vectors(limits: KernelLimits) -> Vectors:
    """Make the buffers of the call for a kernel with these limits."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.bin"
        with path.open("w+b") as file:
            write_random_checkpoint(file, CONFIG, seed=1)
        with load_checkpoint(path) as checkpoint:
            return _vectors(limits, QuantizedModel(checkpoint, GROUP_SIZE))


def _vectors(limits: KernelLimits, model: QuantizedModel) -> Vectors:
    before = {
        f"weights_{c}": np.frombuffer(part.tobytes(), "<u4")
        for c, part in enumerate(pack_channels(model, limits.target))
    }
    cache_words = limits.kv_port_bytes(CONFIG, 32, slots=1) // 4
    for port in range(limits.kv_ports):
        before[f"kv_cache_{port}"] = np.full(cache_words, UNTOUCHED, "<u4")
    before["request"] = _request(limits)
    before["model"] = _descriptor(limits)
    before["results"] = np.full(limits.results_words, UNTOUCHED, "<u4")
    before["logits"] = np.full(limits.max_rows * CONFIG.vocab_size, UNTOUCHED, "<u4")
    before["activations"] = np.full(limits.max_rows * CONFIG.dim, UNTOUCHED, "<u4")
    before["profile"] = np.full(limits.profile_step_words * limits.max_steps, UNTOUCHED, "<u4")

    results, logits = before["results"].copy(), before["logits"].copy()
    status = {
        abi.STATUS_MAGIC: abi.MAGIC,
        abi.STATUS_ABI: abi.ABI_VERSION,
        abi.STATUS_STATE: abi.State.DONE,
        abi.STATUS_ERROR: 0,
        abi.STATUS_DETAIL: 0,
        abi.STATUS_STEPS: STEPS,
        abi.STATUS_SEQUENCE: SEQUENCE,
    }
    for word, value in status.items():
        results[word] = value
    size = limits.result_dtype.itemsize // 4
    reference, token = KernelModel(model), TOKEN
    for step in range(STEPS):
        row = reference.forward([token], [step])[0]
        chosen = sample(row, TEMPERATURE, SEED, step, limits.top_logits)
        at = abi.STATUS_WORDS + step * size
        result = results[at : at + size].view(limits.result_dtype)
        result["token"], result["position"] = chosen.token, step
        result["lse"], result["lse_temperature"] = chosen.lse, chosen.lse_temperature
        result["logit"], result["kept"] = row[chosen.token], chosen.kept
        result["top"]["id"], result["top"]["logit"] = chosen.top_ids, chosen.top_logits
        logits[: CONFIG.vocab_size] = row.astype("<f4").view("<u4")
        token = chosen.token
    return Vectors(before, {"results": results, "logits": logits})


def _request(limits: KernelLimits) -> np.ndarray:
    words = np.zeros(limits.request_words, "<u4")
    words[abi.REQUEST_ROWS], words[abi.REQUEST_STEPS] = 1, STEPS
    words[abi.REQUEST_LAYER_END] = CONFIG.n_layers
    row = abi.make_rows(1)
    row["token"], row["seed"], row["temperature"] = TOKEN, SEED, TEMPERATURE
    row["flags"] = RowFlag.SAMPLE | RowFlag.FULL_LOGITS
    base = abi.REQUEST_ROW_BASE
    words[base : base + abi.ROW_WORDS] = row.view("<u4")
    return words


def _descriptor(limits: KernelLimits) -> np.ndarray:
    c = CONFIG
    theta = int(np.float32(c.rope_theta).view(np.uint32))
    values = [abi.MAGIC, abi.ABI_VERSION, c.dim, c.hidden_dim, c.n_layers, c.n_heads,
              c.n_kv_heads, c.vocab_size, c.seq_len, GROUP_SIZE, int(c.tied), theta, 1, 8,
              32]  # fmt: skip
    words = np.zeros(limits.model_words, "<u4")
    words[: len(values)] = values
    table = rope_turns(c.head_size, c.rope_theta, c.rope_divisors).view("<u4")
    words[abi.MODEL_ROPE_TABLE : abi.MODEL_ROPE_TABLE + len(table)] = table
    return words


def _array(name: str, words: np.ndarray) -> str:
    lines = [
        ", ".join(f"0x{word:x}" for word in words[i : i + _PER_LINE])
        for i in range(0, len(words), _PER_LINE)
    ]
    return f"static const uint32_t {name}[] = {{\n" + ",\n".join(lines) + "};\n"


def write_vectors(project: Project) -> Path:
    """Write ``test_vectors.h`` into the project's folder, and return its path.

    A buffer of one repeated word is written as that word.
    """
    vectors = make_vectors(KernelLimits.from_header(project.header))
    arrays, rows = [], []
    scalars = {"command": abi.COMMAND_RUN, "sequence": SEQUENCE}
    names = list(dict.fromkeys(arg.buffer for arg in project.arguments if arg.is_pointer))
    for name in names:
        before, after = vectors.before[name], vectors.after.get(name)
        plain = bool((before == before[0]).all())
        given = "nullptr" if plain else f"kBefore_{name}"
        wanted = "nullptr" if after is None else f"kAfter_{name}"
        if not plain:
            arrays.append(_array(given, before))
        if after is not None:
            arrays.append(_array(wanted, after))
        rows.append(f'    {{"{name}", {len(before)}, 0x{before[0]:x}u, {given}, {wanted}}},')
    args = [
        f"    {{{names.index(arg.buffer)}, 0}},"
        if arg.is_pointer
        else f"    {{-1, {scalars[arg.name]}}},"
        for arg in project.arguments
    ]
    text = "\n".join(
        [
            "// Generated by llama_pynq.vitis: do not edit.",
            *arrays,
            "static const Buffer kBuffers[] = {",
            *rows,
            "};",
            "static const Argument kArguments[] = {",
            *args,
            "};",
            "",
        ]
    )
    path = project.folder / "test_vectors.h"
    write_atomically(path, text.encode())
    return path
