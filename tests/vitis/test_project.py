"""The build's project: parts, clocks, port sharing, banks and the files for the tools."""

import re
from dataclasses import replace

import pytest

from llama_pynq.boards import boards
from llama_pynq.errors import BoardNotFound, BuildError
from llama_pynq.kernel.config import kernel_of
from llama_pynq.kernel.top import top_function
from llama_pynq.vitis.platforms import MPSOC, PLATFORMS, ZYNQ_7000, Card
from llama_pynq.vitis.project import Project, bank_of, connectivity, share_ports

CARDS = [name for name, platform in PLATFORMS.items() if isinstance(platform, Card)]


@pytest.fixture
def project(tmp_path):
    return lambda board: Project.of(board, tmp_path / board)


@pytest.mark.parametrize("board", PLATFORMS)
def test_every_platform_is_a_board_of_the_same_part(board):
    def plain(part):
        return re.sub(r"[^a-z0-9]", "", part.lower()).removeprefix("xc")

    known, part = boards()[board].part, plain(PLATFORMS[board].part)
    # A card's data sheet names the die; the tools name the card.
    assert part.startswith(board if board in CARDS else plain(known.split("-")[0]))


def test_boards_without_a_platform_are_amazons():
    assert set(boards()) - set(PLATFORMS) == {"aws-f1"}


def test_amazons_board_is_refused_with_the_reason(tmp_path):
    with pytest.raises(BuildError, match="cannot build for aws-f1: AWS links and registers"):
        Project.of("aws-f1", tmp_path)


def test_unknown_board_is_refused_with_the_choice(tmp_path):
    with pytest.raises(BoardNotFound, match="there is no board 'kv26': choose one of pynq-z1, "):
        Project.of("kv26", tmp_path)


@pytest.mark.parametrize("name", ["my build", "a;b", "a$b"])
def test_folder_that_the_tools_do_not_take_is_refused(tmp_path, name):
    with pytest.raises(BuildError, match="use another folder"):
        Project.of("kv260", tmp_path / name).write()


@pytest.mark.parametrize("board", PLATFORMS)
def test_files_name_the_board_and_are_the_generators(project, board):
    made = project(board)
    made.write()
    top = (made.folder / "top.cpp").read_text()
    assert top.startswith(f'#define LLAMA_BOARD_HEADER "boards/{made.header.name}"\n')
    assert top.endswith(top_function(made.header))
    assert f'kBoardName[] = "{boards()[board].header}"' in made.header.read_text()
    names = {path.name for path in made.folder.iterdir()}
    assert names == {"top.cpp", "settings.tcl", *["connectivity.cfg"] * (board in CARDS)}


@pytest.mark.parametrize("board", PLATFORMS)
def test_clock_is_what_perf_counts_with(project, board):
    assert project(board).clock_mhz == kernel_of(boards()[board]).clock_mhz


@pytest.mark.parametrize("board", PLATFORMS)
def test_bundles_are_those_of_the_arguments(project, board):
    made = project(board)
    k = made.constants
    widths = made.bundles()
    assert set(widths) == {a.bundle for a in made.arguments if a.bundle}
    for bundle, width in widths.items():
        kind = re.sub(r"\d+$", "", bundle)
        expected = {"gmem_w": k["kBeatBytes"], "gmem_kv": k["kKvBeatBytes"]}.get(kind, 4)
        assert width == expected, bundle


# ---- Zynq -----------------------------------------------------------------------------


def test_masters_are_shared_so_that_no_port_carries_much_more_than_another():
    ports = MPSOC.ports
    bundles = {f"w{i}": 16 for i in range(4)} | {f"kv{i}": 16 for i in range(3)} | {"io": 4, "p": 4}
    shared = share_ports(bundles, ports)
    assert list(shared) == [p.name for p in ports]
    assert [m for masters in shared.values() for m in masters if m in ("io", "p")] == ["io", "p"]
    loads = [sum(bundles[m] for m in masters) for masters in shared.values()]
    assert max(loads) - min(loads) <= 16
    # The narrow masters share a port without a KV port.
    assert next(m for m in shared.values() if "io" in m) == ["w3", "io", "p"]


def test_a_port_without_a_master_is_not_used():
    assert list(share_ports({"w0": 8}, ZYNQ_7000.ports)) == ["S_AXI_HP0"]


def test_two_channels_do_not_share_a_port_of_the_memory_controller():
    """UG585, from memory: HP0 and HP1 share one controller port, HP2 and HP3 another."""
    assert [p.name for p in ZYNQ_7000.ports[:2]] == ["S_AXI_HP0", "S_AXI_HP2"]


@pytest.mark.parametrize("board", [b for b in PLATFORMS if b not in CARDS])
def test_ports_are_those_that_perf_counts_with(board):
    """boards.py has the number and width of the fabric's memory ports."""
    memory, ports = boards()[board].memory, PLATFORMS[board].processor.ports
    assert len(ports) == memory.ports
    for port in ports:
        width = next(v for name, v in port.properties if name.endswith("DATA_WIDTH"))
        assert int(width) == 8 * memory.port_bytes


# ---- cards ----------------------------------------------------------------------------


