"""The reading process, as its parent sees it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from importlib.util import find_spec

import msgspec
import trio
from attrs import define, field, frozen

from relay.concurrency.exact_reads import receive_exactly
from relay.errors import ConfigError, RelayError
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
from relay.logs.printable import printable
from relay.process.working_directory import working_directory
from relay.settings.loading import SOURCE_VARIABLE, TOKEN_VARIABLE

SILENCE_TIMEOUT = 30.0
"""Seconds without a message from the process. By itself, it gives a source up sooner."""
READER_END_TIMEOUT = 5.0
"""Seconds for a killed process to be gone."""
SECRET_VARIABLES = (TOKEN_VARIABLE, SOURCE_VARIABLE, "RELAY_DATABASE_URL")
"""The process needs none of them."""
READER_COMMAND = (sys.executable, "-P", "-m", "relay.ingest.reader")


class SourceFailed(RelayError):
    """The source cannot be read now; the text says why, without credentials."""


class SourceEnded(SourceFailed):
    """The source has no more pictures: it is a file."""


@frozen
class CopiedFrame:
    """A frame of the source, as it came."""

    data: bytes = field(repr=False)
    keyframe: bool
    discardable: bool


@define(eq=False)
class SourceReader:
    """Reads one source. All methods raise `SourceFailed` and `SourceEnded`; after one that was
    cancelled, it is of no use."""

    _process: trio.Process

    async def open(self, request: ReadRequest) -> SourceInfo:
        """Begin to read; returns what is known of the source."""
        await self._send(request)
        _, data = await self._receive(MessageKind.OPENED)
        try:
            return msgspec.json.decode(data, type=SourceInfo)
        except msgspec.DecodeError:
            raise SourceFailed("the reader said something that makes no sense") from None

    async def take(self, pictures: Sequence[WantedPicture]) -> list[bytes]:
        """The next picture as JPEGs of these sizes."""
        await self._send(TakeRequest(list(pictures)))
        return [(await self._receive(MessageKind.PICTURE))[1] for _ in pictures]

    async def next_frame(self) -> CopiedFrame:
        """The next frame of a source that is copied."""
        flags, data = await self._receive(MessageKind.FRAME)
        return CopiedFrame(data, bool(flags & KEYFRAME), bool(flags & DISCARDABLE))

    async def _send(self, message: ReadRequest | TakeRequest) -> None:
        assert self._process.stdin is not None
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):  # its last word says why
            await self._process.stdin.send_all(msgspec.json.encode(message) + b"\n")

    async def _receive(self, expected: MessageKind) -> tuple[int, bytes]:
        with trio.move_on_after(SILENCE_TIMEOUT):
            while True:
                kind, flags, length = HEADER.unpack(await self._read(HEADER.size))
                if length > 2 * MAX_SOURCE_FRAME:
                    raise SourceFailed("the reader said something that makes no sense")
                data = await self._read(length)
                if kind == MessageKind.OPENED and expected != MessageKind.OPENED:
                    continue  # a file that begins again
                if kind == MessageKind.ENDED:
                    raise SourceEnded("it has ended")
                if kind == MessageKind.FAILED:
                    raise SourceFailed(printable(data.decode("utf-8", "replace")))
                if kind != expected:
                    raise SourceFailed("the reader said something that makes no sense")
                return flags, data
        raise SourceFailed("it sends nothing")

    async def _read(self, count: int) -> bytes:
        assert self._process.stdout is not None
        try:
            return await receive_exactly(self._process.stdout, count)
        except (EOFError, trio.BrokenResourceError, trio.ClosedResourceError):
            raise SourceFailed("what it sent made the reader crash") from None


@asynccontextmanager
async def open_reader(command: Sequence[str] = READER_COMMAND) -> AsyncIterator[SourceReader]:
    """Start a reading process; it is killed at the end of the block."""
    try:
        process = await trio.lowlevel.open_process(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd=working_directory(),
            env={name: value for name, value in os.environ.items() if name not in SECRET_VARIABLES},
        )
    except OSError as error:
        raise SourceFailed(f"no process can be started ({error.strerror})") from None
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield SourceReader(process)
    finally:
        process.kill()
        with trio.move_on_after(READER_END_TIMEOUT, shield=True):
            await process.stdin.aclose()
            await process.stdout.aclose()
            await process.wait()


def check_installed() -> None:
    """`ConfigError` without PyAV, with what to install."""
    if find_spec("av") is None:
        raise ConfigError("`relay ingest` needs PyAV: install relay with its extra `ingest`")
