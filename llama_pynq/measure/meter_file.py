"""CSV files that the tools of power meters write, while they write them.

The tools agree on little: encoding, separator, decimal sign, names and units of the columns
differ. What cannot be told apart is refused, never guessed.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from llama_pynq.errors import RequestError
from llama_pynq.measure.rails import SensorLost

_WANTED = (
    "it must name a column 'watts', or 'volts' and 'amperes', with or without a unit, such as "
    "Power [mW]"
)
_TAIL_BYTES = 1 << 16
"""The last line is looked for in these, so that a sample takes no longer in a long recording."""

_MOST_BYTES_OF_REMARKS = 1 << 24
_MOST_PREAMBLE_LINES = 100
_EXAMPLES = 100

_BOMS = (  # UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)

# ---- columns --------------------------------------------------------------------------

_PREFIXES = {"": 1.0, "m": 1e-3, "u": 1e-6, "\u00b5": 1e-6, "\u03bc": 1e-6, "k": 1e3}
_UNITS = {
    prefix + letter: (quantity, scale)
    for letter, quantity in (("W", "watts"), ("V", "volts"), ("A", "amperes"))
    for prefix, scale in _PREFIXES.items()
}
_LOWER_UNITS = {unit.lower(): found for unit, found in _UNITS.items()}
_WRITTEN_OUT = {
    prefix + name: (quantity, scale)
    for prefix, scale in (("", 1.0), ("milli", 1e-3), ("micro", 1e-6), ("kilo", 1e3))
    for quantity, names in (
        ("watts", ("watt", "watts")),
        ("volts", ("volt", "volts")),
        ("amperes", ("amp", "amps", "ampere", "amperes")),
    )
    for name in names
}
_SYMBOLS = {"P": "watts", "U": "volts", "I": "amperes"}
_QUANTITIES = {
    "power": "watts", "voltage": "volts", "current": "amperes",
    **{name: quantity for name, (quantity, scale) in _WRITTEN_OUT.items() if scale == 1},
    **{symbol.lower(): quantity for symbol, quantity in _SYMBOLS.items()},
}  # fmt: skip
_BUSES = {  # no quantities by themselves, but what a unit of one letter belongs to
    letter + place: quantity
    for letter, quantity in (("p", "watts"), ("v", "volts"), ("u", "volts"), ("i", "amperes"))
    for place in ("bus", "in", "out", "dd", "cc", "load")
}
_NAMES = {**_QUANTITIES, **_BUSES}
_NOT_THE_POWER = frozenset("max maximum min minimum peak limit rated set setpoint shunt".split())

_OTHER_UNITS = frozenset(
    "s sec secs second seconds ms us \u00b5s \u03bcs ns min h hh:mm:ss hz khz % c k ohm mohm "
    "\u00b0c nw pw nv va var wh mwh kwh ah mah j mj dbm hp btu/h".split()
)

_ALL_DIGITS = re.compile(r"[\d.,+-]+")
_BRACKETED = re.compile(r"(.*?)[\s_]*[\[({]\s*([^\])}]*?)\s*[\])}]")
_DIVIDED = re.compile(r"(.*?)\s*(?:/|,|\bin\b)\s*(\w+)")
_JOINED = re.compile(r"(.+)[\s_-]+([^\W_]+)")


@dataclass(frozen=True)
class _Column:
    index: int
    name: str  # as in the header
    quantity: str
    scale: float  # to W, V, A
    rank: int  # 0: the name that the documentation gives; 1: the quantity's; 2: another
    stated: bool  # the header gives the unit; "watts" is a name


def _unit(text: str) -> tuple[str, float] | None:
    """Return a unit's quantity and scale; None for MW and MV, which may be mW in capitals."""
    if text in _UNITS:
        return _UNITS[text]
    if text[:1] == "M" and text.upper() == text:
        return None
    return _LOWER_UNITS.get(text.lower()) or _WRITTEN_OUT.get(text.lower())


