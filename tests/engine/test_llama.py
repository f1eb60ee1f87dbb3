"""Llama on the emulated device: text and tokens, and invariance to batching, calls, resets."""

import json
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from support.paths import MODELS

from llama_pynq import EmulatedDevice, LlamaOverlay
from llama_pynq.checkpoint.load import load_checkpoint
from llama_pynq.emulation.build import emulated_overlay
from llama_pynq.engine.sampling import SamplingParams
from llama_pynq.engine.sequence import SequenceState, StopText
from llama_pynq.errors import (
    CheckpointError,
    DeviceBusy,
    DeviceMemoryError,
    LimitError,
    RequestError,
    TokenizerError,
)
from llama_pynq.kernel.abi import ROW_DTYPE, TOKEN_UNDECIDED, RowFlag, make_rows
from llama_pynq.kernel.reference import KernelModel
from llama_pynq.models import BUNDLED
from llama_pynq.weights.quantize import QuantizedModel

needs_shared = pytest.mark.skipif(
    not MODELS.exists(), reason=f"the real checkpoint is not here: {MODELS}"
)
PROMPT = "Once upon a time"


@contextmanager
def opened(flavour=".xclbin", **device):
    with LlamaOverlay(emulated_overlay(flavour), device=EmulatedDevice(**device)) as overlay:
        yield overlay


@pytest.fixture(scope="module")
def overlay(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("LLAMA_PYNQ_CACHE", str(tmp_path_factory.mktemp("cache")))
    with opened() as overlay:
        yield overlay
    patch.undo()


@pytest.fixture
def llama(overlay):
    """stories260K, if the file is available, with the default call length."""
    if not MODELS.exists():
        pytest.skip(f"the real checkpoint is not here: {MODELS}")
    return overlay.load_model(MODELS / "stories260K.bin", tokenizer=MODELS / "tok512.bin")


@pytest.fixture
def bundled(overlay):
    return overlay.load_model()


# ---- the same text in every way of generating ------------------------------------------

WAYS = {
    "greedy": dict(temperature=0),
    "temperature": dict(temperature=1.0, top_p=1.0),
    "top_p": dict(temperature=0.8, top_p=0.9),
    "top_k": dict(temperature=1.2, top_p=1.0, top_k=200),
    "min_p": dict(temperature=1.0, top_p=1.0, min_p=0.02),
    "hot": dict(temperature=2.0, top_p=0.95),  # top-p often keeps more tokens than the device sorts
    "repetition_penalty": dict(temperature=0.8, top_p=1.0, repetition_penalty=1.3),
}
LENGTH = 48


def tokens_of(overlay, way, prompt=PROMPT):
    return overlay.generate(prompt, max_new_tokens=LENGTH, seed=11, **WAYS[way]).tokens


@pytest.fixture(scope="module")
def expected(overlay):
    """Expected token ids per way, from the reference arithmetic and from one-step calls."""
    model = overlay.load_model()
    model.call_seconds = 0.0
    return {way: tokens_of(overlay, way) for way in WAYS}


def test_generate_greedy_is_the_reference_arithmetic(overlay, expected, bundled):
    tokens = bundled.tokenizer.encode(PROMPT)
    with load_checkpoint(BUNDLED / "stories.bin") as checkpoint:
        reference = KernelModel(QuantizedModel(checkpoint))
        logits = reference.forward(tokens, range(len(tokens)))[-1]
        for position, token in enumerate(expected["greedy"][:16], len(tokens)):
            assert token == logits.argmax()
            logits = reference.forward([token], [position])[0]


@pytest.mark.parametrize(("weight_bits", "kv_bits"), [(8, 8), (4, 32), (4, 8)])
def test_generate_smaller_formats_are_the_reference_arithmetic(overlay, weight_bits, kv_bits):
    """Also after a reset."""
    model = overlay.load_model(weight_bits=weight_bits, kv_bits=kv_bits)
    assert model.packed.weight_bits == weight_bits and overlay.llama.kv_bits == kv_bits
    tokens = model.tokenizer.encode(PROMPT)
    with load_checkpoint(BUNDLED / "stories.bin") as checkpoint:
        reference = KernelModel(QuantizedModel(checkpoint, bits=weight_bits), kv_bits)
        expected = [int(reference.forward(tokens, range(len(tokens)))[-1].argmax())]
        for position in range(len(tokens), len(tokens) + 7):
            expected.append(int(reference.forward(expected[-1:], [position])[0].argmax()))
    for _ in range(2):
        assert overlay.generate(PROMPT, max_new_tokens=8, temperature=0).tokens == expected
        overlay.reset()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("flavour", "device"),
    [
        (".xclbin", dict(protocol="chain", threads=1)),
        (".xclbin", dict(protocol="hs", threads=2)),
        (".bit", dict(protocol="hs", threads=2)),
        (".bit", dict(protocol="chain", threads=1)),
    ],
    ids=["xclbin-chain-1", "xclbin-hs-2", "bit-hs-2", "bit-chain-1"],
)
def test_generate_same_seed_same_tokens_on_every_flavour(
    overlay, expected, flavour, device, way, second_device
):
    other = second_device(flavour, tuple(sorted(device.items())))
    assert tokens_of(other, way) == expected[way]


