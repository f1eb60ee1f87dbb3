"""Train the bundled model: Llama 2's architecture as in llama2.c, in plain PyTorch.

``python -m llama_pynq.train --out DIR`` trains the tokenizer, then the model on stories that are
generated on the fly, and writes ``stories.bin``, ``tokenizer.model`` and ``tokenizer.bin``. The
same command resumes after Ctrl-C. This is the only module of the package that imports torch.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import random
import signal
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.checkpoint.load import load_checkpoint
from llama_pynq.errors import LlamaPynqError
from llama_pynq.train.export import Key, export_model, matrix_keys, norm_keys
from llama_pynq.train.stories import story
from llama_pynq.train.tokenizer import BOS, export_tokenizer, train_tokenizer
from llama_pynq.utils.files import user_path, write_atomically

PAD = 0  # The id of <unk>, which is unused because of byte fallback.

SHAPE = ModelConfig(
    dim=128,
    hidden_dim=384,
    n_layers=6,
    n_heads=4,
    n_kv_heads=2,
    vocab_size=1024,
    seq_len=512,
    tied=True,
)


@dataclass(frozen=True)
class TrainArgs:
    """Hyperparameters of the training.

    Attributes
    ----------
    steps, batch_size : int
        Each step sees batch_size new stories.
    short_steps, short_len, short_batch_size : int
        The first short_steps steps see only the first short_len tokens of each story, but more
        stories. Calling a character by the right name is the hardest thing to learn, and short
        contexts speed it up.
    muon_lr, adam_lr : float
        Peak learning rates: of the layers' matrices; of the embedding and the norms.
    warmup : int
        Steps of linear warm-up. The rate is constant from there to the cooldown, so a finished
        run can be extended from its `stable` checkpoint.
    cooldown : float
        Share of all steps, the last ones, in which the rate falls along a cosine to zero.
    clip : float
        Maximum norm of the gradient.
    seed : int
        Seed of the initial weights and of the stories.
    """

    steps: int = 2000
    batch_size: int = 8
    short_steps: int = 404
    short_len: int = 64
    short_batch_size: int = 32
    muon_lr: float = 0.02
    adam_lr: float = 0.004
    weight_decay: float = 0.1
    warmup: int = 50
    cooldown: float = 0.6
    clip: float = 1.0
    seed: int = 5


class RMSNorm(nn.Module):
    """x / rms(x) * weight, as in llama2.c."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, (x.shape[-1],), self.weight, eps=1e-5)


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate neighbouring pairs: x (batch, heads, seq, head_size), cos and sin (seq, half)."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


class Layer(nn.Module):
    """Grouped-query attention, then SwiGLU, each with a residual connection."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim, kv_dim, hidden_dim = config.dim, config.kv_dim, config.hidden_dim
        self.config = config
        self.rms_att_weight, self.rms_ffn_weight = RMSNorm(dim), RMSNorm(dim)
        self.wq = nn.Linear(dim, dim, bias=False)
        self.wk = nn.Linear(dim, kv_dim, bias=False)
        self.wv = nn.Linear(dim, kv_dim, bias=False)
        self.wo = nn.Linear(dim, dim, bias=False)
        self.w1 = nn.Linear(dim, hidden_dim, bias=False)
        self.w2 = nn.Linear(hidden_dim, dim, bias=False)
        self.w3 = nn.Linear(dim, hidden_dim, bias=False)

    def heads(self, x: Tensor, n_heads: int) -> Tensor:
        """(batch, seq, n_heads * head_size) -> (batch, n_heads, seq, head_size)."""
        return x.unflatten(-1, (n_heads, self.config.head_size)).transpose(1, 2)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x (batch, seq, dim)."""
        n_heads, n_kv_heads = self.config.n_heads, self.config.n_kv_heads
        h = self.rms_att_weight(x)
        q = rope(self.heads(self.wq(h), n_heads), cos, sin)
        k = rope(self.heads(self.wk(h), n_kv_heads), cos, sin)
        v = self.heads(self.wv(h), n_kv_heads)
        group = n_heads // n_kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.wo(mixed.transpose(1, 2).flatten(-2))
        h = self.rms_ffn_weight(x)
        return x + self.w2(functional.silu(self.w1(h)) * self.w3(h))


