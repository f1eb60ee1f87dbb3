"""llama-pynq pack: for this device and for boards."""

import json
import re
from dataclasses import replace

from support.checkpoint_files import write_checkpoint
from support.cli_cases import SHAPE
from support.huggingface_files import CONFIG, random_tensors, write_folder

from llama_pynq import llama_overlay
from llama_pynq.boards import boards
from llama_pynq.emulation.build import emulated_overlay
from llama_pynq.models import BUNDLED
from llama_pynq.weights.packed import open_packed


def test_packed_file_holds_model_and_tokenizer(cli):
    status, out, err = cli("pack", "model.safetensors")
    assert (status, err) == (0, "")
    assert re.fullmatch(
        r"model\.safetensors: \d+\.\d MiB, int8 weights used as they are \(groups of 64\), "
        r"with a tokenizer, for emulated-host \(.*\), kernel host\n",
        out,
    )
    words = ["generate", "One day", "--max-new-tokens", 30, "--seed", 3]
    assert cli(*words, "--model", "model.safetensors")[1] == cli(*words)[1]


def test_pack_keeps_an_existing_file_unless_forced(cli, refused, tmp_path):
    output = tmp_path / "model.safetensors"
    output.write_text("precious")
    message = refused("pack", output)
    assert message == f"{output} exists: choose another name, or replace it with --force"
    assert output.read_text() == "precious"
    assert cli("pack", output, "--force")[0] == 0
    assert cli("generate", "--model", output, "--max-new-tokens", 2)[0] == 0
    assert list(tmp_path.iterdir()) == [output], "no temporary file stays"


def test_pack_without_a_tokenizer_says_so_and_so_does_generate(
    cli, refused, shared_models, tmp_path
):
    model = ["--model", shared_models / "stories260K.bin"]
    assert ", without a tokenizer, for " in cli("pack", "small.safetensors", *model)[1]
    assert refused("generate", "--model", "small.safetensors") == (
        "small.safetensors comes without a tokenizer: give its file, "
        'load_model("model.bin", tokenizer="tokenizer.bin") or --tokenizer tokenizer.bin'
    )
    tokenizer = ["--tokenizer", shared_models / "tok512.bin"]
    assert cli("pack", "small.safetensors", "--force", *model, *tokenizer)[0] == 0
    assert cli("generate", "--model", "small.safetensors", "--max-new-tokens", 2)[0] == 0


def test_pack_refuses_what_it_cannot_pack(cli, refused, tmp_path):
    message = refused("pack", tmp_path)
    assert message == f"{tmp_path} is a folder: give the name of the file to write"
    assert cli("pack", "model.safetensors")[0] == 0
    assert refused("pack", "again.safetensors", "--model", "model.safetensors") == (
        "model.safetensors is packed already: give the checkpoint it was made from"
    )
    deep = replace(SHAPE, dim=8, hidden_dim=8, vocab_size=8, n_layers=257, seq_len=8)
    write_checkpoint(tmp_path / "deep.bin", deep, 0)
    message = refused("pack", "deep.safetensors", "--model", "deep.bin")
    assert message.startswith(
        "the model does not fit the kernel on host: n_layers 257 (at most 256)."
    )
    assert not (tmp_path / "deep.safetensors").exists()


def test_pack_into_a_place_that_cannot_be_written(refused, tmp_path):
    (tmp_path / "file").write_text("")
    message = refused("pack", tmp_path / "file" / "model.safetensors")
    assert str(tmp_path / "file") in message


def test_pack_for_a_board_needs_no_device_and_fits_its_layout(cli, tmp_path):
    from llama_pynq.kernel.config import board_headers
    from llama_pynq.kernel.limits import KernelLimits
    from llama_pynq.weights.packed import open_packed

    targets = set()
    for name in ("kv260", "pynq_z2", "u50"):
        status, out, err = cli("pack", "--board", name, tmp_path / name)
        assert status == 0, err
        target = open_packed(tmp_path / name).target
        header = board_headers()[name.replace("_", "-")]
        assert target == KernelLimits.from_header(header).target
        targets.add(target)
        assert f"for {name.replace('_', '-')}" in out
    assert len(targets) == 3
    _, out, _ = cli("pack", "--board", "pynq_z1", tmp_path / "z1")
    assert out.endswith("for pynq-z1, whose kernel is pynq-z2's\n")
    status, _, err = cli("pack", "--board", "pdp11", tmp_path / "x")
    assert status == 1
    assert err == (
        f"llama-pynq: there is no board 'pdp11': choose one of {', '.join(boards())}, host\n"
    )


