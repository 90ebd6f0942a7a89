"""One WebSocket of the benchmark's clients, and how a client writes and reads frames."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

import msgspec
from workloads import Order


def masked(opcode: int, payload: bytes) -> bytearray:
    """A WebSocket frame as a client sends it."""
    mask, size = os.urandom(4), len(payload)
    head = bytearray([0x80 | opcode])
    if size < 126:
        head.append(0x80 | size)
    elif size < 1 << 16:
        head += bytes([0xFE]) + size.to_bytes(2, "big")
    else:
        head += bytes([0xFF]) + size.to_bytes(8, "big")
    return head + mask + xor(payload, mask)


def xor(data: bytes, mask: bytes) -> bytes:
    key = (mask * (len(data) // 4 + 1))[: len(data)]
    return (int.from_bytes(data, "big") ^ int.from_bytes(key, "big")).to_bytes(len(data), "big")


def frame_size(data: bytes | bytearray | memoryview, start: int, end: int) -> tuple[int, int]:
    """The lengths of a server's frame and of its header; (0, 0) when too little is there."""
    there = end - start
    size = data[start + 1] if there >= 2 else 127
    if size < 126:
        return size + 2, 2
    if size == 126 and there >= 4:
        return (data[start + 2] << 8 | data[start + 3]) + 4, 4
    if there < 10:
        return 0, 0
    return int.from_bytes(data[start + 2 : start + 10], "big") + 10, 10


def packs(order: Order) -> bool:
    """Whether all messages are MessagePack; other servers than relay take JSON."""
    return order.is_relay and order.binary


def upgrade_request(order: Order) -> bytes:
    subprotocol = "Sec-WebSocket-Protocol: relay.v1.msgpack\r\n" if packs(order) else ""
    return (
        f"GET /streams/subscribe HTTP/1.1\r\nHost: 127.0.0.1:{order.port}\r\n"
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{subprotocol}\r\n"
    ).encode()


def encoded(order: Order, message: Mapping[str, object]) -> bytearray:
    """A message as a client sends it."""
    if packs(order):
        return masked(2, msgspec.msgpack.encode(message))
    return masked(1, msgspec.json.encode(message))


class Client:
    """One WebSocket."""

    def __init__(self, order: Order, *, window: int | None = None) -> None:
        self.order = order
        self.socket = socket.socket()
        if window is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        self.socket.connect(("127.0.0.1", order.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = bytearray()
        self.socket.sendall(upgrade_request(order))
        while (end := self.buffer.find(b"\r\n\r\n")) < 0:
            self._receive_more()
        del self.buffer[: end + 4]

    def say(self, message: dict[str, object]) -> None:
        self.socket.sendall(encoded(self.order, message))

    def ask(self, message: dict[str, object]) -> None:
        """Say something, and wait for the reply; what comes behind that stays in the buffer."""
        self.say(message)
        answered = False
        while not answered:
            length, _ = frame_size(self.buffer, 0, len(self.buffer))
            if not length or length > len(self.buffer):
                self._receive_more()
                continue
            answered = b"success" in self.buffer[:length]
            if b"error" in self.buffer[:length]:
                raise SystemExit(f"the server refused {message['type']}: {self.buffer[:300]!r}")
            del self.buffer[:length]

    def _receive_more(self) -> None:
        more = self.socket.recv(65536)
        if not more:
            raise SystemExit(f"the server closed; it said {bytes(self.buffer)!r}")
        self.buffer += more

    def authenticate(self) -> None:
        self.ask({"type": "auth", "token": self.order.token})

    def subscribe(self, stream: str, **terms: object) -> None:
        consumes = ["video-frame"]
        self.ask({"type": "subscribe", "streamId": stream, "consumes": consumes, **terms})
