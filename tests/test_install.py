"""Wheel, sdist and editable install, each in a separate environment.

Nothing is downloaded: the environments borrow the dependencies of the environment that runs the
tests, except llama_pynq and its entry points.
"""

import contextlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from dataclasses import replace
from email.parser import HeaderParser
from pathlib import Path

import pytest
from support.board_overlays import write_overlay
from support.paths import TESTS
from support.project_files import copy_project, project_files
from support.tiny_lesson import notebook, write

from llama_pynq.overlay_store.record import OverlayRecord

OVERLAY_FILES = {f"llama_pynq/overlay/llama/llama.{kind}" for kind in ("xclbin", "bit", "hwh")}
TINY = "99_tiny.ipynb"
LITTER = (
    "notebooks/.ipynb_checkpoints/99_tiny-checkpoint.ipynb",
    "notebooks/__pycache__/__init__.cpython-311.pyc",
    "notebooks/solutions/99_tiny.ipynb",
    "tests/notebooks/solutions/99_tiny.py",
)
# Files that only serve the git repository: the sdist need not hold them.
ONLY_IN_GIT = (".gitignore", ".gitattributes", ".ci/", ".github/")

pytest.importorskip("build")
pytest.importorskip("pip")
pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="borrows dependencies by symbolic links"),
    pytest.mark.skipif(
        int(importlib.metadata.version("setuptools").split(".")[0]) < 77,
        reason="building takes setuptools 77 or newer: pip install '.[test]'",
    ),
]

SESSION = """
import json, sys
from importlib.metadata import entry_points
from pathlib import Path

import pynq
import llama_pynq

device = llama_pynq.EmulatedDevice(threads=1)
with llama_pynq.LlamaOverlay(device=device) as overlay:
    overlay.load_model()
    text = overlay.generate("Once upon a time", max_new_tokens=20, seed=1).text
named = {}
for name in ("llama.xclbin", "llama.bit"):
    bare = pynq.Overlay(name, device=device)
    named[name] = bare.bitfile_name, type(bare.llama).__name__
    bare.free()
from llama_pynq.emulation.build import emulated_overlay
print(json.dumps({
    "package": llama_pynq.__file__,
    "overlay": str(emulated_overlay()),
    "named": named,
    "text": text,
}))
"""


def attempt(*command, cwd, **environment):
    """Run a command outside the source tree."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def call(*command, cwd, **environment):
    """Run a command that must succeed; see `attempt`."""
    done = attempt(*command, cwd=cwd, **environment)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the project as a fresh checkout would have it."""
    folder = copy_project(tmp_path_factory.mktemp("source") / "llama_pynq-checkout")
    # Add files that JupyterLab and Python leave in a checkout, and a notebook.
    write(folder / "notebooks" / TINY, notebook())
    for name in LITTER:
        write(folder / name, "{}")
    return folder


def build(kind, source, out, **environment):
    command = [sys.executable, "-m", "build", "--no-isolation", f"--{kind}", "--outdir", out]
    environment["PYTHONWARNINGS"] = "default"
    done = call(*command, source, cwd=out.parent, **environment)
    assert "Deprecat" not in done.stdout + done.stderr
    (file,) = out.iterdir()
    return file, done.stdout + done.stderr


@pytest.fixture(scope="module")
def sdist(source, tmp_path_factory):
    return build("sdist", source, tmp_path_factory.mktemp("sdist") / "dist")[0]


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    return build("wheel", source, tmp_path_factory.mktemp("wheel") / "dist")[0]


@pytest.fixture(scope="module")
def dependencies(tmp_path_factory):
    """Everything installed here except llama_pynq, its metadata and its editable hooks."""
    folder = tmp_path_factory.mktemp("dependencies")
    for path in map(Path, sys.path):
        if path.name in ("site-packages", "dist-packages") and path.is_dir():
            for entry in path.iterdir():
                ours = "llama_pynq" in entry.name
                if not ours and not (folder / entry.name).exists():
                    (folder / entry.name).symlink_to(entry)
    return folder


@pytest.fixture
def install(dependencies, tmp_path):
    """Make an environment, install packages in it with pip, and return its folder."""

    def into(*what, **environment):
        folder = tmp_path / "env"
        venv.create(folder, symlinks=True)
        python = folder / "bin" / "python"
        (site,) = folder.glob("lib/python3*/site-packages")
        # addsitedir() also processes .pth files there: setuptools has one.
        (site / "borrowed.pth").write_text(f"import site; site.addsitedir({str(dependencies)!r})\n")
        pip = [sys.executable, "-m", "pip", "--python", python, "--no-input", "install"]
        options = ["--no-index", "--no-deps", "--no-build-isolation", "--no-cache-dir"]
        call(*pip, *options, "--disable-pip-version-check", *what, cwd=tmp_path, **environment)
        return folder

    return into


