"""Make docs/run.svg, the picture in the README, from a real run: needs `pip install '.[bench]'`."""

import shlex
import subprocess
from pathlib import Path

from rich.console import Console
from rich.text import Text

COMMANDS = [
    'llama-pynq generate "Once upon a time" --seed 1',
    "llama-pynq bench",
]

console = Console(record=True, width=110)
for command in COMMANDS:
    console.print(Text("$ ", style="bold green") + Text(command, style="bold"))
    run = subprocess.run(
        shlex.split(command),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    console.print(Text(run.stdout))
svg = console.export_svg(title="llama_pynq, emulated device")
# Drop Rich's web font: without a network, and on GitHub, viewers use the fallback font anyway.
svg = "\n".join(line for line in svg.splitlines() if "url(" not in line or "clip-path" in line)
(Path(__file__).parent / "run.svg").write_text(svg + "\n")
