"""Which bytes of a file a request asks for (RFC 9110, section 14), so that players can seek."""

from __future__ import annotations

import re

from attrs import frozen
from starlette.requests import Request

from relay.protocol.messages import ErrorCode
from relay.web.api import ApiError

# More digits than any file needs; a list of ranges may be ignored, and is.
_ONE_RANGE = re.compile(
    r"bytes=[ \t]*(?:([0-9]{1,15})-([0-9]{0,15})|-([0-9]{1,15}))[ \t]*", re.IGNORECASE
)


@frozen
class ByteRange:
    """Some bytes of a file, or all of them."""

    start: int
    end: int
    """Behind the last one."""
    size: int
    """Of the file."""
    is_asked: bool
    """Whether the request asks for them; else the answer is the file."""

    @property
    def length(self) -> int:
        return self.end - self.start

    @property
    def status(self) -> int:
        """Of the answer."""
        return 206 if self.is_asked else 200

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the answer that say what its body is."""
        headers = {"Accept-Ranges": "bytes", "Content-Length": str(self.length)}
        if self.is_asked:
            headers["Content-Range"] = f"bytes {self.start}-{self.end - 1}/{self.size}"
        return headers


def range_of(request: Request, size: int, etag: str) -> ByteRange:
    """The bytes that a request wants of a file of this size; 416 (`ApiError`) if it has none of
    them. `etag` is that of the file, with its quotes."""
    whole = ByteRange(0, size, size, is_asked=False)
    if request.method != "GET" or request.headers.get("If-Range", etag) != etag:
        return whole
    found = _ONE_RANGE.fullmatch(request.headers.get("Range", ""))
    if found is None:
        return whole
    first, last, suffix = found.groups()
    if suffix is not None:
        start, end = max(0, size - int(suffix)), size
    else:
        start, end = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < start:
            return whole  # it is no range
    if start >= size:
        text = f"The file has {size} bytes, and none of those that were asked for"
        headers = {"Content-Range": f"bytes */{size}"}
        raise ApiError(416, ErrorCode.INVALID_MESSAGE, text, headers)
    return ByteRange(start, end, size, is_asked=True)