def _column(index: int, cell: str) -> _Column | None:
    """Return what a cell of the header names; None if it is no power, voltage or current."""
    plain = cell.strip().strip("\"'").strip()
    alone = _unit(plain) if plain[:1].isupper() or len(plain) > 1 else None
    if plain in _SYMBOLS:
        alone = _SYMBOLS[plain], 1.0
    elif len(plain) > 1 and plain.lower() in _QUANTITIES:
        alone = _WRITTEN_OUT.get(plain.lower(), (_QUANTITIES[plain.lower()], 1.0))
    if alone is not None:
        rank = 0 if plain.lower() == alone[0] else 1
        return _Column(index, plain, *alone, rank, stated=alone[1] != 1)
    found, words = None, set[str]()
    for pattern in (_BRACKETED, _DIVIDED, _JOINED):
        if match := pattern.fullmatch(plain):
            found = None if _ALL_DIGITS.fullmatch(match[1]) else _unit(match[2])  # 5.2 W is data
            if found is None and pattern is _BRACKETED and re.search(r"[\[({]", match[1]):
                return _column(index, match[1])  # Power [W] (mean)
            words = set(re.split(r"[\W_]+", match[1].lower())) - {"", "in"}
            if "current" in words and words & {"power", "voltage"}:
                words -= {"current"}  # the present one
            named = {quantity for word, quantity in _NAMES.items() if word in words}
            if pattern is _JOINED and len(match[2]) == 1 and not named:
                found = None  # "phase A" is no current
            if found is not None or pattern is _BRACKETED:
                break
    if found is None or named - {found[0]} or words & _NOT_THE_POWER:
        return None
    rank = 1 if not words - set(_QUANTITIES) else 2
    return _Column(index, plain, *found, rank, stated=True)


def _factors(cells: Sequence[str]) -> list[_Column]:
    """Return the columns whose product is the power; empty if the cells name none.

    Raises
    ------
    RequestError
        If two columns are equally likely.
    """
    found = [column for i, cell in enumerate(cells) if (column := _column(i, cell))]
    for wanted in (["watts"], ["volts", "amperes"]):
        chosen = []
        for quantity in wanted:
            named = [column for column in found if column.quantity == quantity]
            best = [c for c in named if c.rank == min(other.rank for other in named)]
            if len(best) > 1:
                names = " and ".join(repr(column.name) for column in best)
                raise RequestError(
                    f"the columns {names} both hold {quantity}: keep one, or give a function that "
                    "reads the meter"
                )
            chosen += best
        if len(chosen) == len(wanted):
            return chosen
    return []


# ---- lines ----------------------------------------------------------------------------

_WHITE_SPACE, _ONE_CELL = " ", ""
_SEPARATORS = ("\t", ";", "|", ",", _WHITE_SPACE, _ONE_CELL)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_DECIMAL_COMMA = re.compile(r"[+-]?(\d+,\d*|,\d+)([eE][+-]?\d+)?", re.ASCII)
_COMMA_GROUPS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d*)?", re.ASCII)
_POINT_GROUPS = re.compile(r"[+-]?[1-9]\d{0,2}((\.\d{3})+,\d*|(\.\d{3}){2,})", re.ASCII)
_ONE_POINT_GROUP = re.compile(r"[+-]?[1-9]\d{0,2}\.\d{3}", re.ASCII)


def _split(line: str, separator: str) -> list[str]:
    """Return a line's cells."""
    if separator == _WHITE_SPACE:
        return line.split()
    if separator == _ONE_CELL:
        return [line.strip().strip('"')]
    return next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])


def _number(cell: str, separator: str) -> float:
    """Return a cell's number.

    Raises
    ------
    ValueError
        If it is none, or could be two.
    """
    text = cell.strip().strip("'").strip()
    if _NUMBER.fullmatch(text):
        return float(text)
    groups = _COMMA_GROUPS.fullmatch(text)
    if groups and (groups[2] or text.count(",") > 1):
        return float(text.replace(",", ""))
    if groups and separator in (",", _ONE_CELL):
        raise ValueError("its comma may be a decimal sign or a separator of thousands")
    if _DECIMAL_COMMA.fullmatch(text):
        return float(text.replace(",", "."))
    if _POINT_GROUPS.fullmatch(text):
        return float(text.replace(".", "").replace(",", "."))
    raise ValueError("not a number")


