"""One Postgres cluster in a data folder: made, started, stopped. Floor 1, a part of `embedded.py`.

Three processes: relay, its watchdog, and Postgres as the watchdog's child. See `watchdog.py`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import trio
from attrs import define, field

from relay.errors import ConfigError
from relay.postgres.account import Account
from relay.postgres.binaries import Binaries
from relay.postgres.folder import DataFolder, Lock, make_private

ROLE = "relay"

START_PATIENCE = 60.0
"""Seconds that Postgres may take to start, recovery after a crash included."""

STOP_PATIENCE = 20.0
"""Seconds that Postgres may take to stop: more than all steps of the watchdog."""

STOP_LIMIT = 2 * STOP_PATIENCE + 5
"""Seconds that `Cluster.stop` takes at most."""

POLL = 0.01
"""Seconds between two looks at a file that another process is to change."""

LONGEST_LOG = 1 << 20
"""Bytes. A longer log is begun anew when Postgres is started."""

WATCHDOG = Path(__file__).with_name("watchdog.py")

# On the command line, so that they change with relay and not with the folder. They ask for less
# than the defaults do; a commit is as durable as ever.
SETTINGS = {
    "listen_addresses": "",
    "port": "5432",
    "max_connections": "50",
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


@define(eq=False)
class Cluster:
    """The cluster of one data folder, which we hold."""

    _folder: DataFolder
    _account: Account | None
    _binaries: Binaries
    _password: str = field(init=False, default="", repr=False)
    _watchdog: trio.Process | None = field(init=False, default=None)

    @property
    def _pid_file(self) -> Path:
        return self._folder.cluster / "postmaster.pid"

    def url(self, database: str) -> str:
        return (
            f"postgresql://{ROLE}:{self._password}@/{database}"
            f"?host={quote(str(self._folder.socket), safe='')}&port={SETTINGS['port']}"
        )

    async def create(self) -> None:
        """Make the cluster if there is none. `ConfigError` if there is one of another version."""
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
        # A finished cluster appears under its name at once; what a crash left half done does not.
        unfinished = self._folder.cluster.with_suffix(".new")
        if unfinished.exists():
            shutil.rmtree(unfinished)
        make_private(unfinished, self._account)
        self._password = self._folder.make_password()
        # A file, since a pipe of root's cannot be opened again by another user.
        lent = self._folder.lend_password(self._account)
        try:
            await self._run_initdb(unfinished, lent)
        finally:
            lent.unlink()
        unfinished.rename(self._folder.cluster)

    async def start(self) -> None:
        """Start Postgres and return once it takes connections. `ConfigError` if it does not."""
        lock = await self._lock()
        try:
            self._folder.make_socket_folder(self._account)
            # We hold the lock, so whoever left these is gone. Postgres itself could only look at
            # the process ids in them, which may be someone else's by now.
            for stale in (self._pid_file, *self._folder.socket.iterdir()):
                stale.unlink(missing_ok=True)
            with self._folder.open_log(LONGEST_LOG) as output:
                said_before = output.tell()
                self._watchdog = await trio.lowlevel.open_process(
                    [
                        *(sys.executable, "-I", "-S", WATCHDOG),
                        *(str(lock.descriptor), str(self._account or "")),
                        *self._command(),
                    ],
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=output,
                    pass_fds=[lock.descriptor],
                    start_new_session=True,
                    cwd="/",
                    env=_environment(),
                )
        finally:
            lock.close()
        ready = False
        try:
            with trio.move_on_after(START_PATIENCE):
                while not ready and self._watchdog.poll() is None:
                    await trio.sleep(POLL)
                    ready = self._is_ready()
        finally:
            if not ready:
                with trio.move_on_after(STOP_LIMIT, shield=True):
                    await self.stop()
        if ready:
            return
        said = self._folder.log.read_bytes()[said_before:].decode(errors="replace")
        raise ConfigError(f"the embedded Postgres did not start: {_complaint(said)}")

    async def ended(self) -> None:
        """Wait until Postgres and its watchdog have ended by themselves."""
        if self._watchdog is not None:
            await self._watchdog.wait()
            await self.stop()

    async def stop(self) -> None:
        """Stop Postgres, which keeps committed transactions. Takes up to `STOP_LIMIT`."""
        if self._watchdog is None:
            return
        if self._watchdog.stdin is not None:
            await self._watchdog.stdin.aclose()
        with trio.move_on_after(STOP_PATIENCE):
            await self._watchdog.wait()
        if self._watchdog.poll() is None:
            self._signal(signal.SIGKILL)
            self._watchdog.kill()
            await self._watchdog.wait()
        # If it was the watchdog that was killed, Postgres still runs.
        lock = await self._lock()
        lock.close()
        self._watchdog = None
        self._folder.remove_socket_folder()

    async def _lock(self) -> Lock:
        """Wait until no Postgres runs here: one whose relay was killed is stopping."""
        with trio.move_on_after(STOP_PATIENCE):
            while True:
                lock = Lock.try_acquire(self._folder.postgres_lock)
                if lock is not None:
                    return lock
                # If its watchdog was killed too, nobody else has told it.
                self._signal(signal.SIGINT)
                await trio.sleep(10 * POLL)
        raise ConfigError(f"an earlier Postgres still runs in {self._folder.cluster}")

    async def _run_initdb(self, target: Path, password: Path) -> None:
        outcome = await trio.run_process(
            [
                *(self._binaries.initdb, "--pgdata", target, "--username", ROLE),
                *("--pwfile", password, "--auth", "scram-sha-256"),
                *("--encoding", "UTF8", "--no-locale", "--no-sync"),
            ],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            cwd="/",
            env=_environment(),
            **(self._account.options if self._account else {}),
        )
        if outcome.returncode != 0:
            said = _complaint(outcome.stderr.decode(errors="replace"))
            raise ConfigError(f"the embedded Postgres cannot be made in {target}: {said}")

    def _command(self) -> list[str]:
        settings = {
            **SETTINGS,
            "unix_socket_directories": '"{}"'.format(str(self._folder.socket).replace('"', '""')),
        }
        return [
            *(str(self._binaries.postgres), "-D", str(self._folder.cluster)),
            *(argument for item in settings.items() for argument in ("-c", "=".join(item))),
        ]

    def _postmaster(self) -> list[str]:
        """The lines in which Postgres says who it is and how far it got."""
        try:
            return self._pid_file.read_text().splitlines()
        except FileNotFoundError:
            return []

    def _is_ready(self) -> bool:
        return [line.strip() for line in self._postmaster()[7:8]] == ["ready"]

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ValueError, IndexError, ProcessLookupError):
            os.kill(int(self._postmaster()[0]), number)


def _environment() -> dict[str, str]:
    """Ours, less what means something to Postgres and less all secrets: only what is needed."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    return {**kept, "LC_ALL": "C"}


def _complaint(said: str) -> str:
    """The line that says why."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    complaints = [line for line in lines if "FATAL" in line or "error" in line or "PANIC" in line]
    return (complaints or lines or ["it said nothing"])[-1]
