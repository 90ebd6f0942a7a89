"""docs/protocol.md says what the relay does: its conversation is held, its tables are compared."""

from __future__ import annotations

import base64
import json
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
from attrs import define, field, frozen
from websockets.exceptions import ConnectionClosed

from relay.protocol.endings import Ending
from relay.protocol.messages import ClientMessage, ErrorCode, ServerMessage
from relay.protocol.schema import message_schema
from tests.integration.accounts import Accounts
from tests.integration.cluster.scene import CLUSTER
from tests.integration.peers import Peer, open_peer
from tests.integration.relay_process import RelayProcess, start_relay

PAGE = Path(__file__).parents[3] / "docs" / "protocol.md"
VALID = jsonschema.Draft202012Validator(message_schema())

ENDS_SOON = ("--offline-grace", "1")
"""A node outlives its streams."""
STEP = re.compile(r"(\w+) +(->|<-|opens|stops|signs-out) ?(.*(?:\n +.*)*)")
VARIES = {"sessionId", "expiresAt", "epoch", "alertId"}
"""Fields that are made up by the server, and stay what they are within a conversation."""
REFERS = {"after": "alertId", "alertsAfter": "alertId"}
CLOCK = {"timestamp", "receivedAt", "retryAfter"}


@frozen
class Step:
    """One line of a transcript."""

    actor: str
    action: str
    content: str

    @property
    def message(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self.content)
        return message


def steps(page: str) -> Iterator[Step]:
    for block in re.findall(r"^```transcript\n(.*?)^```$", page, re.DOTALL | re.MULTILINE):
        position = 0
        while position < len(block):
            if block[position] == "\n":
                position += 1
                continue
            step = STEP.match(block, position)
            assert step, f"no step of a transcript: {block[position : position + 80]!r}"
            yield Step(*step.groups())
            position = step.end()


CONVERSATION = [*steps(PAGE.read_text())]


@define(eq=False)
class Conversation:
    """What stands on the page beside what is said in fact."""

    tokens: dict[str, str]
    msgpack_speakers: bool | None
    """None: every other actor."""
    peers: dict[str, Peer] = field(factory=dict)
    _facts: dict[tuple[str, Any], Any] = field(factory=dict)

    async def open(self, stack: AsyncExitStack, relay: RelayProcess, step: Step) -> None:
        msgpack = self.msgpack_speakers
        if msgpack is None:
            msgpack = len(self.peers) % 2 == 1
        peer = await stack.enter_async_context(open_peer(relay, step.content, msgpack=msgpack))
        self.peers[step.actor] = peer

    async def send(self, step: Step) -> None:
        peer, message = self.peers[step.actor], step.message
        if message["type"] != "subscribed":  # which the page shows as a mistake
            message = {name: self._fact(name, value) for name, value in message.items()}
        if "token" in message:
            message["token"] = self.tokens.get(message["token"], message["token"])
        if "data" in message and peer.speaks_msgpack:
            message["data"] = base64.b64decode(message["data"])
        await peer.send(message)

    async def expect(self, step: Step) -> None:
        peer = self.peers[step.actor]
        if step.content.startswith("close "):
            with pytest.raises(ConnectionClosed):
                await peer.receive()
            assert f"close {peer.socket.close_code} {peer.socket.close_reason}" == step.content
            return
        heard, told = await peer.receive(), step.message
        if isinstance(heard.get("data"), bytes):
            heard["data"] = base64.b64encode(heard["data"]).decode()
        for name in CLOCK & told.keys():
            assert isinstance(heard[name], int)
            told[name] = heard[name]
        for name in VARIES & told.keys():
            told[name] = self._facts.setdefault((name, told[name]), heard.get(name))
        assert heard == told

    async def expect_silence(self) -> None:
        """Nothing came that the page does not show."""
        for peer in self.peers.values():
            if peer.socket.close_code is None:
                await peer.ask({"type": "unsubscribe", "streamId": "unheard-of"})
                assert not peer.passed_over

    def _fact(self, name: str, value: Any) -> Any:
        if isinstance(value, list | dict):
            return value
        return self._facts.get((REFERS.get(name, name), value), value)


