"""Webhooks: whom alerts are posted to, and how far each has got. Floor 1.

A relay takes a webhook for a while (a lease), posts what is behind its position, and moves that
with each alert. One that ends in the middle leaves a lease that runs out; the next goes on from the
position, so the alert that was under way may be posted twice and none is lost.
"""

from __future__ import annotations

import secrets
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from attrs import define, field, frozen

from relay.errors import ConfigError
from relay.model import StoredAlert
from relay.postgres import alert_rows
from relay.postgres.audit import record_change
from relay.postgres.database import Connection, Database
from relay.postgres.text import storable

PAGE = 20
"""Alerts that are read at once."""
LONGEST_ERROR = 200
COLUMNS = (
    "webhook_id, url, secret, position, owner_id, stream_id, created_at, delivered, failures,"
    " try_again_at, last_error, given_up_at"
)
# Only those with something to post, so that a relay that is at one has work.
CLAIM = (
    "update relay.webhooks set lease = %(lease)s, leased_until = now() + %(lasts)s"  # noqa: S608 (constants)
    " where webhook_id = any(array(select w.webhook_id from relay.webhooks w"
    " where w.given_up_at is null and coalesce(w.leased_until < now(), true)"
    " and coalesce(w.try_again_at <= now(), true)"
    " and exists (select from relay.streams s"
    " where (s.stream_id = w.stream_id or s.owner_id = w.owner_id) and exists"
    " (select from relay.alerts a where a.stream_id = s.stream_id and a.alert_id > w.position))"
    " order by w.position limit %(most)s for update of w skip locked))"
    f" returning {COLUMNS}"
)
_BEHIND = (
    " from relay.streams s cross join lateral"
    " (select * from relay.alerts each where each.stream_id = s.stream_id"
    " and each.alert_id > %(position)s order by each.alert_id limit %(most)s) as a"
    " where s.stream_id = %(stream_id)s or s.owner_id = %(owner_id)s"
    " order by a.alert_id limit %(most)s"
)
BEHIND = f"select {alert_rows.COLUMNS}{_BEHIND}"
COUNT_BEHIND = f"select count(*) from (select{_BEHIND}) as behind"  # noqa: S608 (constants)
DELIVERED = (
    "update relay.webhooks set position = %(position)s, delivered = delivered + 1, failures = 0,"
    " failing_since = null, try_again_at = null, last_error = null,"
    " leased_until = now() + %(lasts)s"
    " where webhook_id = %(webhook_id)s and lease = %(lease)s"
)
FAILED = (
    "update relay.webhooks set failures = failures + 1, last_error = %(why)s,"
    " failing_since = coalesce(failing_since, now()), try_again_at = now() + %(pause)s,"
    " lease = null, leased_until = null,"
    " given_up_at = case when %(for_good)s or failing_since < now() - %(patience)s then now() end"
    " where webhook_id = %(webhook_id)s and lease = %(lease)s"
    " returning given_up_at is not null"
)
RELEASE = (
    "update relay.webhooks set lease = null, leased_until = null"
    " where webhook_id = %(webhook_id)s and lease = %(lease)s"
)
GO_ON = (
    "update relay.webhooks set given_up_at = null, failures = 0, failing_since = null,"
    " try_again_at = null, last_error = null where webhook_id = %s and given_up_at is not null"
)


@frozen
class Webhook:
    """One row."""

    webhook_id: str
    url: str = field(repr=False)
    """It may hold a secret of the receiver's."""
    secret: str = field(repr=False)
    position: int
    owner_id: str | None
    """Alerts of all streams of this user, or, where this is None,"""
    stream_id: str | None
    """of this one."""
    created_at: datetime
    delivered: int
    failures: int
    """Since the last success."""
    try_again_at: datetime | None
    last_error: str | None
    given_up_at: datetime | None


