"""The table of links: each capability is shown once and stored as a hash."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from attrs import define

from relay.errors import ConfigError
from relay.model.access.identity import User
from relay.model.access.link import (
    LINK_PREFIX,
    MAX_LINKS_OF_TARGET,
    MAX_LINKS_OF_USER,
    NewLink,
    PictureLink,
)
from relay.model.text import storable
from relay.postgres.database import Connection, Database
from relay.postgres.tables.audit import record_change

MAX_LEASE_SECONDS = 45
"""For which a reader of a link counts that was not kept meanwhile."""
_COLUMNS = (
    "link_id, stream_id, purpose, made_by, readers, expires_at,"
    " extract(epoch from expires_at - clock_timestamp())::float8, by_session"
)
_INSERT = """
    insert into relay.links
        (link_id, link_hash, stream_id, purpose, made_by, by_session, readers, target_id, made_at,
        expires_at)
    select %s, %s, %s, %s, %s, %s, %s, %s, now, now + make_interval(secs => %s)
    from clock_timestamp() as now
    returning
"""
_SELECT = f"select {_COLUMNS} from relay.links where expires_at > clock_timestamp()"  # noqa: S608
_COUNT = (
    "select count(*) from relay.links where made_by = %s and target_id is null"
    " and expires_at > clock_timestamp()"
)
_COUNT_OF_TARGET = (
    "select count(*) from relay.links where target_id = %s and expires_at > clock_timestamp()"
)
_PRUNE = "delete from relay.links where expires_at <= clock_timestamp()"
_FRESH = f"seen_at > clock_timestamp() - interval '{MAX_LEASE_SECONDS} seconds'"
_FORGET_READERS = f"delete from relay.link_readers where not {_FRESH}"  # noqa: S608
_ENTER = f"""
    insert into relay.link_readers (reader_id, link_id)
    select %(reader)s, %(link)s
    where (select count(*) from relay.link_readers where link_id = %(link)s and {_FRESH}) < %(most)s