@pytest.mark.parametrize("msgpack_speakers", [False, True, None], ids=["json", "msgpack", "mixed"])
async def test_the_conversation_on_the_page_is_held(
    postgres_url: str, msgpack_speakers: bool | None
) -> None:
    with start_relay(database_url=postgres_url) as relay:
        await hold_conversation(postgres_url, msgpack_speakers, [relay], lambda _actor: relay)


@pytest.mark.parametrize(
    "at_first", [{"phone"}, {"viewer", "again", "back"}], ids=["phone", "others"]
)
@pytest.mark.parametrize("msgpack_speakers", [False, True, None], ids=["json", "msgpack", "mixed"])
async def test_it_is_the_same_with_its_actors_at_two_nodes(
    postgres_url: str, msgpack_speakers: bool | None, at_first: set[str]
) -> None:
    with (
        start_relay(*CLUSTER, *ENDS_SOON, database_url=postgres_url) as first,
        start_relay(*CLUSTER, *ENDS_SOON, database_url=postgres_url) as second,
    ):
        await hold_conversation(
            *(postgres_url, msgpack_speakers, [first, second]),
            lambda actor: first if actor in at_first else second,
        )


async def hold_conversation(
    postgres_url: str,
    msgpack_speakers: bool | None,
    relays: Sequence[RelayProcess],
    relay_of: Callable[[str], RelayProcess],
) -> None:
    accounts = Accounts(postgres_url)
    ann = accounts.session("ann")
    tokens = {
        "token-of-ann": ann,
        "token-of-bob": accounts.session("bob"),
        "token-of-carl": accounts.session("carl", lasts=timedelta(seconds=30)),
        "token-of-a-service": accounts.service("*"),
    }
    talk = Conversation(tokens, msgpack_speakers)
    async with AsyncExitStack() as stack:
        for step in CONVERSATION:
            match step.action:
                case "opens":
                    await talk.open(stack, relay_of(step.actor), step)
                case "->":
                    await talk.send(step)
                case "<-":
                    await talk.expect(step)
                case "signs-out":
                    token = tokens[f"token-of-{step.actor}"]
                    accounts.execute("delete from session where token = %s", token)
                case "stops":
                    await talk.expect_silence()
                    for relay in relays:
                        relay.signal(signal.SIGTERM)
        for relay in relays:
            assert await relay.ended() == 0


def test_the_transcripts_are_valid_messages_but_for_their_mistakes() -> None:
    for step in CONVERSATION:
        if step.content.startswith("{") and step.action == "<-":
            VALID.validate(step.message)
    mistakes = [
        step.message
        for step in CONVERSATION
        if step.action == "->" and not VALID.is_valid(step.message)
    ]
    assert [mistake["id"] for mistake in mistakes] == [5, 6]


@pytest.mark.parametrize(("messages", "action"), [(ClientMessage, "->"), (ServerMessage, "<-")])
def test_every_type_of_message_is_in_a_transcript(messages: Any, action: str) -> None:
    shown = {
        step.message["type"]
        for step in CONVERSATION
        if step.action == action and step.content.startswith("{")
    }
    known = {each.__struct_config__.tag for each in get_args(messages)}
    assert shown - {"subscribed"} == known


def section(heading: str) -> str:
    return PAGE.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]


def test_every_error_code_is_explained() -> None:
    explained = re.findall(r"^\| `(\w+)` \|", section("Errors"), re.MULTILINE)
    assert sorted(explained) == sorted(ErrorCode)


def test_every_close_code_is_explained_with_its_reason() -> None:
    rows = re.findall(r"^\| (\d+) \| `(.+?)` \|", section("Close codes"), re.MULTILINE)
    explained = {(int(code), reason) for code, reason in rows}
    endings = [ending.value for ending in Ending]
    assert explained == {(each.code, each.reason) for each in endings if each.code is not None}


def test_who_may_come_back_is_told_by_the_code() -> None:
    rows = re.findall(r"^\| (\d+) \|.*\| (.+?) \|$", section("Close codes"), re.MULTILINE)
    for code, again in rows:
        if int(code) >= 4000:
            assert (again == "no") == (int(code) >= 4500), code
