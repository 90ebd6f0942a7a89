"""Hostile clients, to show that other clients do not suffer from them.

The relay may end them as it likes: their connections are counted, not checked.
"""

from __future__ import annotations

import trio
from attrs import define

from relay.client import DialFailed, ServerError
from relay.client.errors import Closed
from relay.load.actors.actor import Actor
from relay.load.actors.client import LoadClient
from relay.load.actors.network import cut
from relay.load.scenario.groups import HostileGroup
from relay.transport import wire

PING_BURST = bytes((wire.FIN | wire.PING, wire.MASKED, 0, 0, 0, 0)) * 512
GARBAGE = bytes(range(256)) * 16
PING_INTERVAL = 0.05
"""Seconds between two bursts of pings."""


@define(eq=False)
class Hostile(Actor):
    """Connects, misbehaves in the way of its kind, and connects again."""

    async def _connect_once(self, due: float) -> bool:  # noqa: ARG002 (no times are measured)
        group = self.group
        assert isinstance(group, HostileGroup)
        counts = self.stats.counts
        try:
            async with self.context.connect(
                self.name,
                self.target,
                random=self.random,
                on_message=self.receive,
                msgpack=False,
                phone=False,
            ) as client:
                counts["connect.done"] += 1
                await self._misbehave(client, group)
        except DialFailed:
            counts["connect.failed"] += 1
        except (Closed, ServerError, trio.BrokenResourceError, trio.ClosedResourceError):
            counts["closes"] += 1
        return True

    async def _misbehave(self, client: LoadClient, group: HostileGroup) -> None:
        stream = client.socket.stream
        match group.kind:
            case "silent":
                await client.listen()
            case "bad-token":
                await client.request("auth", token=f"not-a-token-{self.number}")
            case "garbage":
                await stream.send_all(GARBAGE)
                await client.listen()
            case "half-frame":
                await stream.send_all(bytes((wire.FIN | wire.TEXT, wire.MASKED | 126, 64)))
                await trio.sleep(1)
                cut(stream)
            case "pings":
                await client.request("auth", token=self.context.endpoint.token(self.number))
                async with client.listening():
                    while True:
                        self.context.spend()
                        await stream.send_all(PING_BURST)
                        await trio.sleep(PING_INTERVAL)
            case "not-reading":
                await client.request("auth", token=self.context.endpoint.token(self.number))
                phones = self.context.timeline.most(group.watch) if group.watch else 0
                if group.watch and phones:
                    watched = self.context.stream_id(group.watch, self.number % phones)
                    await client.request("subscribe", streamId=watched, consumes=["video-frame"])
                await trio.sleep_forever()