def spoken(text: str) -> dict[str, str]:
    """Bank of each argument, as the linker reads it."""
    assert text.count("[connectivity]") == 1
    lines = text.partition("[connectivity]\n")[2].split()
    assert lines[0] == "nk=llama:1:llama"
    found = [re.fullmatch(r"sp=llama\.(\w+):(\w+\[\d+\])", line) for line in lines[1:]]
    assert all(found)
    assert len({m.group(1) for m in found}) == len(found)
    return {m.group(1): m.group(2) for m in found}


@pytest.mark.parametrize("board", CARDS)
def test_connectivity_places_every_pointer_in_a_bank_that_the_card_has(project, board):
    made = project(board)
    banks = spoken(connectivity(made))
    assert set(banks) == {a.name for a in made.arguments if a.is_pointer}
    memory = boards()[board].memory
    kind = "HBM" if memory.kind.startswith("HBM") else "DDR"
    assert set(banks.values()) <= {f"{kind}[{i}]" for i in range(memory.banks)}
    # Arguments of one port share a bank: the port has one connection.
    for arg in made.arguments:
        if arg.is_pointer:
            peers = {banks[a.name] for a in made.arguments if a.bundle == arg.bundle}
            assert len(peers) == 1


@pytest.mark.parametrize("board", CARDS)
def test_weight_channels_have_banks_of_their_own_while_there_are_any(project, board):
    made = project(board)
    banks, memory = spoken(connectivity(made)), boards()[board].memory
    channels = made.constants["kChannels"]
    weights = [banks[f"weights_{c}"] for c in range(channels)]
    assert len(set(weights)) == min(channels, memory.banks)
    shares = [weights.count(bank) for bank in set(weights)]
    assert max(shares) - min(shares) <= 1
    caches = [banks[f"kv_read_{p}"] for p in range(made.constants["kKvPorts"])]
    if made.constants["kSharedMasters"]:
        assert caches == weights[: len(caches)]
    elif channels + len(caches) <= memory.banks:
        assert not set(caches) & set(weights)


@pytest.mark.parametrize("board", CARDS)
def test_banks_are_dealt_out_as_perf_fits_models_to_them(project, board):
    """capacity.fits: weights first, then in turn the KV ports with their own masters."""
    made = project(board)
    bank, memory = bank_of(made), boards()[board].memory
    ports = [f"gmem_w{c}" for c in range(made.constants["kChannels"])]
    if not made.constants["kSharedMasters"]:
        ports += [f"gmem_kv{p}" for p in range(made.constants["kKvPorts"])]
    assert [bank[port] for port in ports] == [i % memory.banks for i in range(len(ports))]


@pytest.mark.parametrize("board", CARDS)
def test_linker_is_asked_for_the_kernels_clock(project, board):
    assert f"\nkernel_frequency={project(board).clock_mhz}\n" in connectivity(project(board))


def test_more_masters_than_the_shell_takes_are_refused(tmp_path, project):
    made = project("u50")
    few = replace(made, platform=replace(made.platform, most_masters=20))
    with pytest.raises(BuildError, match=r"u50.h has 26 AXI masters .* Alveo U50 takes 20: lower"):
        few.write()
    mine = tmp_path / "mine.h"
    text = made.header.read_text().replace("kSharedMasters = 1", "kSharedMasters = 0")
    mine.write_text(text)
    apart = Project.of("u50", tmp_path / "out", mine)
    with pytest.raises(
        BuildError, match=r"38 AXI masters \(24 for .*, 12 .* or set kSharedMasters"
    ):
        apart.write()


@pytest.mark.parametrize("board", CARDS)
def test_card_takes_the_kernels_masters(project, board):
    made = project(board)
    count = len({a.bundle for a in made.arguments if a.bundle})
    assert count <= made.platform.most_masters


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("kChannels", "kChannel", "mine.h defines no 'constexpr int kChannels = ...;': compare"),
        ("kFaddLatency", "kAdder", "mine.h defines no 'constexpr int kFaddLatency = ...;'"),
        ("kClockMhz = 300", "kClockMhz = 0", "kClockMhz of .*mine.h is 0: compare it with those"),
    ],
)
def test_header_that_lacks_a_constant_is_refused_by_name(tmp_path, project, old, new, message):
    mine = tmp_path / "mine.h"
    mine.write_text(project("kv260").header.read_text().replace(old, new))
    with pytest.raises(BuildError, match=message):
        Project.of("kv260", tmp_path / "out", mine)


def test_header_of_ones_own_is_built_for_the_board(tmp_path, project):
    mine = tmp_path / "mine.h"
    text = project("kv260").header.read_text().replace("kClockMhz = 300", "kClockMhz = 200")
    mine.write_text(text.replace('"kv260"', '"mine"').replace("kKvPorts = 3", "kKvPorts = 2"))
    made = Project.of("kv260", tmp_path / "out", mine)
    made.write()
    assert made.clock_mhz == 200
    assert sum(bundle.startswith("gmem_kv") for bundle in made.bundles()) == 2
    assert (tmp_path / "out" / "top.cpp").read_text().startswith(
        f'#define LLAMA_BOARD_HEADER "{mine}"\n'
    )  # fmt: skip
    with pytest.raises(BuildError, match=r"no.h is missing: name a config header like those in"):
        Project.of("kv260", tmp_path, tmp_path / "no.h")
