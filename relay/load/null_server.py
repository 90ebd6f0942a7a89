"""A server that does as little as possible, to measure the speed of the generator.

It accepts everybody, discards what phones send, and sends frames to each viewer as fast as the
viewer takes them. The self-test starts it and writes a `NullServerPlan` to its stdin.
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

from relay.load.measures.reconciliation.integrity import MARK_SIZE, FrameMark, append_mark
from relay.transport import wire
from relay.transport.framing.frame_parser import FrameParser

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
NULL_SERVER_READ_BYTES = 256 * 1024
MAX_REQUEST_BYTES = 1 << 20


@frozen
class NullServerPlan:
    run: str
    start: float
    """By the machine's monotonic clock."""
    size: int
    """Bytes of a frame."""
    rate: float
    """Frames per second for each viewer; 0 for as fast as possible."""


class ClientRequest(msgspec.Struct, rename="camel"):
    type: str
    id: int = 0
    stream_id: str = ""


@define(eq=False)
class ServedClient:
    """A connection and what is half read or half sent on it."""

    socket: socket.socket
    parser: FrameParser | None = None
    """None before the upgrade."""
    msgpack: bool = False
    stream: str | None = None
    head: bytearray = field(factory=bytearray)
    tail: memoryview = field(factory=lambda: memoryview(b""))


def main() -> None:
    plan = msgspec.json.decode(sys.stdin.readline(), type=NullServerPlan)
    server = socket.create_server(("127.0.0.1", 0), backlog=4096)
    server.setblocking(False)  # noqa: FBT003 (positional only)
    sys.stdout.write(f"{server.getsockname()[1]}\n")
    sys.stdout.flush()
    with server, selectors.DefaultSelector() as selector:
        selector.register(server, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        serve(plan, server, selector)


def serve(plan: NullServerPlan, server: socket.socket, selector: selectors.BaseSelector) -> None:
    """Serve until stdin ends."""
    viewers: dict[ServedClient, None] = {}
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
                        accepted.setblocking(False)  # noqa: FBT003 (positional only)
                        selector.register(accepted, selectors.EVENT_READ, ServedClient(accepted))
                continue
            client: ServedClient = key.data
            try:
                receive(client)
            except (OSError, EOFError, msgspec.DecodeError):
                selector.unregister(client.socket)
                client.socket.close()
                viewers.pop(client, None)
            else:
                if client.stream:
                    viewers[client] = None
        elapsed = time.monotonic() - plan.start
        if viewers and (not plan.rate or elapsed * plan.rate >= number):
            number = max(number + 1, int(elapsed * plan.rate)) if plan.rate else number + 1
            send_frame(plan, viewers, number, elapsed)


def send_frame(
    plan: NullServerPlan, viewers: dict[ServedClient, None], number: int, elapsed: float
) -> None:
    """Send a new frame to all viewers that have taken the one before."""
    frames: dict[str, memoryview] = {}
    for client in viewers:
        stream = client.stream
        assert stream is not None
        if not client.tail:
            frame = frames.get(stream)
            if frame is None:
                mark = FrameMark(
                    plan.run.encode(), int(stream.rpartition("-")[2]), 1, number, elapsed
                )
                data = append_mark(bytes(max(0, plan.size - MARK_SIZE)), mark)
                message = {"type": "video-frame", "streamId": stream, "seq": number, "data": data}
                frame = memoryview(wire.frame(wire.BINARY, msgspec.msgpack.encode(message)))
                frames[stream] = frame
            client.tail = frame
        with suppress(BlockingIOError, OSError):
            client.tail = client.tail[client.socket.send(client.tail) :]


def receive(client: ServedClient) -> None:
    data = client.socket.recv(NULL_SERVER_READ_BYTES)
    if not data:
        raise EOFError
    if client.parser is None:
        client.head += data
        if b"\r\n\r\n" in client.head:
            upgrade(client)
        return
    view = memoryview(data)
    while view:
        missing = client.parser.missing
        if missing is None:
            parsed = client.parser.feed(view)
            view = parsed.rest
        else:
            count = min(len(missing), len(view))
            missing[:count] = view[:count]
            view = view[count:]
            parsed = client.parser.fill(count)
        for message in parsed.messages:
            reply(client, message.payload)
        if client.parser.stopped:
            raise EOFError


def upgrade(client: ServedClient) -> None:
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
    client.parser = FrameParser(MAX_REQUEST_BYTES)


def reply(client: ServedClient, payload: bytes) -> None:
    decode = msgspec.msgpack.decode if client.msgpack else msgspec.json.decode
    encode = msgspec.msgpack.encode if client.msgpack else msgspec.json.encode
    request = decode(payload, type=ClientRequest)
    if request.type in {"auth", "register", "subscribe"}:
        reply = encode({"type": "success", "id": request.id, "code": "OK", "message": ""})
        client.socket.send(wire.frame(wire.BINARY if client.msgpack else wire.TEXT, reply))
    if request.type == "subscribe":
        client.stream = request.stream_id


if __name__ == "__main__":
    main()
