"""Who gets past an agent's door, and what all others see of it."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from relay.cluster.links.doors import MAX_STRANGERS, MAX_STRANGERS_PER_ADDRESS, PROOF_TIMEOUT, Gate
from relay.errors import ConfigError
from relay.load.run.agents import handshake
from relay.load.run.agents.handshake import (
    AgentAddress,
    AgentRefused,
    accept_coordinator,
    fingerprint_of,
    first_line,
    parse_fingerprint,
)
from relay.load.run.agents.key_file import open_key, read_key
from relay.load.run.wire import WIRE_VERSION
from relay.transport.pinned_key import PinnedKey, make_pinned_key

AGENT, COORDINATOR, STRANGER = (make_pinned_key("relay load") for _ in range(3))
ADDRESS = AgentAddress("agent.test:3100", fingerprint_of(AGENT))


class Door:
    """An agent's door, with callers on socket pairs."""

    def __init__(self, nursery: trio.Nursery, key: PinnedKey = AGENT) -> None:
        self.nursery, self.key, self.stack = nursery, key, ExitStack()
        self.gate = Gate("agent")
        self.admitted: list[trio.abc.Stream] = []

    def call(self) -> trio.SocketStream:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self.stack.enter_context(ours)
        self.stack.enter_context(theirs)
        self.nursery.start_soon(self._admit, ours)
        return trio.SocketStream(trio.socket.from_stdlib_socket(theirs))

    async def _admit(self, connection: socket.socket) -> None:
        coordinators = frozenset({fingerprint_of(COORDINATOR)})
        prove = partial(accept_coordinator, key=self.key, coordinators=coordinators)
        stream = await self.gate.admit(connection, prove)
        if stream is not None:
            self.admitted.append(stream)


@asynccontextmanager
async def open_door(key: PinnedKey = AGENT) -> AsyncIterator[Door]:
    async with trio.open_nursery() as nursery:
        door = Door(nursery, key)
        with door.stack:
            yield door
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await trio.testing.wait_all_tasks_blocked()


async def what_it_says(caller: trio.abc.ReceiveStream) -> bytes:
    """All that comes until the connection ends."""
    heard = b""
    with suppress(trio.BrokenResourceError):
        while data := await caller.receive_some():
            heard += data
    return heard


async def test_a_coordinator_that_is_known_is_let_in_and_both_can_talk() -> None:
    async with open_door() as door:
        stream = await handshake._introduce(door.call(), ADDRESS, COORDINATOR)
        await trio.testing.wait_all_tasks_blocked()
        (admitted,) = door.admitted
        await stream.send_all(b"up")
        assert await admitted.receive_some() == b"up"
        await admitted.send_all(b"down")
        assert await stream.receive_some() == b"down"


async def test_a_stranger_hears_nothing_and_is_told_at_home_what_is_missing() -> None:
    async with open_door() as door:
        for first in (
            first_line(STRANGER),
            b"GET / HTTP/1.1\r\n\r\n",
            b"\x16\x03\x01" * 50 + b"\n",
        ):
            caller = door.call()
            await caller.send_all(first)
            assert await what_it_says(caller) == b""
        with pytest.raises(AgentRefused, match=f"--coordinator {fingerprint_of(STRANGER)}"):
            await handshake._introduce(door.call(), ADDRESS, STRANGER)
        assert door.admitted == []


async def test_the_certificate_of_a_coordinator_is_worth_nothing_without_its_key() -> None:
    """Whoever saw a first line on the network can repeat it, and no more."""
    async with open_door() as door:
        caller = door.call()
        await caller.send_all(first_line(COORDINATOR))
        assert (await caller.receive_some()).startswith(b"relay-load ")
        context = STRANGER.client_context(AGENT.certificate_pem)
        encrypted = trio.SSLStream(caller, context, https_compatible=True)
        with suppress(trio.BrokenResourceError):
            await encrypted.do_handshake()
            await encrypted.receive_some()
        await trio.testing.wait_all_tasks_blocked()
        assert door.admitted == []


@pytest.mark.mock_clock
async def test_whoever_says_nothing_or_half_a_line_is_closed_in_time() -> None:
    async with open_door() as door:
        for first in (b"", b"relay-load 1 ", b"relay-load 1 " + b"A" * 100):
            caller = door.call()
            await caller.send_all(first)
            with trio.fail_after(PROOF_TIMEOUT + 0.1):
                assert await what_it_says(caller) == b""


