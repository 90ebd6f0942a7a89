"""The browsers that want notifications, which are rows of `relay.alert_targets`, and the key that
push services know relay by.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Protocol

from attrs import define

from relay.errors import ConfigError
from relay.model.targets.alert_target import WEBPUSH_KIND, AlertTarget
from relay.model.targets.push_subscription import MAX_SUBSCRIPTIONS_OF_USER, NewSubscription
from relay.model.text import storable
from relay.postgres.database import Connection, Database
from relay.postgres.notifications import ALERT_CHANNEL
from relay.postgres.tables.alert_targets import ALERT_TARGET_COLUMNS, read_target
from relay.postgres.tables.alerts.alerts import store_raised

# Of one user at a time: two would find the same last place.
LOCK_USER = "select pg_advisory_xact_lock(hashtext('relay.push'), hashtext(%s))"
COUNT_OTHERS = (
    "select count(*) from relay.alert_targets where viewer_id = %s and kind = %s"
    " and target_id <> %s"
)
# Nobody has looked for what is behind: there was nobody to be woken.
SKIP_BEHIND = (
    "update relay.viewers_woken set position = relay.last_outbox_id()"
    " where not exists (select from relay.alert_targets where viewer_id is not null)"
)
# Who has the endpoint and its keys has the browser: what it got for another user ends, with the
# links in it.
FORGET_OTHER_USER = (
    "delete from relay.alert_targets where target_id = %s and viewer_id is distinct from %s"
)
# A browser that subscribes again goes on where it was, unless it was given up.
SUBSCRIBE = (
    "insert into relay.alert_targets as t (target_id, kind, url, secret, viewer_id,"  # noqa: S608 (constants)
    " viewer_by_session, streams, events, min_severity, cooldown, options, position)"
    " values (%s, %s, %s, '', %s, %s, %s, %s, %s, %s, %s, relay.last_outbox_id())"
    " on conflict (target_id) do update set viewer_by_session = excluded.viewer_by_session,"
    " streams = excluded.streams, events = excluded.events, min_severity = excluded.min_severity,"
    " cooldown = excluded.cooldown, options = excluded.options,"
    " position = case when t.given_up_at is null then t.position else excluded.position end,"
    " given_up_at = null, failures = case when t.given_up_at is null then t.failures else 0 end,"
    " failing_since = case when t.given_up_at is null then t.failing_since end,"
    " try_again_at = case when t.given_up_at is null then t.try_again_at end,"
    " last_error = case when t.given_up_at is null then t.last_error end"
    f" returning {ALERT_TARGET_COLUMNS}"
)
INSERT_PUSH_KEY = "insert into relay.push_key (private_key) values (%s) on conflict do nothing"
SELECT_PUSH_KEY = "select private_key from relay.push_key"


class ViewersOfDatabase(Protocol):
    """The users; `StoreUnavailable`."""

    async def granted_to(self, user_ids: Sequence[str]) -> Mapping[str, frozenset[str]]:
        """The streams of others that each user may watch, without banned users."""

    async def deleted_among(self, user_ids: Sequence[str]) -> set[str]:
        """Those that have no row, where users have rows that can be read."""


@define(eq=False, repr=False)
class PushSubscriptionTable:
    """The rows of the kind `webpush`. All methods raise `StoreUnavailable`."""

    _database: Database
    _users: ViewersOfDatabase

    async def subscribe(self, new: NewSubscription) -> AlertTarget:
        """Have notifications sent to a browser from now on, or by other rules; `ConfigError` if the
        user has too many."""
        viewer, rules = new.viewer, new.rules
        await store_raised(self._database)  # they were raised before
        options = {
            "p256dh": new.p256dh,
            "auth": new.auth,
            "key": new.public_key,
            "picture": new.picture,
        }

        def insert(connection: Connection) -> AlertTarget:
            connection.execute(LOCK_USER, [viewer.user_id])
            [(others,)] = connection.execute(
                COUNT_OTHERS, [viewer.user_id, WEBPUSH_KIND, new.target_id]
            ).fetchall()
            if others >= MAX_SUBSCRIPTIONS_OF_USER:
                raise ConfigError(
                    f"You get notifications on {MAX_SUBSCRIPTIONS_OF_USER} browsers already:"
                    " remove one"
                )
            connection.execute(FORGET_OTHER_USER, [new.target_id, viewer.user_id])
            connection.execute(SKIP_BEHIND)
            row = connection.execute(
                SUBSCRIBE,
                [
                    *(new.target_id, WEBPUSH_KIND, new.endpoint, viewer.user_id),
                    *(viewer.by_session, [*viewer.streams], [*rules.events]),
                    *(rules.min_severity, rules.cooldown, json.dumps(options)),
                ],
            ).fetchone()
            assert row is not None
            connection.execute("select pg_notify(%s, 'targets')", [ALERT_CHANNEL])
            return read_target(row)

        return await self._database.transact(insert)

    async def of_user(self, user_id: str) -> list[AlertTarget]:
        """The browsers of a user, the first ones first."""

        def select(connection: Connection) -> list[AlertTarget]:
            rows = connection.execute(
                f"select {ALERT_TARGET_COLUMNS} from relay.alert_targets"  # noqa: S608 (constants)
                " where viewer_id = %s and kind = %s order by created_at, target_id",
                [user_id, WEBPUSH_KIND],
            )
            return [read_target(row) for row in rows]

        return await self._database.transact(select)

    async def unsubscribe(self, target_id: str, user_id: str) -> bool:
        """Remove a browser of a user; False if there is none of this id."""

        def delete(connection: Connection) -> bool:
            removed = connection.execute(
                "delete from relay.alert_targets where target_id = %s and viewer_id = %s"
                " and kind = %s",
                [storable(target_id), user_id, WEBPUSH_KIND],
            ).rowcount
            return bool(removed)

        return await self._database.transact(delete)

    async def wake_viewers(self, most: int) -> bool | None:
        """Note for which targets of users there is something, of so many alerts and events at most.
        Returns whether there may be more; None if there was nothing, or another relay does it."""

        def wake(connection: Connection) -> bool | None:
            [(more,)] = connection.execute("select relay.wake_viewers(%s)", [most]).fetchall()
            return None if more is None else bool(more)

        return await self._database.transact(wake)

    async def push_key(self, new: str) -> str:
        """The private key that is stored, which is the new one if there was none."""

        def select(connection: Connection) -> str:
            rows = connection.execute(SELECT_PUSH_KEY).fetchall()
            if not rows:
                connection.execute(INSERT_PUSH_KEY, [new])
                rows = connection.execute(SELECT_PUSH_KEY).fetchall()
            return str(rows[0][0])

        return await self._database.transact(select)

    async def granted_to(self, user_ids: Sequence[str]) -> Mapping[str, frozenset[str]]:
        """See `ViewersOfDatabase`."""
        return await self._users.granted_to(user_ids)

    async def deleted_among(self, user_ids: Sequence[str]) -> set[str]:
        """See `ViewersOfDatabase`."""
        return await self._users.deleted_among(user_ids)
