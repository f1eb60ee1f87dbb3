"""Compare FPGA, CPU and GPU: tokens/s, watts and joules per token of one model and prompt.

    python benchmarks/energy.py [--shape stories110M] [--max-new-tokens 256] [--batch 4]
        [--gpu-command "llama-bench -m MODEL.gguf -p 0 -n 256 -ngl 99 -o json"] [--markdown FILE]
    python benchmarks/energy.py --cost    slowdown of decode by the power sampling itself

The script measures the device that LlamaOverlay() finds (a board, a card, or the emulated device,
which is this computer's CPU) with the sensors it has. With --gpu-command it also measures a program
that runs the model on an NVIDIA card and prints llama-bench's JSON. Without a sensor the measured
watts stay empty. Published and modelled figures have columns of their own.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

from llama_pynq import LlamaOverlay
from llama_pynq.boards import boards
from llama_pynq.checkpoint.random import random_model
from llama_pynq.checkpoint.shapes import STORIES
from llama_pynq.measure.power import PowerRecorder, rails
from llama_pynq.measure.sensors import gpu_rails, hwmon_rails
from llama_pynq.report.comparison import PUBLISHED, Cost, measured, modelled, table

IDLE_S = 5.0


def measure_device(shape: str, tokens: int, batches: list[int]) -> list[Cost]:
    """Measure the device that `LlamaOverlay()` finds, once per batch size."""
    checkpoint, tokenizer = random_model(shape)
    costs = []
    with LlamaOverlay() as overlay:
        llama = overlay.load_model(checkpoint, tokenizer)
        found = rails(overlay)
        for why in found.why:
            print(f"looked at {why}", file=sys.stderr)
        for batch in batches:
            # ignore_eos: every run has the same length.
            options = {"max_new_tokens": tokens, "temperature": 0, "ignore_eos": True}
            llama.generate([""] * batch, **options)  # warm
            with PowerRecorder(found, idle_s=IDLE_S if found else 0) as recorder:
                texts = llama.generate([""] * batch, power=recorder, **options)
            costs.append(measured(overlay.describe(), texts))
    return costs


def measure_gpu(command: str) -> Cost:
    """Measure a program on the first NVIDIA card; watts over its whole run, loading included."""
    found = gpu_rails()
    if "gpu 0" not in found:
        sys.exit(f"--gpu-command: no reading of the first card: {'; '.join(found.why)}")
    rail = {"gpu 0": found["gpu 0"]}
    with PowerRecorder(rail, idle_s=IDLE_S) as recorder:
        begin = time.perf_counter()
        done = subprocess.run(shlex.split(command), capture_output=True, text=True, check=False)
        end = time.perf_counter()
    if done.returncode:
        sys.exit(f"{command} failed: {done.stderr.strip()}")
    rate = float(json.loads(done.stdout)[0]["avg_ts"])
    energy = recorder.energy(begin, end)
    watts = None if isinstance(energy, str) else energy.mean_watts
    idle = None if isinstance(energy, str) else energy.idle_watts
    source = f"{command}; watts are the mean of its whole run, loading included"
    return Cost(f"GPU: {rail['gpu 0'].source}", 1, "measured", rate, watts, idle, source)


def cost(shape: str, tokens: int, rounds: int = 9) -> str:
    """Measure decode with and without a 10 Hz recorder on eight fake hwmon rails, alternating."""
    checkpoint, tokenizer = random_model(shape)
    with tempfile.TemporaryDirectory() as folder, LlamaOverlay() as overlay:
        for i in range(8):
            chip = Path(folder, f"hwmon{i}")
            chip.mkdir()
            (chip / "name").write_text(f"ina{i}\n")
            (chip / "power1_input").write_text("4350000\n")
        found = hwmon_rails(Path(folder))
        llama = overlay.load_model(checkpoint, tokenizer)
        rates: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(rounds):
            for recording in (False, True):
                with PowerRecorder(found) if recording else nullcontext():
                    out = llama.generate("", max_new_tokens=tokens, temperature=0, ignore_eos=True)
                rates[recording].append(out.tokens_per_second)
    without, beside = (statistics.median(rates[recording]) for recording in (False, True))
    samples = PowerRecorder(found)
    begin = time.perf_counter()
    for _ in range(1000):
        samples.sample()
    each = (time.perf_counter() - begin) / 1000
    return (
        f"{shape}: {without:.1f} tok/s alone, {beside:.1f} with a recorder at 10 Hz on 8 rails, "
        f"{1 - beside / without:+.2%} (medians of {rounds}, alternating); a sample takes "
        f"{1e6 * each:.0f} us, at 10 Hz {10 * each:.2%} of a core"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--shape", choices=STORIES, default="stories110M")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4, help="the larger batch (%(default)s)")
    parser.add_argument("--gpu-command", metavar="COMMAND")
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    args = parser.parse_args()
    if args.cost:
        print(cost(args.shape, args.max_new_tokens))
        return
    costs = [*PUBLISHED] if args.shape == "stories110M" else []
    costs += measure_device(args.shape, args.max_new_tokens, [1, args.batch])
    if args.gpu_command:
        costs.append(measure_gpu(args.gpu_command))
    costs += modelled(STORIES[args.shape], boards(), position=args.max_new_tokens - 1)
    text = table(costs)
    print(text)
    if args.markdown:
        args.markdown.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
