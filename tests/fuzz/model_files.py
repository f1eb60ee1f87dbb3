"""Borders of model files: checkpoints, packed files, tokenizers."""

from __future__ import annotations

import json
import struct
import zlib
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from fuzz.border import Border, Skipped
from fuzz.mutators import FLOATS, Field, integer, json_text, mutate_bytes, mutate_json, text
from support.checkpoint_files import random_weights, write_checkpoint
from support.paths import MODELS
from support.tokenizer_files import read_tokenizer_bin

from llama_pynq import EmulatedDevice, LlamaOverlay
from llama_pynq.checkpoint.config import GLOBAL_TENSORS, LAYER_TENSORS, NORMS, ModelConfig
from llama_pynq.checkpoint.load import load_checkpoint
from llama_pynq.engine.loading import tokenizer_inside
from llama_pynq.errors import CheckpointError, LlamaPynqError, TemplateError, TokenizerError
from llama_pynq.kernel.config import Target
from llama_pynq.models import BUNDLED
from llama_pynq.tokenizer.chat import ChatTemplate
from llama_pynq.tokenizer.gguf import tokenizer_file
from llama_pynq.tokenizer.load import load_tokenizer, tokenizer_from_bytes
from llama_pynq.weights.packed import open_packed, write_packed
from llama_pynq.weights.quantize import QuantizedModel

TIED = ModelConfig(32, 64, 2, 4, 2, 40, 16, True)
UNTIED = ModelConfig(24, 40, 1, 4, 4, 30, 8, False)
STRADDLES = ModelConfig(32, 48, 1, 4, 2, 40, 16, True)
_SIZES = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")


# ---- checkpoints ----------------------------------------------------------------------


def _checkpoint_corpus(folder: Path, version: int) -> list[bytes]:
    corpus = []
    configs = [(TIED, 32), (UNTIED, 8), (STRADDLES, 32)]
    for index, (config, group) in enumerate(configs):
        path = folder / f"corpus-{index}.bin"
        write_checkpoint(path, config, version, group if version == 2 else None)
        corpus.append(path.read_bytes())
    if version == 0 and MODELS.is_dir():
        corpus.append((MODELS / "stories260K.bin").read_bytes())
    return corpus


