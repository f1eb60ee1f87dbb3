"""Slots of the KV cache: sessions, unfinished streams, resets and threads."""

import threading

import numpy as np
import pytest
from support.generating import LENGTH, PROMPT, opened, tokens_of

from llama_pynq.errors import DeviceBusy, RequestError
from llama_pynq.kernel.abi import RowFlag, make_rows


def test_stream_left_unfinished_keeps_its_text_beside_others(overlay, bundled, expected):
    stream = overlay.stream(PROMPT, max_new_tokens=LENGTH, temperature=0)
    begin = next(stream)
    assert tokens_of(overlay, "greedy") == expected["greedy"]
    assert begin + "".join(stream) == bundled.tokenizer.decode([1, *expected["greedy"]])


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
