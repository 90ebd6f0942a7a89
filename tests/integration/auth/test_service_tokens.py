"""Service tokens and stream owners."""

from __future__ import annotations

import psycopg
import pytest
import trio

from relay.errors import ConfigError
from relay.model.access.identity import SERVICE_TOKEN_PREFIX, Service
from relay.postgres.database import open_database
from relay.postgres.store import open_store
from relay.postgres.tables.service_tokens import ServiceTokenTable
from relay.postgres.tables.sessions.users import BetterAuthUsers
from relay.postgres.tables.streams import StreamTable
from relay.settings.settings import Settings
from tests.integration.accounts import Accounts


async def test_a_service_is_found_by_its_token_alone(postgres_url: str) -> None:
    async with open_database(postgres_url) as database:
        services = ServiceTokenTable(database, BetterAuthUsers(database, None))
        one = await services.create("one", consume=["porch", "yard"], alerts=True, operate=False)
        two = await services.create("two", consume="*", alerts=False, operate=True)
        found = await services.find([one, "one", f"{one}x", two, "\0", "\ud800"])
    assert found == {
        one: Service("one", frozenset({"porch", "yard"}), alerts=True, operate=False),
        two: Service("two", frozenset({"*"}), alerts=False, operate=True),
    }
    assert one.startswith(SERVICE_TOKEN_PREFIX)


async def test_a_token_is_kept_nowhere(postgres_url: str) -> None:
    async with open_database(postgres_url) as database:
        token = await ServiceTokenTable(database, BetterAuthUsers(database, None)).create(
            "s", consume=[], alerts=True, operate=False
        )
    with psycopg.connect(postgres_url) as connection:
        (row,) = connection.execute("select t::text from relay.service_tokens t").fetchall()
    assert token not in row[0]
    assert token.removeprefix(SERVICE_TOKEN_PREFIX) not in row[0]


async def test_a_name_is_taken_once(postgres_url: str) -> None:
    async with open_database(postgres_url) as database:
        services = ServiceTokenTable(database, BetterAuthUsers(database, None))
        token = await services.create("s", consume=[], alerts=True, operate=False)
        with pytest.raises(ConfigError, match="already a service named 's'"):
            await services.create("s", consume=[], alerts=True, operate=False)
        assert list(await services.find([token])) == [token]


async def test_the_first_to_claim_a_stream_owns_it_for_good(postgres_url: str) -> None:
    async with open_database(postgres_url) as database:
        assert await StreamTable(database).claim("porch", "ada") == "ada"
        assert await StreamTable(database).claim("porch", "bob") == "ada"
    async with open_database(postgres_url) as database:
        assert await StreamTable(database).claim("porch", "bob") == "ada"
        assert await StreamTable(database).claim("yard", "bob") == "bob"


async def test_of_many_that_claim_a_stream_at_once_one_owns_it(postgres_url: str) -> None:
    owners: set[str] = set()

    async with open_database(postgres_url, pool_size=8) as database:

        async def claim(user: str) -> None:
            owners.add(await StreamTable(database).claim("porch", user))

        async with trio.open_nursery() as nursery:
            for n in range(16):
                nursery.start_soon(claim, f"user {n}")
    assert len(owners) == 1


async def test_the_token_of_a_producing_service_ends_with_its_user(postgres_url: str) -> None:
    accounts = Accounts(postgres_url)
    accounts.session("ann")
    async with open_store(Settings(database_url=postgres_url)) as store:
        services = store.service_tokens
        token = await services.create(
            "cameras", consume=[], alerts=False, operate=False, produce=["porch"], user_id="ann"
        )
        found = (await services.find([token]))[token]
        assert (found.produces("porch"), found.user_id, found.user_is_stored) == (True, "ann", True)
        accounts.execute('alter table "user" add column if not exists banned boolean')
    async with open_store(Settings(database_url=postgres_url)) as store:
        services = store.service_tokens
        accounts.execute('update "user" set banned = true')
        assert await services.find([token]) == {}
        accounts.execute('update "user" set banned = false')
        assert await services.find([token]) == {token: found}
        accounts.execute("delete from session")
        assert await services.read([found.token_hash]) == {found.token_hash: found}
        accounts.execute('delete from "user"')
        assert await services.read([found.token_hash]) == {}


async def test_a_user_of_another_issuer_is_never_taken_for_deleted(postgres_url: str) -> None:
    async with open_database(postgres_url) as database:
        services = ServiceTokenTable(database, BetterAuthUsers(database, None))
        token = await services.create(
            "cameras", consume=[], alerts=False, operate=False, produce=["porch"], user_id="zoe"
        )
        found = (await services.find([token]))[token]
    assert (found.user_id, found.user_is_stored) == ("zoe", False)


async def test_a_service_without_a_user_produces_nothing(postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as connection, pytest.raises(psycopg.errors.CheckViolation):
        connection.execute(
            "insert into relay.service_tokens (token_hash, name, consume, alerts, operate, produce)"
            " values ('x', 'x', '{}', false, false, '{*}')"
        )
