"""Chat templates: a list of messages as the text that a model was trained to continue.

A template is a program of the model's file, in Jinja. It runs in Jinja's sandbox, with limits of
time and size: see docs/security.md.

References
----------
transformers, utils/chat_template_utils.py: the environment, its filters and functions.
"""

from __future__ import annotations

import datetime
import importlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from functools import cache
from types import FrameType
from typing import Any

from llama_pynq.errors import RequestError, TemplateError

Message = Mapping[str, Any]
"""A message: ``{"role": "user", "content": "..."}``."""

MAX_TEMPLATE_CHARACTERS = 1 << 18
_MAX_TEXT = 1 << 20  # of a rendered text, and of a value in a template, in characters
_MAX_SECONDS = 2.0
_MAX_RANGE = 10_000

TEMPLATES = {
    "chatml": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "llama2": (
        "{% set system = namespace(text='') %}{% for m in messages %}"
        "{% if m['role'] == 'system' %}"
        "{% set system.text = '<<SYS>>\n' + m['content'] + '\n<</SYS>>\n\n' %}"
        "{% elif m['role'] == 'user' %}"
        "{{ bos_token }}[INST] {{ system.text + m['content'] }} [/INST]{% set system.text = '' %}"
        "{% else %} {{ m['content'] }} {{ eos_token }}{% endif %}{% endfor %}"
    ),
    "llama3": (
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}"
        "<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    ),
    "zephyr": (
        "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{{ eos_token }}\n"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    ),
}
"""Templates by name, for models whose file has none."""


class ChatTemplate:
    """A chat template.

    Parameters
    ----------
    source : str
        In Jinja; or a key of `TEMPLATES`.
    bos_token, eos_token : str
        Names of these tokens, which templates use.

    Raises
    ------
    TemplateError
        If the template is too long, or not Jinja.
    """

    def __init__(self, source: str, bos_token: str = "", eos_token: str = "") -> None:
        self.source = TEMPLATES.get(source, source)
        if len(self.source) > MAX_TEMPLATE_CHARACTERS:
            raise TemplateError(
                f"the chat template has {len(self.source)} characters: at most "
                f"{MAX_TEMPLATE_CHARACTERS} are read"
            )
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        try:
            self._template = _environment().from_string(self.source)
        except Exception as error:  # TemplateSyntaxError; RecursionError of deep nesting
            raise TemplateError(f"the chat template cannot be read: {_said(error)}") from None

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """Return the text of a conversation.

        Parameters
        ----------
        messages : sequence of mappings
            Each with a ``role``, such as "system", "user" or "assistant", and a ``content``.
        add_generation_prompt : bool
            End the text where the model's answer begins.

        Returns
        -------
        str
            With the names of special tokens in it: encode it with ``parse_special=True``.

        Raises
        ------
        RequestError
            If a message lacks its role or its content.
        TemplateError
            If the template refuses the messages, fails, or takes too long.
        """
        values = {
            **self._tokens,
            "messages": checked_messages(messages),
            "add_generation_prompt": add_generation_prompt,
        }
        parts: list[str] = []
        size = 0
        try:
            with _Deadline(_MAX_SECONDS):
                for part in self._template.generate(values):
                    parts.append(part)
                    size += len(part)
                    if size > _MAX_TEXT:
                        raise TemplateError(f"the text has more than {_MAX_TEXT} characters")
        except Exception as error:  # whatever a template of a file does
            raise TemplateError(f"the chat template failed: {_said(error)}") from None
        return "".join(parts)


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__


def checked_messages(messages: object) -> list[dict[str, Any]]:
    """Return messages as dictionaries.

    Raises
    ------
    RequestError
        If they are not a list of messages.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, (str, bytes)):
        raise RequestError(
            f"messages is {messages!r}: it must be a list of messages, such as "
            '[{"role": "user", "content": "Hello"}]'
        )
    if not messages:
        raise RequestError("messages is empty: give at least one message")
    checked = []
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise RequestError(f"message {i} is {message!r}: it must have a role and a content")
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                raise RequestError(f"message {i}: its {key} is {message.get(key)!r}, not a text")
        checked.append(dict(message))
    return checked


class _Deadline:
    """Ends a template's code in this thread after a time, by tracing its lines.

    A value that ``~`` makes is looked at here, too: the sandbox does not see that operator.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._before: Any = None

    def __enter__(self) -> None:
        self._before = sys.gettrace()
        if self._before is None:  # a debugger's trace stays
            sys.settrace(self._trace)

    def __exit__(self, *exc: object) -> None:
        if self._before is None:
            sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, value: Any) -> Any:
        if time.monotonic() > self._end:
            raise TemplateError(f"it takes more than {_MAX_SECONDS:g} s")
        if frame.f_code.co_filename == "<template>":
            for name, local in frame.f_locals.items():
                if name.startswith(("l_", "t_")) and isinstance(local, str):
                    _check_size(len(local))
        return self._trace


