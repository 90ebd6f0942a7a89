"""Puts the parts of a long message together."""

from __future__ import annotations

from attrs import define, field

from relay.client.connection.messages import MessagePart, Unreadable
from relay.client.websocket import MAX_MESSAGE_BYTES


@define(eq=False)
class MessageParts:
    """The long messages of one connection that are not complete."""

    _rows: dict[str | None, list[str | bytes]] = field(factory=dict)
    """By stream; None for messages that are not frames."""

    def join(self, part: MessagePart) -> str | bytes | None:
        """Add a part; returns the message if that was its last one. `Unreadable`."""
        row = [] if part.index == 1 else self._rows.get(part.stream_id)
        if row is None or len(row) + 1 != part.index:
            self._rows.pop(part.stream_id, None)  # of a message that was given up
            return None
        row.append(part.data)
        if sum(map(len, row)) > MAX_MESSAGE_BYTES:
            raise Unreadable("a message in parts does not end")
        self._rows[part.stream_id] = row
        if part.index < part.count:
            return None
        del self._rows[part.stream_id]
        try:  # a row of both kinds raises, which mypy cannot know to be meant
            return "".join(row) if isinstance(part.data, str) else b"".join(row)  # type: ignore[arg-type]
        except TypeError:
            raise Unreadable("parts of text and of bytes in one message") from None
