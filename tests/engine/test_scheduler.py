"""The scheduler: rows and steps of calls, batches, streams with a call under way."""

import time

import numpy as np
import pytest
from support.generating import LENGTH, PROMPT, WAYS, tokens_of

from llama_pynq.engine.sampling import SamplingParams
from llama_pynq.errors import RequestError
from llama_pynq.kernel.abi import TOKEN_UNDECIDED, RowFlag

# ---- calls and batches ---------------------------------------------------------------


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


def test_stream_does_not_count_its_readers_time(overlay, bundled, monkeypatch):
    finished, asleep, real = [], [0.0], time.perf_counter
    monkeypatch.setattr("time.perf_counter", lambda: real() + asleep[0])
    overlay.llama.model.call_seconds = 1e-4  # a few tokens per call
    for _ in overlay.stream(PROMPT, max_new_tokens=30, temperature=0, on_finish=finished.append):
        asleep[0] += 1000.0  # the fake clock advances while the reader reads
    assert 0 < finished[0].decode_seconds < 1000


# ---- streams with a call under way ---------------------------------------------------


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


# ---- stop tokens ---------------------------------------------------------------------


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
