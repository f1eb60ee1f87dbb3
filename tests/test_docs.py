"""The documentation matches the code: numbers, examples, and named files."""

import doctest
import json
import re
import runpy
from dataclasses import fields, replace

import numpy as np
import pytest
from support.kernel_library import header_constants
from support.paths import HLS_SRC, REPOSITORY

import llama_pynq
from llama_pynq import __version__, errors, widgets
from llama_pynq.boards import boards
from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.checkpoint.load import load_checkpoint
from llama_pynq.checkpoint.shapes import STORIES
from llama_pynq.cli.main import command_parser
from llama_pynq.emulation import hwh
from llama_pynq.emulation.build import FLAGS
from llama_pynq.emulation.design import zynq_design
from llama_pynq.estimate.predict import predict
from llama_pynq.kernel import abi, config, registers
from llama_pynq.kernel.config import Target, kernel_of
from llama_pynq.kernel.limits import KernelLimits
from llama_pynq.kernel.stages import QuantizedMatrix
from llama_pynq.weights.packed import PACK_VERSION, write_packed
from llama_pynq.weights.quantize import QuantizedModel
from llama_pynq.weights.tiles import channel_bytes, pack_channels

DOCS = REPOSITORY / "docs"
KERNEL = (DOCS / "kernel.md").read_text(encoding="utf-8")
PAGES = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    REPOSITORY / "overlay" / "README.md",
    *sorted(DOCS.rglob("*.md")),
    *sorted(DOCS.glob("*.svg")),
]
TABLES = runpy.run_path(str(DOCS / "tables.py"))
IDS = [str(page.relative_to(REPOSITORY)) for page in PAGES]


def rows_under(first_cell):
    """Cells of the table whose header starts with `first_cell`, without the header."""
    lines = KERNEL[KERNEL.index(f"\n| {first_cell} |") + 1 :].splitlines()
    table = lines[: next(i for i, line in enumerate(lines) if not line.startswith("|"))]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


# ---- docs/kernel.md: words, codes and constants ----------------------------------------------


CONSTANTS = header_constants("host")
STATED = re.findall(r"^\| (-?\w+) \| `(k\w+)` \|", KERNEL, re.MULTILINE)


def test_constants_have_the_values_stated():
    assert len(STATED) > 100
    for value, name in STATED:
        assert int(value, 0) == CONSTANTS[name], name


def test_every_word_flag_stage_and_error_is_stated():
    """A constant added to contract.h must be added to the page."""
    text = (HLS_SRC / "contract.h").read_text()
    names = set(re.findall(r"constexpr \w+ (k\w+)", text)) - {name for _, name in STATED}
    assert names == {
        "kMaxStopTokens", "kRequestWords", "kRowWords", "kModelWords", "kStatusWords",
        "kDescribeWords", "kResultWords", "kResultsWords", "kMaxStepEvents", "kProfileStepWords",
        "kProfileWords",
    }  # fmt: skip