GET_NOTEBOOKS = "import sys; from pynq._cli.get_notebooks import main; sys.exit(main())"


def deliver(folder, notebooks):
    """Deliver the notebooks with PYNQ and with our command; nothing else may arrive."""
    python = folder / "bin" / "python"
    expected = {path.name: path.read_bytes() for path in notebooks.glob("*.ipynb")}
    assert TINY in expected
    get = [python, "-c", GET_NOTEBOOKS]
    assert "- llama_pynq (source: llama_pynq)" in call(*get, "-l", cwd=folder).stdout
    # As on an Alveo host, and as on a computer without a board and without overlay lookup.
    for out, options in (("d", ["-d", "xilinx_u250"]), ("o", ["--ignore-overlays"])):
        call(*get, *options, "-p", out, "llama_pynq", cwd=folder)
    call(folder / "bin" / "llama-pynq", "notebooks", "ours", cwd=folder)
    for out in ("d/llama_pynq", "o/llama_pynq", "ours"):
        found = [path for path in (folder / out).rglob("*") if path.is_file()]
        assert {str(p.relative_to(folder / out)): p.read_bytes() for p in found} == expected
    # A second, forced delivery replaces a changed notebook and keeps a backup.
    (folder / "o" / "llama_pynq" / TINY).write_text("my work")
    call(*get, "-o", "-f", "-p", "o", "llama_pynq", cwd=folder)
    assert (folder / "o" / "llama_pynq" / TINY).read_bytes() == expected[TINY]
    (backup,) = (folder / "o" / "llama_pynq").glob("*.backup-*.ipynb")
    assert backup.read_text() == "my work"


def try_out(folder, package_folder):
    """Use an installed llama_pynq as a script and as a library."""
    python = folder / "bin" / "python"
    found = json.loads(call(python, "-c", SESSION, cwd=folder).stdout)
    overlays = package_folder / "overlay" if folder in package_folder.parents else (
        package_folder.parent / "overlay"
    )  # fmt: skip
    assert Path(found["package"]) == package_folder / "__init__.py"
    assert Path(found["overlay"]) == overlays / "llama" / "llama.xclbin"
    for name, (path, driver) in found["named"].items():
        assert Path(path) == overlays / "llama" / name
        assert driver == "LlamaDriver"
    words = ["generate", "Once upon a time", "--max-new-tokens", "20", "--seed", "1"]
    for command in ([folder / "bin" / "llama-pynq"], [python, "-m", "llama_pynq"]):
        printed = call(*command, *words, cwd=folder)
        assert printed.stdout == f"Once upon a time{found['text']}\n"


def test_wheel_holds_the_package_and_nothing_else(wheel):
    name, version, python, abi, platform = wheel.stem.split("-")
    assert (name, version) == ("llama_pynq", importlib.metadata.version("llama_pynq"))
    assert (python, abi) == ("py3", "none")
    assert platform != "any"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points = archive.read(f"{name}-{version}.dist-info/entry_points.txt").decode()
        metadata = archive.read(f"{name}-{version}.dist-info/METADATA").decode()
    info = f"{name}-{version}.dist-info/"
    package = {file for file in names if not file.startswith(info)}
    expected = {*OVERLAY_FILES, f"llama_pynq/notebooks/{TINY}"}
    for file in project_files():
        if file.startswith("llama_pynq/"):
            expected.add(file)
        elif file.startswith(("hls_src/", "notebooks/", "overlay/")) and not file.endswith(
            (".tcl", ".md")
        ):
            expected.add(f"llama_pynq/{file}")
    assert expected <= package, "files are missing"
    extra = package - expected
    assert all(file.startswith(("llama_pynq/hls_src/", "llama_pynq/overlay/")) for file in extra)
    assert not [file for file in names if file.endswith((".so", ".pyc", ".pyd", ".dll"))]
    assert "llama-pynq = llama_pynq.cli.main:main" in entry_points
    assert "[pynq.overlays]\nllama_pynq = llama_pynq.overlay" in entry_points
    assert "[pynq.notebooks]\nllama_pynq = llama_pynq.notebooks" in entry_points
    assert not [file for file in names if "solutions" in file or ".ipynb_checkpoints" in file]
    assert not [file for file in names if file.startswith(("tests/", "llama_pynq/tests/"))]
    headers = HeaderParser().parsestr(metadata)
    assert headers["License-Expression"] == "Apache-2.0"
    assert headers["Requires-Python"] == "<3.13,>=3.10"
    assert f"{info}licenses/LICENSE" in names


