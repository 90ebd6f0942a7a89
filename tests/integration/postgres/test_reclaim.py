"""When the streams of deleted users become free."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from attrs import frozen

from relay.postgres.database import Database, open_database
from relay.postgres.tables.sessions.sessions import find_better_auth
from relay.postgres.tables.stream_owners import StreamOwnershipTable
from relay.postgres.tables.streams import StreamTable
from relay.postgres.triggers import SessionTriggers
from tests.integration.accounts import Accounts

MONTH = timedelta(days=30)
DELETE_ANN = "delete from \"user\" where id = 'ann'"
LONG_AGO = "update relay.deleted_owners set deleted_at = now() - interval '31 days'"


@frozen
class Scene:
    """A stream of Ann's, and the tables that say whose it is."""

    database: Database
    accounts: Accounts
    streams: StreamTable
    ownership: StreamOwnershipTable

    async def owner(self) -> str | None:
        return (await self.streams.owners_of(["porch"])).get("porch")


@pytest.fixture
async def scene(postgres_url: str) -> AsyncIterator[Scene]:
    accounts = Accounts(postgres_url)
    accounts.sessions(["ann", "bob"])
    async with open_database(postgres_url) as database:
        sessions = await find_better_auth(database)
        await SessionTriggers(database, sessions.tables).install()
        streams = StreamTable(database)
        await streams.claim("porch", "ann")
        await streams.claim("yard", "bob")
        yield Scene(
            database, accounts, streams, StreamOwnershipTable(database, sessions.tables.user)
        )


async def test_streams_of_a_deleted_user_are_freed_in_time(scene: Scene) -> None:
    scene.accounts.execute(DELETE_ANN)
    assert await scene.ownership.reclaim(MONTH) == []
    scene.accounts.execute(LONG_AGO)
    assert await scene.ownership.reclaim(MONTH) == ["porch"]
    assert await scene.owner() is None
    assert await scene.ownership.reclaim(MONTH) == []
    assert scene.accounts.execute("select count(*) from relay.deleted_owners") == [(0,)]
    ((reason, who, address),) = scene.accounts.execute(
        "select reason, user_id, address from relay.audit where what = 'free'"
    )
    assert (reason, who, address) == ("the owner is gone", "ann", "")
    assert await scene.streams.claim("porch", "bob") == "bob"


@pytest.mark.parametrize(
    "by_session", [[False], [True, False]], ids=["without a session", "with both"]
)
async def test_who_came_without_a_session_is_never_gone(
    scene: Scene, by_session: list[bool]
) -> None:
    scene.accounts.execute("update relay.streams set owner_by_session = null")
    for each in by_session:
        await scene.streams.claim("porch", "ann", by_session=each)
    scene.accounts.execute(DELETE_ANN)
    scene.accounts.execute(LONG_AGO)
    assert await scene.ownership.reclaim(MONTH) == []
    assert [each.gone_since for each in await scene.ownership.all(most=10)] == [None, None]


async def test_who_is_there_again_is_not_gone(scene: Scene) -> None:
    scene.accounts.execute(DELETE_ANN)
    scene.accounts.execute(LONG_AGO)
    scene.accounts.session("ann")
    assert await scene.ownership.reclaim(MONTH) == []
    scene.accounts.execute("delete from session")
    await scene.streams.claim("porch", "ann")
    scene.accounts.execute(DELETE_ANN)
    assert await scene.ownership.reclaim(MONTH) == []  # a month from now


async def test_without_the_trigger_nobody_is_gone(scene: Scene) -> None:
    scene.accounts.execute('drop trigger relay_note_deleted on "user"')
    scene.accounts.execute(DELETE_ANN)
    scene.accounts.execute('truncate "user" cascade')
    assert [each.gone_since for each in await scene.ownership.all(most=10)] == [None, None]


async def test_the_trigger_never_fails_the_application(scene: Scene) -> None:
    scene.accounts.execute("alter table relay.deleted_owners rename to elsewhere")
    scene.accounts.execute(DELETE_ANN)
    assert scene.accounts.execute('select id from "user"') == [("bob",)]


async def test_only_owners_are_noted(scene: Scene) -> None:
    scene.accounts.sessions([f"guest-{n}" for n in range(50)])
    scene.accounts.execute('delete from "user"')
    noted = scene.accounts.execute("select user_id from relay.deleted_owners order by 1")
    assert noted == [("ann",), ("bob",)]


async def test_another_owner_is_not_gone_with_the_former_one(scene: Scene) -> None:
    scene.accounts.execute(DELETE_ANN)
    scene.accounts.execute(LONG_AGO)
    await scene.ownership.transfer("porch", "bob")
    assert await scene.ownership.reclaim(MONTH) == []
    assert await scene.owner() == "bob"


async def test_the_trigger_is_added_where_there_are_older_ones(scene: Scene) -> None:
    scene.accounts.execute('drop trigger relay_note_deleted on "user"')
    sessions = await find_better_auth(scene.database)
    triggers = SessionTriggers(scene.database, sessions.tables)
    assert await triggers.installed()
    assert not await triggers.note_deletions()
    assert await triggers.install()
    assert await triggers.note_deletions()
    assert not await triggers.install()
