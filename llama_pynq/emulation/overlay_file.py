"""Read the file of an emulated overlay."""

from __future__ import annotations

import hashlib
from pathlib import Path

from llama_pynq.device.bitfiles import read_overlay
from llama_pynq.emulation import hwh, trust, xclbin
from llama_pynq.emulation.container import Container
from llama_pynq.errors import OverlayMismatch


def read(path: Path) -> tuple[Container, str]:
    """Read and check an overlay file; for a .bit, check its .hwh, too. No code of it runs.

    Parameters
    ----------
    path : Path

    Returns
    -------
    Container
    str
        SHA-256 of the file, from which the container was read: `trust.check` takes it.

    Raises
    ------
    OverlayMismatch
        If the file is damaged or was not built for emulation.
    """
    if path.suffix not in (".xclbin", ".bit"):
        raise OverlayMismatch(
            f"{path} is neither an .xclbin nor a .bit file; emulated devices load these."
        )
    data = read_overlay(path)
    digest = trust.digest_of(data)
    if path.suffix == ".xclbin":
        return xclbin.read(data, str(path)), digest
    contents = hwh.read_bit(data, str(path))
    metadata = path.with_suffix(".hwh")
    if not metadata.exists():
        raise OverlayMismatch(
            f"{metadata} is missing: PYNQ needs it beside {path.name}. "
            f"Copy both files of the overlay."
        )
    if hashlib.sha256(read_overlay(metadata)).hexdigest() != contents.metadata_sha256:
        raise OverlayMismatch(
            f"{metadata} does not belong to {path.name}: they come from different builds. "
            f"Copy both files of one build."
        )
    return contents, digest
