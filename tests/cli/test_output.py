"""What commands write: JSON of the commands that have it, and files that are kept."""

import json

import pytest

from llama_pynq.boards import boards


def strict(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_boards_as_json_has_the_figures_of_the_table(cli):
    status, out, _ = cli("boards", "--shape", "llama2-7b", "--json")
    rows = strict(out)["boards"]
    assert status == 0 and [row["board"] for row in rows] == list(boards())
    table = cli("boards", "--shape", "llama2-7b")[1]
    for row in rows:
        assert row["kind"] == "modelled"
        (line,) = (one for one in table.splitlines() if one.startswith(f"{row['board']} "))
        assert f"{row['roof_tokens_per_second']:,.1f}" in line
        if row["fits"]:
            assert f"{row['tokens_per_second']:,.1f}" in line
        else:
            assert row["reason"] and row["tokens_per_second"] is None


def test_overlay_list_as_json_has_every_board(cli):
    status, out, _ = cli("overlay", "list", "--json")
    assert status == 0 and list(strict(out)) == list(boards())


def test_selftest_as_json_has_every_check(cli):
    status, out, err = cli("selftest", "--quick", "--json")
    found = strict(out)
    assert status == 0 and found["passed"] and found["verdict"] in err
    assert len(found["checks"]) > 20
    for check in found["checks"]:
        assert check["name"] in err, "progress goes to standard error"


@pytest.mark.parametrize(
    "command", [["pack"], ["boards", "--plot"], ["selftest", "--quick", "--output"]]
)
def test_commands_keep_an_existing_file_unless_forced(cli, refused, tmp_path, command):
    path = tmp_path / "file.svg"
    path.write_text("precious")
    assert refused(*command, path) == (
        f"{path} exists: choose another name, or replace it with --force"
    )
    assert path.read_text() == "precious"
    assert (
        refused(*command, tmp_path) == f"{tmp_path} is a folder: give the name of the file to write"
    )
    assert "there is no folder" in refused(*command, tmp_path / "no" / "file.svg")
    assert cli(*command, path, "--force")[0] == 0
    assert path.read_bytes()[:8] != b"precious"
    assert list(tmp_path.iterdir()) == [path], "no temporary file stays"
