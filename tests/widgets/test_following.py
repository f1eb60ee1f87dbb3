"""Views after another model is loaded, after reset() and close(), and after a kernel's restart."""

import re
import warnings

import ipywidgets as widgets
import numpy as np
import pytest

from llama_pynq import EmulatedDevice, LlamaOverlay
from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.checkpoint.random import tokenizer_bytes, write_random_checkpoint
from llama_pynq.engine import watchers
from llama_pynq.errors import RequestError
from llama_pynq.measure import lens
from llama_pynq.measure.power import PowerRecorder, Rail
from llama_pynq.measure.timing import measure_steps, model_steps
from llama_pynq.widgets import (
    AttentionView,
    CacheView,
    ErrorView,
    LayerTiming,
    LensView,
    PowerView,
    PromptPanel,
)


def write_model(folder, name, vocab_size, seq_len, seed=0):
    """Write a small random model, and return load_model's arguments."""
    config = ModelConfig(64, 128, 2, 2, 2, vocab_size, seq_len, tied=True)
    with (folder / f"{name}.bin").open("wb") as file:
        write_random_checkpoint(file, config, seed)
    content = tokenizer_bytes(vocab_size)
    if name == "short":  # other pieces, else the vocabularies begin alike
        content = re.sub(rb"[a-z]{4,}", lambda word: word[0].upper(), content)
    (folder / f"{name}-tokenizer.bin").write_bytes(content)
    return folder / f"{name}.bin", folder / f"{name}-tokenizer.bin"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        "first": write_model(folder, "first", 700, 64),
        "short": write_model(folder, "short", 600, 24),
        "twin": write_model(folder, "twin", 700, 64, seed=1),
    }


