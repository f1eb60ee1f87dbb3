"""The widgets: they show the given data, and claim nothing beyond it."""

import itertools
import re
import time
from enum import IntEnum

import ipywidgets as widgets
import numpy as np
import pytest

from llama_pynq import EmulatedDevice, LlamaOverlay
from llama_pynq.energy import Energy
from llama_pynq.engine.results import StreamToken, TokenLogprob
from llama_pynq.errors import BoardNotFound, RequestError
from llama_pynq.kernel.abi import Stage
from llama_pynq.measure import lens
from llama_pynq.measure.lens import CacheUse, Lens
from llama_pynq.measure.power import PowerRecorder, Rail, SensorLost
from llama_pynq.measure.timing import StepTimes, measure_steps, model_steps
from llama_pynq.widgets import (
    AttentionView,
    CacheView,
    ErrorView,
    LayerTiming,
    LensView,
    PowerView,
    PromptPanel,
)
from llama_pynq.widgets.prompt_panel import _Shown, token_html, visible
from llama_pynq.widgets.svg import Drawing, shade, ticks
from llama_pynq.widgets.worker import Pacer, Worker


@pytest.fixture(scope="module")
def overlay(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("LLAMA_PYNQ_CACHE", str(tmp_path_factory.mktemp("cache")))
    with LlamaOverlay(device=EmulatedDevice(threads=1)) as overlay:
        overlay.load_model()
        yield overlay
    patch.undo()


@pytest.fixture
def panel(overlay):
    panel = PromptPanel(overlay)
    panel.new_seed.value = False
    yield panel
    panel.close()


def text_of(panel):
    """Text of the panel's text box, without tooltips."""
    shown = "".join(child.value for child in panel.text.children)
    shown = re.sub(r"<span class='llama-tip'.*?</span>", "", shown)
    return re.sub(r"<[^>]*>", "", shown).replace("&#x27;", "'").replace("&quot;", '"')


def drawn(view):
    """HTML that a view shows."""
    return next(child.value for child in view.children if isinstance(child, widgets.HTML))


# ---- the prompt panel -----------------------------------------------------------------


def test_panel_shows_the_text_that_generate_gives(overlay, panel, monkeypatch):
    now = itertools.count()  # a second per look: the panel updates after every call
    monkeypatch.setattr("llama_pynq.widgets.worker.time.monotonic", lambda: next(now))
    monkeypatch.setattr(overlay.llama.model.scheduler, "steps", lambda ready: 16)
    panel.seed.value, panel.max_new_tokens.value = 5, 150
    panel.start()
    panel.wait()
    out = overlay.generate("Once upon a time", seed=5, max_new_tokens=150)
    assert text_of(panel) == "Once upon a time" + out.text
    assert f"</progress>{len(out.tokens)} tokens, " in panel.status.value
    assert "(measured" in panel.status.value
    assert len(panel.text.children) == 2  # in pieces: the earlier piece is not sent again
    assert (panel.generate.disabled, panel.stop.disabled) == (False, True)


def test_panel_stops_and_then_generates_again(panel):
    panel.pace.value = 20.0
    panel.start()
    deadline = time.monotonic() + 60
    while "at the pace chosen" not in panel.status.value and time.monotonic() < deadline:
        time.sleep(0.01)
    assert panel.generate.disabled and not panel.stop.disabled
    panel.stop.click()
    panel.wait()
    assert panel.status.value.endswith("stopped.")
    assert panel.runs[-1].result.finish_reason == "closed"
    panel.pace.value = 0.0
    panel.max_new_tokens.value = 4
    panel.start()
    panel.wait()
    assert ">4 tokens" in panel.status.value
    assert len(panel.runs) == 2


def test_panel_runs_again_with_the_same_settings(panel):
    panel.new_seed.value = True
    for prompt in ("The fox", "One day"):
        panel.prompt.value = prompt
        panel.start()
        panel.wait()
    panel.history.index = 0
    assert "The fox" in panel.copy.value
    panel.again.click()
    panel.wait()
    first, _, again = panel.runs
    assert (again.prompt, again.text) == ("The fox", first.text)
    assert again.settings == first.settings and again.settings.seed is not None
    assert panel.seed.value == again.result.seed


def test_panel_shows_any_seed_that_is_drawn(panel):
    panel.seed.value = 2**32 - 1
    panel.max_new_tokens.value = 2
    panel.start()
    panel.wait()
    assert panel.runs[-1].settings.seed == panel.seed.value == 2**32 - 1


def test_panel_tells_an_error_and_the_next_text_comes(panel):
    panel.prompt.value = "word " * 3000
    panel.start()
    panel.wait()
    assert "RequestError" in panel.status.value and "tokens long" in panel.status.value
    assert (panel.generate.disabled, panel.stop.disabled) == (False, True)
    panel.prompt.value = "Once"
    panel.start()
    panel.wait()
    assert "tokens/s" in panel.status.value


def test_panel_of_a_closed_overlay_says_which_cells_to_run():
    overlay = LlamaOverlay(device=EmulatedDevice(threads=1, name="closed"))
    overlay.load_model()
    panel = PromptPanel(overlay)
    overlay.close()
    with LlamaOverlay(device=EmulatedDevice(threads=1, name="closed")):
        panel.start()
        panel.wait()
    assert "The overlay is closed" in panel.status.value
    assert "first code cell" in panel.status.value and text_of(panel) == ""


def test_panel_shows_energy_or_why_there_is_none(overlay):
    with PowerRecorder({"meter": Rail("meter", "a test's meter", lambda: 5.0)}) as recorder:
        panel = PromptPanel(overlay, recorder)
        panel.start()
        panel.wait()
        assert "J a token (measured: a test&#x27;s meter)" in panel.status.value
        panel.pace.value = 20.0
        panel.max_new_tokens.value = 2
        panel.start()
        panel.wait()
        assert "No energy: only at full pace" in panel.status.value
        panel.close()
    panel = PromptPanel(overlay, PowerRecorder({}))
    panel.start()
    panel.wait()
    assert "No energy: no rail was found" in panel.status.value
    panel.close()


def test_panel_sends_its_text_at_most_twenty_times_a_second(overlay, panel, monkeypatch):
    now = itertools.count()  # each look at the clock advances it by 10 ms
    monkeypatch.setattr("llama_pynq.widgets.worker.time.monotonic", lambda: next(now) / 100)
    monkeypatch.setattr(overlay.llama.model, "call_seconds", 0.0)  # one token per call
    sent = []
    panel.text.children[0].observe(lambda change: sent.append(change["new"]), names="value")
    panel.max_new_tokens.value = 100
    panel.start()
    panel.wait()
    tokens = [text.count("llama-token") for text in sent]
    assert tokens == sorted(tokens) and (tokens[0], tokens[-1]) == (0, 100)
    assert 6 <= len(tokens) <= 1.2 * 20 + 2  # 20 a second for 1.2 s, plus the first and last update


def test_panel_shows_all_that_a_call_brought(overlay, panel, monkeypatch):
    """All tokens of a call appear at once; prefill yields one token."""
    now = itertools.count()
    monkeypatch.setattr("llama_pynq.widgets.worker.time.monotonic", lambda: next(now))
    monkeypatch.setattr(overlay.llama.model.scheduler, "steps", lambda ready: 16)
    sent = []
    panel.text.children[0].observe(lambda change: sent.append(change["new"]), names="value")
    panel.max_new_tokens.value = 40
    panel.start()
    panel.wait()
    assert [text.count("llama-token") for text in sent] == [0, 1, 17, 33, 40]
    sent.clear()
    panel.pace.value, panel.max_new_tokens.value = 20.0, 4  # paced by the panel: one by one
    panel.start()
    panel.wait()
    assert [text.count("llama-token") for text in sent] == [0, 1, 2, 3, 4]


def test_panel_sends_few_messages_for_a_text(overlay, panel, monkeypatch):
    """Messages take CPU time from the emulated device, which keeps every core busy."""
    sent = []
    for widget in [*panel.text.children, panel.text, panel.status, panel.history, panel.copy,
                   panel.seed, panel.generate, panel.stop, panel.again]:  # fmt: skip
        send = widget.comm.send
        monkeypatch.setattr(
            widget.comm, "send", lambda data, *a, send=send, **k: (sent.append(data), send(data))
        )
    monkeypatch.setattr("llama_pynq.widgets.worker.time.monotonic", lambda: 0.0)
    panel.max_new_tokens.value, panel.seed.value = 100, 3
    sent.clear()
    panel.start()
    panel.wait()
    assert 0 < len(sent) <= 11, [list(data["state"]) for data in sent]
    monkeypatch.setattr("llama_pynq.widgets.prompt_panel._AT_ONCE", np.inf)
    panel.seed.value = 4
    sent.clear()
    panel.start()
    panel.wait()
    assert 0 < len(sent) <= 5, [list(data["state"]) for data in sent]


def test_panel_shows_no_beginning_of_a_text_that_comes_at_once(overlay, panel, monkeypatch):
    now, step = [0.0], [0.0]

    def clock():
        now[0] += step[0]
        return now[0]

    monkeypatch.setattr("llama_pynq.widgets.worker.time.monotonic", clock)
    monkeypatch.setattr(overlay.llama.model.scheduler, "steps", lambda ready: 16)
    seen = []
    panel.generate.observe(lambda change: seen.append(change["new"]), names="disabled")
    panel.status.observe(lambda change: seen.append(change["new"]), names="value")

    def run(at_once, seconds):
        seen.clear()
        monkeypatch.setattr("llama_pynq.widgets.prompt_panel._AT_ONCE", at_once)
        step[0] = seconds
        panel.max_new_tokens.value = 40
        panel.start()
        panel.wait()
        return [value if isinstance(value, bool) else "Reading" in value for value in seen]

    begin_and_end = [True, True, False, False]  # disabled, reading, the figures, enabled
    assert run(np.inf, 0.0) == begin_and_end  # a text's duration is not known yet
    assert run(0.0, 0.0) == begin_and_end
    assert run(np.inf, 0.0) == [False]  # only the figures
    assert run(np.inf, 1.0)[:2] == [True, True]  # it takes longer than the previous text
    assert text_of(panel).startswith("Once upon a time") and not panel.generate.disabled


def test_token_shows_its_probability_and_the_others_and_escapes_text():
    token = StreamToken(7, " <b>", TokenLogprob(7, np.log(0.05), {3: np.log(0.6), 7: np.log(0.05)}))
    shown = token_html(token, lambda i: visible({3: "a\n", 7: " <b>"}[i]))
    assert "llama-shade10 llama-unlikely" in shown and "tabindex='0'" in shown
    assert " &lt;b&gt;<span" in shown and "<b>" not in shown
    assert "␣&lt;b&gt; had 5.0%" in shown and "a⏎ 60.0%" in shown
    assert token_html(StreamToken(None, "rest", None), str) == "rest"


def test_panel_shows_an_end_that_comes_before_its_beginning(overlay, panel, monkeypatch):
    """The generating thread waits for the thread that clears the panel."""
    begin = _Shown.begin

    def late(shown):
        time.sleep(0.2)
        begin(shown)

    monkeypatch.setattr(_Shown, "begin", late)
    panel.max_new_tokens.value = 4
    for prompt, shown in (("Once", "4 tokens"), ("word " * 3000, "RequestError")):
        panel.prompt.value = prompt
        panel.start()
        panel.wait()
        assert shown in panel.status.value
        assert (panel.generate.disabled, panel.stop.disabled) == (False, True)


def test_panel_that_ctrl_c_kept_from_beginning_shows_the_text(overlay, panel, monkeypatch):
    def interrupt(shown):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_Shown, "begin", interrupt)
        with pytest.raises(KeyboardInterrupt):
            panel.start()
    panel.wait()
    assert not panel.generate.disabled and "tokens/s" in panel.status.value


