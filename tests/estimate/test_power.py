"""Power model of emulated boards: compared with published figures; marked as modelled."""

from dataclasses import replace

import pytest

from llama_pynq import EmulatedDevice, LlamaOverlay
from llama_pynq.boards import boards
from llama_pynq.checkpoint.shapes import STORIES
from llama_pynq.estimate.power import (
    ERROR,
    PUBLISHED,
    TERMS,
    EnergyModel,
    idle_watts,
    watts,
    watts_of,
)
from llama_pynq.estimate.predict import predict
from llama_pynq.measure.power import PowerRecorder, rails

BOARDS = boards()
STORIES110M = STORIES["stories110M"]


@pytest.mark.parametrize("peer", PUBLISHED, ids=lambda peer: peer.name)
def test_published_power_is_within_the_stated_error(peer):
    modelled = watts(peer.terms, peer.luts, peer.clock_mhz, peer.bytes_per_s, 0.0)
    assert modelled == pytest.approx(peer.watts, rel=ERROR)
    assert peer.source


def test_terms_of_a_board_name_their_sources():
    # No idle power is published for the PYNQ-Z1 and Z2: they have no figure instead of a guess.
    assert {"pynq-z1", "pynq-z2"}.isdisjoint(TERMS) and TERMS.keys() <= BOARDS.keys()
    for terms in TERMS.values():
        assert terms.static_watts > 0 and terms.static_source and terms.source
        assert "assumed" not in terms.static_source + terms.source


def test_board_without_a_published_reading_has_no_watts():
    board = BOARDS["pynq-z2"]
    assert watts_of(predict(STORIES["stories15M"], board)) is None
    assert idle_watts(board) is None
    with LlamaOverlay(device=EmulatedDevice(board="pynq-z2")) as overlay:
        overlay.load_model()
        found = rails(overlay)
        assert not found
        (why,) = found.why
        assert why.startswith("the model: nobody published what the board draws when idle")
        with PowerRecorder(found) as recorder:
            out = overlay.generate("Once", max_new_tokens=4, seed=1, power=recorder)
    assert out.energy is None and "no modelled watts" in out.energy_note


@pytest.mark.parametrize("name", TERMS)
def test_decoding_draws_more_than_idling_and_less_than_the_supply(name):
    board = BOARDS[name]
    active = watts_of(predict(STORIES110M, board))
    assert idle_watts(board) < active < 75


def test_more_bytes_draw_more():
    board = BOARDS["kv260"]
    alone = predict(STORIES110M, board)
    faster = replace(alone, read_bytes=2 * alone.read_bytes)
    assert watts_of(faster) > watts_of(alone)


@pytest.fixture(scope="module")
def overlay():
    with LlamaOverlay(device=EmulatedDevice(board="kv260")) as overlay:
        overlay.load_model()
        yield overlay


def test_energy_of_a_text_is_modelled_with_the_boards_seconds(overlay):
    found = rails(overlay)
    with PowerRecorder(found) as recorder:
        out = overlay.generate("Once", max_new_tokens=40, seed=1, power=recorder)
    energy = out.energy
    assert energy.kind == "modelled" and "KV260" in energy.source
    assert energy.tokens == len(out.tokens)
    # The board's modelled time, not this computer's.
    step = predict(overlay.llama.config, BOARDS["kv260"], position=len(out.tokens) // 2).seconds
    assert energy.seconds == pytest.approx(step * len(out.tokens), rel=0.25)
    assert energy.joules == pytest.approx(energy.mean_watts * energy.seconds)
    assert energy.idle_watts < energy.mean_watts <= energy.peak_watts
    assert not found["board"].read().measured


def test_longer_texts_and_more_of_them_take_more(overlay):
    model = EnergyModel(overlay.llama, BOARDS["kv260"])
    one = model.energy([(5, 50)])
    assert model.energy([(5, 100)]).joules > 1.5 * one.joules
    assert model.energy([(100, 50)]).joules > one.joules
    both = model.energy([(5, 50)] * 2)
    assert one.joules < both.joules < 2 * one.joules  # both share each pass over the weights
    assert both.joules_per_token < one.joules_per_token


@pytest.mark.parametrize("text", [(1, 0), (1, 1), (500, 0), (500, 13), (1, 512)])
def test_shortest_and_longest_texts_have_an_energy(overlay, text):
    assert overlay.llama.config.seq_len == 512
    energy = EnergyModel(overlay.llama, BOARDS["kv260"]).energy([text])
    assert energy.joules > 0 and energy.seconds > 0


def test_a_recorder_does_not_predict_for_every_sample(overlay, monkeypatch):
    model = EnergyModel(overlay.llama, BOARDS["kv260"])
    first = model.active_watts()
    monkeypatch.setattr("llama_pynq.estimate.power.predict", None)
    assert model.active_watts() == first > idle_watts(BOARDS["kv260"])


def test_idle_board_reads_its_static_power(overlay):
    assert rails(overlay)["board"].read().watts == idle_watts(BOARDS["kv260"])