@pytest.fixture
def overlay(models, tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA_PYNQ_CACHE", str(tmp_path / "cache"))
    with LlamaOverlay(device=EmulatedDevice(threads=1, name="following")) as overlay:
        overlay.load_model(*models["first"])
        yield overlay


@pytest.fixture
def panel(overlay):
    panel = PromptPanel(overlay, prompt="ba")
    panel.new_seed.value = False
    yield panel
    panel.close()


def run(panel, n=8):
    panel.max_new_tokens.value = n
    panel.generate.click()
    panel.wait()


def shown(view):
    """All HTML of a view, in order."""
    if isinstance(view, widgets.HTML):
        return view.value
    return "".join(shown(child) for child in getattr(view, "children", ()))


def tips(panel):
    """Texts of the tokens' alternatives."""
    return re.findall(r"role='tooltip'>(.*?)</span>", shown(panel.text))


# ---- the prompt panel -----------------------------------------------------------------


def test_panel_shows_limits_and_facts_of_the_model_loaded_next(overlay, panel, models):
    run(panel, 64)
    assert "vocabulary 700, context 64" in shown(panel)
    overlay.load_model(*models["short"])
    assert (panel.max_new_tokens.max, panel.max_new_tokens.value) == (24, 24)
    assert "vocabulary 600, context 24" in panel.children[0].value
    assert "vocabulary 700" not in panel.children[0].value
    assert panel.status.value == "Another model is loaded. Ready."
    overlay.load_model(*models["first"])
    assert panel.max_new_tokens.max == 64
    assert "vocabulary 700, context 64" in panel.children[0].value


def test_panel_shows_token_names_of_the_model_that_generates(overlay, panel, models):
    for name, letters in (("first", "[a-z]"), ("short", "[A-Z]"), ("first", "[a-z]")):
        overlay.load_model(*models[name])
        run(panel, 20)
        words = re.findall(r"([A-Za-z]{4,})(?= \d+\.\d%| had)", " ".join(tips(panel)))
        assert len(words) > 10 and all(re.fullmatch(f"{letters}+", word) for word in words)


def test_panel_marks_texts_and_runs_of_an_earlier_model(overlay, panel, models):
    run(panel)
    first = overlay.llama.model.summary
    overlay.load_model(*models["twin"])  # the same shape, other weights
    assert f"Text of an earlier model</b>: {first}" in shown(panel)
    assert [label.count("earlier model") for label in panel.history.options] == [1]
    run(panel)
    assert "earlier model" not in shown(panel)
    assert [label.count("earlier model") for label in panel.history.options] == [1, 0]
    assert [r.model for r in panel.runs] == [first, overlay.llama.model.summary]
    panel.history.index = 0
    panel.again.click()
    panel.wait()
    assert panel.runs[2].model == overlay.llama.model.summary
    assert panel.runs[2].settings == panel.runs[0].settings


def test_panel_marks_nothing_when_the_same_model_is_loaded_again(overlay, panel, models):
    run(panel)
    status = panel.status.value
    overlay.load_model(*models["first"])
    assert panel.status.value == status and "earlier model" not in shown(panel)
    assert "earlier" not in panel.history.options[0]
    run(panel)
    assert "tokens/s" in panel.status.value


def test_panel_does_not_expect_the_speed_of_an_earlier_model(overlay, panel, models, monkeypatch):
    monkeypatch.setattr("llama_pynq.widgets.prompt_panel._AT_ONCE", np.inf)
    run(panel)
    overlay.load_model(*models["twin"])
    seen = []
    panel.generate.observe(lambda change: seen.append(change["new"]), names="disabled")
    run(panel)
    assert seen == [True, False]  # how long a text takes is unknown: the start is shown
    run(panel)
    assert seen == [True, False, False] or seen == [True, False]


def test_panel_follows_at_a_click_too(overlay, panel, models, monkeypatch):
    """As when the panel was not told: an overlay that is not this package's."""
    monkeypatch.setattr("llama_pynq.driver.model_loaded", lambda llama: None)
    overlay.load_model(*models["short"])
    assert panel.max_new_tokens.max == 64
    run(panel, 60)
    assert panel.max_new_tokens.max == 24 and "tokens" in panel.status.value
    assert len(panel.runs[-1].result.tokens) <= 24


def test_panel_after_reset_download_and_close_tells_and_goes_on(overlay, panel, models):
    run(panel)
    overlay.reset()
    run(panel)
    assert "tokens/s" in panel.status.value
    overlay.download()  # the model is lost
    overlay.llama.forget(lambda: None)
    run(panel)
    assert "RequestError:" in panel.status.value and "load_model()" in panel.status.value
    assert (panel.generate.disabled, panel.stop.disabled) == (False, True)
    overlay.load_model(*models["short"])
    run(panel)
    assert "tokens/s" in panel.status.value and "context 24" in shown(panel)
    overlay.close()
    for button in (panel.generate, panel.again, panel.stop):
        button.click()
        panel.wait()
        assert "The overlay is closed" in panel.status.value


def test_panel_that_is_gone_hears_nothing(overlay, models):
    panel = PromptPanel(overlay)
    panel.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        overlay.load_model(*models["short"])


class Broken:
    def loaded(self, llama):
        raise ValueError("no browser")


def test_view_that_fails_does_not_keep_a_model_from_loading(overlay, models):
    broken = Broken()
    watchers.watch_loads(broken.loaded)
    with pytest.warns(UserWarning, match="a view cannot show the new model: no browser"):
        overlay.load_model(*models["short"])
    assert overlay.llama.model.config.seq_len == 24
    del broken
    overlay.load_model(*models["first"])


# ---- views of data --------------------------------------------------------------------


def views_of(overlay):
    llama = overlay.llama.model
    seen = lens.look(llama, "baba")
    n = len(seen.tokens)
    weights = np.full((2, 2, n, n), 0.5, np.float32)
    return {
        "timing": LayerTiming(measure_steps(overlay, [3], 1), model_steps(llama, "kv260", [3])),
        "attention": AttentionView(weights, seen.pieces, "host", model=seen.model),
        "lens": LensView(lens.logit_lens(llama, seen), seen.pieces, "host"),
        "error": ErrorView(np.ones((3, n), np.float32), "host", model=seen.model),
        "cache": CacheView(lens.cache_use(llama, [3])),
    }


def test_views_of_data_name_their_model_and_say_when_another_is_loaded(overlay, models):
    views, of = views_of(overlay), overlay.llama.model.summary
    for name, view in views.items():
        assert f"model: {of}" in shown(view), name
        assert "Another model was loaded" not in shown(view), name
    overlay.load_model(*models["short"])
    now = overlay.llama.model.summary
    for name, view in views.items():
        assert f"This is of an earlier model: {of}. " in shown(view), name
        assert f"Another model was loaded since: {now}. " in shown(view), name
    views["cache"].tokens.value = 1  # drawn anew, it still says so
    assert "Another model was loaded" in shown(views["cache"])
    for name, view in views_of(overlay).items():
        assert f"model: {now}" in shown(view) and "earlier model" not in shown(view), name
    overlay.load_model(*models["first"])
    for name, view in views.items():
        assert "Another model was loaded" not in shown(view), name


def test_views_of_data_without_a_model_take_that_loaded_last(overlay, models):
    view = ErrorView(np.ones((3, 2), np.float32), "host")
    assert "model:" not in shown(view)
    overlay.load_model(*models["first"])
    assert "Another model" not in shown(view)
    overlay.load_model(*models["twin"])
    assert "Another model was loaded since" in shown(view)


def test_activations_of_another_model_are_refused(overlay, models):
    seen = lens.look(overlay.llama.model, "ba")
    llama = overlay.load_model(*models["twin"])
    with pytest.raises(RequestError, match="the activations are of another model"):
        lens.logit_lens(llama, seen)


def test_power_view_says_of_which_model_the_last_text_was(overlay, models):
    first = overlay.llama.model.summary
    with PowerRecorder({"meter": Rail("meter", "a test", lambda: 5.0)}, rate_hz=100) as recorder:
        view = PowerView(recorder)
        overlay.generate("ba", max_new_tokens=40, ignore_eos=True, power=recorder)
        view.draw()
        assert "Generated last:" in shown(view) and f"model: {first}" in shown(view)
        overlay.load_model(*models["short"])
        view.draw()
        assert f"Generated last, with an earlier model ({first}):" in shown(view)
        overlay.generate("ba", max_new_tokens=20, ignore_eos=True, power=recorder)
        view.draw()
        assert "Generated last:" in shown(view)
        view.close()


# ---- a kernel that is gone ------------------------------------------------------------


def test_views_with_controls_carry_what_they_show_without_a_kernel(overlay, panel):
    """The style hides it while the kernel lives; tests/browser restarts one."""
    views = views_of(overlay)
    power = PowerView(PowerRecorder({}))
    for view in (panel, power, views["timing"], views["attention"], views["cache"]):
        assert shown(view).count("class='llama-gone'") == 1
        assert "Run the notebook's cells again, from the first." in shown(view)
        assert ".llama-gone { display: none;" in shown(view)
        assert "llama-view" in view._dom_classes
    for view in (views["lens"], views["error"]):
        assert "llama-gone" not in shown(view)  # nothing to press


@pytest.mark.parametrize("name", ["timing", "attention", "lens", "error", "cache"])
def test_view_where_no_widgets_are_shown_says_what_to_do(overlay, name):
    assert repr(views_of(overlay)[name]).endswith(": run this cell to see and use it")
