"""Measure the prompt panel's overhead over generate() alone, and the latency of Stop.

Runs in a real Jupyter kernel, so that the widgets' messages are serialised and sent. generate() and
the panel alternate on the same texts (same seed, same arguments); the script prints medians. The
panel has two times: until the whole text and its figures are sent, and until the list of runs and
the buttons are sent too. A pair during which the host of a virtual machine stole CPU time ("steal"
in Linux's /proc/stat) is repeated, at most 5 times --rounds in all.
Needs `pip install '.[lab]'`.
"""

from __future__ import annotations

import argparse
import json
import sys

INSIDE = """
import json, os, statistics, time
from llama_pynq import EmulatedDevice, LlamaOverlay, SamplingParams
from llama_pynq.checkpoint.random import random_model
from llama_pynq.widgets import PromptPanel
from llama_pynq.widgets.prompt_panel import ALTERNATIVES

def stolen():
    # CPU seconds stolen by the host of this virtual machine; 0 if unknown.
    try:
        with open("/proc/stat") as stat:
            return int(stat.readline().split()[8]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError):
        return 0.0

def measure(shape, rounds, tokens, threads):
    files = (None, None) if shape == "bundled" else random_model(shape)
    with LlamaOverlay(device=EmulatedDevice(threads=threads)) as overlay:
        overlay.load_model(*files)
        panel = PromptPanel(overlay)
        told = []  # send times of the status line; the last one follows the whole text
        panel.status.observe(lambda _: told.append(time.perf_counter()), names="value")
        alone, shown, ready, stops, again = [], [], [], [], 0
        seed = 0
        while len(alone) < rounds:
            seed += 1
            before = stolen()
            settings = SamplingParams(
                tokens, temperature=0.8, top_p=0.9, seed=seed, logprobs=ALTERNATIVES
            )
            begin = time.perf_counter()
            out = overlay.generate(panel.prompt.value, params=settings)
            middle = time.perf_counter()
            panel.start(settings)
            panel.wait()
            end = time.perf_counter()
            assert panel.runs[-1].text == out.text, panel.status.value
            if seed == 1:  # warming up
                continue
            if stolen() - before > 0.01 * (end - begin) and again < 5 * rounds:
                again += 1
                continue
            alone.append(middle - begin)
            shown.append(told[-1] - middle)
            ready.append(end - middle)
        panel.pace.value = 20.0
        for _ in range(rounds):
            panel.start(SamplingParams(tokens, seed=1, logprobs=ALTERNATIVES))
            time.sleep(0.3)
            begin = time.perf_counter()
            panel.stop.click()
            panel.wait()
            stops.append(time.perf_counter() - begin)
        panel.close()
    def ratio(times):
        return statistics.median(b / a for a, b in zip(alone, times))
    return {"shape": shape, "alone_ms": 1e3 * statistics.median(alone),
            "panel_ms": 1e3 * statistics.median(shown), "ratio": ratio(shown),
            "ready_ratio": ratio(ready), "again": again,
            "stop_ms": 1e3 * statistics.median(stops), "stop_most_ms": 1e3 * max(stops)}
"""


def run(code: str) -> str:
    """Execute code in a Jupyter kernel and return what it printed."""
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel()
    printed: list[str] = []
    try:

        def take(message: dict) -> None:
            content = message["content"]
            if message["msg_type"] == "stream" and content["name"] == "stdout":
                printed.append(content["text"])
            if message["msg_type"] == "error":
                sys.exit("\n".join(content["traceback"]))

        client.execute_interactive(code, output_hook=take, timeout=None)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    return "".join(printed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--shapes", nargs="+", default=["bundled", "stories15M", "stories110M"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--max-new-tokens", type=int, default=200)
    parser.add_argument("--threads", type=int, help="of the emulated device; default: all CPUs, so "
                        "that the panel's work delays it")  # fmt: skip
    args = parser.parse_args()
    for shape in args.shapes:
        given = f"{shape!r}, {args.rounds}, {args.max_new_tokens}, {args.threads}"
        call = f"print('RESULT' + json.dumps(measure({given})))"
        text = run(INSIDE + call)
        r = json.loads(text.rpartition("RESULT")[2])
        print(
            f"{shape}: {r['alone_ms']:.0f} ms alone, {r['panel_ms']:.0f} ms in the panel, "
            f"{r['ratio'] - 1:+.1%}, and {r['ready_ratio'] - 1:+.1%} with the list of runs and "
            f"the buttons (medians of {args.rounds} pairs; {r['again']} more were repeated "
            f"because of CPU steal); Stop after {r['stop_ms']:.0f} ms "
            f"(at most {r['stop_most_ms']:.0f})"
        )


if __name__ == "__main__":
    main()