class Transformer(nn.Module):
    """Llama 2 with a tied classifier and no biases."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding_table = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layers))
        self.rms_final_weight = RMSNorm(config.dim)
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                # Smaller where a layer writes to the residual stream, as in llama2.c.
                shrink = name.endswith(("wo.weight", "w2.weight"))
                std = 0.02 / math.sqrt(2 * config.n_layers) if shrink else 0.02
                nn.init.normal_(weight, std=std)
        # Larger than llama2.c's 0.02: the embeddings of names must differ by more than the part
        # they learn in common, or the model takes long to copy the right name.
        nn.init.normal_(self.token_embedding_table.weight, std=config.dim**-0.5)
        half = config.head_size // 2
        inverse = config.rope_theta ** (-torch.arange(half) / half)
        angle = torch.outer(torch.arange(config.seq_len), inverse)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (batch, seq) -> logits (batch, seq, vocab_size)."""
        seq = tokens.shape[1]
        x = self.token_embedding_table(tokens)
        for layer in self.layers:
            x = layer(x, self.cos[:seq], self.sin[:seq])
        return functional.linear(self.rms_final_weight(x), self.token_embedding_table.weight)

    def loss(self, rows: Tensor) -> Tensor:
        """Mean negative log likelihood of rows (batch, seq + 1), in nats per token of a story."""
        logits = self(rows[:, :-1]).flatten(0, 1)
        return functional.cross_entropy(logits, rows[:, 1:].flatten(), ignore_index=PAD)

    def parameters_by_key(self) -> dict[Key, nn.Parameter]:
        """Return the parameters by their keys in a checkpoint."""
        n_layers = self.config.n_layers
        return {
            (name, layer): self.get_parameter(
                f"{name}.weight" if layer is None else f"layers.{layer}.{name}.weight"
            )
            for name, layer in (*norm_keys(n_layers), *matrix_keys(n_layers))
        }

    def save(self, path: Path) -> None:
        """Write the model as llama2.c's version 2 file, in int8."""
        weights = {key: p.detach().numpy() for key, p in self.parameters_by_key().items()}
        export_model(path, self.config, weights)

    @classmethod
    def load(cls, path: Path) -> Transformer:
        """Read a llama2.c checkpoint and dequantise it."""
        with load_checkpoint(path) as checkpoint, torch.no_grad():
            model = cls(checkpoint.config)
            for (name, layer), p in model.parameters_by_key().items():
                p.copy_(torch.from_numpy(checkpoint.tensor(name, layer)))
        return model


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised steps: all directions of a matrix learn equally fast.

    References
    ----------
    K. Jordan et al., Muon (2024), https://kellerjordan.github.io/posts/muon
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": 0.95})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for p in group["params"]:
                by_shape.setdefault(p.shape, []).append(p)
            for (rows, n), params in by_shape.items():
                updates = []
                for p in params:
                    velocity = self.state[p].setdefault("velocity", torch.zeros_like(p))
                    assert p.grad is not None
                    velocity.lerp_(p.grad, 1 - group["momentum"])
                    updates.append(p.grad.lerp(velocity, group["momentum"]))
                # One batched product for all matrices of a shape is faster than many small ones.
                steps = orthogonal(torch.stack(updates)) * max(1.0, rows / n) ** 0.5
                for p, change in zip(params, steps, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(change, alpha=-group["lr"])


def orthogonal(x: Tensor) -> Tensor:
    """Push all singular values of x (batch, rows, n) towards 1: Newton-Schulz, 5 rounds."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x


class Stories:
    """Token rows, one story each, from its BOS to the next story's BOS, as in generation."""

    def __init__(self, tokenizer: Path, seed: int) -> None:
        import sentencepiece

        self.processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
        self.seed = seed

    def rows(self, key: str, count: int, seq_len: int) -> Tensor:
        """Return (count, longest) tokens, at most seq_len + 1 long, padded at the end.

        The same key gives the same rows.
        """
        rng = random.Random(f"{self.seed} {key}")
        stories = [[BOS, *self.processor.encode(story(rng)), BOS] for _ in range(count)]
        rows = [torch.tensor(tokens[: seq_len + 1]) for tokens in stories]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)


def rate(step: int, args: TrainArgs) -> float:
    """Return the factor of the learning rate: warm-up, plateau, cosine to zero."""
    if step < args.warmup:
        return (step + 1) / args.warmup
    left = (args.steps - step) / (args.cooldown * args.steps)
    return 0.5 - 0.5 * math.cos(math.pi * min(1.0, left))


@torch.no_grad()
def validation_loss(model: Transformer, data: Stories, rows: int = 64) -> float:
    """Return the loss on held-out stories, in nats per token."""
    return model.loss(data.rows("validation", rows, model.config.seq_len)).item()


