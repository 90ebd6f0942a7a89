"""What is kept with alerts, in the real database, and from a real relay with a real folder."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import av
import pytest
import trio
from attrs import evolve

from relay.errors import ConfigError
from relay.model.access.identity import Service, User
from relay.model.alerts.alert import NewAlert, StoredAlert
from relay.model.alerts.alert_picture import AlertPicture, PictureName, WantedPictures
from relay.model.alerts.picture_link import PictureLinks
from relay.postgres.database import Database, open_database
from relay.postgres.tables.alerts.alert_pictures import AlertPictureTable
from relay.postgres.tables.alerts.alerts import AlertTable
from relay.postgres.tables.streams import StreamTable
from tests.integration.accounts import Accounts
from tests.integration.peers import login
from tests.integration.relay_process import PATIENCE, start_relay
from tests.integration.web.test_pictures import bearer, film, on_air

__all__ = ["film"]

SOON = datetime.now(UTC) + timedelta(hours=1)
ADA, BOB = User("ada", "session of ada", SOON), User("bob", "session of bob", SOON)
FIRE = NewAlert("porch", "service:detector", "high", "fire", 1_700_000_000_000)
PLACE = "folder:0123"


def wanted(stream_id: str, *, asked: bool) -> WantedPictures:
    return WantedPictures(still=asked, clip=stream_id == "yard")


@pytest.fixture
async def database(postgres_url: str) -> AsyncIterator[Database]:
    async with open_database(postgres_url) as database:
        await StreamTable(database).claim("porch", "ada")
        await StreamTable(database).claim("yard", "bob")
        yield database


async def store(database: Database, *alerts: NewAlert) -> list[StoredAlert]:
    stored = await AlertTable(database, wanted=wanted).store(alerts)
    return [each for each in stored if isinstance(each, StoredAlert)]


def kept(alert_id: int, owner_id: str, size: int = 10, place: str = PLACE) -> AlertPicture:
    return AlertPicture(PictureName(alert_id, "still"), "kept", owner_id, place, size)


async def test_an_alert_says_what_becomes_of_its_pictures(database: Database) -> None:
    plain, asked, clipped = await store(
        database, FIRE, evolve(FIRE, frame=True), evolve(FIRE, stream_id="yard")
    )
    table, alerts = AlertPictureTable(database), AlertTable(database)
    seen = {each.alert_id: (each.still, each.clip) for each in await alerts.after(0)}
    assert seen[plain.alert_id] == (None, None)
    assert seen[asked.alert_id] == ("pending", None)
    assert seen[clipped.alert_id] == (None, "pending")
    await table.record([kept(asked.alert_id, "ada")])
    await table.record([kept(plain.alert_id, "ada")])  # as of an alert from SQL
    page = await alerts.newest(ADA, stream_id=None, before=None, limit=10)
    assert [each.still for each in page.alerts] == ["kept", "kept"]


@pytest.mark.parametrize("change", ["delete from", "update"])
async def test_links_are_signed_with_no_key_that_anybody_could_guess(
    database: Database, change: str
) -> None:
    table = AlertPictureTable(database)
    assert len(await table.key()) == 32
    values = " set key = ''" if change == "update" else ""
    await database.transact(
        lambda connection: connection.execute(f"{change} relay.picture_key{values}").rowcount
    )
    with pytest.raises(ConfigError, match="at least 32 random bytes"):
        await table.key()


async def test_what_becomes_of_many_is_noted_at_once(database: Database) -> None:
    alerts = await store(database, *(evolve(FIRE, stream_id="yard", frame=True) for _ in range(3)))
    table = AlertPictureTable(database)
    stills = [kept(each.alert_id, "bob") for each in alerts]
    clips = [evolve(each, name=PictureName(each.name.alert_id, "clip")) for each in stills[1:]]
    await table.record([*reversed(stills), *clips, evolve(clips[-1], state="failed", place=None)])
    found = {each.alert_id: (each.still, each.clip) for each in await AlertTable(database).after(0)}
    assert list(found.values()) == [("kept", "pending"), ("kept", "kept"), ("kept", "failed")]
    assert await table.usage() == {"bob": 50}


async def test_one_that_nobody_keeps_has_failed_after_a_while(database: Database) -> None:
    (asked,) = await store(database, evolve(FIRE, frame=True))
    early = asked.alert_id - 200_000_000
    await database.transact(
        lambda connection: [
            connection.execute(
                f"update relay.{table} set alert_id = %s where alert_id = %s",
                [early, asked.alert_id],
            )
            for table in ("alerts", "alert_pictures")
        ]
    )
    assert [each.still for each in await AlertTable(database).after(0)] == ["failed"]


async def test_only_those_who_may_see_the_stream_find_it(database: Database) -> None:
    (asked,) = await store(database, evolve(FIRE, frame=True))
    table, name = AlertPictureTable(database), PictureName(asked.alert_id, "still")
    await table.record([kept(asked.alert_id, "ada")])
    assert await table.find(ADA, name) == kept(asked.alert_id, "ada")
    assert await table.find(evolve(BOB, granted=frozenset({"porch"})), name) is not None
    assert await table.find(Service("all", frozenset({"*"}), False, False), name) is not None
    assert await table.find(BOB, name) is None
    assert await table.find(Service("yard", frozenset({"yard"}), False, False), name) is None
    assert await table.find(ADA, PictureName(asked.alert_id, "clip")) is None
    assert await table.find(ADA, PictureName(asked.alert_id + 1, "still")) is None


async def test_another_owner_does_not_see_those_of_the_one_before(database: Database) -> None:
    (asked,) = await store(database, evolve(FIRE, frame=True))
    table, name = AlertPictureTable(database), PictureName(asked.alert_id, "still")
    await table.record([kept(asked.alert_id, "ada")])
    await database.transact(
        lambda connection: connection.execute(
            "update relay.streams set owner_id = 'bob' where stream_id = 'porch'"
        )
    )
    assert await table.find(BOB, name) is None
    assert await table.find(ADA, name) is None


async def test_the_oldest_of_who_keeps_too_much_are_to_go(database: Database) -> None:
    first, second, third = await store(database, FIRE, FIRE, FIRE)
    (other,) = await store(database, evolve(FIRE, stream_id="yard"))
    table = AlertPictureTable(database)
    for each in (first, second, third):
        await table.record([kept(each.alert_id, "ada", 40)])
    await table.record([kept(other.alert_id, "bob", 40)])
    assert await table.usage() == {"ada": 120, "bob": 40}

    async def excess(of_owner: int, in_all: int, place: str = PLACE) -> list[int]:
        found = await table.excess(place, of_owner=of_owner, in_all=in_all, most=10)
        return [each.alert_id for each in found]

    assert await excess(1000, 1000) == []
    assert await excess(80, 1000) == [first.alert_id]
    assert await excess(1000, 100) == [first.alert_id, second.alert_id]
    assert await excess(80, 1000, "elsewhere") == []
    assert await table.remove([first.alert_id]) == 1
    assert await table.usage() == {"ada": 80, "bob": 40}


async def test_what_has_no_alert_any_more_or_is_old_is_to_go(database: Database) -> None:
    table = AlertPictureTable(database)
    now = int(datetime.now(UTC).timestamp() * 1e6)
    day = 86_400 * 1_000_000
    gone, young, elsewhere, abandoned = now - day, now - 1000, now - 2 * day, now - 50 * day
    for alert_id, place in (
        *((gone, PLACE), (young, PLACE)),
        *((elsewhere, "folder:of-another"), (abandoned, "folder:of-another")),
    ):
        await table.record([kept(alert_id, "ada", place=place)])
    found = await table.removable(PLACE, timedelta(days=30), most=10)
    assert [each.alert_id for each in found] == [abandoned, gone]
    assert [each.names for each in found][1] == [PictureName(gone, "still")]


async def test_a_still_and_a_clip_are_written_and_served(
    database_url: str, accounts: Accounts, film: list[bytes], tmp_path: Path
) -> None:
    ann, stranger = accounts.session(), accounts.session("bob")
    folder = ("--picture-dir", str(tmp_path / "kept"))
    clips = ("--clip-streams", "*", "--clip-before", "1", "--clip-after", "0.5")
    with start_relay(*folder, *clips, database_url=database_url) as relay:
        async with on_air(relay, ann, film) as (stream_id, _):
            await trio.sleep(0.5)
            async with login(relay, ann) as viewer:
                consumes = {"type": "subscribe", "streamId": stream_id, "consumes": ["alert"]}
                assert (await viewer.ask(consumes))["type"] == "success"
                alert = {"streamId": stream_id, "severity": "high", "message": "m", "frame": True}
                alert_id = (await viewer.ask({"type": "alert", **alert}))["alertId"]
                event = await viewer.receive_type("alert")
                assert (event["still"], event["clip"]) == ("pending", "pending")
            still = await relay.get(f"/alerts/{alert_id}/still.jpg", headers=bearer(ann))
            assert (still.status, still.body in film) == (200, True)
            with trio.fail_after(PATIENCE):
                while True:
                    clip = await relay.get(f"/alerts/{alert_id}/clip.mjpeg", headers=bearer(ann))
                    if clip.status != 503:
                        break
                    await trio.sleep(0.1)
            assert clip.status == 200
            ranged = {**bearer(ann), "Range": "bytes=10-19"}
            part = await relay.get(f"/alerts/{alert_id}/clip.mjpeg", headers=ranged)
            assert (part.status, part.body) == (206, clip.body[10:20])
            path = tmp_path / "clip.mjpeg"
            path.write_bytes(clip.body)
            with av.open(str(path), format="mpjpeg") as container:
                assert len(list(container.decode(video=0))) > 5
            for what in (f"{alert_id}/still.jpg", f"{alert_id}/clip.mjpeg"):
                refused = await relay.get(f"/alerts/{what}", headers=bearer(stranger))
                missing = await relay.get(
                    f"/alerts/{what.replace(str(alert_id), '1')}", headers=bearer(ann)
                )
                assert (refused.status, refused.body) == (missing.status, missing.body)
                assert refused.status == 404
            async with open_database(database_url) as database:
                links = PictureLinks(await AlertPictureTable(database).key())
            by_link = await relay.get(links.link_to(PictureName(alert_id, "still")))
            assert (by_link.status, by_link.body) == (200, still.body)
            listed = await relay.get(f"/alerts?streamId={stream_id}", headers=bearer(ann))
            assert b'"still":"kept","clip":"kept"' in listed.body
    names = {each.name for each in (tmp_path / "kept").rglob("*") if each.is_file()}
    assert names == {".relay-folder", f"{alert_id}.jpg", f"{alert_id}.mjpeg"}