def test_sdist_holds_the_whole_project(sdist):
    with tarfile.open(sdist) as archive:
        top = sdist.name.removesuffix(".tar.gz")
        names = {name.removeprefix(f"{top}/") for name in archive.getnames()}
    wanted = {name for name in project_files() if not name.startswith(ONLY_IN_GIT)}
    assert wanted - names == set()
    assert f"notebooks/{TINY}" in names
    assert not [name for name in names if name.startswith("notebooks/.")]
    assert not [name for name in names if name.startswith("overlay/llama")], "a built file"
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


def test_wheel_works_in_an_empty_environment(wheel, install):
    folder = install(wheel)
    (site,) = folder.glob("lib/python3*/site-packages")
    try_out(folder, site / "llama_pynq")
    deliver(folder, site / "llama_pynq" / "notebooks")


def test_sdist_works_in_an_empty_environment(sdist, install):
    folder = install(sdist)
    (site,) = folder.glob("lib/python3*/site-packages")
    try_out(folder, site / "llama_pynq")
    assert (site / "llama_pynq" / "notebooks" / TINY).is_file()


def test_editable_install_works_in_an_empty_environment(source, install, tmp_path):
    checkout = shutil.copytree(source, tmp_path / "checkout")
    folder = install("--editable", checkout)
    try_out(folder, checkout / "llama_pynq")
    deliver(folder, checkout / "notebooks")
    # An edit of the checkout takes effect.
    text = (checkout / "llama_pynq" / "__init__.py").read_text()
    (checkout / "llama_pynq" / "__init__.py").write_text(text + '__version__ = "9.9"\n')
    printed = call(folder / "bin" / "llama-pynq", "--version", cwd=folder)
    assert printed.stdout == "llama_pynq 9.9\n"


STORY = """
import warnings
warnings.simplefilter("ignore")
from llama_pynq import LlamaOverlay
from llama_pynq.labs.files import notebook_sources
with LlamaOverlay() as overlay:
    overlay.load_model()
    print(overlay.generate("Once", max_new_tokens=8, seed=1).text, len(notebook_sources()))
"""


def test_python_inside_the_checkout_uses_the_checkouts_own_folders(
    source, wheel, install, tmp_path
):
    """Its llama_pynq/ hides the installed package, and has no built emulator."""
    checkout = shutil.copytree(source, tmp_path / "checkout")
    python = install(wheel) / "bin" / "python"
    expected = call(python, "-c", STORY, cwd=tmp_path).stdout
    cache = {"LLAMA_PYNQ_CACHE": str(tmp_path / "own cache")}
    first = attempt(python, "-c", STORY, cwd=checkout, **cache)
    assert first.returncode == 0, first.stderr
    assert "compiling the emulated device from this checkout's hls_src/" in first.stderr
    second = attempt(python, "-c", STORY, cwd=checkout, **cache)
    assert "compiling" not in second.stderr
    assert first.stdout == second.stdout == expected


@pytest.fixture(scope="module")
def wheel_without(source, tmp_path_factory):
    """The wheel for boards: without the emulator, for every platform."""
    out = tmp_path_factory.mktemp("without") / "dist"
    return build("wheel", source, out, LLAMA_PYNQ_EMULATOR="0")[0]


def test_wheel_without_the_emulator_is_for_every_platform(source, wheel, wheel_without):
    assert list((source / "build").rglob("llama.xclbin")), "an earlier build must have left one"
    assert wheel_without.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(wheel_without) as other:
        difference = set(one.namelist()) ^ set(other.namelist())
        (name,) = [name for name in other.namelist() if name.endswith(".dist-info/WHEEL")]
        assert "Root-Is-Purelib: true" in other.read(name).decode()
    assert difference == OVERLAY_FILES