def _checkpoint_fields(version: int, data: bytes) -> list[Field]:
    if version == 0:
        header = [Field(4 * i, "<i") for i in range(7)]
        first = 28
    else:
        header = [Field(4 * i, "<i") for i in range(9)] + [Field(36, "<B"), Field(37, "<i")]
        first = 256
    floats = [Field(at, "<f") for at in range(first, len(data) - 4, max(4, (len(data) // 64) & ~3))]
    return header * 4 + floats


def checkpoint(version: int, folder: Path) -> Border:
    corpus = _checkpoint_corpus(folder, version)
    path = folder / "model.bin"

    def make(rng: Random) -> bytes:
        return mutate_bytes(rng, corpus, lambda data: _checkpoint_fields(version, data))

    def read(data: bytes) -> bool:
        path.write_bytes(data)
        opened = False
        for reading in (None, "export"):
            try:
                with load_checkpoint(path, reading=reading) as model:
                    opened = True
                    _read_all(model)
            except CheckpointError:
                if reading == "export":
                    return opened
        return True

    return Border(make, read, (CheckpointError,))


def _read_all(model: Any) -> None:
    assert len(model.sha256) == 64
    for name in (*GLOBAL_TENSORS, *LAYER_TENSORS):
        for layer in range(model.config.n_layers) if name in LAYER_TENSORS else (None,):
            assert np.isfinite(model.tensor(name, layer)).all(), name
            if model.group_size is not None and name not in NORMS:
                columns = model.config.tensor_shape(name)[-1]
                if columns % model.group_size == 0:
                    model.quantized(name, layer)


# ---- GGUF -----------------------------------------------------------------------------

_VOCABULARY: dict[str, Any] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": ["<s>", "a", "b", "ab", *(f"<|{i}|>" for i in range(36))],
    "tokenizer.ggml.token_type": [3, *[1] * 39],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 0,
    "tokenizer.chat_template": "{{ messages[0].content }}",
}


def gguf_file(folder: Path) -> Border:
    """A GGUF file, its tensors and its vocabulary: bytes of its header, and values of it."""
    from support.gguf_files import model_metadata, write_gguf_model

    shape = ModelConfig(32, 64, 2, 4, 2, 40, 16, False)
    weights = random_weights(shape)
    path = folder / "model.gguf"
    entries = {**model_metadata(shape), **_VOCABULARY}

    def written(kinds: list[str], metadata: dict[str, Any]) -> bytes:
        write_gguf_model(path, shape, weights, kinds, {**entries, **metadata})
        return path.read_bytes()

    corpus = [written(["Q8_0", "Q4_1"], {}), written(["F32", "F16", "Q5_0"], {"a": [1, 2]})]

    def fields(data: bytes) -> list[Field]:
        return [Field(at, form) for at in range(4, min(len(data), 2400)) for form in ("<I", "<Q")]

    def make(rng: Random) -> bytes:
        if rng.random() < 0.7:
            return mutate_bytes(rng, corpus, fields)
        key = rng.choice([*entries][1:])
        value = rng.choice([
            integer(rng) % 2**32, text(rng), rng.choice(FLOATS), rng.random() < 0.5, None,
            [integer(rng) % 2**31] * rng.randrange(1, 4), ["a", "b"],
        ])  # fmt: skip
        try:
            with np.errstate(over="ignore"):
                return written(["Q8_0"], {key: value})
        except (ValueError, OverflowError, UnicodeEncodeError, struct.error):
            return corpus[0][: rng.randrange(len(corpus[0]))]

    def read(data: bytes) -> None:
        path.write_bytes(data)
        with load_checkpoint(path) as model:
            vocabulary = tokenizer_inside(model)
            if vocabulary:
                tokenizer_from_bytes(vocabulary, path).encode("ab<s>", parse_special=True)
            if model.chat_template:
                ChatTemplate(model.chat_template).render([{"role": "user", "content": "a"}])
            for name in (*GLOBAL_TENSORS, *LAYER_TENSORS):
                for layer in range(model.config.n_layers) if name in LAYER_TENSORS else (None,):
                    assert np.isfinite(model.tensor(name, layer)).all(), name
                    if name not in NORMS and model.holds_int8(name, layer):
                        model.quantized(name, layer)

    return Border(make, read, (CheckpointError, TokenizerError, TemplateError))


# ---- Hugging Face folders -------------------------------------------------------------


def hugging_face(folder: Path) -> Border:
    """A folder whose config.json, index, tokenizer.json or tensors are mutated."""
    from support.huggingface_files import CONFIG, random_tensors, write_folder

    shape = {**CONFIG, "hidden_size": 16, "intermediate_size": 32, "vocab_size": 40}
    good = write_folder(folder / "good", shape, random_tensors(shape), 2)
    path = folder / "gguf"
    entries = {key: [t.encode() for t in value] if key.endswith(("tokens", "merges")) else value
               for key, value in _VOCABULARY.items()}  # fmt: skip
    (good / "tokenizer.json").write_bytes(tokenizer_file(entries, path))
    (good / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    (good / "generation_config.json").write_text('{"eos_token_id": [0, 1], "bos_token_id": null}')
    whole = {file.name: file.read_bytes() for file in good.iterdir()}
    texts = sorted(name for name in whole if name.endswith(".json"))
    tensors = sorted(name for name in whole if name.endswith(".safetensors"))

    def make(rng: Random) -> bytes:
        if rng.random() < 0.8:
            name = rng.choice(texts)
            data = json_text(rng, mutate_json(rng, json.loads(whole[name])))
        else:
            name = rng.choice(tensors)
            header = [Field(at, "<Q") for at in range(8)]
            data = mutate_bytes(rng, [whole[name]], lambda _: header)
        return name.encode() + b"\0" + data

    def read(data: bytes) -> None:
        name, _, content = data.partition(b"\0")
        target = good / name.decode()
        target.write_bytes(content)
        try:
            with load_checkpoint(good) as model:
                vocabulary = tokenizer_inside(model)
                if vocabulary:
                    tokenizer_from_bytes(vocabulary, good).encode("ab")
                if model.chat_template:
                    ChatTemplate(model.chat_template).render([{"role": "user", "content": "a"}])
                assert len(model.sha256) == 64
                for tensor in (*GLOBAL_TENSORS, *LAYER_TENSORS):
                    layers = range(model.config.n_layers) if tensor in LAYER_TENSORS else (None,)
                    for layer in layers:
                        assert np.isfinite(model.tensor(tensor, layer)).all(), tensor
        finally:
            target.write_bytes(whole[name.decode()])

    return Border(make, read, (CheckpointError, TokenizerError, TemplateError))


# ---- packed files ---------------------------------------------------------------------


_DTYPES = ("BOOL", "I8", "F8_E4M3", "F8_E5M2", "F16", "BF16", "F64", "U16", "F4", "X")


def _split_packed(data: bytes) -> tuple[dict[str, Any], dict[str, bytes]]:
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    blobs = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            blobs[name] = data[8 + size + begin : 8 + size + end]
    return header, blobs


def _seal_packed(header: Any, blobs: dict[str, bytes]) -> None:
    """Compute the checksums of a packed file's header anew, as far as it still has them."""
    meta = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(meta, dict):
        return
    channels = [name for name in blobs if name.startswith("channel_")]
    if "crc32" in meta:
        meta["crc32"] = ",".join(f"{zlib.crc32(blobs[name]):08x}" for name in channels)
    covered = json.dumps({k: v for k, v in meta.items() if k != "meta_crc32"}, sort_keys=True)
    if "meta_crc32" in meta:
        meta["meta_crc32"] = f"{zlib.crc32(blobs['tokenizer'], zlib.crc32(covered.encode())):08x}"


def packed(folder: Path) -> Border:
    """Open a packed file and, if that is allowed, generate two tokens with it."""
    tokenizer = (BUNDLED / "tokenizer.bin").read_bytes()
    device = EmulatedDevice(threads=1)
    overlay = LlamaOverlay(device=device)
    target = overlay.llama.limits.target
    corpus = []
    for index, (vocab, bits, group) in enumerate(((1024, 8, 32), (1024, 4, 64), (1024, 8, 64))):
        source = folder / "source.bin"
        config = ModelConfig(32, 64, 1, 4, 2, vocab, 16, index != 2)
        write_checkpoint(source, config, 0)
        out = folder / f"corpus-{index}"
        with load_checkpoint(source) as model:
            where = target if index != 1 else Target(target.channels, target.tile_rows)
            write_packed(QuantizedModel(model, group, bits), where, out, tokenizer)
        corpus.append(out.read_bytes())
    path = folder / "model.safetensors"

    def make(rng: Random) -> bytes:
        if rng.random() < 0.25:
            return mutate_bytes(rng, corpus, lambda _: [Field(0, "<Q")])
        header, blobs = _split_packed(rng.choice(corpus))
        meta = header["__metadata__"]
        kind = rng.random()
        if kind < 0.45:
            config = mutate_json(rng, json.loads(meta["config"]))
            meta["config"] = json_text(rng, config).decode("latin-1")
        elif kind < 0.65:
            key = rng.choice(("group_size", "weight_bits", "channels", "tile_rows"))
            meta[key] = rng.choice((str(integer(rng, int(meta[key]))), text(rng, meta[key])))
        elif kind < 0.75:
            name = rng.choice(list(blobs))
            blobs[name] = mutate_bytes(rng, [blobs[name]])
        elif kind < 0.9:
            name = rng.choice(list(blobs))
            if rng.random() < 0.5:
                header[name]["dtype"] = rng.choice(_DTYPES)
            else:
                header[name] = mutate_json(rng, header[name])
        else:
            header = mutate_json(rng, header)
        if rng.random() < 0.9:
            _seal_packed(header, blobs)
        head = json.dumps(header).encode() if rng.random() < 0.97 else json_text(rng, header)
        head += b" " * (-(len(head) + 8) % 64)
        return len(head).to_bytes(8, "little") + head + b"".join(blobs.values())

    def read(data: bytes) -> None:
        path.write_bytes(data)
        model = open_packed(path)
        for channel in range(min(model.target.channels, 64)):
            model.upload(channel, lambda at, part: None)
        overlay.load_model(path)
        # The logits of damaged weights may be infinite: the kernel's own refusal.
        out = overlay.generate("Once", max_new_tokens=2, temperature=0)
        assert all(0 <= token < model.config.vocab_size for token in out.tokens)

    return Border(make, read)


# ---- tokenizers -----------------------------------------------------------------------

TRIED = [
    "",
    " ",
    "Once upon a time",
    "naïve 你好 😀",
    "a\x00b",
    "\u2581x",
    "<0x41> <s> [INST]",
    "x" * 50,
]


def _use(path: Path) -> None:
    """Do with a tokenizer what the engine does."""
    tokenizer = load_tokenizer(path)
    n = tokenizer.vocab_size
    for words in TRIED:
        try:
            tokens = tokenizer.encode(words)
        except TokenizerError:
            continue
        assert all(0 <= token < n for token in tokens), tokens
        tokenizer.decode(tokens)
    decoder = tokenizer.stream_decoder()
    for token in range(min(n, 600)):
        tokenizer.piece(token)
        decoder.push(token)
    decoder.flush()
    tokenizer.check_vocab(n)


def _bin_file(tokens: list[tuple[float, bytes]], longest: int | None = None) -> bytes:
    longest = max(len(p) for _, p in tokens) if longest is None else longest
    records = [struct.pack("<fI", score, len(piece)) + piece for score, piece in tokens]
    return struct.pack("<I", longest) + b"".join(records)


def _bin_records(data: bytes) -> list[bytes]:
    found, at = [data[:4]], 4
    while at + 8 <= len(data):
        (length,) = struct.unpack_from("<I", data, at + 4)
        if length > 1 << 16:
            break
        found.append(data[at : at + 8 + length])
        at += 8 + length
    return [*found, data[at:]]


def tokenizer_bin(folder: Path) -> Border:
    tokens = read_tokenizer_bin((BUNDLED / "tokenizer.bin").read_bytes())
    july = [
        (score, chr(i - 3).encode() if 3 <= i < 259 else piece)
        for i, (score, piece) in enumerate(tokens)
    ]
    small = [*tokens[:259], (-1.0, b" "), (-2.0, b"a"), (-3.0, b" a")]
    corpus = [_bin_file(tokens), _bin_file(july), _bin_file(small), _bin_file(small)]
    if MODELS.is_dir():
        corpus.append((MODELS / "tok512.bin").read_bytes())
    path = folder / "tokenizer.bin"

    def fields(data: bytes) -> list[Field]:
        found, at = [Field(0, "<I")] * 4, 4
        for record in _bin_records(data)[1:]:
            found += [Field(at, "<f"), Field(at + 4, "<I"), Field(at + 8, "<B")]
            at += len(record)
        return found

    def read(data: bytes) -> None:
        path.write_bytes(data)
        _use(path)

    return Border(
        lambda rng: mutate_bytes(rng, corpus, fields, _bin_records), read, (TokenizerError,)
    )


def _protobuf_records(data: bytes) -> list[bytes]:
    """Top-level fields of a message, each with its tag; what cannot be cut stays whole."""
    found, at = [], 0
    while at < len(data):
        begin, (_, at) = at, _varint(data, at)
        length, at = _varint(data, at)
        at += length
        if at > len(data):
            return [*found, data[begin:]]
        found.append(data[begin:at])
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 70:
        value |= (data[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if data[at - 1] < 0x80:
            break
    return value, at


def sentencepiece(folder: Path) -> Border:
    if find_spec("sentencepiece") is None:
        raise Skipped("sentencepiece is not installed")
    corpus = [(BUNDLED / "tokenizer.model").read_bytes()]
    path = folder / "tokenizer.model"

    def fields(data: bytes) -> list[Field]:
        found, at = [], 0
        for record in _protobuf_records(data):
            # Tag, length, and within a piece its own tags, length and score.
            found += [Field(at + i, "<B") for i in range(min(6, len(record)))]
            if len(record) > 10:
                found.append(Field(at + len(record) - 4, "<f"))
            at += len(record)
        tail = len(data) - sum(map(len, _protobuf_records(data)[-2:]))
        return found + [Field(at, "<B") for at in range(max(0, tail), len(data))] * 2

    def read(data: bytes) -> None:
        path.write_bytes(data)
        _use(path)

    def make(rng: Random) -> bytes:
        if rng.random() < 0.01:
            return corpus[0] + rng.choice((b"\xff", b"\x80", b"\x0a\xff")) * 400_000
        return mutate_bytes(rng, corpus, fields, _protobuf_records)

    return Border(make, read, (TokenizerError,))


def texts(folder: Path) -> Border:
    """Texts and token ids given to the tokenizers: what they promise of them."""
    paths = [BUNDLED / "tokenizer.bin", BUNDLED / "tokenizer.model"]
    if MODELS.is_dir():
        paths += [MODELS / "tok512.bin"]
    tokenizers = [load_tokenizer(path) for path in paths]

    def make(rng: Random) -> bytes:
        words = "".join(text(rng, rng.choice(TRIED)) for _ in range(rng.choice((1, 2, 8))))
        if rng.random() < 0.02:
            words = (words * 2000)[:100_000]
        ids = [integer(rng, rng.randrange(512)) for _ in range(rng.randrange(6))]
        return json.dumps([words, ids]).encode()

    def read(data: bytes) -> bool:
        words, ids = json.loads(data)
        taken = False
        for tokenizer in tokenizers:
            try:
                tokens = tokenizer.encode(words, bos=False)
                assert all(0 <= token < tokenizer.vocab_size for token in tokens)
                decoder = tokenizer.stream_decoder()
                pieces = "".join(map(decoder.push, tokens)) + decoder.flush()
                assert pieces == tokenizer.decode(tokens), (pieces, words)
                if tokenizer.path.suffix == ".bin":
                    marks = [m for m in ("<0x", "<s>", "</s>", "<unk>") if m in words]
                    assert marks or tokenizer.decode([1, *tokens]) == words, tokenizer.path
                taken = True
            except TokenizerError:
                pass
            try:
                tokenizer.decode(ids)
            except LlamaPynqError:
                pass
        return taken

    return Border(make, read)
