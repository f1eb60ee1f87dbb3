"""Chat templates: the conversations of the field's models, and templates that mean harm."""

import time
import tracemalloc

import pytest

from llama_pynq.errors import RequestError, TemplateError
from llama_pynq.tokenizer.chat import TEMPLATES, ChatTemplate

pytest.importorskip("jinja2", reason="no Jinja on this machine")

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
]
SMOLLM = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)


def test_templates_give_the_text_that_their_models_were_trained_on():
    texts = {name: ChatTemplate(name, "<s>", "</s>").render(MESSAGES) for name in TEMPLATES}
    assert texts == {
        "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
        "<|im_start|>assistant\n",
        "llama2": "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello </s>"
        "<s>[INST] Bye [/INST]",
        "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "zephyr": "<|system|>\nBe brief.</s>\n<|user|>\nHi</s>\n<|assistant|>\nHello</s>\n"
        "<|user|>\nBye</s>\n<|assistant|>\n",
    }


def test_template_of_a_file_is_rendered_as_transformers_does():
    """Blocks are trimmed, and the generation prompt is optional."""
    template = ChatTemplate(SMOLLM)
    text = template.render(MESSAGES[1:2])
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert template.render(MESSAGES[1:2], add_generation_prompt=False).endswith("Hi<|im_end|>\n")
    helpers = (
        "{% for m in messages %}\n    {% if loop.index > 2 %}{% break %}{% endif %}\n"
        "{{ m.role | upper }}: {{ m.content | trim | replace('e', 'E') }};\n{% endfor %}\n"
        "{{ messages | map(attribute='role') | join(', ') }} {{ [1, 'ä'] | tojson }}"
        "{{ strftime_now('%Y') | length }}"
    )
    assert ChatTemplate(helpers).render(MESSAGES) == (
        'SYSTEM: BE briEf.;\nUSER: Hi;\nsystem, user, assistant, user [1, "ä"]4'
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('no system role here') }}", "failed: no system role here"),
        ("{{ x.y.z }}", "failed: 'x' is undefined"),
        ("{{", "cannot be read: unexpected 'end of template'"),
        ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__'"),
        ("{{ cycler.__init__.__globals__ }}", "is unsafe"),
        ("{{ messages.append(1) }}", "is unsafe"),
        ("{% include 'x' %}", "failed"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}", "2 s"),
        ("{% for i in range(10**9) %}{% endfor %}", "power"),
        ("{% for i in range(100001) %}{% endfor %}", "a range has more than 10000 numbers"),
        ("{% for i in range(9999) %}{{ 'a' * 1000 }}{% endfor %}", "more than 1048576 characters"),
        ("{{ 'a' * 1000000000 }}", "more than 1048576 characters"),
        ("{{ ['a' * 1000] * 1000 * 1000 }}", "more than 1048576 characters"),
        ("{{ 'a'.ljust(1000000000) }}", "'ljust' of 'str' object is unsafe"),
        ("{{ '{:1000000000}'.format(1) }}", "'format' of 'str' object is unsafe"),
        ("{{ '%1000000000d' % 1 }}", "it formats a text with %"),
        ("{{ '%1000000000d' | format(1) }}", "No filter named 'format'"),
        ("{{ 'a' | indent(1000000000) }}", "it indents a text by 1000000000"),
        ("{{ 1 | tojson(indent=1000000000) }}", "it indents JSON by 1000000000"),
        ("{{ 'aa'.replace('', 'b' * 900000) }}", "more than 1048576 characters"),
        ("{{ 'aa' | replace('a', 'b' * 900000) }}", "more than 1048576 characters"),
        ("{{ ('b' * 900000).join(['a', 'b', 'c']) }}", "more than 1048576 characters"),
        ("{{ ['a', 'b', 'c'] | join('b' * 900000) }}", "more than 1048576 characters"),
        ("{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}"
         "{% endfor %}", "more than 1048576 characters"),
        ("{% set x = 'ab' %}" + "{% set x = x ~ x %}\n" * 40, "more than 1048576 characters"),
        ("{% set x = 99999999999 %}" + "{% set x = x * x %}\n" * 40, "more than 300 digits"),
    ],
)  # fmt: skip
def test_template_that_means_harm_ends_with_a_message(source, message):
    start = time.monotonic()
    tracemalloc.start()
    with pytest.raises(TemplateError) as caught:
        ChatTemplate(source).render(MESSAGES)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert message in str(caught.value)
    assert peak < 200 << 20
    assert time.monotonic() - start < 100  # far less: it would take hours, or for ever
    assert ChatTemplate("chatml").render(MESSAGES), "the next call works"


def test_template_of_any_size_is_refused():
    with pytest.raises(TemplateError, match="the chat template has 300000 characters"):
        ChatTemplate("a" * 300_000)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("hello", "messages is 'hello': it must be a list of messages"),
        ([], "messages is empty"),
        (["hello"], "message 0 is 'hello': it must have a role and a content"),
        ([{"role": "user"}], "message 0: its content is None, not a text"),
        ([MESSAGES[0], {"role": 1, "content": "a"}], "message 1: its role is 1, not a text"),
    ],
)
def test_malformed_messages_are_named(messages, message):
    with pytest.raises(RequestError) as caught:
        ChatTemplate("chatml").render(messages)
    assert message in str(caught.value)


def test_a_debuggers_trace_stays():
    import sys

    def trace(frame, event, value):
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        ChatTemplate("chatml").render(MESSAGES)
        kept = sys.gettrace()
    finally:
        sys.settrace(before)
    assert kept is trace