def test_package_without_the_emulator_says_so_and_compiles_one_when_asked(
    wheel_without, install, tmp_path
):
    folder = install(wheel_without)
    python = folder / "bin" / "python"
    cache = {"LLAMA_PYNQ_CACHE": str(tmp_path / "cache")}
    words = ["-m", "llama_pynq", "generate", "Once upon a time", "--max-new-tokens", "20", "--seed"]
    done = attempt(python, *words, "1", cwd=folder, **cache)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "llama-pynq: the emulated overlay is not installed: it is left out on boards, and where "
        "the package was built without a C++ compiler. To compile it for this computer: python -m "
        "llama_pynq.emulation.build (it needs g++; Debian, Ubuntu: apt install g++)\n"
    )
    compile_it = [python, "-m", "llama_pynq.emulation.build"]
    done = attempt(*compile_it, cwd=folder, CXX="/nonexistent/g++", **cache)
    assert done.returncode == 1
    assert "/nonexistent/g++ could not be run" in done.stderr and "apt install g++" in done.stderr
    call(*compile_it, cwd=folder, **cache)
    (site,) = folder.glob("lib/python3*/site-packages")
    assert not (site / "llama_pynq" / "overlay" / "llama").exists(), "must use the user's cache"
    assert call(python, *words, "1", cwd=folder, **cache).stdout.startswith("Once upon a time")
    # Changed sources need a new build: the cached kernel must not be used.
    with open(site / "llama_pynq" / "hls_src" / "config.h", "a") as file:
        file.write("// edited\n")
    assert attempt(python, *words, "1", cwd=folder, **cache).returncode == 1


@pytest.fixture
def on_a_board(source, tmp_path):
    """A checkout that treats this computer as a board."""
    checkout = shutil.copytree(source, tmp_path / "checkout")
    shutil.rmtree(checkout / "build", ignore_errors=True)
    with open(checkout / "llama_pynq" / "utils/files.py", "a") as file:
        file.write('\nBOARD_MARKS = (Path("/"),)\n')
    return checkout


def test_board_compiles_nothing_by_itself(on_a_board, tmp_path):
    file, log = build("wheel", on_a_board, tmp_path / "dist")
    assert file.name.endswith("-py3-none-any.whl")
    assert "this is a board: installing without the emulator" in log
    assert "python -m llama_pynq.emulation.build" in log


def test_board_compiles_the_emulator_where_asked(on_a_board, tmp_path):
    missing = {"LLAMA_PYNQ_EMULATOR": "1", "CXX": "/nonexistent/g++"}
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", on_a_board]
    done = attempt(*command, cwd=tmp_path, **missing)
    assert done.returncode != 0
    assert "/nonexistent/g++ could not be run" in done.stdout + done.stderr


def test_build_without_a_compiler_leaves_out_the_emulator(source, tmp_path):
    nowhere = {"CXX": "/nonexistent/g++"}
    without, log = build("wheel", source, tmp_path / "dist", **nowhere)
    assert "no C++ compiler (/nonexistent/g++): installing without the emulator" in log
    assert without.name.endswith("-py3-none-any.whl")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no controlling terminal")
def test_build_without_a_compiler_says_so_on_the_terminal(source, tmp_path):
    """pip hides the output of a build."""
    import pty

    build_it = f"{sys.executable} setup.py -q build -b {tmp_path} >/dev/null 2>&1"
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(source)
        os.execve("/bin/sh", ["sh", "-c", build_it], {**os.environ, "CXX": "/nonexistent/g++"})
    said = b""
    with contextlib.suppress(OSError):  # the terminal's end
        while data := os.read(terminal, 4096):
            said += data
    assert os.waitpid(pid, 0)[1] == 0
    os.close(terminal)
    assert b"llama_pynq: no C++ compiler (/nonexistent/g++): installing without the em" in said


@pytest.mark.parametrize("version", [(3, 9), (3, 13), (3, 14)])
def test_other_pythons_are_refused_before_anything_is_built(source, version):
    code = (
        f"import sys; sys.version_info = {(*version, 0, 'final', 0)}; sys.argv = ['setup.py', "
        "'egg_info']; exec(compile(open('setup.py').read(), 'setup.py', 'exec'))"
    )
    done = attempt(sys.executable, "-S", "-c", code, cwd=source)
    assert done.returncode == 1
    asked = f"needs Python 3.10, 3.11 or 3.12, and this is {version[0]}.{version[1]}: PYNQ needs"
    assert asked in done.stderr and "python3.12 -m venv .venv" in done.stderr


@pytest.mark.parametrize(
    "variable, said",
    [
        ("LLAMA_PYNQ_EMULATOR", "LLAMA_PYNQ_EMULATOR is 'amiga': it must be 0, 1 or unset"),
        ("LLAMA_PYNQ_TARGET", "LLAMA_PYNQ_TARGET is 'amiga': it must be one of linux-x86_64, "),
    ],
)
def test_build_names_a_wrong_setting(source, tmp_path, variable, said):
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", source]
    done = attempt(*command, cwd=tmp_path, **{variable: "amiga"})
    assert done.returncode != 0
    assert said in done.stdout + done.stderr


