"""What the viewers of scripts/benchmark send back, over a socket to a server of the test."""

from __future__ import annotations

import fcntl
import importlib
import socket
import sys
import termios
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any

import msgspec
import pytest
from attrs import define, field
from wsproto import ConnectionType
from wsproto.connection import Connection
from wsproto.events import BytesMessage, Event, Pong, TextMessage

from relay.protocol.codec import JSON_CODEC, MSGPACK_CODEC
from relay.protocol.messages import VideoFrameEvent
from relay.transport import wire

FOLDER = Path(__file__).resolve().parents[3] / "scripts" / "benchmark"
MODULES = ("client", "viewers", "workloads")


def server_frame(opcode: int, payload: bytes, *, final: bool = True) -> bytes:
    frame = bytearray(wire.frame(opcode, payload))
    if not final:
        frame[0] &= ~wire.FIN
    return bytes(frame)


def video_frame(seq: int, *, binary: bool = True) -> bytes:
    codec = MSGPACK_CODEC if binary else JSON_CODEC
    data = codec.pack(bytes(20_000))
    event = VideoFrameEvent(stream_id="s0", seq=seq, timestamp=1, received_at=2, data=data)
    return server_frame(wire.BINARY if binary else wire.TEXT, codec.encode(event))


@pytest.fixture
def viewers(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module("viewers")
    for name in MODULES:
        del sys.modules[name]


@define(eq=False)
class Scene:
    """A viewer, and the server's end of its connection."""

    viewer: Any
    socket: socket.socket
    _scratch: bytearray = field(factory=lambda: bytearray(1 << 20))
    _protocol: Connection = field(factory=lambda: Connection(ConnectionType.SERVER))

    def reply_to(self, data: bytes) -> list[Event]:
        """Let the viewer read this at once; what it sends back."""
        self.socket.sendall(data)
        there = array("i", [0])
        while there[0] < len(data):  # it is on its way through the kernel
            fcntl.ioctl(self.viewer.socket, termios.FIONREAD, there)
        self.viewer.receive(self._scratch)
        with suppress(BlockingIOError):
            self._protocol.receive_data(self.socket.recv(1 << 16, socket.MSG_DONTWAIT))
        return list(self._protocol.events())


@pytest.fixture
def connect(viewers: ModuleType) -> Iterator[Callable[..., Scene]]:
    """Connects a viewer of the class with this name, which answers so."""
    with ExitStack() as stack:

        def make(name: str, answers: str = "pongs", *, binary: bool = True) -> Scene:
            workloads = sys.modules["workloads"]
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            accepted: list[socket.socket] = []

            def accept() -> None:
                accepted.append(stack.enter_context(listener.accept()[0]))
                accepted[0].recv(4096)
                accepted[0].sendall(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")

            accepting = Thread(target=accept)
            accepting.start()
            order = workloads.Order(
                workload=workloads.FanOut(20_000, 1, answers=answers),
                port=listener.getsockname()[1],
                pid=0,
                seconds=1,
                binary=binary,
                token="none",
                is_relay=True,
            )
            viewer = getattr(viewers, name)(order)
            stack.enter_context(viewer.socket)
            accepting.join()
            viewer.start()
            return Scene(viewer, accepted[0])

        yield make


def pongs(events: list[Event]) -> list[bytes]:
    assert all(isinstance(event, Pong) for event in events)
    return [bytes(event.payload) for event in events if isinstance(event, Pong)]


def acknowledged(events: list[Event]) -> list[int]:
    seqs = []
    for event in events:
        assert isinstance(event, BytesMessage | TextMessage)
        if isinstance(event, TextMessage):
            message = msgspec.json.decode(event.data)
        else:
            message = msgspec.msgpack.decode(bytes(event.data))
        assert (message["type"], message["streamId"]) == ("ack", "s0")
        seqs.append(message["seq"])
    return seqs


BOTH = pytest.mark.parametrize("kind", ["Counting", "Sampling"])


@BOTH
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the kernel is not asked for that")
def test_tcp_acknowledges_frames_behind_a_pong_as_they_are_read(
    connect: Callable[..., Scene], kind: str
) -> None:
    scene = connect(kind)
    unacknowledged = array("i", [0])
    for seq in range(1, 4):
        assert pongs(scene.reply_to(server_frame(wire.PING, b"8 bytes!"))) == [b"8 bytes!"]
        assert scene.reply_to(video_frame(seq)) == []
        fcntl.ioctl(scene.socket, termios.TIOCOUTQ, unacknowledged)
        assert unacknowledged[0] == 0


@BOTH
def test_each_ping_is_answered_with_its_payload(connect: Callable[..., Scene], kind: str) -> None:
    scene = connect(kind)
    pings = (
        server_frame(wire.PING, b"8 bytes!")
        + server_frame(wire.PING, b"")
        + server_frame(wire.PING, b"x" * 9)
    )
    assert pongs(scene.reply_to(video_frame(1) + pings)) == [b"8 bytes!", b"", b"x" * 9]
    assert scene.viewer.answers == 3
    assert scene.reply_to(video_frame(2)) == []


@BOTH
def test_a_ping_behind_a_frame_is_answered_when_it_is_whole(
    connect: Callable[..., Scene], kind: str
) -> None:
    scene = connect(kind)
    data = video_frame(1) + server_frame(wire.PING, b"8 bytes!") + video_frame(2)[:5]
    ends = [3, 20, 10_000, len(video_frame(1)), len(video_frame(1)) + 1, len(video_frame(1)) + 9]
    for start, end in pairwise([0, *ends]):
        assert scene.reply_to(data[start:end]) == []
    assert pongs(scene.reply_to(data[ends[-1] :])) == [b"8 bytes!"]


@BOTH
def test_without_answers_nothing_is_sent(connect: Callable[..., Scene], kind: str) -> None:
    scene = connect(kind, "none")
    assert scene.reply_to(video_frame(1) + server_frame(wire.PING, b"8 bytes!")) == []


@BOTH
@pytest.mark.parametrize("binary", [True, False])
def test_each_frame_is_acknowledged_once_its_last_byte_is_there(
    connect: Callable[..., Scene], kind: str, binary: bool
) -> None:
    scene = connect(kind, "acks", binary=binary)
    for seq in (1, 127, 128, 65_535, 65_536):
        frame = video_frame(seq, binary=binary)
        for cut in (1, 60, len(frame) - 1):
            assert scene.reply_to(frame[:cut]) == []
            assert acknowledged(scene.reply_to(frame[cut:])) == [seq]
    two = video_frame(70_000, binary=binary) + video_frame(70_001, binary=binary)
    assert acknowledged(scene.reply_to(two)) == [70_000, 70_001]


@BOTH
def test_of_frames_that_come_close_together_each_second_one_is_acknowledged(
    connect: Callable[..., Scene], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, now = connect(kind, "pairs"), 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    acks = []
    for seq in range(1, 8):
        acks += acknowledged(scene.reply_to(video_frame(seq)))
        now += 0.05 if seq == 4 else 0.01
    assert acks == [1, 3, 5, 7]


def test_pings_and_fragments_are_not_counted_as_frames(connect: Callable[..., Scene]) -> None:
    scene = connect("Counting")
    fragments = server_frame(wire.BINARY, bytes(500), final=False) + server_frame(
        wire.PING, b"between"
    )
    fragments += server_frame(wire.CONTINUATION, bytes(500))
    assert pongs(scene.reply_to(fragments + video_frame(1))) == [b"between"]
    assert scene.viewer.frames == 2