def _complete_lines(text: str) -> list[str]:
    """Return the lines that have ended; the last may still be in the writing."""
    end = "\n" if "\n" in text else "\r"
    return [line.rstrip("\r") for line in text.split(end)[:-1]]


def _is_remark(line: str) -> bool:
    """Whether a line is a comment, or blank."""
    return line.lstrip()[:1] in ("#", ";") or not line.strip()


_UNIT_IN_WORDS = re.compile(
    r"[#;\s]*(?:units?|power|voltage|current)\s*(?:units?)?\s*(?:[:=]|\b(?:in|is|are)\b)\s*(\w+)\W*",
    re.IGNORECASE,
)
_WITH_UNIT = re.compile(r"(.*\d[.,]?)\s*([^\W\d]+)")
_IN_BRACKETS = re.compile(r"[\[({]\s*(.*?)\s*[\])}]")


def _is_unit(cell: str) -> bool:
    """Whether a cell is a unit, of whatever quantity, or something in brackets."""
    if _IN_BRACKETS.fullmatch(cell):
        return True
    known = cell.lower() in _OTHER_UNITS or cell.lower() in _LOWER_UNITS
    return (known or _unit(cell) is not None or cell == "nA") and cell not in ("w", "v", "a")


@dataclass(frozen=True)
class _Layout:
    """What the header says about the lines."""

    encoding: str
    header: int  # lines up to the header's end
    separator: str
    cells: int
    columns: Sequence[_Column]
    broken: int | None = None  # lines between header and first power; None: there is no power yet
    refused: str = ""  # why the row of units cannot be applied
    text: str = ""  # the header's last line

    def read_on(self, lines: Sequence[str]) -> _Layout:
        """Return this layout with what the lines up to the first power say."""
        layout, broken = replace(self, text=lines[self.header - 1]), 0
        for line in lines[: self.header - 1]:  # a preamble may give the unit: Y_Unit_Label, mW
            units = layout.row_of_units(line)
            above = layout.with_units(units, self.header, layout.text) if units else layout
            layout = above if units and not above.refused else layout.with_words(line)
        for number, line in enumerate(lines[self.header :], self.header + 1):
            if layout.is_data(line) and layout.fits(line):
                return replace(layout, broken=broken)
            units = layout.row_of_units(line)
            if units and not layout.refused:
                layout = layout.with_units(units, number, line)
            elif not units and not layout.is_data(line) and not layout.refused:
                layout = layout.with_words(line, number)
            elif not units:
                broken += 1
        return layout

    def row_of_units(self, line: str) -> list[str]:
        """Return the cells of a line that holds units; empty for another line."""
        bare = re.sub(r"^units?\s*[:=]?\s+", "", line.strip().lstrip("#; \t"), flags=re.IGNORECASE)
        for text in (line, bare) if _is_remark(line) else (line,):
            with contextlib.suppress(csv.Error):
                cells = [cell.strip().strip("\"'").strip() for cell in _split(text, self.separator)]
                units = [_is_unit(cell) for cell in cells if cell]
                if any(cell[:1].isdigit() for cell in cells):
                    continue
                if all(units) if _is_remark(line) else any(units):
                    used = any(c.index < len(cells) and cells[c.index] for c in self.columns)
                    if units and (used or _is_remark(line)):
                        return cells
        return []

    def with_words(self, line: str, number: int | None = None) -> _Layout:
        """Return this layout, refused if a line such as ``# power in mW`` gives another unit."""
        match = _UNIT_IN_WORDS.fullmatch(line)
        unit = _unit(match[1]) if match else None
        for column in self.columns:
            other = unit and not column.stated and unit[1] != column.scale
            if unit and other and unit[0] == column.quantity:
                refused = (
                    f"line {number or self.header}: {column.name!r} has no unit, and "
                    f"{line.strip()[:40]!r} is not applied: write it into the header, as Power [mW]"
                )
                return replace(self, refused=refused)
        return self

    def with_units(self, cells: Sequence[str], number: int, line: str) -> _Layout:
        """Return this layout with the units of a row, with which the header ends."""
        columns = []
        for column in self.columns:
            cell = cells[column.index] if column.index < len(cells) else ""
            inside = _IN_BRACKETS.fullmatch(cell)
            unit = _unit(inside[1] if inside else cell)
            if unit is None or unit[0] != column.quantity:
                what = f"is no unit of {column.quantity}"
            elif column.stated and unit[1] != column.scale:
                what = "is another unit than the header's"
            else:
                columns.append(replace(column, scale=unit[1], stated=True))
                continue
            refused = (
                f"line {number} is a row of units, but {cell[:40]!r} under {column.name!r} {what}"
            )
            return replace(self, refused=refused)
        return replace(self, header=number, columns=columns, text=line)

    def is_data(self, line: str) -> bool:
        """Whether a line is neither a comment nor blank; ``;`` may end an empty first cell."""
        if not _is_remark(line):
            return True
        return (
            self.separator == ";" and line.startswith(";") and len(_split(line, ";")) == self.cells
        )

    def watts(self, line: str) -> float:
        """Return a line's power.

        Raises
        ------
        ValueError
            If it has none; the message goes on after the line's name.
        """
        try:
            cells = _split(line, self.separator)
        except csv.Error as error:
            raise ValueError(f"is unreadable: {error}") from error
        if any(cell.strip() for cell in cells[self.cells :]):
            raise ValueError(
                f"has {len(cells)} cells, the header {self.cells}; numbers with a decimal comma "
                "need another separator, or quotes"
            )
        factors = []
        for column in self.columns:
            cell = cells[column.index].strip() if column.index < len(cells) else ""
            if not cell:
                raise ValueError(f"has nothing in the column {column.name!r}")
            try:
                factors.append(self._factor(cell, column))
            except ValueError as error:
                raise ValueError(
                    f"has {cell[:40]!r} in the column {column.name!r}: {error}"
                ) from error
        return math.prod(factors)

    def _factor(self, cell: str, column: _Column) -> float:
        """Return a cell's watts, volts or amperes; its own unit goes before the header's."""
        match = _WITH_UNIT.fullmatch(cell)
        unit = _unit(match[2]) if match else None
        if match is None or unit is None:
            return _number(cell, self.separator) * column.scale
        if unit[0] != column.quantity:
            raise ValueError(f"its unit is none of {column.quantity}")
        return _number(match[1], self.separator) * unit[1]

    def _numbers(self, line: str, indices: Iterable[int]) -> Iterator[str]:
        """Yield the text of a line's numbers, without their units."""
        with contextlib.suppress(csv.Error):
            cells = _split(line, self.separator)
            for index in indices:
                cell = cells[index].strip().strip("'").strip() if index < len(cells) else ""
                match = _WITH_UNIT.fullmatch(cell)
                yield match[1] if match and _unit(match[2]) else cell

    def doubt(self, line: str, others: Iterable[str]) -> str:
        """Return why a line's point may be no decimal sign, in the light of others; or nothing."""
        doubtful = {
            column.index: (number, column.name)
            for column in self.columns
            for number in self._numbers(line, [column.index])
            if _ONE_POINT_GROUP.fullmatch(number)
        }
        if not doubtful:
            return ""
        commas = False
        for text in (line, *others):
            if self.is_data(text):
                commas = commas or any(
                    map(self._has_decimal_comma, self._numbers(text, range(self.cells)))
                )
                for index in list(doubtful):
                    number = next(self._numbers(text, [index]), "")
                    if "." in number and _NUMBER.fullmatch(number):
                        if not _ONE_POINT_GROUP.fullmatch(number):
                            del doubtful[index]  # a decimal point
        if not commas or not doubtful:
            return ""
        number, name = next(iter(doubtful.values()))
        return (
            f"has {number!r} in the column {name!r}: its point may be a decimal sign or a "
            "separator of thousands, for the file has decimal commas"
        )

    def _has_decimal_comma(self, number: str) -> bool:
        if self.separator in (",", _ONE_CELL) and _COMMA_GROUPS.fullmatch(number):
            return False
        return bool(
            _DECIMAL_COMMA.fullmatch(number) or "," in number and _POINT_GROUPS.fullmatch(number)
        )

    def fits(self, line: str) -> bool:
        """Whether a line has a power."""
        try:
            self.watts(line)
        except ValueError:
            return False
        return True