@pytest.mark.parametrize(
    "head, dtype", [("word of a row", abi.ROW_DTYPE), ("word of a result", None)]
)
def test_types_of_words_as_stated(head, dtype):
    dtype = dtype or abi.result_dtype(CONSTANTS["kTopLogits"])
    at = {offset // 4: kind.name for kind, offset in dtype.fields.values()}
    if head == "word of a row":
        assert at[4] == "uint64"
        at |= {4: "uint32", 5: "uint32"}  # one seed in two words
    for word, _, kind, *_ in rows_under(head):
        if kind != "pairs":
            assert at[int(word)] == kind


def test_constants_named_anywhere_exist():
    source = "".join(path.read_text() for path in HLS_SRC.rglob("*.h"))
    for name in set(re.findall(r"\bk[A-Z]\w+\b", KERNEL)):
        assert re.search(rf"\bconstexpr \w+ {name}\b", source), name


def test_sizes_in_words_as_stated():
    c = CONSTANTS
    assert f"the rows, {c['kRowWords']} words each" in KERNEL
    assert f"how many, 0 to {c['kMaxStopTokens']}" in KERNEL
    assert f"| int32 | {c['kMaxStopTokens']} token ids |" in KERNEL
    assert f"{c['kStatusWords']} + (*s* × rows + *r*) × ({c['kResultTop']} + 2 × kTopL" in KERNEL
    assert f"From word {c['kStatusWords']} (`kStatusWords`)" in KERNEL
    assert f"a record of {c['kProfileStepWords']} words" in KERNEL
    assert f"at most {c['kMaxStepEvents']}. A\n" in KERNEL
    assert 4 * (c["kDescribeWords"] - c["kDescribeBoard"]) == 16
    assert 4 * (c["kRequestStopList"] - c["kRequestAbort"]) == 64


def test_errors_of_the_functions_as_the_source_says():
    text = (HLS_SRC / "float_math.h").read_text()
    found = re.findall(r"(\w+) error (\d\.\de-\d)", text)
    assert found == [
        (kind, value)
        for _, _, cell in rows_under("function")
        for value, kind in [cell.split()]
    ]  # fmt: skip


def test_compiler_flags_as_built():
    section = KERNEL[KERNEL.index("**Compiler options.**") :].partition("## 6")[0]
    given, _, forbidden = section.partition("Forbidden")
    stated = re.findall(r"`(-f[\w=-]+)`", given)
    assert len(stated) == 3 and set(stated) <= set(FLAGS)
    assert not set(re.findall(r"`(-[\w=-]+)`", forbidden)) & set(FLAGS)


# ---- registers -------------------------------------------------------------------------------


@pytest.mark.parametrize("page", TABLES["PAGES"])
def test_tables_in_step_with_the_boards(page):
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    assert TABLES["updated"](page, text) == text, "run: make tables"


@pytest.mark.parametrize(
    ("names", "text"), [([], "none"), (["a"], "a"), ("ab", "a and b"), ("abc", "a, b and c")]
)
def test_names_are_joined_as_prose_does(names, text):
    assert TABLES["_list"](names) == text


def test_page_without_markers_is_refused():
    with pytest.raises(ValueError, match="boards: begin"):
        TABLES["updated"]("README.md", "no markers")


def test_control_registers_as_the_metadata_lists_them():
    xml = hwh.write_hwh(zynq_design(2, 1, 100)).decode()
    listed = re.findall(
        r'<REGISTER NAME="(\w+)">.*?NAME="ADDRESS_OFFSET" VALUE="(\d+)"', xml, re.DOTALL
    )
    stated = [(name, str(int(offset, 16))) for offset, name, _ in rows_under("offset")]
    assert listed[: len(stated)] == stated
    assert listed[len(stated)][0] == "request_1"


def test_control_bits_as_the_driver_uses_them():
    for bit, name, *_ in rows_under("bit"):
        assert int(bit, 16) == getattr(registers, name)


@pytest.mark.parametrize("column, board", [(3, "u250"), (4, "pynq-z2")])
def test_register_offsets_as_the_board_has_them(column, board):
    constants = config.board_constants(config.board_headers()[board])
    counts = {"weights_c": constants["kChannels"], "kv_read_p": constants["kKvPorts"]}
    counts["kv_write_p"] = counts["kv_read_p"]
    arguments = registers.board_arguments(constants)
    stated = {}
    for cells in rows_under("argument"):
        name, at = cells[0].strip("`"), cells[column]
        first, _, stride = at.partition(" + ")
        for i in range(counts.get(name, 1)):
            one = f"{name[:-1]}{i}" if name in counts else name
            stated[one] = int(first, 16) + i * int(stride.partition("·")[0] or "0", 16)
    assert stated == {r.name: r.offset for r in registers.registers(arguments)}
    for register in registers.zynq_registers(arguments):
        name, _, half = register.name.rpartition("_")
        if name in stated and register.name not in stated:
            assert register.offset == stated[name] + 4 * (int(half) - 1)


# ---- memory ----------------------------------------------------------------------------------


def test_examples_run_as_printed():
    result = doctest.testfile(str(DOCS / "kernel.md"), module_relative=False)
    assert result.failed == 0 and result.attempted > 10


def test_offsets_of_the_tiny_matrix_add_up():
    table = rows_under("what")
    assert len(table) == 4
    for _, terms, total in table:
        assert eval(terms.replace("×", "*")) == int(total)


def test_kv_record_bytes_as_stated():
    any_board = KernelLimits.from_header(HLS_SRC / "boards" / "host.h")
    for cells in rows_under("head_size"):
        head_size, beat, float32, int8 = map(int, cells)
        limits = replace(any_board, kv_ports=1, kv_beat_bytes=beat)
        config = ModelConfig(head_size, 32, 1, 1, 1, 32, 1, tied=True)
        assert [limits.kv_port_bytes(config, bits, 1) for bits in (32, 8)] == [float32, int8]


class OneValue:
    """A model of zeros except one value of one tensor: the packed bytes show its place."""

    config = ModelConfig(64, 96, 1, 4, 2, 80, 16, tied=False)
    group_size, weight_bits = 64, 8
    rows = {"wq": 64, "wk": 32, "wv": 32, "wo": 64, "w1": 96, "w3": 96, "w2": 64, "wcls": 80,
            "token_embedding_table": 80}  # fmt: skip

    def __init__(self, name=None, row=0):
        self._name, self._row = name, row

    def matrix(self, name, layer=None):
        groups = 2 if name == "w2" else 1
        q = np.zeros((self.rows[name], groups * 64), np.int8)
        if name == self._name:
            q[self._row, 0] = 1
        return QuantizedMatrix(q, np.zeros((self.rows[name], groups), np.float32))

    def vector(self, name, layer=None):
        return np.full(64, -1.0 if name == self._name else 1.0, np.float32)

    def begins(self, name, row=0):
        """(channel, byte) of a tensor's value, or of the first value of a row."""
        here, there = (pack_channels(m, TARGET) for m in (OneValue(name, row), OneValue()))
        at = [(c, int(i)) for c in range(2) for i in np.flatnonzero(here[c] != there[c])]
        return at[0]


TARGET = Target(channels=2, tile_rows=16)


def test_blocks_lie_in_the_order_stated():
    model = OneValue()
    table = {names: cells for names, *cells in rows_under("block")}
    assert [int(n) for n in table.pop("end")[:2]] == channel_bytes(model.config, 64, TARGET)
    for names, (first, second, _) in table.items():
        name, *others = names.split(", ")
        if second == "–":  # a norm; the value shows in a float's last byte
            assert model.begins(name) == (0, int(first) + 3)
            continue
        assert model.begins(name) == (0, int(first))
        if name == "w1":
            assert others == ["w3"] and model.begins("w3") == (1, int(second))
        else:
            assert model.begins(name, row=16) == (1, int(second))
        if name == "wq":
            assert others == ["wk", "wv"]
            assert model.begins("wk") == (0, int(first) + 2 * 1088), "wk must follow 4 tiles of wq"
            assert model.begins("wv") == (0, int(first) + 3 * 1088), "wv must follow 2 tiles of wk"


def test_blocks_take_the_bytes_stated():
    """A block ends where the next begins, in both channels."""
    table = rows_under("block")
    for column in (1, 2):
        at = [(row[3], int(row[column])) for row in table if row[column] != "–"]
        for (size, begin), (_, end) in zip(at, at[1:]):
            assert eval(size.replace("×", "*")) == end - begin


def test_packed_file_holds_what_is_stated(tmp_path):
    path = tmp_path / "model.safetensors"
    models = REPOSITORY / "llama_pynq" / "models"
    write_packed(
        QuantizedModel(load_checkpoint(models / "stories.bin")), TARGET, path, b"tokenizer"
    )
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    meta = header.pop("__metadata__")
    stated = {key.strip("`"): text for key, text in rows_under("key")}
    assert set(stated) == set(meta)
    assert list(header) == ["channel_0", "channel_1", "tokenizer"]
    assert {tensor["dtype"] for tensor in header.values()} == {"U8"}
    assert (8 + size) % 64 == 0
    for key in ("format", "pack_version", "abi"):
        assert stated[key].startswith(f"`{meta[key]}`")
    assert meta["pack_version"] == str(PACK_VERSION)
    names = stated["config"].removeprefix("JSON: ").split(", ")
    assert names == [field.name for field in fields(ModelConfig)]


# ---- every page: the files it names ----------------------------------------------------------


ROOTS = "llama_pynq|hls_src|tests|docs|notebooks|overlay|benchmarks"
GENERATED = ("hls_src/build/", "overlay/llama/")


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_to_files_that_exist(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"https?://|#", target):
            assert (page.parent / target.partition("#")[0]).exists(), target


def in_checkout(path):
    """Path in the checkout: setup.py maps three of its folders into the package."""
    return REPOSITORY / re.sub(r"^llama_pynq/(?=(hls_src|notebooks|overlay)\b)", "", path)


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_paths_and_modules_named_exist(page):
    text = page.read_text(encoding="utf-8")
    for path in re.findall(rf"(?<![\w./~-])((?:{ROOTS})/[\w./-]*\w)", text):
        assert path.startswith(GENERATED) or in_checkout(path).exists(), path
    for name in re.findall(r"python -m ([\w.]+)|`(llama_pynq(?:\.\w+)+)`", text):
        module = "".join(name)
        is_object = any(part[0].isupper() for part in module.split("."))
        if module.startswith("llama_pynq.") and not is_object:
            path = in_checkout(module.replace(".", "/"))
            assert path.is_dir() or path.with_suffix(".py").exists(), module


def test_files_in_the_figure_exist():
    svg = (DOCS / "architecture.svg").read_text(encoding="utf-8")
    texts = re.findall(r'class="file"[^>]*>([^<]*)<', svg)
    named = [name for text in texts for name in re.findall(r"[\w/*]+(?:\.py|\.h|/)", text)]
    assert len(named) > 20
    for name in named:
        folders = (REPOSITORY, REPOSITORY / "llama_pynq", HLS_SRC)
        assert any(list(folder.glob(name)) for folder in folders), name


def test_every_folder_is_in_the_architecture():
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    packages = [path.parent for path in (REPOSITORY / "llama_pynq").glob("*/__init__.py")]
    folders = [REPOSITORY / name for name in ROOTS.split("|")]
    for folder in (*packages, *folders):
        assert f"(../{folder.relative_to(REPOSITORY)})" in text, folder


def test_rooms_stand_in_the_order_of_the_import_contract():
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    rooms = re.findall(r"^\| \[\w+(?:/|\.py)\]\(\.\./llama_pynq/(\w+)(?:\.py)?\) \|", text, re.M)
    contract = re.search(
        r"^layers = \[(.*?)^\]", (REPOSITORY / "pyproject.toml").read_text(), re.M | re.S
    )
    layers = [re.findall(r"llama_pynq\.(\w+)", line) for line in contract[1].splitlines()]
    order = {name: i for i, layer in enumerate(layers) for name in layer}
    assert set(order) - set(rooms) == {"__main__", "energy", "errors"}
    assert [order[room] for room in rooms] == sorted(order[room] for room in rooms)


def command_lines(text):
    """Words of every ``llama-pynq ...`` and ``make ...`` in backticks or indented."""
    code = re.findall(r"`([^`\n]+)`", text)
    code += re.findall(r"^(?: {4,}|)((?:\.venv/bin/)?(?:llama-pynq|make) .*)$", text, re.MULTILINE)
    for line in code:
        words = line.split("#")[0].replace("\\|", " ").removeprefix(".venv/bin/").split()
        theirs = "pynqremote" in words  # PYNQ's own make
        if len(words) > 1 and words[0] in ("llama-pynq", "make") and not theirs:
            yield words


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_commands_and_options_named_exist(page):
    commands = command_parser()[1].choices
    targets = set(re.findall(r"^([a-z0-9-]+):", (REPOSITORY / "Makefile").read_text(), re.M))
    builds = re.search(r"^STEPS := (.*)$", (HLS_SRC / "Makefile").read_text(), re.M)[1].split()
    for words in command_lines(page.read_text(encoding="utf-8")):
        if words[0] == "make":
            known = builds if "hls_src" in words else targets
            named = {word for word in words[1:] if re.fullmatch(r"[a-z][a-z0-9-]+", word)}
            assert named <= {*known, "hls_src"}, words
            continue
        if words[1] in ("--help", "--version", "COMMAND"):
            continue
        assert words[1] in commands, words
        given = words[: words.index("--")] if "--" in words else words
        help_text = commands[words[1]].format_help()
        for tool in getattr(commands[words[1]]._subparsers, "_group_actions", []):
            help_text += "".join(parser.format_help() for parser in tool.choices.values())
        for option in re.findall(r"--[a-z][a-z-]+", " ".join(given)):
            assert option in help_text, f"{words[1]} has no {option}"


def test_version_to_cite_is_this_one():
    text = (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.*)$", text, re.MULTILINE)[1] == __version__


# ---- README.md --------------------------------------------------------------------------

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_measured_headline_is_the_record_beside_llama_cpp():
    """The figures of the first screen, from docs/peers.md."""
    row = re.search(
        r"^\| stories110M \| 1 \| generate, greedy \| ([\d.]+) \| ([\d.]+) \|",
        (DOCS / "peers.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    ours, theirs = (round(float(figure)) for figure in row.groups())
    assert re.search(rf"\*\*measured\*\*.*\| {ours} \| llama.cpp Q8_0 .*: {theirs} ", README)


def test_modelled_headline_is_what_the_model_says():
    kv260 = boards()["kv260"]
    kernel = kernel_of(kv260)

    def rate(**changes):
        changed = replace(kernel, **changes)
        step = predict(STORIES["stories110M"], kv260, position=255, kernel=changed)
        return round(step.tokens_per_second)

    assert kernel.clock_mhz == 300
    slow, fast = rate(clock_mhz=150), rate(clock_mhz=200)
    assert f"**modelled**: KV260 | {rate()} | at the header's 300 MHz" in README
    assert (
        f"; {slow} to {fast} at 150 to 200 MHz; {rate(read_burst_beats=1)} without bursts" in README
    )


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_readme_code_runs(block, run):
    done = run("-c", block)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 100


# ---- docs/index.md, docs/reference/ and docs/notebooks.md ------------------------------


REFERENCE = "".join(p.read_text(encoding="utf-8") for p in sorted(DOCS.glob("reference/*.md")))
NOTEBOOK = re.findall(
    r"```python\n(.*?)```", (DOCS / "notebooks.md").read_text(encoding="utf-8"), re.DOTALL
)


@pytest.mark.parametrize(
    "name",
    [
        *llama_pynq.__all__,
        *(f"widgets.{name}" for name in widgets.__all__),
        *(f"errors.{name}" for name, value in vars(errors).items() if isinstance(value, type)),
    ],
)
def test_public_names_are_in_the_reference(name):
    assert re.search(rf"^\.\. auto\w+:: llama_pynq\.{name}$", REFERENCE, re.MULTILINE)


def test_index_links_to_every_page():
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    pages = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")} - {"index.md"}
    assert pages == {link for link in re.findall(r"\]\(([^)]+)\)", index) if link[0] != "."}


def test_notebook_code_runs_in_order(run):
    done = run("-c", "\n".join(NOTEBOOK))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(", measured\n") == 3


def test_notebook_code_is_short():
    for block in NOTEBOOK:
        assert len([line for line in block.splitlines() if line]) <= 10
