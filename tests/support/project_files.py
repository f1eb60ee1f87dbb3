"""The project's files, and a copy of them as a fresh checkout has it."""

import functools
import shutil
import subprocess
from pathlib import Path

import pytest
from support.paths import REPOSITORY


@functools.cache
def project_files() -> list[str]:
    """Files of the project, relative to its root: tracked by git, or untracked and not ignored."""
    if not (REPOSITORY / ".git").exists():
        pytest.skip("needs a git checkout to list the project's files")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    return sorted(
        name for name in listed.stdout.split("\0") if name and (REPOSITORY / name).is_file()
    )


def copy_project(folder: Path) -> Path:
    """Copy the project's files to `folder`; returns it."""
    for name in project_files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / name, folder / name)
    return folder
