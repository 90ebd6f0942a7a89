"""The least server that a load test can be run against, to see how fast the generator is. Floor 6.

It lets everybody in, throws away what phones send, and gives every viewer frames as fast as it
takes them. It is started by the self-test, which says on stdin what it needs to know.
"""

from __future__ import annotations

import base64
import hashlib
import selectors
import socket
import sys
import time
from contextlib import suppress

import msgspec
from attrs import define, field, frozen

from relay.load.content import Mark, seal
from relay.transport import wire
from relay.transport.splice import Splicer

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
READ_SIZE = 256 * 1024
MOST = 1 << 20


@frozen
class Plan:
    run: str
    start: float
    """By the machine's monotonic clock."""
    size: int
    """Bytes of a frame."""
    rate: float
    """Frames a second for each viewer; 0 is as fast as it goes."""


class Said(msgspec.Struct, rename="camel"):
    type: str
    id: int = 0
    stream_id: str = ""


@define(eq=False)
class Client:
    socket: socket.socket
    splicer: Splicer | None = None
    """None before the upgrade."""
    msgpack: bool = False
    watches: str | None = None
    head: bytearray = field(factory=bytearray)
    tail: memoryview = field(factory=lambda: memoryview(b""))


def main() -> None:
    plan = msgspec.json.decode(sys.stdin.readline(), type=Plan)
    server = socket.create_server(("127.0.0.1", 0), backlog=4096)
    server.setblocking(False)  # noqa: FBT003 (it has no name for it)
    sys.stdout.write(f"{server.getsockname()[1]}\n")
    sys.stdout.flush()
    with server, selectors.DefaultSelector() as selector:
        selector.register(server, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        serve(plan, server, selector)


def serve(plan: Plan, server: socket.socket, selector: selectors.BaseSelector) -> None:
    """Until stdin ends."""
    viewers: dict[Client, None] = {}
    number = 0
    while True:
        pause = 0.001 if viewers else None
        for key, _ in selector.select(pause if plan.rate else (0 if viewers else None)):
            if key.fileobj is sys.stdin:
                return
            if key.fileobj is server:
                with suppress(BlockingIOError):
                    for _ in range(256):
                        accepted, _ = server.accept()
                        accepted.setblocking(False)  # noqa: FBT003 (it has no name for it)
                        selector.register(accepted, selectors.EVENT_READ, Client(accepted))
                continue
            client: Client = key.data
            try:
                hear(client)
            except (OSError, EOFError, msgspec.DecodeError):
                selector.unregister(client.socket)
                client.socket.close()
                viewers.pop(client, None)
            else:
                if client.watches:
                    viewers[client] = None
        elapsed = time.monotonic() - plan.start
        if viewers and (not plan.rate or elapsed * plan.rate >= number):
            number = max(number + 1, int(elapsed * plan.rate)) if plan.rate else number + 1
            give(plan, viewers, number, elapsed)


def give(plan: Plan, viewers: dict[Client, None], number: int, elapsed: float) -> None:
    """A new frame for all that have taken the one before."""
    frames: dict[str, memoryview] = {}
    for client in viewers:
        stream = client.watches
        assert stream is not None
        if not client.tail:
            frame = frames.get(stream)
            if frame is None:
                mark = Mark(plan.run.encode(), int(stream.rpartition("-")[2]), 1, number, elapsed)
                data = seal(bytes(max(0, plan.size - 38)), mark)
                message = {"type": "video-frame", "streamId": stream, "seq": number, "data": data}
                frame = memoryview(wire.frame(wire.BINARY, msgspec.msgpack.encode(message)))
                frames[stream] = frame
            client.tail = frame
        with suppress(BlockingIOError, OSError):
            client.tail = client.tail[client.socket.send(client.tail) :]


def hear(client: Client) -> None:
    data = client.socket.recv(READ_SIZE)
    if not data:
        raise EOFError
    if client.splicer is None:
        client.head += data
        if b"\r\n\r\n" in client.head:
            upgrade(client)
        return
    view = memoryview(data)
    while view:
        if client.splicer.missing is not None:
            count = min(len(client.splicer.missing), len(view))
            client.splicer.missing[:count] = view[:count]
            view = view[count:]
            whole = client.splicer.filled(count)
            if whole:
                messages, _ = client.splicer.feed(memoryview(whole))
            else:
                continue
        else:
            messages, view = client.splicer.feed(view)
        for message in messages:
            answer(client, message.payload)
        if client.splicer.deaf:
            raise EOFError


def upgrade(client: Client) -> None:
    lines = bytes(client.head).split(b"\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in lines[1:] if b": " in line)
    key = next(
        line.split(b": ", 1)[1] for line in lines if line.lower().startswith(b"sec-websocket-key")
    )
    accept = base64.b64encode(hashlib.sha1(key + GUID, usedforsecurity=False).digest())
    reply = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    reply += b"Sec-WebSocket-Accept: " + accept + b"\r\n"
    if offered := fields.get(b"sec-websocket-protocol"):
        client.msgpack = True
        reply += b"Sec-WebSocket-Protocol: " + offered + b"\r\n"
    client.socket.send(reply + b"\r\n")
    client.splicer = Splicer(MOST)


def answer(client: Client, payload: bytes) -> None:
    decode = msgspec.msgpack.decode if client.msgpack else msgspec.json.decode
    encode = msgspec.msgpack.encode if client.msgpack else msgspec.json.encode
    said = decode(payload, type=Said)
    if said.type in {"auth", "register", "subscribe"}:
        reply = encode({"type": "success", "id": said.id, "code": "OK", "message": ""})
        client.socket.send(wire.frame(wire.BINARY if client.msgpack else wire.TEXT, reply))
    if said.type == "subscribe":
        client.watches = said.stream_id


if __name__ == "__main__":
    main()