@pytest.fixture(scope="module")
def second_device(tmp_path_factory):
    """Overlays on separate devices, each opened once, with a separate lock folder."""
    cache, patch = {}, pytest.MonkeyPatch()

    def get(flavour, device):
        if (flavour, device) not in cache:
            folder = tmp_path_factory.mktemp("locks")
            patch.setenv("LLAMA_PYNQ_LOCKS", str(folder))
            context = opened(flavour, **dict(device))
            other = context.__enter__()
            patch.delenv("LLAMA_PYNQ_LOCKS")
            other.load_model()
            cache[flavour, device] = (context, other)
        return cache[flavour, device][1]

    yield get
    for context, _ in cache.values():
        context.__exit__(None, None, None)
    patch.undo()


@pytest.mark.parametrize("way", WAYS)
def test_generate_many_steps_a_call_gives_the_same_tokens(overlay, expected, bundled, way):
    bundled.call_seconds = 1e9
    assert tokens_of(overlay, way) == expected[way]
    assert tokens_of(overlay, way) == expected[way]  # with a measured pace


def test_generate_truncated_takes_many_tokens_a_call(overlay, bundled, monkeypatch):
    calls = []

    def run(rows, n_steps=1, **kwargs):
        calls.append(n_steps)
        return type(bundled.driver).run(bundled.driver, rows, n_steps=n_steps, **kwargs)

    monkeypatch.setattr(bundled.driver, "run", run)
    bundled.call_seconds = 1e9
    out = overlay.generate("", max_new_tokens=18, temperature=0.8, top_p=0.9, top_k=40, seed=4)
    assert calls == [1, 17] and len(out.tokens) == 18


def test_generate_undecided_step_is_done_again_once_with_all_logits(overlay, bundled, monkeypatch):
    runs = []

    def run(rows, **kwargs):
        result = type(bundled.driver).run(bundled.driver, rows, **kwargs)
        runs.append(
            (int(rows["position"][-1]), int(rows["flags"][-1]), result.rows["token"][-1, 0])
        )
        return result

    monkeypatch.setattr(bundled.driver, "run", run)
    bundled.call_seconds = 0.0
    overlay.generate("", max_new_tokens=6, temperature=1.0, top_k=200, top_p=0.9, seed=4)
    all_logits = RowFlag.SAMPLE | RowFlag.FULL_LOGITS
    first = (0, int(RowFlag.SAMPLE), TOKEN_UNDECIDED)
    assert runs == [first] + [(p, int(all_logits), TOKEN_UNDECIDED) for p in range(6)]


@pytest.mark.parametrize("way", WAYS)
def test_generate_beside_three_others_gives_the_same_tokens(overlay, expected, bundled, way):
    prompts = ["The little fox", PROMPT, "", "Lily and Tom went to the park. They"]
    batch = overlay.generate(prompts, max_new_tokens=LENGTH, seed=11, **WAYS[way])
    assert [out.prompt_tokens for out in batch] == [bundled.tokenizer.encode(p) for p in prompts]
    assert batch[1].tokens == expected[way]


