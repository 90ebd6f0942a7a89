"""The process that decodes pictures of strangers and makes smaller ones.

A script of its own, which needs the standard library and simplejpeg, and imports nothing of relay:
`worker_command` says how to run it. It reads requests from stdin and writes answers to stdout until
stdin ends, which it does however relay ends.

    request: REQUEST (bytes of the picture, its width and height, how many sizes), then SIZE (width,
             height) for each size, then the picture
    answer:  ANSWER (an `AnswerKind`, CPU seconds of this process so far, how many pictures), then
             LENGTH for each picture, then the pictures in the order of the sizes
    first:   an answer `READY` without pictures, or `ISOLATED`

Everything it gets was chosen by relay except for the picture. A decoder that a picture takes over
finds no file, no socket and no secret here; docs/security.md says what it could still do.
"""

from __future__ import annotations

import resource
import signal
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress
from enum import IntEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from relay.renditions.jpeg_header import Size

REQUEST = struct.Struct("<IHHB")
SIZE = struct.Struct("<HH")
ANSWER = struct.Struct("<BdB")
LENGTH = struct.Struct("<I")

QUALITY = 52
"""Of the pictures made. More takes bytes that show what the original had lost already."""
PICTURE_CPU_SECONDS = 0.1
"""CPU seconds for one picture in all its sizes; then the kernel ends this process."""
LIFETIME_CPU_SECONDS = 1800
"""CPU seconds for all pictures. relay replaces a worker long before."""
MAX_MEMORY = 512 << 20
"""Bytes of addresses; 100 MiB are taken when the libraries are there."""
LIBRARY_MISSING = 3
"""Exit status where simplejpeg cannot be imported."""

_CLONE_NEWIPC, _CLONE_NEWUSER, _CLONE_NEWNET = 0x08000000, 0x10000000, 0x40000000
_PR_SET_NO_NEW_PRIVS = 38
_IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""relay ends the worker; a service manager may signal all processes at once."""


class AnswerKind(IntEnum):
    """What an answer says."""

    READY = 0
    ISOLATED = 1
    """Ready, and without a network."""
    MADE = 2
    UNDECODABLE = 3


def worker_command(library_folders: Sequence[str]) -> list[str]:
    """The command line of a worker; the folders are those that hold simplejpeg and numpy."""
    return [sys.executable, "-I", __file__, *library_folders]


def main(library_folders: Sequence[str]) -> int:
    """Answer requests until stdin ends; returns the exit status."""
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    sys.path += [folder for folder in library_folders if folder not in sys.path]
    try:
        import simplejpeg  # noqa: PLC0415 (relay imports this module without it)
    except ImportError:
        return LIBRARY_MISSING
    isolated = isolate()
    limit_resources()
    _answer(AnswerKind.ISOLATED if isolated else AnswerKind.READY)
    while header := sys.stdin.buffer.read(REQUEST.size):
        length, width, height, count = REQUEST.unpack(header)
        sizes = list(SIZE.iter_unpack(sys.stdin.buffer.read(SIZE.size * count)))
        picture = sys.stdin.buffer.read(length)
        signal.setitimer(signal.ITIMER_PROF, PICTURE_CPU_SECONDS)
        made = make_renditions(simplejpeg, picture, (width, height), sizes)
        signal.setitimer(signal.ITIMER_PROF, 0)
        _answer(AnswerKind.MADE if made else AnswerKind.UNDECODABLE, made)
    return 0


def make_renditions(
    jpeg: Any, picture: bytes, size: Size, sizes: Sequence[Size]
) -> Sequence[bytes]:
    """The picture in each of the sizes, each made from the one before; empty when it cannot be
    decoded, or if the decoder finds another size than relay did."""
    made: list[bytes] = []
    try:
        for width, height in sizes:
            found_height, found_width, colours, _ = jpeg.decode_jpeg_header(picture, strict=False)
            if (found_width, found_height) != size:
                return []
            space, subsampling = ("GRAY", "Gray") if colours == "Gray" else ("RGB", "420")
            # Not strict: what a browser shows of a damaged picture is shown in small, too.
            pixels = jpeg.decode_jpeg(
                picture, space, min_width=width, min_height=height, strict=False
            )
            picture, size = jpeg.encode_jpeg(pixels, QUALITY, space, subsampling), (width, height)
            made.append(picture)
    except Exception:  # noqa: BLE001 (of broken headers simplejpeg raises KeyError, too)
        return []
    return made


def isolate() -> bool:
    """Leave the network, and the sight of other processes, where the kernel lets us (Linux).

    In a user namespace of its own, the process may not trace others of its user.
    """
    if sys.platform != "linux":
        return False
    import ctypes  # noqa: PLC0415 (Linux only)

    try:
        kernel = ctypes.CDLL(None)
        kernel.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        return bool(kernel.unshare(_CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWIPC) == 0)
    except (OSError, AttributeError):  # another C library
        return False


def limit_resources(memory: int = MAX_MEMORY, cpu_seconds: int = LIFETIME_CPU_SECONDS) -> None:
    """Give up, for good, to open anything, start anything, write files, and take much memory."""
    limits = {
        resource.RLIMIT_NOFILE: 0,  # those that are open stay
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_AS: memory,
    }
    for limit, value in limits.items():
        with suppress(ValueError, OSError):  # macOS takes no such limit of addresses
            resource.setrlimit(limit, (value, value))


def _answer(verdict: AnswerKind, pictures: Sequence[bytes] = ()) -> None:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    lengths = b"".join(LENGTH.pack(len(picture)) for picture in pictures)
    header = ANSWER.pack(verdict, usage.ru_utime + usage.ru_stime, len(pictures))
    sys.stdout.buffer.write(b"".join([header, lengths, *pictures]))
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