def test_panel_does_not_expect_a_long_text_at_once_after_one_token(panel):
    panel.max_new_tokens.value = 1
    panel.start()
    panel.wait()
    assert panel._expected_seconds("Once", panel.settings) == np.inf


# ---- layer timing ---------------------------------------------------------------------


def step(position, scale, measured=True, roof=None):
    cycles = {
        (Stage.EMBED, 0): 10.0 * scale,
        (Stage.QKV, 0): 200.0 * scale,
        (Stage.ATTENTION, 0): (position + 1) * 10.0 * scale,
        (Stage.CLASSIFIER, 1): 400.0 * scale,
    }
    n_bytes = {(Stage.QKV, 0): 1000, (Stage.ATTENTION, 0): 100, (Stage.CLASSIFIER, 1): 900}
    return StepTimes(position, cycles, n_bytes, 100, "a test", measured, roof)


def test_layer_timing_follows_its_slider():
    view = LayerTiming(
        [step(0, 1), step(50, 1)], [step(0, 2, False, 1e-6), step(50, 2, False, 1e-6)]
    )
    assert view.position.value == 50
    late = drawn(view)
    view.position.value = 0
    early = drawn(view)
    assert "position 50: " in late and "position 0: " in early
    assert "layer 0, attention: 5.10 µs measured, 510 ticks, reads 100 bytes" in late
    assert "layer 0, attention: 10.2 µs modelled" in late
    assert "layer 0, attention: 0.10 µs measured, 10 ticks" in early


