"""Results of text generation: text, tokens, log-probabilities, timings and energy."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import NamedTuple

from llama_pynq.energy import Energy


def shorten(text: str, most: int) -> str:
    """Cut a text to at most `most` characters, the last one an ellipsis."""
    return text if len(text) <= most else text[: most - 1] + "…"


@dataclass
class TokenLogprob:
    """Log-probability of one token under the untempered model.

    Attributes
    ----------
    token : int
    logprob : float or None
        Natural logarithm; None for a prompt's first token, which nothing comes before.
    top : dict of int to float
        The most probable tokens and their log-probabilities, as many as requested.
    """

    token: int
    logprob: float | None
    top: dict[int, float]


@dataclass(repr=False)
class Generation:
    """Result of `Llama.generate` for one prompt.

    Attributes
    ----------
    text : str
        The generated text; with `echo`, behind the prompt.
    tokens : list of int
        The generated tokens only: no prompt, no stop token.
    prompt_tokens : list of int
        The prompt as the model saw it, BOS included.
    finish_reason : {"stop", "length", "closed"}
        "stop": the model ended the text (BOS or EOS), or a stop string occurred; "length":
        max_new_tokens, or the context, is used up; "closed": the consumer closed the stream.
    seed : int
        The seed used, given or drawn.
    tokens_per_second : float or None
        Tokens after the first, over the time they took; measured on the host's clock. In a
        batch, for this sequence alone. None for a text of one token or none.
    prompt_seconds, decode_seconds : float
        Prefill up to the first token, and decode of the others; measured. Time that the device
        waits for a stream's consumer does not count. Neither does a call that ended unobserved
        while the consumer was busy; `tokens_per_second` leaves out its tokens, too.
    logprobs : list of TokenLogprob or None
        One per generated token, with `echo` behind one per token of the prompt; None unless
        requested.
    device : str
        Name of the device.
    energy : Energy or None
        Energy of the call, all of its sequences together; None without `power`.
    energy_note : str
        Why there is no `energy`; empty if there is.
    stop_reason : str, int or None
        The stop string, or the token (BOS or EOS), that ended the text; None if neither did.
    """

    text: str
    tokens: list[int]
    prompt_tokens: list[int]
    finish_reason: str
    seed: int
    tokens_per_second: float | None
    prompt_seconds: float
    decode_seconds: float
    logprobs: list[TokenLogprob] | None
    device: str
    energy: Energy | None = None
    energy_note: str = "no power recorder was given: generate(..., power=recorder)"
    stop_reason: str | int | None = None

    @property
    def summary(self) -> str:
        """One line: tokens, speed, why the text ended, seed and device."""
        n, rate = len(self.tokens), self.tokens_per_second
        speed = "" if rate is None else f", {rate:,.1f} tokens/s (measured)"
        return (
            f"{n} token{'s' * (n != 1)}{speed}, ended by {self.finish_reason!r}, "
            f"seed {self.seed}, on {self.device}"
        )

    def __repr__(self) -> str:
        return f"Generation({shorten(self.text, 60)!r}, {self.summary})"

    def _repr_html_(self) -> str:
        note = self.summary if self.energy is None else f"{self.summary}; {self.energy}"
        return (
            f'<div style="white-space:pre-wrap">{escape(self.text)}</div>'
            f"<small>{escape(note)}</small>"
        )


class StreamToken(NamedTuple):
    """One item of `Llama.stream_tokens`.

    Attributes
    ----------
    token : int or None
        None for text that was held back to the end: it could have become a stop string, or was
        part of a character.
    text : str
        New text; may be empty.
    logprob : TokenLogprob or None
        None unless requested.
    more : bool
        True if the next item follows at once: it is from the same call of the kernel.
    """

    token: int | None
    text: str
    logprob: TokenLogprob | None
    more: bool = False