"""  # noqa: S608


class LinkMakers(Protocol):
    """The users; `StoreUnavailable`."""

    async def granted_to(self, user_ids: Sequence[str]) -> Mapping[str, frozenset[str]]:
        """The streams of others that each user may watch, without banned users."""

    async def deleted_among(self, user_ids: Sequence[str]) -> set[str]:
        """Those that have no row, where users have rows that can be read."""


@define(eq=False, repr=False)
class LinkTable:
    """The rows of `relay.links`."""

    _database: Database
    _makers: LinkMakers

    async def find(self, capability: str) -> User | None:
        """Who stands behind a capability: the maker of the link, with the link; None if it is not
        valid. `StoreUnavailable`."""
        found = await self._read("link_hash = %s", [_hash(capability)])
        return next(iter(found.values()), None)

    async def read(self, link_ids: Sequence[str]) -> dict[str, User]:
        """The makers as they are now, by the ids of links, without links that are not valid any
        more; `StoreUnavailable`."""
        return await self._read("link_id = any(%s)", [list(link_ids)])

    async def make(
        self,
        link: NewLink,
        user_id: str,
        *,
        by_session: bool,
        by_command: bool = False,
        target_id: str | None = None,
    ) -> tuple[PictureLink, str]:
        """Make a link of a user's; returns it and its capability, which is not stored. What a
        command does is audited here.

        `ConfigError` when the user has too many. One for a target of alerts ends with that, and
        counts among those of the target alone.
        """
        capability, link_id = LINK_PREFIX + secrets.token_urlsafe(16), secrets.token_hex(6)

        def insert(connection: Connection) -> PictureLink:
            connection.execute(_PRUNE)
            if target_id is not None:
                if _count(connection, _COUNT_OF_TARGET, target_id) >= MAX_LINKS_OF_TARGET:
                    raise ConfigError(f"a target may have {MAX_LINKS_OF_TARGET} links")
            elif _count(connection, _COUNT, storable(user_id)) >= MAX_LINKS_OF_USER:
                raise ConfigError(
                    f"a user may have {MAX_LINKS_OF_USER} links; revoke some, or wait until they"
                    " expire"
                )
            row = connection.execute(
                _INSERT + _COLUMNS,
                [
                    *(link_id, _hash(capability), link.stream_id, link.purpose, user_id),
                    *(by_session, link.readers, target_id, link.seconds),
                ],
            ).fetchone()
            assert row is not None
            if by_command:
                reason = f"made {link_id}: {link.purpose}, {link.seconds} s"
                record_change(
                    connection, "link", reason=reason, user_id=user_id, stream_id=link.stream_id
                )
            return _link(row)

        return await self._database.transact(insert), capability

    async def all(self, user_id: str | None = None) -> list[PictureLink]:
        """All links that are valid, or those of one user; the first to expire first."""

        def select(connection: Connection) -> list[PictureLink]:
            rows = connection.execute(
                _SELECT + " and made_by = coalesce(%s, made_by) order by expires_at, link_id",
                [user_id],
            )
            return [_link(row) for row in rows]

        return await self._database.transact(select)

    async def revoke(
        self, link_id: str, *, user_id: str | None = None, by_command: bool = False
    ) -> bool:
        """Remove a link, if it is of this user where one is named; False if there is none.
        What a command does is audited here."""

        def delete(connection: Connection) -> bool:
            rows = connection.execute(
                "delete from relay.links where link_id = %s and made_by = coalesce(%s, made_by)"
                " returning made_by, stream_id",
                [storable(link_id), user_id],
            ).fetchall()
            for made_by, stream_id in rows if by_command else ():
                reason = f"revoked {link_id}"
                record_change(
                    connection, "link", reason=reason, user_id=made_by, stream_id=stream_id
                )
            return bool(rows)

        return await self._database.transact(delete)

    async def enter(self, link: PictureLink) -> str | None:
        """Count a reader of a link, among those of all relays, until it leaves or is not kept;
        returns its id, or None if there are as many as may be. `StoreUnavailable`."""
        reader_id = secrets.token_hex(12)

        def insert(connection: Connection) -> bool:
            # One at a time for each link: two would find the same last place.
            connection.execute(
                "select from relay.links where link_id = %s for update", [link.link_id]
            )
            connection.execute(_FORGET_READERS)
            entered = connection.execute(
                _ENTER, {"reader": reader_id, "link": link.link_id, "most": link.readers}
            )
            return entered.rowcount > 0

        return reader_id if await self._database.transact(insert) else None

    async def keep(self, link: PictureLink, reader_id: str) -> None:
        """Go on counting a reader; to be called more often than every `MAX_LEASE_SECONDS`."""
        await self._database.transact(
            lambda connection: (
                connection.execute(
                    "insert into relay.link_readers (reader_id, link_id) values (%s, %s)"
                    " on conflict (reader_id) do update set seen_at = clock_timestamp()",
                    [reader_id, link.link_id],
                ).rowcount
            )
        )

    async def leave(self, reader_id: str) -> None:
        """Count a reader no more."""
        await self._database.transact(
            lambda connection: (
                connection.execute(
                    "delete from relay.link_readers where reader_id = %s", [reader_id]
                ).rowcount
            )
        )

    async def owner_of(self, stream_id: str) -> tuple[str, bool]:
        """The owner of a stream, and whether that is a row of the user table as far as is known;
        `ConfigError` if there is none."""

        def select(connection: Connection) -> tuple[str, bool] | None:
            row = connection.execute(
                "select owner_id, coalesce(owner_by_session, true) from relay.streams"
                " where stream_id = %s and owner_id is not null",
                [stream_id],
            ).fetchone()
            return None if row is None else (row[0], row[1])

        owner = await self._database.transact(select)
        if owner is None:
            raise ConfigError(f"no user owns a stream {stream_id!r}: it was never registered")
        return owner

    async def _read(self, condition: str, arguments: Sequence[Any]) -> dict[str, User]:
        def select(connection: Connection) -> list[Any]:
            return connection.execute(f"{_SELECT} and {condition}", arguments).fetchall()

        rows = await self._database.transact(select)
        if not rows:
            return {}
        links = [(_link(row), row[7]) for row in rows]
        makers = [*{link.made_by for link, _ in links}]
        granted = await self._makers.granted_to(makers)
        rowed = [*{link.made_by for link, by_session in links if by_session}]
        deleted = await self._makers.deleted_among(rowed) if rowed else set()
        return {
            link.link_id: _maker(link, granted[link.made_by])
            for link, _ in links
            if link.made_by in granted and link.made_by not in deleted
        }


def _count(connection: Connection, query: Any, whose: str) -> int:
    return int(connection.execute(query, [whose]).fetchall()[0][0])


def _maker(link: PictureLink, granted: frozenset[str]) -> User:
    return User(
        link.made_by,
        f"link-{link.link_id}",
        link.expires_at,
        granted,
        source="link",
        remaining=link.remaining,
        link=link,
    )


def _link(row: Sequence[Any]) -> PictureLink:
    link_id, stream_id, purpose, made_by, readers, expires_at, remaining, _ = row
    return PictureLink(link_id, stream_id, purpose, made_by, readers, expires_at, remaining)


def _hash(capability: str) -> bytes:
    # 128 random bits need no slow hash. One from outside may hold lone surrogates.
    return hashlib.sha256(capability.encode("utf-8", "surrogatepass")).digest()
