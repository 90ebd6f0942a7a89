"""A small server that speaks enough of the protocol for a load test, and lies in known ways."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import trio
import trio_websocket
from attrs import define, field, frozen

Socket = trio_websocket.WebSocketConnection


@frozen(kw_only=True)
class Lies:
    """What it does wrong. Frames are counted over all streams, from 1."""

    lose_every: int | None = None
    admits: bool = False
    """Whether `seq` shows what was lost."""
    double_every: int | None = None
    repeat_seq_every: int | None = None
    """Gives such a frame the number of the one before."""
    delay: float = 0.0
    swap_every: int | None = None
    """Gives such a frame to the viewers of another stream as one of theirs."""
    tear_every: int | None = None
    late_every: int | None = None
    """Sends such a frame behind the one after it."""
    stops_reading_after: int | None = None
    alert_twice: bool = False
    lose_alerts: bool = False
    close_with: int | None = None
    """Without a word, after the first frame."""
    silent: bool = False
    """Never answers."""
    refuses_tokens: bool = False


@define(eq=False)
class LyingRelay:
    lies: Lies
    url: str = ""
    frames: int = 0
    stopped_at: float = 0.0
    delays: list[float] = field(factory=list)
    """Seconds that frames were held back: longer than was asked for where the machine is busy."""
    phones: dict[str, Socket] = field(factory=dict)
    viewers: dict[str, list[Socket]] = field(factory=lambda: defaultdict(list))
    seqs: dict[str, int] = field(factory=lambda: defaultdict(int))
    alerts: int = 0
    _held: dict[str, dict[str, Any]] = field(factory=dict)
    _nursery: trio.Nursery | None = None

    async def serve(self, request: trio_websocket.WebSocketRequest) -> None:
        stream = ""
        with suppress(trio_websocket.ConnectionClosed):
            socket = await request.accept()
            while True:
                message = json.loads(await socket.get_message())
                if self.lies.silent:
                    continue
                match message["type"]:
                    case "auth" if self.lies.refuses_tokens:
                        await self.answer(socket, message, type="error", code="AUTH_FAILED")
                        await socket.aclose(1008, "Authentication failed")
                    case "auth":
                        await self.answer(socket, message, code="AUTHENTICATED")
                    case "register":
                        stream = message["streamId"]
                        self.phones[stream] = socket
                        await self.answer(socket, message, code="REGISTERED", streamId=stream)
                    case "subscribe":
                        watched = message["streamId"]
                        await self.answer(socket, message, code="SUBSCRIBED", streamId=watched)
                        self.viewers[watched].append(socket)
                    case "video-frame":
                        if await self.take_frame(stream, message):
                            self.stopped_at = trio.current_time()
                            await trio.sleep_forever()
                    case "alert":
                        await self.take_alert(socket, message)

    async def answer(self, socket: Socket, message: dict[str, Any], **fields: Any) -> None:
        await socket.send_message(
            json.dumps({"type": "success", "id": message["id"], "message": "", **fields})
        )

    async def take_frame(self, stream: str, message: dict[str, Any]) -> bool:
        """Hand a frame on, or what becomes of it here; whether to read no more."""
        self.frames += 1
        lies = self.lies
        if is_turn(lies.lose_every, self.frames):
            self.seqs[stream] += lies.admits
            return False
        self.seqs[stream] += not is_turn(lies.repeat_seq_every, self.frames)
        data = message["data"]
        if is_turn(lies.tear_every, self.frames):
            middle = len(data) // 8 * 4
            data = data[:middle] + ("A" if data[middle] != "A" else "B") + data[middle + 1 :]
        frame = {
            "type": "video-frame",
            "streamId": stream,
            "seq": self.seqs[stream],
            "timestamp": message["timestamp"],
            "receivedAt": 0,
            "data": data,
        }
        if is_turn(lies.late_every, self.frames):
            self._held[stream] = frame
            return False
        where = stream
        if is_turn(lies.swap_every, self.frames):
            (where,) = (other for other in self.phones if other != stream)
            frame["streamId"] = where
        frames = [frame] * (2 if is_turn(lies.double_every, self.frames) else 1)
        if late := self._held.pop(stream, None):
            frames.append(late)
        assert self._nursery is not None
        for each in frames:
            if lies.delay:
                self._nursery.start_soon(self.deliver_late, where, each)
            else:
                await self.deliver(where, each)
        if lies.close_with is not None:
            for viewer in self.viewers[stream]:
                await viewer.aclose(lies.close_with, "because")
        return lies.stops_reading_after is not None and self.frames >= lies.stops_reading_after

    async def deliver_late(self, stream: str, frame: dict[str, Any]) -> None:
        start = trio.current_time()
        await trio.sleep(self.lies.delay)
        self.delays.append(trio.current_time() - start)
        await self.deliver(stream, frame)

    async def deliver(self, stream: str, frame: dict[str, Any]) -> None:
        for viewer in self.viewers[stream]:
            with suppress(trio_websocket.ConnectionClosed):
                await viewer.send_message(json.dumps(frame))

    async def take_alert(self, socket: Socket, message: dict[str, Any]) -> None:
        self.alerts += 1
        await self.answer(socket, message, code="ALERT_ACCEPTED", alertId=self.alerts)
        if self.lies.lose_alerts:
            return
        alert = {**message, "alertId": self.alerts}
        del alert["id"]
        stream = message["streamId"]
        for viewer in (self.phones[stream], *self.viewers[stream]):
            for _ in range(1 + self.lies.alert_twice):
                with suppress(trio_websocket.ConnectionClosed):
                    await viewer.send_message(json.dumps(alert))


def is_turn(every: int | None, number: int) -> bool:
    return every is not None and number % every == 0


@asynccontextmanager
async def open_liar(lies: Lies) -> AsyncIterator[LyingRelay]:
    liar = LyingRelay(lies)
    async with trio.open_nursery() as nursery:
        liar._nursery = nursery
        server = await nursery.start(
            lambda task_status: trio_websocket.serve_websocket(
                liar.serve, "127.0.0.1", 0, None, task_status=task_status
            )
        )
        liar.url = f"ws://127.0.0.1:{server.port}"
        yield liar
        nursery.cancel_scope.cancel()
