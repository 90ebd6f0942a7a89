"""The table of webhooks: where alerts are posted, and how far the deliveries have got.

A relay leases a webhook, posts the alerts after its position, and advances the position with each.
The lease of a relay that dies runs out; the next one resumes at the position, so the alert that was
being posted may be posted twice, and none is lost.
"""

from __future__ import annotations

import secrets
from datetime import timedelta
from typing import Any, LiteralString
from uuid import UUID

from attrs import define

from relay.errors import ConfigError, StoreRejects, StoreUnavailable
from relay.model.alert import StoredAlert
from relay.model.text import storable
from relay.model.webhook import Webhook
from relay.postgres.database import Connection, Database
from relay.postgres.notifications import ALERT_CHANNEL
from relay.postgres.tables.alerts.alert_pages import (
    MAX_ALERT_ID,
    ONE_STREAM,
    ids_of_owner,
    ids_of_streams,
    read_page,
)
from relay.postgres.tables.alerts.alert_rows import OF_THIS_LIFE
from relay.postgres.tables.alerts.alerts import store_raised
from relay.postgres.tables.audit import record_change

WEBHOOK_PAGE = 20
"""Alerts that are read at once."""
MAX_WEBHOOK_ERROR_LENGTH = 200
WEBHOOK_COLUMNS = (
    "webhook_id, url, secret, position, owner_id, stream_id, created_at, delivered, failures,"
    " try_again_at, last_error, given_up_at"
)
# Only webhooks with alerts waiting, so that no relay leases one for nothing.
CLAIM_WEBHOOKS = (
    "update relay.webhooks set lease = %(lease)s, leased_until = now() + %(lasts)s"  # noqa: S608 (constants)
    " where webhook_id = any(array(select w.webhook_id from relay.webhooks w"
    " where w.given_up_at is null and coalesce(w.leased_until < now(), true)"
    " and coalesce(w.try_again_at <= now(), true)"
    " and case when w.owner_id is null then"
    " exists (select from relay.streams s join relay.alerts a on a.stream_id = s.stream_id"
    " where s.stream_id = w.stream_id and (a.stream_id, a.alert_id) > (w.stream_id, w.position)"
    f" and {OF_THIS_LIFE})"
    " else exists (select from relay.alerts a join relay.streams s on s.stream_id = a.stream_id"
    " where a.owner_id = w.owner_id and (a.owner_id, a.alert_id) > (w.owner_id, w.position)"
    f" and s.owner_id = a.owner_id and {OF_THIS_LIFE}) end"
    " order by w.position limit %(most)s for update of w skip locked))"
    f" returning {WEBHOOK_COLUMNS}"
)
RECORD_DELIVERY = (
    "update relay.webhooks set position = %(position)s, delivered = delivered + 1, failures = 0,"
    " failing_since = null, try_again_at = null, last_error = null,"
    " leased_until = now() + %(lasts)s"
    " where webhook_id = %(webhook_id)s and lease = %(lease)s"
)
RECORD_FAILURE = (
    "update relay.webhooks set failures = failures + 1, last_error = %(why)s,"
    " failing_since = coalesce(failing_since, now()), try_again_at = now() + %(pause)s,"
    " lease = null, leased_until = null,"
    " given_up_at = case when %(for_good)s or failing_since < now() - %(give_up_after)s"
    " then now() end"
    " where webhook_id = %(webhook_id)s and lease = %(lease)s"
    " returning given_up_at is not null"
)
RELEASE_LEASE = (
    "update relay.webhooks set lease = null, leased_until = null"
    " where webhook_id = %(webhook_id)s and lease = %(lease)s"
)
# When the next one can be claimed that cannot be claimed now.
SECONDS_UNTIL_DUE = (
    "select extract(epoch from min(greatest(try_again_at, leased_until)) - now())::float8"
    " from relay.webhooks where given_up_at is null and"
    " (try_again_at > now() or leased_until > now())"
)
RESUME_WEBHOOK = (
    "update relay.webhooks set given_up_at = null, failures = 0, failing_since = null,"
    " try_again_at = null, last_error = null where webhook_id = %s and given_up_at is not null"
)


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
        await store_raised(self._database)  # they were raised before

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
        """All webhooks, each with the number of alerts that wait for it, up to a thousand."""

        def count(connection: Connection, webhook: Webhook) -> int:
            values = _whose(webhook, webhook.position, most=1000)
            behind = f"select count(*) from ({ids_behind(webhook)}) as behind"  # noqa: S608 (constants)
            return int(connection.execute(behind, values).fetchall()[0][0])

        def select(connection: Connection) -> list[tuple[Webhook, int]]:
            rows = connection.execute(
                f"select {WEBHOOK_COLUMNS} from relay.webhooks order by created_at, webhook_id"  # noqa: S608 (constants)
            )
            webhooks = [Webhook(*row) for row in rows]
            return [(each, count(connection, each)) for each in webhooks]

        return await self._database.transact(select)

    async def find(self, webhook_id: str) -> Webhook:
        """The webhook of this id; `ConfigError` when there is none."""

        def select(connection: Connection) -> list[Any]:
            return connection.execute(
                f"select {WEBHOOK_COLUMNS} from relay.webhooks where webhook_id = %s",  # noqa: S608 (constants)
                [storable(webhook_id)],
            ).fetchall()

        rows = await self._database.transact(select)
        if not rows:
            raise _unknown(webhook_id)
        return Webhook(*rows[0])

    async def remove(self, webhook_id: str) -> None:
        """Remove a webhook; `ConfigError` when there is none."""

        def delete(connection: Connection) -> int:
            removed = connection.execute(
                "delete from relay.webhooks where webhook_id = %s", [storable(webhook_id)]
            ).rowcount
            if removed:
                record_change(connection, "webhook", reason=f"removed {webhook_id}")
            return removed

        if not await self._database.transact(delete):
            raise _unknown(webhook_id)

    async def resume(self, webhook_id: str) -> bool:
        """Resume a webhook that was given up; whether it was."""

        def update(connection: Connection) -> bool:
            connection.execute("select pg_notify(%s, 'webhooks')", [ALERT_CHANNEL])
            return bool(connection.execute(RESUME_WEBHOOK, [webhook_id]).rowcount)

        return await self._database.transact(update)

    # -- for the delivery

    async def claim(self, lease: UUID, *, lasts: timedelta, most: int) -> list[Webhook]:
        """Lease webhooks that have alerts waiting and that no other relay has leased."""

        def update(connection: Connection) -> list[Webhook]:
            values = {"lease": lease, "lasts": lasts, "most": most}
            return [Webhook(*row) for row in connection.execute(CLAIM_WEBHOOKS, values)]

        return await self._database.transact(update)

    async def next_due(self) -> float | None:
        """Seconds until a webhook is to be tried again, or its lease runs out; None when there is
        none."""

        def select(connection: Connection) -> float | None:
            [(seconds,)] = connection.execute(SECONDS_UNTIL_DUE).fetchall()
            return None if seconds is None else float(seconds)

        return await self._database.transact(select)

    async def behind(self, webhook: Webhook, position: int) -> list[StoredAlert]:
        """The next alerts after a position, in order, as many as a page may hold: one at least, and
        only one when the page cannot be read.

        `StoreRejects` when that cannot be read by any means.
        """

        async def read(most: int) -> list[StoredAlert]:
            values = _whose(webhook, position, most=most)
            page = await self._database.transact(
                lambda connection: read_page(connection, ids_behind(webhook), values)
            )
            return page.alerts

        try:
            return await read(WEBHOOK_PAGE)
        except (StoreRejects, StoreUnavailable):
            return await read(1)

    async def next_id(self, webhook: Webhook, position: int) -> int | None:
        """The id of the next alert after a position; None when there is none."""

        def select(connection: Connection) -> int | None:
            values = _whose(webhook, position, most=1)
            rows = connection.execute(ids_behind(webhook), values).fetchall()
            return rows[0][0] if rows else None

        return await self._database.transact(select)

    async def delivered(
        self, webhook: Webhook, lease: UUID, alert_id: int, *, lasts: timedelta
    ) -> bool:
        """Advance the position and renew the lease; False when the lease is lost."""
        return await self._update(webhook, lease, RECORD_DELIVERY, position=alert_id, lasts=lasts)

    async def failed(
        self,
        webhook: Webhook,
        lease: UUID,
        why: str,
        *,
        pause: timedelta,
        give_up_after: timedelta,
        for_good: bool,
    ) -> bool:
        """Put the next attempt off; whether the webhook is given up, since it fails for too long or
        for good."""
        why = storable(why[:MAX_WEBHOOK_ERROR_LENGTH])
        if not self._database.can_hold(why):
            why = why.encode("ascii", "backslashreplace").decode()
        values = {
            "why": why,
            "pause": pause,
            "give_up_after": give_up_after,
        }
        values |= {"webhook_id": webhook.webhook_id, "lease": lease, "for_good": for_good}

        def update(connection: Connection) -> bool:
            return any(row[0] for row in connection.execute(RECORD_FAILURE, values))

        return await self._database.transact(update)

    async def release(self, webhook: Webhook, lease: UUID) -> None:
        """End a lease."""
        await self._update(webhook, lease, RELEASE_LEASE)

    async def _update(self, webhook: Webhook, lease: UUID, query: Any, **values: object) -> bool:
        given = {"webhook_id": webhook.webhook_id, "lease": lease, **values}

        def update(connection: Connection) -> bool:
            return bool(connection.execute(query, given).rowcount)

        return await self._database.transact(update)


def ids_behind(webhook: Webhook) -> LiteralString:
    """A query of the ids of alerts that a webhook has to get."""
    return ids_of_owner() if webhook.owner_id is not None else ids_of_streams(ONE_STREAM)


def _whose(webhook: Webhook, position: int, *, most: int) -> dict[str, object]:
    return {
        "stream_id": webhook.stream_id,
        "owner_id": webhook.owner_id,
        "after": position,
        "before": MAX_ALERT_ID,
        "most": most,
    }


def _unknown(webhook_id: str) -> ConfigError:
    return ConfigError(f"there is no webhook {webhook_id!r}; `relay webhook list` shows all")
