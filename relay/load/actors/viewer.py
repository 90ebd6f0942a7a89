"""Viewers: they watch streams and check every frame."""

from __future__ import annotations

from typing import Any

from attrs import define

from relay.load.actors.network.client import IncomingMessage, LoadClient
from relay.load.actors.stream_actor import StreamActor, StreamWatch
from relay.load.measures.reconciliation.integrity import RENDITIONS, FrameChecker
from relay.load.measures.stats import LAYER_PREFIX
from relay.load.scenario.groups import ViewerGroup


@define(eq=False)
class Viewer(StreamActor):
    """Watches one stream or several on one connection."""

    _client: LoadClient | None = None
    """The current connection."""
    _acks: list[dict[str, Any]] | None = None
    """None unless frames are acknowledged."""

    def main_stream(self) -> str | None:
        group = self.group
        assert isinstance(group, ViewerGroup)
        if group.watch is None:
            return None
        phones = max(1, self.context.timeline.most(group.watch))
        return self.context.stream_id(group.watch, self.number * group.each % phones)

    def place(self) -> int:
        """The viewers of one stream are at one target after the other, its phone's last."""
        group = self.context.timeline.scenario.groups[self.name]
        assert isinstance(group, ViewerGroup)
        if group.watch is None:
            return super().place()
        phones = max(1, self.context.timeline.most(group.watch))
        turn, stream = divmod(self.number * group.each, phones)
        return stream + 1 + turn

    async def play(self, client: LoadClient) -> None:
        group = self.group
        assert isinstance(group, ViewerGroup)
        self._client = client
        if group.watch is not None:
            await self._subscribe(client, group, group.watch)
        while True:
            await client.read()

    async def _subscribe(self, client: LoadClient, group: ViewerGroup, watch: str) -> None:
        options = {
            "policy": group.policy,
            "maxFps": group.max_fps,
            "window": group.window,
            "maxWidth": group.max_width,
            "layer": group.layer,
        }
        given = {key: value for key, value in options.items() if value is not None}
        if group.policy == "latest":
            given.pop("policy")
        self._acks = client.acks if group.window else None
        phones = self.context.timeline.most(watch)
        layers = self.context.timeline.scenario.phones[watch].layer_ids
        for offset in range(min(group.each, phones)):
            number = (self.number * group.each + offset) % phones
            stream = self.context.stream_id(watch, number)
            checker = FrameChecker(self.context.run_id, number, self.stats.counts, layers)
            watch_of = StreamWatch(stream, self.context.now(), checker if group.inspect else None)
            self.watches[stream] = watch_of
            self.context.count_watched(self.name, group.inspect)
            await client.request(
                "subscribe", streamId=stream, consumes=["video-frame", "alert"], **given
            )

    def receive(self, incoming: IncomingMessage, size: int) -> None:
        if incoming.type == "video-frame":
            self._receive_frame(incoming, size)
            return
        if incoming.type == "status":
            self._note_epoch(incoming)
        super().receive(incoming, size)

    def _receive_frame(self, incoming: IncomingMessage, size: int) -> None:
        stats = self.stats
        stats.counts["frames.bytes"] += size
        watch = self.watches.get(incoming.stream_id or "")
        if watch is not None and watch.checker is None:
            self._count_frame(watch, incoming.seq)
            return
        if watch is None or watch.checker is None:
            stats.counts["received"] += 1
            stats.counts["foreign"] += 1
            return
        checker = watch.checker
        is_first = checker.last is None
        sealed_mark = None
        if checker.may_be_rendition(incoming.layer) and self._client is not None:
            sealed_mark = self._client.sealed_mark(incoming)
        mark = checker.check(incoming.data or b"", incoming.seq, incoming.layer, sealed_mark)
        if self._acks is not None:
            self._acks.append({"streamId": watch.stream, "seq": incoming.seq})
        if mark is None:
            return
        now = self.context.now()
        if watch.last_frame_at is not None and now - watch.last_frame_at > watch.longest_gap:
            watch.longest_gap = now - watch.last_frame_at
        watch.last_frame_at = now
        if now <= self.context.timeline.end:
            self._count_picture(watch, checker, incoming.layer, is_first=is_first)
        watch.last_layer = incoming.layer
        if is_first:
            stats.time("first_frame").record(now - watch.since)
        if mark.due >= watch.since:  # the picture from before the subscription may be old
            stats.time("frame_age").record(now - mark.due)

    def _count_frame(self, watch: StreamWatch, seq: int) -> None:
        """Count a frame that nobody looks into, and the numbers that are missing before it."""
        counts, last = self.stats.counts, watch.last_seq
        counts["received"] += 1
        if last is not None and seq > last and watch.is_settled:
            counts["missed"] += seq - last - 1
            counts["skipped"] += seq - last - 1
        watch.last_seq, watch.is_settled = seq, last is not None
        if self._acks is not None:
            self._acks.append({"streamId": watch.stream, "seq": seq})

    def _note_epoch(self, status: IncomingMessage) -> None:
        watch = self.watches.get(status.stream_id or "")
        if watch is not None and watch.checker is not None and status.epoch:
            watch.checker.note_epoch(status.epoch)

    def _count_picture(
        self, watch: StreamWatch, checker: FrameChecker, layer: str | None, *, is_first: bool
    ) -> None:
        counts = self.stats.counts
        counts["pictures"] += 1
        if layer is not None and layer in (checker.layers or RENDITIONS):
            counts[LAYER_PREFIX + layer] += 1
        if not is_first and layer != watch.last_layer:
            counts["switches"] += 1