def test_generate_more_prompts_than_rows_gives_each_its_own_text(overlay, bundled):
    prompts = [f"{PROMPT} there were {n}" for n in range(bundled.driver.limits.max_rows + 3)]
    batch = overlay.generate(prompts, max_new_tokens=6, temperature=0)
    alone = [overlay.generate(p, max_new_tokens=6, temperature=0) for p in prompts]
    assert [out.tokens for out in batch] == [out.tokens for out in alone]


@pytest.mark.parametrize("way", WAYS)
def test_stream_concatenated_is_generate(overlay, bundled, way):
    finished = []
    kwargs = dict(max_new_tokens=LENGTH, seed=5, **WAYS[way])
    text = "".join(overlay.stream(PROMPT, on_finish=finished.append, **kwargs))
    out = overlay.generate(PROMPT, **kwargs)
    assert text == out.text == finished[0].text
    assert finished[0].tokens == out.tokens


def test_logits_in_one_prefill_or_token_by_token_are_the_same(overlay, bundled):
    tokens = bundled.tokenizer.encode(PROMPT + ", there was a little dog named Max. He was red.")
    whole = overlay.logits(tokens)
    assert whole.shape == (len(tokens), bundled.config.vocab_size)
    assert whole.dtype == np.float32
    for n in range(1, len(tokens), 5):
        np.testing.assert_array_equal(overlay.logits(tokens[:n]), whole[:n])


# ---- known answers ---------------------------------------------------------------------


@needs_shared
def test_generate_stories260k_greedy_tells_llama2c_story_for_a_while(llama, overlay):
    oracle = json.loads((MODELS / "stories260K.oracle.json").read_text())
    out = overlay.generate(PROMPT, max_new_tokens=100, temperature=0)
    assert (PROMPT + out.text).startswith(oracle["greedy_text_200_steps"][:150])
    assert out.prompt_tokens + out.tokens[:90] == oracle["greedy_ids"][:95]


@needs_shared
def test_logits_stories260k_perplexity_and_top_tokens_are_llama2c(llama, overlay):
    from llama_pynq.kernel.reference import FloatModel

    ids = json.loads((MODELS / "stories260K.oracle.json").read_text())["greedy_ids"]
    with load_checkpoint(MODELS / "stories260K.bin") as checkpoint:
        true = FloatModel(checkpoint).forward(ids, range(len(ids)))
    got = overlay.logits(ids)

    def nll(logits):
        wide = logits[:-1].astype(np.float64)
        lse = np.log(np.exp(wide - wide.max(1, keepdims=True)).sum(1)) + wide.max(1)
        return (lse - wide[np.arange(len(wide)), ids[1:]]).mean()

    assert abs(np.exp(nll(got) - nll(true)) - 1) < 0.005
    assert (got.argmax(1) == true.argmax(1)).mean() >= 0.98


# ---- results ---------------------------------------------------------------------------


def test_generate_result_holds_what_was_produced(overlay, bundled):
    out = overlay.generate(PROMPT, max_new_tokens=7, seed=3)
    assert len(out.tokens) == 7
    assert out.finish_reason == "length"
    assert out.prompt_tokens == bundled.tokenizer.encode(PROMPT)
    assert PROMPT + out.text == bundled.tokenizer.decode(out.prompt_tokens + out.tokens)
    assert out.seed == 3
    assert out.tokens_per_second > 0
    assert out.logprobs is None
    assert out.device == "emulated-host"


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


def test_generate_empty_prompt_starts_from_bos(overlay, bundled):
    out = overlay.generate("", max_new_tokens=5, temperature=0)
    assert out.prompt_tokens == [bundled.tokenizer.bos_id]
    assert overlay.logits([1])[0].argmax() == out.tokens[0]


def test_generate_empty_batch_gives_an_empty_list(overlay, bundled):
    assert overlay.generate([]) == []


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


