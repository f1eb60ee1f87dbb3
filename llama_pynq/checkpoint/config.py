"""The shape of a model, in llama2.c's vocabulary."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from llama_pynq.errors import CheckpointError

LAYER_TENSORS = (
    "rms_att_weight",
    "rms_ffn_weight",
    "wq",
    "wk",
    "wv",
    "wo",
    "w1",
    "w2",
    "w3",
)
"""Tensors that exist once per layer; reading one needs ``layer``."""

GLOBAL_TENSORS = ("token_embedding_table", "rms_final_weight", "wcls")
"""Tensors that exist once."""

NORMS = ("rms_att_weight", "rms_ffn_weight", "rms_final_weight")
"""Tensors that are vectors; float32 in every checkpoint version."""


MAX_DIMENSION = 1 << 20
"""Largest size in a file, whatever its format: far above any Llama's, and the kernel's limit."""


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a model, in llama2.c's vocabulary.

    Parameters
    ----------
    dim : int
        Width of the residual stream.
    hidden_dim : int
        Width of the feed-forward layer.
    n_layers, n_heads, n_kv_heads : int
    vocab_size : int
    seq_len : int
        Longest sequence the model was trained for.
    tied : bool
        The classifier shares the token embedding's weights.
    rope_theta : float
        Base of the rotary embedding. No checkpoint version stores it; llama2.c
        trains and runs with 10000.
    rope_divisors : tuple of float, optional
        Scaled rotary embedding: what the frequency of each pair of a head is divided by.

    Raises
    ------
    CheckpointError
        If a size is not positive, dim is not a multiple of n_heads, the head size is odd,
        n_heads is not a multiple of n_kv_heads, or rope_theta or a divisor is not positive and
        finite.
    """

    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    seq_len: int
    tied: bool
    rope_theta: float = 10000.0
    rope_divisors: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for item in fields(self)[:7]:
            value = getattr(self, item.name)
            if value <= 0:
                raise CheckpointError(f"{item.name} is {value}: it must be positive")
        if self.dim % self.n_heads:
            raise CheckpointError(
                f"dim {self.dim} is not a multiple of n_heads {self.n_heads}: "
                f"every head needs the same size"
            )
        if self.head_size % 2:
            raise CheckpointError(
                f"head size {self.head_size} (dim {self.dim} / n_heads {self.n_heads}) is odd: "
                f"the rotary embedding turns pairs of numbers, so it must be even"
            )
        if self.n_heads % self.n_kv_heads:
            raise CheckpointError(
                f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}: "
                f"every key-value head must serve the same number of heads"
            )
        theta = self.rope_theta
        if isinstance(theta, bool) or not 2.0**-126 <= theta <= 3.4e38:  # as float32, too
            raise CheckpointError(
                f"rope_theta is {self.rope_theta}: it must be positive and finite "
                f"(Llama 2 and llama2.c use 10000)"
            )

        divisors = self.rope_divisors
        if divisors is not None and not (
            len(divisors) == self.head_size // 2
            and all(math.isfinite(d) and d > 0 for d in divisors)
        ):
            raise CheckpointError(
                f"rope_divisors are {divisors}: they must be {self.head_size // 2} positive and "
                "finite numbers, one for each pair of a head"
            )

    @property
    def head_size(self) -> int:
        """Values per attention head: dim / n_heads."""
        return self.dim // self.n_heads

    @property
    def kv_dim(self) -> int:
        """Rows of wk and wv: n_kv_heads * head_size."""
        return self.n_kv_heads * self.head_size

    @property
    def n_params(self) -> int:
        """Trained parameters; a tied classifier counts once."""
        names = [name for name in (*GLOBAL_TENSORS, *LAYER_TENSORS) if self.stores(name)]
        return sum(self.tensor_copies(name) * math.prod(self.tensor_shape(name)) for name in names)

    def tensor_shape(self, name: str) -> tuple[int, ...]:
        """Shape of one (layer's) tensor: (out, in), or (dim,) for a norm.

        Parameters
        ----------
        name : str
            One of LAYER_TENSORS or GLOBAL_TENSORS.
        """
        return {
            "token_embedding_table": (self.vocab_size, self.dim),
            "rms_att_weight": (self.dim,),
            "rms_ffn_weight": (self.dim,),
            "rms_final_weight": (self.dim,),
            "wq": (self.dim, self.dim),
            "wk": (self.kv_dim, self.dim),
            "wv": (self.kv_dim, self.dim),
            "wo": (self.dim, self.dim),
            "w1": (self.hidden_dim, self.dim),
            "w2": (self.dim, self.hidden_dim),
            "w3": (self.hidden_dim, self.dim),
            "wcls": (self.vocab_size, self.dim),
        }[name]

    def tensor_copies(self, name: str) -> int:
        """Number of tensors of that name: n_layers, or 1.

        Parameters
        ----------
        name : str
            One of LAYER_TENSORS or GLOBAL_TENSORS.
        """
        return self.n_layers if name in LAYER_TENSORS else 1

    def stores(self, name: str) -> bool:
        """Whether a file holds the tensor; a tied classifier is stored as the embedding.

        Parameters
        ----------
        name : str
            One of LAYER_TENSORS or GLOBAL_TENSORS.
        """
        return name != "wcls" or not self.tied
