"""No server, but the least that Python can do: whoever sends, its bytes go to every subscriber.

A loop of `socket.send`, with nothing decoded or checked, and nobody kept waiting for: what is below
this no Python server can be. The mask is undone in C, as a server has to. A frame that fits a
socket only in part ends that viewer's round with a wait. With `--pings`, a ping follows each
frame, in the same write, and what is answered is read and forgotten.
"""

from __future__ import annotations

import json
import select
import selectors
import socket
import sys
import time
from base64 import b64encode
from collections import defaultdict
from hashlib import sha1

from websockets.speedups import apply_mask

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

BUFFER = memoryview(bytearray(512 * 1024))
CONTROL, PING = 0x08, 0x09
PINGS = "--pings" in sys.argv

audiences: defaultdict[str, list[socket.socket]] = defaultdict(list)


def server_frame(opcode: int, payload: bytes) -> bytes:
    size = len(payload)
    if size < 126:
        return bytes((0x80 | opcode, size)) + payload
    if size < 1 << 16:
        return bytes((0x80 | opcode, 126)) + size.to_bytes(2, "big") + payload
    return bytes((0x80 | opcode, 127)) + size.to_bytes(8, "big") + payload


def extent(data: memoryview) -> tuple[int, int]:
    """Where the payload of a client's frame begins and ends; (0, 0) when that cannot be told."""
    if len(data) < 6:
        return 0, 0
    size, start = data[1] & 127, 6
    if size == 126:
        size, start = int.from_bytes(data[2:4], "big"), 8
    elif size == 127:
        size, start = int.from_bytes(data[2:10], "big"), 14
    return (start, start + size) if len(data) >= start else (0, 0)


class Peer:
    """One connection, from its handshake on."""

    def __init__(self, accepted: socket.socket) -> None:
        self.socket = accepted
        self.rest = b""
        self.upgraded = False
        self.audience: list[socket.socket] | None = None

    def receive(self) -> bool:
        """Read once and answer; whether the connection goes on."""
        kept = len(self.rest)
        BUFFER[:kept] = self.rest
        count = self.socket.recv_into(BUFFER[kept:])
        data = BUFFER[: kept + count]
        if not self.upgraded:
            data = self.upgrade(data)
        while self.upgraded:
            start, end = extent(data)
            if not end or end > len(data):
                break
            self.handle(data[0] & 15, apply_mask(data[start:end], bytes(data[start - 4 : start])))
            data = data[end:]
        self.rest = data.tobytes()
        return count > 0

    def upgrade(self, data: memoryview) -> memoryview:
        head, end, _ = data.tobytes().partition(b"\r\n\r\n")
        if not end:
            return data
        key = head.partition(b"Sec-WebSocket-Key: ")[2].partition(b"\r\n")[0]
        accept = b64encode(sha1(key + GUID).digest())  # noqa: S324, what the protocol asks for
        self.socket.send(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
        self.upgraded = True
        return data[len(head) + 4 :]

    def handle(self, opcode: int, payload: bytes) -> None:
        if opcode & CONTROL:
            return
        if self.audience is not None:
            ping = server_frame(PING, time.monotonic_ns().to_bytes(8, "big")) if PINGS else b""
            broadcast(self.audience, server_frame(opcode, payload) + ping)
            return
        request = json.loads(payload)
        if request["type"] == "subscribe":
            audiences[request["streamId"]].append(self.socket)
        if request["type"] == "register":
            self.audience = audiences[request["streamId"]]
        self.socket.send(server_frame(1, b'{"type":"success"}'))


def broadcast(audience: list[socket.socket], frame: bytes) -> None:
    for viewer in audience:
        rest = memoryview(frame)
        while rest:
            try:
                rest = rest[viewer.send(rest) :]
            except BlockingIOError:
                select.select([], [viewer], [])


def main() -> None:
    listener = socket.create_server(("127.0.0.1", int(sys.argv[-1])), backlog=1024)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    print(f"listening on {sys.argv[-1]}", flush=True)
    while True:
        for key, _ in selector.select():
            if key.data is None:
                accepted = listener.accept()[0]
                accepted.setblocking(False)  # noqa: FBT003 (it has no name for it)
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                selector.register(accepted, selectors.EVENT_READ, Peer(accepted))
            elif not key.data.receive():
                selector.unregister(key.data.socket)
                key.data.socket.close()


main()
