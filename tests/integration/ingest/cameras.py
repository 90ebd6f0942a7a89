"""Cameras and films for tests: made by PyAV, served on loopback."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import trio
from attrs import define, field

WIDTH, HEIGHT, FPS = 320, 240, 25
BOUNDARY = "camera"
GONE = (trio.BrokenResourceError, trio.ClosedResourceError)


def picture(number: int, width: int = WIDTH, height: int = HEIGHT) -> av.VideoFrame:
    """A picture in which something moves."""
    frame = av.VideoFrame(width, height, "yuv420p")
    for index, plane in enumerate(frame.planes):
        row = bytearray([128 if index else 40]) * plane.line_size
        if index == 0:
            at = 8 * number % (width - 16)
            row[at : at + 16] = b"\xe0" * 16
        plane.update(bytes(row) * plane.height)
    return frame


def make_film(
    path: Path, codec: str = "libx264", *, pictures: int = 50, keyframe_interval: int = 10
) -> Path:
    """A film of a format that goes by the ending of its name."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = WIDTH, HEIGHT
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if codec == "libx264":
            stream.codec_context.gop_size = keyframe_interval
            stream.options = {"preset": "ultrafast", "tune": "zerolatency", "bf": "0"}
        for number in range(pictures):
            frame = picture(number).reformat(format=stream.pix_fmt)
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def make_jpegs(count: int = 5, width: int = WIDTH, height: int = HEIGHT) -> list[bytes]:
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuvj420p"
    encoder.time_base = Fraction(1, FPS)
    made = []
    for number in range(count):
        frame = picture(number, width, height).reformat(format="yuvj420p")
        frame.pts = number
        made += [bytes(packet) for packet in encoder.encode(frame)]
    return [*made, *(bytes(packet) for packet in encoder.encode(None))]


def make_h264(count: int = 25, keyframe_interval: int = 5) -> list[bytes]:
    """Access units in Annex B, each keyframe with its parameter sets."""
    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = WIDTH, HEIGHT, "yuv420p"
    encoder.time_base, encoder.gop_size = Fraction(1, FPS), keyframe_interval
    encoder.options = {"preset": "ultrafast", "tune": "zerolatency"}
    made = []
    for number in range(count):
        frame = picture(number)
        frame.pts = number
        made += [bytes(packet) for packet in encoder.encode(frame)]
    return [*made, *(bytes(packet) for packet in encoder.encode(None))]


Serve = Callable[[Any], Awaitable[None]]
"""Serves one connection, a stream of Trio."""


@define(eq=False)
class Camera:
    """A server on loopback that plays one camera; it can be away."""

    _nursery: trio.Nursery
    serve: Serve
    port: int = 0
    connections: int = 0
    """So far."""
    open: int = 0
    heads: list[bytes] = field(factory=list)
    """What clients asked for first."""
    _life: trio.CancelScope = field(factory=trio.CancelScope)

    async def start(self) -> None:
        listeners = await trio.open_tcp_listeners(self.port, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        self._life = trio.CancelScope()
        self._nursery.start_soon(self._run, listeners)

    def stop(self) -> None:
        self._life.cancel()

    async def _run(self, listeners: list[trio.SocketListener]) -> None:
        with self._life:
            await trio.serve_listeners(self._handle, listeners)

    async def _handle(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        self.open += 1
        try:
            with suppress(*GONE):
                await self.serve(stream)
        finally:
            self.open -= 1
            await trio.aclose_forcefully(stream)


@asynccontextmanager
async def open_camera(serve: Serve) -> AsyncIterator[Camera]:
    async with trio.open_nursery() as nursery:
        camera = Camera(nursery, serve)
        await camera.start()
        yield camera
        nursery.cancel_scope.cancel()


def mjpeg(jpegs: Sequence[bytes], *, fps: float = FPS) -> Serve:
    """Serve MJPEG over HTTP, over and over."""

    async def serve(stream: trio.abc.Stream) -> None:
        await read_head(stream)
        await stream.send_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary="
            + BOUNDARY.encode()
            + b"\r\n\r\n"
        )
        while True:
            for jpeg in jpegs:
                await stream.send_all(
                    f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\n"
                    f"Content-Length: {len(jpeg)}\r\n\r\n".encode()
                    + jpeg
                    + b"\r\n"
                )
                await trio.sleep(1 / fps)

    return serve


async def read_head(stream: trio.abc.Stream) -> bytes:
    """The head of a request."""
    head = b""
    while b"\r\n\r\n" not in head:
        more = await stream.receive_some()
        if not more:
            raise trio.BrokenResourceError
        head += more
    return head


# -- RTSP (RFC 2326), with RTP (RFC 6184) in the same connection


def rtsp(units: Sequence[bytes], *, password: str | None = None) -> Serve:
    """Serve H.264 over RTSP, over and over."""

    async def serve(stream: trio.abc.Stream) -> None:
        buffered = b""
        while True:
            while b"\r\n\r\n" not in buffered:
                more = await stream.receive_some()
                if not more:
                    return
                buffered += more
            head, _, buffered = buffered.partition(b"\r\n\r\n")
            if head.startswith(b"$"):
                continue
            method, number = head.split()[0], _header(head, b"CSeq")
            answer, body = _answer(head, method, units, password)
            answer += f"CSeq: {number}\r\nContent-Length: {len(body)}\r\n\r\n{body}"
            await stream.send_all(f"RTSP/1.0 {answer}".encode())
            if method == b"PLAY":
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_until_closed, stream, nursery.cancel_scope)
                    with suppress(*GONE):  # or it would leave the nursery in a group
                        await _send_rtp(stream, units)

    return serve


