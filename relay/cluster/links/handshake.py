"""Opens links between nodes: dials and accepts, and lets both sides prove who they are.

A link is a WebSocket without the HTTP in front. The accepting node has a `FrameStream`, so its hub
writes to another node as to a viewer; the dialling node has the client's `WebSocket`.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import trio

from relay.client.dial import open_plain
from relay.client.errors import DialFailed
from relay.client.websocket import WebSocket
from relay.cluster.links.identity import SIGNATURE_BYTES, NodeIdentity, has_signed
from relay.cluster.links.proof import (
    MAX_PREFACE_BYTES,
    NONCE_BYTES,
    WELCOME,
    LinkRefused,
    Preface,
    transcript,
)
from relay.concurrency.exact_reads import receive_exactly
from relay.errors import RelayError
from relay.model.cluster import Node
from relay.transport.link import Link, SocketLink, UnixLink
from relay.transport.pinned_key import BadCertificate, der_of
from relay.transport.stream import FrameStream
from relay.transport.tls import TlsLink

DIAL_TIMEOUT = 2.0
"""Seconds from dialling a node to both having proven who they are."""
LINK_STALL_TIMEOUT = 10.0
"""Seconds after which a node that takes no byte is cut off."""
TCP_LOW_WATER_BYTES = 256 * 1024
"""That may wait in the kernel unsent, on the way to a node of another machine."""
RECEIVE_BUFFER_BYTES = 512 * 1024
"""SO_RCVBUF of the dialling side, which Linux doubles. What a slow node has not read lies there and
gets old."""

Lookup = Callable[[str], Awaitable[Node | None]]
"""Finds the node with this id, if there is one."""


class LinkFailed(RelayError):
    """There is no link to a node, for the reason that the message says."""


async def read_preface(connection: socket.socket) -> Preface:
    """Read the preface of a non-blocking socket, and no byte more: TLS may follow, and another
    process may go on. `LinkRefused`, also when the bytes end."""
    read = b""
    while not read.endswith(b"\n"):
        await trio.lowlevel.wait_readable(connection)
        try:
            seen = connection.recv(MAX_PREFACE_BYTES - len(read), socket.MSG_PEEK)
            read += connection.recv(seen.find(b"\n") + 1 or len(seen))
        except BlockingIOError:
            continue
        except OSError as problem:
            raise LinkRefused("it broke before its preface") from problem
        if not seen:
            raise LinkRefused("it ended before its preface")
        if len(read) == MAX_PREFACE_BYTES and not read.endswith(b"\n"):
            raise LinkRefused("its preface is too long")
    return Preface.parse(read)


# -- the accepting side


async def accept_node(
    connection: socket.socket,
    identity: NodeIdentity,
    lookup: Lookup,
    *,
    tls: bool,
    preface: Preface | None = None,
    stall_timeout: float = LINK_STALL_TIMEOUT,
) -> tuple[Node, FrameStream]:
    """Let the node that called prove who it is, and prove who we are; which node it is, and a
    stream that has no frames yet.

    The socket is non-blocking. `preface` is what was read of it already, if it was. `tls` must be
    what the node dials with, and a Unix socket has none. Raises `LinkRefused`, then without having
    said a word to those who do not know the ids of two nodes; `connection` is closed when this does
    not return. The caller sets the deadline.
    """
    try:
        preface = preface or await read_preface(connection)
        node = await _find(preface, identity, lookup)
        stream = FrameStream(_link_to(connection, node, identity, tls=tls), stall_timeout)
        if isinstance(stream.link, TlsLink):
            await _accept_certificate(stream, stream.link, node)
        else:
            await _accept_signature(stream, preface, node, identity)
    except (trio.BrokenResourceError, trio.ClosedResourceError, EOFError) as problem:
        _reset(connection)
        raise LinkRefused(f"it gave up, or is no node: {_why(problem)}") from problem
    except BaseException:
        _reset(connection)
        raise
    return node, stream


async def _find(preface: Preface, identity: NodeIdentity, lookup: Lookup) -> Node:
    if preface.target != identity.node_id:
        raise LinkRefused("it calls another node")
    node = None if preface.dialler == identity.node_id else await lookup(preface.dialler)
    if node is None or node.node_id != preface.dialler:
        raise LinkRefused("nobody knows the node that it says it is")
    return node


def _link_to(connection: socket.socket, node: Node, identity: NodeIdentity, *, tls: bool) -> Link:
    if connection.family == socket.AF_UNIX:
        plain: SocketLink = UnixLink(connection)
    else:
        plain = SocketLink(connection, _name_of(connection), low_water=TCP_LOW_WATER_BYTES)
    if not tls:
        return plain
    try:
        return TlsLink(plain, identity.server_context(node.certificate))
    except BadCertificate:
        raise LinkRefused("the database has no good certificate of it") from None


async def _accept_certificate(stream: FrameStream, link: TlsLink, node: Node) -> None:
    await link.handshake()
    if link.peer_certificate != der_of(node.certificate):
        raise LinkRefused("it has the certificate of another node")
    await stream.send_all(WELCOME)


async def _accept_signature(
    stream: FrameStream, preface: Preface, node: Node, identity: NodeIdentity
) -> None:
    theirs, ours = await receive_exactly(stream, NONCE_BYTES), os.urandom(NONCE_BYTES)
    await stream.send_all(ours)
    signature = await receive_exactly(stream, SIGNATURE_BYTES)
    proof = transcript("dialler", preface, theirs, ours)
    if not has_signed(node.certificate, signature, proof):
        raise LinkRefused("it does not have the key of the node that it says it is")
    await stream.send_all(identity.sign(transcript("acceptor", preface, theirs, ours)))


def _name_of(connection: socket.socket) -> str:
    with suppress(OSError):
        host, port = connection.getpeername()[:2]
        return f"{host}:{port}"
    return "unknown"


def _reset(connection: socket.socket) -> None:
    if connection.fileno() >= 0:
        SocketLink(connection, has_options=True).reset()


# -- the dialling side


async def dial_node(
    node: Node,
    identity: NodeIdentity,
    *,
    tls: bool,
    folder: Path | None = None,
    timeout: float = DIAL_TIMEOUT,  # noqa: ASYNC109 (it belongs to the handshake, as on the other side)
) -> WebSocket:
    """Open a link to a node: over its Unix socket on the same machine, else over TCP, there with
    TLS where `tls` says so. `LinkFailed`.

    The database says where a node is. Whoever can write there should reach no other service of this
    machine through relay: sockets have to be in the `folder` of this machine's nodes, if one is
    given, and nothing but the ids of two nodes is sent to what has proven nothing.

    End it with its `aclose`, if it should end politely, and then `abort`.
    """
    try:
        with trio.fail_after(timeout):
            if node.machine == identity.machine and node.socket is not None:
                if folder is not None and Path(node.socket).parent != folder:
                    raise LinkFailed(f"the socket of node {node.node_id} is not where they are")
                return await introduce(await _connect_here(node.socket), node, identity, tls=False)
            if node.address is None:
                raise LinkFailed(f"node {node.node_id} has no address for other machines")
            return await introduce(await _connect_to(node.address), node, identity, tls=tls)
    except trio.TooSlowError:
        raise LinkFailed(f"node {node.node_id} did not answer in {timeout:g} s") from None


async def introduce(
    stream: trio.abc.Stream, node: Node, identity: NodeIdentity, *, tls: bool
) -> WebSocket:
    """Prove who we are over a connected stream, and let the node prove who it is. `LinkFailed`;
    the stream is closed when this does not return. The caller sets the deadline."""
    preface = Preface(node.node_id, identity.node_id)
    try:
        if not preface.is_sound:
            raise LinkFailed("the database has a node whose id is none")
        if tls:
            stream = await _show_certificate(stream, preface, node, identity)
        else:
            await _show_signature(stream, preface, node, identity)
    except (trio.BrokenResourceError, trio.ClosedResourceError, EOFError) as problem:
        await trio.aclose_forcefully(stream)
        raise LinkFailed(f"node {node.node_id} refuses the link: {_why(problem)}") from None
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    now = trio.current_time()
    return WebSocket(stream, heard_at=now, moved_at=now)


async def _show_certificate(
    stream: trio.abc.Stream, preface: Preface, node: Node, identity: NodeIdentity
) -> trio.abc.Stream:
    try:
        context, expected = identity.client_context(node.certificate), der_of(node.certificate)
    except BadCertificate:
        raise LinkFailed(f"the database has no good certificate of {node.node_id}") from None
    await stream.send_all(preface.encode())
    encrypted = trio.SSLStream(stream, context, https_compatible=True)
    await encrypted.do_handshake()
    if encrypted.getpeercert(binary_form=True) != expected:
        raise LinkFailed(f"{node.node_id} has the certificate of another node")
    if await receive_exactly(encrypted, len(WELCOME)) != WELCOME:
        raise LinkFailed(f"{node.node_id} does not welcome us")
    return encrypted


async def _show_signature(
    stream: trio.abc.Stream, preface: Preface, node: Node, identity: NodeIdentity
) -> None:
    ours = os.urandom(NONCE_BYTES)
    await stream.send_all(preface.encode() + ours)
    theirs = await receive_exactly(stream, NONCE_BYTES)
    await stream.send_all(identity.sign(transcript("dialler", preface, ours, theirs)))
    signature = await receive_exactly(stream, SIGNATURE_BYTES)
    proof = transcript("acceptor", preface, ours, theirs)
    if not has_signed(node.certificate, signature, proof):
        raise LinkFailed(f"what answers for node {node.node_id} does not have its key")


async def _connect_here(path: str) -> trio.abc.Stream:
    try:
        return await trio.open_unix_socket(path)
    except (OSError, ValueError) as problem:
        raise LinkFailed(f"cannot connect to {path}: {problem}") from None


async def _connect_to(address: str) -> trio.abc.Stream:
    try:
        stream, _, _ = await open_plain(f"ws://{address}", receive_buffer=RECEIVE_BUFFER_BYTES)
    except DialFailed as problem:
        raise LinkFailed(str(problem)) from None
    return stream


# -- both sides


def _why(problem: BaseException) -> str:
    match problem.__cause__:
        case ssl.SSLCertVerificationError(verify_message=words):
            return f"its certificate is another one ({words})"
        case ssl.SSLError(reason=str(words)):
            return words.replace("_", " ").lower()
    return "the connection ended"
