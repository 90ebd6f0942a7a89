"""The process that makes an MP4 file of the pictures of a clip, which strangers have chosen.

A script of its own, for one clip: it reads a request from stdin, writes the file to stdout and
ends. `mp4_command` says how to run it.

    request: CLIP (how many pictures, width and height of the video), then for each picture PICTURE
             (milliseconds since the first, bytes) and the picture
    answer:  the file; nothing if no picture can be decoded

As the worker of renditions it has no file, no socket and no secret.
"""

from __future__ import annotations

import io
import os
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

CLIP = struct.Struct("<IHH")
PICTURE = struct.Struct("<II")
MP4_MEMORY = 1 << 30
"""Bytes of addresses; the libraries take 250 MiB."""
MP4_CPU_SECONDS = 20
NICENESS = 15
"""So that frames go first."""
NO_LIBRARY = 3
"""Exit status where PyAV cannot be imported, or has no encoder for H.264."""
_MILLISECONDS = Fraction(1, 1000)


def mp4_command(library_folder: str) -> list[str]:
    """The command line of a worker; the folder is that which holds PyAV."""
    relay = str(Path(__file__).parents[2])
    return [sys.executable, "-I", __file__, relay, library_folder]


def main(folders: Sequence[str]) -> int:
    """Answer the request on stdin; returns the exit status."""
    sys.path[:0] = folders  # ahead of another relay that may be installed
    try:
        import av  # noqa: PLC0415 (relay imports this module without it)
        import av.error  # noqa: PLC0415

        av.Codec("libx264", "w")
    except (ImportError, ValueError):
        return NO_LIBRARY
    from relay.renditions.worker import isolate, limit_resources  # noqa: PLC0415 (see above)

    with suppress(OSError):
        os.nice(NICENESS)
    isolate()
    make_mp4(iter([(0, _own_picture())]), (16, 16))  # PyAV imports what it needs when it needs it
    limit_resources(MP4_MEMORY, MP4_CPU_SECONDS)
    count, width, height = CLIP.unpack(sys.stdin.buffer.read(CLIP.size))
    pictures = read_pictures(sys.stdin.buffer, count)
    sys.stdout.buffer.write(make_mp4(pictures, (width, height)))
    sys.stdout.buffer.flush()
    return 0


def read_pictures(source: BinaryIO, count: int) -> Iterator[tuple[int, bytes]]:
    """Each picture, with its time in milliseconds."""
    for _ in range(count):
        moment, length = PICTURE.unpack(source.read(PICTURE.size))
        yield moment, source.read(length)


def make_mp4(pictures: Iterator[tuple[int, bytes]], size: tuple[int, int]) -> bytes:
    """H.264 in MP4, of this size; empty if no picture can be decoded. One that cannot be is left
    out."""
    import av  # noqa: PLC0415 (it was imported above)

    output, last = io.BytesIO(), -1
    decoder = av.CodecContext.create("mjpeg", "r")
    decoder.thread_count = 1  # it may start none
    with av.open(output, "w", format="mp4") as container:
        video = container.add_stream("libx264", options={"preset": "veryfast", "crf": "25"})
        video.width, video.height, video.pix_fmt = *size, "yuv420p"
        video.codec_context.time_base, video.codec_context.thread_count = _MILLISECONDS, 1
        for moment, picture in pictures:
            try:
                frames = decoder.decode(av.Packet(picture))
            except av.error.FFmpegError:
                continue
            for frame in frames:
                even = frame.reformat(*size, format="yuv420p", dst_color_range="MPEG")
                last = max(last + 1, moment)
                even.pts, even.time_base = last, _MILLISECONDS
                container.mux(video.encode(even))
        if last >= 0:
            container.mux(video.encode(None))
    return output.getvalue() if last >= 0 else b""


def _own_picture() -> bytes:
    """A small JPEG picture that no stranger has made."""
    import av  # noqa: PLC0415 (it was imported above)

    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.width, encoder.height, encoder.pix_fmt = 16, 16, "yuvj420p"
    encoder.time_base, encoder.thread_count = _MILLISECONDS, 1
    packets = [*encoder.encode(av.VideoFrame(16, 16, "yuvj420p")), *encoder.encode(None)]
    return bytes(packets[0])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
