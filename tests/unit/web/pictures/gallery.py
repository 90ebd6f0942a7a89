"""A relay in memory that answers with pictures, and clients that ask it for them."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import trio
from attrs import define, field

from relay.auth.links import LinkVerifier
from relay.hub.stream_page import StreamLists
from relay.model.access.change import Change
from relay.model.access.identity import User
from relay.model.access.link import LINK_PREFIX, NewLink, PictureLink
from relay.web.api import Api
from relay.web.app import make_app
from relay.web.http import HttpServer
from relay.web.pictures.alert_pictures import KeptWithAlerts
from relay.web.pictures.setup import Pictures
from tests.unit.memory import Client, MemoryRelay, link_pair
from tests.unit.memory.link import SIZE, MemoryLink
from tests.unit.memory.renderer import jpeg
from tests.unit.memory.verifier import ANN

NOT_USED: Any = None


def open_gallery(
    relay: MemoryRelay,
    links: MemoryLinks | None = None,
    *,
    kept: KeptWithAlerts | None = None,
) -> MemoryLinks:
    """Let a relay answer plain requests for pictures, and for what is kept with alerts; returns its
    links."""
    links = links or MemoryLinks(relay)
    relay.watch._links = links
    api = Api(
        relay.make_login(),
        relay.hub,
        StreamLists(relay.hub, None),
        NOT_USED,
        NOT_USED,
        relay.guard.session_limits,
        relay.audit,
        relay.metrics,
        lambda _change: 0,
    )
    login = relay.make_login(LinkVerifier(links))
    pictures = Pictures.build(
        api, relay.session_context(), 60.0, cast("Any", links), login, kept=kept
    )
    nobody = cast("Any", _Anything())
    app = make_app(nobody, nobody, api, nobody, pictures=pictures, push=nobody)
    relay.http = HttpServer(app)
    return links


@define(eq=False)
class MemoryLinks:
    """Links in a dictionary, by their capabilities."""

    relay: MemoryRelay
    made: dict[str, PictureLink] = field(factory=dict)
    deleted: set[str] = field(factory=set)
    """Users."""
    readers: list[str] = field(factory=list)
    """Of MJPEG on all relays: the id of the link of each."""
    kept: int = 0

    async def make(
        self, link: NewLink, user_id: str, *, by_session: bool
    ) -> tuple[PictureLink, str]:
        await trio.lowlevel.checkpoint()
        assert by_session
        number = len(self.made)
        until = datetime.now(UTC) + timedelta(seconds=link.seconds)
        made = PictureLink(
            f"id{number}", link.stream_id, link.purpose, user_id, link.readers, until, link.seconds
        )
        capability = f"{LINK_PREFIX}{number:022}"
        self.made[capability] = made
        return made, capability

    async def find(self, capability: str) -> User | None:
        await trio.lowlevel.checkpoint()
        link = self.made.get(capability)
        return None if link is None or link.made_by in self.deleted else self._maker(link)

    async def read(self, link_ids: Any) -> dict[str, User]:
        await trio.lowlevel.checkpoint()
        return {
            each.link_id: self._maker(each)
            for each in self.made.values()
            if each.link_id in link_ids and each.made_by not in self.deleted
        }

    async def all(self, user_id: str | None = None) -> list[PictureLink]:
        await trio.lowlevel.checkpoint()
        return [each for each in self.made.values() if user_id in {None, each.made_by}]

    async def revoke(self, link_id: str, *, user_id: str | None = None) -> bool:
        await trio.lowlevel.checkpoint()
        mine = [
            capability
            for capability, each in self.made.items()
            if each.link_id == link_id and user_id in {None, each.made_by}
        ]
        for capability in mine:
            del self.made[capability]
            self.relay.change_feed.tell(Change("link", link_id))
        return bool(mine)

    async def enter(self, link: PictureLink) -> str | None:
        await trio.lowlevel.checkpoint()
        if self.readers.count(link.link_id) >= link.readers:
            return None
        self.readers.append(link.link_id)
        return link.link_id

    async def keep(self, link: PictureLink, reader_id: str) -> None:
        await trio.lowlevel.checkpoint()
        self.kept += 1

    async def leave(self, reader_id: str) -> None:
        await trio.lowlevel.checkpoint()
        self.readers.remove(reader_id)

    def _maker(self, link: PictureLink) -> User:
        granted = self.relay.verifier.grants.get(link.made_by, frozenset())
        left = (link.expires_at - datetime.now(UTC)).total_seconds()
        return User(
            link.made_by,
            f"link-{link.link_id}",
            link.expires_at,
            granted,
            source="link",
            remaining=left,
            link=link,
        )


class _Anything:
    """Stands for what no test here asks for."""

    def __getattr__(self, name: str) -> Any:
        async def endpoint(_request: Any) -> Any:
            raise AssertionError(name)

        return endpoint


@define(eq=False)
class Browser:
    """A client that has sent a request over plain HTTP, and reads the answer."""

    link: MemoryLink
    received: bytearray = field(factory=bytearray)
    status: int = 0
    headers: dict[str, str] = field(factory=dict)

    async def read(self) -> bytes:
        """Some bytes; none at the end."""
        await self.link.wait_readable()
        buffer = memoryview(bytearray(SIZE))
        data = bytes(buffer[: self.link.recv_into(buffer)])
        self.received += data
        return data

    async def head(self) -> int:
        """Read the head of the answer; returns the status."""
        while b"\r\n\r\n" not in self.received:
            assert await self.read(), bytes(self.received)
        head, _, rest = bytes(self.received).partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        self.status = int(first.split()[1])
        pairs = (line.partition(": ") for line in lines)
        self.headers = {name.lower(): value for name, _, value in pairs}
        self.received = bytearray(rest)
        return self.status

    async def body(self) -> bytes:
        """The rest of the answer, up to its end."""
        while await self.read():
            pass
        return bytes(self.received)

    async def part(self) -> tuple[dict[str, str], bytes]:
        """The next part of an answer in parts: its headers and its picture."""
        boundary = b"--" + self.headers["content-type"].partition("boundary=")[2].encode()
        while b"\r\n\r\n" not in self.received:
            assert await self.read(), "the answer has ended"
        head, _, _ = bytes(self.received).partition(b"\r\n\r\n")
        before, *lines = [line for line in head.split(b"\r\n") if line]
        if before == boundary:
            found = dict(line.decode().split(": ", 1) for line in lines)
        else:
            found = dict(line.decode().split(": ", 1) for line in [before, *lines])
        size = int(found["Content-Length"])
        end = len(head) + 4 + size + 2 + len(boundary) + 2
        while len(self.received) < end:
            assert await self.read(), "the answer was cut"
        picture = bytes(self.received[len(head) + 4 :][:size])
        assert bytes(self.received[end - len(boundary) - 4 : end]) == b"\r\n" + boundary + b"\r\n"
        del self.received[:end]
        return found, picture

    def leave(self) -> None:
        self.link.close()


def request(
    relay: MemoryRelay,
    path: str = "/streams/front-door/latest.jpg",
    *,
    token: str | None = ANN,
    method: str = "GET",
    capacity: int = SIZE,
    body: Any = None,
    **headers: str,
) -> Browser:
    """Send a request."""
    server_end, client_end = link_pair(capacity)
    server_end.peer = "192.0.2.7:50000"
    lines = [f"{method} {path} HTTP/1.1", "Host: relay"]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    content = b"" if body is None else json.dumps(body).encode()
    if content:
        lines.append(f"Content-Length: {len(content)}")
    client_end.send(("\r\n".join([*lines, "", ""])).encode() + content)
    relay.accept(server_end)
    return Browser(client_end)


async def answer(
    relay: MemoryRelay, path: str = "/streams/front-door/latest.jpg", **options: Any
) -> Browser:
    """The head of the answer to a request."""
    browser = request(relay, path, **options)
    await browser.head()
    return browser


def picture(number: int = 0, size: int = 200, width: int = 1280) -> bytes:
    """A JPEG, as far as its header goes."""
    # Real ones have an application segment behind the start; this is one with a number.
    return b"\xff\xd8\xff\xe0\x00\x04" + number.to_bytes(2, "big") + jpeg(width, 720, size)[2:]


async def send_picture(phone: Client, data: bytes, **options: Any) -> None:
    """Send a frame, and wait until it was accepted."""
    content: Any = data if phone.msgpack else base64.b64encode(data).decode()
    await phone.send({"type": "video-frame", "streamId": "front-door", "data": content, **options})
    await trio.testing.wait_all_tasks_blocked()