@define(eq=False)
class WebhookTable:
    """The rows of `relay.webhooks`."""

    _database: Database

    # -- for commands

    async def add(
        self, url: str, secret: str, *, owner_id: str | None = None, stream_id: str | None = None
    ) -> str:
        """Have alerts posted from now on; returns the id of the webhook."""
        webhook_id = f"wh_{secrets.token_hex(8)}"

        def insert(connection: Connection) -> None:
            connection.execute(
                "insert into relay.webhooks"
                " (webhook_id, url, secret, owner_id, stream_id, position)"
                " select %s, %s, %s, %s, %s, coalesce(max(alert_id), 0) from relay.alerts",
                [webhook_id, url, secret, owner_id, stream_id],
            )
            record_change(
                connection,
                "webhook",
                reason=f"made {webhook_id}",
                user_id=owner_id,
                stream_id=stream_id,
            )

        await self._database.transact(insert)
        return webhook_id

    async def all(self) -> list[tuple[Webhook, int]]:
        """All of them, and how many alerts each has before it, up to a thousand."""

        def count(connection: Connection, webhook: Webhook) -> int:
            values = _whose(webhook, webhook.position, most=1000)
            return int(connection.execute(COUNT_BEHIND, values).fetchall()[0][0])

        def select(connection: Connection) -> list[tuple[Webhook, int]]:
            rows = connection.execute(
                f"select {COLUMNS} from relay.webhooks order by created_at, webhook_id"  # noqa: S608 (constants)
            )
            webhooks = [Webhook(*row) for row in rows]
            return [(each, count(connection, each)) for each in webhooks]

        return await self._database.transact(select)

    async def find(self, webhook_id: str) -> Webhook:
        """`ConfigError` when there is none."""

        def select(connection: Connection) -> list[Any]:
            return connection.execute(
                f"select {COLUMNS} from relay.webhooks where webhook_id = %s",  # noqa: S608 (constants)
                [storable(webhook_id)],
            ).fetchall()

        rows = await self._database.transact(select)
        if not rows:
            raise _unknown(webhook_id)
        return Webhook(*rows[0])

    async def remove(self, webhook_id: str) -> None:
        """`ConfigError` when there is none."""

        def delete(connection: Connection) -> int:
            removed = connection.execute(
                "delete from relay.webhooks where webhook_id = %s", [storable(webhook_id)]
            ).rowcount
            if removed:
                record_change(connection, "webhook", reason=f"removed {webhook_id}")
            return removed

        if not await self._database.transact(delete):
            raise _unknown(webhook_id)

    async def go_on(self, webhook_id: str) -> bool:
        """Take up one that was given up; whether it was."""

        def update(connection: Connection) -> bool:
            return bool(connection.execute(GO_ON, [webhook_id]).rowcount)

        return await self._database.transact(update)

    # -- for the service

    async def claim(self, lease: UUID, *, lasts: timedelta, most: int) -> list[Webhook]:
        """Take webhooks that have something to post, and that no other relay is at."""

        def update(connection: Connection) -> list[Webhook]:
            values = {"lease": lease, "lasts": lasts, "most": most}
            return [Webhook(*row) for row in connection.execute(CLAIM, values)]

        return await self._database.transact(update)

    async def behind(self, webhook: Webhook, position: int) -> list[StoredAlert]:
        """The next alerts after a position, in order."""

        def select(connection: Connection) -> list[StoredAlert]:
            rows = connection.execute(BEHIND, _whose(webhook, position, most=PAGE))
            return [alert_rows.read_alert(row) for row in rows]

        return await self._database.transact(select)

    async def delivered(
        self, webhook: Webhook, lease: UUID, alert_id: int, *, lasts: timedelta
    ) -> bool:
        """Note that it has an alert, and keep it; False when it is no longer ours."""
        return await self._update(webhook, lease, DELIVERED, position=alert_id, lasts=lasts)

    async def failed(
        self,
        webhook: Webhook,
        lease: UUID,
        why: str,
        *,
        pause: timedelta,
        patience: timedelta,
        for_good: bool,
    ) -> bool:
        """Leave it for a while; whether it is given up, since it fails for too long or for good."""
        values = {"why": storable(why[:LONGEST_ERROR]), "pause": pause, "patience": patience}
        values |= {"webhook_id": webhook.webhook_id, "lease": lease, "for_good": for_good}

        def update(connection: Connection) -> bool:
            return any(row[0] for row in connection.execute(FAILED, values))

        return await self._database.transact(update)

    async def release(self, webhook: Webhook, lease: UUID) -> None:
        """Let others have it."""
        await self._update(webhook, lease, RELEASE)

    async def _update(self, webhook: Webhook, lease: UUID, query: Any, **values: object) -> bool:
        given = {"webhook_id": webhook.webhook_id, "lease": lease, **values}

        def update(connection: Connection) -> bool:
            return bool(connection.execute(query, given).rowcount)

        return await self._database.transact(update)


def _whose(webhook: Webhook, position: int, *, most: int) -> dict[str, object]:
    return {
        "stream_id": webhook.stream_id,
        "owner_id": webhook.owner_id,
        "position": position,
        "most": most,
    }


def _unknown(webhook_id: str) -> ConfigError:
    return ConfigError(f"there is no webhook {webhook_id!r}; `relay webhook list` shows all")
