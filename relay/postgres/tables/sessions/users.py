"""The users of Better Auth: their grants, and who is banned."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg
from attrs import define
from psycopg import sql

from relay.errors import ConfigError, StoreForbids, StoreLacks
from relay.model.access.person import MAX_PERSON_TEXT, Person
from relay.model.text import storable
from relay.postgres.database import Connection, Database
from relay.postgres.tables.sessions.better_auth import (
    AuthColumn,
    AuthNames,
    AuthTable,
    find_user_table,
)

NOW = sql.SQL("clock_timestamp()")


async def find_users(database: Database, names: AuthNames) -> BetterAuthUsers:
    """Find the users if sessions are outside the database; the users may be missing or hidden."""
    users = BetterAuthUsers(
        database,
        await database.transact(lambda connection: find_user_table(connection, names)),
    )
    try:
        await users.granted_to([])
    except (StoreForbids, StoreLacks, psycopg.ProgrammingError):
        return BetterAuthUsers(database, None)
    return users


@define(eq=False, repr=False)
class BetterAuthUsers:
    """The users, if they are in the database, and the grants to them."""

    _database: Database
    table: AuthTable | None

    async def granted_to(self, user_ids: Sequence[str]) -> dict[str, frozenset[str]]:
        """The streams of others that each user may watch, for users without a session. Banned users
        are left out."""
        asked = [user_id for user_id in user_ids if self._database.can_hold(user_id)]

        def select(connection: Connection) -> dict[str, frozenset[str]]:
            grants = connection.execute(
                "select user_id, array_agg(stream_id) from relay.grants where user_id = any(%s)"
                " group by user_id",
                [asked],
            )
            found = dict.fromkeys(asked, frozenset[str]())
            found |= {user_id: frozenset(stream_ids) for user_id, stream_ids in grants}
            for user_id in self._banned_among(connection, asked):
                found.pop(user_id, None)
            return found

        return await self._database.transact(select)

    async def deleted_among(self, user_ids: Sequence[str]) -> set[str]:
        """Those of these users that have no row; nobody where the rows cannot be read."""
        if self.table is None:
            return set()
        column = self.table["id"]
        statement = sql.SQL("select {id} from {user} u where {asked}").format(
            id=column.as_text("u"), user=self.table.identifier, asked=column.is_any("u")
        )
        asked = self._askable(user_ids, column)
        rows = await self._database.transact(
            lambda connection: connection.execute(statement, [asked]).fetchall()
        )
        return set(user_ids) - {user_id for (user_id,) in rows}

    async def people(self, user_ids: Sequence[str]) -> dict[str, Person]:
        """What these users are called, without those that have no row; nobody where names and
        addresses cannot be read."""
        user = self.table
        if user is None or not {"name", "email"} & set(user.columns):
            return {}
        column = user["id"]
        known = {
            name: sql.SQL("left({}, {})").format(user[name].as_text("u"), MAX_PERSON_TEXT)
            if name in user.columns
            else sql.NULL
            for name in ("name", "email")
        }
        statement = sql.SQL("select {id}, {name}, {email} from {user} u where {asked}").format(
            id=column.as_text("u"), user=user.identifier, asked=column.is_any("u"), **known
        )
        asked = self._askable(user_ids, column)
        try:
            rows = await self._database.transact(
                lambda connection: connection.execute(statement, [asked]).fetchall()
            )
        except StoreForbids:
            return {}
        return {user_id: Person(name or None, email or None) for user_id, name, email in rows}

    def _banned_among(self, connection: Connection, user_ids: Sequence[str]) -> list[str]:
        if self.table is None or "banned" not in self.table.columns:
            return []
        column = self.table["id"]
        statement = sql.SQL("select {id} from {user} u where {asked} and {banned}").format(
            id=column.as_text("u"),
            user=self.table.identifier,
            asked=column.is_any("u"),
            banned=is_banned(self.table),
        )
        asked = self._askable(user_ids, column)
        return [user_id for (user_id,) in connection.execute(statement, [asked])]

    def are_banned(self, connection: Connection, user_ids: Sequence[str]) -> dict[str, bool]:
        """Whether each of these users is banned, without those that have no row."""
        if self.table is None:
            return {}
        column = self.table["id"]
        statement = sql.SQL("select {id}, {banned} from {user} u where {asked}").format(
            id=column.as_text("u"),
            user=self.table.identifier,
            asked=column.is_any("u"),
            banned=is_banned(self.table),
        )
        return dict(connection.execute(statement, [self._askable(user_ids, column)]).fetchall())

    def _askable(self, texts: Sequence[str], column: AuthColumn) -> list[str]:
        """Those that the column may hold: one that it cannot must not fail a whole query."""
        return [each for each in texts if self._database.can_hold(each) and column.can_hold(each)]

    async def find_user(self, name: str) -> str:
        """The id of the user with this id or e-mail address; `ConfigError` if there is none."""
        user = self.table
        if user is None:
            raise ConfigError(f"users are not in this database: give an id, not {name!r}")
        columns = [user["id"].identifier]
        if "email" in user.columns:
            columns.append(user["email"].identifier)
        matches = sql.SQL(" or ").join(
            sql.SQL("lower({}::text) = lower({name})").format(column, name=sql.Placeholder("name"))
            for column in columns
        )
        statement = sql.SQL(
            "select {id}::text from {user} where {matches} order by {id}::text = {name} desc"
        ).format(
            id=user["id"].identifier,
            user=user.identifier,
            matches=matches,
            name=sql.Placeholder("name"),
        )
        rows = await self._database.transact(
            lambda connection: connection.execute(statement, {"name": storable(name)}).fetchall()
        )
        if not rows:
            raise ConfigError(f"there is no user {name!r}: give an id or an e-mail address")
        if len(rows) > 1 and rows[0][0] != name:
            raise ConfigError(f"there are {len(rows)} users {name!r}: give an id")
        return str(rows[0][0])


def is_banned(user: AuthTable) -> sql.Composable:
    """Whether a user is banned at this moment, as an SQL expression."""
    if "banned" not in user.columns:
        return sql.SQL("false")
    banned = sql.SQL("coalesce(u.{}, false)").format(user["banned"].identifier)
    if "ban_expires" not in user.columns:
        return banned
    until = user["ban_expires"].as_instant("u")
    return sql.SQL("({} and coalesce({} > {}, true))").format(banned, until, NOW)
