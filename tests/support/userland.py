"""A Debian userland of another architecture, whose programs QEMU runs."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

RELEASE = "bookworm"
_BINFMT = Path("/proc/sys/fs/binfmt_misc")
_SECONDS = 3600
_CERTIFICATES = "etc/of_the_host.crt"
# Settings of pip and of the network that name no file of the host.
_PASSED_ON = (
    "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
    "PIP_DEFAULT_TIMEOUT", "PIP_INDEX_URL", "PIP_PROXY", "PIP_RETRIES", "PIP_TRUSTED_HOST",
)  # fmt: skip
# In namespaces of its own: the kernel unmounts what it mounts, and kills all its processes, when it
# ends, or when the tests end, however they end.
_ISOLATED = ("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork")
_ISOLATED += ("--kill-child",)


@dataclass(frozen=True)
class Userland:
    """A folder with Debian of one architecture.

    Parameters
    ----------
    arch : str
        Debian's name of the architecture.
    machine : str
        What `platform.machine` returns there.
    qemu : str
        Name of QEMU's entry in binfmt_misc.
    packages : tuple of str
        Debian packages, besides the essential ones.
    root : Path
        The folder.
    """

    arch: str
    machine: str
    qemu: str
    packages: tuple[str, ...]
    root: Path

    def missing(self) -> str | None:
        """What this computer lacks to make and run the userland, and the remedy; or None."""
        if platform.system() != "Linux":
            return "needs Linux"
        if os.geteuid() != 0:
            return "debootstrap and chroot need root: sudo make test-arm"
        for program in ("debootstrap", "setpriv", "unshare", "chroot"):
            if shutil.which(program) is None:
                return f"no {program}: apt install debootstrap qemu-user-static util-linux"
        if self.machine != platform.machine():
            try:
                entry = (_BINFMT / self.qemu).read_text()
            except OSError:
                entry = ""
            # F: Linux opened QEMU beforehand, so that it need not be in the userland.
            if "enabled" not in entry or "F" not in entry.partition("flags:")[2].splitlines()[0]:
                return (
                    f"Linux does not hand programs for {self.arch} to QEMU "
                    f"({_BINFMT / self.qemu}, flag F): apt install qemu-user-static binfmt-support"
                )
        if subprocess.run([*_ISOLATED, "true"], capture_output=True, check=False).returncode:
            return "no right to unshare namespaces: in a container, run it with --privileged"
        return None

    def make(self) -> subprocess.CompletedProcess | None:
        """Make it with debootstrap and apt-get, unless there is one of the same packages.

        Returns the program that came last, or failed; None if there is nothing to make.
        """
        debootstrap = ["debootstrap", f"--arch={self.arch}", "--variant=minbase", RELEASE]
        stamp = self.root / "made_by"
        made_by = " ".join([*debootstrap, *self.packages])
        if stamp.exists() and stamp.read_text() == made_by:
            return None
        if f" {self.root}/" in Path("/proc/self/mounts").read_text():
            raise RuntimeError(f"something is mounted in {self.root}: unmount it first")
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir(parents=True)
        done = _run([*_ISOLATED, "--mount-proc", *debootstrap, str(self.root)], os.environ)
        # Not debootstrap --include, which does not know packages that others provide.
        install = ["apt-get", "install", "--yes", "--no-install-recommends", *self.packages]
        for command in (["apt-get", "update"], install, ["apt-get", "clean"]):
            if done.returncode == 0:
                done = self.run(command, "/", {"DEBIAN_FRONTEND": "noninteractive"})
        if done.returncode == 0:
            stamp.write_text(made_by)
        return done

    def run(
        self, command: Sequence[str], folder: str, environment: Mapping[str, str]
    ) -> subprocess.CompletedProcess:
        """Run a command in `folder`, an absolute path there, with the host's network."""
        names = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": folder,
            "LANG": "C.UTF-8",
            "PIP_CACHE_DIR": "/var/cache/pip",
            **{name: os.environ[name] for name in _PASSED_ON if name in os.environ},
        }
        shutil.copyfile("/etc/resolv.conf", self.root / "etc/resolv.conf")
        given = [os.environ.get(name) for name in ("PIP_CERT", "SSL_CERT_FILE")]
        if bundle := next(filter(None, given), None):
            shutil.copyfile(bundle, self.root / _CERTIFICATES)
            names |= {"PIP_CERT": f"/{_CERTIFICATES}", "SSL_CERT_FILE": f"/{_CERTIFICATES}"}
        enter = [*_ISOLATED, f"--mount-proc={self.root}/proc", "chroot", str(self.root)]
        in_folder = ["env", f"--chdir={folder}", *command]
        return _run([*enter, *in_folder], {**names, **environment})


def _run(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess:
    return subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=_SECONDS,
        check=False,
    )