def write_metadata(folder, name, version, requires=()):
    """Write the metadata by which pip knows an installed package or a wheel."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {requirement}" for requirement in requires]
    (info / "METADATA").write_text("\n".join(lines) + "\n")
    (info / "WHEEL").write_text("Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    (info / "RECORD").write_text("")
    (info / "INSTALLER").write_text("pip\n")


def test_install_on_a_pynq_image_changes_none_of_its_packages(wheel_without, tmp_path):
    """pip resolves against an environment with the metadata of the image's packages."""
    image = json.loads((TESTS / "support" / "pynq_3_0_1_image.json").read_text())["packages"]
    venv.create(tmp_path / "env", symlinks=True)
    (site,) = (tmp_path / "env").glob("lib/python3*/site-packages")
    for name, package in image.items():
        write_metadata(site, name, package["version"], package["requires"])
    # The package that the image lacks; on the board it comes from PyPI and requires nothing else.
    name, version = "sentencepiece", "0.2.0"
    write_metadata(tmp_path / name, name, version)
    with zipfile.ZipFile(tmp_path / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path in (tmp_path / name).glob("*/*"):
            archive.write(path, path.relative_to(tmp_path / name))
    pip = [sys.executable, "-m", "pip", "--python", tmp_path / "env" / "bin" / "python"]
    dry = ["install", "--dry-run", "--quiet", "--report", "-", "--disable-pip-version-check"]
    offline = ["--no-index", "--find-links", tmp_path]
    done = call(*pip, *dry, *offline, wheel_without, cwd=tmp_path)
    installed = {entry["metadata"]["name"] for entry in json.loads(done.stdout)["install"]}
    assert installed == {"llama_pynq", "sentencepiece"}


def test_overlays_of_boards_travel_with_their_records(source, install, tmp_path):
    checkout = shutil.copytree(source, tmp_path / "checkout")
    write_overlay(checkout / "overlay" / "kv260", "kv260")
    write_overlay(tmp_path / "u50", "u50")
    record = OverlayRecord.read(tmp_path / "u50" / "overlay.json")
    files = tuple(replace(f, url=f"https://example.org/{f.name}") for f in record.files)
    (checkout / "overlay" / "u50").mkdir()
    replace(record, files=files).write(checkout / "overlay" / "u50")
    (checkout / "overlay" / "kv260" / "vivado.log").write_text("no part of an overlay")
    expected = {"kv260/llama.bit", "kv260/llama.hwh", "kv260/overlay.json", "u50/overlay.json"}
    sdist, _ = build("sdist", checkout, tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        top = f"{sdist.name.removesuffix('.tar.gz')}/overlay/"
        names = {n.removeprefix(top) for n in archive.getnames() if n.startswith(top)}
    assert {name for name in names if "." in name} == {*expected, "__init__.py", "README.md"}
    wheel, _ = build("wheel", checkout, tmp_path / "wheel", CXX="/nonexistent/g++")
    with zipfile.ZipFile(wheel) as archive:
        top = "llama_pynq/overlay/"
        names = {n.removeprefix(top) for n in archive.namelist() if n.startswith(top)}
    assert names == {*expected, "__init__.py", "README.md"}
    folder = install(wheel)
    own = {"LLAMA_PYNQ_OVERLAYS": str(tmp_path / "user")}
    command = folder / "bin" / "llama-pynq"
    printed = call(command, "overlay", "verify", cwd=folder, **own).stdout
    assert "/overlay/kv260/llama.bit: sha256, kernel and version are right\n" in printed
    assert "/overlay/u50/llama.xclbin: link, not fetched\n" in printed
    assert not (tmp_path / "user").exists(), "nothing may be fetched or written"


def test_build_stops_where_the_kernel_does_not_compile(source, tmp_path):
    checkout = shutil.copytree(source, tmp_path / "checkout")
    with open(checkout / "hls_src" / "config.h", "a") as file:
        file.write("#error broken on purpose\n")
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", checkout]
    done = attempt(*command, cwd=tmp_path)
    assert done.returncode != 0
    assert "broken on purpose" in done.stdout + done.stderr
    assert not (checkout / "dist").exists() or not list((checkout / "dist").iterdir())
