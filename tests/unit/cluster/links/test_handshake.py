"""Opening a link: both sides prove who they are, or there is none."""

from __future__ import annotations

import os
import socket
import ssl
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
from attrs import evolve

from relay.client.websocket import WebSocket
from relay.cluster.links.doors import listen_here, socket_folder
from relay.cluster.links.handshake import (
    LinkFailed,
    accept_node,
    dial_node,
    introduce,
    read_preface,
)
from relay.cluster.links.identity import SIGNATURE_BYTES, make_identity
from relay.cluster.links.proof import NONCE_BYTES, LinkRefused, Preface, transcript
from relay.transport.tls import TlsLink
from tests.unit.cluster.links.nodes import Table, connection, identities, meeting, node_of

BOTH_WAYS = pytest.mark.parametrize("tls", [False, True], ids=["signatures", "tls"])


async def all_bytes(stream: trio.SocketStream) -> bytes:
    """What comes up to the end, however the connection ends."""
    received = b""
    try:
        async for more in stream:
            received += more
    except trio.BrokenResourceError:
        pass
    return received


# -- both are who they say


@BOTH_WAYS
async def test_two_nodes_that_know_each_other_have_a_link(tls: bool) -> None:
    dialler, acceptor = identities("one", "another")
    async with meeting(dialler, acceptor, Table.of(dialler), tls=tls) as outcome:
        assert isinstance(outcome.accepted, tuple)
        assert isinstance(outcome.dialled, WebSocket)
        node, stream = outcome.accepted
        assert node == node_of(dialler)
        assert isinstance(stream.link, TlsLink) == tls
        text = "the first message"
        await outcome.dialled.send(text)
        assert (await stream.receive_some())[:2] == bytes([0x81, 0x80 | len(text)])


@BOTH_WAYS
async def test_frames_right_behind_the_proof_are_not_lost(tls: bool) -> None:
    dialler, acceptor = identities("one", "another")
    async with meeting(dialler, acceptor, Table.of(dialler), tls=tls) as outcome:
        assert isinstance(outcome.accepted, tuple)
        assert isinstance(outcome.dialled, WebSocket)
        await outcome.accepted[1].send_all(b"\x82\x05hello\x82\x05again")
        got: list[bytes] = []
        while len(got) < 2:
            await outcome.dialled.read(lambda message: got.append(bytes(message)))
        assert got == [b"hello", b"again"]


# -- somebody is not


@BOTH_WAYS
async def test_a_dialler_without_the_key_of_its_node_is_refused(tls: bool) -> None:
    dialler, acceptor, thief = identities("one", "another", "third")
    table = Table.of(dialler, thief)  # its own certificate is that of a node, too
    thief = evolve(thief, node_id=dialler.node_id)
    async with meeting(thief, acceptor, table, tls=tls) as outcome:
        assert isinstance(outcome.accepted, LinkRefused)
        assert isinstance(outcome.dialled, LinkFailed)


@BOTH_WAYS
async def test_an_acceptor_without_the_key_of_its_node_is_left(tls: bool) -> None:
    dialler, acceptor, wanted = identities("one", "another", "third")
    acceptor = evolve(acceptor, node_id=wanted.node_id)
    called = node_of(wanted)
    async with meeting(dialler, acceptor, Table.of(dialler), called=called, tls=tls) as outcome:
        assert isinstance(outcome.dialled, LinkFailed)


@BOTH_WAYS
async def test_a_certificate_that_is_none_is_good_for_no_link(tls: bool) -> None:
    dialler, acceptor = identities("one", "another")
    empty = evolve(node_of(dialler), certificate="")
    async with meeting(dialler, acceptor, Table.of(empty), tls=tls) as outcome:
        assert isinstance(outcome.accepted, LinkRefused)
        assert isinstance(outcome.dialled, LinkFailed)
    empty = evolve(node_of(acceptor), certificate="")
    async with meeting(dialler, acceptor, Table.of(dialler), called=empty, tls=tls) as outcome:
        assert isinstance(outcome.dialled, LinkFailed)


@pytest.mark.parametrize("tls", [(False, True), (True, False)], ids=["dialler", "acceptor"])
async def test_without_tls_at_one_side_there_is_no_link(tls: tuple[bool, bool]) -> None:
    dialler, acceptor = identities("one", "another")
    async with meeting(dialler, acceptor, Table.of(dialler), tls=tls) as outcome:
        assert isinstance(outcome.accepted, LinkRefused)
        assert isinstance(outcome.dialled, LinkFailed)


@pytest.mark.parametrize("weakness", ["TLS 1.2", "no certificate"])
async def test_a_dialler_with_weaker_tls_is_refused(weakness: str) -> None:
    dialler, acceptor = identities("one", "another")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if weakness == "TLS 1.2":
        context = dialler.client_context(acceptor.certificate_pem)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    with connection() as (ours, caller), trio.fail_after(10):
        async with trio.open_nursery() as nursery:

            async def call() -> None:
                await caller.send_all(Preface(acceptor.node_id, dialler.node_id).encode())
                encrypted = trio.SSLStream(caller, context, https_compatible=True)
                with pytest.raises(trio.BrokenResourceError):  # noqa: PT012 (whichever comes first)
                    await encrypted.do_handshake()
                    while await encrypted.receive_some():
                        raise AssertionError("it was welcomed")
                    raise trio.BrokenResourceError

            nursery.start_soon(call)
            with pytest.raises(LinkRefused):
                await accept_node(ours, acceptor, Table.of(dialler).lookup, tls=True)


