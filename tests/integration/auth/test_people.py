"""What users are called, as far as relay's role may read it."""

from __future__ import annotations

import time

from psycopg import sql
from psycopg.conninfo import make_conninfo

from relay.model.access.person import Person
from relay.postgres.database import open_database
from relay.postgres.tables.sessions.better_auth import AuthNames
from relay.postgres.tables.sessions.users import find_users
from tests.integration.accounts import Accounts
from tests.integration.conftest import PostgresServer

NAMES = AuthNames("public", "user", "session", {}, {}, "UTC")
ANN = {"ann": Person("ann", "ann@example.org")}


async def test_who_may_not_read_names_sees_ids(
    postgres_url: str, postgres_server: PostgresServer
) -> None:
    rows, role = Accounts(postgres_url), f"reader_{time.monotonic_ns()}"
    rows.session("ann")
    async with open_database(postgres_url) as database:
        users = await find_users(database, NAMES)
        assert await users.people(["ann", "bob", "a\0b"]) == ANN
    name = sql.Identifier(role)
    postgres_server.execute(sql.SQL("create role {} login password 'x'").format(name))
    for statement in (
        "grant usage on schema relay, public to {}; grant select on relay.grants to {}",
        'grant select (id) on "user" to {}; grant select on session to {}',
    ):
        rows.execute(statement.replace("{}", role))
    try:
        async with open_database(make_conninfo(postgres_url, user=role, password="x")) as database:
            users = await find_users(database, NAMES)
            assert await users.deleted_among(["ann"]) == set()
            assert await users.people(["ann"]) == {}
            rows.execute(f'grant select (name, email) on "user" to {role}')
            assert await (await find_users(database, NAMES)).people(["ann"]) == ANN
    finally:
        rows.execute(f"drop owned by {role}")
        postgres_server.execute(sql.SQL("drop role {}").format(name))