# ---- bad input: the error names it, and the next call works -----------------------------


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda o: o.generate(3), RequestError, "must be a string or a list of strings"),
        (lambda o: o.generate(b"abc"), RequestError, "must be a string or a list of strings"),
        (lambda o: o.generate("a", stop=5), RequestError, "stop is 5"),
        (lambda o: o.generate("a", temperature=1e-40), RequestError, "temperature is 1e-40"),
        (lambda o: o.logits(5), RequestError, "not a list of token ids"),
        (lambda o: o.logits([[1, 2]]), RequestError, "not a list of token ids"),
        (lambda o: o.logits([[1, 2], [1]]), RequestError, "not a list of token ids"),
        (lambda o: o.load_model(slots="4"), RequestError, "slots is '4'"),
        (lambda o: o.load_model(rope_theta="a"), RequestError, "rope_theta is 'a'"),
        (lambda o: o.load_model(rope_theta=-1), RequestError, "rope_theta is -1"),
        (lambda o: o.generate([3]), RequestError, "the prompt is 3: it must be a string"),
        (lambda o: o.generate("a", max_new_tokens=0), RequestError, "max_new_tokens is 0"),
        (lambda o: o.generate("a", temperature=-1), RequestError, "temperature is -1"),
        (lambda o: o.generate("a", top_p=2), RequestError, "top_p is 2"),
        (lambda o: o.generate("a", seed=-1), RequestError, "seed is -1"),
        (lambda o: o.generate("a", stop=""), RequestError, "stop is ''"),
        (lambda o: o.generate("a", logprobs=-1), RequestError, "logprobs is -1"),
        (lambda o: o.stream("a", top_k=-1), RequestError, "top_k is -1"),
        (lambda o: o.generate("word " * 3000), RequestError, "the model's context holds"),
        (lambda o: o.logits([]), RequestError, "tokens is empty"),
        (lambda o: o.logits([0.5]), RequestError, "not token ids"),
        (lambda o: o.logits([1, 10**6]), RequestError, "token id 1000000 is outside"),
        (lambda o: o.logits([-1]), RequestError, "token id -1 is outside"),
        (lambda o: o.logits([1] * 5000), RequestError, "5000 tokens are more than"),
        (lambda o: o.load_model("nowhere.bin"), FileNotFoundError, "nowhere.bin"),
        (lambda o: o.load_model(slots=0), RequestError, "slots is 0"),
        (lambda o: o.load_model(group_size=48), LimitError, "group_size 48"),
        (lambda o: o.load_model(weight_bits=5), LimitError, "weight_bits 5"),
        (lambda o: o.load_model(kv_bits=16), RequestError, "kv_bits is 16"),
        (lambda o: o.load_model(Path(__file__), "t"), CheckpointError, "test_llama.py"),
        (lambda o: o.load_model(tokenizer=__file__), TokenizerError, "test_llama.py"),
    ],
)  # fmt: skip
def test_bad_input_is_named_and_the_next_call_works(overlay, bundled, expected, call, error, text):
    with pytest.raises(error) as raised:
        call(overlay)
    assert text in str(raised.value)
    assert tokens_of(overlay, "greedy") == expected["greedy"]


@needs_shared
def test_load_model_with_a_foreign_tokenizer_names_both_sizes(overlay, bundled):
    with pytest.raises(TokenizerError, match="512.*32000"):
        overlay.load_model(MODELS / "stories260K.bin", tokenizer=MODELS / "tokenizer32k.bin")
    assert overlay.generate(PROMPT, max_new_tokens=3, temperature=0).tokens


@needs_shared
def test_load_model_without_a_tokenizer_asks_for_one(overlay, bundled):
    with pytest.raises(TokenizerError, match="give its file"):
        overlay.load_model(MODELS / "stories260K.bin")


