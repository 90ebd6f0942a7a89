"""The data folder of the embedded Postgres: its files and its locks.

A part of `embedded.py`.

    relay.lock     held by the relay that runs Postgres here
    postgres.lock  held by Postgres or initdb and the reaper together: free means that none lives
    url            the URL of the running Postgres while it is ready, readable only to us
    password       created with the cluster, readable only to us
    postgres/      the cluster, owned by the user that Postgres runs as
    postgres.log   the output of Postgres
    socket/        the folder of its Unix socket, or in /tmp where this path is too long for one
    programs/      a copy of Postgres, only where its user cannot reach the installed one
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import IO

from attrs import frozen

from relay.errors import ConfigError
from relay.postgres.embedded.account import Account

SOCKET_NAME = ".s.PGSQL.5432"
KNOWN_NAMES = {
    "relay.lock",
    "postgres.lock",
    "url",
    "url.new",
    "password",
    "password.new",
    "password.lent",
    "password.lent.new",
    "postgres",
    "postgres.new",
    "postgres.log",
    "socket",
    "programs",
}
MAX_SOCKET_PATH = 100
"""Bytes. The kernels take 104 (macOS) and 108 (Linux), with the zero at the end."""


class Lock:
    """An exclusive lock on a file, until all processes that inherited it have closed it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    @classmethod
    def try_acquire(cls, path: Path) -> Lock | None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return cls(descriptor)

    def close(self) -> None:
        os.close(self.descriptor)


@frozen
class DataFolder:
    """The paths in a data folder, and their contents."""

    path: Path

    @classmethod
    def open(cls, path: Path) -> DataFolder:
        """Create the folder if there is none. `OSError` if that fails."""
        folder = cls(path.resolve())
        if not folder.path.exists():
            folder.path.mkdir(parents=True)
            folder.path.chmod(0o700)
        return folder

    @property
    def relay_lock(self) -> Path:
        return self.path / "relay.lock"

    @property
    def postgres_lock(self) -> Path:
        return self.path / "postgres.lock"

    @property
    def cluster(self) -> Path:
        return self.path / "postgres"

    @property
    def log(self) -> Path:
        return self.path / "postgres.log"

    @property
    def socket(self) -> Path:
        """A folder that only the user of Postgres may enter, with a path that fits a socket."""
        inside = self.path / "socket"
        # A comma would separate hosts in a Postgres URL.
        if len(os.fsencode(inside / SOCKET_NAME)) <= MAX_SOCKET_PATH and "," not in str(inside):
            return inside
        # The same name each time, so that crashes leave no more than one behind.
        name = hashlib.sha256(os.fsencode(self.path)).hexdigest()[:16]
        return Path(f"/tmp/relay-{os.geteuid()}-{name}")  # noqa: S108 - its owner is checked

    @property
    def programs(self) -> Path:
        return self.path / "programs"

    @property
    def _password(self) -> Path:
        return self.path / "password"

    @property
    def _url(self) -> Path:
        return self.path / "url"

    def admit(self, account: Account) -> None:
        """Let `account` pass through this folder; `ConfigError` if it may not access a parent.

        A folder that contains anything else is not changed: `ConfigError`.
        """
        obstacle = account.obstacle(self.path, may_read=False)
        if obstacle == self.path and {entry.name for entry in self.path.iterdir()} <= KNOWN_NAMES:
            self.path.chmod(self.path.stat().st_mode | 0o011)
        elif obstacle is not None:
            raise ConfigError(
                f"Postgres does not run as root, and other users may not enter {obstacle}:"
                f" choose another data_dir than {self.path}"
            )

    def make_socket_folder(self, account: Account | None) -> None:
        with suppress(FileExistsError):
            make_private(self.socket, account)
        status = self.socket.lstat()
        owner = os.geteuid() if account is None else account.uid
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != owner:
            raise ConfigError(f"{self.socket} belongs to someone else: remove it")

    def remove_socket_folder(self) -> None:
        """Remove the folder of the socket if it is outside of this folder."""
        if self.socket.parent != self.path:
            with suppress(OSError):
                self.socket.rmdir()

    def password(self) -> str:
        return self._password.read_text()

    def make_password(self) -> str:
        password = secrets.token_urlsafe(32)
        _write_private(self._password, password)
        return password

    def copy_password_for(self, account: Account | None) -> Path:
        """A copy that only the user of Postgres can read; the caller removes it."""
        copy = self.path / "password.lent"
        _write_private(copy, self.password())
        if account is not None:
            account.give(copy)
        return copy

    def open_log(self, longest: int) -> IO[bytes]:
        """The log, opened to append; truncated if it is longer than `longest` bytes."""
        too_long = self.log.exists() and self.log.stat().st_size > longest
        self.log.touch(mode=0o600)
        return self.log.open("wb" if too_long else "ab")

    def announce(self, url: str) -> None:
        """Publish the URL, for other commands on this machine."""
        _write_private(self._url, url)

    def announced(self) -> str | None:
        try:
            return self._url.read_text()
        except FileNotFoundError:
            return None

    def withdraw(self) -> None:
        self._url.unlink(missing_ok=True)


def make_private(path: Path, account: Account | None) -> None:
    """Create a folder that only the user of Postgres and root may enter."""
    path.mkdir(mode=0o700)
    if account is not None:
        account.give(path)


def _write_private(path: Path, text: str) -> None:
    """Write a file that only we may read, atomically."""
    unfinished = path.with_name(path.name + ".new")
    unfinished.unlink(missing_ok=True)
    unfinished.touch(mode=0o600, exist_ok=False)
    unfinished.write_text(text)
    unfinished.rename(path)
