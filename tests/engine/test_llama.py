"""Llama on the emulated device: generate, stream and logits, their results, and bad input."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from support.generating import LENGTH, PROMPT, WAYS, needs_shared, opened, tokens_of
from support.paths import MODELS

from llama_pynq.checkpoint.load import load_checkpoint
from llama_pynq.energy import Energy
from llama_pynq.engine.sampling import SamplingParams
from llama_pynq.errors import (
    CheckpointError,
    LimitError,
    RequestError,
    TokenizerError,
)
from llama_pynq.kernel.reference import KernelModel
from llama_pynq.measure.power import PowerRecorder, Rail
from llama_pynq.models import BUNDLED
from llama_pynq.weights.quantize import QuantizedModel


@pytest.fixture
def llama(overlay):
    """stories260K, if the file is available, with the default call length."""
    if not MODELS.exists():
        pytest.skip(f"the real checkpoint is not here: {MODELS}")
    return overlay.load_model(MODELS / "stories260K.bin", tokenizer=MODELS / "tok512.bin")


# ---- the same text in every way of generating ----------------------------------------


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


# ---- known answers -------------------------------------------------------------------


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


# ---- results -------------------------------------------------------------------------


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


def test_generate_empty_prompt_starts_from_bos(overlay, bundled):
    out = overlay.generate("", max_new_tokens=5, temperature=0)
    assert out.prompt_tokens == [bundled.tokenizer.bos_id]
    assert overlay.logits([1])[0].argmax() == out.tokens[0]


def test_generate_empty_batch_gives_an_empty_list(overlay, bundled):
    assert overlay.generate([]) == []


# ---- bad input: the error names it, and the next call works --------------------------


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda o: o.generate(3), RequestError, "a list of token ids, or a list"),
        (lambda o: o.generate(b"abc"), RequestError, "a list of token ids, or a list"),
        (lambda o: o.generate("a", stop=5), RequestError, "stop is 5"),
        (lambda o: o.generate("a", temperature=1e-40), RequestError, "temperature is 1e-40"),
        (lambda o: o.logits(5), RequestError, "not a list of token ids"),
        (lambda o: o.logits([[1, 2]]), RequestError, "not a list of token ids"),
        (lambda o: o.logits([[1, 2], [1]]), RequestError, "not a list of token ids"),
        (lambda o: o.load_model(slots="4"), RequestError, "slots is '4'"),
        (lambda o: o.load_model(rope_theta="a"), RequestError, "rope_theta is 'a'"),
        (lambda o: o.load_model(rope_theta=-1), RequestError, "rope_theta is -1"),
        (lambda o: o.generate(["a", 3]), RequestError, "the prompt is 3: it must be a string"),
        (lambda o: o.generate("a", max_new_tokens=-1), RequestError, "max_new_tokens is -1"),
        (lambda o: o.generate([1, 9999999]), RequestError, "token id 9999999 is outside the voc"),
        (lambda o: o.generate([[]]), RequestError, "the prompt is empty: give at least"),
        (lambda o: o.generate([1, 2.5]), RequestError, "the prompt holds values that are"),
        (lambda o: o.generate("", add_bos=False), RequestError, "is empty and add_bos is False"),
        (lambda o: o.generate("a", add_bos=1), RequestError, "add_bos is 1"),
        (lambda o: o.generate("a", n=0), RequestError, "n is 0: it must be 1 to 1024"),
        (lambda o: o.generate(["a", "b"], seed=[1]), RequestError, "seed has 1 values: give one"),
        (lambda o: o.generate(["a"], seed=[1.5]), RequestError, "seed is 1.5"),
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


# ---- streams -------------------------------------------------------------------------


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


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), "0.1", None])
def test_stream_tokens_refuses_a_call_of_no_time(overlay, bundled, seconds):
    with pytest.raises(RequestError, match="call_seconds is .*: it must be a positive number"):
        overlay.stream_tokens(PROMPT, call_seconds=seconds)


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


def test_tokens_per_second_of_one_token_is_not_a_figure(overlay, bundled):
    out = overlay.generate(PROMPT, max_new_tokens=1, logprobs=2)
    assert out.tokens_per_second is None
    json.dumps(dataclasses.asdict(out), allow_nan=False)


# ---- sampling parameters in one object -----------------------------------------------


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


# ---- prompts, seeds and texts ---------------------------------------------------------


def test_prompt_of_token_ids_gives_the_text_of_its_string(overlay, bundled):
    ids = bundled.tokenizer.encode(PROMPT)
    options = {"max_new_tokens": 12, "seed": 5}
    expected = overlay.generate(PROMPT, **options)
    for given in (ids, tuple(ids), np.array(ids)):
        out = overlay.generate(given, **options)
        assert (out.text, out.tokens, out.prompt_tokens) == (
            expected.text, expected.tokens, ids,
        )  # fmt: skip
    assert "".join(overlay.stream(ids, **options)) == expected.text
    batch = overlay.generate([ids, PROMPT], **options)
    assert [out.tokens for out in batch] == [expected.tokens] * 2


def test_add_bos_false_leaves_out_the_first_token(overlay, bundled):
    out = overlay.generate(PROMPT, add_bos=False, max_new_tokens=3, seed=1)
    assert out.prompt_tokens == bundled.tokenizer.encode(PROMPT, bos=False)
    assert out.tokens == overlay.generate(out.prompt_tokens, max_new_tokens=3, seed=1).tokens


def test_n_texts_are_those_of_consecutive_seeds(overlay, bundled):
    alone = [overlay.generate(PROMPT, max_new_tokens=20, seed=s) for s in (7, 8, 9)]
    texts = overlay.generate(PROMPT, max_new_tokens=20, seed=7, n=3)
    assert [(out.seed, out.tokens) for out in texts] == [(a.seed, a.tokens) for a in alone]
    groups = overlay.generate([PROMPT, ""], max_new_tokens=5, seed=2**64 - 1, n=2)
    assert [[out.seed for out in group] for group in groups] == [[2**64 - 1, 0]] * 2
    assert len(overlay.generate([PROMPT], max_new_tokens=2, n=1)) == 1


def test_list_of_seeds_has_one_for_each_prompt(overlay, bundled):
    batch = overlay.generate([PROMPT] * 3, max_new_tokens=20, seed=[3, 4, 3])
    alone = {s: overlay.generate(PROMPT, max_new_tokens=20, seed=s).tokens for s in (3, 4)}
    assert [(out.seed, out.tokens) for out in batch] == [(s, alone[s]) for s in (3, 4, 3)]
    with pytest.raises(RequestError, match="params has a seed, and a list"):
        overlay.generate([PROMPT], seed=[1], params=SamplingParams(seed=2))


def test_equal_prompts_without_a_seed_draw_different_texts(overlay, bundled):
    batch = overlay.generate([PROMPT] * 6, max_new_tokens=30, temperature=1.0)
    assert len({out.seed for out in batch}) == 6
    assert len({out.text for out in batch}) > 1
    texts = overlay.generate(PROMPT, max_new_tokens=30, temperature=1.0, n=4)
    assert len({out.seed for out in texts}) == 4


def test_no_new_tokens_give_an_empty_text(overlay, bundled):
    out = overlay.generate(PROMPT, max_new_tokens=0, logprobs=2)
    assert (out.text, out.tokens, out.finish_reason, out.logprobs) == ("", [], "length", [])
    assert out.prompt_tokens == bundled.tokenizer.encode(PROMPT)
    done = []
    assert list(overlay.stream(PROMPT, max_new_tokens=0, on_finish=done.append)) == []
    assert [d.finish_reason for d in done] == ["length"]
    assert overlay.generate([PROMPT] * 2, max_new_tokens=0)[1].tokens == []
    assert overlay.generate(PROMPT, max_new_tokens=2).tokens, "the slot is free again"


@pytest.mark.parametrize("logprobs", [0, 3, 20, 100])
def test_echo_scores_the_prompt(overlay, bundled, logprobs):
    out = overlay.generate(PROMPT, max_new_tokens=0, echo=True, logprobs=logprobs)
    ids, logits = out.prompt_tokens, overlay.logits(out.prompt_tokens).astype(np.float64)
    assert (out.text, out.tokens) == (PROMPT, [])
    assert [score.token for score in out.logprobs] == ids
    first, *scores = out.logprobs
    assert (first.logprob, first.top) == (None, {})
    for score, row, token in zip(scores, logits, ids[1:], strict=False):
        total = np.log(np.exp(row - row.max()).sum()) + row.max()
        assert score.logprob == pytest.approx(row[token] - total, abs=1e-4)
        best = np.argsort(-row, kind="stable")[:logprobs]
        assert list(score.top) == best.tolist()
        assert list(score.top.values()) == pytest.approx(list(row[best] - total), abs=1e-4)
    json.dumps(dataclasses.asdict(out), allow_nan=False)


def test_echo_of_generated_text_scores_it_as_generate_did(overlay, bundled):
    told = overlay.generate(PROMPT, max_new_tokens=20, seed=4, logprobs=2)
    whole = overlay.generate(PROMPT, max_new_tokens=20, seed=4, logprobs=2, echo=True)
    assert (whole.text, whole.tokens) == (PROMPT + told.text, told.tokens)
    n = len(told.prompt_tokens)
    assert whole.logprobs[n:] == told.logprobs
    ids = told.prompt_tokens + told.tokens
    again = overlay.generate(ids, max_new_tokens=0, echo=True, logprobs=2)
    assert again.text == PROMPT + told.text
    assert again.logprobs == whole.logprobs
    a, b = overlay.generate([PROMPT, "a"], n=2, max_new_tokens=1, seed=1, echo=True, logprobs=0)
    assert [len(out.logprobs) - len(out.tokens) for out in a] == [n, n]
    assert all(out.text.startswith("a") for out in b)


def test_echo_of_an_incomplete_character_shows_that_it_is(overlay, bundled):
    ids = [1, 3 + 0xE6, 3 + 0x97]
    assert overlay.generate(ids, max_new_tokens=0, echo=True).text == bundled.tokenizer.decode(ids)
    out = overlay.generate(ids, max_new_tokens=4, temperature=0, echo=True)
    assert out.text == bundled.tokenizer.decode(ids + out.tokens)


def test_stream_tokens_end_with_the_last_token(overlay, bundled):
    items = list(overlay.stream_tokens("Once", seed=1, max_new_tokens=9, logprobs=2))
    assert len(items) == 9 and all(item.logprob is not None for item in items)
    assert [item.more for item in items][-1] is False


def test_echo_without_logprobs_gives_text_alone(overlay, bundled):
    out = overlay.generate(PROMPT, max_new_tokens=3, seed=4, echo=True)
    assert out.text.startswith(PROMPT) and out.logprobs is None
    assert overlay.generate(PROMPT, max_new_tokens=0, echo=True).text == PROMPT


def test_special_tokens_of_a_prompt_are_parsed_when_asked_for(overlay, bundled):
    text = "The end.</s><s>" + PROMPT
    expected = [*bundled.tokenizer.encode("The end."), 2, *bundled.tokenizer.encode(PROMPT)]
    plain, parsed = (
        overlay.generate(text, max_new_tokens=5, seed=1, parse_special=on) for on in (False, True)
    )
    assert parsed.prompt_tokens == expected != plain.prompt_tokens
    assert "".join(overlay.stream(text, max_new_tokens=5, seed=1, parse_special=True)) == (
        parsed.text
    )
    tokens = overlay.stream_tokens(text, max_new_tokens=5, seed=1, parse_special=True)
    assert [t.token for t in tokens if t.token is not None] == parsed.tokens
    with pytest.raises(RequestError, match="parse_special is 'yes': it must be"):
        overlay.generate(text, parse_special="yes")


def test_repetition_penalty_below_one_favours_what_was_said(overlay, bundled):
    """As transformers: it divides positive logits, which 0.5 doubles."""
    out = overlay.generate(PROMPT, max_new_tokens=20, temperature=0, repetition_penalty=0.2)
    assert set(out.tokens) <= {*out.prompt_tokens, *out.tokens[:3]}


def test_stop_reason_names_the_string_or_token_that_ended_the_text(overlay, bundled):
    whole = overlay.generate(PROMPT, max_new_tokens=400, seed=1)
    assert whole.finish_reason == "stop"
    assert whole.stop_reason in (bundled.tokenizer.bos_id, bundled.tokenizer.eos_id)
    word = whole.text.split()[4]
    cut = overlay.generate(PROMPT, max_new_tokens=400, seed=1, stop=["no such text", word])
    assert (cut.finish_reason, cut.stop_reason) == ("stop", word)
    assert overlay.generate(PROMPT, max_new_tokens=2, seed=1).stop_reason is None


def test_energy_of_an_empty_text_says_that_no_token_was_generated(overlay, bundled):
    rail = Rail("meter", "a test", lambda: 2.0)
    with PowerRecorder({"meter": rail}) as recorder:
        done = []
        list(overlay.stream(PROMPT, max_new_tokens=0, power=recorder, on_finish=done.append))
        done.append(overlay.generate(PROMPT, max_new_tokens=0, power=recorder))
        for out in done:
            assert out.energy is None and "no token was generated" in out.energy_note
        assert overlay.generate(PROMPT, max_new_tokens=2, power=recorder).energy is not None
    assert "nan" not in str(Energy(1.0, 1.0, 1.0, 1.0, 1.0, 0, "a test", True))