@pytest.mark.mock_clock
async def test_a_line_without_end_is_not_read_to_its_end() -> None:
    async with open_door() as door:
        caller = door.call()
        await caller.send_all(b"A" * handshake.MAX_LINE_BYTES)
        with trio.fail_after(0.1):
            assert await what_it_says(caller) == b""


@pytest.mark.mock_clock
async def test_thousands_of_strangers_are_few_at_a_time() -> None:
    async with open_door() as door:
        callers = [door.call() for _ in range(300)]
        await trio.testing.wait_all_tasks_blocked()
        assert door.gate._strangers.total() == MAX_STRANGERS > MAX_STRANGERS_PER_ADDRESS
        await trio.sleep(PROOF_TIMEOUT + 0.1)
        assert door.gate._strangers.total() == 0
        for caller in callers:
            assert await what_it_says(caller) == b""
            await caller.aclose()
        stream = await handshake._introduce(door.call(), ADDRESS, COORDINATOR)
        await stream.aclose()


async def test_another_agent_than_the_pinned_one_gets_no_handshake() -> None:
    async with open_door(STRANGER) as door:
        caller = door.call()
        with pytest.raises(AgentRefused, match="is another agent: its fingerprint is"):
            await handshake._introduce(caller, ADDRESS, COORDINATOR)
        await trio.aclose_forcefully(caller)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n", b"relay-load 1 AAAA\n", b"\n"])
async def test_what_is_no_agent_is_told_so(answer: bytes) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    await theirs.send_all(answer)
    with pytest.raises(AgentRefused, match=r"agent\.test:3100 is no agent"):
        await handshake._introduce(ours, ADDRESS, COORDINATOR)


async def test_an_agent_of_another_version_is_refused_with_a_clear_line() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    await theirs.send_all(first_line(AGENT, WIRE_VERSION + 1))
    words = rf"version {WIRE_VERSION + 1} of load tests, this relay {WIRE_VERSION}: install the sa"
    with pytest.raises(AgentRefused, match=words):
        await handshake._introduce(ours, ADDRESS, COORDINATOR)


async def test_a_coordinator_of_another_version_learns_ours_and_is_refused() -> None:
    async with open_door() as door:
        caller = door.call()
        await caller.send_all(first_line(COORDINATOR, WIRE_VERSION + 1))
        assert await what_it_says(caller) == first_line(AGENT)
        assert door.admitted == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("agent.test:3100", "needs the fingerprint"),
        ("agent.test=aa", "expected HOST:PORT=FINGERPRINT"),
        ("agent.test:3100=aa", "64 hexadecimal digits"),
        (f"ws://agent.test:1={'a' * 64}", "expected HOST:PORT=FINGERPRINT"),
    ],
)
def test_an_address_that_is_wrong_is_explained(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        AgentAddress.parse(text)


def test_a_fingerprint_may_have_colons() -> None:
    spaced = ":".join(["AB"] * 32)
    assert AgentAddress.parse(f"[::1]:3100={spaced}").fingerprint == "ab" * 32
    assert parse_fingerprint("ab" * 32, "--coordinator") == "ab" * 32


def test_a_key_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    made = open_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert fingerprint_of(open_key(path)) == fingerprint_of(made)
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="others may read the key"):
        read_key(path)


@pytest.mark.parametrize("content", [b"", b"nothing", AGENT.certificate_pem.encode()])
def test_a_file_without_a_key_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key.pem"
    path.touch(mode=0o600)
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="is no key"):
        read_key(path)
    with pytest.raises(ConfigError, match="cannot read the key"):
        read_key(tmp_path / "missing.pem")


def test_a_key_with_the_certificate_of_another_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.touch(mode=0o600)
    private = AGENT.with_private_key().partition(b"-----BEGIN CERTIFICATE")[0]
    path.write_bytes(private + STRANGER.certificate_pem.encode())
    with pytest.raises(ConfigError, match="is no key"):
        read_key(path)


def test_no_key_shows_its_secret() -> None:
    assert "PRIVATE" not in repr(AGENT)
