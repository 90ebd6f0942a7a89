"""The client's opening handshake of a WebSocket (RFC 6455, section 4.1)."""

from __future__ import annotations

from contextlib import suppress

import trio
import wsproto
from wsproto.events import AcceptConnection, RejectConnection, RejectData, Request
from wsproto.utilities import RemoteProtocolError

from relay.client.errors import DialFailed

MAX_RESPONSE_HEAD_BYTES = 16 * 1024
MAX_REFUSAL_BYTES = 200
"""Of a refusal's body; more is not worth repeating."""
REFUSAL_TIMEOUT = 1.0
"""Seconds that the body may take, once its head has come."""
HTTP = b"HTTP/"
LOST = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)
"""How a stream fails whose other end is gone."""


async def shake_hands(
    stream: trio.abc.Stream, host: str, resource: str, offers: list[str]
) -> tuple[str | None, bytes]:
    """Open a WebSocket on a connected stream; `DialFailed`.

    Returns the subprotocol that the server chose, and the bytes that came behind its response.
    """
    handshake = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
    try:
        await stream.send_all(
            handshake.send(Request(host=host, target=resource, subprotocols=offers))
        )
        head, rest = await _read_head(stream, host)
        handshake.receive_data(head)
        match next(handshake.events(), None):
            case AcceptConnection(subprotocol=chosen):
                return chosen, rest
            case RejectConnection(status_code=status):
                body = await _read_refusal(stream, handshake, rest)
                raise DialFailed(f"{host} refused: HTTP {status} {body}".rstrip())
            case _:
                raise DialFailed(f"{host} does not speak WebSocket")
    except LOST:
        raise DialFailed(f"{host} ended the connection during the handshake") from None
    except RemoteProtocolError:
        raise DialFailed(f"{host} does not speak WebSocket") from None


async def _read_head(stream: trio.abc.Stream, host: str) -> tuple[bytes, bytes]:
    """The head of the HTTP response, and what came behind it."""
    received = bytearray()
    while (end := received.find(b"\r\n\r\n")) < 0:
        if len(received) > MAX_RESPONSE_HEAD_BYTES or not HTTP.startswith(bytes(received[:5])):
            raise DialFailed(f"{host} does not speak WebSocket")
        data = await stream.receive_some(MAX_RESPONSE_HEAD_BYTES)
        if not data:
            raise DialFailed(f"{host} ended the connection during the handshake")
        received += data
    return bytes(received[: end + 4]), bytes(received[end + 4 :])


async def _read_refusal(
    stream: trio.abc.Stream, handshake: wsproto.WSConnection, data: bytes | bytearray
) -> str:
    """The beginning of the body, as far as it comes."""
    body = b""
    with trio.move_on_after(REFUSAL_TIMEOUT), suppress(*LOST, RemoteProtocolError):
        while len(body) < MAX_REFUSAL_BYTES:
            if data:
                handshake.receive_data(bytes(data))
            for event in handshake.events():
                if isinstance(event, RejectData):
                    body += event.data
                    if event.body_finished:
                        return _explanation(body)
            data = await stream.receive_some(MAX_RESPONSE_HEAD_BYTES)
            if not data:
                break
    return _explanation(body)


def _explanation(body: bytes) -> str:
    return body[:MAX_REFUSAL_BYTES].decode(errors="replace")
