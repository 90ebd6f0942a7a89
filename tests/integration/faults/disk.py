"""The disk of the embedded Postgres is full. Also what `scripts/figures.py faults` measures
with."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from shlex import quote
from tempfile import TemporaryDirectory

from attrs import frozen

from relay.postgres.embedded.account import choose_account
from relay.postgres.embedded.binaries import find_binaries
from tests.integration.faults.postgres import postmaster

SIZE = 256
"""MiB of a small disk, enough for an empty cluster."""
PADDING = secrets.token_hex(6000)
"""What makes each alert need a page of its own."""
LEAST = 16
"""Blocks of 512 or 1024 bytes that a file may have then: every start needs more."""

can_mount = sys.platform == "linux" and os.geteuid() == 0


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


@frozen
class Limited:
    """The programs of Postgres, which may be kept from writing, as by a full disk, by anybody."""

    folder: Path
    _limit: Path

    @classmethod
    def make(cls, place: Path) -> Limited:
        """Programs in a folder of this place that run the real ones."""
        limited = cls(place / "bin", place / "limit")
        account = choose_account(place / "data")
        real = find_binaries(None, account, place / "programs")
        limited.folder.mkdir()
        for program in (real.postgres, real.initdb):
            script = limited.folder / program.name
            script.write_text(
                f"#!/bin/sh\n[ -e {quote(str(limited._limit))} ] && ulimit -f {LEAST}\n"
                f'exec {quote(str(program))} "$@"\n'
            )
            script.chmod(0o755)
        return limited

    @asynccontextmanager
    async def unable(self, folder: Path) -> AsyncIterator[None]:
        """The Postgres of a data folder has ended, as it does when it cannot write its log of
        changes, and can write no file within the block."""
        self._limit.touch()
        os.kill(postmaster(folder), signal.SIGKILL)
        try:
            yield
        finally:
            self._limit.unlink()
