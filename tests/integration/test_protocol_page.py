"""docs/protocol.md says what the relay does: its conversation is held, its tables are compared."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, get_args

import jsonschema
import msgpack
import msgspec
import pytest
import trio
from attrs import define, field, frozen
from websockets.exceptions import ConnectionClosed
from websockets.trio.client import ClientConnection

from relay.closing import Ending
from relay.protocol.messages import ClientMessage, ErrorCode, ServerMessage
from relay.protocol.schema import message_schema
from tests.integration.accounts import Accounts
from tests.integration.peers import open_peer
from tests.integration.relay_process import PATIENCE, RelayProcess, start_relay

PAGE = Path(__file__).parents[2] / "docs" / "protocol.md"
VALID = jsonschema.Draft202012Validator(message_schema())

STEP = re.compile(r"(\w+) +(->|<-|opens|stops) ?(.*(?:\n +.*)*)")
VARIES = {"sessionId", "expiresAt", "epoch", "alertId"}
"""Fields that are made up by the server, and stay what they are within a conversation."""
REFERS = {"after": "alertId"}
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
    sockets: dict[str, ClientConnection] = field(factory=dict)
    _facts: dict[tuple[str, Any], Any] = field(factory=dict)

    async def open(self, stack: AsyncExitStack, relay: RelayProcess, step: Step) -> None:
        speaks_msgpack = self.msgpack_speakers
        if speaks_msgpack is None:
            speaks_msgpack = len(self.sockets) % 2 == 1
        options = {"subprotocols": ["relay.v1.msgpack"]} if speaks_msgpack else {}
        peer = await stack.enter_async_context(open_peer(relay, step.content, **options))
        self.sockets[step.actor] = peer.socket

    async def send(self, step: Step) -> None:
        socket, message = self.sockets[step.actor], step.message
        if message["type"] != "subscribed":  # which the page shows as a mistake
            message = {name: self._fact(name, value) for name, value in message.items()}
        if "token" in message:
            message["token"] = self.tokens.get(message["token"], message["token"])
        if socket.subprotocol is None:
            await socket.send(json.dumps(message))
            return
        if "data" in message:
            message["data"] = msgspec.json.decode(json.dumps(message["data"]), type=bytes)
        await socket.send(msgpack.packb(message))

    async def expect(self, step: Step) -> None:
        socket = self.sockets[step.actor]
        with trio.fail_after(PATIENCE):
            if step.content.startswith("close "):
                with pytest.raises(ConnectionClosed):
                    await socket.recv()
                assert f"close {socket.close_code} {socket.close_reason}" == step.content
                return
            received = await socket.recv()
        if isinstance(received, bytes):
            heard = msgpack.unpackb(received)
            if "data" in heard:
                heard["data"] = json.loads(msgspec.json.encode(heard["data"]))
        else:
            heard = json.loads(received)
        told = step.message
        for name in CLOCK & told.keys():
            assert isinstance(heard[name], int)
            told[name] = heard[name]
        for name in VARIES & told.keys():
            told[name] = self._facts.setdefault((name, told[name]), heard.get(name))
        assert heard == told

    async def expect_silence(self, actor: str) -> None:
        """Nothing came that the page does not show."""
        socket = self.sockets[actor]
        nothing = {"type": "unsubscribe", "streamId": "unheard-of", "id": "the end"}
        text = socket.subprotocol is None
        await socket.send(json.dumps(nothing) if text else msgpack.packb(nothing))
        with trio.fail_after(PATIENCE):
            received = await socket.recv()
        heard = json.loads(received) if text else msgpack.unpackb(received)
        assert heard.get("id") == "the end", heard

    def _fact(self, name: str, value: Any) -> Any:
        if isinstance(value, list | dict):
            return value
        return self._facts.get((REFERS.get(name, name), value), value)


@pytest.mark.parametrize("msgpack_speakers", [False, True, None], ids=["json", "msgpack", "mixed"])
async def test_the_conversation_on_the_page_is_held(
    postgres_url: str, msgpack_speakers: bool | None
) -> None:
    accounts = Accounts(postgres_url)
    ann = accounts.session("ann")
    tokens = {
        "token-of-ann": ann,
        "token-of-bob": accounts.session("bob"),
        "token-of-a-service": accounts.service("*"),
    }
    talk = Conversation(tokens, msgpack_speakers)
    with start_relay(database_url=postgres_url) as relay:
        async with AsyncExitStack() as stack:
            for step in CONVERSATION:
                match step.action:
                    case "opens":
                        await talk.open(stack, relay, step)
                    case "->":
                        await talk.send(step)
                    case "<-":
                        await talk.expect(step)
                    case "stops":
                        for actor, socket in talk.sockets.items():
                            if socket.close_code is None:
                                await talk.expect_silence(actor)
                        relay.signal(signal.SIGTERM)
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
