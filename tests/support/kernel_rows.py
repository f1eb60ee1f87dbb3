"""Rows of the kernel's calls."""

from llama_pynq.kernel.abi import RowFlag, make_rows


def sampled(token=1, position=0):
    rows = make_rows(1)
    rows["token"], rows["position"], rows["flags"] = token, position, RowFlag.SAMPLE
    return rows
