"""How many bytes of alerts are stored, in all and for each sender.

Triggers (migration 0011) note what comes and goes; now and then `fold` sums it up.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import LiteralString

from attrs import define, field, frozen

from relay.model.alerts.alert import ExcessBytes, NoRoom
from relay.postgres.database import Connection, Database

TOTAL_LIFETIME = 30.0
"""Seconds for which the bytes of all senders are known, but for our own."""
MAX_HEAVY_SENDERS = 1000
"""Senders whose alerts may have to make room, the heaviest first."""
NEARLY_FULL, CLEARED = 0.9, 0.75
"""When so much of a limit is reached, earlier alerts are removed down to so much of it."""
USER_PREFIX = "user:"

KNOWN_BYTES: LiteralString = (
    "(select sender, bytes from relay.alert_bytes"
    " union all select sender, bytes from relay.alert_byte_changes) as known"
)
BYTES_OF_SENDERS: LiteralString = (
    f"select sender, sum(bytes)::bigint from {KNOWN_BYTES} where sender = any(%s) group by sender"  # noqa: S608 (constants)
)
BYTES_IN_ALL: LiteralString = f"select coalesce(sum(bytes), 0)::bigint from {KNOWN_BYTES}"  # noqa: S608 (constants)
HEAVIEST: LiteralString = (
    "select sender, bytes from relay.alert_bytes where bytes > 0 order by bytes desc limit %s"
)
FOLD: LiteralString = (
    "with folded as (delete from relay.alert_byte_changes returning sender, bytes)"
    " insert into relay.alert_bytes as known select sender, sum(bytes) from folded"
    " group by sender order by sender"
    " on conflict (sender) do update set bytes = known.bytes + excluded.bytes"
)


@frozen
class ByteLimits:
    """How many bytes of alerts may be stored."""

    in_all: int
    per_user: int

    def of(self, sender: str) -> int:
        """The limit of one sender. Services and SQL may take half of all."""
        return self.per_user if sender.startswith(USER_PREFIX) else self.in_all // 2


@define(eq=False, repr=False)
class AlertBytes:
    """The bytes that are stored, and the limits on them."""

    limits: ByteLimits
    _total: int = 0
    _total_read_at: float = field(default=float("-inf"))

    def open_room(self, connection: Connection, senders: Collection[str]) -> Room:
        """What these senders may store now. Called in a worker thread."""
        known = dict(connection.execute(BYTES_OF_SENDERS, [list(senders)]).fetchall())
        if time.monotonic() > self._total_read_at + TOTAL_LIFETIME:
            self._total = connection.execute(BYTES_IN_ALL).fetchall()[0][0]
            self._total_read_at = time.monotonic()
        return Room(self, {each: self.limits.of(each) - known.get(each, 0) for each in senders})

    def take(self, size: int) -> bool:
        """Whether there is room for so many bytes, which then count."""
        if self._total + size > self.limits.in_all:
            return False
        self._total += size
        return True


@define(eq=False, repr=False)
class Room:
    """What the senders of one batch may still store."""

    _all: AlertBytes
    _left: dict[str, int]

    def take(self, sender: str, size: int) -> NoRoom | None:
        """Take bytes for an alert; why not, if there is no room."""
        if self._left[sender] < size:
            return NoRoom.FOR_SENDER
        if not self._all.take(size):
            return NoRoom.AT_ALL
        self._left[sender] -= size
        return None


async def fold(database: Database) -> None:
    """Sum up what came and went."""

    def update(connection: Connection) -> None:
        connection.execute(FOLD)
        connection.execute("delete from relay.alert_bytes where bytes <= 0")

    await database.transact(update)


async def find_heavy(database: Database, limits: ByteLimits) -> list[ExcessBytes]:
    """The senders whose alerts have to make room, each with the bytes to free."""

    def select(connection: Connection) -> list[ExcessBytes]:
        (total,) = connection.execute(BYTES_IN_ALL).fetchall()[0]
        heaviest = connection.execute(HEAVIEST, [MAX_HEAVY_SENDERS]).fetchall()
        most = _level(heaviest, total - CLEARED * limits.in_all)
        if total <= NEARLY_FULL * limits.in_all:
            most = float("inf")
        found = []
        for sender, known in heaviest:
            limit = limits.of(sender)
            cleared = min(most, CLEARED * limit if known > NEARLY_FULL * limit else float("inf"))
            if known > cleared:
                found.append(ExcessBytes(sender, int(known - cleared)))
        return found

    return await database.transact(select)


def _level(heaviest: list[tuple[str, int]], excess: float) -> float:
    """To how many bytes each of the heaviest has to be cut to free `excess` bytes: who has most
    gives most."""
    freed_at = 0.0
    taken = 0
    for number, (_, known) in enumerate(heaviest, 1):
        taken += known
        below = heaviest[number][1] if number < len(heaviest) else 0
        level = (taken - excess) / number
        if level >= below:
            return max(level, 0.0)
        freed_at = below
    return freed_at
