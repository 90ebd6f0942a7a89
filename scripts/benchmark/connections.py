"""Workloads of connections: one after the other, all at once, and idle.

Here a "frame" is a connection that was accepted, and told that it is subscribed.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Callable

from client import Client, encoded, frame_size, upgrade_request
from meter import Meter
from workloads import Idle, Joining, Order, Result, Storm

QUIET = 0.1
"""Seconds for what a server does behind the last answer, or behind the last end."""
OWN_FILES = 5
"""Files that a server may have opened meanwhile for itself: connections to its database."""
STORM_TIMEOUT = 60.0
"""Seconds for all connections of a storm, or for all of their ends."""


def joining(order: Order, workload: Joining) -> Result:
    """Connect, authenticate and subscribe, one client after the other."""
    clients = [_subscribed(order) for _ in range(workload.connections // 10)]  # warm
    result, meter = Result(), Meter(order.pid)
    for _ in range(workload.connections):
        began = time.monotonic()
        clients.append(_subscribed(order))
        result.ages.append(time.monotonic() - began)
    meter.read(result)
    result.frames = workload.connections
    return result


def idle(order: Order, workload: Idle) -> Result:
    """Subscribe clients to which nothing happens, and see how the server grows."""
    clients = [_subscribed(order) for _ in range(workload.first)]
    time.sleep(QUIET)
    result, meter = Result(), Meter(order.pid)
    clients += [_subscribed(order) for _ in range(workload.connections)]
    time.sleep(1)
    meter.read(result)
    result.frames = len(clients) - workload.first
    return result


def _subscribed(order: Order) -> Client:
    client = Client(order)
    client.authenticate()
    client.subscribe("s0")
    return client


def storm(order: Order, workload: Storm) -> Result:
    """All clients come at once and go at once, a few times; the first time is to warm up."""
    result = Result()
    for number in range(workload.times + 1):
        into = Result() if number == 0 else result
        meter = Meter(order.pid)
        files = meter.server.num_fds()
        clients = _come(order, workload.connections, into)
        time.sleep(QUIET)
        meter.read(into)
        into.frames += len(clients)
        meter = Meter(order.pid)
        for client in clients:
            client.close()
        _until(lambda: meter.server.num_fds() <= files + OWN_FILES)  # noqa: B023, called here and now
        time.sleep(QUIET)
        meter.read_end(into)
    return result


def _come(order: Order, count: int, result: Result) -> list[Newcomer]:
    """Connect all at once, and go on with each as it is answered."""
    with selectors.DefaultSelector() as selector:
        clients = [Newcomer(order) for _ in range(count)]
        for client in clients:
            selector.register(client.socket, selectors.EVENT_WRITE, client)
        waiting, deadline = count, time.monotonic() + STORM_TIMEOUT
        while waiting:
            if time.monotonic() > deadline:
                raise SystemExit(f"{waiting} of {count} clients were not answered in time")
            for key, events in selector.select(1):
                client = key.data
                if events & selectors.EVENT_WRITE:  # it is connected
                    client.socket.sendall(client.request)
                    selector.modify(client.socket, selectors.EVENT_READ, client)
                elif client.receive():
                    selector.unregister(client.socket)
                    waiting -= 1
                    result.ages.append(time.monotonic() - client.began)
    return clients


class Newcomer:
    """A client that waits for nothing but what it is told."""

    def __init__(self, order: Order) -> None:
        self.began = time.monotonic()
        self.upgraded = False
        self.buffer = b""
        subscription = {"type": "subscribe", "streamId": "s0", "consumes": ["video-frame"]}
        self.request = upgrade_request(order)
        self.questions = [
            encoded(order, {"type": "auth", "token": order.token}),
            encoded(order, subscription),
        ]
        self.socket = socket.socket()
        self.socket.settimeout(0)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.connect_ex(("127.0.0.1", order.port))

    def receive(self) -> bool:
        """Read once, and say what is next; whether all is answered."""
        more = self.socket.recv(65536)
        self.buffer += more
        if not more or b"error" in self.buffer:
            raise SystemExit(f"the server refused a client; it said {self.buffer[:300]!r}")
        if not self.upgraded:
            end = self.buffer.find(b"\r\n\r\n")
            if end >= 0:
                self.upgraded, self.buffer = True, self.buffer[end + 4 :]
                self.socket.sendall(self.questions.pop(0))
        while self.upgraded:
            length, _ = frame_size(self.buffer, 0, len(self.buffer))
            if not length or length > len(self.buffer):
                return False
            answer, self.buffer = self.buffer[:length], self.buffer[length:]
            if b"success" in answer:
                if not self.questions:
                    return True
                self.socket.sendall(self.questions.pop(0))
        return False

    def close(self) -> None:
        """Go as a phone goes whose application was closed: without a Close."""
        try:
            while self.socket.recv(65536):  # unread bytes would make it a reset
                pass
        except BlockingIOError:
            pass
        self.socket.close()


def _until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + STORM_TIMEOUT
    while not reached():
        if time.monotonic() > deadline:
            raise SystemExit("the server does not close the connections of clients that have left")
        time.sleep(0.01)
