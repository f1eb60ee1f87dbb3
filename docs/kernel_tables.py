"""Regenerate the tables of docs/kernel.md from the boards' headers: run this after a change.

python docs/kernel_tables.py
"""

import re
from pathlib import Path

from llama_pynq.boards import boards
from llama_pynq.kernel.config import board_constants, board_headers
from llama_pynq.kernel.limits import KernelLimits
from llama_pynq.kernel.registers import Argument, arguments, registers

DOCUMENT = Path(__file__).with_name("kernel.md")


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |\n"


def _head(*cells: str) -> str:
    return _row(*cells) + "|" + "---|" * len(cells) + "\n"


def _family(name: str) -> tuple[str, int]:
    """Split ``kv_read_3`` into (``kv_read_``, 3); a name without a family into (name, 0)."""
    found = re.fullmatch(r"(kv_read_|kv_write_|weights_)(\d+)", name)
    return (found[1], int(found[2])) if found else (name, 0)


def _letter(family: str) -> str:
    return "c" if family == "weights_" else "p"


def _ports(board: str) -> tuple[int, int]:
    constants = board_constants(board_headers()[board])
    return constants["kChannels"], constants["kKvPorts"]


def _offsets(board: str) -> dict[str, str]:
    """Offset of each argument; for a family, the first offset and the stride."""
    at: dict[str, list[int]] = {}
    for register in registers(arguments(*_ports(board))):
        at.setdefault(_family(register.name)[0], []).append(register.offset)
    result = {}
    for family, offsets in at.items():
        result[family] = f"{offsets[0]:#05x}"
        if family.endswith("_"):
            steps = {b - a for a, b in zip(offsets, offsets[1:])} or {0}
            assert len(steps) == 1, "a family's registers are evenly spaced"
            if step := steps.pop():
                result[family] += f" + {step:#04x}·{_letter(family)}"
    return result


def register_table(alveo: str = "u250", zynq: str = "pynq-z2") -> str:
    """Arguments and their offsets on two boards; one line per family of ports."""

    def title(board: str) -> str:
        channels, ports = _ports(board)
        return f"`{board}`: {channels} channels, {ports} KV port{'s' * (ports > 1)}"

    text = _head("argument", "C++ type", "AXI bundle", title(alveo), title(zynq))
    one, other = _offsets(alveo), _offsets(zynq)
    firsts: dict[str, Argument] = {}
    for argument in arguments(*_ports(alveo)):
        firsts.setdefault(_family(argument.name)[0], argument)
    for family, argument in firsts.items():
        name = family + _letter(family) if family.endswith("_") else family
        bundle = re.sub(r"\d+$", _letter(family), argument.bundle or "–")
        text += _row(f"`{name}`", f"`{argument.ctype}`", bundle, one[family], other[family])
    return text


def _all_limits() -> list[KernelLimits]:
    found = {b: KernelLimits.from_header(path) for b, path in board_headers().items()}
    order = ["host", *dict.fromkeys(board.header for board in boards().values())]
    assert sorted(order) == sorted(found), "every header is some board's"
    return [found[name] for name in order]


def limits_table() -> str:
    """Limits of each config header."""
    text = _head(
        "header", "weights: channels × bytes a beat", "tile rows", "KV: ports × bytes a beat",
        "rows", "steps", "dim", "hidden_dim", "head_size", "layers", "seq_len", "top logits",
    )  # fmt: skip
    for k in _all_limits():
        text += _row(
            f"`{k.board.replace('-', '_')}.h`", f"{k.channels} × {k.beat_bytes}", k.tile_rows,
            f"{k.kv_ports} × {k.kv_beat_bytes}", k.max_rows, k.max_steps, f"{k.max_dim:,}",
            f"{k.max_hidden_dim:,}", k.max_head_size, k.max_layers, f"{k.max_seq_len:,}",
            k.top_logits,
        )  # fmt: skip
    return text


def buffer_table(names: tuple[str, ...] = ("pynq-z2", "u250", "host")) -> str:
    """Bytes of the buffers whose size depends on the header alone."""
    limits = {k.board: k for k in _all_limits()}
    text = _head("buffer", *names)
    sizes = {
        "request": lambda k: 4 * k.request_words,
        "model": lambda k: 4 * k.model_words,
        "results": lambda k: 4 * k.results_words,
        "activations": lambda k: 4 * k.max_rows * k.max_dim,
        "profile, all steps": lambda k: 4 * k.profile_step_words * k.max_steps,
    }
    for name, size in sizes.items():
        text += _row(name, *(f"{size(limits[board]):,}" for board in names))
    return text


TABLES = {"registers": register_table, "limits": limits_table, "buffers": buffer_table}


def updated(text: str) -> str:
    """Return a document with the tables between its markers regenerated.

    Raises
    ------
    ValueError
        If a marker is missing.
    """
    for name, table in TABLES.items():
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
        head, found, rest = text.partition(begin)
        _, ended, tail = rest.partition(end)
        if not (found and ended):
            raise ValueError(f"the lines {begin.strip()!r} and {end.strip()!r} must be there")
        text = f"{head}{begin}{table()}{end}{tail}"
    return text


if __name__ == "__main__":
    DOCUMENT.write_text(updated(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
