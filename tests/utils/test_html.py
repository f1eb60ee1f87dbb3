"""What objects show of themselves: a line, and a small table in notebooks."""

from html.parser import HTMLParser

import pytest

from llama_pynq import EmulatedDevice, Generation, LlamaOverlay
from llama_pynq.energy import Energy
from llama_pynq.utils.html import facts_table


class Cells(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.found = [], []
        self.feed(text)
        assert self.open == [], "a tag was left open"

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.found.append(data)


@pytest.fixture(scope="module")
def overlay(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLAMA_PYNQ_LOCKS", str(tmp_path_factory.mktemp("locks")))
        with LlamaOverlay(device=EmulatedDevice(threads=1)) as overlay:
            yield overlay


def generation(**changes):
    values = dict(text="a story", tokens=[5, 6, 7], prompt_tokens=[1], finish_reason="length",
                  seed=3, tokens_per_second=1234.56, prompt_seconds=0.1, decode_seconds=0.2,
                  logprobs=None, device="emulated-host")  # fmt: skip
    return Generation(**{**values, **changes})


def test_facts_are_escaped_and_none_is_left_out():
    cells = Cells(facts_table("a <b>", {"<i>": "1 < 2 & 3", "gone": None})).found
    assert cells == ["a <b>", "<i>", "1 < 2 & 3"]


def test_generation_shows_its_text_and_figures_not_its_ids():
    line = repr(generation(text="x" * 500, tokens=list(range(900, 1400))))
    assert len(line) < 220 and "901" not in line
    assert "500 tokens, 1,234.6 tokens/s (measured), ended by 'length', seed 3" in line
    cells = Cells(generation(text="<script> & so on\n")._repr_html_()).found
    assert cells[0] == "<script> & so on\n" and "seed 3, on emulated-host" in cells[1]


def test_generation_without_a_rate_shows_none():
    shown = repr(generation(tokens=[4], tokens_per_second=None))
    assert "1 token, ended by" in shown and "nan" not in shown


def test_generation_with_energy_says_what_the_figure_is():
    energy = Energy(
        joules=1.0, seconds=2.0, covered_seconds=2.0, tokens=3, mean_watts=0.5, peak_watts=0.6,
        idle_watts=None, measured=False, source="a model",
    )  # fmt: skip
    assert "modelled: a model" in generation(energy=energy)._repr_html_()


def test_overlay_llama_and_device_say_what_they_are(overlay):
    assert repr(overlay).endswith("no board in use); no model)")
    assert "none: call load_model()" in Cells(overlay._repr_html_()).found
    llama = overlay.load_model()
    assert repr(llama) == (
        "Llama(dim 128, 6 layers, vocabulary 1024, int8 weights, on emulated-host)"
    )
    assert repr(overlay).endswith(f"; {llama!r})")
    assert "float32, 4 sequences" in Cells(llama._repr_html_()).found
    assert {*Cells(llama._repr_html_()).found} - {"Llama"} < {*Cells(overlay._repr_html_()).found}
    assert repr(overlay.device) == "EmulatedDevice('host')"
    assert "ap_ctrl_chain" in Cells(overlay.device._repr_html_()).found


def test_closed_overlay_says_so():
    overlay = LlamaOverlay(device=EmulatedDevice(threads=1, name="another"))
    overlay.close()
    assert repr(overlay).endswith("; closed)")
    assert Cells(overlay._repr_html_()).found == ["LlamaOverlay", "state", "closed"]
