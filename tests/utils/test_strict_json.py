"""JSON of files that other programs wrote."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_pynq.utils import strict_json
from llama_pynq.utils.strict_json import shown

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64) | st.floats(allow_nan=False,
                                                                         allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)  # fmt: skip


@given(VALUES)
def test_what_json_writes_is_read(value):
    assert strict_json.parse(json.dumps(value)) == value


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not JSON: Expecting value at character 0"),
        ('{"a": 1} x', "not JSON: Extra data at character 9"),
        ("[" * 100_000, "nests too deeply"),
        ('{"a":' * 100_000, "nests too deeply"),
        ('{"a": 1, "a": 1}', "the key 'a' comes twice"),
        ('[{"b": {"a": 1, "b": 2, "a": 3}}]', "the key 'a' comes twice"),
        ("NaN", "NaN is no JSON number"),
        ("[-Infinity]", "-Infinity is no JSON number"),
        ("[1e999]", "the number '1e999' is beyond float64"),
        ("9" * 100_000, "the integer 99999999999999999999... has 100000 characters"),
        (r'{"\ud800": 1}', r"'\\ud800' holds half of a surrogate pair"),
        (r'{"a": "\udc00"}', r"'\\udc00' holds half of a surrogate pair"),
        ('{"a": "\x01"}', "Invalid control character"),
    ],
)
def test_what_is_no_json_is_a_value_error(text, why):
    with pytest.raises(ValueError, match=why):
        strict_json.parse(text)


def test_key_twice_among_a_million_is_found_at_once():
    keys = ", ".join(f'"{i}": 0' for i in range(200_000))
    with pytest.raises(ValueError, match="comes twice"):
        strict_json.parse(f'{{{keys}, "199999": 0}}')


def test_value_in_a_message_is_short_and_printable():
    assert shown("a\x1b[31m\n") == r"'a\x1b[31m\n'"
    assert len(shown(list(range(10_000)))) < 70


@settings(deadline=None)
@given(VALUES)
def test_bytes_are_utf8_with_or_without_a_mark(values):
    assert strict_json.parse(json.dumps(values).encode()) == values
    assert strict_json.parse(json.dumps(values, ensure_ascii=False).encode("utf-8-sig")) == values


@settings(deadline=None)
@given(st.binary() | st.text(alphabet='[]{}":,\\u dD8019eE-NaInfty').map(str.encode))
def test_any_bytes_are_a_value_or_a_value_error(data):
    try:
        values = strict_json.parse(data)
    except ValueError as error:
        assert str(error)
    else:
        json.dumps(values, allow_nan=False, ensure_ascii=False).encode()
