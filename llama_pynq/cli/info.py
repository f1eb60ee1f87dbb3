"""``llama-pynq info``: devices, overlay, kernel limits and model."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from llama_pynq import __version__
from llama_pynq.cli.arguments import load_model, model_options, open_overlay

if TYPE_CHECKING:
    from llama_pynq.overlay_store.record import OverlayRecord


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the commands of this module to the parser."""
    commands.add_parser(
        "info",
        parents=[model_options()],
        help="devices, overlay, kernel limits, model",
        description="Show the devices and which one is in use, the overlay and who built it, the "
        "limits of its kernel, and the model as loaded.",
    )


def _info(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from pynq.pl_server.device import Device

    from llama_pynq.models import BUNDLED

    def section(title: str, values: dict[str, object]) -> None:
        print(f"\n{title}")
        for name, value in values.items():
            print(f"  {name:<16} {value}".rstrip())

    with open_overlay(args) as overlay:
        llama = load_model(overlay, args)
        print(f"llama_pynq {__version__}")
        try:
            others = dict.fromkeys((device.name for device in Device.devices), "")
        except RuntimeError as error:  # raised by PYNQ if a remote board does not answer
            others = {"others": f"not known: {error}"}
        section("devices", {**others, overlay.device.name: "(in use)"})
        if overlay.is_board:
            built = _built(overlay.record)
        else:
            built = {"compiled for": f"-march={overlay.device.level}"}
        section("overlay", {"file": overlay.bitfile_name, "device": overlay.describe(), **built})
        section("kernel limits", asdict(overlay.llama.limits))
        weights = f"{llama.packed.weight_bytes / 2**20:.1f} MiB packed, {llama.packed.note}"
        section(
            "model",
            {
                "file": args.model or BUNDLED / "stories.bin",
                "tokenizer": llama.tokenizer.path,
                "weights": weights,
                "KV cache": f"{overlay.llama.kv_format}, {overlay.llama.slots} sequences",
                **asdict(llama.config),
            },
        )
    return 0


def _built(record: OverlayRecord | None) -> dict[str, object]:
    """Who built an overlay, its clock, and whether it was measured."""
    if record is None:
        return {"record": "none beside the file: builder and measurements unknown"}
    return {
        "built": record.origin,
        "clock": "not recorded" if record.clock_mhz is None else f"{record.clock_mhz:g} MHz",
        "measured": record.measured or "no",
    }


COMMANDS = {"info": _info}