# ---- the header -----------------------------------------------------------------------


def _encoding(data: bytes) -> str:
    """Return the encoding of a file by its first bytes."""
    for bom, encoding in _BOMS:
        if data.startswith(bom):
            return encoding
    if data[1:2] == b"\0":
        return "utf-16-le"
    if data[:1] == b"\0":
        return "utf-16-be"
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError:
        return "cp1252"
    return "utf-8"


def _layout(path: Path, data: bytes) -> _Layout:
    """Return the layout of a file that begins with `data`.

    Raises
    ------
    RequestError
        If there is no header yet, or it names no power.
    """
    rows, first, doubt, waiting = 0, "", "", list[_Layout]()
    encoding = _encoding(data)
    lines = _complete_lines(data.decode(encoding, "replace").lstrip("\ufeff"))
    separators: Sequence[str] = _SEPARATORS
    in_a_remark: _Layout | None = None  # numpy.savetxt writes the header as a comment
    for i, line in enumerate(lines):
        if named := re.fullmatch(r"\"?sep=(.)\"?", line.strip()):  # for Excel
            separators = (named[1], _ONE_CELL)
        elif in_a_remark is not None and in_a_remark.header > i:
            continue  # its units
        elif _is_remark(line):
            # As it is, too: pandas begins the header with a separator, for the index.
            for text in (line, line.strip().lstrip("#;").strip()):
                with contextlib.suppress(RequestError, csv.Error):
                    layouts = _layouts(text, encoding, i + 1, separators)
                    best = _best(layouts, lines)
                    in_a_remark = best if best and best.broken == 0 else in_a_remark
        elif in_a_remark is not None and in_a_remark.fits(line):
            return _unless_refused(in_a_remark, path)
        else:
            rows += 1
            if rows > _MOST_PREAMBLE_LINES:
                break
            where = f"{path}, line {i + 1}"
            best = None
            try:
                best = _best(_layouts(line, encoding, i + 1, separators), lines)
            except RequestError as error:
                doubt = doubt or f"{where}: {error}"
            except csv.Error as error:
                first = first or f"{where}: {error}"
            if best and best.broken == 0:
                return _unless_refused(best, path)
            if best and (rows == 1 or all(map(_is_remark, lines[best.header :]))):
                waiting.append(best)
            first = first or f"{where} is {line[:80]!r}: {_WANTED}"
    if waiting:
        return _unless_refused(waiting[0], path)
    if first:
        raise RequestError(doubt or first)
    where = f"{path}, line {len(lines) + 1}"
    begun = "there is no complete line yet" if data else "the file is empty"
    if any(line.strip() for line in lines):
        begun = "there is no complete line yet below the comments"
    raise _NoHeaderYet(f"{where}: {begun}: {_WANTED}")


