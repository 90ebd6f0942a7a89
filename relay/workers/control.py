"""One end of the socket pair between the parent and a worker: messages, and descriptors beside."""

from __future__ import annotations

import array
import os
import socket
from collections import deque
from contextlib import suppress

import trio
from attrs import define, field

from relay.concurrency.wakeup import Wakeup
from relay.transport.link import Buffer
from relay.workers.messages import ControlReader, News, Order, pack

CHANNEL_READ_BYTES = 256 * 1024
CHANNEL_WRITE_BYTES = 64 * 1024
"""Bytes of messages that are joined for one write."""
MAX_UNSENT_BYTES = 128 << 20
"""Bytes that may wait for the other process; then it counts as gone."""
DESCRIPTOR_BYTES = array.array("i").itemsize
_CONTROL_SPACE = socket.CMSG_SPACE(64 * DESCRIPTOR_BYTES)


class ControlLost(Exception):
    """The other process has not read for too long, or is gone."""


@define(eq=False)
class ControlChannel:
    """Sends and receives messages. Sending never waits."""

    _socket: socket.socket
    _reader: ControlReader
    descriptors: deque[int | None] = field(init=False, factory=deque)
    """Received and not picked up yet, in their order; None for one that there was no room for."""
    _received: deque[Order | News] = field(init=False, factory=deque)
    _outbox: deque[tuple[Buffer, socket.socket | None]] = field(
        init=False, factory=deque, repr=False
    )
    unsent: int = field(init=False, default=0)
    """Bytes that wait to be sent."""
    _more: Wakeup = field(init=False, factory=Wakeup)
    _empty: trio.Event = field(init=False, factory=trio.Event)
    lost: bool = field(init=False, default=False)
    """Whether nothing can be sent any more."""

    def __attrs_post_init__(self) -> None:
        self._socket.setblocking(False)  # noqa: FBT003 (positional only)

    def send(self, message: Order | News, handed: socket.socket | None = None) -> None:
        """Send a message, and with it the descriptor of a socket, which must stay open until the
        other process has it: else the message goes with it. What cannot be sent any more is thrown
        away."""
        if self.lost:
            return
        packed = pack(message)
        self._outbox.append((packed, handed))
        self.unsent += len(packed)
        if self.unsent > MAX_UNSENT_BYTES:
            self._give_up()
        elif len(self._outbox) == 1:
            self._write()
        if self._outbox:
            self._more.set()

    async def keep_sending(self) -> None:
        """Send what could not be sent at once, until cancelled or until the other end is gone."""
        while not self.lost:
            if self._outbox:
                await trio.lowlevel.wait_writable(self._socket)
                self._write()
            else:
                self._empty.set()
                self._empty = trio.Event()
                await self._more.wait()

    async def flush(self) -> None:
        """Wait until all is sent."""
        while self._outbox and not self.lost:
            await self._empty.wait()

    async def receive(self) -> Order | News | None:
        """The next message of the other process; None at its end; `ControlError`."""
        while not self._received:
            await trio.lowlevel.wait_readable(self._socket)
            try:
                data, controls, flags, _ = self._socket.recvmsg(CHANNEL_READ_BYTES, _CONTROL_SPACE)
            except BlockingIOError:
                continue
            except OSError:
                return None
            self._keep_descriptors(controls, flags)
            if not data:
                return None
            self._received.extend(self._reader.feed(data))
        return self._received.popleft()

    def pick_up(self) -> socket.socket | None:
        """The socket that came with the message that was received last; None when there was no
        descriptor free for it, or when nothing can be done with it any more."""
        descriptor = self.descriptors.popleft() if self.descriptors else None
        if descriptor is None:
            return None
        try:
            return socket.socket(fileno=descriptor)
        except OSError:  # macOS tells nothing of a socket whose peer is gone
            os.close(descriptor)
            return None

    def close(self) -> None:
        """Close this end, and the descriptors that nobody has picked up."""
        self._give_up()
        while self.descriptors:
            descriptor = self.descriptors.popleft()
            if descriptor is not None:
                os.close(descriptor)
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()

    def _write(self) -> None:
        while self._outbox:
            data, handed = self._next()
            if handed is not None and handed.fileno() < 0:  # nobody can do anything with it now
                self.unsent -= len(data)
                continue
            rights: list[tuple[int, int, array.array[int]]] = []
            if handed is not None:
                # One descriptor for each call: the receiver then knows whose is missing.
                descriptor = array.array("i", [handed.fileno()])
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptor)]
            try:
                sent = self._socket.sendmsg([data], rights)
            except BlockingIOError:
                self._outbox.appendleft((data, handed))
                return
            except OSError:
                self._give_up()
                return
            self.unsent -= sent
            if sent < len(data):  # the descriptor went with the first byte
                self._outbox.appendleft((memoryview(data)[sent:], None))

    def _next(self) -> tuple[Buffer, socket.socket | None]:
        """Take from the outbox one message with a descriptor, or several without."""
        data, handed = self._outbox.popleft()
        if handed is not None:
            return data, handed
        joined = [data]
        size = len(data)
        while self._outbox and self._outbox[0][1] is None and size < CHANNEL_WRITE_BYTES:
            joined.append(self._outbox.popleft()[0])
            size += len(joined[-1])
        return b"".join(joined) if len(joined) > 1 else data, None

    def _give_up(self) -> None:
        self.lost = True
        self._outbox.clear()
        self.unsent = 0
        self._more.set()
        self._empty.set()

    def _keep_descriptors(self, controls: list[tuple[int, int, bytes]], flags: int) -> None:
        came = False
        for level, kind, data in controls:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                whole = len(data) - len(data) % DESCRIPTOR_BYTES
                for descriptor in array.array("i", data[:whole]):
                    with suppress(OSError):
                        os.set_inheritable(descriptor, False)  # noqa: FBT003 (positional only)
                    self.descriptors.append(descriptor)
                    came = True
        if flags & socket.MSG_CTRUNC and not came:
            self.descriptors.append(None)
