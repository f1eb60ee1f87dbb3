"""Borders of the computer around the package: sensors, notebooks, servers, commands, variables."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import shutil
import socket
import threading
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

from fuzz.border import Border
from fuzz.mutators import FLOATS, INTEGERS, json_text, mutate_bytes, mutate_json, text
from support.board_overlays import write_overlay
from support.checkpoint_files import write_checkpoint

from llama_pynq.boards import board_key, boards, find_board
from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.cli.main import command_parser, main
from llama_pynq.emulation.build import required_features
from llama_pynq.errors import BoardNotFound, InstallError, LlamaPynqError, RequestError
from llama_pynq.labs.files import notebook_sources
from llama_pynq.labs.grade import grade, lessons, table
from llama_pynq.measure.rails import SensorLost
from llama_pynq.measure.sensors import cpu_rails, hwmon_rails, meter_rail
from llama_pynq.overlay_store.metadata import board_named
from llama_pynq.utils import download

# ---- sensors --------------------------------------------------------------------------

_METERS = [
    b"time,watts\n0,4.5\n1,4.625\n",
    b"volts,amperes\n5.1,0.9\n5.0,0.95\n",
    b'\xef\xbb\xbf"Time","Power [W]"\r\n"1","3.5"\r\n',
    b"# a comment\nTime;Watts\n1;3,5\n2;3,75\n",
    "time,watts\n0,4.5\n".encode("utf-16"),
]


def _lines(data: bytes) -> list[bytes]:
    return data.splitlines(keepends=True)


def _edit_cells(rng: Random, data: bytes) -> bytes:
    lines = [line.split(b",") for line in _lines(data)]
    if lines:
        line = rng.choice(lines)
        odd = rng.choice((text(rng), str(rng.choice(INTEGERS)), str(rng.choice(FLOATS))))
        line[rng.randrange(len(line))] = odd.encode("utf-8", "surrogatepass")
    return b"\n".join(b",".join(line) for line in lines)


def meter(folder: Path) -> Border:
    """The CSV file of a power meter."""
    path = folder / "meter.csv"

    def make(rng: Random) -> bytes:
        if rng.random() < 0.5:
            return _edit_cells(rng, rng.choice(_METERS))
        return mutate_bytes(rng, _METERS, None, _lines)

    def read(data: bytes) -> None:
        path.write_bytes(data)
        watts = meter_rail(path).watts()
        assert isinstance(watts, float) and abs(watts) < float("inf")

    return Border(make, read, (RequestError, SensorLost))


_HWMON = {
    "hwmon0/name": "ina260_u14", "hwmon0/power1_input": "4510000", "hwmon0/power1_label": "som",
    "hwmon0/update_interval": "35", "hwmon1/name": "acpitz", "hwmon1/power2_input": "1",
}  # fmt: skip
_POWERCAP = {
    "intel-rapl:0/name": "package-0", "intel-rapl:0/energy_uj": "10",
    "intel-rapl:0/max_energy_range_uj": "262143328850",
    "intel-rapl:0:0/name": "dram", "intel-rapl:0:0/energy_uj": "20",
    "intel-rapl:0:0/max_energy_range_uj": "65712999613",
    "intel-rapl:0:1/name": "core", "intel-rapl:0:1/energy_uj": "30",
    "intel-rapl:0:1/max_energy_range_uj": "65712999613",
}  # fmt: skip


def sensors(folder: Path) -> Border:
    """Linux's hwmon and powercap trees: files absent, empty, of odd contents, folders, links."""
    tree = {**{f"hwmon/{k}": v for k, v in _HWMON.items()},
            **{f"powercap/{k}": v for k, v in _POWERCAP.items()}}  # fmt: skip
    cases, rails_of_tree = iter(range(1 << 62)), 5

    def make(rng: Random) -> bytes:
        files: dict[str, Any] = {name: [value, value] for name, value in tree.items()}
        for _ in range(rng.choice((1, 2, 4))):
            name = rng.choice(list(files))
            kind = rng.randrange(7)
            if kind == 0:
                files[name] = rng.choice(("absent", "folder", "dangling"))
            else:
                old = tree.get(name, "1")
                odd = rng.choice(
                    (text(rng, old), str(rng.choice(INTEGERS)), str(rng.choice(FLOATS)))
                )
                files[name] = [old, odd] if kind < 3 else [odd, odd]
        return json.dumps(files).encode()

    def put(root: Path, files: dict[str, Any], when: int) -> None:
        for name, value in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(value, list):
                path.write_bytes(value[when].encode("utf-8", "surrogatepass"))
            elif when == 0 and value == "folder":
                path.mkdir()
            elif when == 0 and value == "dangling":
                path.symlink_to("nowhere")

    def read(data: bytes) -> bool:
        files, root = json.loads(data), folder / f"case-{next(cases)}"
        put(root, files, 0)
        found = {**hwmon_rails(root / "hwmon"), **cpu_rails(root / "powercap")}
        put(root, files, 1)  # what it reads later
        readings = 0
        for rail in found.values():
            try:
                assert abs(rail.watts()) < float("inf"), rail
                readings += 1
            except SensorLost:
                pass
        shutil.rmtree(root)
        return readings == rails_of_tree

    return Border(make, read, ())


