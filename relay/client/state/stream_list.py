"""The live streams that a `RelayClient` may watch, kept up to date over all of its connections."""

from __future__ import annotations

import trio
from attrs import define, field

from relay.client.connection.connection import ClientConnection, PendingRequest
from relay.client.connection.messages import Fields, Unreadable, read, snake
from relay.client.errors import ServerError
from relay.client.events import Status
from relay.client.reconnect_policy import ReconnectPolicy
from relay.client.state.event_queue import EventQueue, StreamEntry, Streams


@define(eq=False)
class StreamList:
    """Puts `Streams` events, one for each change."""

    _queue: EventQueue
    _policy: ReconnectPolicy
    _known: dict[str, StreamEntry] | None = field(default=None, init=False)
    """None until the relay has answered on this connection."""
    _complete: bool = field(default=False, init=False)
    """Whether the relay has told of all of them."""

    def begin(self, connection: ClientConnection) -> None:
        """Ask on this connection; a task of it waits for the answer."""
        self._known, self._complete = None, False
        connection.start(self._settle, connection.ask("streams"))

    def receive_status(self, status: Status) -> None:
        """Note a change of one of the streams."""
        if self._known is None:
            return
        before = self._known.pop(status.stream_id, None)
        if status.status != "offline":
            metadata = before.metadata if status.metadata is None and before else status.metadata
            self._known[status.stream_id] = StreamEntry(status.stream_id, status.status, metadata)
        elif before is None:
            return
        self._tell()

    async def _settle(self, request: PendingRequest) -> None:
        last: str | None = None
        while True:
            try:
                answer = await request.answer()
            except ServerError as error:
                await trio.sleep(self._policy.until_retry(error))
                page = {} if last is None else {"after": last}
                request = request.connection.ask("streams", **page)
                continue
            entries = _entries(answer)
            # What came as a status meanwhile lacks the metadata, which the page has.
            self._known = (self._known or {}) | {each.stream_id: each for each in entries}
            if not entries or answer.get("more") is not True:
                break
            last = entries[-1].stream_id
            request = request.connection.ask("streams", after=last)
        self._complete = True
        self._tell()

    def _tell(self) -> None:
        if not self._complete:
            return
        self._queue.put(Streams(tuple((self._known or {}).values())))


def _entries(answer: Fields) -> list[StreamEntry]:
    listed = answer.get("streams")
    if not isinstance(listed, list):
        raise Unreadable("a list of streams that is not a list")
    return [read(StreamEntry, snake(each)) for each in listed]
