"""Foreign files and JSON, read within bounds."""

import os

import pytest

from llama_pynq.utils.bounded import read_file


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
