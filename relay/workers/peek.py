"""A look at the first bytes of a connection, which stay unread.

They name the stream that the client is about to use, as `?stream=ID` in the URL, and behind a proxy
that speaks PROXY protocol whose connection it is.
"""

from __future__ import annotations

import re
import socket
from urllib.parse import unquote_plus

import trio
from attrs import frozen

from relay.transport.proxy import NoProxyHeader, ProxyHeader

MAX_PEEK_BYTES = 16 * 1024
PEEK_TIMEOUT = 0.1
"""Seconds to wait for the first bytes. A client that talks first sends them with the last packet of
TCP's handshake, or right behind it; only a lost packet takes longer, and costs no more than the
placement. Nothing is late for it: the time to authenticate counts from the accept."""
FIRST_PEEK_PAUSE = 0.005
"""Seconds between two looks at a request that is not whole, doubled each time: a storm of them must
not keep the parent busy. The kernel cannot tell of more bytes while there are unread ones."""
MAX_HINT_LENGTH = 256
"""Characters, before they are decoded. No id of a stream is as long."""

_BEGIN = re.compile(rb"[A-Z]+(?: [^\r\n]*\r?)?\Z")
_HINT = re.compile(rb"[?&]stream=([^&#]*)")


@frozen
class Glimpse:
    """What the first bytes say."""

    hint: str | None = None
    """The id of the stream that the request names."""
    client: str | None = None
    """The address of the client, as a proxy tells it."""
    whole: bool = True
    """Whether more bytes would say no more."""


def read_glimpse(data: bytes, *, behind_header: bool) -> Glimpse:
    """What these bytes say; `behind_header`: whether a PROXY header must come first."""
    client = None
    if behind_header:
        header = ProxyHeader()
        try:
            while header.missing:
                if not data:
                    return Glimpse(whole=False)
                count = header.missing
                header.feed(data[:count])
                data = data[count:]
        except NoProxyHeader:
            return Glimpse()
        client = header.source
    line, line_end, _ = data.partition(b"\n")
    if line_end:
        return Glimpse(_hint_in(_target_of(line)), client)
    return Glimpse(None, client, whole=bool(data) and _BEGIN.match(data) is None)


def _target_of(line: bytes) -> bytes:
    """What a request is for, by its first line; empty where that is none. One step a byte: a
    stranger chooses them, and the parent of all workers reads them."""
    method, _, rest = line.removesuffix(b"\r").partition(b" ")
    if not (method.isalpha() and method.isupper()) or b"\r" in rest:
        return b""
    return rest.lstrip(b" ").partition(b" ")[0]


def _hint_in(target: bytes) -> str | None:
    found = _HINT.search(target)
    if found is None or not 0 < len(found[1]) <= MAX_HINT_LENGTH:
        return None
    return unquote_plus(found[1].decode("latin-1"))


async def peek(accepted: socket.socket, *, behind_header: bool) -> Glimpse:
    """Look at the first bytes of a non-blocking socket, for `PEEK_TIMEOUT` at most. Reads nothing,
    and never fails."""
    glimpse, pause = Glimpse(), FIRST_PEEK_PAUSE
    with trio.move_on_after(PEEK_TIMEOUT):
        while True:
            await trio.lowlevel.wait_readable(accepted)
            try:
                data = accepted.recv(MAX_PEEK_BYTES, socket.MSG_PEEK)
            except BlockingIOError:
                continue
            except OSError:
                break
            glimpse = read_glimpse(data, behind_header=behind_header)
            if glimpse.whole or not data or len(data) == MAX_PEEK_BYTES:
                break
            await trio.sleep(pause)
            pause *= 2
    return glimpse