def test_pack_for_a_board_in_use_goes_by_its_header_and_says_so(cli, kv260_in_use, monkeypatch):
    from llama_pynq.kernel.config import board_headers
    from llama_pynq.kernel.limits import KernelLimits
    from llama_pynq.weights.packed import open_packed

    for problem, path in (("no overlay of kv260", None), ("in use by", emulated_overlay())):
        if path is not None:
            monkeypatch.setattr(llama_overlay, "overlay_for", lambda device, path=path: path)
        status, out, err = cli("pack", "m.safetensors", "--force")
        assert status == 0 and out.endswith("for KV260 (board), kernel kv260\n")
        assert problem in err and err.endswith("Packing by the config header kv260.h\n")
    assert f"in use by process {kv260_in_use.pid}" in err
    target = KernelLimits.from_header(board_headers()["kv260"]).target
    assert open_packed("m.safetensors").target == target


def test_board_to_pack_for_is_any_that_boards_lists_in_any_case(tmp_path):
    from llama_pynq.cli.pack import board_limits

    for name, board in boards().items():
        for written in (name, name.upper(), name.replace("-", "_")):
            assert board_limits(written)[1].board == board.header
    assert board_limits("host")[1].board == "host"


def test_packed_for_another_board_is_refused_with_the_remedy(cli, tmp_path):
    cli("pack", "--board", "kv260", tmp_path / "model")
    status, _, err = cli("generate", "--model", tmp_path / "model")
    assert status == 1
    assert "is packed for 4 channels of 32-row tiles; this kernel (host) has 2 of 32" in err


def test_a_context_is_packed(cli, refused, tmp_path):
    for version in (0, 1, 2):
        write_checkpoint(
            tmp_path / "m.bin", replace(SHAPE, seq_len=100), version, 32 if version == 2 else None
        )
        args = ["--model", "m.bin", "--context", 40, "--force"]
        assert cli("pack", "m.safetensors", *args)[0] == 0
        cli("pack", "whole.safetensors", "--model", "m.bin", "--force")
        whole, cut = (open_packed(tmp_path / f"{n}.safetensors") for n in ("whole", "m"))
        assert cut.crcs == whole.crcs and whole.config.seq_len == 100
        out = cli("info", "--model", "m.safetensors", "--json")[1]
        assert json.loads(out)["model"]["seq_len"] == 40
        out = cli("info", "--model", "m.bin", "--context", 30, "--json")[1]
        assert json.loads(out)["model"]["seq_len"] == 30
    assert refused("pack", "n.safetensors", "--model", "m.bin", "--context", 101) == (
        "context is 101: it must be 1 to 100, the context of m.bin"
    )
    assert refused("info", "--model", "m.safetensors", "--context", 41) == (
        "context is 41: it must be 1 to 40, the context of m.safetensors"
    )


def test_a_model_longer_than_a_boards_limit_is_packed_for_it(cli, tmp_path):
    write_checkpoint(tmp_path / "m.bin", replace(SHAPE, seq_len=5000), 1)
    status, _, err = cli("pack", "m.safetensors", "--board", "pynq-z2", "--model", "m.bin")
    assert status == 0
    assert "m.bin has a context of 5000 tokens, the kernel on pynq-z2 takes 4096" in err
    found = json.loads(cli("info", "--board", "pynq-z2", "--model", "m.bin", "--json")[1])["model"]
    assert found["seq_len"] == 4096 and "5000" in found["context"]


def test_a_hugging_face_folder_is_packed_with_its_tokenizer(cli, tmp_path, refused):
    config = {**CONFIG, "vocab_size": 1024}
    folder = write_folder(tmp_path / "folder", config, random_tensors(config), 2)
    assert "without a tokenizer" in cli("pack", "m.safetensors", "--model", folder)[1]
    (folder / "tokenizer.model").write_bytes((BUNDLED / "tokenizer.model").read_bytes())
    status, out, _ = cli("pack", "m.safetensors", "--model", folder, "--force")
    assert status == 0 and "with a tokenizer" in out
    words = ["generate", "One day", "--max-new-tokens", 9, "--seed", 3]
    assert cli(*words, "--model", "m.safetensors")[1] == cli(*words, "--model", folder)[1]
    assert cli("boards", "--model", folder)[1].startswith("folder: int8 weights")
    assert "F32 (relative error" in cli("info", "--model", folder)[1]
    assert refused("pack", folder, "--force") == (
        f"{folder} is a folder: give the name of the file to write"
    )


def test_a_template_is_packed_and_kv_bits_are_not(cli, refused):
    assert cli("pack", "m.safetensors", "--template", "zephyr")[0] == 0
    assert cli("info", "--model", "m.safetensors")[0] == 0
    assert open_packed("m.safetensors").chat_template == "zephyr"
    assert "--kv-bits is no part of a packed file" in refused("pack", "n", "--kv-bits", 8)