@cache
def _environment() -> Any:
    """Jinja's sandbox with the filters and functions that transformers offers."""
    try:
        sandbox: Any = importlib.import_module("jinja2.sandbox")
    except ImportError:
        raise TemplateError(
            "Jinja is not installed here, which chat templates need: pip install "
            "'llama_pynq[models]', or jinja2 alone"
        ) from None

    class Sandbox(sandbox.ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset({"*", "**", "%", "+"})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if operator == "**":
                raise TemplateError("it raises a number to a power, which is not allowed")
            if operator == "%" and isinstance(left, str):
                raise TemplateError("it formats a text with %, which is not allowed: use ~")
            if operator == "*":
                for many, times in ((left, right), (right, left)):
                    if isinstance(many, (str, list, tuple)) and isinstance(times, int):
                        _check_size(_size(many) * times)
            result = super().call_binop(context, operator, left, right)
            _check_size(_size(result))
            return result

        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            return attr not in _STRETCHING and super().is_safe_attribute(obj, attr, value)

        def wrap_str_format(self, value: Any) -> None:
            """Leave `str.format` to `is_safe_attribute`: its widths make a text of any length."""

        def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
            text = getattr(obj, "__self__", None)
            if isinstance(text, str):  # str.replace and str.join make a text of any length
                pieces = sum(_size(arg) for arg in (*args, *kwargs.values()))
                _check_size(len(text) + (len(text) + 1) * pieces)
            return super().call(context, obj, *args, **kwargs)

    base: Any = importlib.import_module("jinja2.utils").Namespace

    class Namespace(base):
        def __setitem__(self, name: str, value: Any) -> None:
            super().__setitem__(name, _checked(value))

    environment = Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols"],
        finalize=_checked,
    )
    usual = environment.filters

    def replace(text: Any, old: str, new: str, count: int | None = None) -> str:
        text = str(_checked(text))
        _check_size(len(text) + (len(text) + 1) * len(str(_checked(new))))
        return text.replace(str(old), str(new), -1 if count is None else count)

    def join(values: Any, d: str = "", attribute: Any = None) -> str:
        values = [_checked(value) for value in values]
        if attribute is not None:
            values = [environment.getitem(value, attribute) for value in values]
        _check_size(sum(map(_size, values)) + len(d) * len(values))
        return d.join(map(str, values))

    def tojson(value: Any, indent: int | None = None) -> str:
        _checked(value)
        if indent is not None and not 0 <= indent <= 16:
            raise TemplateError(f"it indents JSON by {indent}")
        return json.dumps(value, ensure_ascii=False, indent=indent)

    for name in _FILTERS_LEFT_OUT:
        usual.pop(name, None)
    usual.update(tojson=tojson, replace=replace, join=join, indent=_indent)
    environment.globals.pop("lipsum", None)
    environment.globals.update(
        raise_exception=_raise_exception,
        strftime_now=_strftime_now,
        range=_bounded_range,
        namespace=Namespace,
    )
    return environment


_FILTERS_LEFT_OUT = (
    "batch",
    "center",
    "format",
    "pprint",
    "slice",
    "urlize",
    "wordwrap",
    "xmlattr",
)
_STRETCHING = ("ljust", "rjust", "center", "zfill", "expandtabs", "format", "format_map")
"""Methods of str that make a text of any length."""


def _size(value: Any) -> int:
    """Characters that a value holds, roughly."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(_size(key) + _size(part) for key, part in value.items()) + 1
    if isinstance(value, (list, tuple)):
        return sum(map(_size, value)) + 1
    if isinstance(value, int) and value.bit_length() > 1000:
        raise TemplateError("a number has more than 300 digits")
    return 1


def _check_size(size: int) -> None:
    if size > _MAX_TEXT:
        raise TemplateError(f"a value has more than {_MAX_TEXT} characters")


def _checked(value: Any) -> Any:
    _check_size(_size(value))
    return value


def _raise_exception(message: str) -> None:
    raise TemplateError(str(message)[:1000])


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form[:100])


def _bounded_range(*numbers: int) -> range:
    found = range(*numbers)
    if len(found) > _MAX_RANGE:
        raise TemplateError(f"a range has more than {_MAX_RANGE} numbers")
    return found


def _indent(text: str, width: int = 4, first: bool = False, blank: bool = False) -> str:
    """Jinja's filter of this name, for widths that a text may have."""
    if not isinstance(width, int) or not 0 <= width <= 64:
        raise TemplateError(f"it indents a text by {width!r}")
    lines = str(_checked(text)).split("\n")
    return "\n".join(
        " " * width + line if (i or first) and (line or blank) else line
        for i, line in enumerate(lines)
    )
