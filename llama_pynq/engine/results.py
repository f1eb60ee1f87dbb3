"""What a generated text comes as."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from llama_pynq.energy import Energy


@dataclass
class TokenLogprob:
    """Log-probability of one generated token under the untempered model.

    Attributes
    ----------
    token : int
    logprob : float
        Natural logarithm.
    top : dict of int to float
        The most probable tokens and theirs, as many as asked for.
    """

    token: int
    logprob: float
    top: dict[int, float]


@dataclass
class Generation:
    """What `Llama.generate` returns.

    Attributes
    ----------
    text : str
        The generated text, without the prompt.
    tokens : list of int
        What the model produced, and nothing else: no prompt, no stop token.
    prompt_tokens : list of int
        The prompt as the model saw it, BOS included.
    finish_reason : {"stop", "length", "closed"}
        "stop": the model ended the text (BOS or EOS) or a stop string came; "length":
        max_new_tokens, or the context, is used up; "closed": who read the stream left off.
    seed : int
        The seed used, also where it was drawn.
    tokens_per_second : float
        Tokens after the first, over the time they took; measured on the host's clock. In a
        batch, of this sequence alone. NaN for a text of one token or none.
    prompt_seconds, decode_seconds : float
        Reading the prompt, up to the first token; and generating the others. Measured. What
        a reader of a stream does while the device waits does not count; nor, in the rate either,
        does a call that ended while the reader was away, for nobody saw when.
    logprobs : list of TokenLogprob or None
        One an output token, where asked for.
    device : str
        Name of the device.
    energy : Energy or None
        What the call took, all of its sequences together, where `power` was given.
    energy_note : str
        Why there is no `energy`; empty if there is.
    """

    text: str
    tokens: list[int]
    prompt_tokens: list[int]
    finish_reason: str
    seed: int
    tokens_per_second: float
    prompt_seconds: float
    decode_seconds: float
    logprobs: list[TokenLogprob] | None
    device: str
    energy: Energy | None = None
    energy_note: str = "no power recorder was given: generate(..., power=recorder)"


class StreamToken(NamedTuple):
    """What `Llama.stream_tokens` gives for each token.

    Attributes
    ----------
    token : int or None
        None: text held back, for it could have become a stop string, or was half a character.
    text : str
        What the text grows by; may be empty.
    logprob : TokenLogprob or None
        Where asked for.
    more : bool
        The next one follows at once: the same call of the kernel brought it.
    """

    token: int | None
    text: str
    logprob: TokenLogprob | None
    more: bool = False
