"""Service tokens and stream owners."""

from __future__ import annotations

import psycopg
import pytest
import trio

from relay.errors import ConfigError
from relay.model.identity import SERVICE_TOKEN_PREFIX, Service
from relay.postgres.database import open_database
from relay.postgres.tables.service_tokens import ServiceTokenTable
from relay.postgres.tables.streams import StreamTable


async def test_a_service_is_found_by_its_token_alone(postgres_url: str) -> None:
    async with open_database(postgres_url) as database:
        services = ServiceTokenTable(database)
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
        token = await ServiceTokenTable(database).create(
            "s", consume=[], alerts=True, operate=False
        )
    with psycopg.connect(postgres_url) as connection:
        (row,) = connection.execute("select t::text from relay.service_tokens t").fetchall()
    assert token not in row[0]
    assert token.removeprefix(SERVICE_TOKEN_PREFIX) not in row[0]


async def test_a_name_is_taken_once(postgres_url: str) -> None:
    async with open_database(postgres_url) as database:
        services = ServiceTokenTable(database)
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
