"""The viewers of a benchmark: they count frames, look at them, or are behind a thin link; and they
answer as their order says.

A browser answers each ping with a pong of the same payload by itself, and in the order in which all
arrives. So do these; what is due behind one read leaves together.
"""

from __future__ import annotations

import math
import socket
import sys
import time
from collections import deque
from contextlib import suppress
from itertools import count

import msgspec
from client import Client, frame_size, masked, packs
from workloads import ACK_WINDOW, PAIR_SECONDS, FanOut, Order, Slow

FIN, CONTROL, PING, PONG = 0x80, 0x08, 0x09, 0x0A
"""Bits and opcodes of a frame's first byte."""
SEQ_WITHIN = 128
"""Bytes at the begin of a message of relay, within which its `seq` is."""
MARK = b"sentat"
STAMP = len(MARK) + 18
"""Bytes: the mark, and the monotonic clock in ns. As base64 they are as good as any others."""
SMALL_WINDOW = 8 * 1024
THIN_LINK_READ = 64 * 1024

Data = bytes | bytearray | memoryview


def acknowledge_in_reads(receiving: socket.socket) -> None:
    """Let the kernel make the ACKs of what comes as for a client that never sends anything: as it
    is read, on the client's core.

    A client that has just sent something seems to be about to send more, so Linux waits with the
    ACK, which goes with that. One that sends a pong now and then sends no more. Where a frame is
    one segment, as on loopback, which has room for 64 KiB in one, the kernel then makes the ACK of
    every second frame while the server writes it, and the server is billed.
    """
    if sys.platform == "linux":
        receiving.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


class Answering(Client):
    """Answers pings, and acknowledges frames."""

    def __init__(self, order: Order, stream: str = "s0", *, window: int | None = None) -> None:
        super().__init__(order, window=window)
        self.stream = stream
        workload = order.workload
        assert isinstance(workload, FanOut | Slow)
        self.pongs = workload.answers != "none"
        self.acks = workload.answers in {"acks", "pairs"} and order.is_relay
        self.pairs = workload.answers == "pairs"
        self.is_held = False
        """Whether the last frame is acknowledged with the next one."""
        self.came_at = -math.inf
        self.seq_after = b"\xa3seq" if packs(order) else b'"seq":'
        self.pings: list[bytes] = []
        """Payloads that are not answered yet."""
        self.seqs: list[int] = []
        """Frames that are not acknowledged yet."""
        self.unsent = b""
        self.answers, self.answering = 0, 0.0

    def join(self) -> None:
        """Authenticate and subscribe."""
        self.authenticate()
        terms = {"window": ACK_WINDOW} if self.acks else {}
        self.subscribe(self.stream, **terms)

    def note_frame(self, first: int, payload: Data) -> None:
        """Remember what a frame asks for; of a long one the begin is enough."""
        if first & CONTROL:
            if first & 15 == PING and self.pongs:
                self.pings.append(bytes(payload))
        elif (
            self.acks
            and (seq := self.seq_in(bytes(payload[:SEQ_WITHIN]))) is not None
            and not (self.pairs and self.may_hold())
        ):
            self.seqs.append(seq)

    def may_hold(self) -> bool:
        """Whether the frame that came now need not be acknowledged before the next one."""
        now = time.monotonic()
        is_close, self.came_at = now - self.came_at < PAIR_SECONDS, now
        self.is_held = is_close and not self.is_held
        return self.is_held

    def seq_in(self, head: bytes) -> int | None:
        """The `seq` of a frame; None for other messages."""
        start = head.find(self.seq_after)
        if start < 0:
            return None
        start += len(self.seq_after)
        if not packs(self.order):
            return int(head[start : head.index(b",", start)])
        first = head[start]
        if first < 0x80:
            return first
        return int.from_bytes(head[start + 1 : start + 1 + (1 << (first - 0xCC))], "big")

    def answer(self) -> None:
        """Send what is due; `answering` has the CPU time that this takes."""
        if not (self.pings or self.seqs or self.unsent):
            return
        began = time.thread_time()
        due: list[bytes | bytearray] = [self.unsent]
        due += (masked(PONG, payload) for payload in self.pings)
        due += (self.acknowledgement(seq) for seq in self.seqs)
        has_pongs = bool(self.pings)
        self.answers += len(due) - 1
        self.pings.clear()
        self.seqs.clear()
        self.unsent = b"".join(due)
        with suppress(BlockingIOError):  # then it goes with the next ones
            self.unsent = self.unsent[self.socket.send(self.unsent) :]
        if has_pongs:
            acknowledge_in_reads(self.socket)
        self.answering += time.thread_time() - began

    def acknowledgement(self, seq: int) -> bytes:
        message = {"type": "ack", "streamId": self.stream, "seq": seq}
        if packs(self.order):
            return bytes(masked(2, msgspec.msgpack.encode(message)))
        return bytes(masked(1, msgspec.json.encode(message)))


