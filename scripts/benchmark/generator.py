"""The phones and viewers of a benchmark, in one process that does as little as it can.

It reads an `Order` from stdin and prints a `Result`. Frames are counted by their headers alone;
only those of a few viewers are put together, to read from each when it was sent.
"""

from __future__ import annotations

import gc
import os
import selectors
import socket
import sys
import time
from collections import deque
from itertools import count
from pathlib import Path

import msgspec
import psutil
from workloads import FanOut, Idle, Joining, Order, Result, Slow

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


def masked(opcode: int, payload: bytes) -> bytearray:
    """A WebSocket frame as a client sends it."""
    mask, size = os.urandom(4), len(payload)
    head = bytearray([0x80 | opcode])
    if size < 126:
        head.append(0x80 | size)
    elif size < 1 << 16:
        head += bytes([0xFE]) + size.to_bytes(2, "big")
    else:
        head += bytes([0xFF]) + size.to_bytes(8, "big")
    return head + mask + xor(payload, mask)


def xor(data: bytes, mask: bytes) -> bytes:
    key = (mask * (len(data) // 4 + 1))[: len(data)]
    return (int.from_bytes(data, "big") ^ int.from_bytes(key, "big")).to_bytes(len(data), "big")


def frame_size(data: bytes | bytearray | memoryview, start: int, end: int) -> tuple[int, int]:
    """The lengths of a server's frame and of its header; (0, 0) when too little is there."""
    if end - start < 10:  # no frame that matters here is shorter
        return 0, 0
    size = data[start + 1]
    if size < 126:
        return size + 2, 2
    if size == 126:
        return (data[start + 2] << 8 | data[start + 3]) + 4, 4
    return int.from_bytes(data[start + 2 : start + 10], "big") + 10, 10


class Client:
    """One WebSocket."""

    def __init__(self, order: Order, *, window: int | None = None) -> None:
        self.order = order
        self.socket = socket.socket()
        if window is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        self.socket.connect(("127.0.0.1", order.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = bytearray()
        subprotocol = "Sec-WebSocket-Protocol: relay.v1.msgpack\r\n" if self.packs else ""
        self.socket.sendall(
            f"GET /streams/subscribe HTTP/1.1\r\nHost: 127.0.0.1:{order.port}\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{subprotocol}\r\n".encode()
        )
        while (end := self.buffer.find(b"\r\n\r\n")) < 0:
            self._receive_more()
        del self.buffer[: end + 4]

    @property
    def packs(self) -> bool:
        return self.order.is_relay and self.order.binary

    def say(self, message: dict[str, object]) -> None:
        encode = msgspec.msgpack.encode if self.packs else msgspec.json.encode
        self.socket.sendall(masked(2 if self.packs else 1, encode(message)))

    def ask(self, message: dict[str, object]) -> None:
        """Say something, and wait for the reply; what comes behind that stays in the buffer."""
        self.say(message)
        answered = False
        while not answered:
            length, _ = frame_size(self.buffer, 0, len(self.buffer))
            if not length or length > len(self.buffer):
                self._receive_more()
                continue
            answered = b"success" in self.buffer[:length]
            if b"error" in self.buffer[:length]:
                raise SystemExit(f"the server refused {message['type']}: {self.buffer[:300]!r}")
            del self.buffer[:length]

    def _receive_more(self) -> None:
        more = self.socket.recv(65536)
        if not more:
            raise SystemExit(f"the server closed; it said {bytes(self.buffer)!r}")
        self.buffer += more

    def authenticate(self) -> None:
        self.ask({"type": "auth", "token": self.order.token})

    def subscribe(self, stream: str, **terms: object) -> None:
        consumes = ["video-frame"]
        self.ask({"type": "subscribe", "streamId": stream, "consumes": consumes, **terms})


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


class Meter:
    """What the server and the generator use up."""

    def __init__(self, order: Order) -> None:
        self.server = psutil.Process(order.pid)
        self.used, self.used_by_main = self._cpu_times(), self._main_thread()
        self.resident = self.server.memory_info().rss
        self.generator, self.began = time.process_time(), time.monotonic()

    def read(self, result: Result) -> None:
        now = self._cpu_times()
        total, system = (after - before for after, before in zip(now, self.used, strict=True))
        result.user, result.system = max(0.0, total - system), system
        result.main_thread = self._main_thread() - self.used_by_main
        result.generator = time.process_time() - self.generator
        result.seconds = time.monotonic() - self.began
        result.resident = self.server.memory_info().rss
        result.grown = result.resident - self.resident

    def _cpu_times(self) -> tuple[float, float]:
        """Seconds in all, and of that in the kernel."""
        used = self.server.cpu_times()
        if sys.platform != "linux":
            return used.user + used.system, used.system
        # The process's CPU clock (clock_getcpuclockid(3)) counts in ns, `cpu_times` in ticks.
        return time.clock_gettime(~self.server.pid << 3 | 2), used.system

    def _main_thread(self) -> float:
        """Seconds of CPU."""
        statistics = Path(f"/proc/{self.server.pid}/task/{self.server.pid}/schedstat")
        if statistics.exists():  # in ns
            return int(statistics.read_text().split()[0]) / 1e9
        first = self.server.threads()[0]
        return float(first.user_time + first.system_time)


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
    result, meter = Result(), Meter(order)
    loop.run(order.seconds)
    meter.read(result)
    result.frames = sum(viewer.frames for viewer in viewers)
    result.ages = [
        age for viewer in viewers if isinstance(viewer, Sampling) for age in viewer.whole.ages
    ]
    return result


def joining(order: Order, workload: Joining) -> Result:
    """Here a "frame" is a connection that was accepted, and told that it is subscribed."""
    clients = []
    for _ in range(workload.connections // 10):  # warm
        clients.append(client := Client(order))
        client.authenticate()
        client.subscribe("s0")
    result, meter = Result(), Meter(order)
    for _ in range(workload.connections):
        began = time.monotonic()
        clients.append(client := Client(order))
        client.authenticate()
        client.subscribe("s0")
        result.ages.append(time.monotonic() - began)
    meter.read(result)
    result.frames = workload.connections
    return result


def idle(order: Order, workload: Idle) -> Result:
    """Here, too, a "frame" is a connection."""
    clients = []
    result, meter = Result(), None
    for number in range(workload.connections * 3 // 2):
        if number == workload.connections // 2:  # what only the first ones cost is behind us
            meter = Meter(order)
        clients.append(client := Client(order))
        client.authenticate()
        client.subscribe("s0")
    assert meter is not None
    time.sleep(1)
    meter.read(result)
    result.frames = workload.connections
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
    result, meter = Result(), Meter(order)
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
        case Idle() as workload:
            result = idle(order, workload)
        case Slow() as workload:
            result = slow(order, workload)
        case _:
            raise SystemExit(f"not for clients: {order.workload}")
    sys.stdout.buffer.write(msgspec.json.encode(result))


if __name__ == "__main__":
    main()
