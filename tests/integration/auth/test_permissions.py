"""The tables of docs/security.md, walked against a real relay, and what they cannot say."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from attrs import field, frozen

from tests.integration.accounts import Accounts
from tests.integration.peers import Message, Peer, login, new_stream_id, open_peer
from tests.integration.relay_process import RelayProcess, Response, within

PAGE = Path(__file__).parents[3] / "docs" / "security.md"
WORDS = {"yes", "nothing", "no", "auth"}


def tables(page: str) -> list[dict[tuple[str, str], str]]:
    """The answers of each table, by who asks and what for."""
    found = []
    for block in re.findall(r"^\| who \|.*\n(?:\|.*\n)+", page, re.MULTILINE):
        head, _, *rows = [re.split(r" *\| *", line)[1:-1] for line in block.splitlines()]
        found.append(
            {
                (row[0], operation.strip("`")): answer
                for row in rows
                for operation, answer in zip(head[1:], row[1:], strict=True)
            }
        )
    return found


OWNED, UNOWNED = tables(PAGE.read_text())
NOBODY = "nobody: no token yet"


@frozen
class Scene:
    """A stream, and everybody who may want something of it."""

    relay: RelayProcess
    accounts: Accounts
    stream_id: str
    spare_id: str
    """Of the same owner, who is not there."""
    phone: Peer | None
    tokens: dict[str, str | None] = field(repr=False)

    def login(self, who: str) -> AbstractAsyncContextManager[Peer]:
        token = self.tokens[who]
        assert token is not None
        return login(self.relay, token)

    async def publish(self) -> None:
        """Something to see comes from the owner."""
        if self.phone is not None:
            await self.phone.send_frame(b"a picture")
            await self.alert()

    @property
    def warning(self) -> Message:
        """An alert of the stream."""
        return {"type": "alert", "streamId": self.stream_id, "severity": "low", "message": "m"}

    async def alert(self) -> None:
        if self.phone is not None:
            assert (await self.phone.ask(self.warning))["code"] == "ALERT_ACCEPTED"
            await self.phone.receive_type("alert")


@asynccontextmanager
async def scene(relay: RelayProcess, accounts: Accounts, *, owned: bool) -> AsyncIterator[Scene]:
    stream_id, spare_id = new_stream_id(), new_stream_id()
    names = ["owner", "guest", "guest of all", "guest elsewhere", "stranger"]
    names += ["guest of a prefix", "guest of a longer prefix"]
    people = [f"{name} of {stream_id}" for name in names]
    owner, guest, guest_of_all, elsewhere, stranger, of_prefix, of_longer = accounts.sessions(
        people
    )
    prefix, longer = f"{stream_id[:-1]}*", f"{stream_id}-*"
    granted = ((1, stream_id), (1, spare_id), (2, "*"), (3, "another"), (5, prefix), (6, longer))
    for user, granted_id in granted:
        accounts.execute("insert into relay.grants values (%s, %s)", people[user], granted_id)

    def produces(user_id: str, *streams: str) -> str:
        return accounts.service(alerts=False, produce=streams, user_id=user_id)

    tokens = {
        "its owner": owner,
        "a user with a grant for it": guest,
        "a user with a grant for `*`": guest_of_all,
        "a user with a grant for a prefix of it": of_prefix,
        "a user with a grant for another": elsewhere,
        "a user with a grant for a longer prefix": of_longer,
        "any other user": stranger,
        "a service that watches it": accounts.service(stream_id, alerts=False),
        "a service that watches it and alerts": accounts.service(stream_id),
        "a service that watches `*` and alerts": accounts.service("*"),
        "a service that watches a prefix of it and alerts": accounts.service(prefix),
        "a service that watches another and alerts": accounts.service("another"),
        "a service that watches a longer prefix and alerts": accounts.service(longer),
        "a service that alerts and watches none": accounts.service(),
        "a service that produces it for its owner": produces(people[0], stream_id, spare_id),
        "a service that produces `*` for its owner": produces(people[0], "*"),
        "a service that produces a prefix of it for its owner": produces(
            people[0], prefix, f"{spare_id[:-1]}*"
        ),
        "a service that produces another for its owner": produces(people[0], "another", longer),
        "a service that produces it for another user": produces(people[4], stream_id, spare_id),
        "a service that operates": accounts.service(alerts=False, operate=True),
        NOBODY: None,
    }
    if not owned:
        yield Scene(relay, accounts, stream_id, spare_id, None, tokens)
        return
    accounts.execute("insert into relay.streams values (%s, %s)", spare_id, people[0])
    async with login(relay, owner) as phone:
        await phone.register(stream_id)
        made = Scene(relay, accounts, stream_id, spare_id, phone, tokens)
        await made.publish()
        yield made


# -- the operations, each with the word for its outcome


def word(reply: Message, *, seen: bool = True) -> str:
    match reply:
        case {"type": "success"}:
            return "yes" if seen else "nothing"
        case {"code": "UNAUTHORIZED"}:
            return "no"
        case {"code": "AUTH_REQUIRED"}:
            return "auth"
    raise AssertionError(reply)


async def register(scene: Scene, peer: Peer) -> str:
    return word(await peer.ask({"type": "register", "streamId": scene.spare_id}))


async def subscribe(scene: Scene, peer: Peer, kind: str) -> tuple[Message, bool]:
    """The reply, and whether something of this kind came, and nothing of another."""
    request = {"type": "subscribe", "streamId": scene.stream_id, "consumes": [kind]}
    reply = await peer.ask(request)
    await scene.publish()
    await peer.ask({"type": "streams"})
    came = {each["type"] for each in peer.passed_over} & {"video-frame", "alert"}
    assert came <= {kind}
    return reply, bool(came)


async def frames(scene: Scene, peer: Peer) -> str:
    reply, seen = await subscribe(scene, peer, "video-frame")
    if reply["type"] == "success":
        assert seen == bool(reply["epoch"])
    return word(reply, seen=seen)


async def alerts(scene: Scene, peer: Peer) -> str:
    reply, seen = await subscribe(scene, peer, "alert")
    return word(reply, seen=seen)


async def alerts_since(scene: Scene, peer: Peer) -> str:
    replies = []
    for scope in ({"streamId": scene.stream_id}, {}):
        reply = await peer.ask({"type": "alerts-since", "last": 1000, **scope})
        seen = [each for each in peer.passed_over if each.get("streamId") == scene.stream_id]
        replies.append(word(reply, seen=bool(seen)))
        peer.passed_over.clear()
    assert len(set(replies)) == 1
    return replies[0]


async def streams(scene: Scene, peer: Peer) -> str:
    reply = await peer.ask({"type": "streams"})
    return word(reply, seen=scene.stream_id in listed(reply))


def listed(reply: Any) -> set[str]:
    return {each["streamId"] for each in reply.get("streams", ())}


async def alert(scene: Scene, peer: Peer) -> str:
    return word(await peer.ask(scene.warning))


OVER_WEBSOCKET: dict[str, Callable[[Scene, Peer], Awaitable[str]]] = {
    "register": register,
    "frames": frames,
    "alerts": alerts,
    "alerts-since": alerts_since,
    "streams": streams,
    "alert": alert,
}


def http_word(answer: Response, *, seen: bool = True) -> str:
    if answer.status == 200:
        return "yes" if seen else "nothing"
    code = {401: "AUTH_REQUIRED", 403: "UNAUTHORIZED"}[answer.status]
    assert answer.json()["error"]["code"] == code
    return {401: "auth", 403: "no"}[answer.status]


async def over_http(scene: Scene, token: str | None, operation: str) -> str:
    method, path = operation.split()
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    body = None
    if method == "POST":
        sent = {"streamId": scene.stream_id, "severity": "low", "message": "m"}
        body = json.dumps(sent).encode()
    query = f"?streamId={scene.stream_id}" if operation == "GET /alerts" else ""
    answer = await scene.relay.get(path + query, method, headers=headers, body=body)
    seen = True
    if answer.status == 200 and operation == "GET /streams":
        seen = scene.stream_id in listed(answer.json())
    if answer.status == 200 and operation == "GET /alerts":
        seen = bool(answer.json()["alerts"])
    return http_word(answer, seen=seen)


async def answers_to(scene: Scene, who: str) -> dict[str, str]:
    """What somebody gets, by operation."""
    token, found = scene.tokens[who], {}
    for name, ask in OVER_WEBSOCKET.items():
        async with open_peer(scene.relay) as peer:
            if token is not None:
                assert (await peer.authenticate(token))["code"] == "AUTHENTICATED"
            found[name] = await ask(scene, peer)
    for name in ("GET /streams", "GET /alerts", "POST /alerts", "GET /figures"):
        found[name] = await over_http(scene, token, name)
    return found


@pytest.mark.parametrize("who", dict.fromkeys(who for who, _ in OWNED))
async def test_the_table_of_streams_that_somebody_owns(
    relay: RelayProcess, accounts: Accounts, who: str
) -> None:
    async with scene(relay, accounts, owned=True) as made:
        expected = {name: answer for (each, name), answer in OWNED.items() if each == who}
        assert await answers_to(made, who) == expected


@pytest.mark.parametrize("who", dict.fromkeys(who for who, _ in UNOWNED))
async def test_the_table_of_ids_that_nobody_has_registered(
    relay: RelayProcess, accounts: Accounts, who: str
) -> None:
    async with scene(relay, accounts, owned=False) as made:
        expected = {name: answer for (each, name), answer in UNOWNED.items() if each == who}
        assert await answers_to(made, who) == expected


async def test_the_tables_are_whole(relay: RelayProcess, accounts: Accounts) -> None:
    async with scene(relay, accounts, owned=False) as made:
        assert {who for who, _ in OWNED} == set(made.tokens)
    assert {who for who, _ in UNOWNED} < set(made.tokens)
    assert set(OWNED.values()) | set(UNOWNED.values()) == WORDS


# -- what changes meanwhile


async def test_who_subscribed_before_the_owner_registered_sees_what_is_allowed_then(
    relay: RelayProcess, accounts: Accounts
) -> None:
    async with (
        scene(relay, accounts, owned=False) as made,
        made.login("a user with a grant for it") as guest,
        made.login("any other user") as stranger,
        made.login("its owner") as phone,
    ):
        for peer in (guest, stranger):
            await peer.subscribe(made.stream_id)
        await phone.register(made.stream_id)
        await phone.send_frame(b"a picture")
        await phone.ask(made.warning)
        assert (await guest.receive_type("video-frame"))["seq"] == 1
        assert (await guest.receive_type("alert"))["message"] == "m"
        await stranger.ask({"type": "streams"})
        assert not stranger.passed_over


async def test_a_grant_that_is_withdrawn_while_watching_ends_frames_alerts_and_statuses(
    relay: RelayProcess, accounts: Accounts
) -> None:
    async with (
        scene(relay, accounts, owned=True) as made,
        made.login("a user with a grant for it") as peer,
    ):
        await peer.ask({"type": "streams"})
        await peer.subscribe(made.stream_id)
        await peer.receive_type("video-frame")
        accounts.execute("delete from relay.grants where stream_id = %s", made.stream_id)
        async with within(1):
            status = await peer.receive_type("status")
        assert (status["epoch"], status["status"]) == (0, "offline")
        await made.publish()
        reply = await peer.ask({"type": "alerts-since"})
        assert reply["code"] == "ALERTS_REPLAYED"
        assert made.stream_id not in listed(await peer.ask({"type": "streams"}))
        assert not peer.passed_over


async def test_a_grant_for_all_reaches_who_asked_for_the_list(
    relay: RelayProcess, accounts: Accounts
) -> None:
    async with scene(relay, accounts, owned=True) as made, made.login("any other user") as peer:
        assert made.stream_id not in listed(await peer.ask({"type": "streams"}))
        user_id = f"stranger of {made.stream_id}"
        accounts.execute("insert into relay.grants values (%s, '*')", user_id)
        async with within(1):
            while (status := await peer.receive())["streamId"] != made.stream_id:
                pass
        assert status["status"] == "streaming"


async def test_a_guessed_id_is_answered_like_one_that_is_there(
    relay: RelayProcess, accounts: Accounts
) -> None:
    async with scene(relay, accounts, owned=True) as made, made.login("any other user") as peer:
        told = []
        for stream_id in (made.stream_id, new_stream_id()):
            asked = {"streamId": stream_id}
            replies = [
                await peer.ask({"type": "subscribe", "consumes": ["alert"], **asked}),
                await peer.receive(),
                await peer.ask({"type": "alert", "severity": "low", "message": "m", **asked}),
                await peer.ask({"type": "alerts-since", **asked}),
            ]
            told.append(
                [
                    {k: v for k, v in each.items() if k not in {"id", "timestamp", "streamId"}}
                    for each in replies
                ]
            )
        assert told[0] == told[1]