class _NoHeaderYet(RequestError):
    """The lines so far are comments."""


def _best(layouts: Sequence[_Layout], lines: Sequence[str]) -> _Layout | None:
    """Return the reading of a header that the lines below fit soonest; else the most likely."""
    read = [layout.read_on(lines) for layout in layouts]
    return min(read, key=lambda x: math.inf if x.broken is None else x.broken, default=None)


def _unless_refused(layout: _Layout, path: Path) -> _Layout:
    if layout.refused:
        raise RequestError(f"{path}, {layout.refused}")
    return layout


def _layouts(line: str, encoding: str, number: int, separators: Sequence[str]) -> list[_Layout]:
    """Return the readings of a header, the most likely first.

    Raises
    ------
    RequestError
        If every reading has two columns that are equally likely.
    """
    found, doubt = list[_Layout](), None
    divided, bracketed = False, re.search(r"[\[({]", line) is not None
    for separator in separators:
        cells = _split(line, separator)
        if separator in (_WHITE_SPACE, _ONE_CELL) and divided:
            continue
        if separator != _ONE_CELL and (len(cells) < 2 or separator == _WHITE_SPACE and bracketed):
            continue  # Power [W] is one cell
        divided = divided or separator not in (_WHITE_SPACE, _ONE_CELL)
        try:
            columns = _factors(cells)
        except RequestError as error:
            doubt = doubt or error
            continue
        other_words = len(line.split()) > 1 and any(column.rank > 1 for column in columns)
        if separator == _ONE_CELL and other_words and not bracketed:
            continue  # time watts are two cells
        if columns:
            found.append(_Layout(encoding, number, separator, len(cells), columns))
    if doubt is not None and not found:
        raise doubt
    return found


