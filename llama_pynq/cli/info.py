"""``llama-pynq info``: devices, overlay, kernel limits and model."""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from llama_pynq import __version__
from llama_pynq.cli.arguments import model_options, rope_theta_of, selected_device
from llama_pynq.cli.output import json_option, print_json
from llama_pynq.errors import DeviceNotFound, OverlayMismatch
from llama_pynq.utils.files import user_path

if TYPE_CHECKING:
    from pynq.pl_server.device import Device

    from llama_pynq.kernel.limits import KernelLimits

Facts = dict[str, Any]


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the commands of this module to the parser."""
    info = commands.add_parser(
        "info",
        parents=[model_options()],
        help="devices, overlay, kernel limits, model",
        description="Show the devices and which one is selected, its overlay and who built it, "
        "the limits of its kernel, and the model. Nothing is loaded onto a device, so a device "
        "in use is no obstacle.",
    )
    json_option(info)


def _info(args: argparse.Namespace) -> int:
    from llama_pynq.overlay_store.devices import pynq_devices

    device, problem = None, None
    try:
        device = selected_device(args)
    except DeviceNotFound as error:
        if args.device is not None:
            raise
        problem = str(error)
    try:
        others = pynq_devices()
    except DeviceNotFound as error:
        others, problem = [], problem or str(error)
    overlay = {"problem": "no device is selected"} if device is None else _overlay(args, device)
    limits, source = (None, None) if device is None else _limits(device)
    devices = []
    for number, other in enumerate(others):
        selected = device is not None and _same(device, other)
        devices.append(_device(number, device if selected else other, selected))
    if device is not None and not any(found["selected"] for found in devices):
        devices.append(_device(None, device, True))  # an emulated board that PYNQ does not list
    found: Facts = {
        "version": __version__,
        "devices": devices,
        "problem": problem,
        "overlay": overlay,
        "limits": None if limits is None else {**asdict(limits), "source": source},
        "model": _model(args, limits),
    }
    if args.json:
        print_json(found)
    else:
        _print(found)
    return 0


def _same(device: Device, listed: Device) -> bool:
    """Whether PYNQ's list has a device; cards of one model have the same name."""
    from llama_pynq.overlay_store.devices import is_emulated

    return device is listed or (is_emulated(listed) and device.name == listed.name)


# ---- facts ----------------------------------------------------------------------------


def _device(number: int | None, device: Device, selected: bool) -> Facts:
    from llama_pynq.overlay_store.devices import board_of_device, describe_device, holder_of

    return {
        "number": number,
        "name": device.name,
        "description": describe_device(device),
        "board": board_of_device(device),
        "in_use_by": holder_of(device),
        "selected": selected,
    }


def _overlay(args: argparse.Namespace, device: Device) -> Facts:
    """The file that a device would load, and who built it; or why there is none."""
    from llama_pynq.emulation.build import built_overlay
    from llama_pynq.overlay_store.devices import is_emulated
    from llama_pynq.overlay_store.search import overlay_file, overlay_for, record_of

    try:
        if args.overlay is not None:
            path = overlay_file(args.overlay, device)
        else:
            path = built_overlay() if is_emulated(device) else overlay_for(device)
    except OverlayMismatch as error:
        return {"problem": str(error)}
    if is_emulated(device):
        try:
            return {"file": path, "compiled_for": f"-march={device.level_of(path)}"}
        except OverlayMismatch as error:
            return {"file": path, "problem": str(error)}
    record = record_of(path)
    if record is None:
        return {"file": path, "record": "none beside the file: builder and measurements unknown"}
    return {
        "file": path,
        "built": record.origin,
        "clock_mhz": record.clock_mhz,
        "measured": record.measured,
    }


def _limits(device: Device) -> tuple[KernelLimits | None, str | None]:
    """Limits of a device's kernel, and where they stand."""
    from llama_pynq.overlay_store.devices import header_limits

    header, limits = header_limits(device)
    if limits is None:
        return None, None
    return limits, f"the config header {header}.h; the kernel was not asked"


