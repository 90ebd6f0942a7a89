"""One user who sends the heaviest alerts there are, as fast as they are answered; for
scripts/sieges.py.

    python scripts/alert_flood.py HOST PORT COUNT < TOKEN

sends them on a few connections at a time and prints how they were answered.
"""

from __future__ import annotations

import re
import sys
from collections import Counter

import msgspec
import trio
from target import Peer

CONNECTIONS = 4
STREAM_ID = "heavy"
HEAVY = {
    "type": "alert",
    "streamId": STREAM_ID,
    "severity": "low",
    "message": "heavy",
    "metadata": {"a": [[]] * 65_000},
}
"""A byte for each list in MessagePack, three in JSON."""


async def connect(host: str, port: int, token: str) -> Peer:
    peer = Peer(await trio.open_tcp_stream(host, port), host)
    await peer.upgrade("relay.v1.msgpack")
    await peer.say(binary=True, type="auth", token=token)
    await peer.receive_until(b"AUTHENTICATED")
    return peer


async def flood(host: str, port: int, count: int, token: str) -> Counter[str]:
    owner = await connect(host, port, token)
    await owner.say(binary=True, type="register", streamId=STREAM_ID)
    await owner.receive_until(b"REGISTERED")
    await owner.stream.aclose()
    answers: Counter[str] = Counter()
    heavy = msgspec.msgpack.encode(HEAVY)

    async def send(times: int) -> None:
        peer = await connect(host, port, token)
        for _ in range(times):
            try:
                await peer.send(heavy, binary=True)
                answer = await peer.receive_until(b"code")
            except (EOFError, trio.BrokenResourceError):
                answers["connections that were closed"] += 1
                peer = await connect(host, port, token)
            else:
                answers[re.findall(rb"[A-Z]+_[A-Z_]+", answer)[0].decode()] += 1

    async with trio.open_nursery() as nursery:
        for _ in range(CONNECTIONS):
            nursery.start_soon(send, count // CONNECTIONS)
    return answers


if __name__ == "__main__":
    host, port, count = sys.argv[1:]
    answered = trio.run(flood, host, int(port), int(count), sys.stdin.readline().strip())
    print("  heavy alerts:", ", ".join(f"{what} {number}" for what, number in answered.items()))