def test_calls_before_load_model_say_so(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA_PYNQ_LOCKS", str(tmp_path))
    with opened() as overlay:
        with pytest.raises(RequestError, match=r"no model is loaded: call load_model\(\) first"):
            overlay.generate("a")
        overlay.load_model()
        assert overlay.generate("a", max_new_tokens=1).tokens


def test_load_model_device_memory_full_is_named_and_a_smaller_one_loads(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA_PYNQ_LOCKS", str(tmp_path))
    with opened(memory_bytes=12 << 20) as overlay:
        with pytest.raises(DeviceMemoryError):
            overlay.load_model(slots=64)
        with pytest.raises(RequestError, match="no model is loaded"):
            overlay.generate("a")
        overlay.load_model()
        assert overlay.generate("a", max_new_tokens=2).tokens


def test_stream_left_unfinished_keeps_its_text_beside_others(overlay, bundled, expected):
    stream = overlay.stream(PROMPT, max_new_tokens=LENGTH, temperature=0)
    begin = next(stream)
    assert tokens_of(overlay, "greedy") == expected["greedy"]
    assert begin + "".join(stream) == bundled.tokenizer.decode([1, *expected["greedy"]])


def test_stream_tokens_are_generates_with_its_probabilities(overlay, bundled):
    kwargs = dict(max_new_tokens=40, temperature=0.9, seed=7, logprobs=4)
    finished = []
    tokens = list(overlay.stream_tokens(PROMPT, on_finish=finished.append, **kwargs))
    whole = overlay.generate(PROMPT, **kwargs)
    assert "".join(t.text for t in tokens) == whole.text
    assert [t.token for t in tokens if t.token is not None] == whole.tokens
    assert [t.logprob for t in tokens if t.token is not None] == whole.logprobs
    assert finished[0].tokens == whole.tokens
    assert all(t.logprob is None for t in overlay.stream_tokens(PROMPT, max_new_tokens=3))


def test_stream_tokens_tells_which_came_in_one_call(overlay, bundled, monkeypatch):
    calls, take = [], bundled.scheduler.take

    def counted(plan, result):
        calls.append(len(result.rows))
        take(plan, result)

    monkeypatch.setattr(bundled.scheduler, "take", counted)
    kwargs = dict(max_new_tokens=60, temperature=0)
    texts = set()
    for seconds, most in ((1e-9, 1), (1e9, overlay.llama.limits.max_steps)):
        bundled.call_seconds = 1e9
        calls.clear()
        tokens = list(overlay.stream_tokens(PROMPT, call_seconds=seconds, **kwargs))
        texts.add("".join(t.text for t in tokens))
        assert max(calls) == min(most, 59)  # prefill yields the first token alone
        calls[-1] += len(tokens) - 60  # the end of the text comes with the last call
        assert [t.more for t in tokens] == [i < n - 1 for n in calls for i in range(n)]
    assert len(texts) == 1


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), "0.1", None])
def test_stream_tokens_refuses_a_call_of_no_time(overlay, bundled, seconds):
    with pytest.raises(RequestError, match="call_seconds is .*: it must be a positive number"):
        overlay.stream_tokens(PROMPT, call_seconds=seconds)


def test_stream_closed_early_finishes_with_what_it_gave(overlay, bundled, expected):
    finished = []
    stream = overlay.stream(PROMPT, temperature=0, on_finish=finished.append)
    begin = next(stream) + next(stream)
    stream.close()
    (out,) = finished
    assert (out.finish_reason, out.text) == ("closed", begin)
    assert out.tokens == expected["greedy"][: len(out.tokens)]


def test_stream_does_not_count_its_readers_time(overlay, bundled, monkeypatch):
    finished, asleep, real = [], [0.0], time.perf_counter
    monkeypatch.setattr("time.perf_counter", lambda: real() + asleep[0])
    overlay.llama.model.call_seconds = 1e-4  # a few tokens per call
    for _ in overlay.stream(PROMPT, max_new_tokens=30, temperature=0, on_finish=finished.append):
        asleep[0] += 1000.0  # the fake clock advances while the reader reads
    assert 0 < finished[0].decode_seconds < 1000


@pytest.fixture
def ahead(bundled, monkeypatch):
    """Make streams of the bundled model use calls of 8 tokens, whatever the machine's load."""
    monkeypatch.setattr(bundled.scheduler, "steps", lambda ready: 8 if ready[0].tokens else 1)
    monkeypatch.setattr(bundled.scheduler, "ahead_part", np.inf)


def test_stream_device_works_while_the_reader_reads(overlay, bundled, expected, ahead):
    driver, running = overlay.llama, []
    tokens = overlay.stream_tokens(PROMPT, max_new_tokens=34, temperature=0)
    given = []
    for token in tokens:
        given.append(token.token)
        running.append(driver.pending is not None)
    assert given[:34] == expected["greedy"][:34]
    # Not with the first token, before the reader's time is known, and not with the last ones.
    assert running[:34] == [False] + [True] * 32 + [False]