def test_layer_timing_says_measured_and_modelled_and_has_a_roof_only_where_known():
    alone = drawn(LayerTiming([step(0, 1)]))
    assert "modelled" not in alone and "of the memory" not in alone
    both = drawn(LayerTiming([step(0, 1)], [step(0, 1, False, 3.1e-6)]))
    assert "Modelled: a test" in both and "50% of the memory&#x27;s roof" in both


class OtherStage(IntEnum):
    MIXTURE = 99


def test_layer_timing_shows_a_stage_that_it_does_not_know():
    """A stage that a later kernel adds must not vanish from the chart, the bars or the table."""
    other = step(0, 1)
    other.cycles[OtherStage.MIXTURE, 0] = 1000.0
    shown = drawn(LayerTiming([other]))
    assert "layer 0, mixture: 10.0 µs measured, 1,000 ticks" in shown
    assert "position 0, embed, rope, sample, mixture: 10.1 µs measured, 62%" in shown
    assert re.search(r"<td[^>]*>mixture</td>(<td[^>]*>[^<]*</td>){3}<td[^>]*>61.7%", shown)
    assert "mixture" not in drawn(LayerTiming([step(0, 1)]))


def test_layer_timing_refuses_nothing_and_other_positions():
    with pytest.raises(RequestError, match="no steps to show"):
        LayerTiming([])
    with pytest.raises(RequestError, match="different positions"):
        LayerTiming([step(1, 1)], [step(2, 1, False)])


