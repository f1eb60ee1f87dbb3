"""llama-pynq bench: its table, its JSON and its power."""

import json
import re
from pathlib import Path

import pytest


def test_bench_prints_a_table(cli):
    status, out, err = cli("bench", "--max-new-tokens", 8, "--repeats", 2)
    assert (status, err) == (0, "")
    device, model, gap, *rows = out.rstrip("\n").split("\n")
    assert device.startswith("device  emulated-host (emulated device on this computer's CPU")
    assert model.startswith("model   dim 128, 6 layers, vocabulary 1024; int8 weights")
    assert gap == ""
    row = re.compile(r"(\S.*?\S) +(\d+(?:\.\d+)?) (tokens/s|ms|MiB) +(measured|counted): \S.*\S")
    names = [row.fullmatch(line)[1] for line in rows]
    assert {"decode, greedy", "prefill", "time to first token", "load"} < set(names)
    assert len({row.fullmatch(line).start(3) for line in rows}) == 1, "columns are aligned"


def test_bench_power_without_a_sensor_says_where_it_looked(cli):
    if list(Path("/sys/class/powercap").glob("intel-rapl:*")):
        pytest.skip("this machine has RAPL: there may be a reading")
    status, out, err = cli("bench", "--max-new-tokens", 8, "--repeats", 1, "--power")
    assert (status, err) == (0, "")
    last = out.rstrip().split("\n")[-1]
    assert last.startswith("no power: no rail was found; a meter's CSV file can be read: ")
    assert "llama-pynq bench --power --meter FILE" in last
    assert "Looked at RAPL of the CPU that emulates: no zone" in last
    assert " W " not in out


def test_bench_power_with_a_meter_is_measured(cli, tmp_path):
    file = tmp_path / "usb.csv"
    file.write_text("watts\n2.5\n")
    status, out, _ = cli("bench", "--max-new-tokens", 8, "--repeats", 1, "--power", "--meter", file)
    assert status == 0
    text = r"measured: the first 8 tokens; external meter, usb\.csv"
    assert re.search(rf"^power, mean +2\.5 W +{text}$", out, re.MULTILINE)
    assert re.search(rf"^energy +\d.* J/token +{text}$", out, re.MULTILINE)


def test_bench_power_of_an_emulated_board_is_modelled(cli):
    status, out, err = cli(
        "bench", "--max-new-tokens", 8, "--repeats", 1, "--power", "--board", "kv260"
    )
    assert (status, err) == (0, "")
    assert out.startswith("device  emulated-kv260 (emulated device on this computer's CPU")
    assert re.search(r"^power, mean .* W +modelled", out, re.MULTILINE)


def test_bench_meter_alone_asks_for_power(cli):
    status, _, err = cli("bench", "--meter", "usb.csv")
    assert status == 1 and "--meter is only read with --power: add it" in err


def test_bench_prints_json(cli):
    status, out, err = cli("bench", "--max-new-tokens", 8, "--repeats", 1, "--json")
    assert (status, err) == (0, "")
    report = json.loads(out)
    assert report["tokens"] == 8
    assert report["config"]["dim"] == 128
    assert all(f["value"] > 0 and f["kind"] in ("measured", "counted") for f in report["figures"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-new-tokens=1"], "--max-new-tokens is 1: it must be at least 2"),
        (["--repeats=0"], "--repeats is 0: it must be at least 1"),
    ],
)
def test_a_bench_that_measures_nothing_is_refused(refused, options, message):
    assert refused("bench", *options) == message
