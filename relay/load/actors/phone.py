"""Phones: they send each frame when it is due."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import trio
from attrs import define, evolve, field

from relay.load.actors.client import LoadClient
from relay.load.actors.payloads import Payloads
from relay.load.actors.stream_actor import StreamActor, StreamWatch
from relay.load.measures.integrity import FrameMark, append_mark
from relay.load.measures.observations import SentFrames
from relay.load.scenario.groups import PhoneGroup
from relay.protocol.messages import now_ms


@define(eq=False)
class Phone(StreamActor):
    """Sends the frames of one stream, over any number of connections."""

    payloads: Payloads = field(kw_only=True)
    is_phone: ClassVar[bool] = True
    _due: Iterator[float] = field(init=False)
    _next: float | None = None
    _last: int = 0
    """Number of the last frame."""
    _connection: int = 0
    """Number of the connection."""
    _sent: SentFrames | None = None
    """On this connection."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self._due = self.payloads.due(self.context.timeline, self.name, self.number, self.presence)
        self._next = next(self._due, None)

    async def play(self, client: LoadClient) -> None:
        stream = self.context.stream_id(self.name, self.number)
        self._connection += 1
        self.watches[stream] = StreamWatch(stream, self.context.now(), None)
        await client.request(
            "register", streamId=stream, produces=["video-frame"], consumes=["alert"]
        )
        # The camera starts with the first registration. Frames that were due between two
        # connections are withheld.
        while self._next is not None and self._next < self.context.now():
            self.stats.counts["withheld"] += self._connection > 1
            self._next = next(self._due, None)
        self._sent = None
        async with client.listening():
            await self._send_frames(client, stream)
            await trio.sleep_forever()

    async def _send_frames(self, client: LoadClient, stream: str) -> None:
        counts, context = self.stats.counts, self.context
        group = self.group
        assert isinstance(group, PhoneGroup)
        while (due := self._next) is not None:
            await context.until(due)
            self._next = next(self._due, None)
            if context.now() - due > group.backlog:
                counts["withheld"] += 1
                continue
            mark = FrameMark(context.run_id, self.number, self._connection, self._last + 1, due)
            data = append_mark(self.payloads.body(self._last), mark)
            self._last += 1
            counts["unsure"] += 1
            await client.send("video-frame", data=data, timestamp=now_ms())
            counts["unsure"] -= 1
            counts["sent"] += 1
            begun = self._sent or SentFrames(stream, due, due, self._last, self._last)
            self._sent = evolve(begun, end=due, last=self._last)

    def end_connection(self) -> None:
        super().end_connection()
        if self._sent is not None:
            self.context.observations.sent.append(self._sent)
            self._sent = None
