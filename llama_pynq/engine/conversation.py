"""Conversations: messages as the ids of a prompt, by the model's chat template."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from llama_pynq.errors import RequestError
from llama_pynq.tokenizer.base import Tokenizer
from llama_pynq.tokenizer.chat import TEMPLATES, ChatTemplate, Message


class Conversation:
    """Makes prompts of conversations.

    Parameters
    ----------
    tokenizer : Tokenizer
    template : str
        In Jinja, or a name of `tokenizer.chat.TEMPLATES`; empty if the model has none.
    model : str
        Name of the model, for messages.
    context : int
        Tokens that the model's context holds.
    """

    def __init__(self, tokenizer: Tokenizer, template: str, model: str, context: int) -> None:
        self._tokenizer, self._source = tokenizer, template
        self._model, self._context = model, context

    @cached_property
    def template(self) -> ChatTemplate:
        """The template that makes a text of a conversation.

        Raises
        ------
        RequestError
            If the model has none.
        TemplateError
            If it cannot be read.
        """
        if not self._source:
            raise RequestError(
                f"{self._model} has no chat template: name the one that the model was trained "
                "with, load_model(..., chat_template=NAME) or --template NAME, of "
                f"{', '.join(TEMPLATES)}"
            )
        special, tokenizer = self._tokenizer.special, self._tokenizer
        names = special.get(tokenizer.bos_id, ""), special.get(tokenizer.eos_id, "")
        return ChatTemplate(self._source, *names)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation, up to where the model's answer begins.

        Parameters
        ----------
        messages : sequence of mappings
            Each with a ``role`` and a ``content``.

        Raises
        ------
        RequestError
            If the model has no template, a message is malformed, or the conversation exceeds the
            context.
        TemplateError
            If the template refuses the messages.
        """
        text = self.template.render(messages)
        tokens = self._tokenizer.encode(text, parse_special=True)
        if len(tokens) > self._context:
            raise RequestError(
                f"the conversation is {len(tokens)} tokens long, the context holds "
                f"{self._context}: leave out its oldest messages, or begin a new one"
            )
        return tokens