@BOTH_WAYS
@pytest.mark.parametrize("stranger", ["nobody", "to another", "oneself", "answered by another"])
async def test_a_stranger_hears_nothing(stranger: str, tls: bool) -> None:
    dialler, acceptor, third = identities("one", "another", "third")
    preface = Preface(acceptor.node_id, dialler.node_id)
    table = Table.of(acceptor)
    match stranger:
        case "to another":
            preface, table = Preface(third.node_id, dialler.node_id), Table.of(dialler)
        case "oneself":
            preface = Preface(acceptor.node_id, acceptor.node_id)
        case "answered by another":
            table.nodes[dialler.node_id] = node_of(third)
    with connection() as (ours, caller), trio.fail_after(10):
        await caller.send_all(preface.encode() + bytes(NONCE_BYTES))
        with pytest.raises(LinkRefused):
            await accept_node(ours, acceptor, table.lookup, tls=tls)
        assert await all_bytes(caller) == b""


async def test_who_knows_two_nodes_and_proves_nothing_gets_a_random_number() -> None:
    dialler, acceptor = identities("one", "another")
    heard = []
    for _ in range(2):
        with connection() as (ours, caller), trio.fail_after(10):
            preface = Preface(acceptor.node_id, dialler.node_id)
            await caller.send_all(preface.encode() + bytes(NONCE_BYTES + SIGNATURE_BYTES))
            with pytest.raises(LinkRefused):
                await accept_node(ours, acceptor, Table.of(dialler).lookup, tls=False)
            heard.append(await all_bytes(caller))
    assert [len(each) for each in heard] == [NONCE_BYTES] * 2
    assert heard[0] != heard[1]


# -- somebody in between


async def test_a_proof_that_is_played_again_is_refused() -> None:
    dialler, acceptor = identities("one", "another")
    lookup = Table.of(dialler).lookup
    preface, nonce = Preface(acceptor.node_id, dialler.node_id), os.urandom(NONCE_BYTES)
    recorded = preface.encode() + nonce
    with connection() as (ours, caller), trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(accept_node, ours, acceptor, lookup, tls=False))
            await caller.send_all(recorded)
            theirs = await caller.receive_some(NONCE_BYTES)
            signature = dialler.sign(transcript("dialler", preface, nonce, theirs))
            await caller.send_all(signature)
            assert len(await caller.receive_some()) == SIGNATURE_BYTES  # it was good
    with connection() as (ours, caller), trio.fail_after(10):
        await caller.send_all(recorded + signature)
        with pytest.raises(LinkRefused, match="does not have the key"):
            await accept_node(ours, acceptor, lookup, tls=False)
        assert len(await all_bytes(caller)) == NONCE_BYTES


async def test_a_node_s_own_proof_sent_back_to_it_proves_nothing() -> None:
    """Somebody answers for another node with what the dialler itself sent."""
    dialler, acceptor = identities("one", "another")
    with connection() as (mirror, caller), trio.fail_after(10):
        async with trio.open_nursery() as nursery:

            async def reflect() -> None:
                stream = trio.SocketStream(trio.socket.from_stdlib_socket(mirror))
                preface = Preface(acceptor.node_id, dialler.node_id).encode()
                sent = b""
                while len(sent) < len(preface) + NONCE_BYTES:
                    sent += await stream.receive_some()
                await stream.send_all(sent[-NONCE_BYTES:])  # their own nonce
                await stream.send_all(await stream.receive_some())

            nursery.start_soon(reflect)
            with pytest.raises(LinkFailed, match="does not have its key"):
                await introduce(caller, node_of(acceptor), dialler, tls=False)


async def test_a_proof_that_a_node_gave_as_dialler_is_none_as_acceptor() -> None:
    """Somebody has the same node prove itself elsewhere, with the same ids and nonces."""
    dialler, acceptor = identities("one", "another")
    with connection() as (mirror, caller), trio.fail_after(10):
        async with trio.open_nursery() as nursery:

            async def answer() -> None:
                stream = trio.SocketStream(trio.socket.from_stdlib_socket(mirror))
                preface, ours = Preface(acceptor.node_id, dialler.node_id), bytes(NONCE_BYTES)
                sent = b""
                while len(sent) < len(preface.encode()) + NONCE_BYTES:
                    sent += await stream.receive_some()
                await stream.send_all(ours)
                await stream.receive_some()
                signed = transcript("dialler", preface, sent[-NONCE_BYTES:], ours)
                await stream.send_all(acceptor.sign(signed))

            nursery.start_soon(answer)
            with pytest.raises(LinkFailed, match="does not have its key"):
                await introduce(caller, node_of(acceptor), dialler, tls=False)


