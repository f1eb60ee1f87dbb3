"""Views whose kernel is gone say so, and the cells run again make them work."""

import re

import pytest
from playwright.sync_api import expect
from support.lesson_notebooks import make_notebook

CELLS = {
    "open": """
from llama_pynq import EmulatedDevice, LlamaOverlay
overlay = LlamaOverlay(device=EmulatedDevice(threads=1))
overlay.load_model();
""",
    "panel": """
from llama_pynq.widgets import PromptPanel
PromptPanel(overlay, prompt="The little fox")
""",
    "views": """
import numpy as np
from llama_pynq.measure.lens import cache_use
from llama_pynq.measure.power import PowerRecorder
from llama_pynq.measure.timing import measure_steps
from llama_pynq.widgets import AttentionView, CacheView, LayerTiming, PowerView
display(
    CacheView(cache_use(overlay.llama.model, [3])),
    LayerTiming(measure_steps(overlay, [0, 9], 1)),
    AttentionView(np.eye(3, dtype=np.float32).reshape(1, 1, 3, 3), list("abc"), "a test"),
    PowerView(PowerRecorder({})),
)
""",
    "die": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
}


@pytest.mark.parametrize("how", ["restart", "death", "shutdown"])
def test_views_whose_kernel_is_gone_say_so(lab, how):
    lab.open(make_notebook(CELLS))
    lab.run_all("views")
    gone = lab.page.locator(".llama-gone")
    expect(gone).to_have_count(5)
    for i in range(5):
        expect(gone.nth(i)).to_be_hidden()

    if how == "restart":
        lab.menu("Kernel", "Restart Kernel", confirm="Restart")
    elif how == "shutdown":
        lab.menu("Kernel", "Shut Down Kernel")
    else:
        lab.start("die")
        lab.page.locator(".jp-Dialog").get_by_text("have died").wait_for()
        lab.page.locator(".jp-Dialog button").filter(has_text="Ok").click()
    for i in range(5):
        expect(gone.nth(i)).to_be_visible()
    expect(gone.first).to_contain_text("The kernel was restarted or shut down")
    expect(gone.first).to_contain_text("Run the notebook's cells again, from the first.")
    lab.screenshot(f"{how}_panel", lab.output("panel"))
    lab.screenshot(f"{how}_views", lab.output("views"))
    if how == "shutdown":
        return  # JupyterLab asks for a new kernel in its own dialog

    lab.wait_until("Idle")
    for name in ("open", "panel"):
        lab.start(name)
    expect(lab.output("panel").locator(".llama-gone")).to_be_hidden()
    lab.button("Generate").click()
    expect(lab.control("runs").locator("option")).to_have_count(1)
    text = lab.page.locator(".llama-text")
    expect(text).to_have_text(re.compile("^The little fox"))