class Trainer:
    """A model, its optimisers and the progress of the run, saved and resumed together."""

    def __init__(self, config: ModelConfig, args: TrainArgs, tokenizer: Path) -> None:
        torch.manual_seed(args.seed)
        self.args = args
        self.model = Transformer(config)
        layers = self.model.layers.parameters()
        matrices = [p for p in layers if p.ndim == 2]
        ids = {id(p) for p in matrices}
        others = [p for p in self.model.parameters() if id(p) not in ids]
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(matrices, args.muon_lr, args.weight_decay),
            torch.optim.AdamW(others, args.adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self.peaks = (args.muon_lr, args.adam_lr)
        self.data = Stories(tokenizer, args.seed)
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        self.recent: deque[float] = deque(maxlen=100)  # Losses of the last steps.

    def train_step(self) -> float:
        """Do one step and return its loss in nats per token."""
        begin = time.perf_counter()
        if self.step < self.args.short_steps:
            size, length = self.args.short_batch_size, self.args.short_len
        else:
            size, length = self.args.batch_size, self.model.config.seq_len
        rows = self.data.rows(f"step {self.step}", size, length)
        loss = self.model.loss(rows)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.args.clip)
        for optimizer, peak in zip(self.optimizers, self.peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * rate(self.step, self.args)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.tokens += int((rows[:, 1:] != PAD).sum())
        self.recent.append(loss.item())
        self.seconds += time.perf_counter() - begin
        return self.recent[-1]

    def save(self, path: Path) -> None:
        """Write a checkpoint to continue from."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "recent": list(self.recent),
            "shape": asdict(self.model.config),
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomically(path, buffer.getvalue())

    def load(self, path: Path) -> None:
        """Continue from a checkpoint; raise ValueError if its shape differs."""
        state = torch.load(path, weights_only=True)
        if state["shape"] != asdict(self.model.config):
            raise ValueError(f"{path} holds the shape {state['shape']}: choose another --out")
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.tokens = state["step"], state["tokens"]
        self.seconds = state["seconds"]
        self.recent = deque(state["recent"], maxlen=self.recent.maxlen)


def train(
    out: Path, config: ModelConfig, args: TrainArgs, save_every: int = 100
) -> dict[str, object]:
    """Train a model in a folder, or resume its training, and export it.

    Parameters
    ----------
    out : Path
        Receives ``tokenizer.model``, ``tokenizer.bin``, ``stories.bin``, ``report.json`` and the
        checkpoints ``last.pt`` (to resume) and ``stable.pt`` (before the cosine began).
    config : ModelConfig
    args : TrainArgs
    save_every : int
        Steps between checkpoints.

    Returns
    -------
    dict
        The measured losses, speed and sizes, as in ``report.json``.
    """
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = out / "tokenizer.model"
    states = ("last.pt", "stable.pt")
    theirs = [name for name in ("stories.bin", "tokenizer.bin") if (out / name).exists()]
    if theirs and not any((out / name).exists() for name in states):
        raise LlamaPynqError(
            f"{out} holds {' and '.join(theirs)}, but no training of this command to resume: "
            "choose another --out, or delete them"
        )
    if not tokenizer.exists():
        train_tokenizer(tokenizer, vocab_size=config.vocab_size)
    export_tokenizer(tokenizer, out / "tokenizer.bin")
    trainer = Trainer(config, args, tokenizer)
    stable = int(args.steps * (1 - args.cooldown))
    # To extend a finished run, delete last.pt: its learning rate has decayed to zero.
    for name in states:
        if (out / name).exists():
            trainer.load(out / name)
            break
    interrupted = False

    def interrupt(*_: object) -> None:
        nonlocal interrupted
        interrupted = True

    # Ctrl-C takes effect between two steps, where model and optimisers are consistent.
    previous = signal.signal(signal.SIGINT, interrupt)
    try:
        while trainer.step < args.steps and not interrupted:
            trainer.train_step()
            if trainer.step == stable:
                trainer.save(out / "stable.pt")
            if trainer.step % save_every == 0:
                trainer.save(out / "last.pt")
                speed = trainer.tokens / trainer.seconds
                print(
                    f"step {trainer.step} train {np.mean(trainer.recent):.4f} "
                    f"val {validation_loss(trainer.model, trainer.data, 8):.4f} "
                    f"{speed:.0f} tokens/s {trainer.seconds:.0f} s",
                    flush=True,
                )
    finally:
        signal.signal(signal.SIGINT, previous)
    if interrupted:
        print(f"stopped after step {trainer.step}: the same command continues")
    trainer.save(out / "last.pt")
    return export(out, trainer)


def export(out: Path, trainer: Trainer) -> dict[str, object]:
    """Write ``stories.bin``, read it back to evaluate it, and write ``report.json``."""
    model, data = trainer.model, trainer.data
    model.save(out / "stories.bin")
    report = {
        "shape": asdict(model.config),
        "training": asdict(trainer.args),
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": trainer.step,
        "tokens": trainer.tokens,
        "seconds": round(trainer.seconds),
        "tokens_per_second": round(trainer.tokens / max(trainer.seconds, 1e-9)),
        "train_loss_last_100": round(float(np.mean(trainer.recent)), 4),
        "val_loss_float": round(validation_loss(model, data), 4),
        "val_loss_int8": round(validation_loss(Transformer.load(out / "stories.bin"), data), 4),
        "stories_bin_bytes": (out / "stories.bin").stat().st_size,
        "torch": torch.__version__,
    }
    write_atomically(out / "report.json", json.dumps(report, indent=2).encode() + b"\n")
    return report


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m llama_pynq.train", description=__doc__)
    parser.add_argument("--out", required=True, help="output folder")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of PyTorch")
    shape = {name: size for name, size in asdict(SHAPE).items() if type(size) is int}
    for name, default in (shape | asdict(TrainArgs())).items():
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=type(default), default=default, help=f"{default}")
    options = vars(parser.parse_args(argv))
    torch.set_num_threads(options["threads"])
    config = replace(SHAPE, **{name: options[name] for name in shape})
    args = TrainArgs(**{name: options[name] for name in asdict(TrainArgs())})
    try:
        print(json.dumps(train(user_path(options["out"]), config, args), indent=2))
    except LlamaPynqError as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