# ---- notebooks to grade ---------------------------------------------------------------

_ANSWERS = [
    "x = 1", "-" * 100_000 + "1", "(" * 5_000, "lambda: " * 3_000 + "0", "x" + ".y" * 20_000,
    "\ud800", "a\x00b", "%magic", "!ls", "def f(:", "[" * 200 + "]" * 200, "1" * 50_000,
    "f'{" * 100, "x = '\\ud800'", "\ufeffx = 1", "é" * 10_000, "if 1:\n" + "\tif 1:\n" * 200,
    "+".join(["1"] * 20_000), "not " * 50_000 + "1", "b'\\xff'", "match x:\n case _: pass",
]  # fmt: skip


def notebook(folder: Path) -> Border:
    """A submission, read and looked through, but not run: a run starts a kernel."""
    sources = [path for path in notebook_sources() if path.name.startswith(("02", "04"))]
    corpus = [json.loads(path.read_text(encoding="utf-8")) for path in sources]
    known = lessons(sources)
    exercises = {name for lesson in known.values() for name in lesson.exercises}
    path = folder / "student" / "04_int8_by_hand.ipynb"
    path.parent.mkdir()

    def make(rng: Random) -> bytes:
        found = rng.choice(corpus)
        if rng.random() < 0.4:
            changed = json.loads(json.dumps(found))
            cell = rng.choice([c for c in changed["cells"] if c.get("id") in exercises])
            cell["source"] = rng.choice((*_ANSWERS, text(rng)))
            return json.dumps(changed).encode()
        return json_text(rng, mutate_json(rng, found))

    def read(data: bytes) -> bool:
        path.write_bytes(data)
        # Without lessons, grade() reads the file and looks through its answers, and stops before it
        # would start a kernel.
        rows = grade(path, folder, {}, 20.0)
        assert table(rows)
        states = {row.state for row in rows}
        assert states <= {"unreadable", "unknown lesson"}, rows
        return states == {"unknown lesson"}

    return Border(make, read, ())


# ---- HTTP -----------------------------------------------------------------------------

