"""What `relay doctor` looks at in a database. Nothing here starts, makes or changes anything."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

import trio
from attrs import frozen

from relay.errors import ConfigError
from relay.postgres.address import DatabaseAddress
from relay.postgres.database import Connection, Database
from relay.postgres.embedded.account import check_user_name
from relay.postgres.embedded.binaries import find_binaries
from relay.postgres.embedded.folder import DataFolder
from relay.postgres.notifications import ChangeNotifications

TIMED_QUERIES = 5
"""How many times a query is timed."""

NEEDED = """
    with needed (name, rights) as (values
        ('migrations', 'select'),
        ('streams', 'select insert update'),
        ('alerts', 'select insert delete'),
        ('alert_order', 'update'),
        ('alert_bytes', 'select insert update delete'),
        ('alert_byte_changes', 'select delete'),
        ('alert_pictures', 'select insert update delete'),
        ('picture_key', 'select'),
        ('raised_alerts', 'select delete'),
        ('service_tokens', 'select'),
        ('links', 'select insert update delete'),
        ('link_readers', 'select insert update delete'),
        ('grants', 'select'),
        ('deleted_owners', 'select delete'),
        ('operator_requests', 'select insert update delete'),
        ('audit', 'select insert update delete'), -- `for update` needs update, too
        ('alert_targets', 'select insert update delete'),
        ('mqtt_streams', 'select insert update delete'),
        ('target_cooldowns', 'select insert update delete'),
        ('push_key', 'select insert'),
        ('viewers_woken', 'select update'),
        ('stream_events', 'select insert delete'),
        ('told_streams', 'select insert update delete'),
        ('event_sources', 'select insert update delete'),
        ('nodes', 'select insert update delete'), -- these four in a cluster
        ('live_streams', 'select insert update delete'),
        ('claim_locks', 'select update'),
        ('epochs', 'usage update')
    )
"""
"""The rights that `relay serve` needs; commands that make tokens or grants need more."""
FIND_MISSING = """
    select name from needed
    where to_regclass(format('relay.%I', name)) is null order by name
"""
FIND_UNUSABLE = """
    select c.relname from pg_catalog.pg_class c
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    join needed on needed.name = c.relname
    cross join lateral unnest(string_to_array(needed.rights, ' ')) as wanted
    where n.nspname = 'relay' and not (has_schema_privilege(n.oid, 'usage') and case c.relkind
        when 'S' then has_sequence_privilege(c.oid, wanted)
        else has_table_privilege(c.oid, wanted) end)
    group by c.relname order by c.relname
"""


@frozen
class DatabaseMeasurement:
    """How fast a database answers."""

    version: str
    connected: float
    """Seconds to the first answer, connecting included."""
    query: float
    """Seconds that a transaction with one query takes: the median of a few."""
    connections: int
    """The server's `max_connections`."""
    encoding: str
    """The database's, by Postgres' name for it."""


@frozen
class ClockOffset:
    """The difference between the database's clock and ours."""

    ahead: float
    """Seconds by which the database's clock is ahead; negative: it is behind."""
    uncertain: float
    """Seconds by which that may be wrong, because the answer took time."""


async def measure(database: Database) -> DatabaseMeasurement:
    """Time a few queries; `StoreUnavailable`."""

    def ask(connection: Connection) -> tuple[str, int, str]:
        (version,) = connection.execute("show server_version").fetchall()[0]
        (most,) = connection.execute("show max_connections").fetchall()[0]
        (encoding,) = connection.execute("show server_encoding").fetchall()[0]
        return str(version), int(most), str(encoding)

    begun = time.perf_counter()
    version, most, encoding = await database.transact(ask)
    connected = time.perf_counter() - begun
    times = []
    for _ in range(TIMED_QUERIES):
        begun = time.perf_counter()
        await database.check()
        times.append(time.perf_counter() - begun)
    return DatabaseMeasurement(
        version, connected, sorted(times)[TIMED_QUERIES // 2], most, encoding
    )


async def compare_clocks(database: Database) -> ClockOffset:
    def ask(connection: Connection) -> ClockOffset:
        # The quickest answer is the most exact.
        found = []
        for _ in range(TIMED_QUERIES):
            before = time.time()
            ((theirs,),) = connection.execute(
                "select extract(epoch from clock_timestamp())::float8"
            ).fetchall()
            after = time.time()
            found.append(ClockOffset(theirs - (before + after) / 2, (after - before) / 2))
        return min(found, key=lambda each: each.uncertain)

    return await database.transact(ask)


async def missing_tables(database: Database) -> list[str]:
    """The tables of relay that somebody has removed."""

    def look(connection: Connection) -> list[str]:
        return [name for (name,) in connection.execute(NEEDED + FIND_MISSING)]

    return await database.transact(look)


async def unusable_tables(database: Database) -> list[str]:
    """The tables and sequences of relay that this role may not use."""

    def look(connection: Connection) -> list[str]:
        return [name for (name,) in connection.execute(NEEDED + FIND_UNUSABLE)]

    return await database.transact(look)


async def notifications_arrive(database: Database, listen: DatabaseAddress) -> bool:
    """Whether notifications sent through `database` arrive at `listen`."""
    async with (
        ChangeNotifications(database, listen).listen() as listener,
        trio.open_nursery() as nursery,
    ):

        async def receive() -> None:
            while True:
                await listener.receive()

        nursery.start_soon(receive)
        arrived = await listener.probe()
        nursery.cancel_scope.cancel()
    return arrived


def running_embedded(data_dir: Path) -> str | None:
    """The URL of the Postgres that a relay runs in this data folder; None when none runs.

    `ConfigError` when this user may not look.
    """
    folder = DataFolder(data_dir.resolve())
    try:
        if not _is_held(folder.relay_lock):
            return None
        return folder.announced()
    except OSError as error:
        raise ConfigError(
            f"{folder.path} cannot be read ({error.strerror}): run this as the user that relay"
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
    """The version of Postgres that would run in this folder; `ConfigError` if none could."""
    folder = DataFolder(data_dir.resolve())
    # Without the account it would run as: looking for one could copy the programs.
    binaries = find_binaries(postgres_bin, None, folder.programs)
    try:
        made_by = (folder.cluster / "PG_VERSION").read_text().strip()
    except FileNotFoundError:
        if os.geteuid() != 0:  # root runs it as somebody else
            check_user_name(None)
        return binaries.major
    except OSError as error:
        raise ConfigError(f"{folder.cluster} cannot be read: {error.strerror}") from None
    if made_by != str(binaries.major):
        raise ConfigError(
            f"{folder.cluster} was made by PostgreSQL {made_by}, and this is PostgreSQL"
            f" {binaries.major} ({binaries.folder})"
        )
    return binaries.major
