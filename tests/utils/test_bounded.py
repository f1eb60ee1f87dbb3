"""Foreign files and JSON, read within bounds."""

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_pynq.utils.bounded import parse_json, read_file

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)  # fmt: skip


@settings(deadline=None)
@given(VALUES)
def test_json_that_python_writes_is_read(values):
    assert parse_json(json.dumps(values).encode()) == values
    assert parse_json(json.dumps(values, ensure_ascii=False).encode("utf-8-sig")) == values


@settings(deadline=None)
@given(st.binary() | st.text(alphabet='[]{}":,\\u dD8019eE-NaInfty').map(str.encode))
def test_json_of_any_bytes_is_a_value_or_a_value_error(data):
    try:
        values = parse_json(data)
    except ValueError as error:
        assert str(error)
    else:
        json.dumps(values, allow_nan=False, ensure_ascii=False).encode()


def test_file_is_read_up_to_its_bound(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(bytes(100))
    (tmp_path / "link").symlink_to(path)
    assert read_file(path, 100) == read_file(tmp_path / "link", 100) == bytes(100)
    with pytest.raises(OSError, match="it has 100 bytes, more than 99"):
        read_file(path, 99)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_file_that_is_none_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    for name in ("fifo", "zero", "folder", "none"):
        with pytest.raises(OSError) as caught:
            read_file(tmp_path / name, 10)
        assert str(tmp_path / name) in str(caught.value)
