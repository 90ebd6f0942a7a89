"""A database as `relay doctor` looks at it. Floor 1.

Nothing here starts, makes or changes anything.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

import trio
from attrs import frozen

from relay.errors import ConfigError
from relay.postgres.address import Address
from relay.postgres.binaries import find_binaries
from relay.postgres.changes import Changes
from relay.postgres.database import Connection, Database
from relay.postgres.folder import DataFolder

QUERIES = 5
"""So many times a query is timed."""

MAY_NOT_USE = """
    with needed (name, rights) as (values
        ('migrations', 'select'),
        ('streams', 'select insert update'),
        ('alerts', 'select insert delete'),
        ('alert_ids', 'usage'),
        ('service_tokens', 'select'),
        ('grants', 'select'),
        ('audit', 'select insert update delete'), -- `for update` is one, too,
        ('webhooks', 'select update')
    )
    select c.relname from pg_catalog.pg_class c
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    join needed on needed.name = c.relname
    cross join lateral unnest(string_to_array(needed.rights, ' ')) as wanted
    where n.nspname = 'relay' and not (has_schema_privilege(n.oid, 'usage') and case c.relkind
        when 'S' then has_sequence_privilege(c.oid, wanted)
        else has_table_privilege(c.oid, wanted) end)
    group by c.relname order by c.relname
"""
"""What `relay serve` does; commands that make tokens or grants do more."""


@frozen
class Answered:
    """How a database answers."""

    version: str
    connected: float
    """Seconds to the first answer, connecting included."""
    query: float
    """Seconds that a transaction with one query takes: the median of a few."""
    connections: int
    """That the server lets in."""


@frozen
class Clocks:
    """The database's clock beside ours."""

    ahead: float
    """Seconds by which the database's is ahead; below 0 it is behind."""
    uncertain: float
    """Seconds by which that may be wrong, because the answer took a while."""


async def measure(database: Database) -> Answered:
    """Ask a few times; `StoreUnavailable` where there is no answer."""

    def ask(connection: Connection) -> tuple[str, int]:
        (version,) = connection.execute("show server_version").fetchall()[0]
        (most,) = connection.execute("show max_connections").fetchall()[0]
        return str(version), int(most)

    begun = time.perf_counter()
    version, most = await database.transact(ask)
    connected = time.perf_counter() - begun
    times = []
    for _ in range(QUERIES):
        begun = time.perf_counter()
        await database.check()
        times.append(time.perf_counter() - begun)
    return Answered(version, connected, sorted(times)[QUERIES // 2], most)


async def compare_clocks(database: Database) -> Clocks:
    def ask(connection: Connection) -> Clocks:
        # Of a few answers the quickest says most.
        found = []
        for _ in range(QUERIES):
            before = time.time()
            ((theirs,),) = connection.execute(
                "select extract(epoch from clock_timestamp())::float8"
            ).fetchall()
            after = time.time()
            found.append(Clocks(theirs - (before + after) / 2, (after - before) / 2))
        return min(found, key=lambda each: each.uncertain)

    return await database.transact(ask)


async def unusable_tables(database: Database) -> list[str]:
    """Those of relay's tables and sequences that this role may not use."""

    def look(connection: Connection) -> list[str]:
        return [name for (name,) in connection.execute(MAY_NOT_USE)]

    return await database.transact(look)


async def notifications_arrive(database: Database, listen: Address) -> bool:
    """Whether what is notified over `database` is heard at `listen`."""
    async with Changes(database, listen).listen() as ear, trio.open_nursery() as nursery:

        async def hear() -> None:
            while True:
                await ear.hear()

        nursery.start_soon(hear)
        heard = await ear.hears()
        nursery.cancel_scope.cancel()
    return heard


def running_embedded(data_dir: Path) -> str | None:
    """The URL of the Postgres that a relay runs in this data folder; None when none does.

    `ConfigError` when that is not for us to see.
    """
    folder = DataFolder(data_dir.resolve())
    try:
        if not _is_held(folder.relay_lock):
            return None
        return folder.announced()
    except OSError as error:
        raise ConfigError(
            f"{folder.path} cannot be looked at ({error.strerror}): ask as the user that relay"
            " runs as"
        ) from None


def _is_held(lock: Path) -> bool:
    try:
        descriptor = os.open(lock, os.O_RDWR)  # `Lock.try_acquire` would make the file
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def embedded_version(data_dir: Path, postgres_bin: Path | None) -> int:
    """The version of Postgres that would run in this folder; `ConfigError` if none can."""
    folder = DataFolder(data_dir.resolve())
    # For whatever user it is to run as: to find that out here could copy the programs.
    binaries = find_binaries(postgres_bin, None, folder.programs)
    try:
        made_by = (folder.cluster / "PG_VERSION").read_text().strip()
    except FileNotFoundError:
        return binaries.major
    except OSError as error:
        raise ConfigError(f"{folder.cluster} cannot be read: {error.strerror}") from None
    if made_by != str(binaries.major):
        raise ConfigError(
            f"{folder.cluster} was made by PostgreSQL {made_by}, and this is PostgreSQL"
            f" {binaries.major} ({binaries.folder})"
        )
    return binaries.major
