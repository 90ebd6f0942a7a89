"""What viewers cost that do not read; for scripts/figures.py."""

from __future__ import annotations

import trio
from target import Peer, Target, together

STALLED, STALLED_RATE = 64 * 1024, 20.0
RECEIVE_BUFFER = 64 * 1024
MIB = 1 << 20
MEANWHILE = 5.0
"""Seconds between two looks at the memory."""


async def memory(relay: Target, viewers: int, seconds: float) -> None:
    """The resident memory, beside that of the kernel's buffers, while viewers do not read."""
    phone = await join(relay, "phone", "stalled")
    peers: list[Peer] = []

    async def stall() -> None:
        peers.append(await join(relay, "viewer", "stalled", receive_buffer=RECEIVE_BUFFER))

    await together(viewers, stall)
    joined = relay.resident()
    kind = f"{STALLED // 1024} KiB at {STALLED_RATE:g}/s"
    print(
        f"{viewers} viewers that do not read {kind}: {joined / MIB:.1f} MiB before the first frame"
    )
    start = due = trio.current_time()
    looks: list[float] = []
    while (now := trio.current_time()) - start < seconds:
        if now - start >= MEANWHILE * (len(looks) + 1):
            looks.append(relay.resident() / MIB)
            print(f"  after {now - start:.0f} s: {looks[-1]:.1f} MiB", flush=True)
        due += 1 / STALLED_RATE
        await trio.sleep_until(due)
        await phone.say(binary=True, type="video-frame", data=bytes(STALLED))
    totals = relay.stats()
    print(f"  then {relay.resident() / MIB:.1f} MiB; {totals['frames_to_consumers']}")
    for peer in (phone, *peers):
        await peer.stream.aclose()


async def join(relay: Target, role: str, stream: str, *, receive_buffer: int | None = None) -> Peer:
    """A phone or a viewer of a stream, in MessagePack."""
    peer = await relay.connect(receive_buffer)
    await peer.upgrade("relay.v1.msgpack")
    await peer.say(binary=True, type="auth", token=relay.token)
    await peer.receive_until(b"AUTHENTICATED")
    if role == "phone":
        await peer.say(binary=True, type="register", streamId=stream)
        await peer.receive_until(b"REGISTERED")
    else:
        await peer.say(binary=True, type="subscribe", streamId=stream, consumes=["video-frame"])
        await peer.receive_until(b"SUBSCRIBED")
    return peer
