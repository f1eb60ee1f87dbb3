"""The browser harness itself, on a sample notebook."""

from pathlib import Path

import pytest
from playwright.sync_api import expect
from support.lesson_notebooks import make_notebook

CELLS = {
    "text-title": "# Sample",
    "widgets": """
import threading, time
import ipywidgets
button = ipywidgets.Button(description="Count")
slider = ipywidgets.IntSlider(description="Places", value=1, max=9)
prompt = ipywidgets.Textarea(description="Prompt")
shown, squared, echo = map(ipywidgets.HTML, ("counted 0", "squared 1", "wrote"))
display(ipywidgets.VBox([button, slider, prompt, shown, squared, echo]))
""",
    "worker": """
def count():
    for n in range(1, 6):
        shown.value = f"counted <b>{n}</b>"
        time.sleep(0.2)
button.on_click(lambda _: threading.Thread(target=count).start())
slider.observe(lambda c: setattr(squared, "value", f"squared {c.new ** 2}"), "value")
prompt.observe(lambda c: setattr(echo, "value", f"wrote {c.new}"), "value")
""",
}


@pytest.fixture
def widgets(lab):
    """Page with the sample notebook's widgets, ready."""
    lab.open(make_notebook(CELLS))
    lab.run_all()
    return lab


def test_button_starts_a_thread_whose_updates_are_all_seen(widgets):
    seen = widgets.watch(widgets.html("counted"))
    widgets.button("Count").click()
    widgets.html("counted 5").wait_for()
    assert seen.states == [f"counted {n}" for n in range(6)]
    times = [milliseconds for milliseconds, _ in seen.timed]
    assert times == sorted(times)
    assert widgets.screenshot("harness").stat().st_size > 0


def test_slider_moves_by_keyboard(widgets):
    widgets.control("Places").focus()
    for _ in range(3):
        widgets.page.keyboard.press("ArrowRight")
    widgets.html("squared 16").wait_for()


def test_field_takes_text(widgets):
    widgets.control("Prompt").fill("Once upon a time")
    widgets.page.keyboard.press("Tab")
    widgets.html("wrote Once upon a time").wait_for()


def test_kernel_is_busy_while_a_cell_runs(lab, server):
    wait = "import pathlib, time\nwhile not pathlib.Path('go').exists():\n    time.sleep(0.1)"
    lab.open(make_notebook({"wait": wait + "\nprint('went')"}))
    lab.start("wait")
    lab.wait_until("Busy")
    (server.notebooks / "go").touch()
    lab.wait_until("Idle")
    expect(lab.output("wait")).to_have_text("went")  # the output may appear late


def test_run_fails_with_the_traceback_of_a_cell_each_time(lab):
    lab.open(make_notebook({"fine": "width = 3", "fail": "width / 0"}))
    lab.run("fine")
    lab.run("fine")
    for _ in range(2):
        with pytest.raises(AssertionError, match="ZeroDivisionError"):
            lab.run("fail")


def test_page_errors_are_collected(lab):
    lab.open(make_notebook({"fine": "1"}))
    with lab.page.expect_event("pageerror"):
        lab.page.evaluate("console.error('said'); setTimeout(() => { throw new Error('thrown') })")
    assert [error.split(" (")[0] for error in lab.errors] == ["said", "uncaught: thrown"]
    lab.errors.clear()  # otherwise the fixture fails this test


@pytest.mark.parametrize("ci, outcome", [("", "1 skipped"), ("true", "1 error")])
def test_without_a_browser_the_tests_are_skipped_and_in_ci_fail(run, tmp_path, ci, outcome):
    test = f"{Path(__file__)}::test_slider_moves_by_keyboard"
    pytest_ = ["-m", "pytest", "-rs", f"--rootdir={Path(__file__).parents[2]}", test]
    result = run(*pytest_, PATH=str(tmp_path), CHROMIUM="", CI=ci)
    assert f"{outcome} in" in result.stdout
    assert "no browser: apt install chromium" in result.stdout
