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
from contextlib import suppress

import msgspec
from client import Client, frame_size, masked, xor
from connections import idle, joining, storm
from meter import Meter
from viewers import FIN, MARK, PING, PONG, STAMP, Counting, Sampling, ThinLink, viewers_of
from workloads import FanOut, Idle, Joining, Order, Result, Slow, Storm

WARM_UP = 1.0
"""Seconds."""
SAMPLED = 2
"""Viewers of which frames are put together."""
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
        self.pongs = b""
        """Not sent yet."""
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
        self._send_pongs()
        return not self.left

    def receive(self, _scratch: bytearray) -> None:
        self.buffer += self.socket.recv(65536)
        while True:
            length, head = frame_size(self.buffer, 0, len(self.buffer))
            if not length or length > len(self.buffer):
                break
            if self.buffer[0] == FIN | PING:
                self.pongs += masked(PONG, bytes(self.buffer[head:length]))
            del self.buffer[:length]
        self._send_pongs()

    def _send_pongs(self) -> None:
        """Send what is due, unless a frame is out in part only."""
        if self.pongs and not self.left:
            with suppress(BlockingIOError):
                self.pongs = self.pongs[self.socket.send(self.pongs) :]


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
    viewers = viewers_of(order, workload, SAMPLED)
    phones = [Phone(order, f"s{stream}", workload.size) for stream in range(workload.streams)]
    loop = Loop(phones, workload.fps)
    for viewer in viewers:
        loop.add(viewer)
    loop.run(WARM_UP)
    for viewer in viewers:
        viewer.frames, viewer.answers, viewer.answering = 0, 0, 0.0
        if isinstance(viewer, Sampling):
            viewer.whole.ages.clear()
    result, meter = Result(), Meter(order.pid)
    loop.run(order.seconds)
    meter.read(result)
    result.frames = sum(viewer.frames for viewer in viewers)
    result.answers = sum(viewer.answers for viewer in viewers)
    result.answering = sum(viewer.answering for viewer in viewers)
    result.ages = [
        age for viewer in viewers if isinstance(viewer, Sampling) for age in viewer.whole.ages
    ]
    return result


def slow(order: Order, workload: Slow) -> Result:
    healthy = Sampling(order)
    healthy.join()
    phone = Phone(order, "s0", workload.size)
    loop = Loop([phone], workload.fps)
    loop.add(healthy)
    loop.run(WARM_UP)
    healthy.whole.ages.clear()
    result, meter = Result(), Meter(order.pid)
    loop.run(workload.alone)
    result.healthy_alone, healthy.whole.ages = healthy.whole.ages, []
    thin = ThinLink(order, workload)
    thin.join()
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
