"""JPEG pictures as the parts of an HTTP response, which is how they go to tools without WebSockets.

This is a form of frames beside the encodings of messages: a frame is enclosed once, however many
readers there are, and a single picture is a view of the same bytes.
"""

from __future__ import annotations

import secrets

from attrs import field, frozen

from relay.transport.link import Buffer

JPEG_BEGINNING = b"\xff\xd8\xff"
JPEG_BASE64_BEGINNING = b"/9j/"


@frozen(eq=False)
class JpegParts:
    """The parts of a `multipart/x-mixed-replace` response (RFC 2046, section 5.1).

    A part ends with the boundary of the next one: browsers show a picture only when they have seen
    that. The first boundary goes with the head of the response.
    """

    boundary: str = field(factory=lambda: f"relay-{secrets.token_hex(12)}")
    """Whoever sees a stream knows it, so a picture that holds it is refused."""
    _end: bytes = field(init=False)

    @_end.default
    def _(self) -> bytes:
        return f"\r\n--{self.boundary}\r\n".encode()

    @property
    def content_type(self) -> str:
        return f"multipart/x-mixed-replace; boundary={self.boundary}"

    @property
    def first_boundary(self) -> bytes:
        """What goes before the first part."""
        return self._end[2:]

    def enclose(self, picture: bytes | None, seq: int, received_at: int) -> bytes | None:
        """The part of one picture; None for anything that is no JPEG."""
        if picture is None or not picture.startswith(JPEG_BEGINNING):
            return None
        if picture.find(self.boundary.encode()) >= 0:
            return None
        head = (
            "Content-Type: image/jpeg\r\n"
            f"Content-Length: {len(picture)}\r\n"
            f"X-Timestamp: {received_at / 1000:.3f}\r\n"
            f"X-Sequence: {seq}\r\n\r\n"
        )
        return b"".join((head.encode(), picture, self._end))

    def picture_in(self, part: Buffer) -> memoryview:
        """The picture in a part; no copy."""
        start = bytes(part[:256]).index(b"\r\n\r\n") + 4
        return memoryview(part)[start : -len(self._end)]


JPEG_PARTS = JpegParts()
"""Of this process: its frames are enclosed once for all readers."""
