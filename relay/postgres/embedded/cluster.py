"""Creates, starts and stops the Postgres cluster of a data folder. A part of `embedded.py`.

Three processes: relay, a reaper, and Postgres or initdb as the reaper's child. See
`relay.process.reaper`.
"""

from __future__ import annotations

import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import trio
from attrs import define, field

from relay.errors import ConfigError
from relay.postgres.embedded.account import Account, check_user_name
from relay.postgres.embedded.binaries import Binaries
from relay.postgres.embedded.folder import DataFolder, Lock, make_private
from relay.postgres.embedded.reaped import error_line, start_reaped

ROLE = "relay"

START_TIMEOUT = 60.0
"""Seconds for Postgres to start, including recovery after a crash."""

STOP_TIMEOUT = 20.0
"""Seconds for Postgres to stop: more than all steps of the reaper."""

CLUSTER_STOP_TIMEOUT = 2 * STOP_TIMEOUT + 5
"""Seconds that `Cluster.stop` may take."""

FILE_POLL_INTERVAL = 0.01
"""Seconds between two reads of a file that another process will change."""

MAX_LOG_BYTES = 1 << 20
"""A longer log is truncated when Postgres is started."""

POSTGRES_STOP_STEPS = ((signal.SIGINT, 10.0), (signal.SIGQUIT, 5.0))
"""Fast shutdown and immediate shutdown, with the seconds for each; SIGKILL comes after them."""

INITDB_STOP_STEPS = ((signal.SIGTERM, 2.0),)

# On the command line, so that they change with relay and not with the folder. They need less memory
# and disk than the defaults; commits are as durable.
POSTGRES_SETTINGS = {
    "listen_addresses": "",
    "port": "5432",
    "max_connections": "200",  # of several processes: each takes its pool and two that listen
    "shared_buffers": "32MB",
    "max_wal_size": "256MB",
    "max_parallel_workers": "0",
    "jit": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    # The details of an error quote values.
    "log_error_verbosity": "terse",
    "log_min_error_statement": "panic",
}