# ---- power ----------------------------------------------------------------------------


def test_power_view_follows_the_recorder_and_tells_gaps_and_sources():
    state = {"watts": 3.0}

    def watts():
        if state["watts"] is None:
            raise SensorLost("unplugged")
        return state["watts"]

    recorder = PowerRecorder({"board": Rail("board", "a fake", watts)}, rate_hz=50)
    recorder.start()
    view = PowerView(recorder)
    deadline = time.monotonic() + 60
    state["watts"] = 7.5
    while "7.50 W now" not in drawn(view) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert "measured: a fake" in drawn(view) and "modelled" not in drawn(view)
    assert "Nothing was generated" in drawn(view)
    state["watts"] = None
    while "unplugged" not in drawn(view) and time.monotonic() < deadline:
        time.sleep(0.02)
    begin = recorder.times[0]
    recorder.mark("decode", begin, begin + 0.01)
    recorder.energy(begin, begin + 0.01, [(3, 4)])
    recorder.stop()
    while ">decode<" not in drawn(view) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert "board: unplugged" in drawn(view)
    assert ">decode<" in drawn(view) and "mWh) a token" in drawn(view)
    view.close()


def test_power_view_without_a_rail_says_why_and_shows_no_figure():
    view = PowerView(PowerRecorder({}))
    assert "No power is shown: no rail was found" in drawn(view)
    assert " W " not in drawn(view) and "<svg" not in drawn(view)


def test_power_view_says_modelled_on_the_plot():
    recorder = PowerRecorder({"board": Rail("board", "a model of X", lambda: 1.0, measured=False)})
    recorder.last = Energy(1.0, 1.0, 1.0, 1.0, 1.0, 4, "a model of X", measured=False)
    with recorder:
        pass
    shown = drawn(PowerView(recorder))
    assert "Power, modelled" in shown and "modelled: a model of X" in shown
    assert "measured" not in shown
    assert "the plot's time is this computer's" in shown


# ---- inside ---------------------------------------------------------------------------


def test_attention_view_enlarges_the_chosen_head():
    weights = np.zeros((2, 3, 4, 4), np.float32)
    weights[:, :, np.arange(4), np.arange(4)] = 1
    weights[1, 2, 3] = [0.25, 0.75, 0, 0]
    view = AttentionView(weights, ["<s>", " a", " b", "\n"], "the test")
    assert drawn(view).count("<image") == 6
    view.layer.value, view.head.value = 1, 2
    assert "⏎ ← ·a: 75.0%" in drawn(view) and "Layer 1, head 2" in drawn(view)


