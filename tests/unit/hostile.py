"""Generates what a hostile or broken client might send: messages, frames and heads, by a seed."""

from __future__ import annotations

import struct
from collections.abc import Callable
from random import Random
from typing import Any

import msgpack
from attrs import define

from relay.transport.framing.unmask import unmask
from tests.unit.memory import ANN, BOB

MASK = b"\x11\x22\x33\x44"

ODD: list[Any] = [
    None, True, False, 0, 1, -1, 2**31, 2**53, 2**53 + 1, 2**63, 2**64 - 1, 0.5, -0.0, 1e308,
    float("inf"), float("nan"), "", "x", "\0", "é", "😀", "\ud800", "x" * 300, "x" * 9000,
    [], [[]], {}, {"": None}, {"type": "auth"}, "token", ANN, "__proto__", "../..", "' or 1=1 --",
    "%s%n", "a" * 128, "a" * 129, "a b", "a\n",
]  # fmt: skip
"""Values for any field."""


def masked_frame(opcode: int, payload: bytes = b"", *, final: bool = True) -> bytes:
    """Build a frame as a client sends it."""
    first, size = opcode | (0x80 if final else 0), len(payload)
    if size < 126:
        header = bytes((first, 0x80 | size))
    elif size < 1 << 16:
        header = struct.pack("!BBH", first, 0x80 | 126, size)
    else:
        header = struct.pack("!BBQ", first, 0x80 | 127, size)
    return header + MASK + unmask(payload, MASK)


@define(eq=False)
class Hostile:
    """Makes inputs from one source of random numbers."""

    random: Random
    streams: tuple[str, ...]

    def message(self) -> Any:
        """Make a message that is valid, nearly valid, or invalid."""
        random = self.random
        if random.random() < 0.03:
            return random.choice(ODD)
        if random.random() < 0.002:
            return self._large()
        message = self._valid()
        while random.random() < 0.2:
            name = random.choice([*message, "id", "streamId", "metadata", "type", "unknown"])
            match random.randrange(4):
                case 0:
                    message.pop(name, None)
                case 1:
                    message[name] = random.choice([b"bytes", 2**70, msgpack.Timestamp(1, 1)])
                case 2:
                    message[name] = self._nested(random.randrange(1, 50))
                case _:
                    message[name] = random.choice(ODD)
        return message

    def terms(self) -> dict[str, Any]:
        """Make the options of a subscription."""
        random = self.random
        offered: dict[str, Any] = {
            "policy": random.choice(["latest", "lossless"]),
            "maxFps": random.choice([1, 2.5, 1000]),
            "window": random.choice([1, 3, 1024]),
        }
        return {name: value for name, value in offered.items() if random.random() < 0.3}

    def damaged(self, payload: bytes) -> bytes:
        random = self.random
        start = random.randrange(len(payload) + 1)
        stop = min(len(payload), start + random.choice([0, 1, 1, 5, 10_000]))
        added = random.randbytes(random.choice([0, 1, 1, 9]))
        if random.random() < 0.95:  # or the first damaged text ends the connection
            added = bytes(32 + each % 95 for each in added)
        return payload[:start] + added + payload[stop:]

    def raw_bytes(self) -> bytes:
        """Frames that no client of good will would send, or no frames at all."""
        random = self.random
        match random.randrange(5):
            case 0:
                return random.randbytes(random.randrange(1, 40))
            case 1:
                length = random.choice([0, 125, 126, 2**16, 2**20, 2**40, 2**63 - 1, 2**64 - 1])
                header = struct.pack("!BBQ", random.randrange(256), 0x80 | 127, length)
                return header + MASK + random.randbytes(random.randrange(20))
            case 2:
                return masked_frame(random.randrange(16), b"x" * random.randrange(200))
            case 3:
                return masked_frame(9, random.randbytes(4)) * random.randrange(1, 50)
            case _:
                code = struct.pack("!H", random.choice([0, 999, 1000, 1005, 1015, 3000, 65535]))
                return masked_frame(8, code[: random.randrange(3)] + b"\xff" * random.randrange(3))

    def head(self, good: str) -> bytes:
        """Damage a request head, or leave it as it is."""
        random = self.random
        lines = good.split("\r\n")
        place = random.randrange(len(lines))
        change: Callable[[str], str] = random.choice(
            [
                lambda line: line,
                lambda line: line + "\r\n" + line,
                lambda line: line[: len(line) // 2],
                lambda line: line.replace("\r\n", "\n"),
                lambda line: line + "\xff\x80",
                lambda line: line.replace("HTTP", "HTTP" * 500),
                lambda line: line.replace("register", f"subscribe?token={ANN}"),
                lambda line: line.replace(": ", ":\0"),
                lambda _: "X: " + "y" * 20_000,
                lambda _: "Content-Length: 5",
                lambda _: "Transfer-Encoding: chunked",
            ]
        )
        lines[place] = change(lines[place])
        return "\r\n".join(lines).encode("latin-1")

    def _valid(self) -> dict[str, Any]:  # noqa: PLR0911, one for each type
        random = self.random
        stream = random.choice(self.streams)
        consumes = random.sample(["video-frame", "alert", "status"], random.randrange(4))
        data = random.choice(["", "QUJD", "%%%", b"bytes", "A" * random.choice([4, 400, 40_000])])
        match random.randrange(40):  # frames above all
            case 0:
                parts = {"parts": random.choice([True, False, None]), "progressInterval": 1}
                return {"type": "auth", "token": random.choice([ANN, ANN, BOB, "unknown"]), **parts}
            case 1:
                return {"type": "register", "streamId": stream, "metadata": {"codec": "jpeg"}}
            case 2 | 3:
                request = {"type": "subscribe", "streamId": stream, "consumes": consumes}
                return request | self.terms()
            case 4:
                return {"type": "unsubscribe", "streamId": stream}
            case 5:
                return {"type": "ack", "streamId": stream, "seq": random.randrange(20)}
            case 6:
                alert = {"severity": random.choice(["low", "critical"]), "message": "m"}
                return {"type": "alert", "streamId": stream, **alert}
            case 7:
                return {"type": "alerts-since", "after": random.randrange(3), "limit": 2}
            case 8:
                return {"type": "streams", "id": random.choice([1, "one", 1.5])}
            case 9:
                kind = {"discardable": True} if random.random() < 0.5 else {}
                delta = {"keyframe": random.choice([True, False]), "timestamp": 12, **kind}
                return {"type": "video-frame", "data": data, **delta}
            case _:
                return {"type": "video-frame", "data": data}

    def _large(self) -> Any:
        """Make a message as large as only a frame may be."""
        size = self.random.choice([66_000, 130_000, 400_000])
        many = self.random.choice(["x" * size, [[]] * (size // 3), {"a": [{}] * (size // 3)}])
        message = self._valid()
        name = self.random.choice(["metadata", "id", "type", "streamId", "data", "unknown"])
        return {name: many, **message} if self.random.random() < 0.2 else {**message, name: many}

    def _nested(self, depth: int) -> Any:
        value: Any = self.random.choice(ODD)
        for _ in range(depth):
            value = [value] if self.random.random() < 0.5 else {"k": value}
        return value
