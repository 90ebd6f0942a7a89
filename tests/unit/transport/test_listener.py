"""Listening sockets and the links that come from them, on real sockets of the loopback."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import structlog.testing
import trio
import trio.testing
from attrs import define

from relay.errors import ConfigError
from relay.transport.link import LOW_WATER_BYTES, Link, SocketLink
from relay.transport.listener import TcpListener, listen
from relay.transport.stream import FrameStream
from tests.unit.memory import link_pair

HERE = "127.0.0.1"
NOT_HERE = "192.0.2.1"  # kept for documentation (RFC 5737), so nobody has it


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@asynccontextmanager
async def listening(*addresses: tuple[str, int]) -> AsyncIterator[list[TcpListener]]:
    listeners = await listen(addresses or [(HERE, 0)], stall_timeout=30)
    try:
        yield listeners
    finally:
        for listener in listeners:
            await listener.aclose()


def port_of(listener: TcpListener) -> int:
    return int(listener.url.rpartition(":")[2])


@asynccontextmanager
async def accepted() -> AsyncIterator[tuple[FrameStream, socket.socket]]:
    """A stream from a listener, and the blocking socket that called it."""
    async with listening() as (listener,):
        with socket.create_connection((HERE, port_of(listener))) as caller:
            with trio.fail_after(10):
                stream = await listener.accept()
            async with stream:
                yield stream, caller


# -- listening


async def test_the_address_says_where_it_listens() -> None:
    async with listening() as (listener,):
        assert listener.url == f"http://{HERE}:{listener.socket.getsockname()[1]}"


@pytest.mark.skipif(not has_ipv6(), reason="platform: no IPv6 here")
async def test_both_families_share_the_port_that_the_system_chose() -> None:
    async with listening((HERE, 0), ("::1", 0)) as (four, six):
        port = port_of(four)
        assert six.url == f"http://[::1]:{port}"
        for address in (HERE, "::1"):
            with socket.create_connection((address, port)):
                pass


async def test_an_address_that_this_machine_does_not_have_is_left_out() -> None:
    async with listening((NOT_HERE, 0), (HERE, 0)) as listeners:
        assert [listener.url.rpartition(":")[0] for listener in listeners] == [f"http://{HERE}"]


async def test_with_no_address_at_all_it_says_so() -> None:
    with pytest.raises(ConfigError, match=rf"bind: {NOT_HERE}:0 cannot be used: .+"):
        await listen([(NOT_HERE, 0)], stall_timeout=30)


async def test_a_port_in_use_is_named_and_the_others_are_let_go() -> None:
    async with listening() as (first,):
        taken = port_of(first)
        with socket.create_server((HERE, 0)) as probe:
            free = probe.getsockname()[1]
        with pytest.raises(ConfigError) as caught:
            await listen([(HERE, free), (HERE, taken)], stall_timeout=30)
        assert str(caught.value) == f"bind: {HERE}:{taken} is in use; choose another port"
        async with listening((HERE, free)):
            pass


@define(eq=False)
class NoNames(trio.abc.HostnameResolver):
    """A resolver that knows nobody, without asking the network."""

    async def getaddrinfo(self, *_: Any, **__: Any) -> Any:
        await trio.lowlevel.checkpoint()
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async def getnameinfo(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


async def test_an_unknown_host_is_named_in_the_error() -> None:
    trio.socket.set_custom_hostname_resolver(NoNames())
    try:
        with pytest.raises(ConfigError, match="bind: nobody:80 cannot be used: Name or service"):
            await listen([("nobody", 80)], stall_timeout=30)
    finally:
        trio.socket.set_custom_hostname_resolver(None)


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".example", "\udcff"])
async def test_a_name_that_cannot_be_one_is_named(host: str) -> None:
    with pytest.raises(ConfigError, match="cannot be used"):
        await listen([(host, 80)], stall_timeout=30)


# -- accepting


async def test_bytes_go_both_ways() -> None:
    async with accepted() as (stream, caller):
        name, port = caller.getsockname()
        assert stream.link.peer == f"{name}:{port}"
        assert not stream.encrypted
        caller.sendall(b"GET /")
        assert await stream.receive_some() == b"GET /"
        await stream.send_all(b"HTTP/1.1 200 OK")
        assert caller.recv(100) == b"HTTP/1.1 200 OK"
        caller.close()
        assert await stream.receive_some() == b""


@define(eq=False, slots=False)
class Flaky:
    """A listening socket on which the first callers hang up before they are accepted."""

    inner: socket.socket
    failures: list[OSError]

    def fileno(self) -> int:
        return self.inner.fileno()

    def close(self) -> None:
        self.inner.close()

    def accept(self) -> tuple[socket.socket, Any]:
        if self.failures:
            raise self.failures.pop()
        return self.inner.accept()


async def test_callers_that_hang_up_before_they_are_accepted_are_passed_over() -> None:
    async with listening() as (listener,):
        failures = [BlockingIOError(), ConnectionAbortedError(), BlockingIOError()]
        flaky: Any = Flaky(listener.socket, list(failures))
        with socket.create_connection((HERE, port_of(listener))) as caller, trio.fail_after(10):
            stream = await TcpListener(flaky, 30, None).accept()
            assert stream.link.peer == "{}:{}".format(*caller.getsockname())
            await stream.aclose()


async def test_with_too_many_open_files_callers_wait_and_it_is_logged_once() -> None:
    with structlog.testing.capture_logs() as lines:
        async with listening() as (listener,):
            failures = [OSError(errno.EMFILE, "Too many open files") for _ in range(3)]
            flaky: Any = Flaky(listener.socket, failures)
            with socket.create_connection((HERE, port_of(listener))), trio.fail_after(10):
                stream = await TcpListener(flaky, 30, None).accept()
            assert not failures
            await stream.aclose()
    assert [line["why"] for line in lines] == ["Too many open files"]


@pytest.mark.parametrize("number", [errno.EPERM, errno.EPROTO, errno.ENETUNREACH])
async def test_what_befell_a_caller_does_not_end_the_accept_loop(number: int) -> None:
    async with listening() as (listener,):
        flaky: Any = Flaky(listener.socket, [OSError(number, os.strerror(number))])
        with socket.create_connection((HERE, port_of(listener))), trio.fail_after(10):
            stream = await TcpListener(flaky, 30, None).accept()
        await stream.aclose()


async def test_an_unexpected_error_reaches_the_accept_loop() -> None:
    async with listening() as (listener,):
        flaky: Any = Flaky(listener.socket, [OSError(errno.ENOTSOCK, "Not a socket")])
        with (
            socket.create_connection((HERE, port_of(listener))),
            pytest.raises(OSError, match="Not a socket"),
        ):
            await TcpListener(flaky, 30, None).accept()


async def test_a_caller_that_is_gone_again_does_not_end_the_accept_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:  # as on macOS, when the other side has closed
        raise OSError(errno.EINVAL, "Invalid argument")

    async with listening() as (listener,):
        with socket.create_connection((HERE, port_of(listener))):
            monkeypatch.setattr(socket.socket, "setsockopt", fail)
            with trio.fail_after(10):
                stream = await listener.accept()
            stream.abort()
            assert stream.link.closed


async def test_closing_a_listener_tells_who_waits_for_a_caller() -> None:
    async with listening() as (listener,), trio.open_nursery() as nursery:

        async def accept() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await listener.accept()

        nursery.start_soon(accept)
        await trio.testing.wait_all_tasks_blocked()
        await listener.aclose()
        await listener.aclose()
        await accept()


# -- links


async def test_small_frames_are_not_held_back_and_large_ones_not_piled_up() -> None:
    async with accepted() as (stream, _):
        assert isinstance(stream.link, SocketLink)
        assert stream.link.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            mark = stream.link.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)
            assert mark == LOW_WATER_BYTES


@pytest.mark.skipif(sys.platform != "linux", reason="platform: only Linux tells unsent bytes")
async def test_unsent_bytes_are_told_and_above_the_mark_the_link_is_not_writable() -> None:
    async with accepted() as (stream, caller):
        link = stream.link
        assert link.unsent() == 0
        with suppress(BlockingIOError):
            while True:
                link.send(bytes(65536))
        assert (link.unsent() or 0) >= LOW_WATER_BYTES
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.wait_writable)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert nursery.child_tasks
            while (link.unsent() or 0) >= LOW_WATER_BYTES:
                caller.recv(1 << 20)
        assert (link.unsent() or 0) < LOW_WATER_BYTES


@pytest.mark.skipif(sys.platform != "linux", reason="platform: only Linux tells unsent bytes")
@pytest.mark.parametrize("size", [500, 2048, 20_000, 3 * 65536])
async def test_nothing_is_begun_while_much_lies_unsent(size: int) -> None:
    async with accepted() as (stream, caller):
        link = stream.link

        def fill() -> None:
            while True:  # the kernel may take a while to pass on what it can
                link.send_if_low(bytes(size))

        with pytest.raises(BlockingIOError):
            fill()
        assert (link.unsent() or 0) < LOW_WATER_BYTES + size
        while (link.unsent() or 0) >= LOW_WATER_BYTES:
            caller.recv(1 << 20)
        assert link.send_if_low(bytes(size))


async def test_where_unsent_bytes_are_unknown_nothing_is_written_before_asking_to_wait() -> None:
    async with accepted() as (stream, _):
        assert isinstance(stream.link, SocketLink)
        stream.link.knows_unsent = False
        assert stream.link.unsent() is None
        with pytest.raises(BlockingIOError):
            stream.link.send_if_low(b"x")
        assert stream.link.send(b"x") == 1


async def test_a_close_delivers_and_a_reset_throws_away() -> None:
    async with accepted() as (stream, caller):
        await stream.send_all(b"last words")
        stream.link.close()
        assert caller.recv(100) == b"last words"
        assert caller.recv(100) == b""
    async with accepted() as (stream, caller):
        stream.link.reset()
        with pytest.raises(ConnectionResetError):
            caller.recv(100)


Opening = Callable[[], Any]


@asynccontextmanager
async def socket_link() -> AsyncIterator[Link]:
    async with accepted() as (stream, _):
        yield stream.link


@asynccontextmanager
async def memory_link() -> AsyncIterator[Link]:
    yield link_pair()[0]


EVERY_LINK = pytest.mark.parametrize("opening", [socket_link, memory_link])


@EVERY_LINK
@pytest.mark.parametrize("end", ["close", "reset"])
async def test_on_a_closed_link_what_does_not_wait_raises_os_errors(
    opening: Opening, end: str
) -> None:
    async with opening() as link:
        getattr(link, end)()
        assert link.closed
        calls: list[Callable[[], object]] = [
            lambda: link.send(b"x"),
            lambda: link.recv_into(memoryview(bytearray(10))),
            link.unsent,
        ]
        for call in calls:
            with pytest.raises(OSError):  # noqa: PT011
                call()
        link.close()
        link.reset()


@EVERY_LINK
async def test_on_a_closed_link_what_waits_says_so(opening: Opening) -> None:
    async with opening() as link:
        link.close()
        waits: list[Callable[[], Awaitable[object]]] = [link.wait_readable, link.wait_writable]
        for wait in waits:
            with pytest.raises(trio.ClosedResourceError):
                await wait()


@EVERY_LINK
async def test_a_task_that_waits_for_a_link_learns_that_it_was_closed(opening: Opening) -> None:
    async with opening() as link, trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await link.wait_readable()

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        link.close()


async def test_an_accepted_connection_writes_at_once_and_keeps_little_unsent() -> None:
    async with accepted() as (stream, _caller):
        assert isinstance(stream.link, SocketLink)
        ours = stream.link.socket
        assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            lowest = ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)
            assert lowest == LOW_WATER_BYTES


async def test_many_that_call_at_once_are_accepted_and_the_next_one_is_waited_for() -> None:
    async with listening() as (listener,):
        callers = [socket.create_connection((HERE, port_of(listener))) for _ in range(20)]
        with trio.fail_after(10):
            streams = [await listener.accept() for _ in callers]
            await trio.lowlevel.checkpoint()
        peers = {stream.link.peer for stream in streams}
        assert peers == {f"{HERE}:{caller.getsockname()[1]}" for caller in callers}
        with trio.move_on_after(0.1) as waiting:
            await listener.accept()
        assert waiting.cancelled_caught
        for stream in streams:
            await stream.aclose()
        for caller in callers:
            caller.close()
