"""llama-pynq info: device, overlay, limits and model."""

import re

from llama_pynq import LlamaOverlay, __version__
from llama_pynq.models import BUNDLED


def test_info_lists_device_overlay_limits_and_model(cli):
    status, out, err = cli("info", "--threads", 1)
    assert (status, err) == (0, "")
    sections = [part.splitlines() for part in out.rstrip("\n").split("\n\n")]
    assert sections[0] == [f"llama_pynq {__version__}"]
    tables = {part[0]: dict(line.split(maxsplit=1) for line in part[1:]) for part in sections[1:]}
    assert list(tables) == ["devices", "overlay", "kernel limits", "model"]
    assert tables["devices"] == {"emulated-host": "(in use)"}
    assert tables["overlay"]["file"].endswith("llama.xclbin")
    assert "emulated device on this computer's CPU, 1 thread;" in tables["overlay"]["device"]
    with LlamaOverlay() as overlay:
        level = overlay.device.level
    assert level and re.search(rf"^  compiled for +-march={level}$", out, re.MULTILINE)
    assert tables["kernel limits"]["board"] == "host"
    assert tables["kernel limits"]["max_dim"] == "4096"
    assert tables["model"]["file"] == str(BUNDLED / "stories.bin")
    assert tables["model"]["tokenizer"] == str(BUNDLED / "tokenizer.bin")
    assert tables["model"]["seq_len"] == "512"
    assert re.fullmatch(r"\d+\.\d MiB packed, int8 weights .*", tables["model"]["weights"])
    assert not re.search(r" $", out, re.MULTILINE)


def test_info_names_the_model_file_it_was_given(cli, shared_models):
    model = shared_models / "stories260K.bin"
    out = cli("info", "--model", model, "--tokenizer", shared_models / "tok512.bin")[1]
    assert re.search(rf"^  file +{re.escape(str(model))}$", out, re.MULTILINE)
    assert re.search(r"^  dim +64$", out, re.MULTILINE)