_BODY = bytes(range(256)) * 8
_RESPONSES = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 2048\r\n\r\n" + _BODY,
    b"HTTP/1.1 200 OK\r\n\r\n" + _BODY,
    b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 1000-2047/2048\r\n"
    b"Content-Length: 1048\r\n\r\n" + _BODY[1000:],
    b"HTTP/1.1 416 Range Not Satisfiable\r\nContent-Range: bytes */2048\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n400\r\n"
    + _BODY[:1024]
    + b"\r\n400\r\n"
    + _BODY[1024:]
    + b"\r\n0\r\n\r\n",
    b"HTTP/1.1 404 Not Found\r\n\r\n",
]
_HEADERS = [
    b"Content-Length: ", b"Content-Range: bytes ", b"Location: ", b"Transfer-Encoding: ",
    b"Content-Encoding: ", b"Connection: ", b"X: ",
]  # fmt: skip
_VALUES = [
    b"", b"-1", b"+5", b"1e3", b"0x10", b"99999999999999999999999", b"2048, 2048", b"\xb2", b"abc",
    b"1 000", b"1_0", b"2048", b"0-2047/2048", b"1000-/2048", b"1000-999/2048", b"-1-5/6",
    b"99999999999999999999-1/1", b"bytes", b"http://127.0.0.1:1/", b"file:///etc/passwd",
    b"ftp://localhost/x", b"//", b"http://[", b"http://localhost:99999/", b"http://localhost:x/",
    b"/\xff", b"/ a", b"chunked", b"gzip", b"data:,x", b"\xc3\xa9", b"x" * 70_000, b"javascript:1",
]  # fmt: skip


class RawServer:
    """Answers each connection with the next of some bytes, and closes it."""

    def __init__(self) -> None:
        self.answers: list[bytes] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/llama.bit"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            with connection, contextlib.suppress(OSError):
                connection.settimeout(5)
                asked = b""
                while b"\r\n\r\n" not in asked and (block := connection.recv(4096)):
                    asked += block
                connection.sendall(self.answers.pop(0) if self.answers else b"")
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(4096):
                    pass


def http(folder: Path) -> Border:
    """Responses to a download, whole or resumed: status, headers, ranges, body."""
    server, part = RawServer(), folder / "llama.bit.part"
    digest = hashlib.sha256(_BODY).hexdigest()
    known = socket.getaddrinfo

    def local(host: Any, *args: Any, **kwargs: Any) -> Any:
        # A mutant of a redirect must not leave this computer.
        if host not in ("127.0.0.1", "localhost"):
            raise socket.gaierror(f"{host!r} is not looked up here")
        return known(host, *args, **kwargs)

    socket.getaddrinfo = local
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        os.environ.pop(name, None)
        os.environ.pop(name.upper(), None)

    def one(rng: Random) -> bytes:
        if rng.random() < 0.3:
            return mutate_bytes(rng, _RESPONSES, None, _lines)
        head, blank, body = rng.choice(_RESPONSES).partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        at = rng.randrange(len(lines))
        if at == 0:
            status = rng.choice(
                (
                    b"200",
                    b"206",
                    b"301",
                    b"302",
                    b"304",
                    b"307",
                    b"308",
                    b"401",
                    b"407",
                    b"416",
                    b"500",
                    b"100",
                    b"204",
                    b"-1",
                    b"abc",
                    b"",
                )
            )
            lines[0] = b"HTTP/1.1 " + status + rng.choice((b" OK", b"", b" \xff"))
        else:
            lines[at] = rng.choice(_HEADERS) + rng.choice(_VALUES)
        if rng.random() < 0.5:
            lines.append(rng.choice(_HEADERS) + rng.choice(_VALUES))
        if rng.random() < 0.2:
            body = body[: rng.randrange(len(body) + 1)] + rng.choice((b"", b"x"))
        return b"\r\n".join(lines) + blank + body

    def make(rng: Random) -> bytes:
        answers = [
            rng.choice((one(rng), rng.choice(_RESPONSES))) for _ in range(rng.randrange(1, 4))
        ]
        have = rng.choice((0, 0, 1000, 2047, 3000))
        return json.dumps([have, [a.decode("latin-1") for a in answers]]).encode()

    def read(data: bytes) -> bool:
        have, answers = json.loads(data)
        taken = False
        for what in ("file", "small"):
            server.answers = [answer.encode("latin-1") for answer in answers]
            part.write_bytes((_BODY * 2)[:have])
            try:
                if what == "file":
                    download.fetch(server.url, part, digest, len(_BODY), lambda done, n: None)
                    assert part.read_bytes() == _BODY
                else:
                    assert len(download.read_small(server.url, 4096)[0]) <= 4096
                taken = True
            except InstallError:
                pass
        return taken

    return Border(make, read, ())


