"""Podman with a storage of its own, in which a test builds and runs images."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from attrs import frozen
from platformdirs import user_cache_path

from tests.integration.relay_process import PROJECT

PROGRAMS = ("podman", "runc", "debootstrap", "netavark")
BASE = "localhost/debian-base"
BUILD_TIMEOUT = 600.0
MEMORY = Path("/dev/shm")
ROOM = 8 << 30


@frozen
class Podman:
    """Runs nothing that anybody else's Podman would see."""

    folder: Path

    @property
    def command(self) -> list[str]:
        where = ["--root", str(self.folder / "storage"), "--runroot", str(self.folder / "run")]
        return [*("env", f"CONTAINERS_CONF={self._configuration}"), "podman", *where]

    @property
    def _configuration(self) -> Path:
        return self.folder / "containers.conf"

    def configure(self) -> None:
        """Do with what a container or a small virtual machine has: no systemd, and limits that
        may not be raised."""
        _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._configuration.write_text(
            f'[containers]\ndefault_ulimits = ["nofile={files}:{files}", "nproc=4096:4096"]\n'
            '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\nruntime = "runc"\n'
            '[network]\nnetwork_backend = "netavark"\n'
        )

    def run(self, *arguments: str | Path) -> str:
        """Run a command of Podman to its end; returns what it printed."""
        done = subprocess.run(
            [*self.command, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=BUILD_TIMEOUT,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def find_programs() -> None:
    """Skip the test where images cannot be built."""
    if os.geteuid() != 0:
        pytest.skip("platform: only root builds and runs images here")
    for program in PROGRAMS:
        if shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/usr/lib/podman") is None:
            pytest.skip(f"there is no {program}: apt-get install {' '.join(PROGRAMS)}")


@contextmanager
def open_podman() -> Iterator[Podman]:
    """An empty storage, and Debian in it as `BASE`."""
    with TemporaryDirectory(prefix="relay-test-", dir=_quick_disk()) as name:
        podman = Podman(Path(name))
        podman.configure()
        podman.run("import", debian_base(), BASE)
        try:
            yield podman
        finally:
            # Podman may have mounted a folder of its storage on itself.
            itself = podman.folder / "storage" / "overlay"
            subprocess.run(["umount", itself], check=False, capture_output=True)


def _quick_disk() -> Path | None:
    """Memory, where there is much of it: a gigabyte is written that nobody needs for long."""
    return MEMORY if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM else None


def debian_base() -> Path:
    """An archive of Debian with Python, which is made once and then kept."""
    archive = user_cache_path("relay-tests") / "debian-base.tar"
    if not archive.exists():
        archive.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([PROJECT / "scripts/packaging/debian-base", archive], check=True)
    return archive
