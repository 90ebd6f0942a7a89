"""The live streams that a `RelayClient` may see, kept up to date over all of its connections.
Floor 2."""

from __future__ import annotations

from attrs import define, field

from relay.client.errors import ServerError
from relay.client.events import Status
from relay.client.link import Answer, Link
from relay.client.manners import Manners
from relay.client.messages import Unreadable, read, snake
from relay.client.unread import StreamEntry, Streams, Unread


@define(eq=False)
class StreamList:
    _unread: Unread
    _manners: Manners
    _known: dict[str, StreamEntry] | None = field(default=None, init=False)
    """None: until the relay has answered on this connection."""

    def begin(self, link: Link) -> None:
        """Ask on another connection."""
        self._known = None

        def turn(answer: Answer) -> None:
            if isinstance(answer, ServerError):
                link.later(self._manners.until_retry(answer), lambda: self.begin(link))
                return
            listed = answer.get("streams")
            if not isinstance(listed, list):
                raise Unreadable("a list of streams that is none")
            entries = [read(StreamEntry, snake(each)) for each in listed]
            self._known = {entry.stream_id: entry for entry in entries}
            self._tell()

        link.ask("streams", turn)

    def take(self, status: Status) -> None:
        """A change of one of them."""
        if self._known is None:
            return
        before = self._known.pop(status.stream_id, None)
        if status.status != "offline":
            metadata = before.metadata if status.metadata is None and before else status.metadata
            self._known[status.stream_id] = StreamEntry(status.stream_id, status.status, metadata)
        elif before is None:
            return
        self._tell()

    def _tell(self) -> None:
        self._unread.put(Streams(tuple((self._known or {}).values())))
