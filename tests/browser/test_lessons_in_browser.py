"""The notebooks with widgets, used as a person would."""

import re

from playwright.sync_api import expect
from support.lesson_notebooks import make_notebook, read
from support.paths import REPOSITORY

NOTEBOOKS = REPOSITORY / "notebooks"


def test_prompt_panel_streams_stops_and_generates_again(lab):
    notebook = read(NOTEBOOKS / "01_prompting.ipynb")
    (other,) = make_notebook({"other": "print(6 * 7)"})["cells"]
    notebook["cells"].append(other)
    lab.open(notebook)
    lab.run_all("panel")
    text = lab.page.locator(".llama-text")
    tokens = text.locator(".llama-token")
    lab.control("prompt").fill("The little fox")
    lab.control("pace").select_option("5 tokens a second")
    lab.control("max tokens").focus()
    seen = lab.watch(text)

    lab.button("Generate").click()
    tokens.nth(3).wait_for()
    lab.run("other")  # the kernel stays free for other cells
    assert lab.output("other").inner_text().strip() == "42"
    tokens.nth(7).wait_for()
    lab.button("Stop").click()
    expect(lab.button("Generate")).to_be_enabled()
    growing = [state for state in seen.states if state.startswith("The little fox")]
    assert len(growing) >= 5
    assert all(later.startswith(sooner) for sooner, later in zip(growing, growing[1:]))
    assert tokens.count() < 50  # of 256

    lab.control("prompt").fill("One day")
    lab.control("pace").select_option("as fast as it comes")
    lab.button("Generate").click()
    expect(lab.control("runs").locator("option")).to_have_count(2)
    expect(text).to_have_text(re.compile("^One day"))

    tokens.nth(6).focus()  # keyboard focus shows the token's alternatives
    expect(tokens.nth(6).locator(".llama-tip")).to_be_visible()
    expect(tokens.nth(6).locator(".llama-tip")).to_contain_text("most probable")
    lab.screenshot("01_prompting", lab.output("panel"))


def test_layer_timing_follows_the_slider(lab):
    lab.open(read(NOTEBOOKS / "02_layer_timing.ipynb"))
    lab.run_all("view")
    drawn = lab.output("view").locator(".widget-html-content")
    bars = drawn.locator("rect")
    at_255 = bars.evaluate_all("bars => bars.map(bar => bar.outerHTML)")
    lab.control("position").focus()
    lab.page.keyboard.press("ArrowLeft")
    expect(drawn).to_contain_text("one token at position 223")
    at_223 = bars.evaluate_all("bars => bars.map(bar => bar.outerHTML)")
    assert len(at_223) > 50 and at_223 != at_255
    lab.screenshot("02_layer_timing", lab.output("view"))


def test_power_plot_moves_and_marks_the_generation(lab):
    lab.open(read(NOTEBOOKS / "03_power_and_energy.ipynb"))
    lab.run_all("view")
    plot = lab.output("view").locator(".widget-html-content")
    seen = lab.watch(plot, "innerHTML")
    lab.button("Generate").click()
    expect(plot.locator("svg")).to_contain_text("decode")
    rail = re.compile('<polyline points="([^"]*)"[^>]* stroke-width="2"')  # thinner: the grid
    # A text takes less than one update interval: the plot must keep moving after the text.
    seen.until(lambda states: len({tuple(rail.findall(s)) for s in states} - {()}) >= 5)
    lab.screenshot("03_power_and_energy", lab.output("view"))


def test_prompt_panel_is_used_by_keyboard_alone(lab):
    lab.open(read(NOTEBOOKS / "01_prompting.ipynb"))
    lab.run_all("panel")
    press, tokens = lab.page.keyboard.press, lab.page.locator(".llama-text .llama-token")

    def tab_to(wanted):
        for _ in range(40):
            if wanted.evaluate("element => element === document.activeElement"):
                return
            press("Tab")
        raise AssertionError(f"Tab does not lead to {wanted}")

    lab.control("prompt").focus()
    press("Control+a")
    lab.page.keyboard.type("The cat")
    tab_to(lab.control("pace"))
    press("End")  # 5 tokens a second
    tab_to(lab.button("Generate"))
    press("Space")
    tokens.nth(1).wait_for()
    tab_to(lab.button("Stop"))
    press("Enter")
    expect(lab.button("Generate")).to_be_enabled()
    assert 2 <= tokens.count() < 50
    tab_to(tokens.nth(1))
    expect(tokens.nth(1).locator(".llama-tip")).to_be_visible()
