"""Lesson notebooks; `llama-pynq notebooks` and `pynq get-notebooks` copy them to a folder."""

from typing import Any


def deliver_notebooks(
    device: str | None, src_path: str, dst_path: str, name: str, folder: bool = False, **_: Any
) -> None:
    """Copy the notebooks for `pynq get-notebooks`.

    Used in place of PYNQ's own copy, which overwrites with --force; this one keeps backups.

    Parameters
    ----------
    device, src_path
        Ignored: every device gets the same notebooks, from this package.
    dst_path, name : str
        Target folder, and the name of a subfolder in it.
    folder : bool
        Whether to copy to the folder `name` in `dst_path`.
    """
    from pathlib import Path

    from llama_pynq.labs.files import copy_notebooks

    copy_notebooks(Path(dst_path, name) if folder else Path(dst_path), reset=True)
