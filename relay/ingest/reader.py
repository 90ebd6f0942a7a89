"""The process that reads a source with PyAV, and encodes pictures of it.

`python -m relay.ingest.reader`: it gets a `ReadRequest` on stdin and answers on stdout; see
`wire.py`. It ends when stdin does, however its parent ended. What a camera sends can crash it, hang
it or fill its memory, up to a limit; its parent starts another one.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from typing import TYPE_CHECKING, BinaryIO

import msgspec
from attrs import define, field

from relay.ingest.h264 import H264Framer
from relay.ingest.wire import (
    DISCARDABLE,
    HEADER,
    KEYFRAME,
    MAX_SOURCE_FRAME,
    MessageKind,
    ReadRequest,
    SourceInfo,
    TakeRequest,
    WantedPicture,
)
from relay.renditions.jpeg_header import read_size

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.video.codeccontext import VideoCodecContext
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

OPEN_TIMEOUT, READ_TIMEOUT = 10.0, 10.0
"""Seconds to open the source, and for each of its packets."""
READER_MEMORY = 4 << 30
"""Bytes of addresses; libraries and threads take 1 GiB."""
MAX_DECODED_PIXELS = 7680 * 4320
MAX_UNDECODABLE = 100
"""Packets in a row that cannot be decoded."""
MAX_WITHOUT_KEYFRAME = 20.0
"""Seconds."""
UNKNOWN_FPS = 25
MAX_PACE = 5.0
"""Seconds between two pictures of a file; more is a mistake in its timestamps."""
COPIES_FROM_QUALITY = 0.77
"""A JPEG of the camera is sent as it is where one of at least this quality is wanted."""
HUFFMAN_TABLES = b"\xff\xc4"
"""Some cameras leave them out, and browsers do not know which are meant."""


class CannotRead(Exception):
    """The source cannot be read, for a reason that may be shown."""


@define(eq=False)
class Orders:
    """What the parent wants; a thread receives it."""

    _input: BinaryIO
    _wanted: TakeRequest | None = None

    def run(self) -> None:
        """Receive requests until the parent is gone, and end the process then."""
        with suppress(msgspec.DecodeError, OSError):
            for line in self._input:
                self._wanted = msgspec.json.decode(line, type=TakeRequest)
        os._exit(0)

    @property
    def wanted(self) -> list[WantedPicture]:
        """The sizes in which the next picture is wanted; empty while none is."""
        return [] if self._wanted is None else self._wanted.pictures

    def take(self) -> list[WantedPicture]:
        """The same, which are wanted no more then."""
        wanted, self._wanted = self.wanted, None
        return wanted


@define(eq=False)
class Output:
    """Writes messages to the parent."""

    _output: BinaryIO

    def send(self, kind: MessageKind, data: bytes = b"", flags: int = 0) -> None:
        self._output.write(HEADER.pack(kind, flags, len(data)) + data)
        self._output.flush()


@define(eq=False)
class JpegEncoder:
    """Makes JPEGs of decoded pictures."""

    _encoders: dict[tuple[int, int, int], VideoCodecContext] = field(factory=dict)
    _count: int = 0

    def encode(self, frame: VideoFrame, wanted: WantedPicture) -> bytes:
        scale = min(1.0, wanted.width / frame.width)
        size = _even(frame.width * scale), _even(frame.height * scale)
        encoder = self._encoder(*size, quantizer_of(wanted.quality))
        small = frame.reformat(*size, "yuvj420p")
        self._count += 1  # not the times of the source, which may go back
        small.pts, small.time_base = self._count, Fraction(1, UNKNOWN_FPS)
        return b"".join(bytes(packet) for packet in encoder.encode(small))

    def _encoder(self, width: int, height: int, quantizer: int) -> VideoCodecContext:
        import av  # noqa: PLC0415 (an extra)

        key = (width, height, quantizer)
        if key not in self._encoders:
            if len(self._encoders) >= 8:  # the link changes, and so does what is planned for it
                self._encoders.pop(next(iter(self._encoders)))
            encoder = av.CodecContext.create("mjpeg", "w")
            encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuvj420p"
            encoder.time_base = Fraction(1, UNKNOWN_FPS)
            encoder.qmin = encoder.qmax = quantizer
            encoder.thread_count = 1
            self._encoders[key] = encoder
        return self._encoders[key]


@define(eq=False)
class FilePace:
    """Waits until the pictures of a file are due."""

    _start: float | None = None
    _first: float = 0.0
    _last: float = 0.0
    _count: int = 0

    def wait(self, seconds: float | None) -> None:
        """Wait for the picture of this time in the file; None where it does not tell."""
        self._count += 1
        at = self._count / UNKNOWN_FPS if seconds is None else seconds
        now = time.monotonic()
        if self._start is None or not 0 <= at - self._last <= MAX_PACE:
            self._start, self._first = now, at  # a jump, or the file begins again
        self._last = at
        time.sleep(max(0.0, self._start + at - self._first - now))


@define(eq=False)
class Reader:
    """Reads one source."""

    _request: ReadRequest
    _orders: Orders
    _output: Output
    _encoder: JpegEncoder = field(factory=JpegEncoder)
    _pace: FilePace = field(factory=FilePace)
    _failures: int = 0
    _has_gap: bool = False
    """Whether a frame was left out on which those that follow may build."""

    def run(self) -> None:
        """Read the source to its end; `CannotRead`."""
        while True:
            found = self._read()
            if not self._request.is_file:
                raise CannotRead("it closed the connection")
            if not found:
                raise CannotRead("it has no pictures")
            if not self._request.loops:
                break
        self._output.send(MessageKind.ENDED)

    def _read(self) -> bool:
        """Read it once; returns whether there was a picture."""
        import av  # noqa: PLC0415 (an extra)

        request, found = self._request, False
        try:
            with av.open(
                request.address,
                format=request.demuxer,
                options=request.options,
                timeout=(OPEN_TIMEOUT, READ_TIMEOUT),
            ) as container:
                if not container.streams.video:
                    raise CannotRead("it has no video")
                stream = container.streams.video[0]
                stream.codec_context.options = {"max_pixels": str(MAX_DECODED_PIXELS)}
                stream.codec_context.thread_count = 1  # more threads would delay pictures
                read = self._copy if request.copies else self._take
                for found in read(container, stream):  # noqa: B007 (whether there was one)
                    pass
        except (av.FFmpegError, OSError, ValueError) as error:
            # What FFmpeg says more would show the address.
            text = getattr(error, "strerror", None) or type(error).__name__
            raise CannotRead(str(text)) from None
        return found

    def _packets(
        self, container: InputContainer, stream: VideoStream
    ) -> Iterator[av.Packet[VideoStream]]:
        for packet in container.demux(stream):
            if packet.size > MAX_SOURCE_FRAME:
                self._has_gap = True
            if not 0 < packet.size <= MAX_SOURCE_FRAME:
                continue
            if self._request.is_file:
                at = packet.pts if packet.dts is None else packet.dts
                base = packet.time_base
                self._pace.wait(None if at is None or base is None else float(at * base))
            yield packet

    # -- pictures that are asked for

    def _take(self, container: InputContainer, stream: VideoStream) -> Iterator[bool]:
        codec = stream.codec_context
        is_jpeg = codec.name == "mjpeg"
        self._tell("mjpeg" if is_jpeg else "other", codec.width, codec.height)
        for packet in self._packets(container, stream):
            if is_jpeg and not self._orders.wanted:
                continue  # each is a picture by itself
            if is_jpeg and self._copy_jpeg(bytes(packet)):
                yield True
                continue
            for frame in self._decode(packet):
                yield True
                for wanted in self._orders.take():
                    self._output.send(MessageKind.PICTURE, self._encoder.encode(frame, wanted))

    def _copy_jpeg(self, jpeg: bytes) -> bool:
        """Send the JPEG of the source if that is all that is wanted."""
        size = read_size(jpeg)
        if size is None or HUFFMAN_TABLES not in jpeg:
            return False
        if not all(may_copy(each, size[0]) for each in self._orders.wanted):
            return False
        for _ in self._orders.take():
            self._output.send(MessageKind.PICTURE, jpeg)
        return True

    def _decode(self, packet: av.Packet[VideoStream]) -> list[VideoFrame]:
        import av  # noqa: PLC0415 (an extra)

        try:
            frames = packet.decode()
        except av.FFmpegError:
            self._failures += 1
            if self._failures >= MAX_UNDECODABLE:
                raise CannotRead("its pictures cannot be decoded") from None
            return []
        if frames:
            self._failures = 0
        return frames

    # -- frames as they come

    def _copy(self, container: InputContainer, stream: VideoStream) -> Iterator[bool]:
        match stream.codec_context.name:
            case "mjpeg":
                yield from self._copy_jpegs(container, stream)
            case "h264":
                yield from self._copy_h264(container, stream)
            case name:
                raise CannotRead(f"it sends {name}, which is not passed on; use --codec jpeg")

    def _copy_jpegs(self, container: InputContainer, stream: VideoStream) -> Iterator[bool]:
        self._tell("mjpeg", stream.codec_context.width, stream.codec_context.height)
        for packet in self._packets(container, stream):
            jpeg = bytes(packet)
            if read_size(jpeg) is None:
                self._failures += 1
                if self._failures >= MAX_UNDECODABLE:
                    raise CannotRead("it sends no pictures")
                continue
            self._failures = 0
            yield True
            self._output.send(MessageKind.FRAME, jpeg)

    def _copy_h264(self, container: InputContainer, stream: VideoStream) -> Iterator[bool]:
        framer, told, began = H264Framer(), False, time.monotonic()
        framer.configure(bytes(stream.codec_context.extradata or b""))
        for packet in self._packets(container, stream):
            frame = framer.frame(bytes(packet))
            if frame is None:
                continue
            if not told and frame.keyframe and framer.codec is not None:
                codec = stream.codec_context
                self._tell("h264", codec.width, codec.height, framer.codec)
                told = True
            if not told:
                if time.monotonic() - began > MAX_WITHOUT_KEYFRAME:
                    raise CannotRead("it sends no keyframes")
                continue
            self._has_gap = self._has_gap and not frame.keyframe
            if self._has_gap:
                continue
            yield True
            flags = KEYFRAME if frame.keyframe else DISCARDABLE if frame.discardable else 0
            self._output.send(MessageKind.FRAME, frame.data, flags)

    def _tell(self, codec: str, width: int, height: int, codec_string: str | None = None) -> None:
        info = msgspec.convert(
            {"codec": codec, "width": width, "height": height, "codec_string": codec_string},
            SourceInfo,
        )
        self._output.send(MessageKind.OPENED, msgspec.json.encode(info))


def may_copy(wanted: WantedPicture, width: int) -> bool:
    """Whether a JPEG of this width will do for what is wanted."""
    return wanted.may_copy and wanted.width >= width and wanted.quality >= COPIES_FROM_QUALITY


def quantizer_of(quality: float) -> int:
    """FFmpeg's quantizer, from 2 (best) to 31, for a quality from 0 to 1 as browsers mean it.

    Both scale a table of divisors: libjpeg's has 16 where FFmpeg's has 2 at 1.
    """
    percent = min(max(quality, 0.01), 1.0) * 100
    scale = 50 / percent if percent < 50 else 2 - percent / 50
    return min(31, max(2, round(6.5 * scale)))


def _even(length: float) -> int:
    """The nearest even length: chroma has half the resolution."""
    return max(2, round(length / 2) * 2)


def _limit_memory() -> None:
    with suppress(ValueError, OSError):  # macOS takes no such limit
        resource.setrlimit(resource.RLIMIT_AS, (READER_MEMORY, READER_MEMORY))
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> int:
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # of the terminal; the parent ends this process
    output = Output(sys.stdout.buffer)
    request = msgspec.json.decode(sys.stdin.buffer.readline(), type=ReadRequest)
    orders = Orders(sys.stdin.buffer)
    _limit_memory()
    try:
        import av.logging  # noqa: PLC0415 (an extra)
    except ImportError as error:
        output.send(MessageKind.FAILED, f"PyAV cannot be imported: {error}".encode())
        return 1
    av.logging.set_level(av.logging.PANIC)  # it would tell addresses with their passwords
    threading.Thread(target=orders.run, daemon=True).start()
    try:
        Reader(request, orders, output).run()
    except CannotRead as error:
        output.send(MessageKind.FAILED, str(error).encode("utf-8", "replace"))
    except MemoryError:
        output.send(MessageKind.FAILED, b"it takes too much memory")
    except BrokenPipeError:
        return 1
    return 0


if __name__ == "__main__":
    status = main()
    with suppress(OSError):
        sys.stdout.flush()
    os._exit(status)  # the thread that receives requests never returns
