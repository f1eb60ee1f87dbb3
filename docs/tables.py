"""Regenerate what the pages say of every board, from its header and `llama_pynq.boards`.

python docs/tables.py, or make tables; a test compares the pages.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path

from llama_pynq.boards import MIB, Board, Resources, boards
from llama_pynq.checkpoint.shapes import STORIES
from llama_pynq.estimate.capacity import buffers
from llama_pynq.estimate.resources import beyond, resources, share
from llama_pynq.kernel.config import board_constants, board_headers, kernel_of
from llama_pynq.kernel.limits import KernelLimits
from llama_pynq.kernel.registers import Argument, arguments, registers
from llama_pynq.vitis.platforms import PLATFORMS, Zynq

REPOSITORY = Path(__file__).resolve().parent.parent


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


# ---- boards ---------------------------------------------------------------------------


def _list(names: Iterable[str]) -> str:
    """Join names as prose does: a, b and c."""
    names = list(names)
    if len(names) < 2:
        return "".join(names) or "none"
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _header(board: Board) -> str:
    return f"`{board.header.replace('-', '_')}.h`"


def readme_boards() -> str:
    """The README's sentence."""
    built = [board.title for board in boards().values() if not board.no_build]
    return f"There are configs and build scripts for {_list(built)}.\n"


def builds() -> str:
    """Boards that can be built, by the tool that links them, and those that cannot."""
    tools = {"Vivado": [], "v++": []}
    for name, platform in PLATFORMS.items():
        tools["Vivado" if isinstance(platform, Zynq) else "v++"].append(name)
    text = "; ".join(f"{', '.join(names)} ({tool})" for tool, names in tools.items())
    others = [f"{b.title} ({b.no_build})" for b in boards().values() if b.no_build]
    return f"Boards: {text}. Not built here: {_list(others)}.\n"


def status_table() -> str:
    """What was verified for each board."""
    text = _head("board", "same bits, compiled by g++", "build", "synthesised", "run on a board")
    for board in boards().values():
        platform = PLATFORMS.get(board.name)
        tool = "Vivado" if isinstance(platform, Zynq) else "v++"
        dry = board.no_build or f"dry run without {tool}"
        text += _row(board.title, _header(board), dry, board.synthesised, board.run)
    return text


def resource_table() -> str:
    """Estimated resources of each board's kernel against those that it has."""
    names = [f.name for f in fields(Resources)]
    text = _head("board", "config header", *map(str.upper, names), "contiguous, MiB")
    for board in boards().values():
        used, has = resources(board), board.resources
        parts = share(used, has)
        cells = [_part(getattr(used, n), getattr(has, n), getattr(parts, n)) for n in names]
        sizes, port = buffers(STORIES["stories110M"], board)
        total, pool = sum(sizes) + kernel_of(board).kv_ports * port, board.memory.pool_bytes
        text += _row(
            board.title, _header(board), *cells, _part(total / MIB, pool / MIB, total / pool)
        )
    return text


def _part(used: float, has: float, part: float) -> str:
    return f"{used:,.0f} of {has:,.0f} = {part:.0%}" if has else "–"


def crowded() -> str:
    """Boards whose kernel takes more than `LIMITS` of the device."""
    names = [b.title for b in boards().values() if beyond(resources(b), b.resources)]
    return (
        f"Beyond those limits: {_list(names)}.\nExpect to lower `kClockMhz` in their headers, or "
        "that the kernel does not fit.\n"
    )


def sheet_table() -> str:
    """Documents to check each board's figures against."""
    text = _head("board", "vendor and documents to check against", "checked")
    for board in boards().values():
        text += _row(board.title, board.sheet, "yes" if board.verified else "not all figures")
    return text


# ---- pages ----------------------------------------------------------------------------

PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"boards": readme_boards},
    "docs/builds.md": {"builds": builds},
    "docs/boards.md": {
        "status": status_table, "resources": resource_table, "crowded": crowded,
        "sheets": sheet_table,
    },
    "docs/kernel.md": {
        "registers": register_table, "limits": limits_table, "buffers": buffer_table,
    },
}  # fmt: skip


def updated(page: str, text: str) -> str:
    """Return a page's text with what stands between its markers regenerated.

    Raises
    ------
    ValueError
        If a marker is missing.
    """
    for name, table in PAGES[page].items():
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
        head, found, rest = text.partition(begin)
        _, ended, tail = rest.partition(end)
        if not (found and ended):
            raise ValueError(f"the lines {begin.strip()!r} and {end.strip()!r} must be there")
        text = f"{head}{begin}{table()}{end}{tail}"
    return text


if __name__ == "__main__":
    for page in PAGES:
        path = REPOSITORY / page
        path.write_text(updated(page, path.read_text(encoding="utf-8")), encoding="utf-8")
