"""Borders of a loaded model: calls of the driver, descriptors in device memory, texts."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from fuzz.border import Border
from fuzz.mutators import FLOATS, INTEGERS, TEXTS, integer, text

from llama_pynq import EmulatedDevice, LlamaOverlay
from llama_pynq.errors import LlamaPynqError
from llama_pynq.kernel import abi

# An input is a Python expression over these names, so that a saved one can be read.
_NAMES = {"np": np, "nan": float("nan"), "inf": float("inf"), "b": bytes, "abi": abi}

_ODD = [
    "None", "True", "()", "[]", "{}", "''", "'x'", "b'x'", "0.5", "nan", "inf", "1j", "object()",
    "np.int64(3)", "np.float32(2)", "np.array(3)", "np.array([])", "np.array([1, 2])",
    "np.bool_(1)", "np.array(['a'])", "np.array([None])", "range(3)", "lambda: 0", "10**30",
    "-10**30", "'\\ud800'",
    "np.zeros((2, 2))", "np.datetime64('2026-01-01')", "[[]]", "[None]", "[nan]", "{1: 2}",
    "{1, 2}",
    "np.ma.masked", "np.zeros(3, [('token', '<i4')])", "iter([1])", "'1'", "float('1e300')",
]  # fmt: skip


def _word(rng: Random, usual: int) -> str:
    return str(rng.choice((usual, integer(rng, usual), rng.choice(INTEGERS))))


def opened() -> LlamaOverlay:
    """The bundled model on an emulated device of two threads."""
    overlay = LlamaOverlay(device=EmulatedDevice(threads=2))
    overlay.load_model()
    overlay.llama.timeout_s = 20.0
    return overlay


def _still_right(overlay: LlamaOverlay, expected: str) -> None:
    """After every case the device generates the text that it generated before."""
    out = overlay.generate("Once", max_new_tokens=3, temperature=0)
    assert out.text == expected, out.text


_FIELDS = {"token": 5, "position": 3, "slot": 0, "flags": 1, "seed": 7, "top_k": 0}


def _rows(rng: Random) -> str:
    if rng.random() < 0.12:
        return rng.choice(_ODD)
    n = rng.choice((0, 1, 1, 2, 3, 16, 32, 33, 100))
    edits = []
    for _ in range(rng.choice((0, 1, 1, 3))):
        name = rng.choice((*_FIELDS, "temperature", "top_p", "min_p"))
        if name in _FIELDS:
            bits = 64 if name == "seed" else 32
            value = int(_word(rng, _FIELDS[name])) % (1 << bits)
            if name not in ("seed", "flags") and value >= 1 << 31:
                value -= 1 << 32
            edits.append(f"({name!r}, {value})")
        else:
            edits.append(f"({name!r}, {rng.choice(FLOATS)!r})")
    kind = rng.random()
    if kind < 0.9:
        return f"rows({n}, {', '.join(edits)})" if edits else f"rows({n})"
    forms = (".reshape(1, -1)", "[::2]", ".tolist()", ".view('V40')", ".view(np.recarray)")
    return rng.choice((f"rows({n}){rng.choice(forms)}", f"np.zeros({n}, np.int32)", "rows(4)[::-1]",
                       "rows(2)[0]"))  # fmt: skip


def _made_rows(n: int, *edits: tuple[str, Any]) -> np.ndarray:
    found = abi.make_rows(n)
    found["position"] = np.arange(n)
    found["flags"] = int(abi.RowFlag.SAMPLE)
    for i, (name, value) in enumerate(edits):
        found[name][i % n if n else slice(0)] = value
    return found


def calls(folder: Path) -> Border:
    """`KernelDriver.run`, `begin` and `finish`: arguments of any type and value."""
    overlay = opened()
    driver = overlay.llama
    config = driver.config
    expected = overlay.generate("Once", max_new_tokens=3, temperature=0).text

    def make(rng: Random) -> bytes:
        kwargs = {"rows": _rows(rng)}
        if rng.random() < 0.5:
            kwargs["n_steps"] = rng.choice((_word(rng, 2), "1", "4", rng.choice(_ODD)))
        if rng.random() < 0.3:
            pair = f"({_word(rng, 0)}, {_word(rng, config.n_layers)})"
            kwargs["layers"] = rng.choice((pair, f"(0, {config.n_layers})", rng.choice(_ODD)))
        if rng.random() < 0.3:
            kwargs["flags"] = rng.choice((_word(rng, 1), "1", "2", "4", "7", rng.choice(_ODD)))
        if rng.random() < 0.3:
            tokens = ", ".join(_word(rng, 2) for _ in range(rng.randrange(20)))
            kwargs["stop_tokens"] = rng.choice((f"[{tokens}]", rng.choice(_ODD)))
        if rng.random() < 0.3:
            n = rng.choice((1, 2, 3))
            full = f"np.zeros(({n}, {config.dim}), np.float32)"
            forms = ("", "", " + nan", "[:, :-1]", ".astype('f8')", ".T", ".tolist()",
                     ".astype('i1')", " * inf")  # fmt: skip
            kwargs["activations"] = rng.choice((full + rng.choice(forms), rng.choice(_ODD)))
        listed = ", ".join(f"{key}={value}" for key, value in kwargs.items() if key != "rows")
        method = rng.choice(("run", "run", "run", "begin"))
        if method == "begin":
            listed = ", ".join(
                f"{k}={kwargs[k]}" for k in ("n_steps", "stop_tokens") if k in kwargs
            )
        return f"{method}({kwargs['rows']}, {listed})".encode()

    def begin(*args: Any, **kwargs: Any) -> Any:
        return driver.finish(driver.begin(*args, **kwargs))

    def read(data: bytes) -> None:
        names = {**_NAMES, "rows": _made_rows, "run": driver.run, "begin": begin}
        try:
            result = eval(data.decode(), names)
            assert result.rows.ndim == 2
        finally:
            _still_right(overlay, expected)

    return Border(make, read)


def descriptors(folder: Path) -> Border:
    """Raw words in the model descriptor and the request, past the driver, as on AP_START."""
    overlay = opened()
    driver = overlay.llama
    expected = overlay.generate("Once", max_new_tokens=3, temperature=0).text
    usual = np.array(driver.buffers["model"]).copy()
    names = {i: name for i, name in enumerate(abi.MODEL_FIELDS)}

    def make(rng: Random) -> bytes:
        edits = []
        for _ in range(rng.choice((1, 1, 2, 4))):
            at = rng.choice((*names, rng.randrange(len(usual))))
            value = rng.choice((integer(rng, int(usual[at])), rng.choice(INTEGERS)))
            edits.append([at, value % (1 << 32)])
        rows = rng.choice((1, 2, 16))
        return json.dumps({"edits": edits, "rows": rows, "steps": rng.choice((1, 3))}).encode()

    def read(data: bytes) -> None:
        case = json.loads(data)
        buffer = driver.buffers["model"]
        try:
            for at, value in case["edits"]:
                buffer[at] = value
            buffer.sync_to_device()
            rows = _made_rows(case["rows"])
            driver.run(rows, n_steps=case["steps"])
        finally:
            buffer[:] = usual
            buffer.sync_to_device()
            _still_right(overlay, expected)

    return Border(make, read)


def generations(folder: Path) -> Border:
    """Arguments of `generate`, `stream` and `logits`."""
    overlay = opened()
    expected = overlay.generate("Once", max_new_tokens=3, temperature=0).text
    numbers = (
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "repetition_penalty",
        "seed",
        "logprobs",
        "n",
    )
    flags = ("ignore_eos", "add_bos")

    def value(rng: Random, name: str) -> str:
        kind = rng.random()
        if kind < 0.2:
            return rng.choice(_ODD)
        if name in numbers:
            odd = rng.choice((repr(rng.choice(FLOATS)), str(rng.choice(INTEGERS))))
            return odd if kind < 0.5 else rng.choice(("0", "1", "2", "0.5"))
        return rng.choice(("True", "1", repr(text(rng)), repr([text(rng), text(rng)])))

    def prompt(rng: Random) -> str:
        kind = rng.random()
        if kind < 0.5:
            return repr(text(rng, "Once upon"))
        if kind < 0.65:
            return str([integer(rng, rng.randrange(512)) for _ in range(rng.randrange(4))])
        if kind < 0.85:
            return repr([rng.choice(TEXTS), "Once"])
        return rng.choice(_ODD)

    def make(rng: Random) -> bytes:
        method = rng.choice(("generate", "generate", "stream", "logits"))
        given = [prompt(rng)]
        if method != "logits":
            names = numbers if method == "generate" else numbers[:-2]
            chosen = rng.sample((*names, *flags, "stop"), rng.randrange(4))
            given += [f"{name}={value(rng, name)}" for name in chosen]
            given.append(f"max_new_tokens={rng.choice(('2', '2', '2', rng.choice(_ODD)))}")
        return f"{method}({', '.join(given)})".encode()

    def stream(*args: Any, **kwargs: Any) -> str:
        return "".join(overlay.stream(*args, **kwargs))

    def read(data: bytes) -> None:
        names = {**_NAMES, "generate": overlay.generate, "stream": stream, "logits": overlay.logits}
        try:
            eval(data.decode(errors="surrogatepass"), names)
        finally:
            _still_right(overlay, expected)

    return Border(make, read, (LlamaPynqError,))
