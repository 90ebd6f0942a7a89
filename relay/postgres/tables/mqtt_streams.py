"""The table of the streams of which MQTT brokers retain messages."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import LiteralString
from uuid import UUID

from attrs import define

from relay.model.targets.alert_target import AlertTarget
from relay.model.targets.mqtt_stream import AnnouncedNow, MqttStream
from relay.postgres.database import Connection, Database
from relay.postgres.tables.alert_targets import ALERT_TARGET_COLUMNS, read_target

MAX_MQTT_STREAMS = 1000
"""Streams of one target of which a broker retains messages."""
MQTT_TARGETS = (
    f"select {ALERT_TARGET_COLUMNS} from relay.alert_targets"  # noqa: S608 (constants)
    " where kind = 'mqtt' and given_up_at is null order by target_id"
)
LEASE_TARGET = (
    "update relay.alert_targets set lease = %s, leased_until = now() + %s"
    " where target_id = %s and coalesce(leased_until < now(), true)"
)
RELEASE_TARGET = (
    "update relay.alert_targets set lease = null, leased_until = null"
    " where target_id = %s and lease = %s"
)
RETRY_TARGET = (
    "update relay.alert_targets set try_again_at = now()"
    " where target_id = %s and try_again_at > now()"
)
ANNOUNCED_AMONG = (
    "select stream_id from relay.mqtt_streams where target_id = %s and stream_id = any(%s)"
)
ANNOUNCE = (
    "insert into relay.mqtt_streams (target_id, stream_id)"
    " select %(target_id)s, id from unnest(%(ids)s::text[]) as new (id)"
    " limit greatest(0, %(most)s"
    " - (select count(*) from relay.mqtt_streams where target_id = %(target_id)s))"
    " on conflict do nothing returning stream_id"
)
IN_SCOPE: LiteralString = (
    "s.owner_id is not null"
    " and (%(stream_id)s::text is null or s.stream_id = %(stream_id)s)"
    " and (%(owner_id)s::text is null or s.owner_id = %(owner_id)s)"
    " and starts_with(s.stream_id, coalesce(%(prefix)s, ''))"
)
STREAMS_IN_SCOPE = (
    "select s.stream_id, t.stream_id is not null, coalesce(t.watched, false)"  # noqa: S608 (constants)
    " from relay.streams s left join relay.told_streams t"
    " on t.stream_id = s.stream_id and t.owner_id = s.owner_id"
    f" where s.stream_id > %(after)s and {IN_SCOPE}"
    " and %(announced)s = exists (select from relay.mqtt_streams m"
    " where m.target_id = %(target_id)s and m.stream_id = s.stream_id)"
    " order by s.stream_id limit %(most)s"
)
FORGOTTEN: LiteralString = (
    "select m.stream_id from relay.mqtt_streams m where m.target_id = %(target_id)s"  # noqa: S608 (constants)
    " and not exists (select from relay.streams s"
    f" where s.stream_id = m.stream_id and {IN_SCOPE})"
)
NOT_ANNOUNCED: LiteralString = (
    "select s.stream_id from relay.streams s"  # noqa: S608 (constants)
    f" where {IN_SCOPE} and not exists (select from relay.mqtt_streams m"
    " where m.target_id = %(target_id)s and m.stream_id = s.stream_id)"
)
HAS_CHANGED = (
    f"select exists ({FORGOTTEN}) or (exists ({NOT_ANNOUNCED})"  # noqa: S608 (constants)
    " and (select count(*) from relay.mqtt_streams where target_id = %(target_id)s) < %(most)s)"
)


@define(eq=False, repr=False)
class MqttStreamsTable:
    """The rows of `relay.mqtt_streams`. All methods raise `StoreUnavailable`."""

    _database: Database

    async def targets(self) -> Sequence[AlertTarget]:
        """The MQTT targets that are not given up."""

        def select(connection: Connection) -> list[AlertTarget]:
            return [read_target(row) for row in connection.execute(MQTT_TARGETS)]

        return await self._database.transact(select)

    async def lease(self, target: AlertTarget, lease: UUID, *, lasts: timedelta) -> bool:
        """Lease a target as the outbox does; False while another one has it."""

        def update(connection: Connection) -> bool:
            given = [lease, lasts, target.target_id]
            return bool(connection.execute(LEASE_TARGET, given).rowcount)

        return await self._database.transact(update)

    async def release(self, target: AlertTarget, lease: UUID) -> None:
        """End a lease."""

        def update(connection: Connection) -> None:
            connection.execute(RELEASE_TARGET, [target.target_id, lease])

        await self._database.transact(update)

    async def retry_now(self, target: AlertTarget) -> None:
        """Let the outbox try at once what has failed before."""

        def update(connection: Connection) -> None:
            connection.execute(RETRY_TARGET, [target.target_id])

        await self._database.transact(update)

    async def announce(self, target: AlertTarget, stream_ids: Collection[str]) -> AnnouncedNow:
        """Note that messages of these streams will be retained, as many as there is room for."""
        ids = [each for each in stream_ids if self._database.can_hold(each)]

        def insert(connection: Connection) -> AnnouncedNow:
            given = [target.target_id, ids]
            before = {row[0] for row in connection.execute(ANNOUNCED_AMONG, given)}
            missing = [each for each in ids if each not in before]
            if not missing:
                return AnnouncedNow(frozenset(before), frozenset())
            values = {"target_id": target.target_id, "ids": missing, "most": MAX_MQTT_STREAMS}
            new = {row[0] for row in connection.execute(ANNOUNCE, values)}
            return AnnouncedNow(frozenset(before | new), frozenset(new))

        return await self._database.transact(insert)

    async def has_changed(self, target: AlertTarget) -> bool:
        """Whether streams are to be announced or withdrawn."""

        def select(connection: Connection) -> bool:
            [(changed,)] = connection.execute(HAS_CHANGED, _values(target, MAX_MQTT_STREAMS))
            return bool(changed)

        return await self._database.transact(select)

    async def streams(
        self, target: AlertTarget, after: str, most: int, *, announced: bool
    ) -> Sequence[MqttStream]:
        """What is so of the streams that a target is told of, in the order of their ids: of those
        that were announced, or of the others."""

        def select(connection: Connection) -> list[MqttStream]:
            values = {**_values(target, most), "after": after, "announced": announced}
            return [MqttStream(*row) for row in connection.execute(STREAMS_IN_SCOPE, values)]

        return await self._database.transact(select)

    async def forgotten(self, target: AlertTarget, most: int) -> Sequence[str]:
        """Streams that were announced, and that the target is told of no more."""

        def select(connection: Connection) -> list[str]:
            rows = connection.execute(f"{FORGOTTEN} limit %(most)s", _values(target, most))
            return [row[0] for row in rows]

        return await self._database.transact(select)

    async def announced(self, target: AlertTarget) -> Sequence[str]:
        """All streams of which messages are retained."""

        def select(connection: Connection) -> list[str]:
            rows = connection.execute(
                "select stream_id from relay.mqtt_streams where target_id = %s order by stream_id",
                [target.target_id],
            )
            return [row[0] for row in rows]

        return await self._database.transact(select)

    async def withdraw(self, target: AlertTarget, stream_ids: Sequence[str]) -> None:
        """Note that nothing is retained of these streams any more."""

        def delete(connection: Connection) -> None:
            connection.execute(
                "delete from relay.mqtt_streams where target_id = %s and stream_id = any(%s)",
                [target.target_id, [*stream_ids]],
            )

        await self._database.transact(delete)


def _values(target: AlertTarget, most: int) -> dict[str, object]:
    return {
        "target_id": target.target_id,
        "stream_id": target.stream_id,
        "owner_id": target.owner_id,
        "prefix": target.rules.stream_prefix,
        "most": most,
    }
