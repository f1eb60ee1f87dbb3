"""Run llama.cpp through llama-cpp-python; standard input says what to measure.

`against_peers.py` starts this script, possibly with another Python. The script needs
llama-cpp-python, gguf and NumPy, and imports only the checkpoint readers of llama_pynq. A request
is one line of JSON, ``{"do": "open", ...}``; the answer is one line, ``{"value": ...}`` or
``{"error": ...}``.
"""

import ctypes
import json
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from llama_pynq.checkpoint.base import Checkpoint
from llama_pynq.checkpoint.load import load_checkpoint  # noqa: E402

# Q and K are not permuted: llama2.c and llama.cpp's "llama" both rotate adjacent pairs.
_LAYER = {
    "rms_att_weight": "attn_norm",
    "wq": "attn_q",
    "wk": "attn_k",
    "wv": "attn_v",
    "wo": "attn_output",
    "rms_ffn_weight": "ffn_norm",
    "w1": "ffn_gate",
    "w2": "ffn_down",
    "w3": "ffn_up",
}
_GLOBAL = {"token_embedding_table": "token_embd", "rms_final_weight": "output_norm"}
_model: Any = None


def versions() -> str:
    """Return the name and version of the library."""
    return f"llama-cpp-python {llama_cpp.__version__}"


def convert(checkpoint: str, tokenizer: str, to: str, quantized: bool = True) -> None:
    """Write a llama2.c checkpoint and its tokenizer.bin as GGUF: Q8_0 or F32, norms always F32."""
    writer = gguf.GGUFWriter(to, "llama")
    with load_checkpoint(checkpoint) as source:
        c = source.config
        writer.add_context_length(c.seq_len)
        writer.add_embedding_length(c.dim)
        writer.add_block_count(c.n_layers)
        writer.add_feed_forward_length(c.hidden_dim)
        writer.add_head_count(c.n_heads)
        writer.add_head_count_kv(c.n_kv_heads)
        writer.add_rope_dimension_count(c.head_size)
        writer.add_rope_freq_base(c.rope_theta)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_vocab_size(c.vocab_size)
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0 if quantized else 0)
        _add_tokenizer(writer, Path(tokenizer).read_bytes())
        _add_tensors(writer, source, quantized)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tensors(writer: gguf.GGUFWriter, source: Checkpoint, quantized: bool) -> None:
    def add(name: str, values: np.ndarray) -> None:
        if quantized and values.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)

    untied = {} if source.config.tied else {"wcls": "output"}
    for ours, theirs in {**_GLOBAL, **untied}.items():
        add(f"{theirs}.weight", source.tensor(ours))
    for layer in range(source.config.n_layers):
        for ours, theirs in _LAYER.items():
            add(f"blk.{layer}.{theirs}.weight", source.tensor(ours, layer))


def _add_tokenizer(writer: gguf.GGUFWriter, data: bytes) -> None:
    pieces, scores, offset = [], [], 4
    while offset < len(data):
        score, length = struct.unpack_from("<fI", data, offset)
        offset += 8 + length
        pieces.append(data[offset - length : offset].replace(b" ", "\u2581".encode()))
        scores.append(score)
    pieces[:3] = [b"<unk>", b"<s>", b"</s>"]
    kind = gguf.TokenType
    types = [kind.UNKNOWN, kind.CONTROL, kind.CONTROL, *[kind.BYTE] * 256]
    types += [kind.NORMAL] * (len(pieces) - len(types))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def open_model(path: str, threads: int, context: int) -> None:
    """Close the previous model and load a GGUF file, as a user of llama-cpp-python does."""
    global _model
    close()
    _model = llama_cpp.Llama(
        path, n_ctx=context, n_threads=threads, n_threads_batch=threads, verbose=False
    )


def close() -> None:
    """Free the model and its threads."""
    global _model
    if _model is not None:
        _model.close()
    _model = None


def logits(tokens: list[int]) -> list[list[float]]:
    """Logits after each token, teacher-forced: (tokens, vocabulary)."""
    _model.reset()
    rows = []
    for token in tokens:
        _model.eval([token])
        pointer = llama_cpp.llama_get_logits_ith(_model.ctx, -1)
        rows.append(np.ctypeslib.as_array(pointer, (_model.n_vocab(),)).tolist())
    return rows


def decode(tokens: int, batch: int) -> float:
    """Tokens/s of llama_decode() alone, as llama-bench measures.

    Decodes `tokens` random ids from an empty context, `batch` at a time, with no sampling and no
    text. batch = 1 is llama-bench's tg test, batch = tokens its pp test.
    """
    ids = np.random.default_rng(0).integers(0, _model.n_vocab(), tokens).astype(np.int32)
    pointer = ids.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(_model.ctx), True)
    begin = time.perf_counter()
    for first in range(0, tokens, batch):
        there = ctypes.cast(ctypes.byref(pointer.contents, 4 * first), type(pointer))
        if llama_cpp.llama_decode(_model.ctx, llama_cpp.llama_batch_get_one(there, batch)):
            raise RuntimeError("llama_decode failed")
        llama_cpp.llama_synchronize(_model.ctx)
    return tokens / (time.perf_counter() - begin)


def stream(tokens: int, temperature: float) -> float:
    """Tokens/s of streamed text from an empty prompt; top-p 0.9, other settings by default."""
    begin = time.perf_counter()
    chunks = _model.create_completion(
        "", max_tokens=tokens, temperature=temperature, top_p=0.9, seed=1, stream=True
    )
    for chunk in chunks:
        reason = chunk["choices"][0]["finish_reason"]
    seconds = time.perf_counter() - begin
    if reason != "length":
        raise RuntimeError(f"the text ended early ({reason}): the rate would be of fewer tokens")
    return tokens / seconds


def main() -> None:
    commands: dict[str, Callable[..., Any]] = {
        "versions": versions,
        "convert": convert,
        "open": open_model,
        "close": close,
        "logits": logits,
        "decode": decode,
        "stream": stream,
    }
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"value": commands[request.pop("do")](**request)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