# ---- the file -------------------------------------------------------------------------


class MeterFile:
    """The file that a power meter's tool writes: its last complete line is the present power.

    Parameters
    ----------
    path : Path

    Raises
    ------
    RequestError
        If the file cannot be read, or its header names no power.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._begin, self._layout = self._read_header()
        except OSError as error:
            raise RequestError(
                f"the meter's file {path} cannot be read: {error.strerror}"
            ) from error

    def watts(self) -> float:
        """Return the power of the last complete line.

        Raises
        ------
        SensorLost
            If there is none; the message names the file and the line.
        OSError
            If the file cannot be read.
        """
        begin = self._first_bytes(len(self._begin))
        # The tool began a new file, or a row of units may have come.
        if begin != self._begin or self._layout.broken is None:
            try:
                self._begin, self._layout = self._read_header()
            except RequestError as error:
                raise SensorLost(str(error)) from error
        for lines_after, line in enumerate(self._lines_from_the_end()):
            if line == self._layout.text:
                break
            if self._layout.is_data(line):
                try:
                    watts = self._layout.watts(line)
                except ValueError as error:
                    raise SensorLost(f"{self._where(lines_after)} {error}") from error
                if doubt := self._layout.doubt(line, self._other_lines()):
                    raise SensorLost(f"{self._where(lines_after)} {doubt}")
                return watts
        raise SensorLost(
            f"{self._path}, line {self._layout.header}: only the header so far: is the meter "
            "running?"
        )

    def _read_header(self) -> tuple[bytes, _Layout]:
        """Return the first bytes, by which a new file is told, and the layout."""
        size = _TAIL_BYTES
        while True:
            begin = self._first_bytes(size)
            try:
                return begin[:_TAIL_BYTES], _layout(self._path, begin)
            except _NoHeaderYet:
                if len(begin) < size or size >= _MOST_BYTES_OF_REMARKS:
                    raise
            size *= 4

    def _first_bytes(self, n: int) -> bytes:
        with self._path.open("rb") as file:
            return file.read(n)

    def _other_lines(self) -> Iterator[str]:
        """The first and the last lines, as examples of the file's numbers."""
        begin, first = self._begin.decode(self._layout.encoding, "replace"), self._layout.header
        yield from _complete_lines(begin)[first : first + _EXAMPLES]
        yield from islice(self._lines_from_the_end(), _EXAMPLES)

    def _lines_from_the_end(self) -> Iterator[str]:
        """Complete lines after the header, the last first."""
        layout, size = self._layout, self._path.stat().st_size
        first = max(0, size - _TAIL_BYTES) // 4 * 4  # at a whole character of UTF-16 and UTF-32
        for begin in dict.fromkeys((first, 0)):
            with self._path.open("rb") as file:
                file.seek(begin)
                text = file.read().decode(layout.encoding, "replace")
            # A tail's first line may be cut, or be the header.
            lines = _complete_lines(text)[1 if begin else layout.header :]
            if not begin or any(map(layout.is_data, lines)):
                yield from reversed(lines)
                return

    def _where(self, lines_after: int) -> str:
        """Return file and line for a message; only then are the lines counted."""
        text = self._path.read_bytes().decode(self._layout.encoding, "replace")
        return f"{self._path}, line {max(1, len(_complete_lines(text)) - lines_after)}"
