"""Alerts on phones, by a server that speaks ntfy's API, set up with `relay target`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import trio

from tests.integration.accounts import Accounts
from tests.integration.in_process import call_relay
from tests.integration.ntfy_server import open_ntfy
from tests.integration.peers import login, new_stream_id
from tests.integration.relay_process import start_relay, until

LOOPBACK = ("--webhook-networks", "127.0.0.0/8")
TOKEN = "tk_5ecret0f2ntfy"
PUBLIC_URL = "https://relay.example.org"
JPEG = b"\xff\xd8\xff\xe0 a picture"


async def command(accounts: Accounts, *arguments: str, code: int = 0) -> str:
    call = partial(call_relay, "target", *arguments, database_url=accounts.url)
    ended, out, err = await trio.to_thread.run_sync(call)
    assert ended == code, err
    return out if code == 0 else err


async def test_an_alert_comes_to_a_topic_with_a_link_to_the_picture_that_ends_with_the_target(
    postgres_url: str, tmp_path: Path
) -> None:
    accounts, stream_id = Accounts(postgres_url), new_stream_id()
    token = accounts.session()
    file = tmp_path / "ntfy"
    file.write_text(f"{TOKEN}\n")
    public = ("--public-url", PUBLIC_URL)
    async with open_ntfy(f"Bearer {TOKEN}") as ntfy:
        added = await command(
            accounts,
            *("add", "ntfy", f"{ntfy.url}/door", "--stream", "*", "--picture"),
            *("--event", "alert", "--event", "stream.online", "--cooldown", "1h"),
            *("--credentials-file", str(file), *LOOPBACK, *public),
        )
        target_id = added.strip()
        said = await command(accounts, "test", target_id, *LOOPBACK)
        assert "accepted it" in said
        with start_relay(*LOOPBACK, *public, database_url=postgres_url) as relay:
            async with login(relay, token) as phone:
                await phone.register(stream_id)
                await until(lambda: len(ntfy.messages) == 2)
                await phone.send_frame(JPEG)
                alert = {"type": "alert", "streamId": stream_id, "severity": "high"}
                for message in ("Smoke", "too soon"):
                    await phone.ask({**alert, "message": message})
                await until(lambda: len(ntfy.messages) == 3)
                test, online, smoke = ntfy.on("door")
                assert test["message"] == "relay can reach this topic"
                assert online["title"] == f"{stream_id} is online"
                assert (smoke["title"], smoke["message"]) == (f"{stream_id}: high", "Smoke")
                assert (smoke["priority"], smoke["tags"]) == (4, ["warning", stream_id])
                assert smoke["click"] == f"{PUBLIC_URL}/#watch/{stream_id}"
                link = smoke["attach"].removeprefix(PUBLIC_URL)
                picture = await relay.get(link)
                assert (picture.status, picture.body) == (200, JPEG)
                await until_suppressed(accounts, 1)
                listed = await command(accounts, "list")
                assert "cooldown=3600s\tsuppressed=1" in listed
                await command(accounts, "remove", target_id)
                assert (await relay.get(link)).status in {401, 403}
            capability = link.partition("link=")[2]
            for secret in (TOKEN, capability):
                assert secret not in relay.log
                assert secret not in listed
    assert [reason for (reason,) in accounts.execute(AUDITED)] == [
        *(f"made {target_id}", f"removed {target_id}")
    ]


AUDITED = "select reason from relay.audit where what = 'target' order by audit_id"


async def until_suppressed(accounts: Accounts, number: int) -> None:
    counted = "select coalesce(sum(suppressed), 0) from relay.alert_targets"
    await until(lambda: accounts.execute(counted) == [(number,)])


async def test_a_topic_that_fails_holds_up_no_webhook_and_is_tried_again(
    postgres_url: str,
) -> None:
    accounts, stream_id = Accounts(postgres_url), "porch"
    accounts.execute("insert into relay.streams (stream_id, owner_id) values ('porch', 'ann')")
    async with open_ntfy("Bearer of another") as broken, open_ntfy() as busy, open_ntfy() as well:
        busy.failure = ("429 Too Many Requests", ("Retry-After: 300",))
        for ntfy in (broken, busy, well):
            url = f"{ntfy.url}/door"
            await command(accounts, "add", "ntfy", url, "--stream", stream_id, *LOOPBACK)
        with start_relay(*LOOPBACK, database_url=postgres_url) as relay:
            accounts.execute("select relay.raise_alert('porch', 'Smoke')")
            await until(lambda: len(well.messages) == 1)
            waits = (
                "select last_error, extract(epoch from try_again_at - now())::integer"
                " from relay.alert_targets where failures > 0 order by last_error"
            )
            await until(lambda: len(accounts.execute(waits)) == 2)
            (refused, soon), (limited, late) = accounts.execute(waits)
            assert refused == "status 403: relay may not publish to this topic"
            assert soon <= 3
            assert limited == "status 429: too many messages"
            assert 250 < late <= 300
            await relay.until_logged("ntfy fails")
            broken.authorization = None
            await until(lambda: len(broken.messages) == 1)
            assert broken.messages == well.messages


async def test_without_the_setting_no_topic_on_this_machine_is_published_to(
    postgres_url: str,
) -> None:
    accounts = Accounts(postgres_url)
    async with open_ntfy() as ntfy:
        url = f"{ntfy.url}/door"
        added = await command(accounts, "add", "ntfy", url, "--stream", "*", *LOOPBACK)
        said = await command(accounts, "test", added.strip(), code=2)
        assert "relay may not call its address: it is not in webhook_networks" in said
        assert ntfy.attempts == 0


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("add", "ntfy", "https://x/door"), "give either --stream"),
        (("add", "ntfy", "https://x/door", "--stream", "a", "--owner", "b"), "only if STREAM"),
        (("add", "ntfy", "http://x/door", "--stream", "a"), "must begin with https"),
        (("add", "ntfy", "https://u:p@x/door", "--stream", "a"), "no user"),
        (("add", "ntfy", "https://x/", "--stream", "a"), "URL of a topic"),
        (("add", "ntfy", "https://x/door", "--stream", "a", "--picture"), "public_url"),
        (("add", "ntfy", "https://x/door", "--stream", "a", "--picture-for", "2d"), "24h"),
        (("add", "ntfy", "https://x/door", "--stream", "a", "--cooldown", "8d"), "7d at most"),
        (("add", "ntfy", "https://x/door", "--stream", "a", "--event", "b"), "stream.online"),
        (
            ("add", "ntfy", "https://x/d", "--stream", "a", "--credentials-file", "no"),
            "cannot read",
        ),
        (("test", "ntfy_0"), "there is no target"),
        (("remove", "ntfy_0"), "there is no target"),
    ],
)
async def test_a_command_says_what_is_wrong(
    accounts: Accounts, arguments: tuple[str, ...], why: str
) -> None:
    assert why in await command(accounts, *arguments, code=2)


async def test_credentials_come_from_the_environment_too(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    accounts = Accounts(postgres_url)
    monkeypatch.setenv("RELAY_NTFY_CREDENTIALS", "ann:pass word")
    refused = await command(accounts, "add", "ntfy", "https://x/door", "--stream", "a", code=2)
    assert "RELAY_NTFY_CREDENTIALS does not contain" in refused
    assert "pass word" not in refused
    monkeypatch.setenv("RELAY_NTFY_CREDENTIALS", "ann:password")
    async with open_ntfy("Basic YW5uOnBhc3N3b3Jk") as ntfy:
        url = f"{ntfy.url}/door"
        added = await command(accounts, "add", "ntfy", url, "--stream", "a", *LOOPBACK)
        await command(accounts, "test", added.strip(), *LOOPBACK)
        assert len(ntfy.messages) == 1
