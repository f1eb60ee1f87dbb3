"""Numbered lessons; `llama-pynq notebooks` and `pynq get-notebooks` copy them to work on."""

from typing import Any


def deliver_notebooks(
    device: str | None, src_path: str, dst_path: str, name: str, folder: bool = False, **_: Any
) -> None:
    """What `pynq get-notebooks` calls in place of its own, which overwrites with --force.

    Parameters
    ----------
    device, src_path
        Not needed: every device has the same notebooks, and they lie here.
    dst_path, name : str
    folder : bool
        Whether to deliver to the folder `name` in `dst_path`.
    """
    from pathlib import Path

    from llama_pynq.labs.files import copy_notebooks

    copy_notebooks(Path(dst_path, name) if folder else Path(dst_path), reset=True)