# -- the preface


async def test_a_preface_may_come_in_pieces_and_nothing_behind_it_is_read() -> None:
    line = Preface("to", "from").encode()
    with connection() as (ours, caller), trio.fail_after(10):
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                for at in range(0, len(line), 3):
                    await caller.send_all(line[at : at + 3])
                    await trio.lowlevel.checkpoint()
                await caller.send_all(b"\x16\x03\x01")

            nursery.start_soon(send)
            assert await read_preface(ours) == Preface("to", "from")
        assert ours.recv(100) == b"\x16\x03\x01"


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (b"x" * 256, "too long"),
        (b"x" * 10_000, "too long"),
        (b"GET / HTTP/1.1\r\n", "does not begin like a link"),
        (b"\n", "does not begin like a link"),
        (b"relay-node 1 a", "ended before its preface"),
        (b"", "ended before its preface"),
    ],
)
async def test_what_does_not_begin_with_a_preface_is_refused(sent: bytes, why: str) -> None:
    with connection() as (ours, caller), trio.fail_after(10):
        await caller.send_all(sent)
        await caller.send_eof()
        with pytest.raises(LinkRefused, match=why):
            await read_preface(ours)


# -- dialling


async def test_a_node_without_an_address_cannot_be_dialled() -> None:
    ours, theirs = identities("one", "another")
    with pytest.raises(LinkFailed, match="has no address"):
        await dial_node(evolve(node_of(theirs), socket="/nowhere"), ours, tls=True)


@pytest.mark.parametrize("path", ["nowhere.sock", "x" * 200])
async def test_a_socket_that_is_not_there_is_said(path: str, tmp_path: Path) -> None:
    ours, theirs = identities("one", "one")
    with pytest.raises(LinkFailed, match="cannot connect to"):
        await dial_node(evolve(node_of(theirs), socket=str(tmp_path / path)), ours, tls=True)


async def test_a_socket_elsewhere_is_not_dialled(tmp_path: Path) -> None:
    ours, theirs = identities("one", "one")
    with socket_folder() as folder, socket.socket(socket.AF_UNIX) as other_service:
        path = str(tmp_path / "docker.sock")
        other_service.bind(path)
        other_service.listen()
        for named in (path, f"{folder}/../{tmp_path.name}/docker.sock", "docker.sock"):
            with pytest.raises(LinkFailed, match="is not where they are"):
                await dial_node(
                    evolve(node_of(theirs), socket=named), ours, tls=True, folder=folder
                )
        other_service.setblocking(False)
        with pytest.raises(BlockingIOError):
            other_service.accept()


@BOTH_WAYS
@pytest.mark.parametrize(
    "node_id", ["a\r\nGET / HTTP/1.1\r\n\r\n", "a b", "", "a" * 1000, "\u2603"]
)
async def test_nothing_is_sent_to_a_node_whose_id_could_be_a_request(
    node_id: str, tls: bool
) -> None:
    ours, theirs = identities("one", "another")
    with connection() as (silent, caller), trio.fail_after(10):
        with pytest.raises(LinkFailed, match="whose id is none"):
            await introduce(caller, evolve(node_of(theirs), node_id=node_id), ours, tls=tls)
        assert silent.recv(1000) == b""


async def test_an_address_that_refuses_is_said() -> None:
    ours, theirs = identities("one", "another")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(LinkFailed, match=f"cannot connect to 127.0.0.1:{port}"):
        await dial_node(evolve(node_of(theirs), address=f"127.0.0.1:{port}"), ours, tls=True)


@pytest.mark.mock_clock
async def test_a_node_that_does_not_answer_is_given_up() -> None:
    ours, theirs = identities("one", "one")
    with socket_folder() as folder:
        silent, path = listen_here(folder, theirs.node_id)
        start = trio.current_time()
        with pytest.raises(LinkFailed, match="did not answer in 2 s"):
            await dial_node(evolve(node_of(theirs), socket=path), ours, tls=True)
        assert trio.current_time() - start == 2
        await silent.aclose()


@BOTH_WAYS
async def test_a_dial_that_is_cancelled_leaves_no_connection(tls: bool) -> None:
    ours, theirs = identities("one", "another")
    with connection() as (silent, caller), trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(introduce, caller, node_of(theirs), ours, tls=tls))
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert caller.socket.fileno() < 0
        assert silent.recv(1000).startswith(Preface(theirs.node_id, ours.node_id).encode())


@BOTH_WAYS
async def test_an_accept_that_is_cancelled_leaves_no_connection(tls: bool) -> None:
    dialler, acceptor = identities("one", "another")
    with connection() as (ours, caller), trio.fail_after(10):
        await caller.send_all(Preface(acceptor.node_id, dialler.node_id).encode())
        async with trio.open_nursery() as nursery:
            lookup = Table.of(dialler).lookup
            nursery.start_soon(partial(accept_node, ours, acceptor, lookup, tls=tls))
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert ours.fileno() < 0


def test_ids_are_not_repeated_by_chance() -> None:
    assert len({make_identity("here").node_id for _ in range(20)}) == 20