def _model(args: argparse.Namespace, limits: KernelLimits | None) -> Facts:
    from llama_pynq.checkpoint.load import load_checkpoint
    from llama_pynq.engine.loading import (
        context_of,
        cut_padding,
        packed_problem,
        tokenizer_inside,
    )
    from llama_pynq.errors import LimitError
    from llama_pynq.kernel.limits import check_limits
    from llama_pynq.models import BUNDLED
    from llama_pynq.tokenizer.load import load_tokenizer, tokenizer_from_bytes
    from llama_pynq.weights.packed import is_packed, open_packed
    from llama_pynq.weights.quantize import QuantizedModel
    from llama_pynq.weights.tiles import channel_bytes

    path = user_path(args.model) if args.model is not None else BUNDLED / "stories.bin"
    tokenizer = args.tokenizer
    if tokenizer is None and args.model is None:
        tokenizer = BUNDLED / "tokenizer.bin"
    size, problem, padding = None, None, ""
    text = None if tokenizer is None else load_tokenizer(tokenizer)
    if os.path.isfile(path) and is_packed(path):
        packed = open_packed(path)
        config, note, size = packed.config, packed.note, packed.weight_bytes
        inside = "in the packed file" if packed.tokenizer else None
        problem = packed_problem(
            packed, limits, text, args.context, group_size=args.group_size,
            weight_bits=args.weight_bits, rope_theta=args.rope_theta, reading=args.reading,
        )  # fmt: skip
    else:
        inside = None
        with load_checkpoint(path, rope_theta_of(args), args.reading) as checkpoint:
            if text is None and (vocabulary := tokenizer_inside(checkpoint)):
                text, inside = tokenizer_from_bytes(vocabulary, path), "in the file"
            if text is not None:
                padding = cut_padding(checkpoint, text)
            config = checkpoint.config
            quantized = QuantizedModel(checkpoint, args.group_size, args.weight_bits or 8)
            note = quantized.note
            if limits is not None:
                group, bits = quantized.group_size, quantized.weight_bits
                size = sum(channel_bytes(config, group, limits.target, bits))
    facts: Facts = {
        "file": path,
        "tokenizer": tokenizer or inside or "none: give --tokenizer FILE",
        "weights": note,
        "weight_bytes": size,
    }
    if padding:
        facts["padding"] = padding
    context, note = context_of(config, limits, args.context, path)
    config = replace(config, seq_len=context)
    if note:
        facts["context"] = note
    if problem is not None:
        facts["problem"] = problem
    if limits is not None:
        try:
            check_limits(config, limits)
        except LimitError as error:
            facts["problem"] = str(error)
        facts["kv_bits"] = args.kv_bits
        facts["kv_bytes_per_sequence"] = limits.kv_ports * limits.kv_port_bytes(
            config, args.kv_bits, 1
        )
    shape = asdict(config)
    divisors = shape.pop("rope_divisors")
    scaled = "none"
    if divisors is not None:
        scaled = f"frequencies divided by {min(divisors):g} to {max(divisors):g}"
    return {**facts, **shape, "rope_scaling": scaled}


# ---- text -----------------------------------------------------------------------------


def _print(found: Facts) -> None:
    print(f"llama_pynq {found['version']}")
    print("\ndevices")
    for device in found["devices"]:
        print(_device_line(device))
    if found["problem"]:
        print(f"  {found['problem']}")
    _section("overlay", {name: _value(name, value) for name, value in found["overlay"].items()})
    if found["limits"] is not None:
        _section("kernel limits", found["limits"])
    _section("model", {name: _value(name, value) for name, value in found["model"].items()})


def _device_line(device: Facts) -> str:
    marks = ["selected"] * device["selected"]
    if device["in_use_by"]:
        marks.append(f"in use by {device['in_use_by']}")
    number = "-" if device["number"] is None else device["number"]
    return f"  {number}  {device['description']}{': ' * bool(marks)}{', '.join(marks)}"


def _value(name: str, value: Any) -> Any:
    if value is None:
        return {"clock_mhz": "not recorded", "measured": "no"}.get(name, "not known")
    if name.endswith(("_bytes", "_bytes_per_sequence")):
        return f"{value:,} ({value / 2**20:.1f} MiB)"
    return value


def _section(title: str, values: Facts) -> None:
    print(f"\n{title}")
    width = max(map(len, values), default=0)
    for name, value in values.items():
        print(f"  {name:<{width}}  {value}".rstrip())


COMMANDS = {"info": _info}