# ---- command line, environment, names -------------------------------------------------


def _files(folder: Path) -> list[str]:
    """Files for arguments: models, tokenizers, overlays, rubbish, folders."""
    config = ModelConfig(32, 64, 1, 4, 2, 512, 16, True)
    write_checkpoint(folder / "model.bin", config, 1)
    (folder / "junk.bin").write_bytes(bytes(range(256)) * 4)
    (folder / "empty").write_bytes(b"")
    (folder / "folder").mkdir()
    (folder / "submissions").mkdir()
    (folder / "submissions" / "bad.ipynb").write_text("{")
    write_overlay(folder / "overlay", "kv260")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "meter.csv").write_bytes(_METERS[0])
    return [
        "model.bin", "junk.bin", "empty", "folder", "submissions", "overlay", "overlay/llama.bit",
        "overlay/overlay.json", "dangling", "meter.csv", "new.safetensors", "none/new.bin",
        "~no-such-user/x", "junk.bin/x", "x" * 300,
    ]  # fmt: skip


def _confined(value: str) -> str:
    """A path that stays in this folder: a command may write what it names, and run as root."""
    return value.replace("\x00", "").lstrip("/").replace("..", "").replace("~/", "~no-such-user/")


_SENSIBLE = {
    "model": ["model.bin"], "output": ["new.safetensors"], "board": ["kv260", "PYNQ_Z2", "u50"],
    "file": ["overlay", "overlay/llama.bit"], "source": ["overlay", "overlay/overlay.json"],
    "meter": ["meter.csv"], "folder": ["submissions", "new"], "shape": ["stories260K"],
    "prompt": ["Once", "é 你好"], "temperature": ["0", "0.5"], "plot": ["plot.svg"],
}  # fmt: skip


def _argument(rng: Random, action: argparse.Action, files: list[str]) -> str:
    """A value for an option: often a sensible one, else an odd number or text."""
    kind = rng.random()
    if action.dest in _SENSIBLE and kind < 0.6:
        return rng.choice(_SENSIBLE[action.dest])
    if action.choices and kind < 0.6:
        return str(rng.choice(list(action.choices)))
    if action.type in (int, float) and kind < 0.8:
        odd = rng.choice((*INTEGERS[:40], *FLOATS))
        return rng.choice(("1", "2", "3", str(odd), str(rng.choice(INTEGERS))))
    if kind < 0.75:
        return rng.choice(files)
    if kind < 0.85:
        return rng.choice(("kv260", "PYNQ_Z2", "u50", "host", "u200"))
    return _confined(text(rng))


# Options that would keep a case busy for minutes, and what these cases give instead.
_SHORT = {
    "generate": ["--max-new-tokens", "2"],
    "bench": ["--max-new-tokens", "2", "--repeats", "1"],
    "selftest": ["--quick", "--shape", "no such shape"],
}