def test_lens_error_and_cache_views_show_their_figures():
    lens = Lens(np.array([[1], [2]]), [["a"], [" <b>"]], np.array([[0.5], [0.9]], np.float32))
    shown = LensView(lens, ["x"], "src").value
    assert "·&lt;b&gt;: 90.0%" in shown and shown.index("after layer 0") < shown.index("embedding")
    error = np.array([[0.001, 0.003], [0.01, 0.02]], np.float32)
    assert "mean 1.500%, largest 2.000%" in ErrorView(error, "src").value
    view = CacheView(CacheUse(2, 100, 2**20, (30, 10), "float32"))
    assert "40.00 of 200.00 MiB" in drawn(view)
    view.tokens.value = 90
    assert "100.00 of 200.00 MiB" in drawn(view) and "90/100" in drawn(view)


# ---- wrong use -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "use, message",
    [
        (lambda o: PromptPanel(o.llama.model), "Llama given: give the overlay, not its model"),
        (lambda o: PromptPanel(o, power={}), "power is dict: give a PowerRecorder"),
        (lambda o: PowerView({}), "dict given: give a PowerRecorder"),
        (lambda o: PowerRecorder(o), "given for rails: give rails"),
        (lambda o: measure_steps(o.llama.model, [1]), "give the overlay, not its model"),
        (lambda o: model_steps(o, "kv260", [1]), "overlay.llama.model"),
        (lambda o: model_steps(o.llama.model, "kv9", [1]), "no board 'kv9': choose one of pynq"),
        (lambda o: lens.look(o, "a"), "overlay.llama.model"),
        (lambda o: lens.attention(lens.look(o.llama.model, "a"), 1), "QuantizedModel"),
        (lambda o: o.generate("a", power=5), "power is int: it must be a PowerRecorder"),
        (lambda o: o.stream("a", power={}), "power is dict: it must be a PowerRecorder"),
        (
            lambda o: AttentionView(np.zeros((1, 2, 3, 3)), ["a"], ""),
            r"shape \(1, 2, 3, 3\) and 1 pieces",
        ),
    ],
)
def test_wrong_use_is_refused_by_name(overlay, use, message):
    with pytest.raises((RequestError, BoardNotFound), match=message):
        use(overlay)
    assert overlay.generate("", max_new_tokens=1).tokens


# ---- helpers --------------------------------------------------------------------------


def test_worker_runs_one_job_at_a_time():
    worker, order = Worker(), []
    assert worker.run(lambda: (worker.stop.wait(30), order.append("first")))
    assert not worker.run(lambda: order.append("second"))
    worker.stop.set()
    worker.wait()
    assert order == ["first"] and not worker.busy
    assert worker.run(lambda: order.append("third")) and not worker.stop.is_set()
    worker.wait()
    assert order == ["first", "third"]


def test_pacer_lets_through_one_in_a_period(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("llama_pynq.widgets.worker.time.monotonic", lambda: now[0])
    pacer, passed = Pacer(20), 0
    for _ in range(1000):
        passed += pacer.due()
        now[0] += 0.001
    assert passed == 20


def test_drawing_escapes_and_names_itself():
    drawing = Drawing(10, 10, "a 'quoted' <label>")
    drawing.text(0, 0, "<script>")
    drawing.box(0, 0, 1, 1, title="a & b")
    svg = drawing.render()
    assert "<script>" not in svg and "a &amp; b" in svg
    assert "aria-label='a &#x27;quoted&#x27; &lt;label&gt;'" in svg


def test_ticks_and_shades():
    assert ticks(10, 5) == [0, 2, 4, 6, 8, 10]
    assert ticks(0) == ticks(float("nan")) == [0.0]
    for value in np.linspace(0, 1, 21):
        paper, ink = (np.array([int(c[i : i + 2], 16) for i in (1, 3, 5)]) for c in shade(value))
        light, dark = (((c / 255 + 0.055) / 1.055) ** 2.4 @ [0.2126, 0.7152, 0.0722]
                       for c in (np.maximum(paper, ink), np.minimum(paper, ink)))  # fmt: skip
        assert (light + 0.05) / (dark + 0.05) > 3.8  # the highest contrast these colours allow
    assert shade(-1) == shade(0) and shade(2) == shade(1) and shade(0)[0] == "#ffffff"
