"""Measure the error of the kernel's int8 and int4 arithmetic against the float32 model.

    python benchmarks/accuracy.py [MODEL.bin TOKENIZER] [--tokens N]

Without MODEL.bin: the bundled model, and stories260K if it is in ../shared/models. The device that
LlamaOverlay() finds (on a PC, the emulated one) runs each model teacher-forced over a greedy text
of the float32 model (stories260K: llama2.c's greedy ids). The logits are compared with the float32
reference.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from llama_pynq import LlamaOverlay, load_checkpoint
from llama_pynq.kernel.reference import FloatModel
from llama_pynq.models import BUNDLED

SHARED = Path(__file__).parents[2] / "shared" / "models"


def mean_nll(logits: np.ndarray, ids: list[int]) -> float:
    """Mean negative log-likelihood of ids[1:] under logits[:-1], in nats."""
    wide = logits[:-1].astype(np.float64)
    lse = wide.max(1) + np.log(np.exp(wide - wide.max(1, keepdims=True)).sum(1))
    return float((lse - wide[np.arange(len(wide)), ids[1:]]).mean())


def greedy(model: FloatModel, n: int) -> list[int]:
    """Return n ids: BOS, then the greedy text of the float32 model."""
    model.reset()
    ids = [1]
    while len(ids) < n:
        ids.append(int(model.forward([ids[-1]], [len(ids) - 1])[0].argmax()))
    model.reset()
    return ids


def compare(overlay: LlamaOverlay, model: Path, tokenizer: Path, ids: list[int] | None, n: int):
    """Print one line per combination of weight format and KV cache format."""
    with load_checkpoint(model) as checkpoint:
        reference = FloatModel(checkpoint)
        stored = checkpoint.group_size
    ids = ids or greedy(reference, min(n, reference.config.seq_len))
    true = reference.forward(ids, range(len(ids)))
    formats = [
        (8, size, kv) for size in ((32, 64) if stored is None else (None,)) for kv in (32, 8)
    ]
    for bits, size, kv in [*formats, (4, 64, 32), (4, 64, 8)]:
        llama = overlay.load_model(
            model, tokenizer=tokenizer, group_size=size, weight_bits=bits, kv_bits=kv
        )
        got = llama.logits(ids)
        ratio = np.exp(mean_nll(got, ids) - mean_nll(true, ids))
        same = (got.argmax(1) == true.argmax(1)).mean()
        print(
            f"{model.name:<16} int{bits} {llama.packed.group_size:>5} "
            f"{'float32' if kv == 32 else 'int8':>8}  {np.exp(mean_nll(true, ids)):>10.4f} "
            f"{np.exp(mean_nll(got, ids)):>10.4f} {100 * (ratio - 1):>+9.3f}%  {100 * same:>7.2f}% "
            f"of {len(ids)}   {np.abs(got - true).max():.4f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("tokenizer", nargs="?", type=Path)
    parser.add_argument("--tokens", type=int, default=256)
    args = parser.parse_args()
    with LlamaOverlay() as overlay:
        print(f"measured on {overlay.describe()}")
        print(
            "model            weights group KV cache ppl float32 ppl kernel    change   "
            "same top token   max |diff|"
        )
        if args.model:
            compare(overlay, args.model, args.tokenizer, None, args.tokens)
            return
        if SHARED.exists():
            oracle = json.loads((SHARED / "stories260K.oracle.json").read_text())
            model, tokenizer = SHARED / "stories260K.bin", SHARED / "tok512.bin"
            compare(overlay, model, tokenizer, oracle["greedy_ids"], args.tokens)
        else:
            print(f"stories260K.bin: not measured, there is no {SHARED}; give it and tok512.bin")
        compare(overlay, BUNDLED / "stories.bin", BUNDLED / "tokenizer.bin", None, args.tokens)


if __name__ == "__main__":
    main()
