"""The phones and viewers of a benchmark, in one process that does as little as it can.

It reads an `Order` from stdin and prints a `Result`. Frames are counted by their headers alone;
only those of a few viewers are put together, to read from each when it was sent.
"""

from __future__ import annotations

import gc
import os
import selectors
import sys
import time
from collections import deque
from itertools import count

import msgspec
from client import Client, frame_size, masked, xor
from connections import idle, joining, storm
from meter import Meter
from workloads import FanOut, Idle, Joining, Order, Result, Slow, Storm

MARK = b"sentat"
STAMP = len(MARK) + 18
"""Bytes: the mark, and the monotonic clock in ns. As base64 they are as good as any others."""
WARM_UP = 1.0
"""Seconds."""
SAMPLED = 2
"""Viewers of which frames are put together."""
SMALL_WINDOW = 8 * 1024
TICK = 0.005
"""Seconds between two looks at a thin link."""


class Phone(Client):
    """Sends frames that say when they were sent."""

    def __init__(self, order: Order, stream: str, size: int) -> None:
        super().__init__(order)
        self.authenticate()
        self.ask({"type": "register", "streamId": stream})
        self.socket.settimeout(0)
        data = MARK.ljust(size, b"0")
        if order.binary:
            message = msgspec.msgpack.encode({"type": "video-frame", "data": data})
        else:
            text = data[: size // 4 * 4].decode()
            message = msgspec.json.encode({"type": "video-frame", "data": text})
        self.frame = masked(2 if order.binary else 1, message)
        self.head = len(self.frame) - len(message)
        self.stamp_at = message.index(MARK)
        rotation = self.stamp_at % 4
        mask = bytes(self.frame[self.head - 4 : self.head])
        self.stamp_mask = mask[rotation:] + mask[:rotation]
        self.left = memoryview(b"")
        self.due = 0.0

    def send(self) -> bool:
        """Send on; whether the frame is out whole."""
        if not self.left:
            stamp = MARK + b"%018d" % time.monotonic_ns()
            start = self.head + self.stamp_at
            self.frame[start : start + STAMP] = xor(stamp, self.stamp_mask)
            self.left = memoryview(self.frame)
        try:
            self.left = self.left[self.socket.send(self.left) :]
        except BlockingIOError:
            return False
        return not self.left

    def receive(self, _scratch: bytearray) -> None:
        self.socket.recv(65536)  # what the server tells a phone


class Counting(Client):
    """A viewer that counts frames."""

    frames = 0
    skip = 0
    """Bytes until the next header."""
    rest = b""

    def start(self) -> None:
        self.socket.settimeout(0)
        self.rest = bytes(self.buffer)

    def receive(self, scratch: bytearray) -> None:
        try:
            size = self.socket.recv_into(scratch)
        except BlockingIOError:
            return
        if not size:
            raise SystemExit("the server closed a viewer")
        data: bytes | bytearray = scratch
        if self.rest:
            data = self.rest + scratch[:size]
            size, self.rest = len(data), b""
        position = self.skip
        while position < size:
            length, _ = frame_size(data, position, size)
            if not length:
                self.rest, position = bytes(data[position:size]), size
                break
            position += length
            self.frames += 1
        self.skip = position - size


class Whole:
    """Puts frames together, and reads from each when it was sent."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.ages: list[float] = []
        self.times: list[float] = []

    def add(self, data: bytes | bytearray | memoryview) -> list[bytes]:
        """The payloads of the frames that are complete with this."""
        self.buffer += data
        complete, position = [], 0
        while True:
            length, head = frame_size(self.buffer, position, len(self.buffer))
            if not length or position + length > len(self.buffer):
                break
            payload = bytes(self.buffer[position + head : position + length])
            self.note(payload)
            complete.append(payload)
            position += length
        del self.buffer[:position]
        return complete

    def note(self, payload: bytes) -> None:
        start = payload.find(MARK)
        if start >= 0:
            now = time.monotonic_ns()
            sent = int(payload[start + len(MARK) : start + STAMP])
            self.ages.append((now - sent) / 1e9)
            self.times.append(now / 1e9)


class Sampling(Client):
    """A viewer that looks at its frames."""

    def __init__(self, order: Order) -> None:
        super().__init__(order)
        self.whole = Whole()
        self.frames = 0

    def start(self) -> None:
        self.socket.settimeout(0)
        self.whole.add(self.buffer)

    def receive(self, scratch: bytearray) -> None:
        try:
            size = self.socket.recv_into(scratch)
        except BlockingIOError:
            return
        if not size:
            raise SystemExit("the server closed a viewer")
        before = len(self.whole.ages)
        self.whole.add(memoryview(scratch)[:size])
        self.frames += len(self.whole.ages) - before


class ThinLink(Client):
    """A viewer behind so many bytes a second. What the link holds on the way has been received as
    far as the server can see, and is delivered when its turn comes."""

    def __init__(self, order: Order, workload: Slow) -> None:
        super().__init__(order, window=None if workload.queue else SMALL_WINDOW)
        self.workload, self.whole = workload, Whole()
        self.queue: deque[bytes] = deque()
        self.held = 0
        self.credit = 0.0
        self.last = time.monotonic()

    def start(self) -> None:
        self.socket.settimeout(0)
        self.whole.add(self.buffer)

    def turn(self) -> None:
        """Take in what the link holds, and deliver what it can by now."""
        workload, now = self.workload, time.monotonic()
        self.credit = min(self.credit + (now - self.last) * workload.rate, workload.rate * 0.05)
        self.last = now
        while workload.queue and self.held < workload.queue and (data := self._receive(65536)):
            self.queue.append(data)
            self.held += len(data)
        while self.credit >= 1:
            if workload.queue:
                if not self.queue:
                    break
                data = self.queue.popleft()
                fits = int(self.credit)
                if len(data) > fits:
                    self.queue.appendleft(data[fits:])
                    data = data[:fits]
                self.held -= len(data)
            elif not (data := self._receive(int(self.credit))):
                break
            self.credit -= len(data)
            for payload in self.whole.add(data):
                self._acknowledge(payload)

    def _receive(self, most: int) -> bytes:
        try:
            return self.socket.recv(most)
        except BlockingIOError:
            return b""

    def _acknowledge(self, payload: bytes) -> None:
        if self.workload.window is not None and self.order.is_relay and MARK in payload:
            seq = msgspec.msgpack.decode(payload)["seq"]
            self.say({"type": "ack", "streamId": "s0", "seq": seq})


class Loop:
    """Phones that send and viewers that receive."""

    def __init__(self, phones: list[Phone], fps: float) -> None:
        self.phones, self.fps = phones, fps
        self.selector = selectors.DefaultSelector()
        self.scratch = bytearray(1 << 20)
        events = selectors.EVENT_READ if fps else selectors.EVENT_READ | selectors.EVENT_WRITE
        for index, phone in enumerate(phones):
            phone.due = time.monotonic() + (index / len(phones) / fps if fps else 0)
            self.selector.register(phone.socket, events, phone)

    def add(self, viewer: Counting | Sampling) -> None:
        viewer.start()
        self.selector.register(viewer.socket, selectors.EVENT_READ, viewer)

    def run(self, seconds: float, *, tick: ThinLink | None = None) -> None:
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end:
            if tick is not None:
                tick.turn()
            pause = min(self._send_due(now), TICK if tick is not None else 0.05)
            for key, events in self.selector.select(pause):
                if events & selectors.EVENT_WRITE:
                    key.data.send()
                if events & selectors.EVENT_READ:
                    key.data.receive(self.scratch)

    def _send_due(self, now: float) -> float:
        """Send the frames that are due; returns the seconds until the next."""
        if not self.fps:
            return 1.0
        for phone in self.phones:
            while phone.due <= now and phone.send():
                phone.due += 1 / self.fps
        return max(0.0, min(phone.due for phone in self.phones) - time.monotonic())


def fan_out(order: Order, workload: FanOut) -> Result:
    number, viewers = count(), list[Counting | Sampling]()
    every = max(1, workload.streams * workload.viewers // SAMPLED)
    for stream in range(workload.streams):
        for _ in range(workload.viewers):
            viewer = Sampling(order) if next(number) % every == 0 else Counting(order)
            viewer.authenticate()
            viewer.subscribe(f"s{stream}")
            viewers.append(viewer)
    phones = [Phone(order, f"s{stream}", workload.size) for stream in range(workload.streams)]
    loop = Loop(phones, workload.fps)
    for viewer in viewers:
        loop.add(viewer)
    loop.run(WARM_UP)
    for viewer in viewers:
        viewer.frames = 0
        if isinstance(viewer, Sampling):
            viewer.whole.ages.clear()
    result, meter = Result(), Meter(order.pid)
    loop.run(order.seconds)
    meter.read(result)
    result.frames = sum(viewer.frames for viewer in viewers)
    result.ages = [
        age for viewer in viewers if isinstance(viewer, Sampling) for age in viewer.whole.ages
    ]
    return result


def slow(order: Order, workload: Slow) -> Result:
    healthy = Sampling(order)
    healthy.authenticate()
    healthy.subscribe("s0")
    phone = Phone(order, "s0", workload.size)
    loop = Loop([phone], workload.fps)
    loop.add(healthy)
    loop.run(WARM_UP)
    healthy.whole.ages.clear()
    result, meter = Result(), Meter(order.pid)
    loop.run(workload.alone)
    result.healthy_alone, healthy.whole.ages = healthy.whole.ages, []
    thin = ThinLink(order, workload)
    thin.authenticate()
    terms = {} if workload.window is None else {"window": workload.window}
    thin.subscribe("s0", **terms)
    thin.start()
    began = time.monotonic()
    loop.run(order.seconds, tick=thin)
    meter.read(result)
    result.frames = healthy.frames + len(thin.whole.ages)
    result.ages = thin.whole.ages
    result.times = [at - began for at in thin.whole.times]
    result.healthy_beside = healthy.whole.ages
    return result


def main() -> None:
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    if order.cpu is not None:
        os.sched_setaffinity(0, {order.cpu})
    gc.disable()
    match order.workload:
        case FanOut() as workload:
            result = fan_out(order, workload)
        case Joining() as workload:
            result = joining(order, workload)
        case Storm() as workload:
            result = storm(order, workload)
        case Idle() as workload:
            result = idle(order, workload)
        case Slow() as workload:
            result = slow(order, workload)
        case _:
            raise SystemExit(f"not for clients: {order.workload}")
    sys.stdout.buffer.write(msgspec.json.encode(result))


if __name__ == "__main__":
    main()