def test_stream_slow_reader_is_waited_for(overlay, bundled, ahead, monkeypatch):
    """Otherwise the device's time could not be measured."""
    asleep, real = [0.0], time.perf_counter
    monkeypatch.setattr(bundled.scheduler, "ahead_part", 0.5)
    monkeypatch.setattr("time.perf_counter", lambda: real() + asleep[0])
    for _ in overlay.stream_tokens(PROMPT, max_new_tokens=34, temperature=0):
        assert overlay.llama.pending is None
        asleep[0] += 1000.0  # on the fake clock


def test_stream_with_a_call_under_way_beside_other_calls(overlay, bundled, expected, ahead):
    driver, given = overlay.llama, []
    for token in overlay.stream_tokens(PROMPT, max_new_tokens=LENGTH, temperature=0):
        given.append(token.token)
        if len(given) in (5, 12, 20):
            assert driver.pending
            assert tokens_of(overlay, "greedy") == expected["greedy"]
            assert not driver.pending
    assert given[:LENGTH] == expected["greedy"]


@pytest.mark.parametrize("when", [0, 1, 5])
def test_stream_closed_with_a_call_under_way_gives_its_slot_back(overlay, expected, ahead, when):
    driver, free = overlay.llama, overlay.llama.model.slots.free
    tokens = overlay.stream_tokens(PROMPT, max_new_tokens=LENGTH, temperature=0)
    for _ in range(1 + when):
        next(tokens)
    assert (driver.pending is not None) == (when > 0)
    tokens.close()
    assert not driver.running and driver.model.slots.free == free
    assert tokens_of(overlay, "greedy") == expected["greedy"]


def test_stream_rate_excludes_calls_that_end_unobserved(overlay, bundled, ahead):
    real = time.perf_counter

    def left_out():
        finished, given, slept = [], 0, 20.0
        with pytest.MonkeyPatch.context() as patch:
            for _ in overlay.stream_tokens(
                PROMPT, max_new_tokens=33, temperature=0, on_finish=finished.append
            ):
                given += 1
                if given == 12:  # let a call of eight tokens end unobserved
                    while not overlay.device.emulator.wait(1000):
                        pass
                    patch.setattr("time.perf_counter", lambda: real() + slept)
        (out,) = finished
        rate = (33 - 1 - 8) / out.decode_seconds
        return out.decode_seconds < slept and out.tokens_per_second == pytest.approx(rate)

    assert any(left_out() for _ in range(20))  # this thread may be held up in any of them


