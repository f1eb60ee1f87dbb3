"""Fixtures of the tests of tokenizers."""

import json

import pytest
from support.paths import MODELS
from support.tokenizer_cases import small_bin

from llama_pynq.tokenizer.load import load_tokenizer


@pytest.fixture(scope="session")
def oracle():
    return json.loads((MODELS / "stories260K.oracle.json").read_text())


@pytest.fixture(scope="session")
def tok512():
    return load_tokenizer(MODELS / "tok512.bin")


@pytest.fixture(scope="session")
def tok32k():
    return load_tokenizer(MODELS / "tokenizer32k.bin")


@pytest.fixture(scope="session")
def model32k():
    pytest.importorskip("sentencepiece", reason="no sentencepiece on this machine")
    return load_tokenizer(MODELS / "tokenizer32k.model")


@pytest.fixture
def small(tmp_path):
    extra = [(b" ", -3.0), (b"a", -4.0), (b"b", -5.0), (b" a", -1.0), (b"ab", -1.0)]
    return load_tokenizer(small_bin(tmp_path / "small.bin", *extra))