@define(eq=False, repr=False)
class Cluster:
    """The cluster of a data folder whose lock we hold."""

    _folder: DataFolder
    _account: Account | None
    _binaries: Binaries
    _connections: int = 0
    """How many there may be; the default number is the least."""
    _password: str = field(init=False, default="", repr=False)
    _reaper: trio.Process | None = field(init=False, default=None)

    @property
    def _pid_file(self) -> Path:
        return self._folder.cluster / "postmaster.pid"

    def url(self, database: str) -> str:
        return (
            f"postgresql://{ROLE}:{self._password}@/{database}"
            f"?host={quote(str(self._folder.socket), safe='')}&port={POSTGRES_SETTINGS['port']}"
        )

    async def create(self) -> None:
        """Create the cluster if there is none. `ConfigError` if there is one of another version."""
        version = self._folder.cluster / "PG_VERSION"
        if version.exists():
            major = version.read_text().strip()
            if major != str(self._binaries.major):
                raise ConfigError(
                    f"{self._folder.cluster} was made by PostgreSQL {major}, and this is"
                    f" PostgreSQL {self._binaries.major} ({self._binaries.folder}): set"
                    f" postgres_bin to PostgreSQL {major}, or choose another data_dir"
                )
            self._password = self._folder.password()
            return
        check_user_name(self._account)
        # Only a finished cluster gets its name, so a crash leaves no incomplete one behind.
        unfinished = self._folder.cluster.with_suffix(".new")
        lock = await self._lock()
        try:
            if unfinished.exists():
                shutil.rmtree(unfinished)
            make_private(unfinished, self._account)
            self._password = self._folder.make_password()
            # A file, since another user cannot open a pipe of root.
            copy = self._folder.copy_password_for(self._account)
            try:
                await self._run_initdb(unfinished, copy, lock)
            finally:
                copy.unlink()
        finally:
            lock.close()
        unfinished.rename(self._folder.cluster)

    async def start(self) -> None:
        """Start Postgres and return when it accepts connections. `ConfigError` if it does not."""
        lock = await self._lock()
        try:
            self._folder.make_socket_folder(self._account)
            # We hold the lock, so the process that left these is gone. Postgres itself would only
            # look at the process ids in them, which other processes may have by now.
            for stale in (self._pid_file, *self._folder.socket.iterdir()):
                stale.unlink(missing_ok=True)
            with self._folder.open_log(MAX_LOG_BYTES) as output:
                said_before = output.tell()
                self._reaper = await start_reaped(
                    self._command(),
                    stop=POSTGRES_STOP_STEPS,
                    lock=lock,
                    account=self._account,
                    output=output,
                )
        finally:
            lock.close()
        ready = False
        try:
            with trio.move_on_after(START_TIMEOUT):
                while not ready and self._reaper.poll() is None:
                    await trio.sleep(FILE_POLL_INTERVAL)
                    ready = self._is_ready()
        finally:
            if not ready:
                with trio.move_on_after(CLUSTER_STOP_TIMEOUT, shield=True):
                    await self.stop()
        if ready:
            return
        said = self._folder.log.read_bytes()[said_before:]
        raise ConfigError(f"the embedded Postgres did not start: {error_line(said)}")

    async def ended(self) -> None:
        """Wait until Postgres and its reaper have ended by themselves."""
        if self._reaper is not None:
            await self._reaper.wait()
            await self.stop()

    async def stop(self) -> None:
        """Stop Postgres; committed transactions are kept. Takes up to `CLUSTER_STOP_TIMEOUT`."""
        if self._reaper is None:
            return
        if self._reaper.stdin is not None:
            await self._reaper.stdin.aclose()
        with trio.move_on_after(STOP_TIMEOUT):
            await self._reaper.wait()
        if self._reaper.poll() is None:
            self._signal(signal.SIGKILL)
            self._reaper.kill()
            await self._reaper.wait()
        # If the reaper itself was killed, Postgres still runs.
        lock = await self._lock()
        lock.close()
        self._reaper = None
        self._folder.remove_socket_folder()

    async def _lock(self) -> Lock:
        """Wait until no Postgres and no initdb runs here; those of a relay that was killed are
        stopping."""
        with trio.move_on_after(STOP_TIMEOUT):
            while True:
                lock = Lock.try_acquire(self._folder.postgres_lock)
                if lock is not None:
                    return lock
                # If its reaper was killed too, no other process signals it.
                self._signal(signal.SIGINT)
                await trio.sleep(10 * FILE_POLL_INTERVAL)
        raise ConfigError(f"an earlier Postgres still runs in {self._folder.cluster}")

    async def _run_initdb(self, target: Path, password: Path, lock: Lock) -> None:
        command = [
            *(str(self._binaries.initdb), "--pgdata", str(target), "--username", ROLE),
            *("--pwfile", str(password), "--auth", "scram-sha-256"),
            *("--encoding", "UTF8", "--no-locale", "--no-sync"),
        ]
        with self._folder.open_log(MAX_LOG_BYTES) as output:
            said_before = output.tell()
            initdb = await start_reaped(
                command,
                stop=INITDB_STOP_STEPS,
                lock=lock,
                account=self._account,
                output=output,
            )
        assert initdb.stdin is not None
        try:
            code = await initdb.wait()
        finally:
            with trio.CancelScope(shield=True):
                await initdb.stdin.aclose()
                await initdb.wait()
        if code != 0:
            said = error_line(self._folder.log.read_bytes()[said_before:])
            raise ConfigError(f"the embedded Postgres cannot be created in {target}: {said}")

    def _command(self) -> list[str]:
        settings = {
            **POSTGRES_SETTINGS,
            "max_connections": str(
                max(int(POSTGRES_SETTINGS["max_connections"]), self._connections)
            ),
            "unix_socket_directories": '"{}"'.format(str(self._folder.socket).replace('"', '""')),
        }
        return [
            *(str(self._binaries.postgres), "-D", str(self._folder.cluster)),
            *(argument for item in settings.items() for argument in ("-c", "=".join(item))),
        ]

    def _postmaster(self) -> list[str]:
        """The lines of the pid file: the process id first, the state in line 8."""
        try:
            return self._pid_file.read_text().splitlines()
        except FileNotFoundError:
            return []

    def _is_ready(self) -> bool:
        return [line.strip() for line in self._postmaster()[7:8]] == ["ready"]

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ValueError, IndexError, ProcessLookupError):
            os.kill(int(self._postmaster()[0]), number)