class Counting(Answering):
    """A viewer that counts frames."""

    frames = 0
    skip = 0
    """Bytes until the next header."""
    rest = b""

    def __init__(self, order: Order, stream: str = "s0") -> None:
        super().__init__(order, stream)
        self.arriving: tuple[int, bytes] | None = None
        """The first byte and the begin of a message whose last byte has not come."""

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
        if self.skip <= size and self.arriving is not None:
            self.note_frame(*self.arriving)
            self.arriving = None
        position, acks = self.skip, self.acks
        while position < size:
            length, head = frame_size(data, position, size)
            first = data[position]
            needed = length if first & CONTROL else min(length, SEQ_WITHIN) if acks else 1
            if not length or size - position < needed:
                self.rest, position = bytes(data[position:size]), size
                break
            if first & CONTROL or acks:
                begin = position + head, min(position + length, position + head + SEQ_WITHIN)
                noted = first, bytes(data[slice(*begin)])
                if position + length > size:
                    self.arriving = noted
                else:
                    self.note_frame(*noted)
            if first & FIN and not first & CONTROL:
                self.frames += 1
            position += length
        self.skip = position - size
        self.answer()


class Whole:
    """Puts frames together, and reads from each when it was sent."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.ages: list[float] = []
        self.times: list[float] = []

    def add(self, data: Data) -> list[tuple[int, bytes]]:
        """The first bytes and the payloads of the frames that are complete with this."""
        self.buffer += data
        complete, position = [], 0
        while True:
            length, head = frame_size(self.buffer, position, len(self.buffer))
            if not length or position + length > len(self.buffer):
                break
            payload = bytes(self.buffer[position + head : position + length])
            self.note(payload)
            complete.append((self.buffer[position], payload))
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


class Looking(Answering):
    """A viewer that looks at its frames."""

    def __init__(self, order: Order, stream: str = "s0", *, window: int | None = None) -> None:
        super().__init__(order, stream, window=window)
        self.whole = Whole()

    def start(self) -> None:
        self.socket.settimeout(0)
        self.take(self.buffer)

    def take(self, data: Data) -> None:
        for first, payload in self.whole.add(data):
            self.note_frame(first, payload)
        self.answer()


class Sampling(Looking):
    """One that reads as fast as it can."""

    frames = 0

    def receive(self, scratch: bytearray) -> None:
        try:
            size = self.socket.recv_into(scratch)
        except BlockingIOError:
            return
        if not size:
            raise SystemExit("the server closed a viewer")
        before = len(self.whole.ages)
        self.take(memoryview(scratch)[:size])
        self.frames += len(self.whole.ages) - before


class ThinLink(Looking):
    """A viewer behind so many bytes a second. What the link holds on the way has been received as
    far as the server can see, and is delivered when its turn comes."""

    def __init__(self, order: Order, workload: Slow) -> None:
        super().__init__(order, window=None if workload.queue else SMALL_WINDOW)
        self.acks = workload.window is not None and order.is_relay
        self.workload = workload
        self.queue: deque[bytes] = deque()
        self.held = 0
        self.credit = 0.0
        self.last = time.monotonic()

    def join(self) -> None:
        self.authenticate()
        terms = {} if self.workload.window is None else {"window": self.workload.window}
        self.subscribe(self.stream, **terms)

    def turn(self) -> None:
        """Take in what the link holds, and deliver what it can by now."""
        workload, now = self.workload, time.monotonic()
        self.credit = min(self.credit + (now - self.last) * workload.rate, workload.rate * 0.05)
        self.last = now
        while (
            workload.queue
            and self.held < workload.queue
            and (data := self._receive(THIN_LINK_READ))
        ):
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
            self.take(data)

    def _receive(self, most: int) -> bytes:
        try:
            return self.socket.recv(most)
        except BlockingIOError:
            return b""


def viewers_of(order: Order, workload: FanOut, sampled: int) -> list[Counting | Sampling]:
    """All viewers of a fan-out, subscribed; of so many all frames are looked at."""
    number, viewers = count(), list[Counting | Sampling]()
    every = max(1, workload.streams * workload.viewers // sampled)
    for stream in range(workload.streams):
        for _ in range(workload.viewers):
            kind = Sampling if next(number) % every == 0 else Counting
            viewer = kind(order, f"s{stream}")
            viewer.join()
            viewers.append(viewer)
    return viewers
