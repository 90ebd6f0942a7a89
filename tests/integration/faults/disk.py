"""The disk of the embedded Postgres is full. Also what `scripts/figures.py faults` measures
with."""

from __future__ import annotations

import os
import resource
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.integration.faults.postgres import children

SIZE = 256
"""MiB of a small disk, enough for an empty cluster."""
PADDING = secrets.token_hex(6000)
"""What makes each alert need a page of its own."""
LEAST = 64 * 1024
"""Bytes that a file may have where the disk is said to be full: every start needs more."""

can_mount = sys.platform == "linux" and os.geteuid() == 0
can_limit = sys.platform == "linux"


@contextmanager
def small_disk() -> Iterator[Path]:
    """A file system of its own, of `SIZE`."""
    with TemporaryDirectory(prefix="relay-test-") as folder:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}m,mode=755", "relay-test", folder]
        subprocess.run(mount, check=True)
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)


@asynccontextmanager
async def full(disk: Path) -> AsyncIterator[None]:
    """Not a byte is left within the block."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    try:
        yield
    finally:
        filler.unlink()


@asynccontextmanager
async def no_file_may_grow(relay: int) -> AsyncIterator[None]:
    """Neither relay nor anything it has started, or starts, may make files larger within the
    block: as with a full disk, where nobody is root."""
    if sys.platform != "linux":
        raise NotImplementedError
    _, hard = resource.prlimit(relay, resource.RLIMIT_FSIZE)
    for process in _family(relay):
        resource.prlimit(process, resource.RLIMIT_FSIZE, (LEAST, hard))
    try:
        yield
    finally:
        for process in _family(relay):
            resource.prlimit(process, resource.RLIMIT_FSIZE, (hard, hard))


def _family(process: int) -> list[int]:
    """A process and all that descend from it."""
    family = [process]
    for each in family:
        family += children(each)
    return family