def commands(folder: Path) -> Border:
    """Arguments of every command: status 0, 1 or 2, and never a traceback."""
    template, work = folder / "template", folder / "work"
    template.mkdir()
    files = _files(template)
    _, tools = command_parser()
    parsers = {(name,): parser for name, parser in tools.choices.items()}
    for (name,), parser in list(parsers.items()):
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                parsers.update({(name, tool): p for tool, p in action.choices.items()})
    if find_spec("jupyterlab") is not None:
        del parsers["lab",]  # it would start

    def make(rng: Random) -> bytes:
        names = rng.choice(list(parsers))
        argv, given = list(names), []
        actions = [a for a in parsers[names]._actions if a.option_strings]
        actions = rng.sample(actions, min(rng.randrange(4), len(actions)))
        actions += [a for a in parsers[names]._actions if not a.option_strings]
        for action in actions:
            if isinstance(action, (argparse._HelpAction, argparse._SubParsersAction)):
                continue
            if action.option_strings:
                given.append([rng.choice(action.option_strings)])
                if action.nargs != 0 and rng.random() < 0.97:
                    given[-1].append(_argument(rng, action, files))
            elif rng.random() < 0.95:
                given.append([_argument(rng, action, files)])
        rng.shuffle(given)
        argv += sum(given, [])
        if rng.random() < 0.2:
            argv.insert(rng.randrange(len(argv) + 1), _confined(text(rng)))
        return json.dumps(argv + _SHORT.get(names[0], [])).encode()

    def read(data: bytes) -> bool:
        argv = json.loads(data)
        # A command line's bytes that are no UTF-8 come as lone surrogates of U+DC80 to U+DCFF.
        argv = [a.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape") for a in argv]
        # A fresh folder: what one case writes, such as notebooks, is not the next one's input.
        shutil.copytree(template, work, symlinks=True)
        os.chdir(work)
        try:
            return _status(argv) == 0
        finally:
            os.chdir(folder)
            shutil.rmtree(work)
            shutil.rmtree(os.environ["LLAMA_PYNQ_OVERLAYS"], ignore_errors=True)

    return Border(make, read, ())


def _status(argv: list[str]) -> int:
    """Exit status of a command, with what it printed checked."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict")
    err = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(argv)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
    assert status in (0, 1, 2), status
    assert "Traceback" not in err.getvalue()
    assert status == 0 or err.getvalue().strip() or "verify" in argv, "it failed without a word"
    return status


_VARIABLES = ("LLAMA_PYNQ_CACHE", "LLAMA_PYNQ_OVERLAYS", "LLAMA_PYNQ_LOCKS", "LLAMA_PYNQ_EMULATE",
              "BOARD", "HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "CXX", "XILINX_VITIS",
              "JPY_SESSION_NAME", "COLUMNS", "LANG")  # fmt: skip
_COMMANDS = (["info"], ["overlay", "list"], ["generate", "Once", "--max-new-tokens", "2"])


def environment(folder: Path) -> Border:
    """Environment variables that the package reads."""
    files = [name for name in _files(folder) if not name.endswith((".bin", ".bit"))]
    usual = dict(os.environ)

    def make(rng: Random) -> bytes:
        changes: dict[str, str | None] = {}
        for name in rng.sample(_VARIABLES, rng.choice((1, 1, 2, 3))):
            value = rng.choice((None, rng.choice(files), _confined(text(rng))))
            if name == "HOME" and value is None:
                continue  # the account's own home would take its place
            changes[name] = value
        return json.dumps([changes, rng.choice(_COMMANDS)]).encode()

    def read(data: bytes) -> bool:
        changes, argv = json.loads(data)
        try:
            for name, value in changes.items():
                os.environ.pop(name, None)
                if value is not None:
                    value = value.encode("utf-8", "surrogatepass")
                    os.environb[name.encode()] = value
            status = _status(argv)
            if "CXX" in changes:
                with contextlib.suppress(LlamaPynqError):
                    required_features("native")
            return status == 0
        finally:
            os.environ.clear()
            os.environ.update(usual)

    return Border(make, read, ())


def names(folder: Path) -> Border:
    """Names of boards, as users, images and shells write them."""
    known = [*boards(), *(board.title for board in boards().values())]
    known += [
        "xilinx_u250_gen3x16_xdma_shell_4_1",
        "Pynq-Z2\0",
        "xilinx_aws-vu9p-f1_shell-v04261818",
    ]

    def make(rng: Random) -> bytes:
        name = text(rng, rng.choice(known))
        if rng.random() < 0.3:
            name = rng.choice((str.upper, str.swapcase, str.title))(rng.choice(known))
        return json.dumps(name).encode()

    def read(data: bytes) -> None:
        name = json.loads(data)
        found = board_named(name)
        assert found is None or found in boards()
        assert board_key(name) in boards()
        assert find_board(name).name == board_key(name)

    return Border(make, read, (BoardNotFound,))
