"""Clients that mean no good, for seeing that the others do not suffer. Floor 6.

What becomes of them is not judged: the relay may end them as it likes. Their group only counts.
"""

from __future__ import annotations

import trio
from attrs import define

from relay.client import DialFailed, ServerError
from relay.load.actor import Actor
from relay.load.groups import Hostiles
from relay.load.peer import Peer
from relay.load.stage import cut
from relay.transport import wire
from relay.transport.dial import Closed

PINGS = bytes((wire.FIN | wire.PING, wire.MASKED, 0, 0, 0, 0)) * 512
GARBAGE = bytes(range(256)) * 16
PAUSE = 0.05


@define(eq=False)
class Hostile(Actor):
    """Comes, does what its kind does, and comes again."""

    async def _connect_once(self, due: float) -> bool:  # noqa: ARG002 (it has no time)
        group = self.group
        assert isinstance(group, Hostiles)
        counts = self.figures.counts
        try:
            async with self.stage.connect(
                self.name, random=self.random, hears=self.hear, msgpack=False, phone=False
            ) as peer:
                counts["connect.done"] += 1
                await self._misbehave(peer, group)
        except DialFailed:
            counts["connect.failed"] += 1
        except (Closed, ServerError, trio.BrokenResourceError, trio.ClosedResourceError):
            counts["closes"] += 1
        return True

    async def _misbehave(self, peer: Peer, group: Hostiles) -> None:
        stream = peer.socket.stream
        match group.kind:
            case "silent":
                await peer.listen()
            case "bad-token":
                await peer.ask("auth", token=f"not-a-token-{self.number}")
            case "garbage":
                await stream.send_all(GARBAGE)
                await peer.listen()
            case "half-frame":
                await stream.send_all(bytes((wire.FIN | wire.TEXT, wire.MASKED | 126, 64)))
                await trio.sleep(1)
                cut(stream)
            case "pings":
                await peer.ask("auth", token=self.stage.address.token(self.number))
                async with peer.listening():
                    while True:
                        await stream.send_all(PINGS)
                        await trio.sleep(PAUSE)
            case "not-reading":
                await peer.ask("auth", token=self.stage.address.token(self.number))
                phones = self.stage.timeline.most(group.watch) if group.watch else 0
                if group.watch and phones:
                    watched = self.stage.stream_id(group.watch, self.number % phones)
                    await peer.ask("subscribe", streamId=watched, consumes=["video-frame"])
                await trio.sleep_forever()
