"""Sequences: rows, stop strings and the end of a text, log-probabilities."""

import numpy as np
import pytest
from support.generating import PROMPT, WAYS

from llama_pynq.engine.sampling import SamplingParams
from llama_pynq.engine.sequence import SequenceState, StopText
from llama_pynq.kernel.abi import ROW_DTYPE


def test_generate_story_ends_without_its_stop_token(overlay, bundled):
    out = overlay.generate(PROMPT, max_new_tokens=1000, seed=3)
    assert out.finish_reason == "stop"
    assert bundled.tokenizer.bos_id not in out.tokens
    assert bundled.tokenizer.eos_id not in out.tokens


def test_generate_context_full_ends_with_length(overlay, bundled):
    seq_len = bundled.config.seq_len
    prompt = " a" * (seq_len - 10)
    tokens = bundled.tokenizer.encode(prompt)
    while len(tokens) > seq_len - 3:
        prompt = prompt[:-2]
        tokens = bundled.tokenizer.encode(prompt)
    out = overlay.generate(prompt, max_new_tokens=50, temperature=0)
    assert len(out.tokens) <= seq_len - len(tokens) + 1
    if out.finish_reason == "length":
        assert len(out.tokens) == seq_len - len(tokens) + 1


@pytest.mark.parametrize("call_seconds", [0.0, 1e9])
def test_generate_stop_string_cuts_text_and_tokens(overlay, bundled, call_seconds):
    bundled.call_seconds = call_seconds
    free = overlay.generate(PROMPT, max_new_tokens=60, temperature=0)
    stop = free.text[30:36]
    at = free.text.find(stop)
    out = overlay.generate(PROMPT, max_new_tokens=60, temperature=0, stop=["@@", stop])
    assert out.text == free.text[:at]
    assert out.finish_reason == "stop"
    assert out.tokens == free.tokens[: len(out.tokens)]
    assert stop in bundled.tokenizer.decode(out.tokens)
    assert stop not in bundled.tokenizer.decode(out.tokens[:-1])
    pieces = "".join(overlay.stream(PROMPT, max_new_tokens=60, temperature=0, stop=stop))
    assert pieces == out.text


def test_generate_stop_string_that_only_begins_is_printed_in_the_end(overlay, bundled):
    free = overlay.generate(PROMPT, max_new_tokens=20, temperature=0)
    out = overlay.generate(PROMPT, max_new_tokens=20, temperature=0, stop=free.text[-3:] + "@")
    assert out.text == free.text
    assert out.finish_reason == "length"


def test_stop_text_holds_back_the_longest_beginning_of_any_stop_string():
    stop_text = StopText(["ab", "bcde", "cx"])
    assert [stop_text.push(piece) for piece in ("a", "c", "z b", "c", "d", "b")] == [
        "", "a", "cz ", "", "", "bcd",
    ]  # fmt: skip
    assert stop_text.push("c") == "" and not stop_text.hit
    assert stop_text.push("x") == "b" and stop_text.hit
    assert stop_text.flush() == ""


def test_rows_are_packed_as_the_contract_has_them():
    params = SamplingParams(temperature=0.75, top_k=6, top_p=0.5, min_p=0.25)
    text = SequenceState([9, 8, 7], params, 2**64 - 5, None, StopText(()), (), 1, 4, False, slot=3)
    rows = np.frombuffer(b"".join(text.row(position) for position in (1, 2)), ROW_DTYPE)
    rest = (2**64 - 5, 0.75, 6, 0.5, 0.25)
    assert rows.tolist() == [(8, 1, 3, 0, *rest), (7, 2, 3, 4, *rest)]


def test_generate_logprobs_are_those_of_the_logits(overlay, bundled):
    for way in ("greedy", "temperature", "top_p"):
        out = overlay.generate(PROMPT, max_new_tokens=6, seed=2, logprobs=3, **WAYS[way])
        logits = overlay.logits(out.prompt_tokens + out.tokens)[len(out.prompt_tokens) - 1 : -1]
        wide = logits.astype(np.float64)
        logprobs = wide - np.log(np.exp(wide).sum(1, keepdims=True))
        assert len(out.logprobs) == 6
        for i, (token, record) in enumerate(zip(out.tokens, out.logprobs)):
            assert record.token == token
            assert record.logprob == pytest.approx(logprobs[i, token], abs=1e-4)
            best = np.argsort(-wide[i], kind="stable")[:3]
            assert list(record.top) == list(best)
            assert list(record.top.values()) == pytest.approx(list(logprobs[i, best]), abs=1e-4)


def test_generate_logprobs_beyond_the_top_logits_come_from_all(overlay, bundled):
    n = bundled.driver.limits.top_logits + 5
    out = overlay.generate(PROMPT, max_new_tokens=2, temperature=0, logprobs=n)
    assert [len(record.top) for record in out.logprobs] == [n, n]


def test_stream_pieces_never_split_a_character(overlay, bundled):
    # Push the bytes of an emoji through the decoder one by one, as the model would emit them.
    tokens = bundled.tokenizer.encode("a😀é")
    decoder = bundled.tokenizer.stream_decoder([1])
    pieces = [decoder.push(token) for token in tokens[1:]]
    assert "".join(pieces) + decoder.flush() == "a😀é"
    assert all("\ufffd" not in piece for piece in pieces)


def test_stream_closed_early_finishes_with_what_it_gave(overlay, bundled, expected):
    finished = []
    stream = overlay.stream(PROMPT, temperature=0, on_finish=finished.append)
    begin = next(stream) + next(stream)
    stream.close()
    (out,) = finished
    assert (out.finish_reason, out.text) == ("closed", begin)
    assert out.tokens == expected["greedy"][: len(out.tokens)]


def test_ignore_eos_goes_on_where_the_text_would_end(overlay, bundled):
    ended = overlay.generate(PROMPT, temperature=0)
    assert ended.finish_reason == "stop"
    n = len(ended.tokens) + 10
    options = dict(max_new_tokens=n, temperature=0)
    on = overlay.generate(PROMPT, **options, ignore_eos=True)
    assert (on.finish_reason, len(on.tokens)) == ("length", n)
    assert on.tokens[: len(ended.tokens)] == ended.tokens
    assert on.tokens[len(ended.tokens)] in (bundled.tokenizer.bos_id, bundled.tokenizer.eos_id)
    finished = []
    list(overlay.stream(PROMPT, **options, ignore_eos=True, on_finish=finished.append))
    assert finished[0].tokens == on.tokens
