"""The answers that hold pictures: what is allowed in them, and what browsers may do with them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from relay.protocol.messages import ErrorCode
from relay.transport.link import Buffer
from relay.web.api import ApiError

PICTURE_PIECE_BYTES = 256 * 1024
"""Of a picture that are written before others have a turn."""
NO_STREAM = "There is no live stream of this name that you may watch"
NOT_JPEG = (
    "The stream does not send JPEG pictures, and nothing else is served here: watch it over a"
    " WebSocket, or have the phone send JPEG"
)


class AnswerInSteps(Response):
    """A response that is made as it is sent, so that what it needs is held no longer than that."""

    def __init__(self, answer: Callable[[Send], Awaitable[None]]) -> None:
        super().__init__()
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        await self._answer(send)


def headers_for(media_type: str, *, embeddable: bool) -> dict[str, str]:
    """The headers of every answer with pictures; `embeddable`: in pages of other origins."""
    return {
        "Content-Type": media_type,
        "Cache-Control": "private, no-store",
        "Content-Security-Policy": "sandbox; default-src 'none'",
        "Cross-Origin-Resource-Policy": "cross-origin" if embeddable else "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }


async def send_head(send: Send, status: int, headers: Mapping[str, str]) -> None:
    """Begin an answer."""
    encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})


async def send_picture(send: Send, picture: Buffer) -> None:
    """Send the body of an answer, in pieces if it is long."""
    view = memoryview(picture)
    for at in range(0, len(view) or 1, PICTURE_PIECE_BYTES):
        piece, more = view[at : at + PICTURE_PIECE_BYTES], at + PICTURE_PIECE_BYTES < len(view)
        await send({"type": "http.response.body", "body": piece, "more_body": more})


def no_stream() -> ApiError:
    """The answer for a stream that is not live, is unknown, or is not for this reader: nobody can
    tell which."""
    return ApiError(404, ErrorCode.INVALID_MESSAGE, NO_STREAM)


def not_jpeg() -> ApiError:
    return ApiError(406, ErrorCode.INVALID_MESSAGE, NOT_JPEG)