def _answer(
    head: bytes, method: bytes, units: Sequence[bytes], password: str | None
) -> tuple[str, str]:
    expected = password and base64.b64encode(f"user:{password}".encode()).decode()
    if expected and f"Basic {expected}".encode() not in head and method != b"OPTIONS":
        return '401 Unauthorized\r\nWWW-Authenticate: Basic realm="camera"\r\n', ""
    match method:
        case b"OPTIONS":
            return "200 OK\r\nPublic: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n", ""
        case b"DESCRIBE":
            return "200 OK\r\nContent-Type: application/sdp\r\n", (
                "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=camera\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
                "m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n"
                "a=fmtp:96 packetization-mode=1\r\na=control:track1\r\n"
            )
        case b"SETUP":
            return "200 OK\r\nSession: 1\r\nTransport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n", ""
    return "200 OK\r\nSession: 1\r\n", ""


def _header(head: bytes, name: bytes) -> str:
    for line in head.split(b"\r\n"):
        if line.lower().startswith(name.lower() + b":"):
            return line.partition(b":")[2].strip().decode()
    return "0"


async def _until_closed(stream: trio.abc.Stream, scope: trio.CancelScope) -> None:
    with suppress(*GONE):
        while await stream.receive_some():
            pass
    scope.cancel()


async def _send_rtp(stream: trio.abc.Stream, units: Sequence[bytes]) -> None:
    sequence, time = 0, 0
    while True:
        for unit in units:
            nals = [each for each in _nals(unit) if each]
            for position, nal in enumerate(nals):
                packets = _payloads(nal)
                for part, payload in enumerate(packets):
                    last = position == len(nals) - 1 and part == len(packets) - 1
                    header = bytes([0x80, 96 | (0x80 if last else 0)])
                    header += sequence.to_bytes(2, "big") + time.to_bytes(4, "big") + b"\0\0\0\1"
                    packet = header + payload
                    await stream.send_all(b"$\0" + len(packet).to_bytes(2, "big") + packet)
                    sequence = (sequence + 1) & 0xFFFF
            time = (time + 90000 // FPS) & 0xFFFFFFFF
            await trio.sleep(1 / FPS)


def _nals(unit: bytes) -> list[bytes]:
    return unit.replace(b"\0\0\0\1", b"\0\0\1").split(b"\0\0\1")


def _payloads(nal: bytes) -> list[bytes]:
    """One RTP payload, or several fragments (FU-A)."""
    if len(nal) <= 1400:
        return [nal]
    parts = [nal[at : at + 1400] for at in range(1, len(nal), 1400)]
    indicator = bytes([nal[0] & 0xE0 | 28])
    made = []
    for number, part in enumerate(parts):
        edge = 0x80 if number == 0 else 0x40 if number == len(parts) - 1 else 0
        made.append(indicator + bytes([nal[0] & 0x1F | edge]) + part)
    return made
