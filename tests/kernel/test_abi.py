"""kernel/abi.py and hls_src/contract.h agree."""

import re

import numpy as np
import pytest
from support.kernel_library import BOARDS, HLS_SRC, header_constants

from llama_pynq.kernel import abi


def snake(name):
    """RequestStopList -> REQUEST_STOP_LIST."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).upper()


HEADER = header_constants("host")


def own(prefix, *but):
    """Constants of the header that begin with `prefix`, as upper-case names without the prefix."""
    return {
        snake(name[len(prefix) :]): value
        for name, value in HEADER.items()
        if re.match(rf"{prefix}[A-Z]", name) and name not in but
    }


def test_header_constants_were_found():
    assert HEADER["kMagic"] == 0x4C4C4D41
    assert HEADER["kRequestWords"] == 48 + 10 * 32
    assert len(HEADER) > 100


def test_scalars_same_as_the_header():
    expected = {
        "kMagic": abi.MAGIC,
        "kAbiVersion": abi.ABI_VERSION,
        "kCommandDescribe": abi.COMMAND_DESCRIBE,
        "kCommandRun": abi.COMMAND_RUN,
        "kMinGroup": abi.MIN_GROUP,
        "kMaxGroup": abi.MAX_GROUP,
        "kReduceLanes": abi.REDUCE_LANES,
        "kNormSums": abi.NORM_SUMS,
        "kValueSums": abi.VALUE_SUMS,
        "kBlock": abi.BLOCK,
        "kWordBytes": abi.WORD_BYTES,
        "kMaxStopTokens": abi.MAX_STOP_TOKENS,
        "kTokenNone": abi.TOKEN_NONE,
        "kTokenUndecided": abi.TOKEN_UNDECIDED,
    }
    assert {name: HEADER[name] for name in expected} == expected


def test_request_words_same_as_the_header():
    words = own("kRequest", "kRequestWords")
    assert words == {name: getattr(abi, f"REQUEST_{name}") for name in words}
    assert len(words) == 9


def test_rows_same_as_the_header():
    flags = {flag.name: flag.value for flag in abi.RowFlag}
    words = own("kRow", "kRowWords")
    assert {name: words.pop(name) for name in flags} == flags
    fields = {
        "TOKEN": "token", "POSITION": "position", "SLOT": "slot", "FLAGS": "flags",
        "SEED_LOW": "seed", "TEMPERATURE": "temperature", "TOP_K": "top_k", "TOP_P": "top_p",
        "MIN_P": "min_p",
    }  # fmt: skip
    assert words.pop("SEED_HIGH") == words["SEED_LOW"] + 1, "one little-endian 64-bit seed"
    assert words == {name: abi.ROW_DTYPE.fields[field][1] // 4 for name, field in fields.items()}
    assert HEADER["kRowWords"] == abi.ROW_WORDS
    assert abi.ROW_DTYPE.itemsize == 40


@pytest.mark.parametrize(
    "prefix, enum",
    [("kFlag", abi.RequestFlag), ("kState", abi.State), ("kStage", abi.Stage)],
)
def test_enums_same_as_the_header(prefix, enum):
    assert own(prefix) == {member.name: member.value for member in enum}


def test_model_words_same_as_the_header():
    words = own("kModel", "kModelWords")
    names = {
        "magic": "MAGIC", "abi": "ABI", "n_layers": "LAYERS", "n_heads": "HEADS",
        "n_kv_heads": "KV_HEADS",
    }  # fmt: skip
    expected = {names.get(name, name.upper()): i for i, name in enumerate(abi.MODEL_FIELDS)}
    assert words == {**expected, "ROPE_TABLE": abi.MODEL_ROPE_TABLE}


def test_status_words_same_as_the_header():
    words = own("kStatus", "kStatusWords")
    assert words == {name: getattr(abi, f"STATUS_{name}") for name in words}
    assert HEADER["kStatusWords"] == abi.STATUS_WORDS
    assert max(words.values()) < abi.STATUS_WORDS


def test_describe_words_same_as_the_header():
    words = own("kDescribe", "kDescribeWords")
    expected = {name.upper(): abi.DESCRIBE_BASE + i for i, name in enumerate(abi.DESCRIBE_FIELDS)}
    assert words == {**expected, "BOARD": abi.DESCRIBE_BOARD}
    assert HEADER["kDescribeWords"] == abi.DESCRIBE_WORDS == abi.DESCRIBE_BOARD + 4


def test_every_error_has_a_text():
    errors = own("kError", "kErrorNone")
    assert sorted(errors.values()) == sorted(abi.ERRORS)
    for text in abi.ERRORS.values():
        assert text.format(detail=3)


def test_result_layout_same_as_the_header():
    dtype = abi.result_dtype(HEADER["kTopLogits"])
    words = own("kResult", "kResultWords")
    fields = {name.upper(): offset // 4 for name, (_, offset) in dtype.fields.items()}
    del fields["RESERVED"]
    assert words == fields
    assert HEADER["kResultWords"] == dtype.itemsize // 4
    assert dtype["top"].base["id"] == np.int32 and dtype["top"].base["logit"] == np.float32
    assert all(dtype[name] == np.float32 for name in ("lse", "lse_temperature", "logit"))


def test_every_constant_of_the_header_is_held_in_step():
    """A constant added to contract.h must be added to kernel/abi.py, and to a test here."""
    text = (HLS_SRC / "contract.h").read_text()
    names = re.findall(r"constexpr \w+ (k\w+)", text)
    families = (
        "kRequest|kRow|kFlag|kState|kStage|kModel|kStatus|kDescribe|kError|kResult|kCommand"
        "|kMagic$|kAbiVersion$|kToken|kMaxStopTokens$|kProfile|kMaxStepEvents$"
    )
    assert [name for name in names if not re.match(families, name)] == []


@pytest.mark.parametrize("board", BOARDS)
def test_profile_record_holds_the_deepest_model(board):
    header = header_constants(board)
    stages_per_layer = abi.Stage.DOWN - abi.Stage.ATTENTION_NORM + 1
    outside = len(abi.Stage) - stages_per_layer
    assert header["kMaxLayers"] * stages_per_layer + outside <= header["kMaxStepEvents"]