@pytest.mark.parametrize("another", [True, False])
def test_stream_rate_excludes_the_readers_time(overlay, bundled, ahead, another):
    """The rate leaves out the reader's time, also if another call waits or the end goes unseen."""

    def right():
        finished, real, asleep = [], time.perf_counter, [0.0]
        tokens = overlay.stream_tokens(
            PROMPT, max_new_tokens=60, temperature=0, on_finish=finished.append
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("time.perf_counter", lambda: real() + asleep[0])
            for _ in range(12):
                next(tokens)
            if another:
                overlay.generate("", max_new_tokens=1)
            else:
                while not overlay.device.emulator.wait(1000):
                    pass
            asleep[0] += 1000.0
            for _ in range(6):
                next(tokens)
            tokens.close()
        (out,) = finished
        assert len(out.tokens) == 18 and 0 < out.decode_seconds < 1000
        # One token is of the untimed call.
        return out.tokens_per_second == pytest.approx((18 - 1 - 1) / out.decode_seconds)

    assert any(right() for _ in range(20))  # this thread may be held up in any of them


def test_stream_gives_the_tokens_that_came_before_an_error(overlay, bundled, expected, ahead):
    tokens = overlay.stream_tokens(PROMPT, max_new_tokens=LENGTH, temperature=0)
    given = []
    with pytest.MonkeyPatch.context() as patch:
        for name, error in (("begin", "no start"), ("run", "no run")):

            def fail(*args, error=error, **kwargs):
                raise RuntimeError(error)

            patch.setattr(overlay.llama, name, fail)
            if name == "begin":
                given += [next(tokens).token for _ in range(2)]
        with pytest.raises(RuntimeError, match="no run"):
            while True:
                given.append(next(tokens).token)
    assert given == expected["greedy"][:9]


def test_stream_whose_overlay_is_reset_under_way_says_so(overlay, bundled, expected, ahead):
    tokens = overlay.stream_tokens(PROMPT, max_new_tokens=LENGTH, temperature=0)
    for _ in range(3):
        next(tokens)
    assert overlay.llama.pending
    overlay.reset()
    with pytest.raises(RequestError, match="no longer on the device"):
        list(tokens)
    assert tokens_of(overlay, "greedy") == expected["greedy"]


def test_stream_with_power_has_the_energy_of_generate(overlay, bundled):
    class Meter:
        def __init__(self):
            self.calls = []

        def sample(self):
            self.calls.append("sample")

        def mark(self, name, begin, end):
            assert end >= begin
            self.calls.append(name)

        def energy(self, begin, end, texts=()):
            self.calls.append(list(texts))
            return "a test measures nothing"

    meter, finished = Meter(), []
    overlay.load_model(power=meter)
    assert meter.calls == ["load"]
    meter.calls.clear()
    list(overlay.stream(PROMPT, max_new_tokens=5, power=meter, on_finish=finished.append))
    out = finished[0]
    texts = [(len(out.prompt_tokens), len(out.tokens))]
    assert meter.calls == ["sample", "sample", "prefill", "decode", texts]
    assert out.energy is None and out.energy_note == "a test measures nothing"


def test_session_runs_rows_in_a_slot_of_its_own(overlay, bundled):
    stream = overlay.stream(PROMPT, temperature=0)
    next(stream)
    with bundled.session() as session, session.device() as driver:
        rows = make_rows(1)
        rows["token"], rows["slot"], rows["flags"] = 1, session.slot, RowFlag.SAMPLE
        token = int(driver.run(rows).rows[0]["token"][0])
    assert token == overlay.generate("", max_new_tokens=1, temperature=0).tokens[0]
    stream.close()
    with bundled.session() as session:
        overlay.load_model()
        with pytest.raises(RequestError, match="no longer on the device"):
            with session.device():
                pass


def test_streams_holding_every_slot_give_device_busy_until_closed(overlay):
    overlay.load_model(slots=2)
    streams = [overlay.stream(PROMPT, max_new_tokens=9, seed=1) for _ in range(2)]
    for stream in streams:
        next(stream)
    with pytest.raises(DeviceBusy, match="all 2 sequence slots are in use"):
        overlay.generate("a")
    streams[0].close()
    assert overlay.generate("a", max_new_tokens=1).tokens
    streams[1].close()


def test_generate_from_two_threads_gives_each_its_text(overlay, bundled, expected):
    results = {}

    def work(way):
        results[way] = tokens_of(overlay, way)

    ways = ["greedy", "temperature", "top_p"]
    threads = [threading.Thread(target=work, args=(way,)) for way in ways]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {way: expected[way] for way in ways}


@pytest.mark.parametrize("damage", [b"", b"garbage" * 100, None])
def test_load_model_damaged_cache_is_rebuilt(overlay, bundled, expected, damage):
    path = bundled.packed.path
    data = path.read_bytes()
    if damage is None:  # one weight's bit
        damage = data[:-100] + bytes([data[-100] ^ 4]) + data[-99:]
    path.write_bytes(damage)
    overlay.load_model()
    assert path.read_bytes() == data
    assert tokens_of(overlay, "greedy") == expected["greedy"]


def test_logits_from_two_threads_are_each_its_own(overlay, bundled):
    texts = ["Once upon a time there was a dog", "The little fox ran to the big tree and said"]
    tokens = [bundled.tokenizer.encode(text) for text in texts]
    expected = [overlay.logits(ids) for ids in tokens]
    wrong = []

    def work(which):
        for _ in range(20):
            if not np.array_equal(overlay.logits(tokens[which]), expected[which]):
                wrong.append(which)

    threads = [threading.Thread(target=work, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_stream_over_a_reset_says_so_and_leaves_the_slots_right(overlay, bundled, expected):
    stream = overlay.stream(PROMPT, max_new_tokens=LENGTH, temperature=0)
    next(stream)
    overlay.reset()
    with pytest.raises(RequestError, match="no longer on the device"):
        list(stream)
    model = overlay.llama.model
    assert model.slots.free == list(range(model.driver.slots))
    assert tokens_of(overlay, "greedy") == expected["greedy"]


def test_reset_with_the_packed_file_gone_packs_again(overlay, bundled, expected):
    bundled.packed.path.unlink()
    overlay.reset()
    assert tokens_of(overlay, "greedy") == expected["greedy"]


def test_batch_that_finds_no_room_for_its_cache_goes_in_turns(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA_PYNQ_LOCKS", str(tmp_path))
    with opened(memory_bytes=20 << 20) as overlay:
        overlay.load_model(slots=1)
        prompts = [f"Once there were {n}" for n in range(16)]
        batch = overlay.generate(prompts, max_new_tokens=4, temperature=0)
        assert overlay.llama.slots == 1
        alone = [overlay.generate(p, max_new_tokens=4, temperature=0).tokens for p in prompts]
        assert [out.tokens for out in batch] == alone


def test_load_model_again_where_memory_holds_but_one(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA_PYNQ_LOCKS", str(tmp_path))
    with opened(memory_bytes=8 << 20) as overlay:
        for _ in range(3):
            overlay.load_model(slots=2)
            assert overlay.generate("a", max_new_tokens=2).tokens


def test_tokens_per_second_of_one_token_is_not_a_figure(overlay, bundled):
    assert np.isnan(overlay.generate(PROMPT, max_new_tokens=1).tokens_per_second)


# ---- sampling parameters in one object ------------------------------------------------


def test_params_give_the_text_that_the_keywords_give(overlay, bundled):
    kwargs = dict(max_new_tokens=20, temperature=0.9, top_k=30, seed=5, stop="zzz", logprobs=1)
    params = SamplingParams(**kwargs)
    expected = overlay.generate(PROMPT, **kwargs)
    for out in (overlay.generate(PROMPT, params=params), overlay.generate([PROMPT], params=params)):
        found = out[0] if isinstance(out, list) else out
        assert (found.text, found.tokens, found.seed) == (expected.text, expected.tokens, 5)
        assert found.logprobs == expected.logprobs
    assert "".join(overlay.stream(PROMPT, params=params)) == expected.text
    tokens = list(overlay.stream_tokens(PROMPT, params=params))
    assert [t.token for t in tokens if t.token is not None] == expected.tokens


def test_params_and_keywords_together_are_refused(overlay, bundled):
    params = SamplingParams(temperature=0)
    for call in (overlay.generate, overlay.stream, overlay.stream_tokens):
        with pytest.raises(RequestError, match="give one or the other"):
            call(PROMPT, params=params, top_k=3)
        with pytest.raises(RequestError, match="params is dict: it must be a SamplingParams"):
            call(PROMPT, params={"top_k": 3})


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


def test_ignore_eos_of_one_sequence_leaves_another_its_text(overlay, bundled):
    """In a call with such a row, no row stops on the device."""
    ended = overlay.generate(PROMPT, temperature=0)
    texts = [
        bundled.new_sequence(PROMPT, SamplingParams(len(ended.tokens) + 9, 0, ignore_eos=on), 0)
        for on in (False, True)
    ]
    bundled.scheduler.run(texts)
    assert texts[0].tokens == ended.tokens and texts[0].finish_reason == "stop"
    assert texts[1].tokens[: len(ended.tokens)] == ended.tokens
    assert len(texts[1].tokens) == len(ended.tokens) + 9


@pytest.mark.parametrize("given", [{"slots": True}, {"rope_theta": True}])
def test_load_model_bools_are_no_numbers(overlay, bundled, given):
    (name,) = given
    with pytest.raises(RequestError, match=f"{name} is True: it must be a"):
        overlay.load_model(**given)
    assert overlay.generate(PROMPT, max_new_tokens=2).tokens
