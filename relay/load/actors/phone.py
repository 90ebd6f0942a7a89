"""Phones: they send each frame when it is due."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import trio
from attrs import define, evolve, field

from relay.load.actors.frames.frame_plan import FramePlan, PlannedFrame
from relay.load.actors.frames.payloads import Payloads
from relay.load.actors.network.client import IncomingMessage, LoadClient
from relay.load.actors.stream_actor import StreamActor, StreamWatch
from relay.load.measures.reconciliation.integrity import (
    JPEG_START,
    FrameMark,
    append_mark,
    seal_mark,
)
from relay.load.measures.reconciliation.observations import SentFrames
from relay.load.scenario.groups import PhoneGroup, PhoneLayer
from relay.protocol.messages import now_ms


@define(eq=False)
class Phone(StreamActor):
    """Sends the frames of one stream, over any number of connections."""

    payloads: Payloads = field(kw_only=True)
    is_phone: ClassVar[bool] = True
    _due: Iterator[float] = field(init=False)
    _next: float | None = None
    _last: int = 0
    """Number of the last picture."""
    _connection: int = 0
    """Number of the connection."""
    _plan: FramePlan = field(factory=FramePlan)
    """On this connection."""
    _timestamp: int = 0
    """Of the last picture."""
    _sent: SentFrames | None = None
    """On this connection."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        due = self.payloads.due(self.context.timeline, self.name, self.number, self.presence)
        self._due = (at for at in due if not self.pauses.is_paused(at))
        self._next = next(self._due, None)

    @property
    def phones(self) -> PhoneGroup:
        """The group, as the current stage defines it."""
        group = self.group
        assert isinstance(group, PhoneGroup)
        return group

    def main_stream(self) -> str:
        return self.context.stream_id(self.name, self.number)

    async def play(self, client: LoadClient) -> None:
        group, stream = self.phones, self.context.stream_id(self.name, self.number)
        self._connection += 1
        self.watches[stream] = StreamWatch(stream, self.context.now(), None)
        self._plan = FramePlan(group.layer_ids, group.keyframe_every)
        offered = {"layers": _described(group.layers)} if group.layers else {}
        answer = await client.request(
            "register", streamId=stream, produces=["video-frame"], consumes=["alert"], **offered
        )
        if answer.layers is None:
            self._plan.send_largest_alone()
        # The camera starts with the first registration. Frames that were due between two
        # connections are withheld.
        while self._next is not None and self._next < self.context.now():
            self.stats.counts["withheld"] += self._connection > 1
            self._next = next(self._due, None)
        self._sent = None
        async with client.listening():
            await self._send_pictures(client, stream)
            await trio.sleep_forever()

    def receive(self, incoming: IncomingMessage, size: int) -> None:
        if incoming.type == "status" and incoming.layers is not None:
            self._plan.need(incoming.layers)
        elif incoming.type == "notice" and incoming.code == "KEYFRAME_WANTED":
            self._plan.send_keyframe_next()
        super().receive(incoming, size)

    async def _send_pictures(self, client: LoadClient, stream: str) -> None:
        counts, context = self.stats.counts, self.context
        while (due := self._next) is not None:
            await context.until(due)
            self._next = next(self._due, None)
            if context.now() - due > self.phones.backlog:
                counts["withheld"] += 1
                continue
            frames = self._plan.frames(self._last + 1)
            if not frames:
                continue  # nobody watches: no picture is taken
            self._last += 1
            self._timestamp = max(now_ms(), self._timestamp + 1)
            for frame in frames:
                await self._send_frame(client, frame, due)
            begun = self._sent or SentFrames(stream, due, due, self._last, self._last)
            self._sent = evolve(begun, end=due, last=self._last)

    async def _send_frame(self, client: LoadClient, frame: PlannedFrame, due: float) -> None:
        """Send one frame of the picture that was taken last."""
        counts, index = self.stats.counts, None if frame.layer is None else frame.index
        is_delta = frame.base is not None
        mark = FrameMark(
            *(self.context.run_id, self.number, self._connection, self._last, due),
            layer=index,
            base=frame.base,
        )
        body = self.payloads.body(self._last - 1, frame.index, is_delta=is_delta)
        data = append_mark(body, mark)
        fields: dict[str, Any] = {"timestamp": self._timestamp}
        if frame.layer is not None:
            fields["layer"] = frame.layer
        if self._plan.keyframe_every is not None:
            fields["keyframe"] = not is_delta
        if body.startswith(JPEG_START):
            fields["metadata"] = {"mark": seal_mark(mark)}
        self.context.spend()
        counts["unsure"] += 1
        await client.send("video-frame", data=data, **fields)
        counts["unsure"] -= 1
        counts["sent"] += 1

    def end_connection(self) -> None:
        super().end_connection()
        if self._sent is not None:
            self.context.observations.sent.append(self._sent)
            self._sent = None


def _described(layers: Sequence[PhoneLayer]) -> list[dict[str, Any]]:
    """The layers as `register` names them."""
    return [
        {"id": layer.id} if layer.width is None else {"id": layer.id, "width": layer.width}
        for layer in layers
    ]
